//! A step on its way through a worker, and what becomes of it.

use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::engine::fail::Failure;
use crate::engine::lease::{Lease, LeasedStep};

/// A leased step on its way through this worker.
#[derive(Debug, Clone)]
pub struct Step {
    /// What the lease brought.
    pub leased: LeasedStep,
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
