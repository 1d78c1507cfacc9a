//! Health: what a process says of itself, and of the fleet, to those who ask. Three levels:
//!
//! - **live**: does it work, or must it be started again? Its loops beat, its memory is under the limit, and the database has not been away
//!   for longer than a grace: a database that is away is not mended by starting all workers again at once.
//! - **ready**: should it be given work now? The database answers and has the schema that this program needs, the queues can be worked with,
//!   calls do not wait for connections, and it is not shutting down. To a worker its own queues matter; another process only says which cannot be.
//! - **detailed**: what an operator wants to know of it and of the fleet.
//!
//! Each answers in bounded time, whatever the database does, on a connection of its own; and however many ask at once, the
//! database is asked once a second at most.

mod beats;
mod database;
mod fresh;
pub mod local;
mod loops;
mod memory;
mod reports;

pub use beats::{Beat, Beats};
pub(crate) use loops::{said, Loops};
pub use memory::Memory;
pub use reports::{Live, Ready};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{json, Value};
use tokio_util::sync::CancellationToken;

use crate::config::{self, drift};
use crate::db::Db;
use crate::engine::fleet;
use crate::engine::member::{Kind, Membership};
use crate::engine::repair::Broken;
use crate::error::Error;
use crate::telemetry;
use database::Database;
use fresh::Fresh;

/// How long a question to the database may take, of those that are not about the process alone: less than the second that Kubernetes waits.
const PATIENCE: Duration = Duration::from_millis(800);

/// A loop that has failed for longer than this, again and again, makes no progress.
const FAILING: Duration = Duration::from_secs(10);

/// The health of one orchestrator, worker or client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

/// How busy a worker is.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Busy {
    /// Steps that are leased and not reported.
    pub(crate) running: usize,
    /// How many handlers run at once.
    pub(crate) slots: usize,
}

struct TellBusy(Box<dyn Fn() -> Option<Busy> + Send + Sync>);

impl fmt::Debug for TellBusy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TellBusy")
    }
}

#[derive(Debug)]
struct Inner {
    /// Of a client, none.
    kind: Option<Kind>,
    db: Db,
    beats: Beats,
    namespaces: Vec<String>,
    live: config::Live,
    busy: OnceLock<TellBusy>,
    draining: AtomicBool,
    over: CancellationToken,
    /// Why it is.
    given_up: OnceLock<String>,
    /// What is missing beside this process.
    lacks: Mutex<Vec<String>>,
    database: Arc<Database>,
    ready: Fresh<(Vec<String>, Vec<String>)>,
    schema: Fresh<Option<String>>,
    fleet: Fresh<std::result::Result<Value, String>>,
    /// Where the fleet is read; empty: where everything is.
    readers: OnceLock<Db>,
}

impl Health {
    /// `namespaces` are those whose queues it works with; empty means all.
    pub(crate) fn new(kind: Kind, db: &Db, namespaces: &[String], live: &config::Live) -> Health {
        Health::of(Some(kind), db, namespaces, live.clone())
    }

    /// The health of a process that only submits tasks and reads them.
    pub fn of_client(db: &Db, settings: config::Settings) -> Health {
        Health::of(None, db, &[], settings.into())
    }

    fn of(kind: Option<Kind>, db: &Db, namespaces: &[String], live: config::Live) -> Health {
        Health(Arc::new(Inner {
            kind,
            db: db.clone(),
            beats: Beats::default(),
            namespaces: namespaces.to_vec(),
            live,
            busy: OnceLock::new(),
            draining: AtomicBool::new(false),
            over: CancellationToken::new(),
            given_up: OnceLock::new(),
            lacks: Mutex::default(),
            database: Arc::default(),
            ready: Fresh::default(),
            schema: Fresh::default(),
            fleet: Fresh::default(),
            readers: OnceLock::new(),
        }))
    }

    /// The beats of its loops; others may register theirs.
    pub fn beats(&self) -> &Beats {
        &self.0.beats
    }

