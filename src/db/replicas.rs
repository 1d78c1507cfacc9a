//! Servers that answer who only looks, as long as they are not too far behind the primary.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::ConnectOptions;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connections::Connections;
use super::doubt::Doubt;
use super::servers::{Open, Pool, Server};
use super::session::{self, Sessions};
use super::Db;

/// How often it is asked how far they are.
const EVERY: Duration = Duration::from_secs(1);

/// How long a server may take to say so, and how long a call waits for a connection to one.
const ANSWERS: Duration = Duration::from_secs(1);

/// How far a server is: the end of what it has written, or replayed, in bytes (PostgreSQL 15, 8.20).
const WRITTEN: &str = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
const REPLAYED: &str = "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint";

tokio::task_local! {
    static OLDEST: Cell<Option<Duration>>;
}

/// What `looking` finds, and how old that may be, if any of it was a replica's answer. What it spawns does not count.
pub(crate) async fn aged<T>(looking: impl Future<Output = T>) -> (T, Option<Duration>) {
    let noting = async {
        let found = looking.await;
        (found, OLDEST.with(Cell::get))
    };
    OLDEST.scope(Cell::default(), noting).await
}

/// An answer so old is asked for.
pub(super) fn note(age: Duration) {
    // Who does not want to know is not told.
    let _ = OLDEST.try_with(|oldest| oldest.set(oldest.get().max(Some(age))));
}

/// All of them.
#[derive(Debug)]
pub(super) struct Replicas {
    all: Vec<Replica>,
    /// How old an answer may be.
    max_lag: Duration,
    chosen: Mutex<Chosen>,
    doubt: Arc<Doubt>,
}

#[derive(Debug)]
struct Replica {
    server: Server,
    pool: Arc<Pool>,
}

#[derive(Debug, Default)]
struct Chosen {
    /// The place of the one that is asked, and since when it has all that was committed before; None: the primary is.
    of: Option<(usize, Instant)>,
    /// Until when whoever has changed something wants to see it.
    primary_until: Option<Instant>,
}

impl Replicas {
    /// Each has so many connections, which are made when they are needed.
    pub(super) fn new(servers: Vec<Server>, connections: u32, max_lag: Duration) -> Replicas {
        let doubt = Arc::<Doubt>::default();
        let replica = |server: Server| Replica {
            pool: Arc::new(Pool::new(
                connections,
                Open {
                    connections: Connections::new(session::readers(&server.options, connections, ANSWERS)),
                    // It was not asked.
                    sessions: Sessions::Shared,
                    left: None,
                },
            )),
            server,
        };
        Replicas {
            all: servers.into_iter().map(replica).collect(),
            max_lag,
            chosen: Mutex::default(),
            doubt,
        }
    }

    /// The one to be asked now, what is to be told of its failures, and how old its answers are; None: the primary is.
    pub(super) fn now(&self) -> Option<(&Pool, &Doubt, Duration)> {
        let chosen = self.chosen();
        if chosen.primary_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let (place, since) = chosen.of.filter(|(_, since)| since.elapsed() <= self.max_lag)?;
        Some((&self.all[place].pool, &self.doubt, since.elapsed()))
    }

    /// Something was changed: for as long as a replica may not have it, the primary is asked.
    pub(super) fn look_away(&self) {
        self.chosen().primary_until = Some(Instant::now() + self.max_lag);
    }

    fn chosen(&self) -> MutexGuard<'_, Chosen> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows how far they are, until `stop`.
    pub(super) fn follow(self: &Arc<Self>, db: &Db, stop: CancellationToken) {
        let (replicas, db) = (Arc::downgrade(self), db.clone());
        tokio::spawn(async move {
            let mut written: VecDeque<(Instant, i64)> = VecDeque::new();
            let mut connections: Vec<Option<PgConnection>> = Vec::new();
            loop {
                let Some(replicas) = replicas.upgrade() else { return };
                let looking = replicas.look(&db, &mut written, &mut connections);
                tokio::select! { () = stop.cancelled() => return, () = looking => {} }
                let doubt = replicas.doubt.clone();
                drop(replicas);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = doubt.raised() => {}
                    () = tokio::time::sleep(EVERY) => {}
                }
            }
        });
    }

    /// Asks the primary how far it is, and the others whether they are there: a moment whose end of the log a replica has replayed is one up to which it
    /// knows everything.
    async fn look(&self, db: &Db, written: &mut VecDeque<(Instant, i64)>, connections: &mut Vec<Option<PgConnection>>) {
        let now = Instant::now();
        if let Ok(Ok(end)) = timeout(ANSWERS, sqlx::query_scalar(WRITTEN).fetch_one(db.probes())).await {
            written.push_back((now, end));
        }
        while written.front().is_some_and(|(at, _)| at.elapsed() > self.max_lag) {
            written.pop_front();
        }
        connections.resize_with(self.all.len(), || None);
        let mut freshest: Option<(usize, Instant)> = None;
        for (place, (replica, connection)) in self.all.iter().zip(connections).enumerate() {
            let replayed = timeout(ANSWERS, replica.server.replayed(connection)).await;
            let Ok(Some(replayed)) = replayed else {
                *connection = None;
                continue;
            };
            let since = written.iter().rev().find(|(_, end)| *end <= replayed).map(|(at, _)| *at);
            if let Some(since) = since.filter(|since| freshest.is_none_or(|(_, best)| *since > best)) {
                freshest = Some((place, since));
            }
        }
        self.chosen().of = freshest;
    }
}

impl Server {
    /// How far it has replayed; None: it does not answer, or is no replica.
    async fn replayed(&self, connection: &mut Option<PgConnection>) -> Option<i64> {
        if connection.is_none() {
            *connection = self.options.connect().await.ok();
        }
        let connection = connection.as_mut()?;
        session::ask(connection, REPLAYED).await.ok().flatten()
    }
}
