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
mod joining;
pub mod local;
mod loops;
mod memory;
mod place;
mod reports;

pub use beats::{Beat, Beats};
pub(crate) use joining::Joined;
pub(crate) use loops::{said, Loops};
pub use memory::Memory;
pub(crate) use place::Place;
pub use reports::{Live, Ready};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{json, Value};
use tokio_util::sync::CancellationToken;

use crate::config::{self, drift};
use crate::db::{Db, PoolUse};
use crate::engine::fleet;
use crate::engine::member::{Kind, Membership};
use crate::engine::shards::Shards;
use crate::telemetry;
use database::Away;

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
    beats: Beats,
    live: config::Live,
    busy: OnceLock<TellBusy>,
    draining: AtomicBool,
    over: CancellationToken,
    /// Why it is.
    given_up: OnceLock<String>,
    places: Mutex<Vec<Arc<Place>>>,
    /// The shards that it cannot work with yet, and why.
    missing: Mutex<BTreeMap<String, String>>,
    /// Where the fleet is read; empty: where everything is.
    readers: OnceLock<Shards>,
}

impl Health {
    /// That of a process that works with these databases, as soon as they are there ([`Health::add`]).
    pub(crate) fn new(kind: Kind, live: &config::Live) -> Health {
        Health::of(Some(kind), live.clone())
    }

    /// The health of a process that only submits tasks and reads them.
    pub fn of_client(db: &Db, settings: config::Settings) -> Health {
        let health = Health::of(None, settings.into());
        health.add(Place::new(&Joined::only(db, Vec::new())));
        health
    }

    fn of(kind: Option<Kind>, live: config::Live) -> Health {
        Health(Arc::new(Inner {
            kind,
            beats: Beats::default(),
            live,
            busy: OnceLock::new(),
            draining: AtomicBool::new(false),
            over: CancellationToken::new(),
            given_up: OnceLock::new(),
            places: Mutex::default(),
            missing: Mutex::default(),
            readers: OnceLock::new(),
        }))
    }

    /// It works with this database, too, from now on.
    pub(crate) fn add(&self, place: Place) -> Arc<Place> {
        let place = Arc::new(place);
        if let Some(shard) = &place.shard {
            lock(&self.0.missing).remove(shard);
        }
        lock(&self.0.places).push(place.clone());
        place
    }

    /// It is to work with a shard, and cannot yet.
    pub(crate) fn misses(&self, shard: &str, why: String) {
        lock(&self.0.missing).insert(shard.to_owned(), why);
    }

