//! Recovery: notices members that died and leases that ran out, wakes who can go on with the work, and gives up what is over its limits.

use std::time::Duration;

use opentelemetry::KeyValue;

use super::rounds::Round;
use crate::db::Db;
use crate::engine::claim::expire_tasks;
use crate::engine::lease::wake_expired;
use crate::engine::member::{self, Expired};
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

/// How many members that were lost together are named.
const NAMED: usize = 5;

fn tell_lost(members: &[Expired]) {
    for kind in ["orchestrator", "worker"] {
        let lost: Vec<&Expired> = members.iter().filter(|member| member.kind == kind).collect();
        if lost.is_empty() {
            continue;
        }
        telemetry::metrics()
            .members_lost
            .add(lost.len() as u64, &[KeyValue::new("kind", kind)]);
        let named = |member: &&Expired| format!("{} ({})", member.name, member.id);
        let names = lost.iter().take(NAMED).map(named).collect::<Vec<_>>().join(", ");
        tracing::warn!(count = lost.len(), names, kind, "members' leases ran out");
    }
}

impl Round for Recovery {
    const NAME: &'static str = "recovery";
    const EVERY: Duration = Duration::from_secs(5);

    async fn round(&mut self) -> Result<Duration> {
        tell_lost(&member::expire(&self.db).await?);
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
