//! Templates: YAML or JSON in, a validated directed acyclic graph of steps out.
//!
//! ```
//! let template = tasker::Template::parse(
//!     "
//! name: order_fulfillment
//! namespace: fulfillment
//! steps:
//!   - name: validate
//!     handler: ValidateOrder
//!   - name: reserve
//!     handler: ReserveInventory
//!     namespace: inventory          # another team's queue
//!     depends_on: [validate]
//!     retry: { max_attempts: 5, backoff: exponential, base: 2s, max: 5m, jitter: 0.2 }
//!     timeout: 30s
//! ",
//!     "workflows/order_fulfillment.yml",
//! )?;
//! assert_eq!(template.steps[1].parents, [0]);
//! # Ok::<(), tasker::Error>(())
//! ```

pub mod children;
pub mod condition;
pub mod difference;
mod document;
mod graph;
mod limits;
mod problems;
mod rules;
mod undo;
mod unique;
pub mod wait;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::schedule::Schedule;
use children::{By, Each, Mapping};
use wait::{OnTimeout, Wait};

pub use crate::priority::Priority;
pub use limits::{Breaker, Limit};
pub use undo::Undo;
pub(crate) use undo::Undoing;
pub use unique::{OnConflict, Unique, While};

/// A validated template. The order of its steps is the order in which they were written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Template {
    /// Whose tasks these are: decides the queue of steps that name no namespace of their own.
    pub namespace: String,
    /// Unique within the namespace.
    pub name: String,
    /// None: the database numbers the versions, a new one whenever the content changes.
    #[serde(skip)]
    pub version: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The priority of tasks whose caller gives none.
    pub priority: Priority,
    /// What becomes of a task when one of its steps is dead-lettered.
    #[serde(skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// How long its tasks may take, from submission to end; then they are given up. None: as long as they take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// How long a task or a step may stay in one state.
    #[serde(skip_serializing_if = "is_default")]
    pub stuck_after: StuckAfter,
    /// JSON Schema that a task's input must satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// What a task has to say to its parent, as a SQL/JSON path over `{input, results}`. None: its step's result, or those of all its steps by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// By which its tasks can be found, by name: SQL/JSON paths over `{input}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Which of its tasks are the same, of which there is one at a time. None: there are as many as are created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique: Option<Unique>,
    /// How many of its tasks may be above each other, where they contain tasks of this template. None: they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_depth: Option<u32>,
    /// Limits on its steps in its own namespace, by name. An operator's of the name `<template>:<limit>` takes its place.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Limit>,
    /// When its tasks begin by themselves, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub schedules: BTreeMap<String, Schedule>,
    /// At least one.
    pub steps: Vec<Step>,
}

/// One step of a template.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Unique within the template.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
    /// Whose workers run it.
    pub namespace: String,
    /// The steps that must be complete before, by position.
    pub parents: Vec<usize>,
    /// A SQL/JSON path over `{input, results}`: where it is not true, the step is skipped (see [`condition`]).
    #[serde(rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// How long it waits once it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// When to try again, and how often.
    pub retry: Retry,
    /// What becomes of its dead letters.
    #[serde(skip_serializing_if = "is_default")]
    pub dead_letters: DeadLetters,
    /// The handler's writes and the step's completion commit in one transaction, on the handler's own connection.
    #[serde(skip_serializing_if = "is_default")]
    pub transactional: bool,
    /// How long one attempt may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What takes its effect back, or that of each of its children.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// Handed to the handler as it is.
    pub config: Value,
    /// Where it is written, in its file; the first is 1.
    #[serde(skip)]
    pub line: u64,
}

/// What a step is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Kind {
    /// A worker runs it.
    Handler {
        /// In Ruby the name of a class, in Rust the name it was registered under.
        handler: String,
    },
    /// It is complete once that time is over; no worker has to do with it.
    Sleep {
        /// From when it is ready.
        sleep: Duration,
    },
    /// It is complete when a signal comes.
    Wait {
        /// Which.
        wait: Wait,
    },
    /// Other tasks do it, one for every element of a list.
    Each {
        /// Which.
        each: Each,
    },
    /// Another task does it.
    Workflow {
        /// Of which template: namespace/name.
        workflow: String,
        /// None: its input is that of the step's own task.
        #[serde(skip_serializing_if = "Option::is_none")]
        input: Option<Mapping>,
    },
}

