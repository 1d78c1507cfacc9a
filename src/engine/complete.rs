//! Completing steps: where a result lands, the task advances.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::lease::{Held, Lease, LeasedStep};
use crate::db::Db;
use crate::error::Result;

/// Completes a step inside the caller's transaction; see [`crate::worker::Worker::completion`]. The last parameter is the result, as JSON.
pub const COMPLETE_WITHIN: &str =
    "SELECT counted FROM tasker.complete_steps($1, $2, ARRAY[$3::bigint], ARRAY[$4::int], ARRAY[$5::uuid], ARRAY[$6::smallint], ARRAY[$7],
                                               ARRAY[$5::uuid]) WHERE counted IS NOT NULL";

/// A finished step.
#[derive(Debug, Clone)]
pub(crate) struct Completion {
    pub(crate) lease: Lease,
    /// JSON.
    pub(crate) result: String,
}

/// What came of completions.
#[derive(Debug, Default)]
pub(crate) struct Completed {
    /// The messages whose report counted; the others were stale.
    pub(crate) counted: Vec<i64>,
    /// The steps that are ready now, as far as there was room for them: the worker has leased them.
    pub(crate) next: Vec<LeasedStep>,
    /// The tasks that are done.
    pub(crate) done: Vec<Done>,
}

/// Tasks of one template that are done.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Done {
    /// The template's.
    #[sqlx(rename = "done_namespace")]
    pub(crate) namespace: String,
    #[sqlx(rename = "done_template")]
    pub(crate) template: String,
    /// For each, since it was created.
    #[sqlx(rename = "done_seconds")]
    pub(crate) seconds: Vec<f64>,
}

/// How many steps a report may bring along.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    /// Of those that it makes ready.
    pub(crate) next: i32,
    /// Together with those that had to wait for a permit, which it gives back.
    pub(crate) ahead: i32,
}

/// Completes steps of one queue together, and leases those that can run now in the same queue, as far as there is room, for `lease`.
pub(crate) async fn complete_steps(
    db: &Db,
    queue: &str,
    worker: i32,
    mut completions: Vec<&Completion>,
    room: Room,
    lease: Duration,
) -> Result<Completed> {
    completions.sort_by_key(|c| c.lease);
    let held: Held = completions.iter().map(|c| &c.lease).collect();
    let results: Vec<&str> = completions.iter().map(|c| c.result.as_str()).collect();
    let shared: Vec<Uuid> = completions.iter().filter(|c| c.lease.shared).map(|c| c.lease.task_id).collect();
    let sql =
        "SELECT counted, (next).*, (done).namespace AS done_namespace, (done).template AS done_template, (done).seconds AS done_seconds
        FROM tasker.complete_steps($1, $2, $3, $4, $5, $6, $7, $8, $9, make_interval(secs => $10), $11)";
    let rows: Vec<PgRow> = super::again_on_conflict(|| async {
        let query = sqlx::query(sql)
            .bind(queue)
            .bind(worker)
            .bind(&held.ids)
            .bind(&held.fences)
            .bind(&held.tasks)
            .bind(&held.steps);
        Ok(query
            .bind(&results)
            .bind(&shared)
            .bind(room.next)
            .bind(lease.as_secs_f64())
            .bind(room.ahead)
            .fetch_all(db.pool())
            .await?)
    })
    .await?;
    let mut completed = Completed::default();
    for row in rows {
        if let Some(counted) = row.try_get("counted")? {
            completed.counted = counted;
        } else if row.try_get::<Option<i64>, _>("msg_id")?.is_some() {
            completed.next.push(LeasedStep::from_row(&row)?);
        } else {
            completed.done.push(Done::from_row(&row)?);
        }
    }
    Ok(completed)
}
