//! Dead letters: looking at them, and what an operator does about them. Each action is recorded with who did it and why.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::payload::check_payload;
use super::read::read_results;
use super::schema::check_for_tasks;
use super::shards::Shards;
use crate::db::Db;
use crate::error::{Error, Result};

/// Which letters; what is None (or empty) filters nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// The namespace of the step's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// What was to run the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// attempts_exhausted, permanent_error, timeout, payload_too_large, poison, deadline, stuck; and, of messages that are
    /// no step's: not_a_step, unknown_task, unknown_step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The class of the last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The task's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// One of these tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Uuid>,
    /// Seconds since it died, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<f64>,
    /// Seconds since it died, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<f64>,
    /// Only these, as namespace/number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// The last of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Of each namespace, only so many of its newest letters: the bound of what one look costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<u32>,
}

/// [`Filter::newest`] of a page: what groups say is of these.
pub(crate) const NEWEST: u32 = 10_000;

/// Who does something, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct By {
    /// A person's name, or a program's.
    pub who: String,
    /// For those who read the record.
    #[serde(default)]
    pub why: Option<String>,
}

/// How to replay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replay {
    /// In place of the tasks' input.
    pub input: Option<Value>,
    /// In place of the steps' own.
    pub max_attempts: Option<u16>,
    /// How many steps begin in a second; None: all at once.
    pub per_second: Option<f64>,
}

impl Replay {
    pub(crate) fn check(&self) -> Result<()> {
        if self.input.as_ref().is_some_and(|input| !input.is_object()) {
            return Err(Error::Invalid("the input must be a JSON object".into()));
        }
        if let Some(input) = &self.input {
            check_payload("the input", &input.to_string())?;
        }
        if self.per_second.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(Error::Invalid("per_second must be more than 0".into()));
        }
        if self.max_attempts.is_some_and(|attempts| !(1..=1_000).contains(&attempts)) {
            return Err(Error::Invalid("max_attempts must be 1 to 1000".into()));
        }
        Ok(())
    }
}

/// How many letters one transaction takes.
const BATCH: usize = 200;

impl Filter {
    fn check(&self) -> Result<()> {
        check_ids(self.ids.iter().chain(&self.before))
    }
}

fn check_ids<'a>(mut ids: impl Iterator<Item = &'a String>) -> Result<()> {
    let is_id = |id: &str| {
        id.split_once('/')
            .is_some_and(|(namespace, number)| !namespace.is_empty() && number.parse::<i64>().is_ok())
    };
    match ids.find(|id| !is_id(id)) {
        Some(id) => Err(Error::Invalid(format!(
            "{id:?} is not the id of a dead letter: expected namespace/number"
        ))),
        None => Ok(()),
    }
}

/// At most `limit` letters, the newest first, without what is large: of an input only `input_bytes`, of many errors the last.
pub async fn list(db: &Db, filter: &Filter, limit: i32) -> Result<Vec<Value>> {
    filter.check()?;
    let mut letters: Vec<Value> = Vec::new();
    for slice in slices(db, filter).await? {
        let query = sqlx::query_scalar("SELECT tasker.list_dead_letters($1, $2)");
        letters.extend::<Vec<Value>>(query.bind(Json(&slice)).bind(limit).fetch_all(db.readers()).await?);
    }
    // As each slice is ordered: PostgreSQL writes all times in one zone, with as many digits as they need.
    letters.sort_by(|a, b| (died_at(b), b["id"].as_str()).cmp(&(died_at(a), a["id"].as_str())));
    letters.truncate(limit.max(0) as usize);
    let hidden = db.hidden();
    letters.iter_mut().for_each(|letter| hidden.hide_fields(letter, &["input"]));
    Ok(letters)
}

fn died_at(letter: &Value) -> Option<DateTime<Utc>> {
    letter["died_at"].as_str()?.parse().ok()
}

