//! The fleet as the database knows it: for probes, operators and metrics.

use serde_json::Value;

use crate::db::Db;
use crate::error::Result;

/// Namespaces with their queues, dead letters, backlogs and rates; members with what they last said of themselves; counters; the server. On the
/// connection that is kept for probes.
pub(crate) async fn fleet(db: &Db) -> Result<Value> {
    Ok(sqlx::query_scalar("SELECT tasker.fleet()").fetch_one(db.probes()).await?)
}

/// The queues of these namespaces (empty: all) that cannot be worked with. On the same connection.
pub(crate) async fn unreachable_queues(db: &Db, namespaces: &[String]) -> Result<Vec<String>> {
    let filter = (!namespaces.is_empty()).then_some(namespaces);
    Ok(sqlx::query_scalar("SELECT tasker.unreachable_queues($1)")
        .bind(filter)
        .fetch_all(db.probes())
        .await?)
}