impl Kind {
    /// handler, sleep, wait, each or workflow.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Handler { .. } => "handler",
            Kind::Sleep { .. } => "sleep",
            Kind::Wait { .. } => "wait",
            Kind::Each { .. } => "each",
            Kind::Workflow { .. } => "workflow",
        }
    }

    /// Whether it may be skipped once it is ready.
    fn may_skip(&self) -> bool {
        matches!(self, Kind::Wait { wait } if wait.on_timeout == OnTimeout::Skip)
    }

    /// None: no worker runs it.
    pub fn handler(&self) -> Option<&str> {
        match self {
            Kind::Handler { handler } => Some(handler),
            _ => None,
        }
    }

    /// The template of its children, where it names one: namespace/name.
    fn template(&self) -> Option<&String> {
        match self {
            Kind::Workflow { workflow, .. }
            | Kind::Each {
                each: Each {
                    by: By::Workflow(workflow),
                    ..
                },
            } => Some(workflow),
            _ => None,
        }
    }

    /// The handler that runs the step, or the step of each of its children.
    fn runs(&self) -> Option<&str> {
        match self {
            Kind::Each {
                each: Each {
                    by: By::Handler(handler), ..
                },
            } => Some(handler),
            kind => kind.handler(),
        }
    }
}

impl Template {
    /// The namespaces that its steps and their children are in: (step, namespace).
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&str, &str)> {
        self.steps.iter().flat_map(|step| {
            let children = step
                .kind
                .template()
                .and_then(|name| name.split_once('/'))
                .map(|(namespace, _)| namespace);
            [Some(step.namespace.as_str()), children]
                .into_iter()
                .flatten()
                .map(|namespace| (step.name.as_str(), namespace))
        })
    }
}

impl Step {
    /// How long it waits, or sleeps, once it is ready. None: not at all.
    pub fn waits(&self) -> Option<Duration> {
        match self.kind {
            Kind::Sleep { sleep } => Some(sleep + self.delay.unwrap_or_default()),
            _ => self.delay,
        }
    }
}

/// When a failed step is tried again. None: what the step's namespace says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Retry {
    /// Counts the first run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u16>,
    /// How the delay grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// By what an exponential delay grows from attempt to attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<f64>,
    /// The first delay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Duration>,
    /// No delay is longer (before jitter).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
    /// The delay is spread evenly by ± this share of it, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
}

/// What becomes of a step's dead letters. None: what the step's namespace says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeadLetters {
    /// After how many days a dead letter is deleted, and its task failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// How many of them raise an alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert_threshold: Option<u32>,
}

/// How long a task or a step may stay in one state; a step that stays longer is dead-lettered as stuck. None: as long as it takes.
/// It is noticed within a quarter of the shortest of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StuckAfter {
    /// The task waits for an orchestrator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<Duration>,
    /// The step waits for a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enqueued: Option<Duration>,
    /// A worker has the step. Beside the step's own timeout, which its worker enforces, this holds also against a worker that hangs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_progress: Option<Duration>,
}

/// What becomes of a task when one of its steps is dead-lettered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is blocked, until somebody replays, resolves, skips or discards the dead letter.
    #[default]
    Block,
    /// It has failed. Its other branches still finish.
    Fail,
    /// What it did is undone; then it has failed.
    Undo,
}

/// How the delay grows from attempt to attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// Always `base`.
    Fixed,
    /// `base` × failures.
    Linear,
    /// `base` × `multiplier`^(failures - 1).
    Exponential,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Template {
    /// Reads and validates a template. JSON is read as the YAML that it is.
    ///
    /// `origin` names the source in errors: a file's path, or a Ruby class.
    pub fn parse(source: &str, origin: &str) -> Result<Template, TemplateError> {
        let problems = |problems| TemplateError {
            origin: origin.to_owned(),
            problems,
        };
        document::read(source).map_err(|p| problems(vec![p]))?.validate().map_err(problems)
    }

    /// A digest of everything but the version: equal content has an equal digest, from whichever form it came.
    pub fn digest(&self) -> String {
        let content = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Of each step, whether it is not simply sent when it is ready: it waits, no worker runs it, or it may be skipped, since it has a condition, or its signal may not come in time, or every
    /// way to it leads through one of these.
    pub(crate) fn decided(&self) -> Vec<bool> {
        let mut skippable: Vec<bool> = self
            .steps
            .iter()
            .map(|step| step.condition.is_some() || step.kind.may_skip())
            .collect();
        // The steps are in any order: until nothing changes.
        loop {
            let before = skippable.clone();
            for (position, step) in self.steps.iter().enumerate() {
                skippable[position] |= !step.parents.is_empty() && step.parents.iter().all(|&parent| skippable[parent]);
            }
            if skippable == before {
                break;
            }
        }
        self.steps
            .iter()
            .zip(skippable)
            .map(|(step, skippable)| skippable || step.waits().is_some() || step.kind.handler().is_none())
            .collect()
    }

    /// The positions of the steps that depend on `step`.
    pub fn children(&self, step: usize) -> Vec<usize> {
        (0..self.steps.len())
            .filter(|&other| self.steps[other].parents.contains(&step))
            .collect()
    }
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// The file or class.
    pub origin: String,
    /// Every problem that was found; at least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong in a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 where the source has no lines.
    pub line: u64,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            match problem.line {
                0 => write!(f, "{separator}{}: {}", self.origin, problem.message)?,
                line => write!(f, "{separator}{}:{line}: {}", self.origin, problem.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for TemplateError {}
