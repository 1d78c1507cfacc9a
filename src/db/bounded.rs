//! A pool through which no call waits for ever: PostgreSQL may be black-holed, and TCP alone would notice in a quarter of an hour.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, PgConnection, Postgres};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::connections::{Connection, Connections};
use super::doubt::Doubt;
use super::servers::{Open, Pool};
use super::session::{Sessions, TRANSACTION};

/// No answer for this long means that there will be none: PostgreSQL itself ends every statement earlier (`BOUNDS` in session.rs).
pub(super) const ANSWER: Duration = Duration::from_secs(20);

/// A call that waits so long for a connection waits too long.
const SLOW: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounded<'p> {
    pub(super) pool: &'p Pool,
    /// Whose turn it is with one of the pool's connections.
    pub(super) turns: &'p Semaphore,
    pub(super) waits: &'p Waits,
    pub(super) doubt: &'p Doubt,
    /// A replica gives its answers: there may be something in the primary that they do not have.
    pub(crate) is_of_a_replica: bool,
}

/// Whether calls wait too long for a connection.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<Option<Instant>>);

impl Waits {
    /// Whether one did, within so long.
    pub(super) fn were_long(&self, within: Duration) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() < within)
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl<'p> Bounded<'p> {
    async fn acquire(&self) -> Result<Borrowed<'p>, sqlx::Error> {
        loop {
            let Open {
                connections,
                sessions,
                left,
            } = self.pool.now();
            let acquired = unless_left(&left, self.acquire_from(&connections)).await;
            match acquired {
                Err(_) if left.as_ref().is_some_and(CancellationToken::is_cancelled) => {}
                acquired => {
                    let (turn, connection) = acquired?;
                    return Ok(Borrowed {
                        connection: Some(connection),
                        from: connections,
                        sessions,
                        finished: false,
                        left,
                        _turn: turn,
                    });
                }
            }
        }
    }

    async fn acquire_from(&self, connections: &Connections) -> Result<(SemaphorePermit<'p>, Connection), sqlx::Error> {
        let taking = async {
            let turn = self.turns.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
            Ok((turn, connections.take().await?))
        };
        let patience = connections.pool.options().get_acquire_timeout();
        let mut acquiring = pin!(async {
            tokio::time::timeout(patience, taking)
                .await
                .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        });
        if let Ok(acquired) = tokio::time::timeout(SLOW, &mut acquiring).await {
            return acquired;
        }
        self.waits.note();
        self.doubt.raise();
        let acquired = acquiring.await;
        self.waits.note();
        acquired
    }
}

impl Bounded<'_> {
    /// Does `work` in a transaction, which is rolled back, and its connection closed, when that fails or is given up. Each of its statements is to be
    /// [`answered`].
    pub(crate) async fn within<T>(&self, work: impl AsyncFnOnce(&mut Transaction<'_>) -> Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let mut borrowed = self.acquire().await?;
        let sessions = borrowed.sessions;
        let left = borrowed.left.clone();
        let connection = borrowed.connection()?;
        let done = unless_left(&left, async {
            let begin = match sessions {
                Sessions::Own => "BEGIN",
                Sessions::Shared => TRANSACTION.as_str(),
            };
            answered(connection.execute(begin)).await?;
            let done = work(&mut Transaction { connection, sessions }).await?;
            answered(end(connection, true)).await?;
            Ok(done)
        })
        .await;
        borrowed.finished = done.is_ok();
        if !is_finished(&done) {
            self.doubt.raise();
        }
        done
    }
}

/// A connection that goes back to the pool only when its work was finished. Otherwise (no answer, or nobody waits for it any more) it is
/// closed: who knows what is still to come through it.
struct Borrowed<'p> {
    /// Until it is given back.
    connection: Option<Connection>,
    from: Arc<Connections>,
    sessions: Sessions,
    finished: bool,
    /// Cancelled when its server is not the primary any more.
    left: Option<CancellationToken>,
    /// Until then nobody else is given one in its place.
    _turn: SemaphorePermit<'p>,
}

impl Borrowed<'_> {
    fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.connection.as_mut().map(Connection::get).ok_or(sqlx::Error::PoolClosed)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.finished) {
            self.from.give_back(connection);
        }
    }
}

