//! The fleet as the database knows it: for probes, operators and metrics.

use serde_json::{Map, Value};

use super::repair::Broken;
use super::SLICE;
use crate::db::Db;
use crate::error::Result;

/// Namespaces that are awake or have dead letters, with their queues, dead letters, backlogs and rates; members with what they last said of
/// themselves; counters; the server. On the connection that is kept for probes.
pub(crate) async fn fleet(db: &Db) -> Result<Value> {
    let mut fleet = overview(db).await?;
    let mut namespaces = Map::new();
    let mut after = Some(0);
    while let Some(last) = after {
        let (slice, next) = namespaces_after(db, last, SLICE).await?;
        namespaces.extend(slice);
        after = next;
    }
    fleet["namespaces"] = Value::Object(namespaces);
    Ok(fleet)
}

/// The same without the namespaces, each of which takes a millisecond or two.
pub(crate) async fn overview(db: &Db) -> Result<Value> {
    Ok(sqlx::query_scalar("SELECT tasker.fleet()").fetch_one(db.probing_readers()).await?)
}

/// The next `limit` namespaces, and behind which number those after them are; None: there are none.
pub(crate) async fn namespaces_after(db: &Db, after: i32, limit: usize) -> Result<(Map<String, Value>, Option<i32>)> {
    let query = sqlx::query_as("SELECT id, name, namespace FROM tasker.fleet_namespaces($1, $2)");
    let slice: Vec<(i32, String, Value)> = query.bind(after).bind(limit as i32).fetch_all(db.probing_readers()).await?;
    let next = slice.last().map(|(id, _, _)| *id).filter(|_| slice.len() == limit);
    Ok((slice.into_iter().map(|(_, name, namespace)| (name, namespace)).collect(), next))
}

/// How one namespace is; null: it is asleep. On the same connection.
pub(crate) async fn namespace(db: &Db, name: &str) -> Result<Value> {
    let query = sqlx::query_scalar("SELECT tasker.fleet_namespace($1)").bind(name);
    let found: Option<Option<Value>> = query.fetch_optional(db.probing_readers()).await?;
    Ok(found.flatten().unwrap_or_default())
}

/// The queues of these namespaces (empty: all) that cannot be worked with. On the same connection.
pub(crate) async fn unreachable_queues(db: &Db, namespaces: &[String]) -> Result<Vec<Broken>> {
    let filter = (!namespaces.is_empty()).then_some(namespaces);
    Ok(sqlx::query_as("SELECT queue, why FROM tasker.unreachable_queues($1)")
        .bind(filter)
        .fetch_all(db.probing_readers())
        .await?)
}
