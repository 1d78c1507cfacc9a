//! The written form of a template, with the place of every value, and its validation.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use super::{graph, Backoff, Priority, Problem, Retry, Step, Template};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    name: Spanned<String>,
    namespace: Spanned<String>,
    version: Option<Spanned<String>>,
    description: Option<String>,
    input_schema: Option<Spanned<Value>>,
    priority: Option<Spanned<String>>,
    steps: Spanned<Vec<StepDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepDocument {
    name: Spanned<String>,
    handler: Option<Spanned<String>>,
    namespace: Option<Spanned<String>>,
    #[serde(default)]
    depends_on: Vec<Spanned<String>>,
    retry: Option<RetryDocument>,
    timeout: Option<Spanned<Span>>,
    config: Option<Spanned<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryDocument {
    max_attempts: Option<Spanned<i64>>,
    backoff: Option<Spanned<String>>,
    base: Option<Spanned<Span>>,
    max: Option<Spanned<Span>>,
    jitter: Option<Spanned<f64>>,
}

/// A length of time as people write it: 30, 1.5, "30s", "1h 30m".
#[derive(Deserialize)]
#[serde(untagged)]
enum Span {
    Seconds(f64),
    Text(String),
}

/// A template of more steps than this is a mistake, or an attack.
const MAX_STEPS: usize = 5_000;
/// A day-long timeout is usual, a year-long one a slip; the bound also keeps every sum in range.
const MAX_SPAN: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn read(source: &str) -> Result<Document, Problem> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(source, options).map_err(|error| Problem {
        line: error.location().map_or(0, |l| l.line()),
        message: DefaultMessageFormatter.format_message(error.without_snippet()).into_owned(),
    })
}

impl Document {
    pub(super) fn validate(self) -> Result<Template, Vec<Problem>> {
        let mut found = Problems::default();

        let namespace = found.name(&self.namespace, "namespace", 37);
        let name = found.name(&self.name, "name", 100);
        let version = self.version.map(|version| {
            if version.value.is_empty() || version.value.len() > 50 || version.value.chars().any(|c| c.is_whitespace() || c.is_control()) {
                found.add(
                    &version,
                    format!("version {:?}: expected 1 to 50 characters without spaces", version.value),
                );
            }
            version.value
        });
        let priority = self.priority.map_or(Priority::default(), |p| {
            p.value.parse().unwrap_or_else(|problem| {
                found.add(&p, problem);
                Priority::default()
            })
        });
        if let Some(schema) = &self.input_schema {
            if let Err(error) = jsonschema::validator_for(&schema.value) {
                found.add(schema, format!("input_schema is not a valid JSON Schema: {error}"));
            }
        }

        let mut positions = HashMap::new();
        for (position, step) in self.steps.value.iter().enumerate() {
            if positions.insert(step.name.value.clone(), position).is_some() {
                found.add(
                    &step.name,
                    format!(
                        "duplicate step {:?}: expected every step to have a name of its own",
                        step.name.value
                    ),
                );
            }
        }
        if positions.is_empty() {
            found.add(&self.steps, "steps is empty: expected at least one step".into());
        } else if self.steps.value.len() > MAX_STEPS {
            found.add(
                &self.steps,
                format!("{} steps: expected at most {MAX_STEPS}", self.steps.value.len()),
            );
        }

        let lines: Vec<u64> = self.steps.value.iter().map(|step| line(&step.name)).collect();
        let steps: Vec<Step> = self
            .steps
            .value
            .into_iter()
            .map(|step| step.validate(&namespace, &positions, &mut found))
            .collect();
        if let Some(cycle) = graph::cycle(&steps) {
            let names: Vec<&str> = cycle.iter().chain(cycle.first()).map(|&step| steps[step].name.as_str()).collect();
            found.0.push(Problem {
                line: lines[cycle[0]],
                message: format!("cycle: {}: expected no step to depend on itself", names.join(" → ")),
            });
        }

        if !found.0.is_empty() {
            found.0.sort_by_key(|problem| problem.line);
            return Err(found.0);
        }
        let input_schema = self.input_schema.map(|schema| schema.value);
        Ok(Template {
            namespace,
            name,
            version,
            description: self.description,
            priority,
            input_schema,
            steps,
        })
    }
}

