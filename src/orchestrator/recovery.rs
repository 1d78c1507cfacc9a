//! Recovery: notices members that died, leases that ran out and queues that broke, wakes who can go on with the work, and gives up what is over its
//! limits.

use std::time::{Duration, Instant};

use opentelemetry::KeyValue;

use super::rounds::Round;
use crate::db::Db;
use crate::engine::claim::expire_tasks;
use crate::engine::lease::wake_expired;
use crate::engine::member::{self, Expired};
use crate::engine::repair::{self, Broken};
use crate::error::Result;
use crate::health::Beats;
use crate::telemetry;

/// How many tasks one round gives up at most.
const BATCH: i32 = 1_000;

pub(super) struct Recovery {
    db: Db,
    beats: Beats,
    /// When broken queues were last asked for; None: there are some.
    asked: Option<Instant>,
    /// Steps may be held back though their queues work.
    held: bool,
}

impl Recovery {
    pub(super) fn new(db: &Db, beats: &Beats) -> Self {
        Recovery {
            db: db.clone(),
            beats: beats.clone(),
            asked: None,
            held: true,
        }
    }

    /// Looks for broken queues where a loop fails: one may be why.
    async fn look_after_queues(&mut self) -> Result<()> {
        if self.asked.is_none_or(|at| at.elapsed() >= ASK) {
            let (healed, others) = repair::try_broken(&self.db).await?;
            for queue in healed {
                tracing::info!(queue, "the queue works again");
                self.held = true;
            }
            // Whoever holds a step back may commit that after its queue was healed, or its handler found.
            self.held = true;
            self.asked = (!others).then(Instant::now);
        }
        if self.held {
            self.held = !repair::free_held(&self.db).await?;
        }
        if !self.beats.failing(Duration::ZERO).is_empty() {
            for Broken { queue, why } in repair::find_broken(&self.db).await? {
                tracing::error!(
                    queue,
                    why,
                    "the queue cannot be worked with; its namespace is left out until it can: tasker queue repair"
                );
                self.asked = None;
            }
        }
        Ok(())
    }
}

/// How soon broken queues are asked for that another orchestrator has found, which may have died since.
const ASK: Duration = Duration::from_secs(30);

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
        self.look_after_queues().await?;
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
