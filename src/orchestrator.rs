//! The orchestrator: admits tasks, enqueues due retries, notices what died. Any number run side by side, all equal.
//!
//! It is twelve loops of one shape (and another where metrics are pushed): repeat a cycle, beat, and wait: for a wake (admission, retries, alerts) or for the next of its `rounds`.

mod admission;
mod alerts;
mod backpressure;
mod bulk_actions;
mod children;
mod due;
mod history;
mod marks;
mod moves;
mod observation;
mod reconciliation;
mod recovery;
mod retention;
mod rounds;
mod schedules;
mod streams;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::{broadcast, Notify};
use tokio_util::sync::CancellationToken;

use crate::config::Live;
pub use crate::config::OrchestratorConfig;
use crate::db::{channel, Db, Wake};
use crate::engine::configuration;
use crate::engine::member::{Kind, Membership};
use crate::engine::shards::Shards;
use crate::error::Result;
use crate::health::{self, Beats, Health, Joined, Loops, Place};
use crate::telemetry;
use rounds::Round;

/// A running orchestrator.
#[derive(Debug, Clone)]
pub struct Orchestrator {
    live: Live,
    health: Health,
    loops: Loops,
    stop: CancellationToken,
    memberships: Arc<Mutex<Vec<Arc<Membership>>>>,
}

/// What its loops in one database work with.
#[derive(Clone)]
struct Each {
    db: Db,
    shards: Shards,
    live: Live,
    membership: Arc<Membership>,
    health: Health,
    place: Arc<Place>,
    beats: Beats,
    wakes: broadcast::Sender<Wake>,
    stop: CancellationToken,
}

impl Each {
    fn run<L: Future<Output = ()> + Send>(&self, loops: &Loops, name: &str, begin: impl Fn(Each) -> L + Send + 'static) {
        let of = self.clone();
        loops.run(self.place.named(name), move || begin(of.clone()));
    }

    fn round<R: Round + 'static>(&self, loops: &Loops, of: impl Fn(&Each) -> R + Send + 'static) {
        self.run(loops, R::NAME, move |each| {
            let membership = each.membership.clone();
            let rests = move |rest| membership.rest(rest);
            rounds::run(of(&each), rests, each.beats.clone(), each.stop.clone())
        });
    }
}

impl Orchestrator {
    /// Joins the members and starts the loops. With a [`Live`], they follow its changes.
    pub async fn start(db: &Db, settings: impl Into<Live>) -> Result<Orchestrator> {
        let orchestrator = Orchestrator::of(settings.into())?;
        let namespaces = orchestrator.live.orchestrator().namespaces;
        orchestrator.begin(Joined::only(db, namespaces)).await?;
        orchestrator.watch();
        Ok(orchestrator)
    }

    /// The same in each shard where its namespaces live, or in all; later in those that are away.
    /// Errors: why it can begin in none.
    pub async fn start_in(shards: &Shards, settings: impl Into<Live>) -> Result<Orchestrator> {
        let orchestrator = Orchestrator::of(settings.into())?;
        let of = orchestrator.clone();
        let begin = move |joined| {
            let of = of.clone();
            async move { of.begin(joined).await }.boxed()
        };
        let namespaces = orchestrator.live.orchestrator().namespaces;
        orchestrator.loops.join(shards, &namespaces, &orchestrator.stop, begin).await?;
        orchestrator.watch();
        Ok(orchestrator)
    }

    fn of(live: Live) -> Result<Orchestrator> {
        live.check()?;
        let health = Health::new(Kind::Orchestrator, &live);
        Ok(Orchestrator {
            loops: Loops::of(&health),
            live,
            health,
            stop: CancellationToken::new(),
            memberships: Arc::default(),
        })
    }

    /// Measures the fleet, where somebody wants to be told without asking.
    fn watch(&self) {
        if telemetry::pushes_metrics() {
            let (health, stop) = (self.health.clone(), self.stop.clone());
            self.loops.run(observation::Observation::NAME, move || {
                rounds::run(
                    observation::Observation::new(&health),
                    |rest| rest,
                    health.beats().clone(),
                    stop.clone(),
                )
            });
        }
    }

