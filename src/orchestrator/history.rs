//! History: deletes tasks that ended so long ago that their namespaces do not want to know them any longer.

use std::time::{Duration, Instant};

use super::rounds::Round;
use crate::db::Db;
use crate::engine::history::forget_tasks;
use crate::error::Result;

/// How many tasks one statement looks at, so that it takes some tens of milliseconds.
const SLICE: i32 = 1_000;

/// For each second of that it rests for two: whoever waits for his tasks comes first.
const REST: u32 = 2;

pub(super) struct History {
    db: Db,
}

impl History {
    pub(super) fn new(db: &Db) -> Self {
        History { db: db.clone() }
    }
}

impl Round for History {
    const NAME: &'static str = "history";
    const EVERY: Duration = Duration::from_secs(10);

    async fn round(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let (looked, _) = forget_tasks(&self.db, SLICE).await?;
        Ok(match looked < SLICE {
            true => Self::EVERY,
            false => began.elapsed() * REST,
        })
    }
}
