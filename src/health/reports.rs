//! What probes are told.

use std::time::Duration;

use serde::Serialize;

use super::database::Away;
use super::Memory;
use crate::db::PoolUse;

/// Whether a process works.
#[derive(Debug, Clone, Serialize)]
pub struct Live {
    /// Nothing has failed.
    pub healthy: bool,
    /// What has, each in words that say what to look at.
    pub failed: Vec<String>,
    /// What is missing beside it, such as an orchestrator for its namespaces.
    pub warnings: Vec<String>,
    /// orchestrator, worker or client.
    pub kind: &'static str,
    /// Its process id.
    pub pid: u32,
    /// Whether the database answered last.
    pub database: bool,
    /// For how many seconds it has not.
    pub database_away_seconds: Option<f64>,
    /// The loops that have not come round in time.
    pub late_loops: Vec<String>,
    /// Its memory.
    pub memory: Memory,
}

impl Live {
    pub(super) fn new(
        kind: &'static str,
        given_up: Option<String>,
        late_loops: Vec<String>,
        away: Option<Away>,
        grace: Duration,
        memory: Memory,
        warnings: Vec<String>,
    ) -> Live {
        let late = late_loops.iter().map(|name| format!("the loop {name} stands still"));
        let mut failed: Vec<String> = given_up.into_iter().chain(late).collect();
        if let Some(away) = away.as_ref().filter(|away| away.since.elapsed() >= grace) {
            failed.push(away.why.clone());
        }
        if memory.is_exhausted() {
            failed.push(format!(
                "memory: {} of {} bytes are used",
                memory.used,
                memory.limit.unwrap_or_default()
            ));
        }
        Live {
            healthy: failed.is_empty(),
            failed,
            warnings,
            kind,
            pid: std::process::id(),
            database: away.is_none(),
            database_away_seconds: away.map(|away| away.since.elapsed().as_secs_f64()),
            late_loops,
            memory,
        }
    }
}

/// Whether a process should be given work.
#[derive(Debug, Clone, Serialize)]
pub struct Ready {
    /// Nothing stands against it.
    pub ready: bool,
    /// What does, each in words that say what to look at.
    pub failed: Vec<String>,
    /// What does not, and somebody should look at all the same.
    pub warnings: Vec<String>,
    /// orchestrator, worker or client.
    pub kind: &'static str,
    /// It shuts down.
    pub draining: bool,
    /// Calls wait for connections.
    pub overloaded: bool,
    /// How much of the pool is in use.
    pub pool: PoolUse,
}

impl Ready {
    pub(super) fn new(
        kind: &'static str,
        draining: bool,
        mut failed: Vec<String>,
        warnings: Vec<String>,
        failing: Vec<String>,
        overloaded: bool,
        pool: PoolUse,
    ) -> Ready {
        failed.extend(
            failing
                .into_iter()
                .map(|name| format!("the loop {name} fails again and again: the log says why")),
        );
        if draining {
            failed.push("it is shutting down".to_owned());
        }
        if overloaded {
            failed.push("calls wait more than a second for a database connection".to_owned());
        }
        Ready {
            ready: failed.is_empty(),
            failed,
            warnings,
            kind,
            draining,
            overloaded,
            pool,
        }
    }
}
