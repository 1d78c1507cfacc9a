//! How a worker begins: it joins the members, and its loops start. Each can be begun anew, should it panic.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::{broadcast, mpsc, Mutex};
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::bulk::Gathering;
use super::held::Held;
use super::poller::Outlets;
use super::step::Handled;
use super::turns::Turns;
use super::unhandled::{self, Unhandled};
use super::{batcher, buffer, heartbeat, poller, suspects, Shared, Worker};
use crate::config::{Live, WorkerConfig};
use crate::db::{channel, Db, Wake};
use crate::engine::member::{Kind, Membership};
use crate::engine::{configuration, namespaces};
use crate::error::{Error, Result};
use crate::health::{self, Beats, Busy, Health, Loops};
use crate::telemetry;

/// What its loops work with.
#[derive(Clone)]
struct Each {
    shared: Arc<Shared>,
    health: Health,
    wakes: broadcast::Sender<Wake>,
    buffer: Buffer,
}

impl Each {
    fn run<L: Future<Output = ()> + Send>(&self, loops: &Loops, name: impl Into<String>, begin: impl Fn(Each) -> L + Send + 'static) {
        let of = self.clone();
        loops.run(name, move || begin(of.clone()));
    }

    fn beats(&self) -> &Beats {
        self.health.beats()
    }

    /// Those of one queue. Returns where its outcomes go.
    fn begin_queue(
        &self,
        queue: usize,
        suspects: mpsc::UnboundedSender<super::Step>,
        pollers: &Loops,
        loops: &Loops,
    ) -> mpsc::UnboundedSender<Handled> {
        let name = &self.shared.queues[queue];
        let named = format!("poller {name}");
        self.run(pollers, named.clone(), move |of| {
            let beat = of.beats().register(named.clone(), Duration::from_secs(60));
            let outlets = Outlets {
                buffer: of.buffer,
                suspects: suspects.clone(),
            };
            poller::run(of.shared, queue, outlets, of.wakes.subscribe(), beat)
        });
        let (report, outcomes) = mpsc::unbounded_channel();
        let (named, outcomes) = (format!("reports {name}"), Arc::new(Mutex::new(outcomes)));
        self.run(loops, named.clone(), move |of| {
            let beat = of.beats().register(named.clone(), Duration::MAX);
            batcher::run(of.shared, queue, outcomes.clone(), of.buffer, Arc::new(beat))
        });
        report
    }
}

impl Worker {
    /// Joins the members, makes sure that the namespaces' queues exist, and begins to lease steps. With a [`Live`], it follows its changes.
    /// Errors: [`Error::Config`] for settings that cannot be, and without a namespace.
    pub async fn start(db: &Db, settings: impl Into<Live>) -> Result<Worker> {
        let live = settings.into();
        live.check()?;
        let config = live.worker(WorkerConfig::clone);
        if config.namespaces.is_empty() {
            return Err(Error::Config("a worker needs at least one namespace".into()));
        }
        db.check_schema().await?;
        namespaces::ensure(db, &config.namespaces).await?;
        let membership = Arc::new(Membership::join(db, Kind::Worker, &config.namespaces, config.lease).await?);
        let health = Health::new(Kind::Worker, db, &config.namespaces, &live);
        let stop = CancellationToken::new();
        let labelled = |namespace: &String| KeyValue::new("namespace", namespace.clone());
        let shared = Arc::new(Shared {
            db: db.clone(),
            queues: config.namespaces.iter().map(|namespace| format!("{namespace}_queue")).collect(),
            held: Held::of(config.namespaces.len()),
            waiting: suspects::Waiting::default(),
            gathering: Gathering::default(),
            turns: Arc::new(Turns::of(config.namespaces.len())),
            unhandled: Unhandled::default(),
            membership,
            metrics: telemetry::metrics(),
            labels: config.namespaces.iter().map(labelled).collect(),
            namespaces: config.namespaces,
            live,
            stop: stop.clone(),
            abandon: CancellationToken::new(),
        });
        let of = Arc::downgrade(&shared);
        health.tell_busy(move || {
            of.upgrade().map(|shared| Busy {
                running: shared.held.busy(),
                slots: shared.concurrency(),
            })
        });

        let (buffer, exit) = buffer::Buffer::of(&shared);
        let each = Each {
            wakes: db.listen(&[channel::TASKS, channel::STEPS, channel::CANCELLED, channel::CONFIGURATION], stop),
            shared: shared.clone(),
            health: health.clone(),
            buffer,
        };
        let (suspects, suspected) = mpsc::unbounded_channel();
        let (pollers, loops) = (Loops::of(&health), Loops::of(&health));
        let queues = 0..shared.queues.len();
        let reports = queues
            .map(|queue| each.begin_queue(queue, suspects.clone(), &pollers, &loops))
            .collect();
        let suspected = Arc::new(Mutex::new(suspected));
        each.run(&pollers, "suspects", move |of| {
            suspects::run(of.shared, suspected.clone(), of.buffer)
        });
        each.run(&pollers, "unhandled", |of| unhandled::run(of.shared));
        each.run(&loops, "step heartbeat", |of| {
            heartbeat::run(of.shared, of.wakes.subscribe(), of.health.beats().clone())
        });
        each.run(&loops, "configuration", |of| {
            configuration::told(of.shared.live.clone(), of.wakes.subscribe(), of.shared.stop.clone())
        });
        each.run(&loops, "heartbeat", |of| {
            let live = of.shared.live.clone();
            health::keep_membership(
                of.shared.membership.clone(),
                of.health,
                move || live.worker(|config| config.lease),
                of.shared.abandon.clone(),
            )
        });
        tracing::info!(member = shared.membership.id(), queues = shared.queues.join(","), "worker started");
        Ok(Worker {
            shared,
            health,
            exit,
            reports,
            pollers,
            loops,
        })
    }
}
