//! Marks: where reading queues and lanes of tasks begins, so that nobody walks through dead entries that vacuum may not take yet.

use std::time::Duration;

use super::rounds::Round;
use crate::db::Db;
use crate::engine::lease::move_marks;
use crate::error::Result;

/// How long the dead pile up above the marks while there is work.
const BUSY: Duration = Duration::from_millis(100);

pub(super) struct Marks {
    db: Db,
}

impl Marks {
    pub(super) fn new(db: &Db) -> Self {
        Marks { db: db.clone() }
    }
}

impl Round for Marks {
    const NAME: &'static str = "marks";
    const EVERY: Duration = Duration::from_secs(3);

    async fn round(&mut self) -> Result<Duration> {
        Ok(if move_marks(&self.db).await? { BUSY } else { Self::EVERY })
    }
}
