//! Signals: what somebody says to a task that is under way (see `migrations/0029_signals.sql`).

use std::time::Duration;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::payload::{check_payload, has_nul};
use super::schema::{problems_of, validator};
use super::shards::Shards;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::redaction::Redaction;

/// For whom a signal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressee {
    /// One task.
    Task(Uuid),
    /// Every task that waits with that key.
    Key(String),
}

/// A signal to be sent.
#[derive(Debug, Clone)]
pub struct Signal {
    /// For whom.
    pub to: Addressee,
    /// What the steps wait for by.
    pub name: String,
    /// JSON: the result of the step that waits.
    pub payload: String,
    /// The sender's own id of it: for its addressee, the same counts once.
    pub id: Option<String>,
    /// How long it is kept, and its id known. None: [`KEEP`].
    pub keep: Option<Duration>,
}

/// How long a signal is kept whose sender does not say.
pub const KEEP: Duration = Duration::from_secs(7 * 86_400);

/// What became of a [`Signal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Sent {
    /// awaited (somebody waits for it now), kept (nobody does yet), duplicate (its id is known), or late (its task has ended).
    pub outcome: String,
    /// What looks like a mistake.
    pub note: Option<String>,
}

/// Sends a signal inside the caller's own transaction, on the caller's connection, after [`check`]: a row of outcome and note. The parameters: name,
/// task, key, payload as JSON, id, and for how many seconds it is kept.
pub const SEND_WITHIN: &str = "
    SELECT outcome, note FROM tasker.send_signal($1, $2::uuid, $3, $4::jsonb, $5, $6::float8 * interval '1 second')";

/// Checks what [`send`] would check.
/// Errors: [`Error::Invalid`] for a payload that the waits of that name do not accept, [`Error::TooLarge`].
pub async fn check(db: &Db, signal: &Signal) -> Result<()> {
    check_payload("the payload", &signal.payload)?;
    if has_nul(&signal.payload) {
        return Err(Error::Invalid(
            "the payload contains the character U+0000, which PostgreSQL cannot store".into(),
        ));
    }
    let mut payload = parse(&signal.payload)?;
    db.hidden().restore(&mut payload, None)?;
    let (task, key) = signal.to.parts();
    let schemas: Vec<Value> = sqlx::query_scalar("SELECT tasker.signal_schemas($1, $2, $3)")
        .bind(&signal.name)
        .bind(task)
        .bind(key)
        .fetch_all(db.pool())
        .await?;
    accept(&signal.name, &payload, &schemas, db.redaction())
}

/// Errors: [`Error::Invalid`] unless the payload (JSON) satisfies all of these schemas.
pub fn check_payload_by(name: &str, payload: &str, schemas: &[Value]) -> Result<()> {
    accept(name, &parse(payload)?, schemas, &Redaction::default())
}

fn parse(payload: &str) -> Result<Value> {
    serde_json::from_str(payload).map_err(|error| Error::Invalid(format!("the payload is not JSON: {error}")))
}

fn accept(name: &str, payload: &Value, schemas: &[Value], redaction: &Redaction) -> Result<()> {
    for schema in schemas {
        if let Some(problems) = problems_of(&validator(schema)?, payload, redaction) {
            return Err(Error::Invalid(format!(
                "the payload is not what a step that waits for {name:?} accepts: {problems}"
            )));
        }
    }
    Ok(())
}

/// Sends a signal.
/// Errors: [`Error::NotFound`] for a task that does not exist, [`Error::Invalid`] for a name, key, id or payload that is not acceptable,
/// [`Error::TooLarge`].
pub async fn send(db: &Db, signal: &Signal) -> Result<Sent> {
    check(db, signal).await?;
    let (task, key) = signal.to.parts();
    let query = sqlx::query_as(SEND_WITHIN)
        .bind(&signal.name)
        .bind(task)
        .bind(key)
        .bind(&signal.payload);
    let query = query.bind(&signal.id).bind(signal.keep.unwrap_or(KEEP).as_secs_f64());
    Ok(query.fetch_one(db.pool()).await?)
}

