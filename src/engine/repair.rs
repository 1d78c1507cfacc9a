//! Queues that cannot be worked with: found, left out until they work again, and the steps that were held back for them set free.

use serde::{Deserialize, Serialize};

use super::SLICE;
use crate::db::{Db, Repaired};
use crate::error::Result;

/// How many steps one statement frees.
const FREED: i32 = 5_000;

/// A queue that cannot be worked with.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Broken {
    pub(crate) queue: String,
    pub(crate) why: String,
}

/// What was wrong with the queue of a namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RepairedQueue {
    pub(crate) namespace: String,
    #[serde(flatten)]
    pub(crate) repaired: Repaired,
}

/// Makes what the queues of these namespaces lack (none: of all that lack something), and sends the messages and letters again that steps have lost; frees what was
/// held back for them.
/// Errors: [`crate::Error::NotFound`], [`crate::Error::Invalid`] where one cannot be repaired, with what to do.
pub(crate) async fn repair(db: &Db, mut namespaces: Vec<String>) -> Result<Vec<RepairedQueue>> {
    if namespaces.is_empty() {
        find_broken(db).await?;
        namespaces = db.damaged().await?;
    }
    let mut all = Vec::new();
    for namespace in namespaces {
        let repaired = db.repair_queue(&namespace).await?;
        all.push(RepairedQueue { namespace, repaired });
    }
    while !free_held(db).await? {}
    Ok(all)
}

/// Tries the queues of all namespaces that are not asleep. Returns those that are broken and that nobody had found before.
pub(crate) async fn find_broken(db: &Db) -> Result<Vec<Broken>> {
    let (mut found, mut after) = (Vec::new(), Some(0));
    while let Some(from) = after.take() {
        let query = sqlx::query_as("SELECT queue, why, last FROM tasker.find_broken_queues($1, $2)");
        let rows: Vec<(Option<String>, Option<String>, Option<i32>)> = query.bind(from).bind(SLICE as i32).fetch_all(db.pool()).await?;
        for (queue, why, last) in rows {
            after = after.or(last);
            found.extend(queue.zip(why).map(|(queue, why)| Broken { queue, why }));
        }
    }
    Ok(found)
}

/// Tries those that are broken. Returns those that work again, and whether others are left.
pub(crate) async fn try_broken(db: &Db) -> Result<(Vec<String>, bool)> {
    let query = sqlx::query_as("SELECT coalesce(healed, '{}'), broken > 0 FROM tasker.try_broken_queues()");
    Ok(query.fetch_one(db.pool()).await?)
}

/// Frees steps that were held back and whose queue works again, or whose handler somebody has by now. Returns whether that were all.
pub(crate) async fn free_held(db: &Db) -> Result<bool> {
    let freed: i32 = sqlx::query_scalar("SELECT tasker.free_held_steps($1)")
        .bind(FREED)
        .fetch_one(db.pool())
        .await?;
    Ok(freed < FREED)
}