    /// Joins the members of one database, and starts the loops there.
    async fn begin(&self, joined: Joined) -> Result<()> {
        let place = Place::new(&joined);
        let label = joined.label();
        let Joined {
            shard,
            db,
            namespaces,
            shards,
            ..
        } = joined;
        db.check_schema().await?;
        let membership = Arc::new(Membership::join(&db, Kind::Orchestrator, &namespaces, self.live.orchestrator().lease).await?);
        lock(&self.memberships).push(membership.clone());
        let wakes = db.listen(
            &[
                channel::TASKS,
                channel::DUE,
                channel::CHILDREN,
                channel::DEAD_LETTERS,
                channel::CONFIGURATION,
                channel::BULK_ACTIONS,
                channel::EVENTS,
                channel::DELIVERIES,
                channel::SUBSCRIPTIONS,
            ],
            self.stop.clone(),
        );
        let loops = &self.loops;
        let each = Each {
            live: self.live.clone(),
            membership: membership.clone(),
            beats: self.health.beats().of(label.as_deref()),
            place: self.health.add(place),
            health: self.health.clone(),
            db,
            shards,
            wakes,
            stop: self.stop.clone(),
        };
        each.run(loops, "admission", |of| {
            admission::Admission::new(&of.db, &of.live, &of.membership, &of.beats, of.wakes.subscribe()).run(of.stop)
        });
        let children = Arc::new(Notify::new());
        let found = children.clone();
        each.run(loops, "due", move |of| {
            due::Due::new(&of.db, &of.membership, &of.beats, of.wakes.subscribe(), found.clone()).run(of.stop)
        });
        each.run(loops, "children", move |of| {
            children::Children::new(&of.db, &of.membership, &of.beats, of.wakes.subscribe(), children.clone()).run(of.stop)
        });
        each.run(loops, "alerts", |of| {
            alerts::Alerts::new(&of.db, &of.live, &of.membership, &of.beats, of.wakes.subscribe()).run(of.stop)
        });
        each.run(loops, "bulk actions", |of| {
            bulk_actions::BulkActions::new(&of.db, &of.beats, of.wakes.subscribe()).run(of.stop)
        });
        each.run(loops, "streams", |of| {
            streams::Streams::new(&of.db, &of.membership, &of.beats, of.wakes.subscribe()).run(of.stop)
        });
        each.round(loops, |of| recovery::Recovery::new(&of.db, &of.beats));
        each.round(loops, |of| marks::Marks::new(&of.db));
        each.round(loops, |of| backpressure::Backpressure::new(&of.db));
        each.round(loops, |of| reconciliation::Reconciliation::new(&of.db));
        each.round(loops, |of| retention::Retention::new(&of.db, &of.live));
        each.round(loops, |of| history::History::new(&of.db));
        each.round(loops, |of| {
            schedules::Schedules::new(&of.db, &of.live, of.place.shard(), &of.shards)
        });
        if each.shards.are_several() {
            each.round(loops, |of| moves::Moves::new(&of.db, &of.shards));
        }
        each.run(loops, "configuration", |of| {
            configuration::told(of.live, of.wakes.subscribe(), of.stop)
        });
        each.run(loops, "heartbeat", |of| {
            let live = of.live;
            health::keep_membership(of.membership, of.health, of.place, move || live.orchestrator().lease, of.stop)
        });
        tracing::info!(member = membership.id(), shard, "orchestrator started");
        Ok(())
    }

    /// How it is.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Finishes the cycles that are under way, and leaves.
    pub async fn shutdown(self) {
        self.health.drain();
        self.stop.cancel();
        self.loops.ended().await;
        let memberships = std::mem::take(&mut *lock(&self.memberships));
        for membership in memberships {
            if let Err(error) = membership.leave().await {
                tracing::warn!(%error, "could not leave the members, the lease will run out");
            }
        }
        telemetry::flush().await;
        tracing::info!("orchestrator stopped");
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
