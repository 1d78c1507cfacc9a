//! Schedules: tasks that begin at their times, each once (see `migrations/0031_schedules.sql`). Which times these are [`crate::schedule`] says.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{json, Value};
use sqlx::types::Json;
use uuid::Uuid;

use super::shards::Shards;
use crate::db::Db;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Due, Named, Schedule};

/// A schedule about which there is something to do.
#[derive(Debug, sqlx::FromRow)]
struct DueSchedule {
    id: i64,
    name: String,
    revision: i32,
    definition: Json<Schedule>,
    since: DateTime<Utc>,
    next_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
}

/// How many times of a schedule one transaction begins.
const TIMES: usize = 100;

/// Begins the tasks of at most `limit` schedules whose time has come. Returns how many.
pub(crate) async fn fire_schedules(db: &Db, limit: i32) -> Result<i32> {
    let due: Vec<DueSchedule> = sqlx::query_as("SELECT * FROM tasker.due_schedules($1)")
        .bind(limit)
        .fetch_all(db.pool())
        .await?;
    let mut began = 0;
    for schedule in due {
        let times = match schedule.definition.times() {
            Ok(times) => times,
            // Another release's, perhaps: whoever can read it goes on with it.
            Err(problem) => {
                tracing::error!(schedule = schedule.name, problem, "a schedule cannot be read");
                continue;
            }
        };
        let due = match schedule.next_at {
            Some(next) => times.due(next, schedule.now, TIMES),
            None => Due {
                times: Vec::new(),
                next: times.after(schedule.since),
            },
        };
        let fired = super::again_on_conflict(|| async {
            let query = sqlx::query_scalar("SELECT tasker.fire_schedule($1, $2, $3, $4, $5)")
                .bind(schedule.id)
                .bind(schedule.revision);
            Ok(query
                .bind(schedule.next_at)
                .bind(&due.times)
                .bind(due.next)
                .fetch_one(db.pool())
                .await?)
        });
        let count: i32 = fired.await?;
        if count > 0 {
            tracing::info!(schedule = schedule.name, tasks = count, "tasks of a schedule begin");
        }
        began += count;
    }
    Ok(began)
}

/// Creates a schedule of tasks of `template` (name or namespace/name), or changes it: its old form never begins anything from then on. Returns `created`,
/// `changed` or `unchanged`.
/// Errors: [`Error::NotFound`] for an unknown template, [`Error::Invalid`] when it belongs to a template or to a file of settings, or its name is not
/// acceptable.
pub async fn put(db: &Db, name: &str, template: &str, schedule: &Schedule) -> Result<String> {
    if !(1..=200).contains(&name.chars().count()) || name.contains(['\0', ':']) {
        return Err(Error::Invalid(format!(
            "the name {name:?} is not acceptable: expected 1 to 200 characters, and no colon"
        )));
    }
    let query = sqlx::query_scalar("SELECT tasker.put_schedule($1, $2, $3, 'operator')");
    let mut schedule = schedule.clone();
    if let Some(input) = &mut schedule.input {
        let query = sqlx::query_scalar("SELECT tasker.list_schedules($1, 0)").bind(name);
        let known: Option<Value> = query.fetch_optional(db.pool()).await?;
        db.hidden()
            .restore(input, known.as_ref().and_then(|known| known["definition"].get("input")))?;
    }
    Ok(query.bind(name).bind(template).bind(Json(&schedule)).fetch_one(db.pool()).await?)
}

/// A schedule with its last `count` times, and the database that has it. Errors: [`Error::NotFound`]; why one does not answer that may have it.
pub async fn find(shards: &Shards, name: &str, count: i32) -> Result<(Db, Value)> {
    shards.find(|db| async move { show(&db, name, count).await }).await
}

