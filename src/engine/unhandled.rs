//! Steps that a worker has no handler for: declined, held back where nobody has one, and freed once somebody has.

use super::lease::{Held, Lease};
use crate::db::Db;
use crate::error::Result;

/// A kind of step, that is a step of a template's version, that no worker is known to have a handler for.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Kind {
    version_id: i32,
    step: i16,
    /// What would run it.
    pub handler: String,
    /// Its completion belongs into the handler's own transaction.
    pub transactional: bool,
}

/// Leaves these steps to others, and takes down that the worker has no handlers for them.
pub(crate) async fn decline_steps(db: &Db, queue: &str, worker: i32, leases: &[Lease]) -> Result<()> {
    let held: Held = leases.iter().collect();
    super::again_on_conflict(|| async {
        let query = sqlx::query("SELECT tasker.decline_steps($1, $2, $3, $4, $5, $6)")
            .bind(queue)
            .bind(worker);
        let query = query.bind(&held.ids).bind(&held.fences).bind(&held.tasks).bind(&held.steps);
        query.execute(db.pool()).await?;
        Ok(())
    })
    .await
}

/// What no worker has a handler for, and this one has not answered for lately.
pub(crate) async fn ask(db: &Db, worker: i32) -> Result<Vec<Kind>> {
    let query = sqlx::query_as("SELECT version_id, step, handler, transactional FROM tasker.ask_unhandled($1)");
    Ok(query.bind(worker).fetch_all(db.upkeep()).await?)
}

/// Says for which of these the worker has handlers. Returns whether it is still known to have none for some.
pub(crate) async fn answer(db: &Db, worker: i32, answers: &[(Kind, bool)]) -> Result<bool> {
    let versions: Vec<i32> = answers.iter().map(|(kind, _)| kind.version_id).collect();
    let steps: Vec<i16> = answers.iter().map(|(kind, _)| kind.step).collect();
    let able: Vec<bool> = answers.iter().map(|(_, able)| *able).collect();
    let query = sqlx::query_scalar("SELECT tasker.answer_unhandled($1, $2, $3, $4)");
    Ok(query
        .bind(worker)
        .bind(versions)
        .bind(steps)
        .bind(able)
        .fetch_one(db.upkeep())
        .await?)
}
