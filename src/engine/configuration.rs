//! The database as the coordinator of the configuration.

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use serde_json::Value;
use sqlx::Row;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::config::distributed::{Author, ConfigurationCoordinator, Version};
use crate::config::Live;
use crate::db::{channel, Db, Wake};
use crate::error::Result;

/// Keeps the configuration where the tasks are. Members are told of changes by NOTIFY.
#[derive(Debug, Clone)]
pub struct DatabaseCoordinator(Db);

impl DatabaseCoordinator {
    /// In this database.
    pub fn new(db: &Db) -> DatabaseCoordinator {
        DatabaseCoordinator(db.clone())
    }

    async fn newest(&self, limit: i64) -> Result<Vec<Version>> {
        let sql = "SELECT version, at, who, why, overrides FROM tasker.configurations ORDER BY version DESC LIMIT $1";
        let rows = sqlx::query(sql).bind(limit).fetch_all(self.0.upkeep()).await?;
        let version = |row: &sqlx::postgres::PgRow| {
            Ok(Version {
                version: row.try_get(0)?,
                at: row.try_get(1)?,
                who: row.try_get(2)?,
                why: row.try_get(3)?,
                overrides: row.try_get(4)?,
            })
        };
        rows.iter().map(version).collect()
    }
}

impl ConfigurationCoordinator for DatabaseCoordinator {
    fn get(&self) -> BoxFuture<'_, Result<Version>> {
        async {
            let newest = self.newest(1).await?.pop();
            newest.ok_or_else(|| crate::Error::NotFound("tasker.configurations is empty".into()))
        }
        .boxed()
    }

    fn update<'a>(&'a self, base: i64, overrides: &'a Value, author: &'a Author) -> BoxFuture<'a, Result<i64>> {
        async move {
            Ok(sqlx::query_scalar("SELECT tasker.change_configuration($1, $2, $3, $4)")
                .bind(base)
                .bind(overrides)
                .bind(&author.who)
                .bind(&author.why)
                .fetch_one(self.0.upkeep())
                .await?)
        }
        .boxed()
    }

    fn history(&self, limit: i64) -> BoxFuture<'_, Result<Vec<Version>>> {
        self.newest(limit).boxed()
    }
}

/// Passes on, until `stop`, that there is another version.
pub(crate) async fn told(live: Live, mut wakes: broadcast::Receiver<Wake>, stop: CancellationToken) {
    loop {
        let wake = tokio::select! {
            () = stop.cancelled() => return,
            wake = wakes.recv() => wake,
        };
        match wake {
            Ok(Wake::Channel(name, _)) if name != channel::CONFIGURATION => {}
            Err(broadcast::error::RecvError::Closed) => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => live.refresh(),
        }
    }
}
