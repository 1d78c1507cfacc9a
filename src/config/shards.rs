//! The databases that tasks are in, where one is not enough.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;

/// The name of the one that needs no configuration, at `database_url`, and its number.
pub const DEFAULT: &str = "default";
pub(crate) const DEFAULT_NUMBER: u16 = 0;

/// The largest number of a shard: ids of tasks have twelve bits for it.
const LAST_NUMBER: u16 = 4095;

/// One of them beside the default one (docs/shards.md).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardConfig {
    /// What the ids of its tasks say, from 1 on. It never changes.
    #[schemars(range(min = 1, max = 4095))]
    pub number: u16,
    /// Where it is, as `database_url`.
    #[schemars(with = "String", extend("x-restart" = true, "x-secret" = true))]
    pub url: Secret,
    /// As `direct.url`.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub direct_url: Option<Secret>,
    /// Those that live there; the default shard has all others.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Where it stands, for people.
    #[serde(default)]
    pub region: Option<String>,
}

/// What is wrong with them, and with the one that the process is to work with.
pub(super) fn problems(shards: &BTreeMap<String, ShardConfig>, own: Option<&str>) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let (mut numbers, mut homes) = (BTreeMap::new(), BTreeMap::new());
    for (name, shard) in shards {
        if name == DEFAULT {
            found.push(("shards", format!("names one {name}, as the one at database_url is called")));
        }
        if !(1..=LAST_NUMBER).contains(&shard.number) {
            let number = shard.number;
            found.push(("shards", format!("gives {name} the number {number}: expected 1 to {LAST_NUMBER}")));
        }
        if let Some(other) = numbers.insert(shard.number, name) {
            found.push(("shards", format!("gives {other} and {name} the number {}", shard.number)));
        }
        for namespace in &shard.namespaces {
            if let Some(other) = homes.insert(namespace, name) {
                found.push(("shards", format!("has {namespace} live in {other} and in {name}")));
            }
        }
    }
    if let Some(own) = own.filter(|own| *own != DEFAULT && !shards.contains_key(*own)) {
        found.push(("shard", format!("is {own}, which is none of shards")));
    }
    found
}
