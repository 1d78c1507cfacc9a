//! Pauses: what runs ends, and nothing new begins (`migrations/0034_pauses.sql`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::dead_letters::By;
use super::shards::Shards;
use crate::db::Db;
use crate::error::Result;

/// What can be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pausable {
    /// A task, by its id, with those that are its steps.
    Task,
    /// All tasks of a template: name, or namespace/name.
    Template,
    /// What a namespace's workers do, and the tasks of its own that have not begun.
    Namespace,
    /// The steps that a handler runs: namespace/handler.
    Handler,
}

impl FromStr for Pausable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Pausable::Task, Pausable::Template, Pausable::Namespace, Pausable::Handler]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("unknown kind {text:?}: expected task, template, namespace or handler"))
    }
}

impl Pausable {
    fn name(self) -> &'static str {
        match self {
            Pausable::Task => "task",
            Pausable::Template => "template",
            Pausable::Namespace => "namespace",
            Pausable::Handler => "handler",
        }
    }
}

/// Pauses it. Returns false where it was paused already, which stays as it was. What a worker has leased ahead (as much as it does in 100 ms) may
/// begin yet.
///
/// Errors: [`crate::Error::NotFound`], and [`crate::Error::Invalid`] for a name that several templates have.
pub async fn pause(db: &Db, what: Pausable, name: &str, by: &By) -> Result<bool> {
    let query = sqlx::query_scalar("SELECT tasker.pause($1, $2, $3, $4)")
        .bind(what.name())
        .bind(name);
    Ok(query.bind(&by.who).bind(&by.why).fetch_one(db.pool()).await?)
}

/// Lets it go on. Returns false where it was not paused. Errors: those of [`pause`].
pub async fn resume(db: &Db, what: Pausable, name: &str) -> Result<bool> {
    let query = sqlx::query_scalar("SELECT tasker.resume($1, $2)").bind(what.name()).bind(name);
    Ok(query.fetch_one(db.pool()).await?)
}

/// Pauses those of `tasks` that have not ended, and returns those that were not paused already.
pub async fn pause_tasks(db: &Db, tasks: &[Uuid], by: &By) -> Result<Vec<Uuid>> {
    let query = sqlx::query_scalar("SELECT tasker.pause_tasks($1, $2, $3)").bind(tasks);
    Ok(query.bind(&by.who).bind(&by.why).fetch_all(db.pool()).await?)
}

/// Lets `tasks` go on, and returns those that were paused.
pub async fn resume_tasks(db: &Db, tasks: &[Uuid]) -> Result<Vec<Uuid>> {
    let query = sqlx::query_scalar("SELECT tasker.resume_tasks($1)").bind(tasks);
    Ok(query.fetch_all(db.pool()).await?)
}

/// Ends the pauses of tasks that have ended.
pub(crate) async fn forget(db: &Db) -> Result<()> {
    sqlx::query("SELECT tasker.forget_pauses()").execute(db.upkeep()).await?;
    Ok(())
}

/// The pauses that there are: kind, name, who, why, since, and how many steps are held back under it (`held`); the oldest first.
pub async fn list(db: &Db) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.list_pauses()").fetch_all(db.readers()).await?)
}

/// The database that has what can be paused. Errors: those of [`Shards::named`].
pub async fn home_of(shards: &Shards, kind: Pausable, name: &str) -> Result<Db> {
    match (kind, name.parse()) {
        (Pausable::Task, Ok(task)) => shards.of_task(task).await,
        // What is no id is refused there.
        (Pausable::Task, Err(_)) => shards.home().await,
        (Pausable::Namespace, _) => shards.of_namespace(name).await,
        (Pausable::Template | Pausable::Handler, _) => shards.of_template(name).await,
    }
}