    fn places(&self) -> Vec<Arc<Place>> {
        lock(&self.0.places).clone()
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

    /// Whether the process works. Answers within 50 ms; what the database has not said by then is seen by the next probe.
    pub async fn live(&self) -> Live {
        let of = &self.0;
        let places = self.places();
        let away = join_all(places.iter().map(|place| place.away())).await;
        let bounds = &of.live.effective().settings.health;
        // A client has no loop that would fail.
        let unmigrated = match (&of.kind, &places[..], &away[..]) {
            (None, [place], [None]) => tokio::time::timeout(database::PATIENCE, place.unmigrated()).await.ok().flatten(),
            _ => None,
        };
        let mut warnings = self.warnings(&places);
        let others = away.iter().any(Option::is_none);
        let said = |(place, away): (&Arc<Place>, &Option<Away>)| away.as_ref().map(|away| place.said(away.why.clone()));
        if others {
            warnings.extend(places.iter().zip(&away).filter_map(said));
        }
        // One of several is no reason to begin anew.
        let away = away.into_iter().flatten().filter(|_| !others).max_by_key(|away| away.since);
        Live::new(
            self.kind(),
            self.why_given_up().or(unmigrated),
            of.beats.late(),
            away,
            bounds.database_grace,
            Memory::now(bounds.memory_limit),
            warnings,
        )
    }

    /// What is missing beside this process, and which shards it cannot work with.
    fn warnings(&self, places: &[Arc<Place>]) -> Vec<String> {
        let missing = lock(&self.0.missing);
        let missing = missing.iter().map(|(shard, why)| format!("shard {shard}: {why}"));
        missing.chain(places.iter().flat_map(|place| place.lacks())).collect()
    }

    /// Whether the process should be given work. Answers within a second.
    pub async fn ready(&self) -> Ready {
        let of = &self.0;
        let places = self.places();
        let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
        let mut works = false;
        for (mut failed, mut unreachable) in join_all(places.iter().map(|place| place.ready())).await {
            works |= failed.is_empty();
            wrong.append(&mut failed);
            // What one namespace's queue lacks is no trouble of the others.
            match of.kind {
                Some(Kind::Worker) => wrong.append(&mut unreachable),
                _ => warnings.append(&mut unreachable),
            }
        }
        warnings.extend(self.warnings(&places));
        if places.is_empty() {
            wrong.append(&mut warnings);
        }
        // Those of the other shards are no reason to get none.
        if works && places.len() > 1 {
            warnings.append(&mut wrong);
        }
        let draining = of.draining.load(Ordering::Relaxed);
        let failing = of.beats.failing(FAILING);
        let pressed = places.iter().any(|place| place.db.is_pressed());
        Ready::new(self.kind(), draining, wrong, warnings, failing, pressed, pool_use(&places))
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

    /// That of each shard, where there are several.
    async fn fleets(&self) -> Vec<(Option<String>, Result<Value, String>)> {
        let mut places = self.places();
        // The fleet of a shard is one, for however many reasons this process works there.
        let mut seen = BTreeSet::new();
        places.retain(|place| seen.insert(place.shard.clone()));
        let fleets = join_all(places.iter().map(|place| place.fleet(self.0.readers.get()))).await;
        let missing = lock(&self.0.missing)
            .clone()
            .into_iter()
            .map(|(shard, why)| (Some(shard), Err(why)));
        places.iter().map(|place| place.shard.clone()).zip(fleets).chain(missing).collect()
    }

    /// The fleet, as it was within the last second.
    pub(crate) async fn fleet(&self) -> Result<Value, String> {
        let mut fleets = self.fleets().await;
        match &fleets[..] {
            [(None, _)] => fleets.remove(0).1,
            _ => Ok(fleet::of_shards(
                fleets.into_iter().map(|(shard, fleet)| (shard.unwrap_or_default(), fleet)),
            )),
        }
    }

    /// From now on the fleet is read where people look.
    pub(crate) fn read_fleet_from(&self, for_people: &Shards) {
        self.0.readers.set(for_people.clone()).ok();
    }

    /// What each namespace needs: see `capacity` in the migrations.
    pub(crate) async fn capacity(&self) -> Result<BTreeMap<String, Value>, String> {
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
        let places = self.places();
        let effective = of.live.effective();
        let (memory, pool) = (Memory::now(effective.settings.health.memory_limit), pool_use(&places));
        let busy = of.busy.get().and_then(|busy| busy.0());
        let metrics = telemetry::metrics();
        metrics.observe_process(memory.used, memory.limit, memory::cpu_seconds());
        metrics.observe_configuration(effective.fallback.is_some());
        metrics.observe_pool(pool.open - pool.idle.min(pool.open), pool.idle, pool.max);
        if let Some(busy) = busy {
            metrics.worker_running.record(busy.running as f64, &[]);
            metrics.worker_slots.record(busy.slots as f64, &[]);
        }
        let installation = places.first().and_then(|place| place.db.installation());
        json!({ "memory": memory, "pool": pool, "busy": busy, "configuration": effective.report(installation) })
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
        for (shard, fleet) in self.fleets().await {
            match fleet {
                Ok(fleet) => telemetry::metrics().observe_fleet(&fleet, shard.as_deref()),
                Err(error) => tracing::warn!(error, shard, "no metrics of the fleet"),
            }
        }
    }

    fn kind(&self) -> &'static str {
        self.0.kind.map_or("client", Kind::name)
    }
}

/// How much of all their pools is in use.
fn pool_use(places: &[Arc<Place>]) -> PoolUse {
    places
        .iter()
        .map(|place| place.db.pool_use())
        .fold(PoolUse::default(), PoolUse::and)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Renews a membership at a third of its lease, until `stop`, and with it says how the process is.
pub(crate) async fn keep_membership(
    membership: Arc<Membership>,
    health: Health,
    place: Arc<Place>,
    lease: impl Fn() -> Duration + Send,
    stop: CancellationToken,
) {
    let (mut held, mut told) = (lease(), false);
    let register = |held| health.beats().register(place.named("heartbeat"), held + place.db.longest_call());
    let mut beat = register(held);
    while !stop.is_cancelled() {
        let wanted = lease();
        if wanted != held {
            held = wanted;
            membership.hold_for(held);
            drop(beat);
            beat = register(held);
        }
        let renewed = membership.renew(&health.process()).await;
        beat.note(&renewed);
        match renewed {
            Ok(lacks) => place.note_lacks(lacks, &mut told),
            Err(error) => tracing::error!(%error, "the membership's heartbeat failed"),
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(held / 3) => {} }
    }
}
