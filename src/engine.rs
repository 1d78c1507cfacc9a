//! The verbs of the engine, each a thin, batched call of the SQL function that does the work in one transaction (`migrations/`).
//!
//! Read them in the order in which a task meets them: [`register`], [`submit`], [`claim`], [`lease`], [`complete`] or [`fail`],
//! [`dead_letters`], [`cancel`], [`read`]; [`member`] is who does it, and [`reconcile`] what looks after it all.

pub(crate) mod alerts;
pub mod cancel;
pub mod claim;
pub mod complete;
pub mod dead_letters;
pub mod fail;
mod input;
pub mod lease;
pub mod member;
pub mod namespaces;
pub mod read;
pub mod reconcile;
pub mod register;
pub mod submit;

use std::collections::HashMap;
use std::future::Future;

use crate::error::{Error, Result};

/// How much JSON an input, a result or a checkpoint may be. What is larger belongs in a table or a file, with the JSON saying where.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// Errors: [`Error::TooLarge`] when `json` is more than [`MAX_PAYLOAD_BYTES`]; `what` names it.
pub fn check_payload(what: &str, json: &str) -> Result<()> {
    match json.len() {
        ..=MAX_PAYLOAD_BYTES => Ok(()),
        bytes => Err(Error::TooLarge(format!(
            "{what} has {bytes} bytes, at most {MAX_PAYLOAD_BYTES} are accepted"
        ))),
    }
}

/// Runs a transaction again when PostgreSQL rolled it back for the sake of another one.
async fn again_on_conflict<T, F: Future<Output = Result<T>>>(mut transaction: impl FnMut() -> F) -> Result<T> {
    for _ in 0..4 {
        match transaction().await {
            Err(error) if error.is_conflict() => tracing::warn!(%error, "transaction rolled back by PostgreSQL, running it again"),
            done => return done,
        }
    }
    transaction().await
}

/// For each queue, or namespace, a message id that none of its live messages is below.
///
/// Why: pgmq reads a queue from the start of its primary key, through every dead entry that vacuum has not taken yet. The mark skips
/// those. It follows the lowest live message with a lag of at least [`LowWaterMarks::LAG`], because an insert that took a lower id
/// may commit later; and every [`LowWaterMarks::SWEEP`] it falls back to zero once, in case one took longer than that.
#[derive(Debug, Default)]
pub(crate) struct LowWaterMarks(HashMap<String, Mark>);

#[derive(Debug)]
struct Mark {
    mark: i64,
    candidate: i64,
    since: tokio::time::Instant,
    swept: tokio::time::Instant,
}

impl LowWaterMarks {
    const LAG: std::time::Duration = std::time::Duration::from_secs(1);
    const SWEEP: std::time::Duration = std::time::Duration::from_secs(10);

    /// Where to begin reading `queue`.
    pub(crate) fn get(&mut self, queue: &str) -> i64 {
        let Some(mark) = self.0.get_mut(queue) else { return 0 };
        if mark.swept.elapsed() >= Self::SWEEP {
            mark.swept = tokio::time::Instant::now();
            mark.mark = 0;
            mark.candidate = 0;
        }
        mark.mark
    }

    /// Whether it is time to look for the queue's lowest live message again.
    pub(crate) fn is_due(&self, queue: &str) -> bool {
        self.0.get(queue).is_none_or(|mark| mark.since.elapsed() >= Self::LAG)
    }

    /// Tells that the lowest live message of `queue` at or above its mark is `head`.
    pub(crate) fn saw(&mut self, queue: &str, head: i64) {
        let now = tokio::time::Instant::now();
        match self.0.get_mut(queue) {
            None => {
                self.0.insert(
                    queue.to_owned(),
                    Mark {
                        mark: 0,
                        candidate: head,
                        since: now,
                        swept: now,
                    },
                );
            }
            Some(mark) if mark.since.elapsed() >= Self::LAG => {
                // What was lowest a lag ago is below everything that can still become visible.
                mark.mark = mark.candidate.min(head);
                mark.candidate = head;
                mark.since = now;
            }
            Some(_) => {}
        }
    }

    /// All of them, as the SQL functions take them.
    pub(crate) fn as_json(&mut self) -> serde_json::Value {
        let queues: Vec<String> = self.0.keys().cloned().collect();
        queues
            .into_iter()
            .map(|queue| {
                let mark = self.get(&queue);
                (queue, serde_json::Value::from(mark))
            })
            .collect()
    }
}
