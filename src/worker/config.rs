//! How a worker works.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::health::HealthConfig;

/// The options of a worker, each with its default.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Whose steps to run; at least one.
    pub namespaces: Vec<String>,
    /// How many handlers run at once. Default 8.
    pub concurrency: usize,
    /// How many steps may wait in the buffer beside those that run, at most. How many do follows the pace: what the handlers finish in
    /// 100 ms. Default 1,000.
    pub max_prefetch: usize,
    /// How long a lease lasts without a heartbeat, which comes at a third of it: the time after which the steps of a worker that was
    /// killed run elsewhere. Default 30 s.
    pub lease: Duration,
    /// How long a finished step may wait for others to be reported with. A step with nothing else in flight does not wait. Default 2 ms.
    pub linger: Duration,
    /// How many steps are leased, or reports committed, together at most. Default 500.
    pub batch: usize,
    /// How often to look for steps when no notification came. Default 1 s.
    pub poll: Duration,
    /// How often a step that is suspected (its lease ran out twice before) may take its worker down with it before it is dead-lettered. Default 5.
    pub max_crashes: u32,
    /// How its health is judged.
    pub health: HealthConfig,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        WorkerConfig {
            namespaces: Vec::new(),
            concurrency: 8,
            max_prefetch: 2_000,
            lease: Duration::from_secs(30),
            linger: Duration::from_millis(2),
            batch: 500,
            poll: Duration::from_secs(1),
            max_crashes: 5,
            health: HealthConfig::default(),
        }
    }
}

impl WorkerConfig {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::Config(what.to_owned()));
        match self {
            c if c.namespaces.is_empty() => wrong("a worker needs at least one namespace"),
            c if c.concurrency == 0 || c.concurrency > 10_000 => wrong("concurrency must be 1 to 10,000"),
            c if c.batch == 0 || c.batch > 10_000 => wrong("batch must be 1 to 10,000"),
            c if c.lease < Duration::from_secs(1) => wrong("lease must be at least 1 s"),
            c if c.poll.is_zero() => wrong("poll must be more than 0"),
            _ => Ok(()),
        }
    }
}