    /// It shuts down: it is not ready from now on.
    pub(crate) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// It cannot go on: whoever runs it ends it.
    fn give_up(&self, why: String) {
        tracing::error!(why, "giving up");
        self.0.given_up.set(why).ok();
        self.0.over.cancel();
    }

    /// Waits until the process cannot go on, and says why.
    pub async fn given_up(&self) -> String {
        self.0.over.cancelled().await;
        self.why_given_up().unwrap_or_default()
    }

    /// Why the process cannot go on; None: it can.
    pub fn why_given_up(&self) -> Option<String> {
        self.0.given_up.get().cloned()
    }

    /// What is missing beside this process; told where it was missing before, too, so that a deployment is not.
    fn note_lacks(&self, lacks: Vec<String>, told: &mut bool) {
        let mut known = self.0.lacks.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = !lacks.is_empty() && !known.is_empty();
        if stays && !*told {
            lacks.iter().for_each(|lack| tracing::warn!("{lack}"));
        }
        if lacks.is_empty() && *told {
            tracing::info!("nothing is missing beside this process any more");
        }
        *told = stays;
        *known = lacks;
    }

    fn lacks(&self) -> Vec<String> {
        self.0.lacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the process works. Answers within 50 ms; what the database has not said by then is seen by the next probe.
    pub async fn live(&self) -> Live {
        let of = &self.0;
        let away = of.database.away(&of.db).await;
        let bounds = &of.live.effective().settings.health;
        // A client has no loop that would fail.
        let unmigrated = match (&of.kind, &away) {
            (None, None) => tokio::time::timeout(database::PATIENCE, of.schema.get(|| self.ask_schema()))
                .await
                .ok()
                .flatten(),
            _ => None,
        };
        Live::new(
            self.kind(),
            self.why_given_up().or(unmigrated),
            of.beats.late(),
            away,
            bounds.database_grace,
            Memory::now(bounds.memory_limit),
            self.lacks(),
        )
    }

    async fn ask_schema(&self) -> Option<String> {
        match self.0.db.check_schema().await {
            Err(why @ Error::NotMigrated(_)) => Some(why.to_string()),
            _ => None,
        }
    }

    /// Whether the process should be given work. Answers within a second.
    pub async fn ready(&self) -> Ready {
        let of = &self.0;
        let (mut wrong, mut warnings) = of.ready.get(|| self.ask_ready()).await;
        // What one namespace's queue lacks is no trouble of the others.
        if of.kind == Some(Kind::Worker) {
            wrong.append(&mut warnings);
        }
        warnings.extend(self.lacks());
        let draining = of.draining.load(Ordering::Relaxed);
        let failing = of.beats.failing(FAILING);
        Ready::new(
            self.kind(),
            draining,
            wrong,
            warnings,
            failing,
            of.db.is_pressed(),
            of.db.pool_use(),
        )
    }

    /// (what is wrong with the database, the queues that cannot be worked with and why)
    async fn ask_ready(&self) -> (Vec<String>, Vec<String>) {
        let of = &self.0;
        let asking = async {
            of.db.check_writable().await?;
            of.db.check_schema().await?;
            fleet::unreachable_queues(&of.db, &of.namespaces).await
        };
        let wrong = |why: String| (vec![of.db.refusal().unwrap_or(why)], Vec::new());
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(unreachable)) => {
                let said = |Broken { queue, why }| format!("the queue {queue} cannot be worked with: {why}");
                (Vec::new(), unreachable.into_iter().map(said).collect())
            }
            Ok(Err(error)) => wrong(error.to_string()),
            Err(_) => wrong(database::NO_ANSWER.to_owned()),
        }
    }

    /// All there is to know: this process, live and ready, and the fleet (an error in its place while the database does not tell).
    /// Answers within two seconds.
    pub async fn detailed(&self) -> Value {
        let (live, ready, fleet) = tokio::join!(self.live(), self.ready(), self.fleet());
        let mut fleet = fleet.unwrap_or_else(|error| json!({ "error": error }));
        if let Some(members) = fleet["members"].as_array() {
            fleet["drift"] = json!(drift::drift(members, drift::GRACE));
        }
        json!({ "live": live, "ready": ready, "process": self.process(), "fleet": fleet })
    }

    /// The fleet, as it was within the last second.
    pub(crate) async fn fleet(&self) -> std::result::Result<Value, String> {
        let ask = || async {
            let db = self.0.readers.get().unwrap_or(&self.0.db);
            match tokio::time::timeout(PATIENCE, fleet::fleet(db)).await {
                Ok(Ok(mut fleet)) => {
                    fleet["age_seconds"] = json!(db.age().unwrap_or_default().as_secs_f64());
                    Ok(fleet)
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(database::NO_ANSWER.to_owned()),
            }
        };
        self.0.fleet.get(ask).await
    }

    /// From now on the fleet is read where people look.
    pub(crate) fn read_fleet_from(&self, readers: &Db) {
        self.0.readers.set(readers.clone()).ok();
    }

    /// What each namespace needs: see `capacity` in the migrations.
    pub(crate) async fn capacity(&self) -> std::result::Result<BTreeMap<String, Value>, String> {
        let fleet = self.fleet().await?;
        let namespaces = fleet["namespaces"].as_object().into_iter().flatten();
        Ok(namespaces.map(|(name, of)| (name.clone(), of["capacity"].clone())).collect())
    }

    /// A worker says how busy it is, whenever it is asked.
    pub(crate) fn tell_busy(&self, busy: impl Fn() -> Option<Busy> + Send + Sync + 'static) {
        self.0.busy.set(TellBusy(Box::new(busy))).ok();
    }

    /// This process's resources, which are measured as well.
    fn process(&self) -> Value {
        let of = &self.0;
        let effective = of.live.effective();
        let (memory, pool) = (Memory::now(effective.settings.health.memory_limit), of.db.pool_use());
        let busy = of.busy.get().and_then(|busy| busy.0());
        let metrics = telemetry::metrics();
        metrics.observe_process(memory.used, memory.limit, memory::cpu_seconds());
        metrics.observe_configuration(effective.fallback.is_some());
        metrics.observe_pool(pool.open - pool.idle.min(pool.open), pool.idle, pool.max);
        if let Some(busy) = busy {
            metrics.worker_running.record(busy.running as f64, &[]);
            metrics.worker_slots.record(busy.slots as f64, &[]);
        }
        json!({ "memory": memory, "pool": pool, "busy": busy, "configuration": effective.report(of.db.installation()) })
    }

    /// All metrics of this process, in Prometheus' text format; an orchestrator tells of the fleet as well.
    pub async fn metrics(&self) -> String {
        self.process();
        if self.0.kind == Some(Kind::Orchestrator) {
            self.observe_fleet().await;
        }
        telemetry::prometheus_text()
    }

    /// Measures the fleet.
    pub(crate) async fn observe_fleet(&self) {
        match self.fleet().await {
            Ok(fleet) => telemetry::metrics().observe_fleet(&fleet),
            Err(error) => tracing::warn!(error, "no metrics of the fleet"),
        }
    }

    fn kind(&self) -> &'static str {
        self.0.kind.map_or("client", Kind::name)
    }
}

/// Renews a membership at a third of its lease, until `stop`, and with it says how the process is.
pub(crate) async fn keep_membership(
    membership: Arc<Membership>,
    health: Health,
    lease: impl Fn() -> Duration + Send,
    stop: CancellationToken,
) {
    let (mut held, mut told) = (lease(), false);
    let mut beat = health.beats().register("heartbeat", held + health.0.db.longest_call());
    while !stop.is_cancelled() {
        let wanted = lease();
        if wanted != held {
            held = wanted;
            membership.hold_for(held);
            drop(beat);
            beat = health.beats().register("heartbeat", held + health.0.db.longest_call());
        }
        let renewed = membership.renew(&health.process()).await;
        beat.note(&renewed);
        match renewed {
            Ok(lacks) => health.note_lacks(lacks, &mut told),
            Err(error) => tracing::error!(%error, "the membership's heartbeat failed"),
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(held / 3) => {} }
    }
}
