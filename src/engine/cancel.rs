//! Cancelling tasks.

use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

/// Cancels those of `tasks` that have not ended, and returns them. A running handler learns of it at its next heartbeat.
pub async fn cancel_tasks(db: &Db, tasks: &[Uuid]) -> Result<Vec<Uuid>> {
    cancelled(db, tasks, false).await
}

/// The same, and what they did is undone, also of those that have ended; but not of children that have, whose effects are undone with their parents'.
/// They are undoing until it is.
pub async fn undo_tasks(db: &Db, tasks: &[Uuid]) -> Result<Vec<Uuid>> {
    cancelled(db, tasks, true).await
}

async fn cancelled(db: &Db, tasks: &[Uuid], undo: bool) -> Result<Vec<Uuid>> {
    super::again_on_conflict(|| async {
        Ok(sqlx::query_scalar("SELECT tasker.cancel_tasks($1, $2)")
            .bind(tasks)
            .bind(undo)
            .fetch_all(db.pool())
            .await?)
    })
    .await
}
