//! The coordinator of the configuration: the database, or another one, of which the database has a copy, since it keeps to the rules of namespaces itself.

use std::path::Path;
use std::sync::Arc;

use chrono::Utc;
use futures_util::future::{join_all, select_ok, BoxFuture};
use futures_util::FutureExt;
use serde_json::Value;
use sqlx::Row;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::shards::Shards;
use crate::config::distributed::{check, Author, ConfigurationCoordinator, Version};
use crate::config::folder::FolderCoordinator;
use crate::config::{Address, Live, Settings, DEFAULT_SHARD};
use crate::db::{channel, Db, Wake};
use crate::error::{Error, Result};

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

    /// Has what another coordinator has. Where others copy at the same time, one of them does.
    async fn copy(&self, newest: &Version) -> Result<()> {
        let copy = self.get().await?;
        if copy.overrides == newest.overrides {
            return Ok(());
        }
        let author = Author {
            who: newest.who.clone(),
            why: newest.why.clone(),
        };
        match self.update(copy.version, &newest.overrides, &author).await {
            Err(Error::Stale(_)) => Ok(()),
            copied => copied.map(drop),
        }
    }
}

impl ConfigurationCoordinator for DatabaseCoordinator {
    fn get(&self) -> BoxFuture<'_, Result<Version>> {
        async {
            let newest = self.newest(1).await?.pop();
            newest.ok_or_else(|| Error::NotFound("tasker.configurations is empty".into()))
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

/// The one that the settings name, of which `db` has a copy if it is another.
/// Errors: [`Error::Config`] when it cannot be used.
pub async fn coordinator(db: &Db, settings: &Settings) -> Result<Arc<dyn ConfigurationCoordinator>> {
    let database = DatabaseCoordinator::new(db);
    Ok(match named(settings).await? {
        None => Arc::new(database),
        Some(of) => Arc::new(Copied {
            of,
            copies: Copies::Database(database),
        }),
    })
}

/// The one of all shards: that which the settings name, or the default shard. Each shard has a copy, by which it goes on while that is away.
/// Errors: [`Error::Config`] when it cannot be used; where there is but one shard, those of [`Shards::named`].
pub async fn coordinator_of(shards: &Shards) -> Result<Arc<dyn ConfigurationCoordinator>> {
    if !shards.are_named() {
        return coordinator(&shards.home().await?, shards.settings()).await;
    }
    let of = named(shards.settings()).await?;
    Ok(Arc::new(Copied {
        of: of.unwrap_or_else(|| Box::new(DefaultShard(shards.clone()))),
        copies: Copies::Shards(shards.clone()),
    }))
}

/// None: it is the database itself.
async fn named(settings: &Settings) -> Result<Option<Box<dyn ConfigurationCoordinator>>> {
    let named = settings.coordinator.as_ref().map_or("database", Address::reveal);
    let of: Box<dyn ConfigurationCoordinator> = match named.split_once(':') {
        None if named == "database" => return Ok(None),
        Some(("file", path)) => Box::new(FolderCoordinator::new(Path::new(path.trim_start_matches("//")))?),
        #[cfg(feature = "etcd")]
        Some(("etcd", address)) => Box::new(crate::config::etcd::EtcdCoordinator::new(address.trim_start_matches("//")).await?),
        #[cfg(not(feature = "etcd"))]
        Some(("etcd", _)) => {
            return Err(Error::Config(
                "this tasker was built without etcd: cargo build --features etcd".into(),
            ))
        }
        _ => {
            let expected = "expected database, etcd://host:port or file:/path";
            return Err(Error::Config(format!("coordinator is {:?}: {expected}", Address::from(named))));
        }
    };
    Ok(Some(of))
}

/// Another coordinator, of which databases have a copy.
#[derive(Debug)]
struct Copied {
    of: Box<dyn ConfigurationCoordinator>,
    copies: Copies,
}

#[derive(Debug)]
enum Copies {
    Database(DatabaseCoordinator),
    Shards(Shards),
}

impl Copied {
    async fn copy(&self, newest: &Version) -> Result<()> {
        match &self.copies {
            Copies::Database(database) => database.copy(newest).await,
            // One that is away has it once somebody works with it again.
            Copies::Shards(shards) => {
                for (shard, db) in shards.opened() {
                    if let Err(error) = DatabaseCoordinator::new(db).copy(newest).await {
                        tracing::debug!(%error, shard, "a shard has no copy of the configuration yet");
                    }
                }
                Ok(())
            }
        }
    }

    /// Where nobody has worked with a shard yet, it has none.
    async fn last(&self) -> Option<Version> {
        match &self.copies {
            Copies::Database(database) => database.get().await.ok(),
            Copies::Shards(shards) => {
                let read = shards
                    .names()
                    .map(|name| async move { DatabaseCoordinator::new(&shards.named(name).await?).get().await }.boxed());
                let (version, _) = select_ok(read).await.ok()?;
                Some(version)
            }
        }
    }
}

/// The coordinator that the default shard is to all.
#[derive(Debug)]
struct DefaultShard(Shards);

impl DefaultShard {
    async fn database(&self) -> Result<DatabaseCoordinator> {
        Ok(DatabaseCoordinator::new(&self.0.named(DEFAULT_SHARD).await?))
    }
}

impl ConfigurationCoordinator for DefaultShard {
    fn get(&self) -> BoxFuture<'_, Result<Version>> {
        async { self.database().await?.get().await }.boxed()
    }

    fn update<'a>(&'a self, base: i64, overrides: &'a Value, author: &'a Author) -> BoxFuture<'a, Result<i64>> {
        async move { self.database().await?.update(base, overrides, author).await }.boxed()
    }

    fn history(&self, limit: i64) -> BoxFuture<'_, Result<Vec<Version>>> {
        async move { self.database().await?.history(limit).await }.boxed()
    }
}

impl ConfigurationCoordinator for Copied {
    fn get(&self) -> BoxFuture<'_, Result<Version>> {
        async {
            let newest = self.of.get().await?;
            // What does not come from us may be wrong, and is nowhere in force then.
            check(&newest.overrides)?;
            self.copy(&newest).await?;
            Ok(newest)
        }
        .boxed()
    }

    fn update<'a>(&'a self, base: i64, overrides: &'a Value, author: &'a Author) -> BoxFuture<'a, Result<i64>> {
        async move {
            let version = self.of.update(base, overrides, author).await?;
            if let Copies::Shards(shards) = &self.copies {
                // The rules of a namespace are to be in force at once in its shard, too.
                join_all(shards.names().map(|name| shards.named(name))).await;
                let author = author.clone();
                let newest = Version {
                    version,
                    at: Utc::now(),
                    who: author.who,
                    why: author.why,
                    overrides: overrides.clone(),
                };
                self.copy(&newest).await?;
            }
            Ok(version)
        }
        .boxed()
    }

    fn history(&self, limit: i64) -> BoxFuture<'_, Result<Vec<Version>>> {
        self.of.history(limit)
    }

    fn register<'a>(&'a self, instance: &'a str, capabilities: &'a Value) -> BoxFuture<'a, Result<()>> {
        self.of.register(instance, capabilities)
    }

    fn last_good(&self) -> BoxFuture<'_, Option<Version>> {
        self.last().boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.of.changed()
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
            Ok(Wake::Told(told)) if told.channel != channel::CONFIGURATION => {}
            Err(broadcast::error::RecvError::Closed) => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => live.refresh(),
        }
    }
}
