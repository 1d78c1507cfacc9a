//! Namespaces: who a step belongs to, the queue it travels through, and the rules of its failures where neither the step nor its template
//! says otherwise.

use serde_json::{json, Map, Value};

use crate::config::distributed::{self, Author, ConfigurationCoordinator};
pub use crate::config::Rules;
use crate::db::Db;
use crate::error::{Error, Result};

/// Creates the namespaces that are missing, each with its queue and dead-letter queue.
pub(crate) async fn ensure(db: &Db, names: &[String]) -> Result<()> {
    sqlx::query("SELECT tasker.ensure_namespaces($1)")
        .bind(names)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Creates those that are missing; returns these namespaces with their rules.
pub(crate) async fn create(db: &Db, names: &[String]) -> Result<Vec<Value>> {
    ensure(db, names).await?;
    let is_asked_for = |of: &Value| of["name"].as_str().is_some_and(|name| names.iter().any(|asked| asked == name));
    Ok(list(db).await?.into_iter().filter(is_asked_for).collect())
}

/// Every namespace with its rules.
pub async fn list(db: &Db) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.list_namespaces()").fetch_all(db.pool()).await?)
}

/// Changes a namespace's rules, also for tasks that are under way, as a version of the configuration; returns them. None changes nothing.
/// Errors: [`Error::NotFound`], [`Error::Invalid`] for a value that is out of bounds.
pub async fn set(db: &Db, coordinator: &dyn ConfigurationCoordinator, name: &str, rules: &Rules, author: &Author) -> Result<Value> {
    let of = |all: Vec<Value>| all.into_iter().find(|namespace| namespace["name"] == name);
    let missing = || Error::NotFound(format!("no namespace {name}"));
    of(list(db).await?).ok_or_else(missing)?;
    let rules = json!(rules);
    distributed::change(coordinator, author, |overrides| {
        for (rule, value) in rules
            .as_object()
            .unwrap_or(&Map::new())
            .iter()
            .filter(|(_, value)| !value.is_null())
        {
            distributed::set(overrides, &["namespaces", name, rule], value.clone());
        }
        Ok(())
    })
    .await?;
    // Where the database only has a copy, this makes it.
    coordinator.get().await?;
    of(list(db).await?).ok_or_else(missing)
}
