//! Admission: claims pending tasks by priority, as long as their queues are shallow. Idle workers admit what has just come in themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::Live;
use crate::db::{self, channel, Db, Wake};
use crate::engine::claim::claim_tasks;
use crate::engine::member::Membership;
use crate::engine::trace::tell_claims;
use crate::error::{Error, Result};
use crate::health::{Beat, Beats};
use crate::telemetry;

/// How long a task is left to workers that have nothing else to do: several times what the notification takes to reach them.
const LEFT_TO_WORKERS: Duration = Duration::from_millis(20);

/// How soon a queue that was full is looked at again, at the latest: workers with room for more admit tasks themselves.
const LONGEST_FULL: Duration = Duration::from_millis(500);

/// After work came in, more is likely.
const SHORTEST_POLL: Duration = Duration::from_millis(2);

pub(super) struct Admission {
    db: Db,
    live: Live,
    membership: Arc<Membership>,
    wakes: broadcast::Receiver<Wake>,
    beat: Beat,
}

/// What a cycle says about the next one.
enum Next {
    /// More tasks may be admitted at once.
    Now,
    /// Tasks are left, but their queues are full: look again when workers have taken some.
    Soon,
    /// Nothing is pending.
    Wake,
}

impl Admission {
    pub(super) fn new(db: &Db, live: &Live, membership: &Arc<Membership>, beats: &Beats, wakes: broadcast::Receiver<Wake>) -> Self {
        let beat = beats.register("admission", Duration::from_secs(60));
        Admission {
            db: db.clone(),
            live: live.clone(),
            membership: membership.clone(),
            wakes,
            beat,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        // After work came in, more is likely: polls begin short and lengthen to the configured one.
        let mut poll = Duration::ZERO;
        while !stop.is_cancelled() {
            let next = self.cycle().await;
            self.beat.note(&next);
            let wait = async {
                match next {
                    Ok(next) => {
                        backoff.reset();
                        let longest = self.live.orchestrator().poll;
                        let longest = match next {
                            Next::Now => {
                                poll = SHORTEST_POLL;
                                return;
                            }
                            Next::Soon => longest.min(LONGEST_FULL),
                            Next::Wake => longest,
                        };
                        poll = poll.clamp(SHORTEST_POLL, self.membership.rest(longest).max(SHORTEST_POLL));
                        db::wait(&mut self.wakes, poll, |told| {
                            told.channel == channel::TASKS && self.membership.leads()
                        })
                        .await;
                        tokio::time::sleep(LEFT_TO_WORKERS).await;
                        poll *= 2;
                    }
                    Err(error) => {
                        tracing::error!(%error, "admission failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = wait => {} }
        }
    }

    async fn cycle(&mut self) -> Result<Next> {
        let config = self.live.orchestrator();
        let (metrics, began) = (telemetry::metrics(), Instant::now());
        let claimed = claim_tasks(
            &self.db,
            self.membership.id(),
            &config.namespaces,
            config.queue_target as i32,
            config.batch as i32,
            LEFT_TO_WORKERS,
        )
        .await;
        let claimed = match claimed {
            Err(Error::Stale(why)) => {
                metrics.claim_conflicts.add(1, &[KeyValue::new("kind", "claim")]);
                tracing::warn!(why, "claim refused");
                self.membership.rejoin().await?;
                return Ok(Next::Now);
            }
            claimed => claimed?,
        };
        metrics.claim_duration.record(began.elapsed().as_secs_f64(), &[]);
        for of in claimed.iter().filter(|of| of.claimed > 0) {
            let label = KeyValue::new("namespace", of.namespace.clone());
            metrics.tasks_claimed.add(of.claimed as u64, &[label]);
            tell_claims(of.traced.as_deref().unwrap_or_default(), self.membership.id());
        }
        let admitted: i32 = claimed.iter().map(|c| c.claimed).sum();
        if admitted > 0 {
            tracing::debug!(admitted, "tasks admitted");
        }
        Ok(match (admitted, claimed.is_empty()) {
            (0, true) => Next::Wake,
            (0, false) => Next::Soon,
            _ => Next::Now,
        })
    }
}
