//! Reconciling: mending what no transaction of ours leaves behind.

use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

/// Looks at no more than `limit` tasks after `after`. Returns how many things it mended, and where to go on; None at the end.
pub async fn reconcile(db: &Db, after: Uuid, limit: i32) -> Result<(i32, Option<Uuid>)> {
    super::again_on_conflict(|| async {
        let query = sqlx::query_as("SELECT mended, last FROM tasker.reconcile($1, $2)");
        Ok(query.bind(after).bind(limit).fetch_one(db.pool()).await?)
    })
    .await
}

/// Whether notifications are left out, because PostgreSQL's queue of them fills up.
pub(crate) async fn notifications_are_stuck(db: &Db) -> Result<bool> {
    Ok(sqlx::query_scalar("SELECT tasker.notifications_are_stuck()")
        .fetch_one(db.pool())
        .await?)
}
