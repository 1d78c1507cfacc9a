//! A step on its way through a worker, and what becomes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use tokio_util::sync::CancellationToken;

use super::spans;
use crate::engine::fail::Failure;
use crate::engine::lease::{Lease, LeasedStep};

/// A leased step on its way through this worker.
#[derive(Debug, Clone)]
pub struct Step {
    /// What the lease brought.
    pub leased: Arc<LeasedStep>,
    pub(super) queue: usize,
    pub(super) lost: CancellationToken,
    pub(super) received: Instant,
    /// When its handler began.
    pub(super) began: Option<Instant>,
}

impl Step {
    /// Whether the lease is gone (taken by another worker, or the task was cancelled): the outcome will be refused.
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
}

impl Outcome {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Outcome::Complete(_) => "complete",
            Outcome::Fail(_) => "failed",
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
