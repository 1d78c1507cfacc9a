//! Streams: puts what has happened in order, and delivers the subscriptions that are this orchestrator's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{broadcast, Notify};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::{self, channel, Db, Wake};
use crate::engine::deliveries::{self, Held};
use crate::engine::member::Membership;
use crate::error::Result;
use crate::health::{Beat, Beats};
use crate::streams::delivery::Delivery;
use crate::streams::SINKS;

/// How many events one transaction puts in order.
const BATCH: i32 = 1_000;
/// How often to look for events that were not announced, where anybody has subscribed; and how often at who delivers what.
const POLL: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(5);
/// How often to look whether anybody has subscribed, when nobody had.
const IDLE: Duration = Duration::from_secs(60);
/// How long a delivery rests after an error that is not its sink's.
const FAILED: Duration = Duration::from_secs(1);
/// How long sinks may take to answer when this process stops.
const GRACE: Duration = Duration::from_secs(5);

pub(super) struct Streams {
    db: Db,
    membership: Arc<Membership>,
    wakes: broadcast::Receiver<Wake>,
    beat: Beat,
    running: HashMap<i64, Running>,
    subscribed: bool,
    looked: Option<Instant>,
    /// Told when a delivery has ended.
    ended: Arc<Notify>,
}

fn version(of: &Held) -> (i32, i32) {
    (of.revision, of.setting)
}

struct Running {
    /// Of what it delivers: the subscription's revision, and the setting of its positions.
    version: (i32, i32),
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Streams {
    pub(super) fn new(db: &Db, membership: &Arc<Membership>, beats: &Beats, wakes: broadcast::Receiver<Wake>) -> Self {
        Streams {
            db: db.clone(),
            membership: membership.clone(),
            wakes,
            beat: beats.register("streams", 2 * IDLE),
            running: HashMap::new(),
            subscribed: false,
            looked: None,
            ended: Arc::default(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let cycle = self.cycle().await;
            self.beat.note(&cycle);
            let rest = match cycle {
                Ok(()) => {
                    backoff.reset();
                    match (self.subscribed, self.membership.leads()) {
                        (true, true) => POLL,
                        (true, false) => LOOK,
                        (false, _) => self.membership.rest(IDLE),
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "telling what happens failed");
                    backoff.next_delay()
                }
            };
            let changed = AtomicBool::new(false);
            let wait = db::wait(&mut self.wakes, rest, |told| match told.channel.as_str() {
                channel::SUBSCRIPTIONS => {
                    changed.store(true, Ordering::Relaxed);
                    true
                }
                channel::EVENTS => self.membership.leads(),
                _ => false,
            });
            tokio::select! {
                () = stop.cancelled() => {}
                () = wait => {}
                () = self.ended.notified() => changed.store(true, Ordering::Relaxed),
            }
            if changed.into_inner() {
                self.looked = None;
            }
        }
        self.end().await;
    }

    async fn cycle(&mut self) -> Result<()> {
        let every = if self.subscribed { LOOK } else { IDLE };
        if self.looked.is_none_or(|looked| looked.elapsed() >= every) {
            self.look().await?;
        }
        while self.subscribed && deliveries::order_events(&self.db, BATCH).await? == Some(BATCH) {}
        Ok(())
    }

    /// Delivers what is ours, and nothing else.
    async fn look(&mut self) -> Result<()> {
        self.looked = Some(Instant::now());
        let member = self.membership.id();
        let holding = deliveries::hold(&self.db, member, SINKS).await?;
        self.subscribed = holding.subscribed;
        let ours: HashMap<i64, Held> = holding.held.into_iter().map(|held| (held.id, held)).collect();
        // Those that are to end do so when their sinks have answered, and then this is called again.
        self.running.retain(|id, running| {
            let goes_on = ours.get(id).is_some_and(|held| !held.surplus && version(held) == running.version);
            if !goes_on {
                running.stop.cancel();
            }
            !running.task.is_finished()
        });
        for held in ours
            .into_values()
            .filter(|held| !self.running.contains_key(&held.id))
            .collect::<Vec<_>>()
        {
            match held.surplus {
                true => deliveries::release(&self.db, held.id, member).await?,
                false => self.begin(held),
            }
        }
        Ok(())
    }

    /// One that cannot be begun is no matter of the others; it is tried again at the next look.
    fn begin(&mut self, held: Held) {
        let (id, name, version) = (held.id, held.name.clone(), version(&held));
        let delivery = match Delivery::new(&self.db, &self.membership, held) {
            Ok(Some(delivery)) => delivery,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(subscription = name, %error, "a subscription cannot be delivered");
                return;
            }
        };
        let stop = CancellationToken::new();
        let running = delivery.run(self.wakes.resubscribe(), stop.clone());
        let ended = self.ended.clone();
        let task = tokio::spawn(async move {
            // It begins anew where it was noted to be.
            if let Err(error) = running.await {
                tracing::warn!(subscription = name, %error, "delivering failed");
                tokio::time::sleep(FAILED).await;
            }
            ended.notify_one();
        });
        self.running.insert(id, Running { version, stop, task });
    }

    /// What is on its way, and was not answered by then, is sent again by whoever comes next.
    async fn end(&mut self) {
        let running = std::mem::take(&mut self.running);
        running.values().for_each(|running| running.stop.cancel());
        let (ids, tasks): (Vec<i64>, Vec<JoinHandle<()>>) = running.into_iter().map(|(id, running)| (id, running.task)).unzip();
        tokio::time::timeout(GRACE, join_all(tasks)).await.ok();
        for id in ids {
            if let Err(error) = deliveries::release(&self.db, id, self.membership.id()).await {
                tracing::warn!(%error, "could not hand over a subscription");
            }
        }
    }
}
