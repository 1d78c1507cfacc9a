//! Waits: steps that are complete when somebody sends a signal. What is here is what a template says of them, and for tasks in memory what PostgreSQL
//! does with it (`migrations/0029_signals.sql`).

use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{json, Value};
use serde_saphyr::Spanned;

use super::children::{path, query, Of};
use super::problems::Problems;
use super::Kind;
use crate::span::Span;

/// For which signal a step waits, and how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    /// The signal's name.
    pub signal: String,
    /// A SQL/JSON path over `{input, results}` to a string or number: the signal may be sent by that key, too. None: only to the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// None: it waits for as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What becomes of it when its time is over.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub on_timeout: OnTimeout,
    /// JSON Schema that the signal's payload must satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// The same, where a person is asked: what the form has that they fill in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Value>,
    /// Who is asked: names, or paths (that begin with `$`) to names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assignees: Vec<String>,
    /// By when an answer is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Duration>,
}

/// What becomes of a step whose signal has not come in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is a dead letter, which its task does with what its template's `on_failure` says.
    #[default]
    Dead,
    /// It is a dead letter, and its task has failed.
    Fail,
    /// It is skipped.
    Skip,
}

/// The name of the signal, or all that is to be said of it.
pub(super) enum WaitDocument {
    Name(String),
    Whole(Box<WaitFields>),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitFields {
    signal: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    timeout: Option<Spanned<Span>>,
    on_timeout: Option<Spanned<String>>,
    schema: Option<Spanned<Value>>,
    form: Option<Spanned<Value>>,
    #[serde(default)]
    assignees: Vec<Spanned<String>>,
    due: Option<Spanned<Span>>,
}

// By hand, since places are lost inside of what serde calls untagged.
impl<'de> Deserialize<'de> for WaitDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrFields;

        impl<'de> Visitor<'de> for NameOrFields {
            type Value = WaitDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a signal, or { signal: approved, timeout: 3d }")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<WaitDocument, E> {
                Ok(WaitDocument::Name(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<WaitDocument, A::Error> {
                WaitFields::deserialize(MapAccessDeserializer::new(fields)).map(|fields| WaitDocument::Whole(Box::new(fields)))
            }
        }

        deserializer.deserialize_any(NameOrFields)
    }
}

impl WaitDocument {
    /// `named`: where the step's name is written; a signal that has none of its own has that.
    pub(super) fn validate(self, named: &Spanned<String>, of: &Of<'_>, found: &mut Problems) -> Kind {
        let fields = match self {
            WaitDocument::Whole(fields) => *fields,
            WaitDocument::Name(name) => WaitFields {
                signal: Some(Spanned {
                    value: name,
                    ..named.clone()
                }),
                ..WaitFields::default()
            },
        };
        let what = |what: &str| format!("step {:?}: {what}", of.step);
        let signal = fields.signal.unwrap_or_else(|| named.clone());
        found.storable(&signal, &what("signal"), &signal.value.as_str().into());
        if signal.value.trim().is_empty() || signal.value.chars().count() > 100 {
            found.add(&signal, what("signal is empty or longer than 100: expected the name of a signal"));
        }
        if let Some(key) = &fields.key {
            path(key, "key", &key.value, of, found);
        }
        for who in &fields.assignees {
            match who.value.starts_with('$') {
                true => path(who, "assignees", &who.value, of, found),
                false => found.storable(who, &what("assignees"), &who.value.as_str().into()),
            }
        }
        let on_timeout = fields.on_timeout.map_or(OnTimeout::Dead, |given| match given.value.as_str() {
            "dead" => OnTimeout::Dead,
            "fail" => OnTimeout::Fail,
            "skip" => OnTimeout::Skip,
            other => {
                found.add(&given, what(&format!("on_timeout is {other:?}: expected skip, fail or dead")));
                OnTimeout::Dead
            }
        });
        if on_timeout != OnTimeout::Dead && fields.timeout.is_none() {
            found.add(&signal, what("it has on_timeout, and no timeout"));
        }
        if let (Some(form), Some(_)) = (&fields.form, &fields.schema) {
            found.add(form, what("a form is a schema: expected one of them"));
        }
        Kind::Wait {
            wait: Wait {
                signal: signal.value,
                key: fields.key.map(|key| key.value),
                timeout: fields.timeout.and_then(|timeout| found.span(&timeout, &what("timeout"))),
                on_timeout,
                schema: fields.schema.map(|schema| found.schema(schema, &what("schema"))),
                form: fields.form.map(|form| found.schema(form, &what("form"))),
                assignees: fields.assignees.into_iter().map(|who| who.value).collect(),
                due: fields.due.and_then(|due| found.span(&due, &what("due"))),
            },
        }
    }
}

impl Kind {
    /// For which signal it waits, as the database keeps it. None: for none.
    pub(crate) fn wait(&self) -> Option<Value> {
        let Kind::Wait { wait } = self else {
            return None;
        };
        let mut row = json!({ "signal": wait.signal, "key": wait.key, "timeout": wait.timeout.map(|span| span.as_secs_f64()),
                              "on_timeout": wait.on_timeout, "assignees": wait.assignees, "due": wait.due.map(|span| span.as_secs_f64()) });
        if let Some(fields) = row.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        Some(row)
    }
}

/// By which key the signal may come, and who is to send it, as PostgreSQL finds them: `seen` is `{input, results}`. Errors: there is no key.
pub fn begin(wait: &Wait, seen: &Value) -> Result<(Option<String>, Vec<String>), String> {
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let key = match &wait.key {
        None => None,
        Some(path) => {
            let found = query(path, seen, &json!({}));
            let key = found.first().filter(|_| found.len() == 1).and_then(word);
            let key = key.filter(|key| (1..=255).contains(&key.chars().count()));
            Some(key.ok_or_else(|| format!("{path} finds {}: expected the key of a signal, one string or number", json!(found)))?)
        }
    };
    let mut assignees: Vec<String> = Vec::new();
    for who in &wait.assignees {
        match who.starts_with('$') {
            true => assignees.extend(query(who, seen, &json!({})).iter().filter_map(word)),
            false => assignees.push(who.clone()),
        }
    }
    assignees.sort();
    assignees.dedup();
    Ok((key, assignees))
}
