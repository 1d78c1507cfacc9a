//! What a version of the distributed configuration sets, setting by setting.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::check::join;

/// A value as somebody writes it: YAML or JSON, or else a text.
pub fn value(written: &str) -> Value {
    serde_saphyr::from_str(written).unwrap_or_else(|_| Value::String(written.to_owned()))
}

/// A setting: for whom (nothing: for all), which, and what it is.
pub(crate) type Set = (Vec<String>, String, Value);

/// Each that was set, with whose it is.
pub(crate) fn settings(overrides: &Value) -> Vec<Set> {
    fn walk(at: &Value, place: &[String], setting: &str, found: &mut Vec<Set>) {
        match at.as_object().filter(|below| !below.is_empty()) {
            Some(below) => below.iter().for_each(|(name, at)| match (place, name.as_str()) {
                ([], "namespace_defaults") if setting.is_empty() => walk(at, std::slice::from_ref(name), "", found),
                ([], "namespaces" | "instances") if setting.is_empty() => {
                    let each = at.as_object().into_iter().flatten();
                    each.for_each(|(of, at)| walk(at, &[name.clone(), of.clone()], "", found));
                }
                _ => walk(at, place, &join(setting, name), found),
            }),
            None if setting.is_empty() => {}
            None => found.push((place.to_vec(), setting.to_owned(), at.clone())),
        }
    }
    let mut found = Vec::new();
    walk(overrides, &[], "", &mut found);
    found
}

/// What was changed between two versions: for whom, which setting, what it was and what it is (null: it was not set).
pub(crate) fn changes(before: &Value, after: &Value) -> Vec<(Vec<String>, String, Value, Value)> {
    let keyed = |of: &Value| -> BTreeMap<(Vec<String>, String), Value> {
        settings(of)
            .into_iter()
            .map(|(place, setting, value)| ((place, setting), value))
            .collect()
    };
    let (before, after) = (keyed(before), keyed(after));
    let keys: BTreeSet<&(Vec<String>, String)> = before.keys().chain(after.keys()).collect();
    let of = |values: &BTreeMap<(Vec<String>, String), Value>, key| values.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .map(|key| (key.0.clone(), key.1.clone(), of(&before, key), of(&after, key)))
        .filter(|(_, _, was, is)| was != is)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_two_versions_set_differs_by_place_and_setting() {
        let before = json!({ "worker": { "threads": 8 }, "namespaces": { "shop": { "max_attempts": 5 } } });
        let after = json!({ "worker": { "threads": 9 }, "namespace_defaults": { "jitter": 0.2 }, "instances": { "a.b": { "log": { "level": "debug" } } } });
        let shown: Vec<String> = changes(&before, &after)
            .iter()
            .map(|(place, setting, was, is)| format!("{} {setting} {was} {is}", place.join("/")))
            .collect();
        let expected = [
            " worker.threads 8 9",
            "instances/a.b log.level null \"debug\"",
            "namespace_defaults jitter null 0.2",
            "namespaces/shop max_attempts 5 null",
        ];
        assert_eq!(shown, expected);
        assert_eq!(
            [value("20"), value("[a]"), value("1h: x: y")],
            [json!(20), json!(["a"]), json!("1h: x: y")]
        );
    }
}
