//! The servers that a database may be on. One of them takes writes: the primary. A failover makes it another, which every pool follows.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::StreamExt;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, PgPool};
use tokio::sync::{watch, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::certificate::{self, Certificates};
use super::connections::Connections;
use super::doubt::Doubt;
use super::session::{self, Sessions, READ_ONLY};
use super::tunnel::Tunnel;

/// How long a server that is asked where the primary is may take.
const ANSWERS: Duration = Duration::from_secs(2);

/// How long others may take, once one has said that it is the primary: of two that say so, the one that was promoted last is.
const GRACE: Duration = Duration::from_millis(500);

/// How soon all of them are asked again, while none is the primary.
const AGAIN: Duration = Duration::from_millis(200);

/// How often they are looked at, however much doubt there is.
const AT_MOST: Duration = Duration::from_millis(500);

/// One of them, as a URL names it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: PgConnectOptions,
    pub(super) certificates: Certificates,
    /// Where the options lead, once it was seen that they must.
    pub(super) tunnel: OnceLock<(Tunnel, PgConnectOptions)>,
}

impl Server {
    /// How it is reached.
    fn way(&self) -> &PgConnectOptions {
        self.tunnel.get().map_or(&self.options, |(_, through)| through)
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        match self.way().connect().await {
            Err(refused) if self.tunnel.get().is_none() && self.certificates.root.is_some() && certificate::may_be_accepted(&refused) => {
                let opened = Tunnel::open(&self.options, &self.certificates)
                    .await
                    .map_err(|why| sqlx::Error::Tls(why.into()))?;
                self.tunnel.get_or_init(|| opened).1.connect().await
            }
            connected => connected,
        }
    }

    /// A connection to it, if it takes writes. Errors: why it does not serve, in words.
    async fn ask(&self, patience: Duration) -> Result<PgConnection, String> {
        let asking = async {
            let mut connection = self.connect().await?;
            let read_only: Option<String> = session::ask(&mut connection, READ_ONLY).await?;
            if let Some(why) = read_only {
                return Ok(Err(why));
            }
            Ok(Ok(connection))
        };
        match timeout(patience, asking).await {
            Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
            Ok(Err(sqlx::Error::Database(error))) => Err(error.message().to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(answer)) => answer,
        }
    }
}

/// `host:port`, or `folder:port`.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.options.get_socket() {
            Some(folder) => write!(f, "{}:{}", folder.display(), self.options.get_port()),
            None => write!(f, "{}:{}", self.options.get_host(), self.options.get_port()),
        }
    }
}

/// All of them, and what leads to the primary.
#[derive(Debug)]
pub(super) struct Servers {
    all: Vec<Server>,
    /// The primary's place. Whoever subscribes hears when it is found anew.
    primary: watch::Sender<usize>,
    pools: Mutex<Vec<Weak<Pool>>>,
    /// Seen at the start.
    pub(super) sessions: Sessions,
    /// How long a call waits for a connection.
    pub(super) patience: Duration,
    pub(super) doubt: Arc<Doubt>,
}

impl Servers {
    /// Finds the primary among `all` within `at_first`, and connects to it. Errors: why none is, in words.
    pub(super) async fn find(all: Vec<Server>, at_first: Duration, patience: Duration) -> Result<(Arc<Servers>, PgConnection), String> {
        let mut servers = Servers {
            all,
            sessions: Sessions::Own,
            primary: watch::Sender::new(0),
            pools: Mutex::default(),
            patience,
            doubt: Arc::default(),
        };
        let (place, mut connection) = servers.primary(at_first).await?;
        servers.primary.send_replace(place);
        let sessions = session::find(&mut connection, &servers.way()).await;
        servers.sessions = sessions.map_err(|error| error.to_string())?;
        Ok((Arc::new(servers), connection))
    }

    /// The one that takes writes, and a connection to it. Errors: why none does, in words.
    async fn primary(&self, patience: Duration) -> Result<(usize, PgConnection), String> {
        let ask = async |place: usize| {
            let mut connection = self.all[place].ask(patience).await.map_err(|why| (place, why))?;
            let timeline = match self.all.len() {
                1 => 0,
                _ => session::timeline(&mut connection).await,
            };
            Ok((timeline, place, connection))
        };
        let before = self.place();
        let mut asked: FuturesUnordered<_> = (0..self.all.len()).map(ask).collect();
        let mut found: Option<(i64, usize, PgConnection)> = None;
        let mut refusals: Vec<(usize, String)> = Vec::new();
        loop {
            let answer = match found {
                None => asked.next().await,
                Some(_) => timeout(GRACE, asked.next()).await.unwrap_or(None),
            };
            match answer {
                None => break,
                Some(Err(refusal)) => refusals.push(refusal),
                Some(Ok(answer)) => {
                    let rank = |(timeline, place, _): &(i64, usize, PgConnection)| (*timeline, *place == before);
                    if found.as_ref().is_none_or(|found| rank(&answer) > rank(found)) {
                        found = Some(answer);
                    }
                }
            }
        }
        drop(asked);
        match found {
            Some((_, place, connection)) => Ok((place, connection)),
            None if refusals.len() == 1 => Err(refusals.remove(0).1),
            None => {
                refusals.sort_by_key(|(place, _)| *place);
                let all = refusals.iter().map(|(place, why)| format!("{}: {why}", self.all[*place]));
                Err(format!("none of them takes writes: {}", all.collect::<Vec<_>>().join("; ")))
            }
        }
    }

