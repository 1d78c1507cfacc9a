//! The written form of a template, with the place of every value, and its validation.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use super::children::{self, EachDocument};
use super::condition::path_problem;
use super::problems::{kind, line, Problems};
use super::rules::{DeadLettersDocument, RetryDocument, StuckAfterDocument};
use super::undo::UndoDocument;
use super::wait::WaitDocument;
use super::{graph, limits, DeadLetters, Kind, OnFailure, Priority, Problem, Retry, Step, StuckAfter, Template, Unique};
use crate::schedule::Schedule;
use crate::span::Span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    name: Spanned<String>,
    namespace: Spanned<String>,
    version: Option<Spanned<String>>,
    description: Option<Spanned<String>>,
    input_schema: Option<Spanned<Value>>,
    output: Option<Spanned<String>>,
    #[serde(default)]
    tags: BTreeMap<String, Spanned<String>>,
    unique: Option<Spanned<Value>>,
    max_depth: Option<Spanned<i64>>,
    priority: Option<Spanned<String>>,
    retry: Option<RetryDocument>,
    dead_letters: Option<DeadLettersDocument>,
    on_failure: Option<Spanned<String>>,
    deadline: Option<Spanned<Span>>,
    stuck_after: Option<StuckAfterDocument>,
    #[serde(default)]
    limits: BTreeMap<String, Spanned<Value>>,
    #[serde(default)]
    schedules: BTreeMap<String, Spanned<Value>>,
    steps: Spanned<Vec<StepDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepDocument {
    name: Spanned<String>,
    handler: Option<Spanned<String>>,
    sleep: Option<Spanned<Span>>,
    wait: Option<WaitDocument>,
    each: Option<EachDocument>,
    workflow: Option<Spanned<String>>,
    input: Option<Spanned<Value>>,
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
    undo: Option<UndoDocument>,
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
            "undo" => OnFailure::Undo,
            other => {
                found.add(&given, format!("on_failure is {other:?}: expected block, fail or undo"));
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
        let input_schema = self.input_schema.map(|schema| found.schema(schema, "input_schema"));

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

        let output = self.output.map(|output| {
            found.storable(&output, "output", &output.value.as_str().into());
            let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
            if let Some(problem) = path_problem(&output.value, &names) {
                found.add(&output, format!("output {:?} {problem}", output.value));
            }
            output.value
        });
        let mut tags = BTreeMap::new();
        for (tag, path) in self.tags {
            found.storable(&path, "tags", &path.value.as_str().into());
            if let Some(problem) = path_problem(&path.value, &[]) {
                found.add(&path, format!("tag {tag:?}: {:?} {problem}", path.value));
            }
            if !(1..=50).contains(&tag.chars().count()) {
                found.add(&path, format!("tag {tag:?}: expected a name of 1 to 50 characters"));
            }
            tags.insert(tag, path.value);
        }
        let unique = self.unique.and_then(|unique| {
            let read = Unique::parse(&unique.value);
            read.map_err(|problem| found.add(&unique, format!("unique: {problem}"))).ok()
        });
        let max_depth = found.integer(self.max_depth, "max_depth", 1..=100).map(|depth| depth as u32);
        let own = format!("{namespace}/{name}");
        for step in steps.iter().filter(|_| max_depth.is_none()) {
            if step.kind.template() == Some(&own) {
                found.0.push(Problem {
                    line: step.line,
                    message: format!(
                        "step {:?}: its tasks would contain tasks of the same template: if each is to come to an end by itself, say how deep they may be \
                         at most (max_depth: 10)",
                        step.name
                    ),
                });
            }
        }
        let mut schedules = BTreeMap::new();
        for (name, schedule) in self.schedules {
            match read_schedule(&name, &schedule.value) {
                Ok(read) => drop(schedules.insert(name, read)),
                Err(problem) => found.add(&schedule, format!("schedule {name:?}: {problem}")),
            }
        }
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
            output,
            tags,
            unique,
            max_depth,
            limits,
            schedules,
            steps,
        })
    }
}

fn read_schedule(name: &str, schedule: &Value) -> Result<Schedule, String> {
    if !(1..=50).contains(&name.len()) || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Err("expected a name of a-z, 0-9 and _, of at most 50 characters".into());
    }
    match Schedule::parse(schedule)? {
        Schedule { version: Some(_), .. } => Err("it has a version: it is the template's own".into()),
        schedule => Ok(schedule),
    }
}

