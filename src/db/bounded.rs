//! A pool through which no call waits for ever: PostgreSQL may be black-holed, and TCP alone would notice in a quarter of an hour.

use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, PgConnection, PgPool, Postgres};

/// No answer for this long means that there will be none: PostgreSQL itself ends every statement earlier (`BOUNDS` in db.rs).
const ANSWER: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounded<'p>(pub(super) &'p PgPool);

/// A connection that goes back to the pool only when its work was finished. Otherwise (no answer, or nobody waits for it any more) it is
/// closed: who knows what is still to come through it.
struct Borrowed {
    connection: PoolConnection<Postgres>,
    finished: bool,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if !self.finished {
            self.connection.close_on_drop();
        }
    }
}

/// Runs what `$work` makes of a connection, for [`ANSWER`] at most.
macro_rules! bounded {
    ($pool:expr, $connection:ident => $work:expr) => {{
        let mut borrowed = Borrowed {
            connection: $pool.acquire().await?,
            finished: false,
        };
        let $connection: &mut PgConnection = &mut borrowed.connection;
        let answer = tokio::time::timeout(ANSWER, $work).await;
        borrowed.finished = answer.is_ok();
        answer.unwrap_or_else(|_| {
            Err(sqlx::Error::Io(io::Error::new(
                io::ErrorKind::TimedOut,
                "no answer from PostgreSQL",
            )))
        })
    }};
}

impl<'p> Executor<'p> for Bounded<'p> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let rows = async move { bounded!(self.0, connection => connection.fetch_many(query).try_collect::<Vec<_>>()) };
        stream::once(rows)
            .map_ok(|rows| stream::iter(rows.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move { bounded!(self.0, connection => connection.fetch_optional(query)) })
    }

    fn prepare_with<'e, 'q: 'e>(self, sql: &'q str, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement<'q>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move { bounded!(self.0, connection => connection.prepare_with(sql, parameters)) })
    }

    fn describe<'e, 'q: 'e>(self, sql: &'q str) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move { bounded!(self.0, connection => connection.describe(sql)) })
    }
}
