//! Waiting for the ends of tasks: however many wait, one reader asks for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::problem::{Outcome, Problem};
use crate::db::Db;
use crate::engine::read::{is_over, task_states};

/// How often it asks.
const EVERY: Duration = Duration::from_millis(100);

/// Who waits for which task.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<HashMap<Uuid, watch::Sender<String>>>>);

impl Waiting {
    /// The task's state once it has ended or is blocked, or whatever it is after `timeout`. Errors: there is no such task.
    pub(super) async fn for_end(&self, db: &Db, task: Uuid, timeout: Duration) -> Outcome<String> {
        let states = task_states(db, &[task]).await?;
        let found = states.into_iter().next().map(|(_, state)| state);
        let state = found.ok_or_else(|| Problem::not_found(format!("no task {task}")))?;
        if is_over(&state) || timeout.is_zero() {
            return Ok(state);
        }
        let mut told = self.follow(db, task, state);
        tokio::time::timeout(timeout, told.wait_for(|state| is_over(state))).await.ok();
        let state = told.borrow().clone();
        Ok(state)
    }

    fn follow(&self, db: &Db, task: Uuid, state: String) -> watch::Receiver<String> {
        let mut waited_for = self.lock();
        if waited_for.is_empty() {
            tokio::spawn(self.clone().read(db.clone()));
        }
        let told = waited_for.entry(task).or_default();
        told.send_replace(state);
        told.subscribe()
    }

    /// Until nobody waits any more.
    async fn read(self, db: Db) {
        loop {
            tokio::time::sleep(EVERY).await;
            let tasks: Vec<Uuid> = {
                let mut waited_for = self.lock();
                waited_for.retain(|_, told| told.receiver_count() > 0);
                waited_for.keys().copied().collect()
            };
            if tasks.is_empty() {
                return;
            }
            // Where PostgreSQL is away, those who wait hear what was known last.
            for (task, state) in task_states(&db, &tasks).await.unwrap_or_default() {
                if let Some(told) = self.lock().get(&task) {
                    told.send_replace(state);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