/// Sends it to whoever has its addressee: of a key, all shards have tasks that may wait with it. Errors: as [`send`]'s; then it may be sent again, with
/// its id.
pub async fn send_to(shards: &Shards, signal: &Signal) -> Result<Sent> {
    let mut sent = match signal.to {
        Addressee::Task(task) => return send(&shards.of_task(task).await?, signal).await,
        Addressee::Key(_) => {
            try_join_all(
                shards
                    .names()
                    .map(|name| async move { send(&shards.named(name).await?, signal).await }),
            )
            .await?
        }
    };
    let heard = sent.iter().position(|sent| sent.outcome == "awaited").unwrap_or_default();
    Ok(sent.swap_remove(heard))
}

impl Addressee {
    fn parts(&self) -> (Option<Uuid>, Option<&str>) {
        match self {
            Addressee::Task(task) => (Some(*task), None),
            Addressee::Key(key) => (None, Some(key)),
        }
    }
}

/// Brings waits and signals together, and ends waits whose time is over: of at most `limit` tasks. Returns of how many.
pub(crate) async fn match_signals(db: &Db, limit: i32) -> Result<i32> {
    let sql = "SELECT tasker.match_signals($1)";
    super::again_on_conflict(|| async { Ok(sqlx::query_scalar(sql).bind(limit).fetch_one(db.pool()).await?) }).await
}

/// Forgets the signals whose time is over. Returns of how many nobody has ever heard.
pub(crate) async fn forget(db: &Db) -> Result<i32> {
    let mut unclaimed = 0;
    loop {
        let (looked_at, forgotten): (i32, i32) = sqlx::query_as("SELECT looked_at, unclaimed FROM tasker.forget_signals($1)")
            .bind(SLICE)
            .fetch_one(db.pool())
            .await?;
        unclaimed += forgotten;
        if looked_at < SLICE {
            return Ok(unclaimed);
        }
    }
}

/// How many are forgotten in one transaction.
const SLICE: i32 = 1_000;

/// Which waits to list. None filters nothing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WaitFilter {
    /// Of the tasks of this namespace.
    pub namespace: Option<String>,
    /// For this signal.
    pub signal: Option<String>,
    /// That this person is asked to send.
    pub assignee: Option<String>,
    /// Behind that task's.
    pub after: Option<Uuid>,
}

/// What waits for a signal, those first that have waited longest, at most `limit`: objects of task, template, namespace, step, signal, key, since, due_at,
/// times_out_at, assignees and form.
pub async fn list_waits(db: &Db, filter: &WaitFilter, limit: i32) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.list_waits($1, $2, $3, $4, $5)");
    let query = query.bind(&filter.namespace).bind(&filter.signal).bind(&filter.assignee);
    Ok(query.bind(filter.after).bind(limit).fetch_all(db.readers()).await?)
}

/// Which signals to list. None filters nothing.
#[derive(Debug, Clone, Default)]
pub struct SignalFilter {
    /// Of this name.
    pub name: Option<String>,
    /// For this task.
    pub task: Option<Uuid>,
    /// For this key.
    pub key: Option<String>,
    /// Only those that nobody has had.
    pub unclaimed: bool,
}

/// The newest signals that are not forgotten, at most `limit`: objects of id, name, task, key, sender_id, sent_at, keep_until, received and payload.
pub async fn list_signals(db: &Db, filter: &SignalFilter, limit: i32) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.list_signals($1, $2, $3, $4, $5)");
    let query = query.bind(&filter.name).bind(filter.task).bind(&filter.key);
    let mut signals: Vec<Value> = query.bind(filter.unclaimed).bind(limit).fetch_all(db.readers()).await?;
    let hidden = db.hidden();
    signals.iter_mut().for_each(|signal| hidden.hide_fields(signal, &["payload"]));
    Ok(signals)
}
