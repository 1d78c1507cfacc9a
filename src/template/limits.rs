//! Limits on the steps of a namespace. A template brings some along, which concern its own steps; others belong to the configuration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::problems::Problems;
use super::Step;

/// How many of some steps of a namespace may be under way at once, or start in a stretch of time, across all workers. A step that several limits concern
/// keeps to each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// Whose steps: those that this handler runs; of any where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// And those of this template; of any where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Where in a task's input, such as `account_id` or `customer.id`: each value there is limited by itself, and a task without one is not. All are
    /// limited together where nothing is said.
    #[schemars(extend("pattern" = r"^[^.]+(\.[^.]+)*$"))]
    pub key: Option<String>,
    /// How many at once; any number where nothing is said.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub concurrency: Option<i32>,
    /// How many starts in any stretch of `per_seconds`; any number where nothing is said.
    #[schemars(range(min = 1, max = 10_000))]
    pub rate: Option<i32>,
    /// 1 where nothing else is said.
    #[schemars(range(min = 0.01, max = 86_400))]
    pub per_seconds: Option<f64>,
    /// Makes them wait, instead of using up their attempts, while too many fail; never where nothing is said.
    pub breaker: Option<Breaker>,
}

/// A circuit breaker. It counts failures that may be tried again; a permanent error tells of the task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Which part of the attempts must fail to open it; 0.5 where nothing else is said.
    #[schemars(range(min = 0.01, max = 1))]
    pub failure_rate: Option<f64>,
    /// How many attempts it wants to have seen; 10 where nothing else is said.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub minimum: Option<i32>,
    /// How far it looks back at most, and half of it at least; 60 where nothing else is said.
    #[schemars(range(min = 0.1, max = 86_400))]
    pub window_seconds: Option<f64>,
    /// How long it stays open before it lets probes through; 30 where nothing else is said.
    #[schemars(range(min = 0.1, max = 86_400))]
    pub open_seconds: Option<f64>,
    /// How many steps are probes. All must succeed to close it, and one that fails opens it again; 1 where nothing else is said.
    #[schemars(range(min = 1, max = 1000))]
    pub probes: Option<i32>,
}

/// What a template's limits are checked against beside their schema.
pub(super) struct Of<'a> {
    pub(super) namespace: &'a str,
    pub(super) steps: &'a [Step],
    pub(super) input_schema: Option<&'a Value>,
}

/// The limits of a template, by name.
pub(super) fn validate(written: BTreeMap<String, Spanned<Value>>, of: &Of<'_>, found: &mut Problems) -> BTreeMap<String, Limit> {
    let mut limits = BTreeMap::new();
    for (name, limit) in written {
        match read(&name, &limit.value, of) {
            Ok(read) => drop(limits.insert(name, read)),
            Err(problem) => found.add(&limit, format!("limit {name:?}: {problem}")),
        }
    }
    limits
}

fn read(name: &str, limit: &Value, of: &Of<'_>) -> Result<Limit, String> {
    if !(1..=100).contains(&name.len()) || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Err("expected a name of a-z, 0-9 and _, of at most 100 characters".into());
    }
    conforms(limit)?;
    let limit: Limit = serde_json::from_value(limit.clone()).map_err(|error| error.to_string())?;
    if limit.template.is_some() {
        return Err("template is given: it concerns the steps of its own".into());
    }
    if limit.concurrency.is_none() && limit.rate.is_none() && limit.breaker.is_none() {
        return Err("it limits nothing: expected concurrency, rate or breaker".into());
    }
    let mut handlers = of
        .steps
        .iter()
        .filter(|step| step.namespace == of.namespace)
        .filter_map(|step| step.kind.runs());
    match &limit.handler {
        None if handlers.next().is_none() => return Err(format!("no step is run in {}, the template's own namespace", of.namespace)),
        Some(handler) if !handlers.any(|known| known == handler) => {
            return Err(format!("handler is {handler:?}: no step of the namespace {} has it", of.namespace));
        }
        _ => {}
    }
    if let (Some(key), Some(schema)) = (&limit.key, of.input_schema) {
        known(key, schema)?;
    }
    Ok(limit)
}

fn conforms(limit: &Value) -> Result<(), String> {
    let schema = schemars::schema_for!(Limit).to_value();
    let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    let first = validator
        .iter_errors(limit)
        .next()
        .map(|error| (error.instance_path().to_string(), error.to_string()));
    match first {
        None => Ok(()),
        Some((at, problem)) if at.is_empty() => Err(problem),
        Some((at, problem)) => Err(format!("{}: {problem}", at.trim_start_matches('/').replace('/', "."))),
    }
}

/// Where the schema says all that an input may have, the key is there.
fn known(key: &str, mut schema: &Value) -> Result<(), String> {
    for part in key.split('.') {
        let Some(properties) = schema["properties"].as_object().filter(|_| schema["additionalProperties"] == false) else {
            return Ok(());
        };
        let names = || properties.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        schema = properties
            .get(part)
            .ok_or_else(|| format!("key is {key:?}: the input has no {part}, by input_schema, but {}", names()))?;
    }
    Ok(())
}
