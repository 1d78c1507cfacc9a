//! How unique tasks are that stayed where their namespace was: while one has not ended, none that is the same can be created where it lives now.

use std::time::Duration;

use super::rounds::Round;
use crate::db::Db;
use crate::engine::shard_move::look_at_moved_uniques;
use crate::engine::shards::Shards;
use crate::error::Result;

pub(super) struct Moves {
    db: Db,
    shards: Shards,
}

impl Moves {
    pub(super) fn new(db: &Db, shards: &Shards) -> Self {
        Moves {
            db: db.clone(),
            shards: shards.clone(),
        }
    }
}

impl Round for Moves {
    const NAME: &'static str = "moves";
    const EVERY: Duration = Duration::from_secs(2);

    async fn round(&mut self) -> Result<Duration> {
        look_at_moved_uniques(&self.db, &self.shards).await?;
        Ok(Self::EVERY)
    }
}