    /// Of the primary, for a connection that belongs to no pool.
    pub(super) fn way(&self) -> PgConnectOptions {
        self.all[self.place()].way().clone()
    }

    /// A pool that leads to the primary, wherever that is, with so many connections for work.
    pub(super) fn pool(&self, connections: u32) -> Arc<Pool> {
        // Held while it is opened: whoever is being led to another server is told of it after that.
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = Arc::new(Pool::new(connections, self.open(connections)));
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Connections to the primary, at most so many, which nothing leads to another.
    pub(super) fn sessions(&self, connections: u32) -> PgPool {
        session::pool(&self.way(), self.sessions, connections, self.patience, self.doubt.clone())
    }

    fn open(&self, work: u32) -> Open {
        Open {
            connections: Connections::new(self.sessions(work + APART)),
            sessions: self.sessions,
            left: (self.all.len() > 1).then(CancellationToken::new),
        }
    }

    /// Looks for the primary when there is doubt, and every now and then, as long as somebody has a pool, until `stop`.
    pub(super) fn follow(self: &Arc<Self>, every: Duration, stop: CancellationToken) {
        if self.all.len() == 1 {
            return;
        }
        let (servers, doubt) = (Arc::downgrade(self), self.doubt.clone());
        tokio::spawn(async move {
            loop {
                let is_raised = tokio::select! {
                    () = stop.cancelled() => return,
                    () = doubt.raised() => true,
                    () = tokio::time::sleep(every) => false,
                };
                let Some(servers) = servers.upgrade() else { return };
                let looking = async {
                    servers.look(is_raised).await;
                    tokio::time::sleep(AT_MOST).await;
                };
                tokio::select! { () = stop.cancelled() => return, () = looking => {} }
            }
        });
    }

    /// Until the pools lead to the primary. Where there is no doubt, it is enough that theirs says that it is; else another may be, which was promoted later.
    async fn look(&self, is_in_doubt: bool) {
        let before = self.place();
        if !is_in_doubt && self.all[before].ask(ANSWERS).await.is_ok() {
            return;
        }
        let began = Instant::now();
        let mut tries = 0;
        let place = loop {
            match self.primary(ANSWERS).await {
                Ok((place, _)) => break place,
                Err(why) => {
                    tries += 1;
                    if tries == 1 {
                        tracing::warn!(why, "there is no primary");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        if place != before || tries > 0 {
            self.primary.send_replace(place);
            self.lead();
            let (server, seconds) = (&self.all[place], began.elapsed().as_secs_f64());
            tracing::warn!(%server, seconds, "the primary is found");
        }
    }

    /// Gives every pool connections to the primary in place of those that it has: what is under way on them comes to nothing.
    fn lead(&self) {
        self.doubt.note(&None);
        let pools: Vec<Arc<Pool>> = {
            let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.iter().filter_map(Weak::upgrade).collect()
        };
        for pool in pools {
            let now = self.open(pool.work);
            let before = std::mem::replace(&mut *pool.now.write().unwrap_or_else(PoisonError::into_inner), now);
            if let Some(left) = before.left {
                left.cancel();
            }
            tokio::spawn(async move { before.connections.close().await });
        }
    }

    /// All of them, and the primary.
    pub(super) fn named(&self) -> (Vec<String>, String) {
        (self.all.iter().map(Server::to_string).collect(), self.all[self.place()].to_string())
    }

    fn place(&self) -> usize {
        *self.primary.borrow()
    }

    /// Ends when a primary is found after this.
    pub(super) fn left(&self) -> impl Future<Output = ()> + use<> {
        let mut primary = self.primary.subscribe();
        async move { drop(primary.changed().await) }
    }
}

/// Of the connections of a pool, so many are never in use for work: one is for heartbeats, one for probes.
pub(super) const APART: u32 = 2;

/// Connections to the primary, wherever that is. Whoever has a turn finds one.
#[derive(Debug)]
pub(super) struct Pool {
    work: u32,
    now: RwLock<Open>,
    pub(super) work_turns: Semaphore,
    pub(super) upkeep_turns: Semaphore,
    pub(super) probe_turns: Semaphore,
}

/// Connections to one server.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) connections: Arc<Connections>,
    pub(super) sessions: Sessions,
    /// Cancelled when they are left for another server; None: there is no other.
    pub(super) left: Option<CancellationToken>,
}

impl Pool {
    pub(super) fn new(work: u32, open: Open) -> Pool {
        Pool {
            work,
            now: RwLock::new(open),
            work_turns: Semaphore::new(work as usize),
            upkeep_turns: Semaphore::new(1),
            probe_turns: Semaphore::new(1),
        }
    }

    /// How many connections it has at most.
    pub(super) fn most(&self) -> u32 {
        self.work + APART
    }

    pub(super) fn now(&self) -> Open {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn close(&self) {
        self.now().connections.close().await;
        // What is under way comes to its end.
        for (turns, all) in [(&self.work_turns, self.work), (&self.upkeep_turns, 1), (&self.probe_turns, 1)] {
            turns.acquire_many(all).await.ok();
        }
    }
}
