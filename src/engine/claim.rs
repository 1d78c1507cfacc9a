//! How steps get into queues: from claimed tasks, and when a retry is due. How a task begins whose time has come, and how one is given up whose
//! time is over; and before which others it begins.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::trace::TracedTask;
use crate::db::Db;
use crate::error::Result;
use crate::template::Priority;

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

/// What was due.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Due {
    /// Tasks whose time has come.
    pub(crate) begun: i32,
    /// Steps that are enqueued again, or after their delay.
    pub(crate) enqueued: i32,
    /// Steps that have slept long enough.
    pub(crate) woken: i32,
    /// There is something to do about children (see [`super::children`]).
    pub(crate) children: bool,
    /// There is something to do about signals (see [`super::signals`]).
    pub(crate) signals: bool,
    /// There is something to do about schedules (see [`super::schedules`]).
    pub(crate) schedules: bool,
    /// When the next of these will be due, or the next permit may be free; None when nothing waits for its time.
    pub(crate) next_due: Option<DateTime<Utc>>,
}

/// Begins at most `limit` tasks whose time has come, ends at most `limit` sleeps, enqueues at most `limit` steps whose retry is due, and grants permits of
/// limits, for at most `limit` keys.
pub(crate) async fn begin_what_is_due(db: &Db, limit: i32) -> Result<Due> {
    let sql = "SELECT t.begun, s.enqueued, w.woken, c.due IS NOT NULL AND c.due <= clock_timestamp() AS children,
                      g.due IS NOT NULL AND g.due <= clock_timestamp() AS signals, h.due IS NOT NULL AND h.due <= clock_timestamp() AS schedules,
                      least(t.next_due, s.next_due, p.next_due, CASE WHEN c.due > clock_timestamp() THEN c.due END,
                            CASE WHEN g.due > clock_timestamp() THEN g.due END, CASE WHEN h.due > clock_timestamp() THEN h.due END) AS next_due
               FROM tasker.begin_due_tasks($1) AS t, tasker.end_sleeps($1) AS w(woken), tasker.enqueue_due_retries($1) AS s,
                    tasker.grant_permits($1) AS p, tasker.children_due() AS c(due), tasker.signals_due() AS g(due), tasker.schedules_due() AS h(due)";
    super::again_on_conflict(|| async { Ok(sqlx::query_as(sql).bind(limit).fetch_one(db.pool()).await?) }).await
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

/// Gives those of `tasks` that have not ended this priority, and the tasks that are their steps. Returns those, of either, that had another. One that waits
/// for an orchestrator goes to where it would be if it had had it from the beginning.
pub async fn prioritize_tasks(db: &Db, tasks: &[Uuid], priority: Priority) -> Result<Vec<Uuid>> {
    super::again_on_conflict(|| async {
        let query = sqlx::query_scalar("SELECT tasker.prioritize_tasks($1, $2)").bind(tasks);
        Ok(query.bind(priority.name()).fetch_all(db.pool()).await?)
    })
    .await
}
