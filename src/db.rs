//! The database: the pool, the migrations, and LISTEN.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::PgPool;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// What a waiting process can be told. The payload is a hint: whoever is woken looks for itself.
pub(crate) mod channel {
    /// Tasks came in; the payload is their namespace.
    pub(crate) const TASKS: &str = "tasker_tasks";
    /// Steps were enqueued; the payload is their queue.
    pub(crate) const STEPS: &str = "tasker_steps";
    /// Steps were told to wait for a retry.
    pub(crate) const RETRIES: &str = "tasker_retries";
}

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// A pool of connections to one database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    target: String,
}

impl Db {
    /// Connects, and proves it with one connection.
    ///
    /// `url` is `postgres://user:password@host:port/database`; `max_connections` bounds the pool.
    /// Errors: [`Error::Config`] for a URL that cannot be read, [`Error::Unreachable`] when there is no answer within 10 s or a refusal.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Db> {
        let not_valid = |why: String| {
            Error::Config(format!(
                "the database URL is not valid ({why}): expected postgres://user:password@host:port/database"
            ))
        };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(not_valid("it begins otherwise".into()));
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| not_valid(error.to_string()))?
            .application_name("tasker");
        let target = format!(
            "{}:{} (user {}, database {})",
            options.get_host(),
            options.get_port(),
            options.get_username(),
            options.get_database().unwrap_or_else(|| options.get_username())
        );
        let unreachable = |reason: String| Error::Unreachable {
            target: target.clone(),
            reason,
        };

        // A pool hides why it cannot connect behind its own timeout: ask directly first.
        let first = tokio::time::timeout(Duration::from_secs(10), sqlx::ConnectOptions::connect(&options)).await;
        match first {
            Err(_) => return Err(unreachable("no answer within 10 s".into())),
            Ok(Err(sqlx::Error::Database(e))) => return Err(unreachable(e.message().to_owned())),
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Ok(Ok(connection)) => sqlx::Connection::close(connection).await?,
        }
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(options);
        Ok(Db { pool, target })
    }

    /// The pool, for [`crate::engine`].
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Host, port, user and database, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Closes every connection, after what is under way.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether the database answers within `timeout`.
    pub async fn answers(&self, timeout: Duration) -> bool {
        matches!(
            tokio::time::timeout(timeout, sqlx::query("SELECT 1").execute(&self.pool)).await,
            Ok(Ok(_))
        )
    }

    /// Installs pgmq where it is missing and brings the schema `tasker` up to this binary's version. Safe to run from many processes
    /// at once, and again.
    pub async fn migrate(&self) -> Result<()> {
        let mut lock = self.pool.acquire().await?;
        sqlx::query("SELECT pg_advisory_lock(hashtext('tasker.migrate'))")
            .execute(&mut *lock)
            .await?;
        let done = self.migrate_locked().await;
        sqlx::query("SELECT pg_advisory_unlock(hashtext('tasker.migrate'))")
            .execute(&mut *lock)
            .await?;
        done
    }

    async fn migrate_locked(&self) -> Result<()> {
        let has_pgmq: bool = sqlx::query_scalar("SELECT to_regprocedure('pgmq.send_batch(text, jsonb[])') IS NOT NULL")
            .fetch_one(&self.pool)
            .await?;
        if !has_pgmq {
            let packaged: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'pgmq')")
                .fetch_one(&self.pool)
                .await?;
            if packaged {
                sqlx::query("CREATE EXTENSION pgmq").execute(&self.pool).await?;
            } else {
                let installer = pgmq::PGMQueueExt::new_with_pool(self.pool.clone()).await;
                installer
                    .install_sql_from_embedded()
                    .await
                    .map_err(|error| Error::NotMigrated(format!("pgmq cannot be installed: {error}")))?;
            }
        }
        sqlx::query("CREATE SCHEMA IF NOT EXISTS tasker").execute(&self.pool).await?;
        let mut connection = self.pool.acquire().await?;
        // sqlx keeps its list of migrations in the search path's first schema.
        sqlx::query("SET search_path TO tasker, public").execute(&mut *connection).await?;
        let done = MIGRATIONS.run_direct(&mut *connection).await;
        sqlx::query("RESET search_path").execute(&mut *connection).await?;
        done.map_err(|error| Error::NotMigrated(format!("the migrations cannot be applied: {error}")))
    }

    /// Errors with [`Error::NotMigrated`] unless the schema is the one this binary was built with.
    pub async fn check_schema(&self) -> Result<()> {
        let applied: i64 = match sqlx::query_scalar("SELECT max(version) FROM tasker._sqlx_migrations WHERE success")
            .fetch_one(&self.pool)
            .await
        {
            Ok(version) => version,
            Err(error) => return Err(error.into()),
        };
        let needed = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or_default();
        if applied < needed {
            return Err(Error::NotMigrated(format!(
                "the database is at schema version {applied}, this program needs {needed}: run `tasker migrate`"
            )));
        }
        Ok(())
    }

    /// Spreads the notifications of `channels` inside this process until `stop`. A lost connection is made again; while there is
    /// none, or where LISTEN does not work (a transaction-pooling PgBouncer), everybody polls.
    pub(crate) fn listen(&self, channels: &'static [&'static str], stop: CancellationToken) -> broadcast::Sender<Wake> {
        let (sender, _) = broadcast::channel(64);
        let wakes = sender.clone();
        let pool = self.pool.clone();
        tokio::spawn(async move {
            let mut delay = Duration::from_millis(100);
            loop {
                let listening = async {
                    let mut listener = PgListener::connect_with(&pool).await?;
                    listener.ignore_pool_close_event(true);
                    listener.listen_all(channels.iter().copied()).await?;
                    // What was sent before now was not heard.
                    wakes.send(Wake::Everything).ok();
                    loop {
                        match listener.try_recv().await? {
                            Some(note) => wakes.send(Wake::Channel(note.channel().to_owned(), note.payload().to_owned())).ok(),
                            None => wakes.send(Wake::Everything).ok(),
                        };
                    }
                };
                let failed: Result<(), sqlx::Error> = tokio::select! {
                    () = stop.cancelled() => return,
                    failed = listening => failed,
                };
                if let Err(error) = failed {
                    tracing::warn!(%error, "LISTEN is not available, polling instead");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(30)),
                }
            }
        });
        sender
    }
}

/// Something may have happened.
#[derive(Debug, Clone)]
pub(crate) enum Wake {
    /// On this channel, with this payload.
    Channel(String, String),
    /// Notifications may have been missed: look everywhere.
    Everything,
}

/// Waits for a wake that `concerns` the caller, at most until `poll` has passed.
pub(crate) async fn wait(wakes: &mut broadcast::Receiver<Wake>, poll: Duration, concerns: impl Fn(&str, &str) -> bool) {
    let wake = async {
        loop {
            match wakes.recv().await {
                Ok(Wake::Channel(channel, payload)) if !concerns(&channel, &payload) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            }
        }
    };
    // Jitter keeps processes that started together from polling together.
    let poll = poll.mul_f64(0.9 + 0.2 * fastrand::f64());
    tokio::select! { () = wake => {}, () = tokio::time::sleep(poll) => {} }
}
