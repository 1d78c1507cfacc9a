//! How a worker begins: in each of its databases it joins the members, and its loops start. Each can be begun anew, should it panic.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use opentelemetry::KeyValue;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};
use tokio::sync::{broadcast, Mutex, Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::bulk::Gathering;
use super::held::Held;
use super::poller::Outlets;
use super::step::{Handled, Step};
use super::turns::Turns;
use super::unhandled::{self, Unhandled};
use super::{batcher, heartbeat, poller, suspects, Shared, Worker};
use crate::config::{Live, WorkerConfig};
use crate::db::{channel, Wake};
use crate::engine::member::{Kind, Membership};
use crate::engine::shards::Shards;
use crate::engine::{configuration, namespaces};
use crate::error::{Error, Result};
use crate::health::{self, Beats, Busy, Health, Joined, Loops, Place};
use crate::telemetry::{self, Metrics};
use crate::Db;

/// What a worker has in all of its databases together.
#[derive(Debug)]
pub(super) struct All {
    pub(super) live: Live,
    /// As often as there are shards: queue n of shard k is at k × how many there are + n.
    pub(super) namespaces: Arc<[String]>,
    shards: usize,
    pub(super) queues: Arc<[String]>,
    pub(super) labels: Arc<[KeyValue]>,
    pub(super) held: Arc<Held>,
    pub(super) gathering: Arc<Gathering>,
    pub(super) turns: Arc<Turns<Vec<Step>>>,
    pub(super) yielding: Arc<AtomicBool>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    /// Where the outcomes of each queue go.
    pub(super) reports: Vec<UnboundedSender<Handled>>,
    pub(super) pollers: Loops,
    pub(super) loops: Loops,
    /// Somebody is to say which handlers there are.
    pub(super) asked: Arc<Notify>,
    pub(super) stop: CancellationToken,
    pub(super) abandon: CancellationToken,
    waiting: Arc<suspects::Waiting>,
    /// Where each queue's reports come from.
    outcomes: Vec<Arc<Mutex<UnboundedReceiver<Handled>>>>,
    /// Where leased steps go; None: it stops.
    outlets: std::sync::Mutex<Option<Outlets>>,
    /// Those that it has begun with.
    places: std::sync::Mutex<Vec<Arc<Shared>>>,
}

/// What its loops in one database work with.
#[derive(Clone)]
struct Each {
    shared: Arc<Shared>,
    health: Health,
    place: Arc<Place>,
    beats: Beats,
    wakes: broadcast::Sender<Wake>,
    outlets: Outlets,
}

impl Each {
    fn run<L: Future<Output = ()> + Send>(&self, loops: &Loops, name: &str, begin: impl Fn(Each) -> L + Send + 'static) {
        let of = self.clone();
        loops.run(self.place.named(name), move || begin(of.clone()));
    }

    /// Those of one queue.
    fn begin_queue(&self, queue: usize, all: &All) {
        let name = &self.shared.queues[queue];
        let named = format!("poller {name}");
        self.run(&all.pollers, &named.clone(), move |of| {
            let beat = of.beats.register(named.clone(), Duration::from_secs(60));
            poller::run(of.shared, queue, of.outlets, of.wakes.subscribe(), beat)
        });
        let (named, outcomes) = (format!("reports {name}"), all.outcomes[queue].clone());
        self.run(&all.loops, &named.clone(), move |of| {
            let beat = of.beats.register(named.clone(), Duration::MAX);
            batcher::run(of.shared, queue, outcomes.clone(), of.outlets.buffer, Arc::new(beat))
        });
    }
}

impl Worker {
    /// Joins the members, makes sure that the namespaces' queues exist, and begins to lease steps. With a [`Live`], it follows its changes.
    /// Errors: [`Error::Config`] for settings that cannot be, and without a namespace.
    pub async fn start(db: &Db, settings: impl Into<Live>) -> Result<Worker> {
        let worker = Worker::of(settings.into(), 1)?;
        worker.all.begin(Joined::only(db, worker.all.namespaces.to_vec())).await?;
        Ok(worker)
    }

    /// The same in each shard where its namespaces live; later in those that are away.
    /// Errors: why it can begin in none.
    pub async fn start_in(shards: &Shards, settings: impl Into<Live>) -> Result<Worker> {
        let worker = Worker::of(settings.into(), shards.count())?;
        let all = worker.all.clone();
        let begin = move |joined| {
            let all = all.clone();
            async move { all.begin(joined).await }.boxed()
        };
        let of = &worker.all;
        let namespaces = of.live.worker(|config| config.namespaces.clone());
        of.loops.join(shards, &namespaces, &of.stop, begin).await?;
        Ok(worker)
    }

    /// A namespace has a queue in each of so many shards: it may move.
    fn of(live: Live, shards: usize) -> Result<Worker> {
        live.check()?;
        let own = live.worker(|config| config.namespaces.clone());
        let namespaces: Arc<[String]> = vec![own; shards].concat().into();
        if namespaces.is_empty() {
            return Err(Error::Config("a worker needs at least one namespace".into()));
        }
        let health = Health::new(Kind::Worker, &live);
        let (turns, gathering, stop) = (Arc::new(Turns::of(namespaces.len())), Arc::default(), CancellationToken::new());
        let (buffer, exit) = Buffer::of(&turns, &gathering, &stop);
        let (suspects, suspected) = unbounded_channel();
        let (reports, outcomes): (Vec<_>, Vec<_>) = namespaces.iter().map(|_| unbounded_channel()).unzip();
        let all = Arc::new(All {
            queues: namespaces.iter().map(|namespace| format!("{namespace}_queue")).collect(),
            labels: namespaces
                .iter()
                .map(|namespace| KeyValue::new("namespace", namespace.clone()))
                .collect(),
            held: Arc::new(Held::of(namespaces.len())),
            gathering,
            turns,
            yielding: Arc::default(),
            metrics: telemetry::metrics(),
            reports,
            pollers: Loops::of(&health),
            loops: Loops::of(&health),
            asked: Arc::default(),
            abandon: CancellationToken::new(),
            waiting: Arc::default(),
            outcomes: outcomes.into_iter().map(|outcomes| Arc::new(Mutex::new(outcomes))).collect(),
            outlets: std::sync::Mutex::new(Some(Outlets {
                buffer: buffer.clone(),
                suspects,
            })),
            places: std::sync::Mutex::default(),
            namespaces,
            shards,
            live,
            health,
            stop,
        });
        all.watch(suspected, buffer);
        Ok(Worker { all, exit })
    }
}

impl All {
    /// Those that it has begun with.
    pub(super) fn places(&self) -> Vec<Arc<Shared>> {
        lock(&self.places).clone()
    }

    /// It takes no steps any more: once those are handed back that it has, nobody waits for more.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        lock(&self.outlets).take();
    }

    pub(super) fn concurrency(&self) -> usize {
        self.live.worker(|config| config.concurrency)
    }

    /// Starts what is the same wherever steps come from.
    fn watch(&self, suspected: UnboundedReceiver<Step>, buffer: Buffer) {
        let (held, live) = (Arc::downgrade(&self.held), self.live.clone());
        self.health.tell_busy(move || {
            held.upgrade().map(|held| Busy {
                running: held.busy(),
                slots: live.worker(|config| config.concurrency),
            })
        });
        let (suspected, stop) = (Arc::new(Mutex::new(suspected)), self.stop.clone());
        self.pollers
            .run("suspects", move || suspects::run(stop.clone(), suspected.clone(), buffer.clone()));
    }

    /// Joins the members of one database, and begins with the queues there.
    async fn begin(&self, joined: Joined) -> Result<()> {
        let (place, label) = (Place::new(&joined), joined.label());
        let Joined {
            shard,
            index,
            db,
            namespaces: own,
            ..
        } = joined;
        let Some(outlets) = lock(&self.outlets).clone() else {
            return Ok(());
        };
        db.check_schema().await?;
        namespaces::ensure(&db, &own).await?;
        let WorkerConfig { lease, .. } = self.live.worker(WorkerConfig::clone);
        let membership = Arc::new(Membership::join(&db, Kind::Worker, &own, lease).await?);
        let wakes = db.listen(
            &[channel::TASKS, channel::STEPS, channel::CANCELLED, channel::CONFIGURATION],
            self.stop.clone(),
        );
        let place = self.health.add(place);
        let count = self.namespaces.len() / self.shards;
        let queues = self.namespaces.iter().enumerate().skip(index * count).take(count);
        let shared = Arc::new(Shared {
            leases: Semaphore::new(poller::CONCURRENT_POLLERS),
            commits: Arc::new(Semaphore::new(batcher::ALL_CONCURRENT_COMMITS)),
            own: queues
                .filter(|(_, namespace)| own.contains(namespace))
                .map(|(queue, _)| queue)
                .collect(),
            db,
            membership,
            unhandled: Unhandled::of(&self.asked),
            live: self.live.clone(),
            namespaces: self.namespaces.clone(),
            queues: self.queues.clone(),
            held: self.held.clone(),
            waiting: self.waiting.clone(),
            gathering: self.gathering.clone(),
            turns: self.turns.clone(),
            yielding: self.yielding.clone(),
            metrics: self.metrics.clone(),
            labels: self.labels.clone(),
            stop: self.stop.clone(),
            abandon: self.abandon.clone(),
        });
        lock(&self.places).push(shared.clone());
        let each = Each {
            beats: self.health.beats().of(label.as_deref()),
            shared: shared.clone(),
            health: self.health.clone(),
            place,
            wakes,
            outlets,
        };
        for &queue in &shared.own {
            each.begin_queue(queue, self);
        }
        each.run(&self.pollers, "unhandled", |of| unhandled::run(of.shared));
        each.run(&self.loops, "step heartbeat", |of| {
            heartbeat::run(of.shared, of.wakes.subscribe(), of.beats)
        });
        each.run(&self.loops, "configuration", |of| {
            configuration::told(of.shared.live.clone(), of.wakes.subscribe(), of.shared.stop.clone())
        });
        each.run(&self.loops, "heartbeat", |of| {
            let (live, shared) = (of.shared.live.clone(), of.shared);
            health::keep_membership(
                shared.membership.clone(),
                of.health,
                of.place,
                move || live.worker(|config| config.lease),
                shared.abandon.clone(),
            )
        });
        let queues: Vec<&str> = shared.own.iter().map(|queue| self.queues[*queue].as_str()).collect();
        tracing::info!(member = shared.membership.id(), shard, queues = queues.join(","), "worker started");
        Ok(())
    }
}

fn lock<T>(of: &std::sync::Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
