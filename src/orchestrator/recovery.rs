//! Recovery: notices members that died and leases that ran out, wakes who can go on with the work, and gives up tasks at their deadline.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::Db;
use crate::engine::claim::expire_tasks;
use crate::engine::lease::wake_expired;
use crate::engine::{member, LowWaterMarks};
use crate::error::Result;
use crate::health::{Beat, Beats};

const EVERY: Duration = Duration::from_secs(5);
/// How many tasks one cycle gives up at most.
const BATCH: i32 = 1_000;

pub(super) struct Recovery {
    db: Db,
    marks: LowWaterMarks,
    beat: Beat,
}

impl Recovery {
    pub(super) fn new(db: &Db, beats: &Beats) -> Self {
        Recovery {
            db: db.clone(),
            marks: LowWaterMarks::default(),
            beat: beats.register("recovery", Duration::from_secs(60)),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let delay = match self.cycle().await {
                Ok(()) => {
                    backoff.reset();
                    EVERY.mul_f64(0.9 + 0.2 * fastrand::f64())
                }
                Err(error) => {
                    tracing::error!(%error, "recovery failed");
                    backoff.next_delay()
                }
            };
            self.beat.beat();
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(delay) => {} }
        }
    }

    async fn cycle(&mut self) -> Result<()> {
        for dead in member::expire(&self.db).await? {
            tracing::warn!(member = dead.id, name = dead.name, kind = dead.kind, "a member's lease ran out");
        }
        let late = expire_tasks(&self.db, BATCH).await?;
        if late > 0 {
            tracing::warn!(tasks = late, "tasks were given up at their deadline");
        }
        for (namespace, count) in wake_expired(&self.db, &mut self.marks).await? {
            tracing::info!(namespace, count, "steps wait in the queue whose lease ran out or was handed back");
        }
        Ok(())
    }
}
