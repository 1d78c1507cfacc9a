//! The orchestrator: admits tasks, enqueues due retries, notices what died. Any number run side by side, all equal.
//!
//! It is eight loops of one shape (and a ninth where metrics are pushed): repeat a cycle, beat, and wait: for a wake (admission, retries, alerts) or for the next of its `rounds`.

mod admission;
mod alerts;
mod due;
mod marks;
mod observation;
mod reconciliation;
mod recovery;
mod retention;
mod rounds;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::db::{channel, Db};
use crate::engine::member::{Kind, Membership};
use crate::error::{Error, Result};
use crate::health::{self, Health, HealthConfig};
use crate::telemetry;

/// The options of an orchestrator, each with its default.
#[derive(Debug, Clone)]
pub struct OrchestratorConfig {
    /// Whose tasks to admit; empty, the default, means all.
    pub namespaces: Vec<String>,
    /// A namespace's tasks wait, where priority counts, while its queue holds this many messages. Its idle workers admit what they have room
    /// for by themselves; this is what waits for those that are busy. Fewer lets an urgent task overtake more. Default 100.
    pub queue_target: u32,
    /// How many tasks one cycle admits in each namespace at most. Default 200.
    pub batch: u32,
    /// How often to look for tasks when no notification came: the latency where LISTEN does not work. Default 1 s.
    pub poll: Duration,
    /// How long a membership lasts without a heartbeat, which comes at a third of it. Default 30 s.
    pub lease: Duration,
    /// Where alerts on dead letters are posted as JSON, beside the log. Delivered at least once, by one of the orchestrators that have it.
    /// Default none.
    pub alert_webhook: Option<String>,
    /// How its health is judged.
    pub health: HealthConfig,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        OrchestratorConfig {
            namespaces: Vec::new(),
            queue_target: 100,
            batch: 200,
            poll: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            alert_webhook: None,
            health: HealthConfig::default(),
        }
    }
}

impl OrchestratorConfig {
    fn check(&self) -> Result<()> {
        if self.queue_target == 0 || self.batch == 0 || self.queue_target > 1_000_000 || self.batch > 10_000 {
            return Err(Error::Config("queue_target must be 1 to 1,000,000 and batch 1 to 10,000".into()));
        }
        if self.poll.is_zero() || self.lease < Duration::from_secs(1) {
            return Err(Error::Config("poll must be more than 0 and lease at least 1 s".into()));
        }
        Ok(())
    }
}

/// A running orchestrator.
#[derive(Debug)]
pub struct Orchestrator {
    membership: Arc<Membership>,
    health: Health,
    stop: CancellationToken,
    loops: TaskTracker,
}

impl Orchestrator {
    /// Joins the members and starts the loops.
    pub async fn start(db: &Db, config: OrchestratorConfig) -> Result<Orchestrator> {
        config.check()?;
        db.check_schema().await?;
        let membership = Arc::new(Membership::join(db, Kind::Orchestrator, &config.namespaces, config.lease).await?);
        let stop = CancellationToken::new();
        let wakes = db.listen(&[channel::TASKS, channel::DUE, channel::DEAD_LETTERS], stop.clone());
        let health = Health::new(
            Kind::Orchestrator,
            db,
            &config.namespaces,
            config.health.clone(),
            health::fingerprint(&config),
        );
        let beats = health.beats();
        let loops = TaskTracker::new();
        loops.spawn(admission::Admission::new(db, &config, &membership, beats, wakes.subscribe()).run(stop.clone()));
        loops.spawn(due::Due::new(db, beats, wakes.subscribe()).run(stop.clone()));
        loops.spawn(rounds::run(recovery::Recovery::new(db), beats.clone(), stop.clone()));
        loops.spawn(rounds::run(marks::Marks::new(db), beats.clone(), stop.clone()));
        loops.spawn(rounds::run(reconciliation::Reconciliation::new(db), beats.clone(), stop.clone()));
        loops.spawn(alerts::Alerts::new(db, config.alert_webhook.clone(), beats, wakes.subscribe()).run(stop.clone()));
        loops.spawn(rounds::run(retention::Retention::new(db), beats.clone(), stop.clone()));
        if telemetry::pushes_metrics() {
            loops.spawn(rounds::run(observation::Observation::new(&health), beats.clone(), stop.clone()));
        }
        loops.spawn(health::keep_membership(membership.clone(), health.clone(), stop.clone()));
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
