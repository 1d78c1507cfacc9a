//! Completing steps: where a result lands, the task advances.

use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

/// The lease under which a report is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lease {
    pub(crate) msg_id: i64,
    pub(crate) fence: i32,
    pub(crate) task_id: Uuid,
    pub(crate) step: i16,
}

/// Completes a step inside the caller's transaction; see [`crate::worker::Worker::completion`]. The last parameter is the result, as JSON.
pub const COMPLETE_WITHIN: &str =
    "SELECT tasker.complete_steps($1, $2, ARRAY[$3::bigint], ARRAY[$4::int], ARRAY[$5::uuid], ARRAY[$6::smallint], ARRAY[$7])";

/// A finished step.
#[derive(Debug, Clone)]
pub(crate) struct Completion {
    pub(crate) lease: Lease,
    /// JSON.
    pub(crate) result: String,
}

/// Completes steps of one queue together. Returns the messages whose report counted; the others were stale.
pub(crate) async fn complete_steps(db: &Db, queue: &str, worker: i32, completions: &[Completion]) -> Result<Vec<i64>> {
    let mut completions: Vec<&Completion> = completions.iter().collect();
    completions.sort_by_key(|c| c.lease);
    let ids: Vec<i64> = completions.iter().map(|c| c.lease.msg_id).collect();
    let fences: Vec<i32> = completions.iter().map(|c| c.lease.fence).collect();
    let tasks: Vec<Uuid> = completions.iter().map(|c| c.lease.task_id).collect();
    let steps: Vec<i16> = completions.iter().map(|c| c.lease.step).collect();
    let results: Vec<&str> = completions.iter().map(|c| c.result.as_str()).collect();
    super::again_on_conflict(|| async {
        Ok(sqlx::query_scalar("SELECT tasker.complete_steps($1, $2, $3, $4, $5, $6, $7)")
            .bind(queue)
            .bind(worker)
            .bind(&ids)
            .bind(&fences)
            .bind(&tasks)
            .bind(&steps)
            .bind(&results)
            .fetch_all(db.pool())
            .await?)
    })
    .await
}
