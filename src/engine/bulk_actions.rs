//! What is done in the background to all tasks that a filter lets through (`migrations/0038_bulk_actions.sql`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::bulk::{self, Action};
use super::dead_letters::{By, Replay};
use super::read::{find_tasks, TaskFilter};
use crate::db::Db;
use crate::error::{Error, ErrorKind, Result};

/// How long a slice is somebody's: one that takes longer is done by somebody else, too.
const SLICE_FOR: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct NewBulkAction {
    /// To which tasks, of those that are there.
    pub filter: TaskFilter,
    /// What.
    pub action: Action,
    /// How many tasks a second; None: as fast as it goes.
    pub per_second: Option<f64>,
}

impl NewBulkAction {
    /// Errors: [`Error::Invalid`] for a filter that filters nothing, or a rate that is none.
    pub fn check(&self) -> Result<()> {
        if self.filter == TaskFilter::default() {
            return Err(Error::Invalid(
                "a bulk action is done to the tasks of a filter: expected one".into(),
            ));
        }
        if self.per_second.is_some_and(|rate| !(0.001..=1e6).contains(&rate)) {
            return Err(Error::Invalid("per_second: expected 0.001 to 1000000".into()));
        }
        self.action.check()
    }
}

/// Begins it, and returns its number. Errors: those of [`NewBulkAction::check`].
pub async fn begin(db: &Db, new: &NewBulkAction, by: &By) -> Result<i64> {
    new.check()?;
    if let Action::Replay {
        how: Replay { input: Some(payload), .. },
        ..
    }
    | Action::Settle { result: Some(payload), .. } = &new.action
    {
        db.hidden().restore(&mut payload.clone(), None)?;
    }
    let query = sqlx::query_scalar("SELECT tasker.begin_bulk_action($1, $2, $3, $4, $5)")
        .bind(Json(&new.filter))
        .bind(Json(&new.action))
        .bind(new.per_second);
    Ok(query.bind(&by.who).bind(&by.why).fetch_one(db.pool()).await?)
}

/// The newest first: each with its filter and action, how many tasks it has found, to how many it was done, and its state (running, complete, stopped or
/// failed). `before`: the last of the page before.
pub async fn list(db: &Db, before: Option<i64>, limit: i32) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.list_bulk_actions($1, $2)");
    let mut actions: Vec<Value> = query.bind(before).bind(limit).fetch_all(db.readers()).await?;
    actions.iter_mut().for_each(|action| hide(db, action));
    Ok(actions)
}

/// One of them. Errors: [`Error::NotFound`].
pub async fn show(db: &Db, id: i64) -> Result<Value> {
    let query = sqlx::query_scalar("SELECT tasker.list_bulk_actions(NULL, 1, $1)").bind(id);
    let found: Option<Value> = query.fetch_optional(db.pool()).await?;
    let mut found = found.ok_or_else(|| Error::NotFound(format!("no bulk action {id}")))?;
    hide(db, &mut found);
    Ok(found)
}

fn hide(db: &Db, action: &mut Value) {
    let hidden = db.hidden();
    hidden.hide_within(action, &["action", "how", "input"]);
    hidden.hide_within(action, &["action", "result"]);
}

/// It ends where it is. False: it had ended.
pub async fn stop(db: &Db, id: i64, who: &str) -> Result<bool> {
    end(db, id, Some(who), None).await
}

async fn end(db: &Db, id: i64, who: Option<&str>, error: Option<&str>) -> Result<bool> {
    let query = sqlx::query_scalar("SELECT tasker.stop_bulk_action($1, $2, $3)");
    Ok(query.bind(id).bind(who).bind(error).fetch_one(db.pool()).await?)
}

#[derive(Debug, Deserialize)]
struct Slice {
    id: i64,
    filter: TaskFilter,
    action: Action,
    before: Uuid,
    limit: i32,
}

/// What came of looking for a slice to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Worked {
    /// One is done.
    Slice,
    /// Each rests, or is somebody's, for that long.
    Rest(Duration),
    /// There is no bulk action under way.
    Nothing,
}

/// Does a slice of the first that nobody is at.
pub async fn work(db: &Db) -> Result<Worked> {
    let query = sqlx::query_scalar("SELECT tasker.take_bulk_action($1)").bind(SLICE_FOR);
    let taken: Option<Value> = query.fetch_one(db.pool()).await?;
    let Some(taken) = taken else { return Ok(Worked::Nothing) };
    if let Some(seconds) = taken["rest"].as_f64() {
        return Ok(Worked::Rest(Duration::from_secs_f64(seconds.clamp(0.0, 60.0))));
    }
    let slice: Slice =
        serde_json::from_value(taken).map_err(|error| Error::Invalid(format!("a bulk action of another version: {error}")))?;
    let (tasks, next) = find_tasks(db, &slice.filter, slice.limit, slice.action.is_for_open()).await?;
    match bulk::apply(db, &tasks, &slice.action).await {
        Ok(done) => {
            let query = sqlx::query("SELECT tasker.advance_bulk_action($1, $2, $3, $4, $5)");
            let query = query.bind(slice.id).bind(slice.before).bind(next);
            query.bind(tasks.len() as i32).bind(done.len() as i32).execute(db.pool()).await?;
        }
        // What is not acceptable will not be by trying again.
        Err(error) if error.is_bad_data() || !matches!(error.kind(), ErrorKind::Database | ErrorKind::Config) => {
            tracing::warn!(id = slice.id, %error, "a bulk action ended with an error");
            end(db, slice.id, None, Some(&error.to_string())).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(Worked::Slice)
}

/// Forgets those that ended longer ago than that.
pub(crate) async fn forget(db: &Db, age: Duration) -> Result<()> {
    sqlx::query("SELECT tasker.forget_bulk_actions($1 * interval '1 second')")
        .bind(age.as_secs_f64())
        .execute(db.pool())
        .await?;
    Ok(())
}
