//! What is done to many tasks at once: to those that a filter lets through.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::dead_letters::{self, By, Replay};
use super::payload::check_payload;
use super::read::{matching_tasks, TaskFilter};
use super::{cancel, claim, pauses};
use crate::db::Db;
use crate::error::{Error, Result};
use crate::template::Priority;

/// What is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Action {
    /// They are cancelled ([`cancel`]).
    Cancel {
        /// And undone, also those that have ended.
        undo: bool,
    },
    /// They are paused ([`pauses`]).
    Pause(By),
    /// They are resumed.
    Resume,
    /// Their dead steps start over ([`dead_letters::replay`]).
    Replay {
        /// How.
        how: Replay,
        /// On whose account.
        by: By,
    },
    /// Their dead steps are complete with this result, or skipped where it is null ([`dead_letters::settle`]).
    Settle {
        /// The result.
        result: Option<Value>,
        /// On whose account.
        by: By,
    },
    /// Their dead letters are deleted ([`dead_letters::discard`]).
    Discard(By),
    /// They get another priority ([`claim::prioritize_tasks`]).
    Prioritize {
        /// Which.
        priority: Priority,
    },
}

impl Action {
    /// Whether it concerns only tasks that have not ended.
    pub(crate) fn is_for_open(&self) -> bool {
        !matches!(self, Action::Cancel { undo: true }) && !self.is_for_letters()
    }

    /// Whether it concerns only tasks with dead letters.
    fn is_for_letters(&self) -> bool {
        matches!(self, Action::Replay { .. } | Action::Settle { .. } | Action::Discard(_))
    }

    /// Errors: [`Error::Invalid`](crate::Error::Invalid) and the like for what can be done to no task.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Action::Replay { how, .. } => how.check(),
            Action::Settle { result: Some(result), .. } => check_payload("the result", &result.to_string()),
            Action::Discard(By { why: None, .. }) => Err(Error::Invalid("dead letters are discarded for a reason: expected why".into())),
            _ => Ok(()),
        }
    }
}

/// How many tasks one transaction is about.
const BATCH: usize = 200;

/// The tasks that a filter lets through and an action concerns, the newest first.
pub async fn matching(db: &Db, filter: &TaskFilter, action: &Action) -> Result<Vec<Uuid>> {
    let mut tasks = matching_tasks(db, filter, action.is_for_open()).await?;
    if action.is_for_letters() {
        let mut dead = BTreeSet::new();
        for batch in tasks.chunks(BATCH) {
            dead.extend(dead_letters::of_tasks(db, batch).await?.into_values());
        }
        tasks.retain(|task| dead.contains(task));
    }
    Ok(tasks)
}

/// Does it to these tasks, and returns those to which it did: of each batch all or none, and where it fails in between, those before stay done.
pub async fn apply(db: &Db, tasks: &[Uuid], action: &Action) -> Result<Vec<Uuid>> {
    let mut done = Vec::new();
    for batch in tasks.chunks(BATCH) {
        done.extend(match action {
            Action::Cancel { undo: false } => cancel::cancel_tasks(db, batch).await?,
            Action::Cancel { undo: true } => cancel::undo_tasks(db, batch).await?,
            Action::Pause(by) => pauses::pause_tasks(db, batch, by).await?,
            Action::Resume => pauses::resume_tasks(db, batch).await?,
            Action::Replay { how, by } => to_letters(db, batch, async |ids| dead_letters::replay(db, ids, how, by).await).await?,
            Action::Settle { result, by } => {
                to_letters(db, batch, async |ids| dead_letters::settle(db, ids, result.as_ref(), by).await).await?
            }
            Action::Discard(by) => to_letters(db, batch, async |ids| dead_letters::discard(db, ids, by).await).await?,
            Action::Prioritize { priority } => claim::prioritize_tasks(db, batch, *priority).await?,
        });
    }
    Ok(done)
}

/// Does it to the dead letters of these tasks, and returns the tasks of those to which it did.
async fn to_letters(db: &Db, tasks: &[Uuid], act: impl AsyncFnOnce(&[String]) -> Result<Vec<String>>) -> Result<Vec<Uuid>> {
    let letters: BTreeMap<String, Uuid> = dead_letters::of_tasks(db, tasks).await?;
    let ids: Vec<String> = letters.keys().cloned().collect();
    let done = act(&ids).await?;
    let tasks: BTreeSet<Uuid> = done.iter().filter_map(|id| letters.get(id).copied()).collect();
    Ok(tasks.into_iter().collect())
}
