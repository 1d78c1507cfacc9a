//! Waiting for the ends of tasks: however many wait, one reader asks for all of them.

use std::time::Duration;

use futures_util::future::join_all;
use uuid::Uuid;

use super::followed::Followed;
use super::problem::{Outcome, Problem};
use crate::engine::read::{is_over, task_states};
use crate::engine::shards::{by_shard, Shards};

/// How often it asks.
const EVERY: Duration = Duration::from_millis(100);

/// The states of tasks that somebody waits for.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Followed<Uuid, String>);

impl Waiting {
    /// The task's state once it has ended or is blocked, or whatever it is after `timeout`. Errors: there is no such task.
    pub(super) async fn for_end(&self, shards: &Shards, task: Uuid, timeout: Duration) -> Outcome<String> {
        let found = task_states(&shards.of_task(task).await?, &[task]).await?;
        let found = found.into_iter().next().map(|(_, state)| state);
        let state = found.ok_or_else(|| Problem::not_found(format!("no task {task}")))?;
        if is_over(&state) || timeout.is_zero() {
            return Ok(state);
        }
        let shards = shards.clone();
        let mut told = self.0.follow(task, state, EVERY, move |tasks| {
            let shards = shards.clone();
            async move {
                join_all(by_shard(tasks).into_iter().map(|tasks| states(&shards, tasks)))
                    .await
                    .concat()
            }
        });
        tokio::time::timeout(timeout, told.wait_for(|state| is_over(state))).await.ok();
        let state = told.borrow().clone();
        Ok(state)
    }
}

/// Of tasks of one shard. Where it is away, those who wait hear what was known last.
async fn states(shards: &Shards, tasks: Vec<Uuid>) -> Vec<(Uuid, String)> {
    let Some(first) = tasks.first() else { return Vec::new() };
    match shards.of_task(*first).await {
        Ok(db) => task_states(&db, &tasks).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