/// Whether it is the server that this connection leads to that is at fault, so that another connection may be better: it is read-only by now (25006),
/// or shuts down, crashed, or starts (57P01, 57P02, 57P03).
fn is_of_the_server(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["25006", "57P01", "57P02", "57P03"].contains(&code.as_ref()))
}

/// Waits for an answer of PostgreSQL's for [`ANSWER`] at most.
pub(crate) async fn answered<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let no_answer = || io::Error::new(io::ErrorKind::TimedOut, "no answer from PostgreSQL");
    tokio::time::timeout(ANSWER, work)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(no_answer())))
}

/// Does `work`, as long as the server that it is done on is not left for another.
async fn unless_left<T>(left: &Option<CancellationToken>, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let Some(left) = left else { return work.await };
    let done = left.run_until_cancelled(work).await;
    done.unwrap_or_else(|| {
        Err(sqlx::Error::Io(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "another server is the primary by now",
        )))
    })
}

/// Whether the connection may be used again: it has nothing more to say, and leads to a server that works.
fn is_finished<T>(answer: &Result<T, sqlx::Error>) -> bool {
    match answer {
        Ok(_) => true,
        Err(sqlx::Error::Io(_)) => false,
        Err(error) => !is_of_the_server(error),
    }
}

/// Ends the transaction that a call was given.
async fn end(connection: &mut PgConnection, is_done: bool) -> Result<(), sqlx::Error> {
    connection.execute(if is_done { "COMMIT" } else { "ROLLBACK" }).await.map(drop)
}

/// Runs what `$work` makes of a connection, as far as it is answered: in a transaction of its own, where the next one may have another session.
macro_rules! bounded {
    ($bounded:expr, $connection:ident, $query:ident => $work:expr) => {{
        let mut borrowed = $bounded.acquire().await?;
        let sessions = borrowed.sessions;
        let $query = Prepared { query: $query, sessions };
        let left = borrowed.left.clone();
        let $connection = borrowed.connection()?;
        let work = async {
            if sessions == Sessions::Own {
                return $work.await;
            }
            if let Err(error) = $connection.execute(TRANSACTION.as_str()).await {
                end($connection, false).await?;
                return Err(error);
            }
            let answer = $work.await;
            if is_finished(&answer) {
                end($connection, answer.is_ok()).await?;
            }
            answer
        };
        let answer = unless_left(&left, answered(work)).await;
        borrowed.finished = is_finished(&answer);
        if !borrowed.finished {
            $bounded.doubt.raise();
        }
        answer
    }};
}

/// A statement that is prepared for as long as the session lasts.
struct Prepared<E> {
    query: E,
    sessions: Sessions,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Prepared<E> {
    fn sql(&self) -> &'q str {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement<'q>> {
        self.query.statement().filter(|_| self.persistent())
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.sessions == Sessions::Own && self.query.persistent()
    }
}

impl<'p> Executor<'p> for Bounded<'p> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let rows = async move { bounded!(self, connection, query => connection.fetch_many(query).try_collect::<Vec<_>>()) };
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
        Box::pin(async move { bounded!(self, connection, query => connection.fetch_optional(query)) })
    }

    fn prepare_with<'e, 'q: 'e>(self, _: &'q str, _: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement<'q>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async { Err(prepared_elsewhere()) })
    }

    fn describe<'e, 'q: 'e>(self, _: &'q str) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async { Err(prepared_elsewhere()) })
    }
}

/// A transaction under way.
#[derive(Debug)]
pub(crate) struct Transaction<'c> {
    connection: &'c mut PgConnection,
    sessions: Sessions,
}

impl<'t> Executor<'t> for &'t mut Transaction<'_> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        't: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let sessions = self.sessions;
        self.connection.fetch_many(Prepared { query, sessions })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        't: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let sessions = self.sessions;
        self.connection.fetch_optional(Prepared { query, sessions })
    }

    fn prepare_with<'e, 'q: 'e>(self, _: &'q str, _: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement<'q>, sqlx::Error>>
    where
        't: 'e,
    {
        Box::pin(async { Err(prepared_elsewhere()) })
    }

    fn describe<'e, 'q: 'e>(self, _: &'q str) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        't: 'e,
    {
        Box::pin(async { Err(prepared_elsewhere()) })
    }
}

/// A statement that somebody keeps would be unknown to the session that the next transaction has.
fn prepared_elsewhere() -> sqlx::Error {
    sqlx::Error::Configuration("no statement is prepared but by running it".into())
}
