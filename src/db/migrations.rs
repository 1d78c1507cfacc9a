//! The schema: pgmq, our own migrations, the roles, and what of the queues has been damaged since.

use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;
use sqlx::{Executor, PgConnection, PgPool};
use uuid::Uuid;

use super::Db;
use crate::error::{Error, Result};

static EMBEDDED: Migrator = sqlx::migrate!("./migrations");

/// How long to wait for somebody else who migrates.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many tasks are looked at in one statement.
const SLICE: i32 = 2_000;

/// What was wrong with a queue, and what came back to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Repaired {
    /// None: nothing was wrong.
    pub found: Option<String>,
    /// Messages of steps that had lost theirs.
    pub messages: u64,
    /// Letters of dead steps that had none.
    pub letters: u64,
}

impl Db {
    /// Installs pgmq where it is missing, brings the schema `tasker` up to this binary's version, and repairs queues that lack something. Safe to run
    /// from many processes at once, and again.
    /// Errors: [`Error::NotMigrated`] for what cannot be applied, or while somebody else migrates for more than a minute; [`Error::Forbidden`] where the
    /// role may not. With a schema that is up to date neither rights nor writes are wanted.
    pub async fn migrate(&self) -> Result<()> {
        if !self.is_up_to_date().await? {
            self.make_schema().await?;
            // One has the turn, the other does the work.
            let pool = self.direct()?.sessions(2);
            let mut lock = pool.begin().await?;
            wait_for_turn(&mut lock).await?;
            apply(&pool).await?;
            lock.rollback().await?;
            pool.close().await;
        }
        match self.damaged().await {
            Ok(damaged) => {
                for namespace in damaged {
                    let Repaired { found, messages, letters } = self.repair_queue(&namespace).await?;
                    let found = found.unwrap_or_default();
                    tracing::warn!(namespace, found, messages, letters, "a queue was repaired");
                }
                Ok(())
            }
            Err(Error::Forbidden(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// With the table that is locked by whoever migrates: nobody else may lock it, where anybody could take an advisory lock.
    async fn make_schema(&self) -> Result<()> {
        for make in [
            "CREATE SCHEMA IF NOT EXISTS tasker",
            "CREATE TABLE IF NOT EXISTS tasker.turn_migrate ()",
        ] {
            match sqlx::query(make).execute(self.pool()).await {
                // Somebody else has made it at the same moment.
                Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Makes the roles that may do parts of what the schema's owner may, and one for the workers of each of these namespaces. Returns their names.
    /// Errors: [`Error::Forbidden`] where this role may not make roles.
    pub async fn make_roles(&self, workers: &[String]) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar("SELECT tasker.make_roles($1)")
            .bind(workers)
            .fetch_all(self.pool())
            .await?)
    }

    /// Whether every migration is applied, as this binary has it.
    async fn is_up_to_date(&self) -> Result<bool> {
        let there: bool = sqlx::query_scalar("SELECT to_regclass('tasker._sqlx_migrations') IS NOT NULL")
            .fetch_one(self.pool())
            .await?;
        if !there {
            return Ok(false);
        }
        let applied: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT version, checksum FROM tasker._sqlx_migrations WHERE success ORDER BY version")
                .fetch_all(self.pool())
                .await?;
        Ok(EMBEDDED.iter().map(|m| (m.version, m.checksum.to_vec())).eq(applied))
    }

    /// Errors with [`Error::NotMigrated`] unless the schema is the one this binary was built with.
    pub async fn check_schema(&self) -> Result<()> {
        let applied: i64 = sqlx::query_scalar("SELECT max(version) FROM tasker._sqlx_migrations WHERE success")
            .fetch_one(self.upkeep())
            .await?;
        let needed = EMBEDDED.iter().map(|m| m.version).max().unwrap_or_default();
        if applied < needed {
            return Err(Error::NotMigrated(format!(
                "the database is at schema version {applied}, this program needs {needed}: run `tasker migrate`"
            )));
        }
        if self.installation.get().is_none() {
            // Who may not ask does not compare secrets either.
            let known: Option<String> = sqlx::query_scalar("SELECT tasker.which_installation()")
                .fetch_one(self.upkeep())
                .await
                .ok();
            known.map(|known| self.installation.set(known).ok());
        }
        Ok(())
    }

    /// What only those know who may connect to this database; None: nobody has asked yet.
    pub(crate) fn installation(&self) -> Option<&str> {
        self.installation.get().map(String::as_str)
    }

    /// The namespaces whose queues lack something, or are known to be broken.
    pub(crate) async fn damaged(&self) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar("SELECT tasker.damaged_namespaces()")
            .fetch_all(self.pool())
            .await?)
    }

    /// Makes what a namespace's queue lacks, or the queue anew; then sends the messages and letters again that steps have lost.
    /// Errors: [`Error::NotFound`], [`Error::Invalid`] where it cannot be repaired, with what to do.
    pub async fn repair_queue(&self, namespace: &str) -> Result<Repaired> {
        let found: Option<String> = sqlx::query_scalar("SELECT tasker.repair_queue($1)")
            .bind(namespace)
            .fetch_one(self.pool())
            .await?;
        let mut repaired = Repaired {
            found,
            ..Repaired::default()
        };
        let mut after = Some(Uuid::nil());
        while let Some(from) = after {
            let query = sqlx::query_as("SELECT messages, letters, last FROM tasker.restore_queue($1, $2, $3)");
            let (messages, letters, last): (i32, i32, Option<Uuid>) =
                query.bind(namespace).bind(from).bind(SLICE).fetch_one(self.pool()).await?;
            repaired.messages += messages as u64;
            repaired.letters += letters as u64;
            after = last;
        }
        Ok(repaired)
    }
}

/// Whose connections are used for nothing else.
async fn apply(pool: &PgPool) -> Result<()> {
    let has_pgmq: bool = sqlx::query_scalar("SELECT to_regprocedure('pgmq.send_batch(text, jsonb[])') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    if !has_pgmq {
        let packaged: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'pgmq')")
            .fetch_one(pool)
            .await?;
        if packaged {
            sqlx::query("CREATE EXTENSION pgmq").execute(pool).await?;
        } else {
            let installer = pgmq::PGMQueueExt::new_with_pool(pool.clone()).await;
            installer
                .install_sql_from_embedded()
                .await
                .map_err(|error| Error::NotMigrated(format!("pgmq cannot be installed: {error}")))?;
        }
    }
    let mut connection = pool.acquire().await?;
    check_origin(&mut connection).await?;
    // sqlx keeps its list of migrations in the search path's first schema.
    sqlx::query("SET search_path = tasker, pg_temp").execute(&mut *connection).await?;
    let migrator = Migrator {
        // By an advisory lock.
        locking: false,
        migrations: EMBEDDED.migrations.clone(),
        ..EMBEDDED
    };
    let done = migrator.run_direct(&mut *connection).await;
    done.map_err(|error| Error::NotMigrated(format!("the migrations cannot be applied: {error}")))
}

/// What is there was made by migrations of ours, and by none that this program does not know.
/// Errors: [`Error::NotMigrated`].
async fn check_origin(connection: &mut PgConnection) -> Result<()> {
    let listed: bool = sqlx::query_scalar("SELECT to_regclass('tasker._sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    let applied: Option<i64> = match listed {
        true => {
            sqlx::query_scalar("SELECT max(version) FROM tasker._sqlx_migrations")
                .fetch_one(&mut *connection)
                .await?
        }
        false => None,
    };
    let newest = EMBEDDED.iter().map(|m| m.version).max().unwrap_or_default();
    if let Some(applied) = applied.filter(|applied| *applied > newest) {
        return Err(Error::NotMigrated(format!(
            "the database is at schema version {applied}, and this program knows no more than {newest}: update it, or let the newer one migrate"
        )));
    }
    let half: bool = sqlx::query_scalar("SELECT to_regtype('tasker.task_state') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if applied.is_none() && half {
        return Err(Error::NotMigrated(
            "the schema tasker is there, and not by migrations of ours: from a dump without its rows, perhaps (a structure.sql), in which it \
             should not be. If nothing in it is wanted, DROP SCHEMA tasker, pgmq CASCADE, and migrate again"
                .into(),
        ));
    }
    Ok(())
}

/// Until the transaction ends, nobody else migrates.
/// Errors: [`Error::NotMigrated`] when somebody else does for too long: who, and what to do.
async fn wait_for_turn(connection: &mut PgConnection) -> Result<()> {
    let began = Instant::now();
    connection
        .execute("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = '5s'; SAVEPOINT turn")
        .await?;
    loop {
        let locked = connection
            .execute("LOCK TABLE tasker.turn_migrate IN SHARE UPDATE EXCLUSIVE MODE")
            .await;
        match locked {
            Ok(_) => return Ok(()),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {}
            Err(error) => return Err(error.into()),
        }
        connection.execute("ROLLBACK TO SAVEPOINT turn").await?;
        let holder: Option<(i32, String, String, f64)> = sqlx::query_as(
            "SELECT a.pid, a.usename::text, a.application_name, extract(epoch FROM clock_timestamp() - a.xact_start)::float8
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.granted AND l.relation = 'tasker.turn_migrate'::regclass AND a.pid <> pg_backend_pid() LIMIT 1",
        )
        .fetch_optional(&mut *connection)
        .await?;
        let Some((process, role, application, seconds)) = holder else {
            continue;
        };
        if began.elapsed() > PATIENCE {
            return Err(Error::NotMigrated(format!(
                "somebody else migrates this database: process {process} of PostgreSQL (role {role}, application {application:?}), for {seconds:.0} s; if it hangs, SELECT pg_terminate_backend({process}) ends it"
            )));
        }
        tracing::warn!(
            process,
            role,
            application,
            seconds,
            "waiting for somebody else who migrates this database"
        );
    }
}
