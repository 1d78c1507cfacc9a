//! The verbs of the engine, each a thin, batched call of the SQL function that does the work in one transaction (`migrations/`).
//!
//! Read them in the order in which a task meets them: [`register`], [`submit`], [`claim`], [`lease`], [`complete`] or [`fail`],
//! [`dead_letters`], [`cancel`], [`pauses`], [`read`], and to many tasks at once [`bulk`]; [`children`] are the tasks of a step, [`signals`] what somebody says to a task, [`memories`] what its handlers leave, [`schedules`] when tasks begin by themselves; [`member`] is who does it, and [`reconcile`] what looks after it all; [`unhandled`] is what nobody can do; [`trace`] is what they tell of a
//! task. The fleet as a whole is in `fleet`, and what it is told in [`configuration`]. How large things may be is in [`payload`].

pub(crate) mod alerts;
pub mod audit;
pub mod backpressure;
pub mod bulk;
pub mod bulk_actions;
pub mod cancel;
pub(crate) mod check;
pub mod children;
pub mod claim;
pub mod complete;
pub mod configuration;
pub mod dead_letters;
pub(crate) mod deliveries;
pub(crate) mod events;
pub(crate) mod everywhere;
pub mod fail;
pub(crate) mod fleet;
pub mod fork;
pub mod history;
mod homes;
mod input;
pub mod lease;
pub mod limits;
pub mod lists;
pub mod member;
pub mod memories;
pub mod namespaces;
pub mod pauses;
pub mod payload;
pub(crate) mod peers;
pub mod read;
pub mod reasons;
pub mod reconcile;
pub mod register;
pub(crate) mod repair;
pub mod schedules;
pub(crate) mod schema;
pub(crate) mod shard_check;
pub(crate) mod shard_move;
pub mod shards;
pub mod signals;
pub mod submit;
pub mod subscriptions;
pub(crate) mod tags;
pub mod tokens;
pub mod trace;
pub mod unhandled;

use std::future::Future;

use crate::error::Result;

/// How many namespaces one transaction looks at: each is a queue's table with its indexes, and the locks of all sessions share one memory.
const SLICE: usize = 50;

/// Runs a transaction again when PostgreSQL rolled it back for the sake of another one.
async fn again_on_conflict<T, F: Future<Output = Result<T>>>(mut transaction: impl FnMut() -> F) -> Result<T> {
    for _ in 0..4 {
        match transaction().await {
            Err(error) if error.is_conflict() => tracing::warn!(%error, "transaction rolled back by PostgreSQL, running it again"),
            done => return done,
        }
    }
    transaction().await
}
