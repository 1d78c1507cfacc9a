//! What is not as the engine's transactions leave it: after a restore, or a hand that helped.

use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

/// How many tasks are looked at in one statement, and how many messages of a queue.
const SLICE: i32 = 2_000;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// In words.
    pub(crate) what: String,
    /// Of which task, if of one.
    pub(crate) task: Option<Uuid>,
    /// Of which of its steps, if of one.
    pub(crate) step: Option<String>,
    /// Of which queue, if of one.
    pub(crate) queue: Option<String>,
    /// Of which of its messages, if of one.
    pub(crate) message: Option<i64>,
}

/// Looks at every task, and calls `found` with what is wrong with some of them; then with what is wrong with the queues. Nothing is changed.
pub(crate) async fn find_faults(db: &Db, mut found: impl FnMut(Vec<Fault>)) -> Result<()> {
    let mut after = Some(Uuid::nil());
    while let Some(last) = after {
        let query = sqlx::query_as("SELECT faults, last FROM tasker.find_faults($1, $2)")
            .bind(last)
            .bind(SLICE);
        let (Json(faults), next) = query.fetch_one(db.pool()).await?;
        found(faults);
        after = next;
    }
    let query = sqlx::query_scalar("SELECT tasker.find_queue_faults($1)").bind(SLICE);
    let Json(faults) = query.fetch_one(db.pool()).await?;
    found(faults);
    Ok(())
}
