//! Limits: how many steps may be under way or start, and the circuit breakers that make them wait.

use serde_json::Value;

use crate::db::Db;
use crate::error::{Error, Result};

/// Every limit, with how many permits are granted, how many steps wait, and its breakers that are not closed.
pub async fn list(db: &Db) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.list_limits()").fetch_all(db.readers()).await?)
}

/// Closes the breakers of a limit, or that of one key. Returns how many were not closed.
/// Errors: [`Error::NotFound`] when there is no such limit.
pub async fn reset(db: &Db, namespace: &str, name: &str, key: Option<&str>) -> Result<i32> {
    let known = list(db).await?;
    if !known.iter().any(|limit| limit["namespace"] == namespace && limit["name"] == name) {
        return Err(Error::NotFound(format!("no limit {namespace}/{name}")));
    }
    let query = sqlx::query_scalar("SELECT tasker.reset_breakers($1, $2, $3)");
    Ok(query.bind(namespace).bind(name).bind(key).fetch_one(db.pool()).await?)
}

/// Forgets what no longer counts.
pub(crate) async fn forget(db: &Db) -> Result<()> {
    sqlx::query("SELECT tasker.forget_limits()").execute(db.upkeep()).await?;
    Ok(())
}
