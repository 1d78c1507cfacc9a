//! What handlers leave while they run: for their own next run, and for others to read (see `migrations/0030_memories.sql`).

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::lease::Lease;
use crate::db::Db;
use crate::error::Result;

/// What a step remembers under a name.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Memory {
    /// Unique within the step.
    pub name: String,
    /// JSON. None: there is none, or it is left out.
    pub value: Option<String>,
    /// For how long the step still has to sleep.
    pub seconds: Option<f64>,
    /// The value is too large to come along: ask by its name.
    pub left_out: bool,
}

/// How many bytes of values come along.
const BYTES: i64 = 1 << 20;

/// What a step remembers: everything, or only what has this name, with its value. Errors: those of the database.
pub(crate) async fn recall(db: &Db, task: Uuid, step: i16, name: Option<&str>) -> Result<Vec<Memory>> {
    let query = sqlx::query_as("SELECT name, value, seconds, left_out FROM tasker.recall($1, $2, $3, $4)");
    let bytes = if name.is_some() { i64::MAX } else { BYTES };
    Ok(query.bind(task).bind(step).bind(name).bind(bytes).fetch_all(db.pool()).await?)
}

/// Remembers a value (JSON) under a name, unless something is; with `sleep`, until when the step sleeps. False: it is no longer the caller's.
pub(crate) async fn remember(
    db: &Db,
    queue: &str,
    lease: &Lease,
    name: &str,
    value: Option<&str>,
    sleep: Option<Duration>,
) -> Result<bool> {
    let query = lease.still_holds(
        "SELECT tasker.remember($1, $2, $3, $4, $5, $6, $7::jsonb, $8 * interval '1 second')",
        queue,
    );
    Ok(query
        .bind(name)
        .bind(value)
        .bind(sleep.map(|sleep| sleep.as_secs_f64()))
        .fetch_one(db.pool())
        .await?)
}

/// For which signal a handler waits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Awaited {
    /// The signal's name.
    pub signal: String,
    /// By which it may be sent, beside the task's id.
    pub key: Option<String>,
    /// None: for as long as it takes.
    pub timeout: Option<Duration>,
}

/// Begins to wait for a signal, which the step will remember under `name`: its payload, or nothing when its time was over. False: the step is no longer
/// the caller's.
pub(crate) async fn await_signal(db: &Db, queue: &str, lease: &Lease, name: &str, awaited: &Awaited) -> Result<bool> {
    let query = lease.still_holds(
        "SELECT tasker.await_signal($1, $2, $3, $4, $5, $6, $7, $8, $9 * interval '1 second')",
        queue,
    );
    let query = query.bind(name).bind(&awaited.signal).bind(&awaited.key);
    Ok(query
        .bind(awaited.timeout.map(|timeout| timeout.as_secs_f64()))
        .fetch_one(db.pool())
        .await?)
}

/// Sets a value of the task (JSON), for whoever reads it. False: the step is no longer the caller's.
pub(crate) async fn publish(db: &Db, queue: &str, lease: &Lease, name: &str, value: &str) -> Result<bool> {
    let query = lease.still_holds("SELECT tasker.publish_value($1, $2, $3, $4, $5, $6, $7::jsonb)", queue);
    Ok(query.bind(name).bind(value).fetch_one(db.pool()).await?)
}

/// What the handlers of a task have said with [`Step::publish`](crate::worker::Step::publish): an object. Errors: those of the database.
pub async fn read_values(db: &Db, task: Uuid) -> Result<Value> {
    Ok(sqlx::query_scalar("SELECT tasker.read_values($1)")
        .bind(task)
        .fetch_one(db.pool())
        .await?)
}
