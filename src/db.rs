//! The database: the pool, the migrations, and what wakes a waiting process.

mod bounded;
mod certificate;
mod connections;
mod doubt;
mod migrations;
mod replicas;
mod servers;
mod session;
mod target;
mod tunnel;
mod turn;
mod wake;

pub(crate) use bounded::{answered, Transaction};
pub use migrations::Repaired;
pub use session::PLANS;
pub(crate) use turn::Turn;
pub(crate) use wake::{channel, wait, Told, Wake};

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use bounded::{Bounded, Waits};
use doubt::Doubt;
pub(crate) use replicas::aged;
use replicas::Replicas;
use servers::{Pool, Servers};
use session::{Sessions, READ_ONLY};
use target::Target;

use crate::config::{FailoverConfig, ReplicaConfig, Secret, Settings};
use crate::error::{Error, Result};
use crate::redaction::Redaction;

/// How long the first connection may take.
const FIRST: Duration = Duration::from_secs(10);

/// How long closing them all may take.
const CLOSE: Duration = Duration::from_secs(10);

/// How many connections are kept apart from those for work: those that a pool keeps, and one to LISTEN.
const APART: u32 = servers::APART + 1;

/// After a call had to wait too long for a connection, the pool is too small for that long.
const PRESSED: Duration = Duration::from_secs(10);

/// How many connections are there, but for the one to LISTEN, and how many of them wait for something to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolUse {
    /// At most.
    pub max: u32,
    /// Now.
    pub open: u32,
    /// Of those that are open, not in use.
    pub idle: u32,
}

impl PoolUse {
    /// Of both together.
    pub(crate) fn and(self, other: PoolUse) -> PoolUse {
        PoolUse {
            max: self.max + other.max,
            open: self.open + other.open,
            idle: self.idle + other.idle,
        }
    }
}

/// The connections of one process to one database. Cheap to clone.
///
/// # How many
///
/// A worker keeps at most seven busy, however many queues it has and handlers it runs: two queues at once lease, with two calls at most, and three commits of reports
/// are under way; three are as fast. An orchestrator's loops are short, and three connections serve them all, too. Three more are kept apart, because they must not wait while all the others are in
/// use: one for heartbeats, one for probes (made when the first of them comes), and one to LISTEN. So each wants 6; with fewer, from 4 on, work waits for its turn, for
/// 10 s at most. The one that was used last is used next, whoever wants it, and one that nobody has used for 30 s is closed: a process that has nothing to do has two.
/// PostgreSQL must allow the sum over all processes (`max_connections`).
#[derive(Clone)]
pub struct Db {
    pool: Arc<Pool>,
    waits: Arc<Waits>,
    servers: Arc<Servers>,
    /// With sessions of our own; None: a pooler is all that is known.
    direct: Option<Arc<Servers>>,
    replicas: Option<Arc<Replicas>>,
    closing: CancellationToken,
    target: String,
    installation: Arc<OnceLock<String>>,
    redaction: Redaction,
    is_for_people: bool,
}

/// The options have the password.
impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.target)
    }
}