impl StepDocument {
    fn validate(self, namespace: &str, positions: &HashMap<String, usize>, found: &mut Problems) -> Step {
        let name = found.name(&self.name, "step", 100);
        let handler = match self.handler {
            Some(handler) if !handler.value.trim().is_empty() && handler.value.len() <= 255 => handler.value,
            Some(handler) => {
                found.add(
                    &handler,
                    format!("step {name:?}: handler is empty or longer than 255: expected the name of a handler"),
                );
                String::new()
            }
            None => {
                found.add(
                    &self.name,
                    format!("step {name:?} has no handler: expected `handler: NameOfAHandler`"),
                );
                String::new()
            }
        };

        let mut parents = Vec::new();
        for parent in &self.depends_on {
            match positions.get(&parent.value) {
                Some(position) if parents.contains(position) => {
                    found.add(
                        parent,
                        format!("step {name:?} depends on {:?} twice: expected each step once", parent.value),
                    );
                }
                Some(&position) => parents.push(position),
                None => {
                    let mut known: Vec<&str> = positions.keys().map(String::as_str).take(20).collect();
                    known.sort_unstable();
                    found.add(
                        parent,
                        format!(
                            "step {name:?} depends on unknown step {:?}: expected one of {}",
                            parent.value,
                            known.join(", ")
                        ),
                    );
                }
            }
        }

        let config = self.config.map_or_else(
            || Value::Object(Default::default()),
            |config| {
                if !config.value.is_object() {
                    found.add(
                        &config,
                        format!("step {name:?}: config is {}: expected a mapping", kind(&config.value)),
                    );
                }
                config.value
            },
        );
        Step {
            namespace: self
                .namespace
                .map_or_else(|| namespace.to_owned(), |own| found.name(&own, "namespace", 37)),
            retry: self.retry.map_or_else(Retry::default, |retry| retry.validate(found)),
            timeout: self.timeout.and_then(|timeout| found.span(&timeout, "timeout")),
            name,
            handler,
            parents,
            config,
        }
    }
}

impl RetryDocument {
    fn validate(self, found: &mut Problems) -> Retry {
        let mut retry = Retry::default();
        if let Some(attempts) = self.max_attempts {
            match u16::try_from(attempts.value) {
                Ok(n) if (1..=1000).contains(&n) => retry.max_attempts = n,
                _ => found.add(&attempts, format!("max_attempts is {}: expected 1 to 1000", attempts.value)),
            }
        }
        if let Some(backoff) = self.backoff {
            match backoff.value.as_str() {
                "fixed" => retry.backoff = Backoff::Fixed,
                "linear" => retry.backoff = Backoff::Linear,
                "exponential" => retry.backoff = Backoff::Exponential,
                other => found.add(&backoff, format!("backoff is {other:?}: expected fixed, linear or exponential")),
            }
        }
        if let Some(base) = self.base.and_then(|base| found.span(&base, "base")) {
            retry.base = base;
        }
        if let Some(max) = self.max.and_then(|max| found.span(&max, "max")) {
            retry.max = max;
        }
        if let Some(jitter) = self.jitter {
            if (0.0..=1.0).contains(&jitter.value) {
                retry.jitter = jitter.value;
            } else {
                found.add(&jitter, format!("jitter is {}: expected 0 to 1", jitter.value));
            }
        }
        retry
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add<T>(&mut self, at: &Spanned<T>, message: String) {
        self.0.push(Problem { line: line(at), message });
    }

    fn name(&mut self, name: &Spanned<String>, what: &str, max: usize) -> String {
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

    fn span(&mut self, span: &Spanned<Span>, what: &str) -> Option<Duration> {
        let (written, parsed) = match &span.value {
            Span::Seconds(seconds) => (seconds.to_string(), Duration::try_from_secs_f64(*seconds).ok()),
            Span::Text(text) => (format!("{text:?}"), humantime::parse_duration(text).ok()),
        };
        let valid = parsed.filter(|&d| d > Duration::ZERO && d <= MAX_SPAN);
        if valid.is_none() {
            self.add(
                span,
                format!("{what} is {written}: expected a duration such as 30, \"30s\" or \"1h 30m\", of at most a year"),
            );
        }
        valid
    }
}

fn line<T>(at: &Spanned<T>) -> u64 {
    at.referenced.line()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
