//! The fleet as the database knows it: for probes, operators and metrics.

use serde_json::{json, Map, Value};

use super::everywhere::{parsed, Order, Page};
use super::repair::Broken;
use super::shards::Shards;
use super::SLICE;
use crate::db::Db;
use crate::error;

/// Namespaces that are awake or have dead letters, with their queues, dead letters, backlogs and rates; members with what they last said of
/// themselves; counters; the server. On the connection that is kept for probes.
pub(crate) async fn fleet(db: &Db) -> error::Result<Value> {
    let mut fleet = overview(db).await?;
    let mut namespaces = Map::new();
    let mut after = Some(0);
    while let Some(last) = after {
        let slice = namespaces_after(db, last, SLICE).await?;
        after = slice.last().map(|(id, ..)| *id).filter(|_| slice.len() == SLICE);
        namespaces.extend(slice.into_iter().map(|(_, name, namespace)| (name, namespace)));
    }
    fleet["namespaces"] = Value::Object(namespaces);
    Ok(fleet)
}

/// The same without the namespaces.
pub(crate) async fn overview(db: &Db) -> error::Result<Value> {
    Ok(sqlx::query_scalar("SELECT tasker.fleet()").fetch_one(db.probing_readers()).await?)
}

/// That of all shards.
pub(crate) async fn of_all(shards: &Shards) -> error::Result<Value> {
    all_of(shards, shards.ask_all(|db| async move { fleet(&db).await }).await?)
}

/// The same without the namespaces.
pub(crate) async fn overview_of_all(shards: &Shards) -> error::Result<Value> {
    all_of(shards, shards.ask_all(|db| async move { overview(&db).await }).await?)
}

fn all_of(shards: &Shards, mut fleets: Vec<(String, Value)>) -> error::Result<Value> {
    if !shards.are_several() {
        return Ok(fleets.pop().map(|(_, fleet)| fleet).unwrap_or_default());
    }
    let away = shards.away().into_iter().map(|name| (name, Err("it does not answer".to_owned())));
    Ok(of_shards(fleets.into_iter().map(|(name, fleet)| (name, Ok(fleet))).chain(away)))
}

/// That of several shards as one, with what each says for itself under `shards`; an error in place of one that does not tell. What is left of a namespace
/// where it was, before it moved, is named "namespace in shard".
pub(crate) fn of_shards(fleets: impl IntoIterator<Item = (String, Result<Value, String>)>) -> Value {
    let mut all = json!({ "asleep": 0, "members": [], "unhandled": [], "limits": [], "subscriptions": [], "namespaces": {}, "broken_queues": {}, "counters": {}, "shards": {} });
    for (shard, fleet) in fleets {
        let mut fleet = match fleet {
            Ok(fleet) => fleet,
            Err(error) => {
                all["shards"][shard] = json!({ "error": error });
                continue;
            }
        };
        for list in ["members", "unhandled", "limits", "subscriptions"] {
            let entries = fleet[list].as_array_mut().map(std::mem::take).unwrap_or_default();
            let of_shard = entries.into_iter().map(|mut entry| {
                entry["shard"] = json!(shard);
                entry
            });
            if let Some(all) = all[list].as_array_mut() {
                all.extend(of_shard);
            }
        }
        for map in ["namespaces", "broken_queues"] {
            let entries = fleet[map].as_object_mut().map(std::mem::take).unwrap_or_default();
            let named = entries.into_iter().map(|(name, entry)| match entry["moved_to"].is_null() {
                true => (name, entry),
                false => (format!("{name} in {shard}"), entry),
            });
            if let Some(all) = all[map].as_object_mut() {
                all.extend(named);
            }
        }
        for (name, count) in fleet["counters"].as_object().into_iter().flatten() {
            all["counters"][name] = json!(all["counters"][name].as_i64().unwrap_or(0) + count.as_i64().unwrap_or(0));
        }
        all["asleep"] = json!(all["asleep"].as_i64().unwrap_or(0) + fleet["asleep"].as_i64().unwrap_or(0));
        all["counted_to"] = fleet["counted_to"].take();
        all["shards"][shard] = json!({ "database": fleet["database"], "age_seconds": fleet["age_seconds"] });
    }
    all
}

/// The next `limit` namespaces behind that number, each of which takes a millisecond or two.
async fn namespaces_after(db: &Db, after: i32, limit: usize) -> error::Result<Vec<(i32, String, Value)>> {
    let query = sqlx::query_as("SELECT id, name, namespace FROM tasker.fleet_namespaces($1, $2)");
    Ok(query.bind(after).bind(limit as i32).fetch_all(db.probing_readers()).await?)
}

/// A page of the namespaces of all shards, each with its `name`.
pub(crate) async fn page_of_namespaces(shards: &Shards, cursor: Option<&str>, limit: usize) -> error::Result<Page> {
    let ask = |db: Db, after: Option<String>| async move {
        let found = namespaces_after(&db, parsed(after)?.unwrap_or(0), limit).await?;
        let next = found.last().map(|(id, ..)| id.to_string()).filter(|_| found.len() == limit);
        let named = |(id, name, mut namespace): (i32, String, Value)| {
            (namespace["id"], namespace["name"]) = (json!(id), json!(name));
            namespace
        };
        Ok((found.into_iter().map(named).collect(), next))
    };
    shards.page(cursor, limit as i32, (Order::AsFound, "id"), ask).await
}

/// How one namespace is; null: it is asleep. On the same connection.
pub(crate) async fn namespace(db: &Db, name: &str) -> error::Result<Value> {
    let query = sqlx::query_scalar("SELECT tasker.fleet_namespace($1)").bind(name);
    let found: Option<Option<Value>> = query.fetch_optional(db.probing_readers()).await?;
    Ok(found.flatten().unwrap_or_default())
}

/// The queues of these namespaces (empty: all) that cannot be worked with. On the same connection.
pub(crate) async fn unreachable_queues(db: &Db, namespaces: &[String]) -> error::Result<Vec<Broken>> {
    let filter = (!namespaces.is_empty()).then_some(namespaces);
    Ok(sqlx::query_as("SELECT queue, why FROM tasker.unreachable_queues($1)")
        .bind(filter)
        .fetch_all(db.probing_readers())
        .await?)
}
