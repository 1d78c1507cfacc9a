//! What may be set where, as JSON Schema; and the reference, which is made of it.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::JsonSchema;
use serde_json::{json, Map, Value};

use super::check::{expected, join};
use super::{Breaker, Limit, Rules, Settings};

fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.remove("$schema");
        root.remove("title");
    }
    schema
}

/// Of one process's settings, as a section of tasker.yml has them.
pub(super) fn settings() -> &'static Value {
    static SETTINGS: LazyLock<Value> = LazyLock::new(of::<Settings>);
    &SETTINGS
}

/// Of tasker.yml: a section for each environment, and `shared` for all.
pub fn file() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tasker.yml",
        "type": "object",
        "properties": { "shared": settings() },
        "additionalProperties": settings(),
    })
}

/// Of what is kept in the coordinator: what running processes take over without a restart, for all, by namespace and by instance.
pub(super) fn overrides() -> Value {
    let mut process = settings().clone();
    without(&mut process, &["x-restart", "x-secret"]);
    let mut schema = process.clone();
    let mut defaults = of::<Rules>();
    // A limit is of one namespace.
    if let Some(rules) = defaults["properties"].as_object_mut() {
        rules.remove("limits");
    }
    schema["properties"]["namespace_defaults"] = defaults;
    schema["properties"]["namespaces"] = json!({
        "type": "object", "additionalProperties": of::<Rules>(), "propertyNames": { "pattern": "^[a-z][a-z0-9_]{0,36}$" },
    });
    schema["properties"]["instances"] = json!({ "type": "object", "additionalProperties": process });
    schema
}

/// The paths of what may be set for running processes, with what each is: settings of processes, and rules of namespaces.
pub(crate) fn changeable() -> Vec<(String, String)> {
    fn walk(schema: &Value, path: &str, found: &mut Vec<(String, String)>) {
        for (name, setting) in schema["properties"].as_object().into_iter().flatten() {
            let path = join(path, name);
            match setting["properties"].is_object() {
                true => walk(setting, &path, found),
                false => found.push((path, described(setting))),
            }
        }
    }
    let mut process = settings().clone();
    without(&mut process, &["x-restart", "x-secret"]);
    let mut found = Vec::new();
    walk(&process, "", &mut found);
    walk(&of::<Rules>(), "", &mut found);
    found
}

/// Takes away what has one of these marks.
fn without(schema: &mut Value, marks: &[&str]) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    properties.retain(|_, setting| marks.iter().all(|mark| setting[mark] != true));
    properties.values_mut().for_each(|setting| without(setting, marks));
    properties.retain(|_, setting| setting["properties"].as_object().is_none_or(|below| !below.is_empty()));
}

/// Whether a setting is taken over only by a process that starts.
pub(super) fn needs_restart(path: &str) -> bool {
    has(path, "x-restart")
}

/// Whether nobody is to be told what it is.
pub(super) fn is_secret(path: &str) -> bool {
    has(path, "x-secret")
}

/// What a setting of this name is: one that is named there, or one of many alike.
fn below<'s>(at: &'s Value, name: &str) -> Option<&'s Value> {
    let alike = || Some(&at["additionalProperties"]).filter(|alike| alike.is_object());
    at["properties"].get(name).or_else(alike)
}

fn has(path: &str, mark: &str) -> bool {
    let marked = |path: &str| {
        let at = path.split('.').try_fold(settings(), below);
        at.is_some_and(|setting| setting[mark] == true)
    };
    match path.strip_prefix("instances.") {
        // Its name may have dots itself.
        Some(path) => path.match_indices('.').any(|(dot, _)| marked(&path[dot + 1..])),
        None => marked(path),
    }
}

/// Whether it is a rule of namespaces that is set beside the settings of processes.
pub(crate) fn is_rule(path: &str) -> bool {
    let name = path.split('.').next().unwrap_or(path);
    of::<Rules>()["properties"].get(name).is_some()
}

/// The page of all settings, in Markdown.
pub fn reference() -> String {
    let mut rows = String::from("| setting | default | what it is | expected | taken over |\n| --- | --- | --- | --- | --- |\n");
    let defaults = serde_json::to_value(Settings::default()).unwrap_or_default();
    tabulate(settings(), &defaults, "", &mut rows);
    for (of, schema) in [
        (
            "Of namespaces, in the coordinator alone (`namespace_defaults`, and `namespaces.<name>`)",
            of::<Rules>(),
        ),
        ("Of a limit (`namespaces.<name>.limits.<limit>`)", of::<Limit>()),
        ("Of its `breaker`", of::<Breaker>()),
    ] {
        rows.push_str(&format!("\n{of}:\n\n| setting | what it is | expected |\n| --- | --- | --- |\n"));
        for (name, setting) in schema["properties"].as_object().unwrap_or(&Map::new()) {
            rows.push_str(&format!("| `{name}` | {} | {} |\n", described(setting), expected(Some(setting))));
        }
    }
    rows
}

fn tabulate(schema: &Value, defaults: &Value, path: &str, rows: &mut String) {
    for (name, setting) in schema["properties"].as_object().unwrap_or(&Map::new()) {
        let path = join(path, name);
        let default = &defaults[name];
        if setting["properties"].is_object() {
            tabulate(setting, default, &path, rows);
            continue;
        }
        let default = match default {
            Value::Null => setting["x-default"].as_str().unwrap_or("–").into(),
            Value::Array(list) if list.is_empty() => "none".into(),
            Value::Object(map) if map.is_empty() => "none".into(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let when = if setting["x-restart"] == true || setting["x-secret"] == true {
            "by a restart"
        } else {
            "at once"
        };
        rows.push_str(&format!(
            "| `{path}` | {default} | {} | {} | {when} |\n",
            described(setting),
            expected(Some(setting))
        ));
    }
}

fn described(setting: &Value) -> String {
    setting["description"].as_str().unwrap_or_default().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documentation_has_the_table_of_all_settings() {
        let page = include_str!("../../docs/configuration.md");
        let table = super::reference();
        assert!(page.contains(&table), "docs/configuration.md should have:\n{table}");
    }
}
