//! What a session with a server is to be: on a server that takes writes, with the settings that our statements take for granted. Behind a pooler that gives
//! each transaction another session, that is for each transaction to say.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Decode, Executor, PgPool, Postgres, Row, Type};

use super::doubt::Doubt;

/// What bounds every session on the server's side: a peer that is cut off holds its locks for seconds. And what
/// our statements take for granted, whatever the database or the role sets: above all the search path, since whoever may create functions in a
/// schema on it could put his own in place of PostgreSQL's, and run them as us.
const BOUNDS: &str = "
    SET search_path = pg_catalog, pg_temp;
    SET standard_conforming_strings = on;
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = '15s';
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '10s';
";

/// What bounds a connection to PostgreSQL itself, whose peer may be cut off for the hours that TCP allows.
const KEEPALIVE: &str = "
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

/// Begins a transaction in a session that is another's after it, with what a session of our own is told once.
pub(super) static TRANSACTION: LazyLock<String> = LazyLock::new(|| {
    let settings = [BOUNDS, PLANS].concat().replace("SET ", "SET LOCAL ");
    format!("BEGIN ISOLATION LEVEL READ COMMITTED;{settings}")
});

/// Whose a connection's session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sessions {
    /// The connection's own, until it ends.
    Own,
    /// A pooler's (PgBouncer's `pool_mode = transaction`), which may give each transaction another: nothing of one lasts longer than that, neither settings nor
    /// statements that were prepared.
    Shared,
}

/// Why a server is not worked with, if it is not: what libpq's `target_session_attrs=read-write` asks.
pub(super) const READ_ONLY: &str = "
    SELECT CASE WHEN pg_is_in_recovery() THEN 'it is a standby (in recovery), expected the primary'
                WHEN current_setting('transaction_read_only')::boolean THEN 'its transactions are read-only (default_transaction_read_only)' END";

/// Which database of which server, as long as both run: a session of another says something else.
pub(super) const PLACE: &str = "
    SELECT concat_ws(' ', pg_postmaster_start_time(), (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// How often the server was promoted, or the one that it is a copy of, as the names of its files say (PostgreSQL 15, 30.6). 0: it does not say.
pub(super) async fn timeline(connection: &mut PgConnection) -> i64 {
    let asked = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint";
    ask(connection, asked).await.unwrap_or(0)
}

/// What one statement says, which is not prepared: behind a pooler another session may be asked to run it.
pub(super) async fn ask<T>(connection: &mut PgConnection, sql: &str) -> Result<T, sqlx::Error>
where
    T: for<'r> Decode<'r, Postgres> + Type<Postgres>,
{
    connection.fetch_one(sql).await?.try_get(0)
}

/// A pool of one server's connections, for each of which a call waits so long. The server must take writes.
pub(super) fn pool(options: &PgConnectOptions, sessions: Sessions, connections: u32, patience: Duration, doubt: Arc<Doubt>) -> PgPool {
    let pool = sparing(connections, patience).after_connect(move |connection, _| {
        let doubt = doubt.clone();
        Box::pin(async move {
            if sessions == Sessions::Own {
                begin(connection).await?;
            }
            let read_only: Option<String> = ask(connection, READ_ONLY).await?;
            doubt.note(&read_only);
            match read_only {
                None => Ok(()),
                Some(why) => Err(sqlx::Error::Configuration(why.into())),
            }
        })
    });
    pool.connect_lazy_with(options.clone())
}

/// The same of a server that is only asked, may be a standby, and may have a pooler in front of it.
pub(super) fn readers(options: &PgConnectOptions, connections: u32, patience: Duration) -> PgPool {
    sparing(connections, patience).connect_lazy_with(options.clone())
}

/// Whoever has a connection keeps it (`connections.rs`): it comes back only to be closed.
fn sparing(connections: u32, patience: Duration) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(patience)
}

async fn begin(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(BOUNDS).await?;
    connection.execute(KEEPALIVE).await?;
    connection.execute(PLANS).await.map(drop)
}

/// Whether a transaction may have more than one statement: not where each has another session.
pub(super) async fn may_begin(connection: &mut PgConnection) -> bool {
    connection.execute("BEGIN").await.is_ok() && connection.execute("ROLLBACK").await.is_ok()
}

/// In which order two connections are asked which process serves them: where it is for each statement the one that has not been used for longest, or
/// the one that was used last, that tells.
const ASKED: [usize; 7] = [0, 0, 1, 1, 0, 1, 0];

/// How long a second connection may take. A pooler whose sessions are all taken would make it wait for one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether something between here and the server gives each transaction another session (PgBouncer's `pool_mode = transaction` or `statement`):
/// one process of the server serves two connections, or more than one serves the same. Where no second connection can be had, the first tells what
/// it can.
pub(super) async fn find(first: &mut PgConnection, options: &PgConnectOptions) -> Result<Sessions, sqlx::Error> {
    let second = tokio::time::timeout(PATIENCE, options.connect()).await;
    let mut second = second.ok().and_then(Result::ok);
    let mut serving = [HashSet::new(), HashSet::new()];
    for place in ASKED {
        let connection = match (place, &mut second) {
            (0, _) => &mut *first,
            (_, Some(second)) => second,
            (_, None) => continue,
        };
        serving[place].insert(ask::<i32>(connection, "SELECT pg_backend_pid()").await?);
    }
    if let Some(second) = second {
        second.close().await?;
    }
    let [of_first, of_second] = serving;
    Ok(
        match of_first.len() > 1 || of_second.len() > 1 || !of_first.is_disjoint(&of_second) {
            true => Sessions::Shared,
            false => Sessions::Own,
        },
    )
}