/// Where a schedule is to be of this template. Its name is that of one, in all shards. Errors: [`Error::Invalid`] where another shard has it; why one does not answer
/// that may have it.
pub async fn home_for(shards: &Shards, name: &str, template: &str) -> Result<Db> {
    let home = shards.of_template(template).await?;
    if shards.are_several() {
        match find(shards, name, 0).await {
            Ok((db, _)) if db.target() != home.target() => {
                return Err(Error::Invalid(format!(
                    "there is a schedule {name} in another shard: delete it first"
                )));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(home)
}

/// Has the file of settings no other schedules than these: by name, each with its template.
/// Errors: [`Error::NotFound`] for an unknown template; nothing is changed then.
pub async fn put_of_file(db: &Db, schedules: &Named) -> Result<()> {
    let definition = |(name, (template, schedule)): (&String, &(String, Schedule))| {
        let mut definition = json!(schedule);
        definition["template"] = json!(template);
        (name.clone(), definition)
    };
    let all: Value = schedules.iter().map(definition).collect();
    sqlx::query("SELECT tasker.put_schedules(NULL, $1)")
        .bind(all)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Deletes a schedule; what it began goes on. Errors: [`Error::NotFound`]; [`Error::Invalid`] when it belongs to a template or to a file of settings.
pub async fn delete(db: &Db, name: &str) -> Result<()> {
    let deleted = sqlx::query_scalar("SELECT tasker.delete_schedule($1)")
        .bind(name)
        .fetch_one(db.pool())
        .await?;
    found(name, deleted)
}

/// Pauses a schedule, or lets it go on: what would have been meanwhile does not begin. Errors: [`Error::NotFound`].
pub async fn pause(db: &Db, name: &str, paused: bool, who: &str, why: Option<&str>) -> Result<()> {
    let query = sqlx::query_scalar("SELECT tasker.pause_schedule($1, $2, $3, $4)");
    found(name, query.bind(name).bind(paused).bind(who).bind(why).fetch_one(db.pool()).await?)
}

/// Begins a task of a schedule now, beside what runs. Returns its id. Errors: [`Error::NotFound`].
pub async fn trigger(db: &Db, name: &str) -> Result<Vec<Uuid>> {
    begin(db, name, None).await
}

/// Begins a task for each time of a schedule from `from` to `until`, beside what runs, but for those that have had one. Returns the ids.
/// Errors: [`Error::NotFound`]; [`Error::Invalid`] for more than 10,000 times.
pub async fn backfill(db: &Db, name: &str, from: DateTime<Utc>, until: DateTime<Utc>) -> Result<Vec<Uuid>> {
    let definition: Schedule = serde_json::from_value(show(db, name, 0).await?["definition"].take())
        .map_err(|error| Error::Invalid(format!("the schedule {name} cannot be read: {error}")))?;
    let times = definition.times().map_err(Error::Invalid)?;
    let mut times = times.take(from - chrono::TimeDelta::microseconds(1), MOST_TIMES + 1);
    times.retain(|time| *time <= until);
    if times.len() > MOST_TIMES {
        return Err(Error::Invalid(format!("more than {MOST_TIMES} times: do it in parts")));
    }
    let mut tasks = Vec::new();
    for slice in times.chunks(TIMES) {
        tasks.extend(begin(db, name, Some(slice)).await?);
    }
    Ok(tasks)
}

/// How many times are caught up by hand at once.
const MOST_TIMES: usize = 10_000;

async fn begin(db: &Db, name: &str, times: Option<&[DateTime<Utc>]>) -> Result<Vec<Uuid>> {
    let query = sqlx::query_scalar("SELECT tasker.trigger_schedule($1, $2)").bind(name).bind(times);
    Ok(query.fetch_all(db.pool()).await?)
}

/// The schedules, by name: objects of name, template, definition, owner, since, next_at, paused and last.
pub async fn list(db: &Db) -> Result<Vec<Value>> {
    let mut schedules: Vec<Value> = sqlx::query_scalar("SELECT tasker.list_schedules()").fetch_all(db.readers()).await?;
    let hidden = db.hidden();
    for schedule in &mut schedules {
        hidden.hide_fields(&mut schedule["definition"], &["input"]);
    }
    Ok(schedules)
}

/// One of them, with its last `ticks` times. Errors: [`Error::NotFound`].
pub async fn show(db: &Db, name: &str, ticks: i32) -> Result<Value> {
    let query = sqlx::query_scalar("SELECT tasker.list_schedules($1, $2)").bind(name).bind(ticks);
    let shown: Option<Value> = query.fetch_optional(db.pool()).await?;
    let mut shown = shown.ok_or_else(|| unknown(name))?;
    db.hidden().hide_fields(&mut shown["definition"], &["input"]);
    Ok(shown)
}

/// Forgets what became of times longer ago than that.
pub(crate) async fn forget(db: &Db, age: Duration) -> Result<()> {
    const SLICE: i32 = 10_000;
    let query = || {
        sqlx::query_scalar("SELECT tasker.forget_ticks($1 * interval '1 second', $2)")
            .bind(age.as_secs_f64())
            .bind(SLICE)
    };
    loop {
        let forgotten: i32 = query().fetch_one(db.pool()).await?;
        if forgotten < SLICE {
            return Ok(());
        }
    }
}

fn found(name: &str, found: bool) -> Result<()> {
    match found {
        true => Ok(()),
        false => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    Error::NotFound(format!("no schedule {name}"))
}
