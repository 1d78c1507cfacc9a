//! Forks: a task that has ended, or is blocked, run again from a step on, as another task (`migrations/0035_forks.sql`).

use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::payload::check_payload;
use super::schema::check_for_tasks;
use crate::db::Db;
use crate::error::{Error, Result};

/// Creates the fork of a task, and returns its id: of the same version, with its input (or this one), priority and tags, without its key. What was complete
/// beside the step `from`, and before it, is taken over with its results; None: all is done again.
///
/// Errors: [`Error::NotFound`] for an unknown task or step; [`Error::Invalid`] for one that has not ended, or that was undone, and for an input that its
/// `input_schema` does not accept; [`Error::TooLarge`].
pub async fn fork_task(db: &Db, task: Uuid, from: Option<&str>, input: Option<&Value>) -> Result<Uuid> {
    let mut input = input.cloned();
    if let Some(input) = &mut input {
        if !input.is_object() {
            return Err(Error::Invalid("the input must be a JSON object".into()));
        }
        check_input(db, task, input).await?;
    }
    let query = sqlx::query_scalar("SELECT tasker.fork_task($1, $2, $3)").bind(task).bind(from);
    Ok(query.bind(input.as_ref().map(Json)).fetch_one(db.pool()).await?)
}

/// Against the `input_schema` of the task's version. What is hidden of it is that task's own.
async fn check_input(db: &Db, task: Uuid, input: &mut Value) -> Result<()> {
    let query = sqlx::query_scalar("SELECT tasker.read_task($1)").bind(task);
    let found: Option<Value> = query.fetch_one(db.pool()).await?;
    let found = found.ok_or_else(|| Error::NotFound(format!("no task {task}")))?;
    db.hidden().restore(input, Some(&found["input"]))?;
    let json = input.to_string();
    check_payload("the input", &json)?;
    check_for_tasks(db, &[task], &json).await
}
