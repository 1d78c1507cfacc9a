//! What is wrong with settings: all of it at once, each with its place, what was expected, and what was probably meant.

use std::collections::HashMap;
use std::fmt;

use hyper::Uri;
use jsonschema::error::ValidationErrorKind;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use super::secret::quoted;

/// How alike a name must be to be suggested (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.8;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Of the file, from 1; 0 where there is none.
    pub line: u64,
    /// Such as `production.worker.threads`; empty: the whole.
    pub path: String,
    /// In words: what it is, and what was expected.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => f.write_str(&self.message),
            false => write!(f, "{} {}", self.path, self.message),
        }
    }
}

/// A file of settings as it was written, with the line of every value.
pub(super) struct Document {
    pub(super) value: Value,
    lines: HashMap<String, u64>,
}

impl Document {
    pub(super) fn read(source: &str) -> Result<Document, Problem> {
        let options = serde_saphyr::options! { with_snippet: false };
        let root: Option<Spanned<Node>> = serde_saphyr::from_str_with_options(source, options).map_err(|error| Problem {
            line: error.location().map_or(0, |l| l.line()),
            path: String::new(),
            message: DefaultMessageFormatter.format_message(error.without_snippet()).into_owned(),
        })?;
        let mut lines = HashMap::new();
        let mut value = root.map_or(Value::Null, |root| root.value.place(String::new(), &mut lines));
        // A section of nothing but comments.
        if let Some(sections) = value.as_object_mut() {
            sections.retain(|_, section| !section.is_null());
        }
        let value = if value.is_null() { Value::Object(Map::new()) } else { value };
        Ok(Document { value, lines })
    }

    /// The line of what is at `path`, or of what it is in.
    pub(super) fn line(&self, mut path: &str) -> u64 {
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return 0,
            }
        }
    }
}

/// A value of YAML whose parts know their places.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Object(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn place(self, path: String, lines: &mut HashMap<String, u64>) -> Value {
        match self {
            Node::Scalar(value) => value,
            Node::List(items) => items.into_iter().map(|item| item.value.place(path.clone(), lines)).collect(),
            Node::Object(entries) => {
                let mut object = Map::new();
                for (key, node) in entries {
                    let below = join(&path, &key.value);
                    lines.insert(below.clone(), key.referenced.line());
                    object.insert(key.value, node.place(below, lines));
                }
                Value::Object(object)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Node::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut object = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    object.push(entry);
                }
                Ok(Node::Object(object))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Whether it is http:// or https:// and a host.
pub(crate) fn is_web_address(text: &str) -> bool {
    let address = text.parse::<Uri>().unwrap_or_default();
    matches!(address.scheme_str(), Some("http" | "https")) && address.host().is_some_and(|host| !host.is_empty())
}

/// What `schema` does not allow in `value`.
pub(super) fn problems(schema: &Value, value: &Value) -> Vec<Problem> {
    let Ok(validator) = jsonschema::validator_for(schema) else {
        return vec![Problem {
            line: 0,
            path: String::new(),
            message: "the schema of the settings is broken".into(),
        }];
    };
    let mut found = Vec::new();
    for error in validator.iter_errors(value) {
        let path: Vec<String> = error.instance_path().as_str().split('/').skip(1).map(unescape).collect();
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let at = below(schema, &path);
                found.extend(unexpected.iter().map(|name| unknown(at, &path, name)));
            }
            _ => {
                let at = below(schema, &path);
                found.push(Problem {
                    line: 0,
                    path: path.join("."),
                    message: format!("is {}: expected {}", quoted(error.instance(), is_secret(at)), expected(at)),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup();
    found
}

fn unknown(at: Option<&Value>, path: &[String], name: &str) -> Problem {
    let known: Vec<&String> = at
        .and_then(|at| at["properties"].as_object())
        .map(|known| known.keys().collect())
        .unwrap_or_default();
    let hint = match nearest(name, &known) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!(
            "expected any of {}",
            known.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ")
        ),
    };
    Problem {
        line: 0,
        path: join(&path.join("."), name),
        message: format!("is not known: {hint}"),
    }
}

/// What was probably meant.
pub(super) fn nearest<'a>(name: &str, known: &[&'a String]) -> Option<&'a str> {
    let alike = |known: &&'a String| (strsim::jaro_winkler(name, known.as_str()), known.as_str());
    let best = known.iter().map(alike).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness >= ALIKE).map(|(_, known)| known)
}

/// The schema of what is at `path`.
pub(super) fn below<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(schema, |at, name| {
        at["properties"]
            .get(name)
            .or_else(|| at.get("additionalProperties").filter(|more| more.is_object()))
            .or_else(|| at.get("items"))
    })
}

/// What a schema allows, in words.
pub(super) fn expected(schema: Option<&Value>) -> String {
    let Some(schema) = schema else {
        return "something else".into();
    };
    if schema["x-kind"] == "duration" {
        return "a duration such as 30, \"30s\" or \"1h 30m\", of at most a year".into();
    }
    if let Some(of) = schema["anyOf"].as_array() {
        return expected(of.iter().find(|of| of["type"] != "null"));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let names: Vec<&str> = choices.iter().filter_map(|choice| choice["const"].as_str()).collect();
        return names.join(" or ");
    }
    if let Some(choices) = schema["enum"].as_array() {
        return choices.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ");
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
            .unwrap_or_default(),
        kind => kind.as_str().unwrap_or_default(),
    };
    let range = match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (Some(low), Some(high)) => format!(", {low} to {high}"),
        (Some(low), None) => format!(", at least {low}"),
        (None, Some(high)) => format!(", at most {high}"),
        (None, None) => String::new(),
    };
    match kind {
        "integer" => format!("a whole number{range}"),
        "number" => format!("a number{range}"),
        "string" => "a text".into(),
        "array" => "a list of texts".into(),
        "boolean" => "true or false".into(),
        _ => {
            let names = schema["properties"].as_object().map(|known| known.keys().map(String::as_str));
            match names {
                Some(names) => format!("a section with any of {}", names.collect::<Vec<_>>().join(", ")),
                None => "a section by names".into(),
            }
        }
    }
}

/// Nothing is known of what stands where a section should.
fn is_secret(schema: Option<&Value>) -> bool {
    schema.is_none_or(|schema| schema["x-secret"] == true || schema["properties"].is_object())
}

/// Of JSON Pointer.
fn unescape(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

pub(super) fn join(path: &str, name: &str) -> String {
    match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    }
}
