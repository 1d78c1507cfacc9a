//! Recovery: notices members that died and leases that ran out, wakes who can go on with the work, and gives up what is over its limits.

use std::time::Duration;

use opentelemetry::KeyValue;

use super::rounds::Round;
use crate::db::Db;
use crate::engine::claim::expire_tasks;
use crate::engine::lease::wake_expired;
use crate::engine::member;
use crate::error::Result;
use crate::telemetry;

/// How many tasks one round gives up at most.
const BATCH: i32 = 1_000;

pub(super) struct Recovery {
    db: Db,
}

impl Recovery {
    pub(super) fn new(db: &Db) -> Self {
        Recovery { db: db.clone() }
    }
}

impl Round for Recovery {
    const NAME: &'static str = "recovery";
    const EVERY: Duration = Duration::from_secs(5);

    async fn round(&mut self) -> Result<Duration> {
        for dead in member::expire(&self.db).await? {
            let label = KeyValue::new("kind", dead.kind.clone());
            telemetry::metrics().members_lost.add(1, &[label]);
            tracing::warn!(member = dead.id, name = dead.name, kind = dead.kind, "a member's lease ran out");
        }
        let late = expire_tasks(&self.db, BATCH).await?;
        if late > 0 {
            tracing::warn!(
                tasks = late,
                "tasks or steps of them were given up: their deadline is over, or they are stuck"
            );
        }
        for (namespace, count) in wake_expired(&self.db).await? {
            tracing::info!(namespace, count, "steps wait in the queue whose lease ran out or was handed back");
        }
        Ok(Self::EVERY)
    }
}