/// What looks at all namespaces that have letters does so in slices: each letter's queue is a table of its own.
async fn slices(db: &Db, filter: &Filter) -> Result<Vec<Value>> {
    let written = serde_json::json!(filter);
    if filter.namespace.is_some() || !filter.ids.is_empty() {
        return Ok(vec![written]);
    }
    let namespaces: Vec<String> = sqlx::query_scalar("SELECT tasker.lettered_namespaces()")
        .fetch_all(db.pool())
        .await?;
    let slice = |namespaces: &[String]| {
        let mut slice = written.clone();
        slice["namespaces"] = serde_json::json!(namespaces);
        slice
    };
    Ok(namespaces.chunks(super::SLICE).map(slice).collect())
}

/// How many bytes of results [`show`] shows.
const RESULTS: i64 = 1 << 24;

/// One letter, with the names of the steps that have results. Errors: [`Error::NotFound`].
async fn read(db: &Db, id: &str) -> Result<Value> {
    let filter = Filter {
        ids: vec![id.to_owned()],
        ..Filter::default()
    };
    filter.check()?;
    let found: Option<Value> = sqlx::query_scalar("SELECT tasker.list_dead_letters($1, 1, true)")
        .bind(Json(&filter))
        .fetch_optional(db.pool())
        .await?;
    found.ok_or_else(|| Error::NotFound(format!("no dead letter {id}")))
}

/// What is hidden of an input that is to take the place of these letters' is that of the one letter there is.
async fn restore(db: &Db, input: &mut Value, ids: &[String]) -> Result<()> {
    let hidden = db.hidden();
    if hidden.restore(&mut input.clone(), None).is_ok() {
        return Ok(());
    }
    let letter = match ids {
        [id] => Some(read(db, id).await?),
        _ => None,
    };
    hidden.restore(input, letter.as_ref().and_then(|letter| letter.get("input")))
}

/// One letter, whole; `results` are those that its task has, by step, in order as long as they have no more than 16 MiB. Errors: [`Error::NotFound`].
pub async fn show(db: &Db, id: &str) -> Result<Value> {
    let mut letter = read(db, id).await?;
    db.hidden().hide_fields(&mut letter, &["input"]);
    let names: Vec<String> = serde_json::from_value(letter["results"].take()).unwrap_or_default();
    let task = letter["task"].as_str().and_then(|task| task.parse().ok());
    if let Some(task) = task.filter(|_| !names.is_empty()) {
        let results = read_results(db, task, None, &names, Some(RESULTS)).await?;
        let parse = |(name, json): (String, String)| Some((name, serde_json::from_str(&json).ok()?));
        letter["results"] = Value::Object(results.into_iter().filter_map(parse).collect());
    }
    Ok(letter)
}

/// The letters by namespace, template, step, reason and class of error, the largest group first.
pub async fn groups(db: &Db, filter: &Filter) -> Result<Vec<Value>> {
    filter.check()?;
    let mut groups: Vec<Value> = Vec::new();
    for slice in slices(db, filter).await? {
        let query = sqlx::query_scalar("SELECT tasker.group_dead_letters($1)");
        groups.extend::<Vec<Value>>(query.bind(Json(&slice)).fetch_all(db.readers()).await?);
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group["count"].as_i64()));
    Ok(groups)
}

