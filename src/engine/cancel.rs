//! Cancelling tasks.

use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

/// Cancels those of `tasks` that have not ended, and returns them. A running handler learns of it at its next heartbeat.
pub async fn cancel_tasks(db: &Db, tasks: &[Uuid]) -> Result<Vec<Uuid>> {
    super::again_on_conflict(|| async {
        Ok(sqlx::query_scalar("SELECT tasker.cancel_tasks($1)")
            .bind(tasks)
            .fetch_all(db.pool())
            .await?)
    })
    .await
}
