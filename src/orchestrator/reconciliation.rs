//! Reconciliation: walks slowly through the tasks, and mends what no transaction of ours leaves behind.

use std::time::Duration;

use uuid::Uuid;

use super::rounds::Round;
use crate::db::Db;
use crate::engine::reconcile::{notifications_are_stuck, reconcile};
use crate::error::Result;

/// How many tasks one call looks at, and how long it rests before the next: a million tasks take a quarter of an hour.
const BATCH: i32 = 2_000;
const REST: Duration = Duration::from_secs(2);

pub(super) struct Reconciliation {
    db: Db,
    after: Uuid,
}

impl Reconciliation {
    pub(super) fn new(db: &Db) -> Self {
        Reconciliation {
            db: db.clone(),
            after: Uuid::nil(),
        }
    }
}

impl Round for Reconciliation {
    const NAME: &'static str = "reconciliation";
    const EVERY: Duration = Duration::from_secs(60);

    async fn round(&mut self) -> Result<Duration> {
        if notifications_are_stuck(&self.db).await? {
            tracing::warn!(
                "PostgreSQL's queue of notifications is more than half full: a session that listens has a transaction open for too \
                 long (pg_stat_activity); processes poll until it ends"
            );
        }
        let (mended, last) = reconcile(&self.db, self.after, BATCH).await?;
        if mended > 0 {
            tracing::error!(mended, "steps without a message, or tasks that stood still, were set going again");
        }
        self.after = last.unwrap_or_default();
        Ok(if last.is_some() { REST } else { Self::EVERY })
    }
}