/// The ids of all letters that `filter` lets through, the oldest first: what an action on it would concern.
pub async fn matching(db: &Db, filter: &Filter) -> Result<Vec<String>> {
    filter.check()?;
    let mut found: Vec<(DateTime<Utc>, String)> = Vec::new();
    for slice in slices(db, filter).await? {
        let query = sqlx::query_as("SELECT died_at, id FROM tasker.find_dead_letters($1, NULL)");
        found.extend::<Vec<_>>(query.bind(Json(&slice)).fetch_all(db.pool()).await?);
    }
    found.sort();
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

/// The letters of these tasks, by their ids, each with its task.
pub async fn of_tasks(db: &Db, tasks: &[Uuid]) -> Result<BTreeMap<String, Uuid>> {
    let filter = Filter {
        tasks: tasks.to_vec(),
        ..Filter::default()
    };
    with_tasks(db, &filter).await
}

/// Letters of steps, by their ids, each with its task.
async fn with_tasks(db: &Db, filter: &Filter) -> Result<BTreeMap<String, Uuid>> {
    let mut found = BTreeMap::new();
    for slice in slices(db, filter).await? {
        let query = sqlx::query_as("SELECT id, (letter ->> 'task')::uuid FROM tasker.find_dead_letters($1, NULL) WHERE letter ? 'task'");
        found.extend::<Vec<(String, Uuid)>>(query.bind(Json(&slice)).fetch_all(db.pool()).await?);
    }
    Ok(found)
}

/// Whether these letters can be replayed so, without doing it: those that would be, as far as can be known before. Errors: as [`replay`]'s.
pub async fn check_replay(db: &Db, ids: &[String], how: &Replay) -> Result<Vec<String>> {
    input_for(db, ids, how).await?;
    let mut found = BTreeMap::new();
    for batch in batches(ids)? {
        found.extend(of_ids(db, batch).await?);
    }
    Ok(found.into_keys().collect())
}

async fn of_ids(db: &Db, ids: &[String]) -> Result<BTreeMap<String, Uuid>> {
    let filter = Filter {
        ids: ids.to_vec(),
        ..Filter::default()
    };
    with_tasks(db, &filter).await
}

/// What takes the place of the tasks' input, with what is hidden of it. Errors: [`Error::Invalid`] where it is not acceptable for one of them.
async fn input_for(db: &Db, ids: &[String], how: &Replay) -> Result<Option<Value>> {
    how.check()?;
    let Some(mut input) = how.input.clone() else { return Ok(None) };
    restore(db, &mut input, ids).await?;
    for batch in batches(ids)? {
        let tasks: Vec<Uuid> = of_ids(db, batch).await?.into_values().collect();
        check_for_tasks(db, &tasks, &input.to_string()).await?;
    }
    Ok(Some(input))
}

/// Lets the steps of these letters start over. Returns those that it replayed; a letter whose task was cancelled meanwhile, or that is no
/// step's, is left where it is. Errors: [`Error::Invalid`] for an input that an `input_schema` does not accept; nothing is replayed then.
pub async fn replay(db: &Db, ids: &[String], how: &Replay, by: &By) -> Result<Vec<String>> {
    let input = input_for(db, ids, how).await?;
    let mut replayed: Vec<String> = Vec::new();
    for batch in batches(ids)? {
        let query = sqlx::query_scalar("SELECT tasker.replay_dead_letters($1, $2, $3, $4, $5, $6, $7)");
        let query = query
            .bind(batch)
            .bind(input.as_ref().map(Json))
            .bind(how.max_attempts.map(i32::from))
            .bind(how.per_second);
        replayed.extend::<Vec<String>>(
            query
                .bind(replayed.len() as i32)
                .bind(&by.who)
                .bind(&by.why)
                .fetch_all(db.pool())
                .await?,
        );
    }
    Ok(replayed)
}

/// Ends the steps of these letters by hand: complete with `result` or, where that is None, skipped. Their tasks go on.
/// Returns those that it settled.
pub async fn settle(db: &Db, ids: &[String], result: Option<&Value>, by: &By) -> Result<Vec<String>> {
    if let Some(result) = result {
        check_payload("the result", &result.to_string())?;
        db.hidden().restore(&mut result.clone(), None)?;
    }
    let mut settled = Vec::new();
    for batch in batches(ids)? {
        let query = sqlx::query_scalar("SELECT tasker.settle_dead_letters($1, $2, $3, $4)");
        settled.extend::<Vec<String>>(
            query
                .bind(batch)
                .bind(result.map(Json))
                .bind(&by.who)
                .bind(&by.why)
                .fetch_all(db.pool())
                .await?,
        );
    }
    Ok(settled)
}

/// Deletes letters after recording them whole; tasks that they blocked have failed. Returns those that it deleted.
pub async fn discard(db: &Db, ids: &[String], by: &By) -> Result<Vec<String>> {
    delete(db, ids, "discard", by).await
}

/// How many letters one statement looks at to find those whose time is over: each may have megabytes.
const LOOKED_AT: i32 = 500;

/// Deletes the letters that are older than their retention, recording each. Returns how many.
pub async fn purge(db: &Db, by: &By) -> Result<usize> {
    let namespaces: Vec<String> = sqlx::query_scalar("SELECT tasker.lettered_namespaces()")
        .fetch_all(db.pool())
        .await?;
    let mut purged = 0;
    for namespace in namespaces {
        let mut after = Some(0);
        while let Some(last) = after {
            let query = sqlx::query_as("SELECT expired, last FROM tasker.expired_dead_letters($1, $2, $3)");
            let query = query.bind(&namespace).bind(last).bind(LOOKED_AT);
            let (expired, next): (Option<Vec<String>>, Option<i64>) = query.fetch_one(db.pool()).await?;
            purged += delete(db, &expired.unwrap_or_default(), "purge", by).await?.len();
            after = next;
        }
        sqlx::query("SELECT tasker.forget_letterless($1)")
            .bind(&namespace)
            .execute(db.pool())
            .await?;
    }
    Ok(purged)
}

/// What was done, the newest first.
pub async fn actions(db: &Db, limit: i32) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.list_dead_letter_actions($1)");
    let mut actions: Vec<Value> = query.bind(limit).fetch_all(db.pool()).await?;
    let hidden = db.hidden();
    for action in &mut actions {
        let details = &mut action["details"];
        hidden.hide_fields(details, &["input", "result"]);
        hidden.hide_within(details, &["letter", "input"]);
    }
    Ok(actions)
}

