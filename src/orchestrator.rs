//! The orchestrator: admits tasks, enqueues due retries, notices what died. Any number run side by side, all equal.
//!
//! It is nine loops of one shape (and a tenth where metrics are pushed): repeat a cycle, beat, and wait: for a wake (admission, retries, alerts) or for the next of its `rounds`.

mod admission;
mod alerts;
mod backpressure;
mod due;
mod marks;
mod observation;
mod reconciliation;
mod recovery;
mod retention;
mod rounds;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Live;
pub use crate::config::OrchestratorConfig;
use crate::db::{channel, Db};
use crate::engine::configuration;
use crate::engine::member::{Kind, Membership};
use crate::error::Result;
use crate::health::{self, Health};
use crate::telemetry;

/// A running orchestrator.
#[derive(Debug)]
pub struct Orchestrator {
    membership: Arc<Membership>,
    health: Health,
    stop: CancellationToken,
    loops: TaskTracker,
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
            &[channel::TASKS, channel::DUE, channel::DEAD_LETTERS, channel::CONFIGURATION],
            stop.clone(),
        );
        let health = Health::new(Kind::Orchestrator, db, &namespaces, &live);
        let beats = health.beats();
        let loops = TaskTracker::new();
        loops.spawn(admission::Admission::new(db, &live, &membership, beats, wakes.subscribe()).run(stop.clone()));
        loops.spawn(due::Due::new(db, beats, wakes.subscribe()).run(stop.clone()));
        loops.spawn(rounds::run(recovery::Recovery::new(db), beats.clone(), stop.clone()));
        loops.spawn(rounds::run(marks::Marks::new(db), beats.clone(), stop.clone()));
        loops.spawn(rounds::run(backpressure::Backpressure::new(db), beats.clone(), stop.clone()));
        loops.spawn(rounds::run(reconciliation::Reconciliation::new(db), beats.clone(), stop.clone()));
        loops.spawn(alerts::Alerts::new(db, &live, beats, wakes.subscribe()).run(stop.clone()));
        loops.spawn(rounds::run(retention::Retention::new(db), beats.clone(), stop.clone()));
        if telemetry::pushes_metrics() {
            loops.spawn(rounds::run(observation::Observation::new(&health), beats.clone(), stop.clone()));
        }
        loops.spawn(configuration::told(live.clone(), wakes.subscribe(), stop.clone()));
        let lease = move || live.orchestrator().lease;
        loops.spawn(health::keep_membership(membership.clone(), health.clone(), lease, stop.clone()));
        loops.close();
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
        self.loops.wait().await;
        if let Err(error) = self.membership.leave().await {
            tracing::warn!(%error, "could not leave the members, the lease will run out");
        }
        telemetry::flush().await;
        tracing::info!("orchestrator stopped");
    }
}
