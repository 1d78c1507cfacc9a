//! A step on its way through a worker, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::memory::Recalled;
use super::{log_step, spans, Shared};
use crate::engine::children::{read_children, Child, Page};
use crate::engine::fail::Failure;
use crate::engine::lease::{names_before, read_leased, Lease, LeasedStep};
use crate::engine::read::read_results;
use crate::error::Result;

/// A leased step on its way through this worker.
#[derive(Clone)]
pub struct Step {
    pub(super) shared: Arc<Shared>,
    /// What the lease brought.
    pub leased: Arc<LeasedStep>,
    pub(super) queue: usize,
    pub(super) lost: CancellationToken,
    pub(super) received: Instant,
    /// What its handler remembers.
    pub(super) recalled: Arc<Recalled>,
    /// When its handler began.
    pub(super) began: Option<Instant>,
    /// How many its handler had in the same call.
    pub(super) together: u32,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Step").field(&self.leased).finish()
    }
}

impl Step {
    /// The task's input: a JSON object. What is large is read now. Errors: those of the database.
    pub async fn input(&self) -> Result<String> {
        match &self.leased.input {
            Some(input) => Ok(input.clone()),
            None => Ok(self.read_large().await?.0),
        }
    }

    /// What an earlier attempt left with a checkpoint, as JSON. What is large is read now. Errors: those of the database.
    pub async fn checkpoint(&self) -> Result<Option<String>> {
        match self.leased.large {
            false => Ok(self.leased.checkpoint.clone()),
            true => Ok(self.read_large().await?.1),
        }
    }

    /// The membership under which its worker holds it.
    pub fn worker(&self) -> i32 {
        self.shared.membership.id()
    }

    async fn read_large(&self) -> Result<(String, Option<String>)> {
        read_leased(&self.shared.db, self.leased.task_id, self.leased.step).await
    }

    /// The names of the steps that it depends on, in the template's order. Errors: those of the database.
    pub async fn names_before(&self) -> Result<Vec<String>> {
        names_before(&self.shared.db, self.leased.task_id, self.leased.step).await
    }

    /// Of the steps that it depends on, the results of these, by name, as JSON; what is large is read now. Errors: those of the database.
    pub async fn results(&self, names: &[String]) -> Result<Vec<(String, String)>> {
        if let Some(along) = &self.leased.results {
            let all: BTreeMap<String, Box<RawValue>> = serde_json::from_str(along).unwrap_or_default();
            let wanted = all.into_iter().filter(|(name, _)| names.contains(name));
            return Ok(wanted.map(|(name, json)| (name, json.get().to_owned())).collect());
        }
        read_results(&self.shared.db, self.leased.task_id, Some(self.leased.step), names, None).await
    }

    /// Of a step that it depends on, and whose work was many tasks ([`LeasedStep::fan_outs`]), what became of these, a page at a time.
    /// Errors: those of the database.
    pub async fn children(&self, name: &str, page: &Page) -> Result<Vec<Child>> {
        read_children(&self.shared.db, self.leased.task_id, Some(self.leased.step), name, page).await
    }

    /// Whether its handler is to stop: the step is another worker's by now, or its task was cancelled, so that its outcome does not count any more.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Where what its handler does belongs in the task's trace; None when the task is part of none.
    pub fn context(&self) -> Option<SpanContext> {
        spans::context(self)
    }

    /// For how long its handler has had it, or had at that moment.
    pub(super) fn handled_for(&self, ended: Instant) -> Duration {
        self.began.map_or(Duration::ZERO, |began| ended.saturating_duration_since(began))
    }

    /// Its part of the handler's time.
    pub(super) fn took(&self, ended: Instant) -> Duration {
        self.handled_for(ended) / self.together
    }

    /// A line about its end.
    pub(super) fn log_end(&self, outcome: &str, ended: Instant) {
        log_step!(
            INFO,
            self.shared,
            self.queue,
            self.leased,
            template = self.leased.template,
            handler = self.leased.handler,
            outcome,
            seconds = self.handled_for(ended).as_secs_f64(),
            waited = self.leased.waited,
            "step finished"
        );
    }

    pub(super) fn lease(&self) -> Lease {
        self.leased.lease()
    }
}

/// What became of a step.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The handler's result, as JSON.
    Complete(String),
    /// The handler failed.
    Fail(Failure),
    /// This worker has no handler for it: it is left to others, and no attempt is used.
    Decline,
    /// Its handler did not begin: others may have it at once.
    HandBack,
}

impl Outcome {
    /// None: its handler did not run.
    pub(super) fn name(&self) -> Option<&'static str> {
        match self {
            Outcome::Complete(_) => Some("complete"),
            Outcome::Fail(_) => Some("failed"),
            Outcome::Decline | Outcome::HandBack => None,
        }
    }

    /// How much its report will be, roughly.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Outcome::Complete(result) => result.len(),
            Outcome::Fail(failure) => failure.message.len().min(10_000),
            Outcome::Decline | Outcome::HandBack => 0,
        }
    }
}

/// A step whose handler is done, on its way to the commit of its report.
#[derive(Debug)]
pub(super) struct Handled {
    pub(super) step: Step,
    pub(super) outcome: Outcome,
    /// When its handler was done.
    pub(super) ended: Instant,
}