impl Db {
    /// Connects, and proves it with one connection.
    ///
    /// `url` is `postgres://user:password@host:port/database`, with commas between several hosts of which one is the primary; `max_connections`, at least 4, is never exceeded while one orchestrator
    /// or one worker runs on it. Errors: [`Error::Config`] for a URL that cannot be read, a parameter in it that we do not know, too few connections,
    /// a database that is not in UTF8 or a pooler that pools statements, [`Error::Unreachable`] when there is no answer within 10 s (or its `connect_timeout`), a refusal, or the
    /// server is a standby or read-only.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Db> {
        Db::following(url, max_connections, &FailoverConfig::default()).await
    }

    /// The same, where it is said how a failover is followed.
    pub async fn following(url: &str, max_connections: u32, failover: &FailoverConfig) -> Result<Db> {
        let Target { servers, patience } = Target::parse(url)?;
        if max_connections <= APART {
            return Err(Error::Config(format!(
                "{max_connections} database connections are too few: expected at least {}, one of them for heartbeats, one for probes and one to LISTEN",
                APART + 1
            )));
        }
        let target = target::named(&servers);
        let unreachable = |reason: String| Error::Unreachable {
            target: target.clone(),
            reason,
        };
        // A pool hides why it cannot connect behind its own timeout: ask directly first.
        let (servers, mut connection) = Servers::find(servers, patience.unwrap_or(FIRST), failover.timeout)
            .await
            .map_err(unreachable)?;
        if servers.sessions == Sessions::Shared && !session::may_begin(&mut connection).await {
            return Err(Error::Config(format!(
                "a pooler stands in front of {target} that gives each statement another session (PgBouncer's pool_mode = statement): expected \
                 pool_mode = transaction or session for this database (docs/deployment.md)"
            )));
        }
        let encoding: String = session::ask(&mut connection, "SHOW server_encoding").await?;
        if encoding != "UTF8" {
            return Err(Error::Config(format!(
                "the database at {target} has the encoding {encoding}: expected UTF8, as CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0 makes it"
            )));
        }
        let allowed = "SELECT setting::bigint FROM pg_settings WHERE name = 'max_connections'";
        let allowed: i64 = session::ask(&mut connection, allowed).await?;
        if servers.sessions == Sessions::Own && i64::from(max_connections) > allowed {
            tracing::warn!(
                max_connections,
                allowed,
                "PostgreSQL allows fewer connections than this process may want"
            );
        }
        connection.close().await?;
        let closing = CancellationToken::new();
        servers.follow(failover.check_interval, closing.clone());
        Ok(Db {
            pool: servers.pool(max_connections - APART),
            direct: Some(servers.clone()).filter(|servers| servers.sessions == Sessions::Own),
            servers,
            replicas: None,
            waits: Arc::default(),
            closing,
            target,
            installation: Arc::default(),
            redaction: Redaction::default(),
            is_for_people: false,
        })
    }

    /// As the settings have it, at `url`. Errors: those of [`Db::connect`].
    pub async fn configured(url: &str, max_connections: u32, settings: &Settings) -> Result<Db> {
        let db = Db::following(url, max_connections, &settings.failover).await?;
        let db = match &settings.direct.url {
            Some(direct) => db.with_direct(direct, &settings.failover).await?,
            None => db,
        };
        Ok(db.redacting(settings.redaction()?))
    }

    /// The same database, whose own address this is: where a pooler stands in front of it, it is to LISTEN and to migrate by.
    async fn with_direct(self, url: &Secret, failover: &FailoverConfig) -> Result<Db> {
        let Target { servers, patience } = Target::parse(url.reveal())?;
        let target = target::named(&servers);
        let found = Servers::find(servers, patience.unwrap_or(FIRST), failover.timeout).await;
        let (direct, mut connection) = found.map_err(|reason| Error::Unreachable {
            target: target.clone(),
            reason,
        })?;
        if direct.sessions == Sessions::Shared {
            return Err(Error::Config(format!(
                "direct.url leads to {target}, where a pooler gives each transaction another session: expected PostgreSQL's own address"
            )));
        }
        let there: String = session::ask(&mut connection, session::PLACE).await?;
        connection.close().await?;
        let here: String = sqlx::query_scalar(session::PLACE).fetch_one(self.pool()).await?;
        if here != there {
            return Err(Error::Config(format!(
                "direct.url leads to {target}, which is another database than that of {}",
                self.target
            )));
        }
        direct.follow(failover.check_interval, self.closing.clone());
        Ok(Db {
            direct: Some(direct),
            ..self
        })
    }

    /// Where sessions are our own. Errors: [`Error::Config`] where a pooler is all that is known.
    fn direct(&self) -> Result<&Arc<Servers>> {
        self.direct.as_ref().ok_or_else(|| {
            Error::Config(format!(
                "a pooler stands in front of {} that gives each transaction another session: expected PostgreSQL's own address as direct.url, or \
                 in place of the pooler's (docs/deployment.md)",
                self.target
            ))
        })
    }

    /// The same database through other connections, which are made when they are needed: `connections` at most, and one more for what is asked on that of
    /// the probes. Whoever uses these takes none from the others.
    pub fn apart(&self, connections: u32) -> Db {
        Db {
            pool: self.servers.pool(connections),
            waits: Arc::default(),
            ..self.clone()
        }
    }

    /// The same, where some values are nobody's business: no error quotes them.
    pub fn redacting(self, redaction: Redaction) -> Db {
        Db { redaction, ..self }
    }

    /// The same for what people look at: nor are those values in what is read through it.
    pub fn for_people(self) -> Db {
        Db {
            is_for_people: true,
            ..self
        }
    }

    /// What no error may quote.
    pub(crate) fn redaction(&self) -> &Redaction {
        &self.redaction
    }

    /// What is hidden from whoever reads.
    pub(crate) fn hidden(&self) -> Redaction {
        match self.is_for_people {
            true => self.redaction.clone(),
            false => Redaction::default(),
        }
    }

    /// The pool, for [`crate::engine`]: no call through it waits for ever.
    pub(crate) fn pool(&self) -> Bounded<'_> {
        self.bounded(&self.pool.work_turns)
    }

    /// The same for what only looks: where people do, a replica answers that is not too far behind, if there is one.
    pub(crate) fn readers(&self) -> Bounded<'_> {
        self.replica_or(self.pool())
    }

    /// The same for what else would be asked on the connection that is kept for probes.
    pub(crate) fn probing_readers(&self) -> Bounded<'_> {
        self.replica_or(self.probes())
    }

    fn replica_or<'d>(&'d self, primary: Bounded<'d>) -> Bounded<'d> {
        match self.replica() {
            Some((pool, doubt, age)) => {
                replicas::note(age);
                Bounded {
                    pool,
                    turns: &pool.work_turns,
                    doubt,
                    is_of_a_replica: true,
                    ..primary
                }
            }
            None => primary,
        }
    }

    fn replica(&self) -> Option<(&Pool, &Doubt, Duration)> {
        self.replicas.as_ref().filter(|_| self.is_for_people)?.now()
    }

    /// How old an answer of [`Db::readers`] would be now; None: it would be of now.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.replica().map(|(.., age)| age)
    }

    /// Something was changed, and whoever did it will look at it.
    pub(crate) fn note_change(&self) {
        if let Some(replicas) = &self.replicas {
            replicas.look_away();
        }
    }

    /// The same database, of which these servers, if there are any, have copies for people: each with so many connections at most.
    /// Errors: [`Error::Config`] for a URL that cannot be read.
    pub fn with_replicas(self, config: &ReplicaConfig, connections: u32) -> Result<Db> {
        let Some(url) = &config.url else { return Ok(self) };
        let servers = Target::parse(url.reveal())?.servers;
        let replicas = Arc::new(Replicas::new(servers, connections, config.max_lag));
        replicas.follow(&self, self.closing.clone());
        Ok(Db {
            replicas: Some(replicas),
            ..self
        })
    }

    /// The same for heartbeats, on the connection that is kept for them.
    pub(crate) fn upkeep(&self) -> Bounded<'_> {
        self.bounded(&self.pool.upkeep_turns)
    }

    /// The same for probes.
    pub(crate) fn probes(&self) -> Bounded<'_> {
        self.bounded(&self.pool.probe_turns)
    }

    fn bounded<'p>(&'p self, turns: &'p Semaphore) -> Bounded<'p> {
        Bounded {
            pool: &self.pool,
            turns,
            waits: &self.waits,
            doubt: &self.servers.doubt,
            is_of_a_replica: false,
        }
    }

    /// Whether a call had to wait too long for a connection, within the last 10 s.
    pub(crate) fn is_pressed(&self) -> bool {
        self.waits.were_long(PRESSED)
    }

    /// Why the server that answers is not worked with, when it is not: it is a standby, or read-only.
    pub(crate) fn refusal(&self) -> Option<String> {
        let refusal = self.servers.doubt.refusal();
        refusal
            .as_ref()
            .map(|why| format!("the server at {} cannot be worked with: {why}", self.target))
    }

    /// Errors with [`Error::Unreachable`] when the server takes no writes (any more).
    pub(crate) async fn check_writable(&self) -> Result<()> {
        let read_only: Option<String> = sqlx::query_scalar(READ_ONLY).fetch_one(self.probes()).await?;
        match read_only {
            None => Ok(()),
            Some(reason) => Err(Error::Unreachable {
                target: self.target.clone(),
                reason,
            }),
        }
    }

    /// host:port of each server that the database may be on, and that of the primary.
    pub(crate) fn servers(&self) -> (Vec<String>, String) {
        self.servers.named()
    }

    /// How long a call can take, from wanting a connection to giving up on an answer.
    pub(crate) fn longest_call(&self) -> Duration {
        self.servers.patience + bounded::ANSWER
    }

    /// How much of the pool is in use.
    pub fn pool_use(&self) -> PoolUse {
        let (open, idle) = self.pool.now().connections.count();
        PoolUse {
            max: self.pool.most(),
            open,
            idle,
        }
    }

    /// Host, port, user and database, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Closes every connection, after what is under way; what does not end within 10 s is left to the server's own bounds.
    pub async fn close(&self) {
        self.closing.cancel();
        if tokio::time::timeout(CLOSE, self.pool.close()).await.is_err() {
            tracing::warn!(database = self.target, "connections to the database could not be closed in time");
        }
    }
}
