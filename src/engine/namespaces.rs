//! Namespaces: who a step belongs to, the queue it travels through, and the rules of its failures where neither the step nor its template
//! says otherwise.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::db::Db;
use crate::error::{Error, Result};

/// Changes to a namespace's rules; None changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Counts the first run. 1 to 1000; 5 where nothing was set.
    pub max_attempts: Option<i32>,
    /// fixed, linear or exponential, which is where nothing was set.
    pub backoff: Option<String>,
    /// By what an exponential delay grows. 1 to 100; 2 where nothing was set.
    pub multiplier: Option<f64>,
    /// The first delay; 1 where nothing was set.
    pub base_seconds: Option<f64>,
    /// The longest delay; 600 where nothing was set.
    pub max_seconds: Option<f64>,
    /// The spread of the delays, 0 to 1; 0.1 where nothing was set.
    pub jitter: Option<f64>,
    /// After how many days a dead letter is deleted; kept for ever where nothing was set.
    pub retention_days: Option<i32>,
    /// How many dead letters raise an alert; none does where nothing was set.
    pub alert_threshold: Option<i32>,
}

/// Creates the namespaces that are missing, each with its queue and dead-letter queue.
pub(crate) async fn ensure(db: &Db, names: &[String]) -> Result<()> {
    sqlx::query("SELECT tasker.ensure_namespaces($1)")
        .bind(names)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Every namespace with its rules.
pub async fn list(db: &Db) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.list_namespaces()").fetch_all(db.pool()).await?)
}

/// Changes a namespace's rules, also for tasks that are under way, and returns them all.
/// Errors: [`Error::NotFound`], [`Error::Invalid`] for a value that is out of bounds.
pub async fn set(db: &Db, name: &str, rules: &Rules) -> Result<Value> {
    let changed: Option<Value> = sqlx::query_scalar("SELECT tasker.set_namespace($1, $2)")
        .bind(name)
        .bind(sqlx::types::Json(rules))
        .fetch_one(db.pool())
        .await?;
    changed.ok_or_else(|| Error::NotFound(format!("no namespace {name}")))
}
