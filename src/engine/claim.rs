//! How steps get into queues: from claimed tasks, and when a retry is due. And how a task is given up whose time is over.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::trace::TracedTask;
use crate::db::Db;
use crate::error::Result;

/// What one cycle of claiming did in one namespace.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Claimed {
    /// The tasks' namespace.
    pub namespace: String,
    /// How many of its tasks are now running.
    pub claimed: i32,
    /// Those that are traced.
    #[sqlx(json(nullable))]
    pub(crate) traced: Option<Vec<TracedTask>>,
}

/// Claims pending tasks by time-weighted priority and enqueues their root steps, in one transaction.
///
/// `namespaces` empty means all. A namespace's tasks are left to wait while its queue holds `target` messages; at most `batch` are
/// claimed in each. Tasks that came in within `left` are left to workers that have nothing else to do. Returns one entry for every
/// namespace that has other pending tasks.
/// Errors: [`crate::Error::Stale`] when `member` lost its membership.
pub(crate) async fn claim_tasks(
    db: &Db,
    member: i32,
    namespaces: &[String],
    target: i32,
    batch: i32,
    left: Duration,
) -> Result<Vec<Claimed>> {
    let filter = (!namespaces.is_empty()).then_some(namespaces);
    super::again_on_conflict(|| async {
        Ok(
            sqlx::query_as("SELECT * FROM tasker.claim_tasks($1, $2, $3, $4, make_interval(secs => $5))")
                .bind(member)
                .bind(filter)
                .bind(target)
                .bind(batch)
                .bind(left.as_secs_f64())
                .fetch_all(db.pool())
                .await?,
        )
    })
    .await
}

/// What one cycle of enqueuing retries did.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Retried {
    /// How many steps are enqueued again.
    pub enqueued: i32,
    /// When the next one will be due; None when no step waits for a retry.
    pub next_due: Option<DateTime<Utc>>,
}

/// Enqueues at most `limit` steps whose retry is due.
pub(crate) async fn enqueue_due_retries(db: &Db, limit: i32) -> Result<Retried> {
    super::again_on_conflict(|| async {
        Ok(sqlx::query_as("SELECT enqueued, next_due FROM tasker.enqueue_due_retries($1)")
            .bind(limit)
            .fetch_one(db.pool())
            .await?)
    })
    .await
}

/// Looks at no more than `limit` tasks that have limits on time, and gives up what is over. Returns how many
/// tasks that concerned.
pub(crate) async fn expire_tasks(db: &Db, limit: i32) -> Result<i32> {
    super::again_on_conflict(|| async {
        Ok(sqlx::query_scalar("SELECT tasker.expire_tasks($1)")
            .bind(limit)
            .fetch_one(db.pool())
            .await?)
    })
    .await
}