impl StepDocument {
    /// `rules`: the template's own, for what the step does not say.
    fn validate(self, namespace: &str, rules: &(Retry, DeadLetters), positions: &HashMap<String, usize>, found: &mut Problems) -> Step {
        let line = line(&self.name);
        let name = found.name(&self.name, "step", 100);
        let parents: Vec<&str> = self.depends_on.iter().map(|parent| parent.value.as_str()).collect();
        let of = children::Of {
            step: &name,
            namespace,
            parents: &parents,
        };
        let what = what(
            &self.name,
            What {
                handler: self.handler,
                sleep: self.sleep,
                wait: self.wait,
                each: self.each,
                workflow: self.workflow,
                input: self.input,
            },
            &of,
            found,
        );
        let given = [
            (self.retry.is_some(), "retry"),
            (self.transactional, "transactional"),
            (self.timeout.is_some(), "timeout"),
            (self.undo.is_some(), "undo"),
            (self.config.is_some(), "config"),
        ];
        if let (None, Some((_, has))) = (what.runs(), given.iter().find(|(has, _)| *has)) {
            let does = match what {
                Kind::Sleep { .. } => "sleeps",
                Kind::Wait { .. } => "waits for a signal",
                _ => "is done by tasks of another workflow",
            };
            found.add(&self.name, format!("step {name:?} {does}, and has {has}: nothing runs there"));
        }

        let mut before = Vec::new();
        for parent in &self.depends_on {
            match positions.get(&parent.value) {
                Some(position) if before.contains(position) => {
                    found.add(
                        parent,
                        format!("step {name:?} depends on {:?} twice: expected each step once", parent.value),
                    );
                }
                Some(&position) => before.push(position),
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
            if let Some(problem) = path_problem(&condition.value, &parents) {
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
            undo: self.undo.map(|undo| undo.validate(&name, &rules.0, found)),
            delay: self.delay.and_then(|delay| found.span(&delay, "delay")),
            name,
            kind: what,
            parents: before,
            condition,
            config,
            line,
        }
    }
}

/// What a step has that says what it is.
struct What {
    handler: Option<Spanned<String>>,
    sleep: Option<Spanned<Span>>,
    wait: Option<WaitDocument>,
    each: Option<EachDocument>,
    workflow: Option<Spanned<String>>,
    input: Option<Spanned<Value>>,
}

/// What a step is, by what it has.
fn what(named: &Spanned<String>, what: What, of: &children::Of<'_>, found: &mut Problems) -> Kind {
    let name = of.step;
    if let (None, Some(input)) = (&what.workflow, &what.input) {
        found.add(
            input,
            format!("step {name:?} has an input: only `workflow:` takes one (and `each:`, inside)"),
        );
    }
    match (what.handler, what.sleep, what.wait, what.each, what.workflow) {
        (Some(handler), None, None, None, None) => Kind::Handler {
            handler: found.handler(name, handler),
        },
        (None, Some(sleep), None, None, None) => Kind::Sleep {
            sleep: found.span(&sleep, &format!("step {name:?}: sleep")).unwrap_or_default(),
        },
        (None, None, Some(wait), None, None) => wait.validate(named, of, found),
        (None, None, None, Some(each), None) => each.validate(named, of, found),
        (None, None, None, None, Some(workflow)) => children::workflow(&workflow, what.input, of, found),
        (None, None, None, None, None) => {
            let problem = "does not say what it is: expected `handler: NameOfAHandler`, `sleep: 14d`, `wait: approved`, `each: { over: …, handler: … }` or \
                           `workflow: name`";
            found.add(named, format!("step {name:?} {problem}"));
            Kind::Handler { handler: String::new() }
        }
        (handler, sleep, wait, each, workflow) => {
            let has = [
                (handler.is_some(), "a handler"),
                (sleep.is_some(), "sleep"),
                (wait.is_some(), "wait"),
                (each.is_some(), "each"),
                (workflow.is_some(), "workflow"),
            ];
            let has: Vec<&str> = has.iter().filter(|(has, _)| *has).map(|(_, what)| *what).collect();
            found.add(named, format!("step {name:?} has {}: expected one of these", has.join(" and ")));
            Kind::Handler { handler: String::new() }
        }
    }
}
