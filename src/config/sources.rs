//! Where layers are read from: a file, and the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};

use super::check::{below, join, problems, Document, Problem};
use super::layers::{merge, Layer};
use super::schema;
use crate::error::{Error, Result};

/// Where a file of settings is looked for in the working folder.
const FILES: [&str; 2] = ["config/tasker.yml", "tasker.yml"];

/// Variables with names of their own. All others are TASKER__ and a setting's path, with __ for the dots.
const VARIABLES: [(&str, &str); 11] = [
    ("DATABASE_URL", "database_url"),
    ("TASKER_LOG", "log.level"),
    ("TASKER_LOG_FORMAT", "log.format"),
    ("TASKER_LOG_REDACT", "log.redact"),
    ("TASKER_DATABASE_GRACE", "health.database_grace"),
    ("TASKER_MEMORY_LIMIT", "health.memory_limit"),
    ("TASKER_ALERT_WEBHOOK", "orchestrator.alert_webhook"),
    ("TASKER_LISTEN", "orchestrator.listen"),
    ("TASKER_LISTEN", "worker.listen"),
    ("NAMESPACE", "orchestrator.namespaces"),
    ("NAMESPACE", "worker.namespaces"),
];
const PREFIX: &str = "TASKER__";

/// Everything that is wrong in a file of settings, in the order of its lines.
pub fn check_file(source: &str) -> Vec<Problem> {
    Document::read(source).map_or_else(|problem| vec![problem], |document| check(&document))
}

fn check(document: &Document) -> Vec<Problem> {
    let mut found = wrong_sections(document);
    found.extend(problems(&schema::file(), &document.value).into_iter().map(|problem| Problem {
        line: document.line(&problem.path),
        ..problem
    }));
    if found.is_empty() {
        // Each environment, as a process would read it.
        let sections: Vec<String> = document
            .value
            .as_object()
            .map(|all| all.keys().cloned().collect())
            .unwrap_or_default();
        for environment in sections {
            let layers = [Layer::defaults()]
                .into_iter()
                .chain(sections_of(&document.value, "", &environment));
            if let Err(error) = merge(layers) {
                let message = error.to_string();
                let path = message
                    .split_whitespace()
                    .next()
                    .map_or(environment.clone(), |path| join(&environment, path));
                found.push(Problem {
                    line: document.line(&path),
                    path: environment,
                    message,
                });
            }
        }
    }
    found.sort_by_key(|problem| problem.line);
    found
}

/// Settings that stand where environments should.
fn wrong_sections(document: &Document) -> Vec<Problem> {
    let schema = schema::settings();
    let sections = document.value.as_object().into_iter().flatten();
    let misplaced = sections.filter(|(name, _)| below(schema, &[(*name).clone()]).is_some());
    misplaced
        .map(|(name, _)| Problem {
            line: document.line(name),
            path: name.clone(),
            message: "is a setting: put it under shared, or under an environment such as production".into(),
        })
        .collect()
}

/// `shared`, and above it the environment's own.
fn sections_of(file: &Value, origin: &str, environment: &str) -> Vec<Layer> {
    let of = |section: &str| Layer {
        origin: format!("{origin}, {section}"),
        value: file
            .get(section)
            .filter(|value| value.is_object())
            .cloned()
            .unwrap_or_else(|| json!({})),
    };
    vec![of("shared"), of(environment)]
}

pub(super) fn read_file(
    given: Option<PathBuf>,
    variables: &BTreeMap<String, String>,
    environment: &str,
    found: &mut Vec<String>,
) -> Result<Vec<Layer>> {
    let named = given.or_else(|| variables.get("TASKER_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from));
    let Some(file) = named.or_else(|| FILES.iter().map(PathBuf::from).find(|file| file.is_file())) else {
        return Ok(Vec::new());
    };
    let origin = file.display().to_string();
    let document = Document::read(&read_source(&file)?);
    let wrong = document.as_ref().map_or_else(|problem| vec![problem.clone()], check);
    found.extend(wrong.iter().map(|problem| format!("{origin}:{}: {problem}", problem.line)));
    match document {
        Ok(document) if wrong.is_empty() => Ok(sections_of(&document.value, &origin, environment)),
        _ => Ok(Vec::new()),
    }
}

/// Errors: [`Error::Config`] when it cannot be read.
pub fn read_source(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|error| Error::Config(format!("{}: {error}", file.display())))
}

/// A layer for each variable, so that each value knows its own.
pub(super) fn read_environment(variables: &BTreeMap<String, String>, found: &mut Vec<String>) -> Vec<Layer> {
    let schema = schema::settings();
    let own = VARIABLES.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned()));
    let others = variables
        .keys()
        .filter_map(|name| Some((name.clone(), name.strip_prefix(PREFIX)?.replace("__", ".").to_lowercase())));
    let mut layers = Vec::new();
    for (name, path) in own.chain(others) {
        let Some(text) = variables.get(&name).filter(|text| !text.trim().is_empty()) else {
            continue;
        };
        let names: Vec<String> = path.split('.').map(str::to_owned).collect();
        let value = names
            .iter()
            .rev()
            .fold(parsed(text, below(schema, &names)), |value, name| json!({ name.clone(): value }));
        let origin = format!("environment, {name}");
        let wrong = problems(schema, &value);
        match wrong.is_empty() {
            true => layers.push(Layer { origin, value }),
            false => found.extend(wrong.iter().map(|problem| format!("{name}: {problem}"))),
        }
    }
    layers
}

/// A variable's text as the setting wants it.
fn parsed(text: &str, schema: Option<&Value>) -> Value {
    let kinds = schema.map(|schema| schema["type"].clone()).unwrap_or_default();
    let is = |kind: &str| kinds == kind || kinds.as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
    if is("array") && !text.trim_start().starts_with('[') {
        return text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    }
    if is("string") && !is("number") {
        return text.into();
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
