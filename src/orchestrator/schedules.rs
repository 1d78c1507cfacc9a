//! The schedules of the file of settings: kept in the database as the file has them.

use std::time::Duration;

use super::rounds::Round;
use crate::config::Live;
use crate::db::Db;
use crate::engine::schedules::put_of_file;
use crate::engine::shards::Shards;
use crate::error::{Error, Result};

/// How soon it is tried again when a workflow is not registered yet.
const SOON: Duration = Duration::from_secs(5);

pub(super) struct Schedules {
    db: Db,
    live: Live,
    /// Of which the database is, where there are several: the schedules of its templates are kept there.
    shard: Option<String>,
    shards: Shards,
    done: bool,
}

impl Schedules {
    pub(super) fn new(db: &Db, live: &Live, shard: Option<&str>, shards: &Shards) -> Self {
        Schedules {
            db: db.clone(),
            live: live.clone(),
            shard: shard.map(str::to_owned),
            shards: shards.clone(),
            done: false,
        }
    }
}

impl Round for Schedules {
    const NAME: &'static str = "schedules";
    const EVERY: Duration = Duration::from_secs(600);

    async fn round(&mut self) -> Result<Duration> {
        let effective = self.live.effective();
        let named = effective.settings.schedules().map_err(Error::Config)?;
        if let Some(mut schedules) = named.filter(|_| !self.done) {
            if let Some(own) = &self.shard {
                self.shards.moves(own).await?;
                schedules.retain(|_, (template, _)| self.shards.home_of_template(template) == own);
            }
            match put_of_file(&self.db, &schedules).await {
                // Workers register them when they start.
                Err(Error::NotFound(problem)) => {
                    tracing::warn!(problem, "the schedules of the file of settings wait for a workflow");
                    return Ok(SOON);
                }
                put => put?,
            }
        }
        self.done = true;
        Ok(Self::EVERY)
    }
}
