//! The databases that tasks are in, where one is not enough.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::servers::FailoverConfig;

/// The name of the one that needs no configuration, at `database_url`, and its number.
pub const DEFAULT: &str = "default";
pub(crate) const DEFAULT_NUMBER: u16 = 0;

/// The largest number of a shard: ids of tasks have twelve bits for it.
const LAST_NUMBER: u16 = 4095;

/// One of them beside the default one (docs/shards.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShardConfig {
    /// What the ids of its tasks say, from 1 on. It never changes.
    #[schemars(range(min = 1, max = 4095), extend("x-restart" = true))]
    pub number: u16,
    /// Where it is, as `database_url`.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub url: Option<Secret>,
    /// As `direct.url`.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub direct_url: Option<Secret>,
    /// As `replicas.url`.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub replica_url: Option<Secret>,
    /// In place of `failover`: how long what concerns it waits while it has no primary, for one.
    #[schemars(extend("x-restart" = true))]
    pub failover: Option<FailoverConfig>,
    /// Those that live there; the default shard has all others.
    #[schemars(extend("x-restart" = true))]
    pub namespaces: Vec<String>,
    /// Where it stands, for people.
    #[schemars(extend("x-restart" = true))]
    pub region: Option<String>,
}

/// What is wrong with them; what is missing of one may be said elsewhere, by a variable of the environment for example.
pub(super) fn problems(shards: &BTreeMap<String, ShardConfig>) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let (mut numbers, mut homes) = (BTreeMap::new(), BTreeMap::new());
    for (name, shard) in shards {
        if name == DEFAULT {
            found.push(("shards", format!("names one {name}, as the one at database_url is called")));
        }
        if shard.number > LAST_NUMBER {
            let number = shard.number;
            found.push(("shards", format!("gives {name} the number {number}: expected 1 to {LAST_NUMBER}")));
        }
        let number = Some(shard.number).filter(|number| *number != DEFAULT_NUMBER);
        if let Some(other) = number.and_then(|number| numbers.insert(number, name)) {
            found.push(("shards", format!("gives {other} and {name} the number {}", shard.number)));
        }
        for (setting, problem) in shard.failover.iter().flat_map(FailoverConfig::problems) {
            found.push(("shards", format!("gives {name} a {setting} that {problem}")));
        }
        for namespace in &shard.namespaces {
            if let Some(other) = homes.insert(namespace, name) {
                found.push(("shards", format!("has {namespace} live in {other} and in {name}")));
            }
        }
    }
    found
}
