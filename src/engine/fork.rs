//! Forks: a task that has ended, or is blocked, run again from a step on, as another task (`migrations/0034_forks.sql`).

use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::payload::check_payload;
use crate::db::Db;
use crate::error::{Error, Result};

/// Creates the fork of a task, and returns its id: of the same version, with its input (or this one), priority and tags, without its key. What was complete
/// beside the step `from`, and before it, is taken over with its results; None: all is done again. The input is not checked against the
/// `input_schema`.
///
/// Errors: [`Error::NotFound`] for an unknown task or step; [`Error::Invalid`] for one that has not ended, or that was undone;
/// [`Error::TooLarge`].
pub async fn fork_task(db: &Db, task: Uuid, from: Option<&str>, input: Option<&Value>) -> Result<Uuid> {
    if let Some(input) = input {
        if !input.is_object() {
            return Err(Error::Invalid("the input must be a JSON object".into()));
        }
        check_payload("the input", &input.to_string())?;
    }
    let query = sqlx::query_scalar("SELECT tasker.fork_task($1, $2, $3)").bind(task).bind(from);
    Ok(query.bind(input.map(Json)).fetch_one(db.pool()).await?)
}
