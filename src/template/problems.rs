//! What is wrong in a template, each with its place; and the checks that every part of it needs.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value;
use serde_saphyr::Spanned;

use super::Problem;
use crate::span::Span;

/// What was found wrong so far.
#[derive(Default)]
pub(super) struct Problems(pub(super) Vec<Problem>);

impl Problems {
    pub(super) fn add<T>(&mut self, at: &Spanned<T>, message: String) {
        self.0.push(Problem { line: line(at), message });
    }

    pub(super) fn name(&mut self, name: &Spanned<String>, what: &str, max: usize) -> String {
        let text = &name.value;
        let well_formed = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.len() <= max
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !well_formed {
            self.add(
                name,
                format!("{what} {text:?}: expected a-z, 0-9 and _, a letter first, at most {max} characters"),
            );
        }
        text.clone()
    }

    pub(super) fn handler(&mut self, step: &str, handler: Spanned<String>) -> String {
        self.storable(&handler, &format!("step {step:?}: handler"), &handler.value.as_str().into());
        if handler.value.trim().is_empty() || handler.value.len() > 255 {
            self.add(
                &handler,
                format!("step {step:?}: handler is empty or longer than 255: expected the name of a handler"),
            );
        }
        handler.value
    }

    pub(super) fn integer(&mut self, given: Option<Spanned<i64>>, what: &str, allowed: RangeInclusive<i64>) -> Option<i64> {
        let given = given?;
        if !allowed.contains(&given.value) {
            self.add(
                &given,
                format!("{what} is {}: expected {} to {}", given.value, allowed.start(), allowed.end()),
            );
        }
        Some(given.value).filter(|value| allowed.contains(value))
    }

    pub(super) fn number(&mut self, given: Option<Spanned<f64>>, what: &str, allowed: RangeInclusive<i32>) -> Option<f64> {
        let given = given?;
        let (low, high) = (f64::from(*allowed.start()), f64::from(*allowed.end()));
        if !(low..=high).contains(&given.value) {
            self.add(&given, format!("{what} is {}: expected {low} to {high}", given.value));
        }
        Some(given.value).filter(|value| (low..=high).contains(value))
    }

    /// PostgreSQL keeps every character but one.
    pub(super) fn storable<T>(&mut self, at: &Spanned<T>, what: &str, value: &Value) {
        if has_nul(value) {
            self.add(at, format!("{what} contains the character U+0000, which PostgreSQL cannot store"));
        }
    }

    pub(super) fn schema(&mut self, schema: Spanned<Value>, what: &str) -> Value {
        self.storable(&schema, what, &schema.value);
        if let Err(error) = jsonschema::validator_for(&schema.value) {
            self.add(&schema, format!("{what} is not a valid JSON Schema: {error}"));
        }
        schema.value
    }

    pub(super) fn span(&mut self, span: &Spanned<Span>, what: &str) -> Option<Duration> {
        // Nothing is not long enough, and a year-long timeout is a slip.
        let valid = span.value.read().filter(|read| !read.is_zero());
        if valid.is_none() {
            self.add(
                span,
                format!(
                    "{what} is {}: expected a duration such as 30, \"30s\" or \"1h 30m\", of at most a year",
                    span.value.written()
                ),
            );
        }
        valid
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(entries) => entries.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

pub(super) fn line<T>(at: &Spanned<T>) -> u64 {
    at.referenced.line()
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
