//! One subscription is told what it wants to know: in each of its lanes one event after the other, all lanes at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Outlet, Refused};
use crate::db::{self, channel, Db, Wake};
use crate::engine::deliveries::{self, Held, Reached};
use crate::engine::member::Membership;
use crate::error::Result;
use crate::subscription::LANES;

/// How many events of a lane are read, and sent, before it is noted how far it is.
const SLICE: i32 = 100;
/// How often to look when nothing was announced.
const POLL: Duration = Duration::from_secs(5);
/// How long a lane rests after its first failure, and at most.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How a lane is.
#[derive(Debug, Clone, Copy)]
enum Lane {
    /// There may be something to read behind its position.
    Ready,
    /// There was nothing.
    Empty,
    /// Something is on its way.
    Sending,
    /// It failed, and is tried again then.
    Resting(Instant),
}

/// What has become of some events of a lane.
struct Sent {
    lane: usize,
    /// How many arrived.
    count: usize,
    /// The last of them, or the last that was looked at.
    position: i64,
    refused: Option<Refused>,
}

pub(crate) struct Delivery {
    db: Db,
    membership: Arc<Membership>,
    /// With how far it is by now.
    held: Held,
    outlet: Arc<Outlet>,
    lanes: [Lane; LANES],
    failures: [u32; LANES],
}

impl Delivery {
    /// None: it is nobody's to deliver. Errors: those of its settings.
    pub(crate) fn new(db: &Db, membership: &Arc<Membership>, held: Held) -> Result<Option<Delivery>> {
        Ok(Outlet::new(&held)?.map(|outlet| Delivery {
            db: db.clone(),
            membership: membership.clone(),
            outlet: Arc::new(outlet),
            lanes: [Lane::Ready; LANES],
            failures: [0; LANES],
            held,
        }))
    }

    /// Until it is stopped, or is not ours any more. What is on its way when it is stopped is waited for.
    pub(crate) async fn run(mut self, mut wakes: broadcast::Receiver<Wake>, stop: CancellationToken) -> Result<()> {
        let mut sending: FuturesUnordered<BoxFuture<'static, Sent>> = FuturesUnordered::new();
        loop {
            if !stop.is_cancelled() {
                self.begin(&mut sending).await?;
            } else if sending.is_empty() {
                return Ok(());
            }
            let told = db::wait(&mut wakes, self.rest(), |told| told.channel == channel::DELIVERIES);
            tokio::select! {
                Some(sent) = sending.next() => {
                    // With those that have ended meanwhile.
                    let mut all = vec![sent];
                    while let Some(Some(sent)) = sending.next().now_or_never() {
                        all.push(sent);
                    }
                    if !self.note(all).await? {
                        return Ok(());
                    }
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                () = told, if !stop.is_cancelled() => self.look_again(),
            }
        }
    }

    /// Until when there is nothing to do but to wait for what is on its way, and for news.
    fn rest(&self) -> Duration {
        let until = |lane: &Lane| match lane {
            Lane::Resting(until) => Some(until.saturating_duration_since(Instant::now())),
            _ => None,
        };
        self.lanes.iter().filter_map(until).min().unwrap_or(POLL).min(POLL)
    }

    fn look_again(&mut self) {
        let now = Instant::now();
        for lane in &mut self.lanes {
            match lane {
                Lane::Empty => *lane = Lane::Ready,
                Lane::Resting(until) if *until <= now => *lane = Lane::Ready,
                _ => {}
            }
        }
    }

    /// Reads what is next in the lanes that are ready, and sends it.
    async fn begin(&mut self, sending: &mut FuturesUnordered<BoxFuture<'static, Sent>>) -> Result<()> {
        let lanes: Vec<usize> = (0..LANES).filter(|lane| matches!(self.lanes[*lane], Lane::Ready)).collect();
        if lanes.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i16> = lanes.iter().map(|lane| *lane as i16).collect();
        let positions: Vec<i64> = lanes.iter().map(|lane| self.held.positions[*lane]).collect();
        let read = deliveries::read(&self.db, self.held.id, &numbers, &positions, SLICE).await?;
        let mut found: BTreeMap<usize, (Vec<(i64, Value)>, i64)> = BTreeMap::new();
        for placed in read {
            let (events, last) = found.entry(placed.lane as usize).or_default();
            *last = placed.position;
            events.extend(placed.event.map(|event| (placed.position, event)));
        }
        for lane in lanes {
            let Some((events, last)) = found.remove(&lane) else {
                self.lanes[lane] = Lane::Empty;
                continue;
            };
            self.lanes[lane] = Lane::Sending;
            let before = self.held.positions[lane];
            let outlet = self.outlet.clone();
            let send = async move {
                let (count, refused) = outlet.send(&events).await;
                let reached = count.checked_sub(1).map_or(before, |last| events[last].0);
                let position = if refused.is_none() { last } else { reached };
                Sent {
                    lane,
                    count,
                    position,
                    refused,
                }
            };
            sending.push(send.boxed());
        }
        Ok(())
    }

    /// Notes what has become of them. False: it is not ours any more.
    async fn note(&mut self, all: Vec<Sent>) -> Result<bool> {
        let (mut reached, mut delivered, mut problem, mut gone) = (Vec::new(), 0, None, false);
        for sent in all {
            let lane = sent.lane;
            self.held.positions[lane] = sent.position;
            delivered += sent.count as i64;
            reached.push(Reached {
                lane: lane as i16,
                position: sent.position,
                fails: sent.refused.is_some(),
            });
            self.lanes[lane] = match sent.refused {
                None => {
                    self.failures[lane] = 0;
                    Lane::Ready
                }
                Some(refused) => {
                    self.failures[lane] = if sent.count > 0 { 1 } else { self.failures[lane].saturating_add(1) };
                    gone |= refused.gone;
                    let rest = refused.retry_after.unwrap_or_else(|| rest(self.failures[lane]));
                    problem = Some(refused.why);
                    Lane::Resting(Instant::now() + rest)
                }
            };
        }
        let patience = if gone { Duration::ZERO } else { self.outlet.patience() };
        let noted = deliveries::advance(
            &self.db,
            &self.held,
            self.membership.id(),
            &reached,
            problem.as_deref(),
            delivered,
            patience,
        )
        .await?;
        let name = &self.held.name;
        if noted.disabled {
            tracing::error!(
                subscription = name,
                problem,
                "a subscription is disabled: its sink has taken nothing for too long"
            );
        } else if let Some(problem) = problem {
            tracing::warn!(subscription = name, problem, "a sink did not take an event, it will be tried again");
        }
        Ok(noted.held && !noted.disabled)
    }
}

/// Doubles with each failure, with jitter.
fn rest(failures: u32) -> Duration {
    let (first, most) = REST;
    (first * 2_u32.pow(failures.saturating_sub(1).min(16)))
        .min(most)
        .mul_f64(0.75 + 0.5 * fastrand::f64())
}
