//! How two versions of a template differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// What has changed, by field: before, and after. null: it was not said.
pub type Fields = BTreeMap<String, (Value, Value)>;

/// What one version has, and another has not, or has otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Steps that only the later one has.
    pub added: Vec<String>,
    /// Steps that only the earlier one has.
    pub removed: Vec<String>,
    /// Steps that both have, but not alike.
    pub changed: BTreeMap<String, Fields>,
    /// What is not about a step.
    pub template: Fields,
}

/// Between two definitions as [`crate::engine::read::read_template`] has them.
pub fn difference(from: &Value, to: &Value) -> Difference {
    let (before, after) = (steps(from), steps(to));
    let only = |of: &BTreeMap<&str, &Value>, other: &BTreeMap<&str, &Value>| {
        let names = of.keys().filter(|name| !other.contains_key(*name));
        names.map(ToString::to_string).collect()
    };
    let changed = before.iter().filter_map(|(name, step)| {
        let fields = fields(step, after.get(name)?, &[]);
        (!fields.is_empty()).then(|| (name.to_string(), fields))
    });
    Difference {
        added: only(&after, &before),
        removed: only(&before, &after),
        changed: changed.collect(),
        template: fields(from, to, &["steps", "version", "registered_at"]),
    }
}

fn steps(definition: &Value) -> BTreeMap<&str, &Value> {
    let all = definition["steps"].as_array().into_iter().flatten();
    all.filter_map(|step| Some((step["name"].as_str()?, step))).collect()
}

fn fields(from: &Value, to: &Value, but: &[&str]) -> Fields {
    let names: BTreeSet<&String> = [from, to]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|of| of.keys())
        .filter(|name| !but.contains(&name.as_str()))
        .collect();
    let differing = names.into_iter().filter(|name| from[*name] != to[*name]);
    differing
        .map(|name| (name.clone(), (from[name].clone(), to[name].clone())))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_says_which_steps_came_went_and_changed_and_what_else() {
        let from = json!({ "version": "1", "priority": "low", "steps": [
            { "name": "check", "handler": "Check" }, { "name": "pack", "handler": "Pack" }, { "name": "send", "handler": "Send", "depends_on": ["pack"] } ] });
        let to = json!({ "version": "2", "deadline": 60, "priority": "low", "steps": [
            { "name": "check", "handler": "Check" }, { "name": "send", "handler": "Send", "depends_on": ["check"] }, { "name": "bill", "handler": "Bill" } ] });
        let found = difference(&from, &to);
        assert_eq!((found.added, found.removed), (vec!["bill".to_owned()], vec!["pack".to_owned()]));
        assert_eq!(json!(found.changed), json!({ "send": { "depends_on": [["pack"], ["check"]] } }));
        assert_eq!(json!(found.template), json!({ "deadline": [null, 60] }));
        assert_eq!(difference(&to, &to), Difference::default());
    }
}
