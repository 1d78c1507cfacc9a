//! The fleet as the database knows it: for probes, operators and metrics.

use serde_json::{Map, Value};

use super::repair::Broken;
use super::SLICE;
use crate::db::Db;
use crate::error::Result;

/// Namespaces that are awake or have dead letters, with their queues, dead letters, backlogs and rates; members with what they last said of
/// themselves; counters; the server. On the connection that is kept for probes.
pub(crate) async fn fleet(db: &Db) -> Result<Value> {
    let mut fleet: Value = sqlx::query_scalar("SELECT tasker.fleet()").fetch_one(db.probes()).await?;
    let mut namespaces = Map::new();
    let mut after = 0;
    loop {
        let query = sqlx::query_as("SELECT id, name, namespace FROM tasker.fleet_namespaces($1, $2)");
        let slice: Vec<(i32, String, Value)> = query.bind(after).bind(SLICE as i32).fetch_all(db.probes()).await?;
        let more = slice.len() == SLICE;
        for (id, name, namespace) in slice {
            after = id;
            namespaces.insert(name, namespace);
        }
        if !more {
            break;
        }
    }
    fleet["namespaces"] = Value::Object(namespaces);
    Ok(fleet)
}

/// The queues of these namespaces (empty: all) that cannot be worked with. On the same connection.
pub(crate) async fn unreachable_queues(db: &Db, namespaces: &[String]) -> Result<Vec<Broken>> {
    let filter = (!namespaces.is_empty()).then_some(namespaces);
    Ok(sqlx::query_as("SELECT queue, why FROM tasker.unreachable_queues($1)")
        .bind(filter)
        .fetch_all(db.probes())
        .await?)
}