async fn delete(db: &Db, ids: &[String], action: &str, by: &By) -> Result<Vec<String>> {
    let mut deleted = Vec::new();
    for batch in batches(ids)? {
        let query = sqlx::query_scalar("SELECT tasker.delete_dead_letters($1, $2, $3, $4)");
        deleted.extend::<Vec<String>>(
            query
                .bind(batch)
                .bind(action)
                .bind(&by.who)
                .bind(&by.why)
                .fetch_all(db.pool())
                .await?,
        );
    }
    Ok(deleted)
}

/// The ids, if each is one, in pieces for one transaction each.
fn batches(ids: &[String]) -> Result<std::slice::Chunks<'_, String>> {
    check_ids(ids.iter())?;
    Ok(ids.chunks(BATCH))
}

/// What is done to letters.
#[derive(Debug, Clone, PartialEq)]
pub enum Verb {
    /// [`replay`]
    Replay(Replay),
    /// [`settle`] with this result.
    Resolve(Value),
    /// [`settle`] without one.
    Skip,
    /// [`discard`]
    Discard,
}

impl Verb {
    /// Does it to letters of one shard.
    pub(crate) async fn act(&self, db: &Db, ids: &[String], by: &By) -> Result<Vec<String>> {
        match self {
            Verb::Replay(how) => replay(db, ids, how, by).await,
            Verb::Resolve(result) => settle(db, ids, Some(result), by).await,
            Verb::Skip => settle(db, ids, None, by).await,
            Verb::Discard => discard(db, ids, by).await,
        }
    }

    /// Does it to these letters, shard by shard, each in its own transactions. Returns those to which it was done.
    pub async fn act_on_all(&self, shards: &Shards, ids: Vec<String>, by: &By) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for (db, ids) in shards.of_letters(ids).await? {
            done.extend(self.act(&db, &ids, by).await?);
        }
        Ok(done)
    }
}

/// Deletes those whose time is over, in all shards. Returns how many.
pub async fn purge_of_all(shards: &Shards, by: &By) -> Result<usize> {
    let purged = shards.ask_all(|db| async move { purge(&db, by).await }).await?;
    Ok(purged.iter().map(|(_, purged)| purged).sum())
}
