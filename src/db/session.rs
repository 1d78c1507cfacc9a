//! What a session with a server is to be: one of our own, on a server that takes writes, with the settings that our statements take for granted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgPool, Row};

use super::doubt::Doubt;

/// What bounds every session on the server's side: a peer that is cut off holds its locks for seconds, not for the hours that TCP allows. And what
/// our statements take for granted, whatever the database or the role sets: above all the search path, since whoever may create functions in a
/// schema on it could put his own in place of PostgreSQL's, and run them as us.
pub(super) const BOUNDS: &str = "
    SET search_path = pg_catalog, pg_temp;
    SET standard_conforming_strings = on;
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = '15s';
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '10s';
    SET client_connection_check_interval = '5s';
    SET tcp_user_timeout = '10s';
    SET tcp_keepalives_idle = '5s';
    SET tcp_keepalives_interval = '2s';
    SET tcp_keepalives_count = 3;
";

/// How our statements are planned: once, since planning costs more than most of them do, and by indexes in nested loops, since each names
/// the few rows it wants, in the order in which the index has them. What the planner knows of tables that are empty in one second and full in the
/// next would mislead it.
pub const PLANS: &str = "
    SET plan_cache_mode = 'force_generic_plan';
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_sort = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET enable_memoize = off;
    SET jit = off;
";

/// Why a server is not worked with, if it is not: what libpq's `target_session_attrs=read-write` asks.
pub(super) const READ_ONLY: &str = "
    SELECT CASE WHEN pg_is_in_recovery() THEN 'it is a standby (in recovery), expected the primary'
                WHEN current_setting('transaction_read_only')::boolean THEN 'its transactions are read-only (default_transaction_read_only)' END";

/// How often the server was promoted, or the one that it is a copy of, as the names of its files say (PostgreSQL 15, 30.6). 0: it does not say.
pub(super) async fn timeline(connection: &mut PgConnection) -> i64 {
    let asked = sqlx::query_scalar("SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint");
    asked.fetch_one(connection).await.unwrap_or(0)
}

/// A pool of one server's connections, for each of which a call waits so long. The server must take writes.
pub(super) fn pool(options: &PgConnectOptions, connections: u32, patience: Duration, doubt: Arc<Doubt>) -> PgPool {
    let pool = sparing(connections, patience).after_connect(move |connection, _| {
        let doubt = doubt.clone();
        Box::pin(async move {
            let read_only = begin(connection).await?;
            doubt.note(&read_only);
            match read_only {
                None => Ok(()),
                Some(why) => Err(sqlx::Error::Configuration(why.into())),
            }
        })
    });
    pool.connect_lazy_with(options.clone())
}

/// The same of a server that is only asked, and may be a standby.
pub(super) fn readers(options: &PgConnectOptions, connections: u32, patience: Duration) -> PgPool {
    let pool = sparing(connections, patience).after_connect(|connection, _| Box::pin(async move { begin(connection).await.map(drop) }));
    pool.connect_lazy_with(options.clone())
}

/// A round trip for every call is too much; a connection that has been idle may have been cut off.
fn sparing(connections: u32, patience: Duration) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(patience)
        .test_before_acquire(false)
        .before_acquire(|connection, about| {
            Box::pin(async move {
                if about.idle_for >= Duration::from_secs(5) {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
}

/// Prepares a connection of the pool. Returns why the server is not worked with, if it is not.
async fn begin(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    connection.execute(BOUNDS).await?;
    connection.execute(PLANS).await?;
    sqlx::query_scalar(READ_ONLY).fetch_one(connection).await
}

/// How often two connections are asked, in turns, which process serves them.
const ASKED: usize = 3;

/// How long a second connection may take. A pooler whose sessions are all taken would make it wait for one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether something between here and the server gives each transaction another session (PgBouncer's `pool_mode = transaction` or `statement`):
/// one process of the server serves two connections, or more than one serves the same. Where no second connection can be had, the first tells what
/// it can.
pub(super) async fn are_pooled_by_transaction(first: &mut PgConnection, options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let second = tokio::time::timeout(PATIENCE, options.connect()).await;
    let mut second = second.ok().and_then(Result::ok);
    let (mut of_first, mut of_second) = (HashSet::new(), HashSet::new());
    for _ in 0..ASKED {
        of_first.insert(serving(first).await?);
        if let Some(second) = &mut second {
            of_second.insert(serving(second).await?);
        }
    }
    if let Some(second) = second {
        second.close().await?;
    }
    Ok(of_first.len() > 1 || of_second.len() > 1 || !of_first.is_disjoint(&of_second))
}

/// The server's process that runs this statement; which is not prepared, since another process would not know it.
async fn serving(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    connection.fetch_one("SELECT pg_backend_pid()").await?.try_get(0)
}
