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
}

impl Reconciliation {
    pub(super) fn new(db: &Db) -> Self {
        Reconciliation { db: db.clone() }
    }
}

impl Round for Reconciliation {
    const NAME: &'static str = "reconciliation";
    const EVERY: Duration = Duration::from_secs(60);

    async fn round(&mut self) -> Result<()> {
        if notifications_are_stuck(&self.db).await? {
            tracing::warn!(
                "PostgreSQL's queue of notifications is more than half full: a session that listens has a transaction open for too \
                 long (pg_stat_activity); processes poll until it ends"
            );
        }
        let mut after = Uuid::nil();
        loop {
            let (mended, last) = reconcile(&self.db, after, BATCH).await?;
            if mended > 0 {
                tracing::error!(mended, "steps without a message, or tasks that stood still, were set going again");
            }
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
            tokio::time::sleep(REST).await;
        }
    }
}
