//! History: what is known of tasks that have ended.

use crate::db::Db;
use crate::error::Result;

/// Looks at `limit` tasks at most, and deletes those that their namespaces (`history_seconds`) do not want to know any longer. Returns how many it looked at, and deleted; where
/// it looked at fewer, there are no more for now.
pub async fn forget_tasks(db: &Db, limit: i32) -> Result<(i32, i32)> {
    super::again_on_conflict(|| async {
        let query = sqlx::query_as("SELECT looked, forgotten FROM tasker.forget_tasks($1)");
        Ok(query.bind(limit).fetch_one(db.pool()).await?)
    })
    .await
}
