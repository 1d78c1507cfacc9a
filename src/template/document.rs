//! The written form of a template, with the place of every value, and its validation.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use super::problems::{kind, line, Problems};
use super::rules::{DeadLettersDocument, RetryDocument, StuckAfterDocument};
use super::{condition, graph, limits, DeadLetters, Kind, OnFailure, Priority, Problem, Retry, Step, StuckAfter, Template};
use crate::span::Span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    name: Spanned<String>,
    namespace: Spanned<String>,
    version: Option<Spanned<String>>,
    description: Option<Spanned<String>>,
    input_schema: Option<Spanned<Value>>,
    priority: Option<Spanned<String>>,
    retry: Option<RetryDocument>,
    dead_letters: Option<DeadLettersDocument>,
    on_failure: Option<Spanned<String>>,
    deadline: Option<Spanned<Span>>,
    stuck_after: Option<StuckAfterDocument>,
    #[serde(default)]
    limits: BTreeMap<String, Spanned<Value>>,
    steps: Spanned<Vec<StepDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepDocument {
    name: Spanned<String>,
    handler: Option<Spanned<String>>,
    sleep: Option<Spanned<Span>>,
    delay: Option<Spanned<Span>>,
    namespace: Option<Spanned<String>>,
    #[serde(default)]
    depends_on: Vec<Spanned<String>>,
    #[serde(rename = "if")]
    condition: Option<Spanned<String>>,
    retry: Option<RetryDocument>,
    dead_letters: Option<DeadLettersDocument>,
    #[serde(default)]
    transactional: bool,
    timeout: Option<Spanned<Span>>,
    config: Option<Spanned<Value>>,
}

/// A template of more steps than this is a mistake, or an attack.
const MAX_STEPS: usize = 5_000;

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
        let rules = (
            self.retry.map_or_else(Retry::default, |retry| retry.validate(&mut found)),
            self.dead_letters
                .map_or_else(DeadLetters::default, |letters| letters.validate(&mut found)),
        );
        let on_failure = self.on_failure.map_or(OnFailure::Block, |given| match given.value.as_str() {
            "block" => OnFailure::Block,
            "fail" => OnFailure::Fail,
            other => {
                found.add(&given, format!("on_failure is {other:?}: expected block or fail"));
                OnFailure::Block
            }
        });
        let deadline = self.deadline.and_then(|deadline| found.span(&deadline, "deadline"));
        let stuck_after = self
            .stuck_after
            .map_or_else(StuckAfter::default, |limits| limits.validate(&mut found));
        if let Some(description) = &self.description {
            found.storable(description, "description", &description.value.as_str().into());
        }
        if let Some(schema) = &self.input_schema {
            found.storable(schema, "input_schema", &schema.value);
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
                format!(
                    "{} steps: expected at most {MAX_STEPS}; what is done for each of many things is a task for each (TaskerCore.enqueue_all in a step)",
                    self.steps.value.len()
                ),
            );
        }

        let steps: Vec<Step> = self
            .steps
            .value
            .into_iter()
            .map(|step| step.validate(&namespace, &rules, &positions, &mut found))
            .collect();
        if let Some(cycle) = graph::cycle(&steps) {
            let names: Vec<&str> = cycle.iter().chain(cycle.first()).map(|&step| steps[step].name.as_str()).collect();
            found.0.push(Problem {
                line: steps[cycle[0]].line,
                message: format!("cycle: {}: expected no step to depend on itself", names.join(" → ")),
            });
        }

        let input_schema = self.input_schema.map(|schema| schema.value);
        let of = limits::Of {
            namespace: &namespace,
            steps: &steps,
            input_schema: input_schema.as_ref(),
        };
        let limits = limits::validate(self.limits, &of, &mut found);
        if !found.0.is_empty() {
            found.0.sort_by_key(|problem| problem.line);
            return Err(found.0);
        }
        Ok(Template {
            namespace,
            name,
            version,
            description: self.description.map(|description| description.value),
            priority,
            on_failure,
            deadline,
            stuck_after,
            input_schema,
            limits,
            steps,
        })
    }
}

impl StepDocument {
    /// `rules`: the template's own, for what the step does not say.
    fn validate(self, namespace: &str, rules: &(Retry, DeadLetters), positions: &HashMap<String, usize>, found: &mut Problems) -> Step {
        let line = line(&self.name);
        let name = found.name(&self.name, "step", 100);
        let what = what(&self.name, self.handler, self.sleep, found);
        if let (Kind::Sleep { .. }, Some(has)) = (
            &what,
            self.retry
                .as_ref()
                .map(|_| "retry")
                .or(self.transactional.then_some("transactional")),
        ) {
            found.add(&self.name, format!("step {name:?} sleeps, and has {has}: nothing runs there"));
        }

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

        let condition = self.condition.map(|condition| {
            found.storable(&condition, &format!("step {name:?}: if"), &condition.value.as_str().into());
            let parents: Vec<&str> = self.depends_on.iter().map(|parent| parent.value.as_str()).collect();
            if let Some(problem) = condition::problem(&condition.value, &parents) {
                found.add(&condition, format!("step {name:?}: if {:?} {problem}", condition.value));
            }
            condition.value
        });
        let config = self.config.map_or_else(
            || Value::Object(Default::default()),
            |config| {
                found.storable(&config, &format!("step {name:?}: config"), &config.value);
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
            retry: self.retry.map_or_else(Retry::default, |retry| retry.validate(found)).or(&rules.0),
            dead_letters: self
                .dead_letters
                .map_or_else(DeadLetters::default, |letters| letters.validate(found))
                .or(&rules.1),
            transactional: self.transactional,
            timeout: self.timeout.and_then(|timeout| found.span(&timeout, "timeout")),
            delay: self.delay.and_then(|delay| found.span(&delay, "delay")),
            name,
            kind: what,
            parents,
            condition,
            config,
            line,
        }
    }
}

/// What a step is, by what it has.
fn what(named: &Spanned<String>, handler: Option<Spanned<String>>, sleep: Option<Spanned<Span>>, found: &mut Problems) -> Kind {
    let name = &named.value;
    match (handler, sleep) {
        (Some(handler), None) => {
            found.storable(&handler, &format!("step {name:?}: handler"), &handler.value.as_str().into());
            if handler.value.trim().is_empty() || handler.value.len() > 255 {
                found.add(
                    &handler,
                    format!("step {name:?}: handler is empty or longer than 255: expected the name of a handler"),
                );
            }
            Kind::Handler { handler: handler.value }
        }
        (None, Some(sleep)) => Kind::Sleep {
            sleep: found.span(&sleep, &format!("step {name:?}: sleep")).unwrap_or_default(),
        },
        (handler, _) => {
            let problem = match handler {
                Some(_) => "has a handler and sleeps: expected one of these",
                None => "has no handler: expected `handler: NameOfAHandler`, or `sleep: 14d`",
            };
            found.add(named, format!("step {name:?} {problem}"));
            Kind::Handler { handler: String::new() }
        }
    }
}
