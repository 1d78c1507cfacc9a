//! Waiting for the ends of tasks: however many wait, one reader asks for all of them.

use std::time::Duration;

use uuid::Uuid;

use super::followed::Followed;
use super::problem::{Outcome, Problem};
use crate::db::Db;
use crate::engine::read::{is_over, task_states};

/// How often it asks.
const EVERY: Duration = Duration::from_millis(100);

/// The states of tasks that somebody waits for.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Followed<Uuid, String>);

impl Waiting {
    /// The task's state once it has ended or is blocked, or whatever it is after `timeout`. Errors: there is no such task.
    pub(super) async fn for_end(&self, db: &Db, task: Uuid, timeout: Duration) -> Outcome<String> {
        let states = task_states(db, &[task]).await?;
        let found = states.into_iter().next().map(|(_, state)| state);
        let state = found.ok_or_else(|| Problem::not_found(format!("no task {task}")))?;
        if is_over(&state) || timeout.is_zero() {
            return Ok(state);
        }
        let db = db.clone();
        let mut told = self.0.follow(task, state, EVERY, move |tasks| {
            let db = db.clone();
            // Where PostgreSQL is away, those who wait hear what was known last.
            async move { task_states(&db, &tasks).await.unwrap_or_default() }
        });
        tokio::time::timeout(timeout, told.wait_for(|state| is_over(state))).await.ok();
        let state = told.borrow().clone();
        Ok(state)
    }
}
