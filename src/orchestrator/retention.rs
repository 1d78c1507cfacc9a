//! Retention: deletes the dead letters whose time is over, and says which; and what is so long ago that nothing counts it.

use std::time::Duration;

use super::rounds::Round;
use crate::config::Live;
use crate::db::Db;
use crate::engine::dead_letters::{self, By};
use crate::engine::{audit, bulk_actions, deliveries, limits, member, pauses, schedules, signals, submit, subscriptions};
use crate::error::Result;

/// How long it is known who a member was that left.
const MEMBERS: Duration = Duration::from_secs(30 * 86_400);

/// How long it is known what became of a schedule's times.
const TICKS: Duration = Duration::from_secs(90 * 86_400);

/// How long it is known who changed what.
const CHANGES: Duration = Duration::from_secs(365 * 86_400);

pub(super) struct Retention {
    db: Db,
    live: Live,
    by: By,
}

impl Retention {
    pub(super) fn new(db: &Db, live: &Live) -> Self {
        let by = By {
            who: "retention".into(),
            why: None,
        };
        Retention {
            db: db.clone(),
            live: live.clone(),
            by,
        }
    }
}

impl Round for Retention {
    const NAME: &'static str = "retention";
    const EVERY: Duration = Duration::from_secs(600);

    async fn round(&mut self) -> Result<Duration> {
        member::forget_activity(&self.db).await?;
        limits::forget(&self.db).await?;
        pauses::forget(&self.db).await?;
        submit::forget_uniques(&self.db).await?;
        let forgotten = member::forget(&self.db, MEMBERS).await?;
        if forgotten > 0 {
            tracing::info!(forgotten, "members that left a month ago are forgotten");
        }
        schedules::forget(&self.db, TICKS).await?;
        audit::forget(&self.db, CHANGES).await?;
        bulk_actions::forget(&self.db, CHANGES).await?;
        deliveries::forget_events(&self.db, self.live.orchestrator().event_history).await?;
        subscriptions::unwatch(&self.db).await?;
        let unclaimed = signals::forget(&self.db).await?;
        if unclaimed > 0 {
            tracing::warn!(
                unclaimed,
                "signals are forgotten that no step has waited for in the time that they were kept"
            );
        }
        let purged = dead_letters::purge(&self.db, &self.by).await?;
        if purged > 0 {
            tracing::info!(
                purged,
                "dead letters reached their retention; tasker.dead_letter_actions has each of them"
            );
        }
        Ok(Self::EVERY)
    }
}
