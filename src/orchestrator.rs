//! The orchestrator: admits tasks, enqueues due retries, notices what died. Any number run side by side, all equal.
//!
//! It is eleven loops of one shape (and another where metrics are pushed): repeat a cycle, beat, and wait: for a wake (admission, retries, alerts) or for the next of its `rounds`.

mod admission;
mod alerts;
mod backpressure;
mod bulk_actions;
mod children;
mod due;
mod history;
mod marks;
mod observation;
mod reconciliation;
mod recovery;
mod retention;
mod rounds;
mod schedules;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{broadcast, Notify};
use tokio_util::sync::CancellationToken;

use crate::config::Live;
pub use crate::config::OrchestratorConfig;
use crate::db::{channel, Db, Wake};
use crate::engine::configuration;
use crate::engine::member::{Kind, Membership};
use crate::error::Result;
use crate::health::{self, Health, Loops};
use crate::telemetry;
use rounds::Round;

/// A running orchestrator.
#[derive(Debug)]
pub struct Orchestrator {
    membership: Arc<Membership>,
    health: Health,
    stop: CancellationToken,
    loops: Loops,
}

/// What its loops work with.
#[derive(Clone)]
struct Each {
    db: Db,
    live: Live,
    membership: Arc<Membership>,
    health: Health,
    wakes: broadcast::Sender<Wake>,
    stop: CancellationToken,
}

impl Each {
    fn run<L: Future<Output = ()> + Send>(&self, loops: &Loops, name: &str, begin: impl Fn(Each) -> L + Send + 'static) {
        let of = self.clone();
        loops.run(name, move || begin(of.clone()));
    }

    fn round<R: Round + 'static>(&self, loops: &Loops, of: impl Fn(&Each) -> R + Send + 'static) {
        self.run(loops, R::NAME, move |each| {
            rounds::run(of(&each), each.health.beats().clone(), each.stop.clone())
        });
    }
}

impl Orchestrator {
    /// Joins the members and starts the loops. With a [`Live`], they follow its changes.
    pub async fn start(db: &Db, settings: impl Into<Live>) -> Result<Orchestrator> {
        let live = settings.into();
        live.check()?;
        let OrchestratorConfig { namespaces, lease, .. } = live.orchestrator();
        db.check_schema().await?;
        let membership = Arc::new(Membership::join(db, Kind::Orchestrator, &namespaces, lease).await?);
        let stop = CancellationToken::new();
        let wakes = db.listen(
            &[
                channel::TASKS,
                channel::DUE,
                channel::CHILDREN,
                channel::DEAD_LETTERS,
                channel::CONFIGURATION,
                channel::BULK_ACTIONS,
            ],
            stop.clone(),
        );
        let health = Health::new(Kind::Orchestrator, db, &namespaces, &live);
        let loops = Loops::of(&health);
        let each = Each {
            db: db.clone(),
            live,
            membership: membership.clone(),
            health: health.clone(),
            wakes,
            stop: stop.clone(),
        };
        each.run(&loops, "admission", |of| {
            admission::Admission::new(&of.db, &of.live, &of.membership, of.health.beats(), of.wakes.subscribe()).run(of.stop)
        });
        let children = Arc::new(Notify::new());
        let found = children.clone();
        each.run(&loops, "due", move |of| {
            due::Due::new(&of.db, of.health.beats(), of.wakes.subscribe(), found.clone()).run(of.stop)
        });
        each.run(&loops, "children", move |of| {
            children::Children::new(&of.db, of.health.beats(), of.wakes.subscribe(), children.clone()).run(of.stop)
        });
        each.run(&loops, "alerts", |of| {
            alerts::Alerts::new(&of.db, &of.live, of.health.beats(), of.wakes.subscribe()).run(of.stop)
        });
        each.run(&loops, "bulk actions", |of| {
            bulk_actions::BulkActions::new(&of.db, of.health.beats(), of.wakes.subscribe()).run(of.stop)
        });
        each.round(&loops, |of| recovery::Recovery::new(&of.db, of.health.beats()));
        each.round(&loops, |of| marks::Marks::new(&of.db));
        each.round(&loops, |of| backpressure::Backpressure::new(&of.db));
        each.round(&loops, |of| reconciliation::Reconciliation::new(&of.db));
        each.round(&loops, |of| retention::Retention::new(&of.db));
        each.round(&loops, |of| history::History::new(&of.db));
        each.round(&loops, |of| schedules::Schedules::new(&of.db, &of.live));
        if telemetry::pushes_metrics() {
            each.round(&loops, |of| observation::Observation::new(&of.health));
        }
        each.run(&loops, "configuration", |of| {
            configuration::told(of.live, of.wakes.subscribe(), of.stop)
        });
        each.run(&loops, "heartbeat", |of| {
            let live = of.live;
            health::keep_membership(of.membership, of.health, move || live.orchestrator().lease, of.stop)
        });
        tracing::info!(member = membership.id(), "orchestrator started");
        Ok(Orchestrator {
            membership,
            health,
            stop,
            loops,
        })
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
        if let Err(error) = self.membership.leave().await {
            tracing::warn!(%error, "could not leave the members, the lease will run out");
        }
        telemetry::flush().await;
        tracing::info!("orchestrator stopped");
    }
}
