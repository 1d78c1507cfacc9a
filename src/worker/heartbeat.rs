//! The heartbeat: renews the lease of everything that is held, at a third of the lease, and carries the handlers' progress. What could not be
//! renewed in time is given up, before another worker has it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use super::{log_step, Shared};
use crate::db::{self, channel, Wake};
use crate::engine::lease::{extend_leases, record_progress, Lease, Word};
use crate::health::Beats;

/// How many leases one call renews.
const BATCH: usize = 500;

pub(super) async fn run(shared: Arc<Shared>, mut wakes: broadcast::Receiver<Wake>, beats: Beats) {
    let mut live = shared.live.clone();
    // What the leases that are held were last renewed for.
    let granted = Mutex::new(lease(&shared));
    let renewing = async {
        let mut beat = beats.register("step heartbeat", lease(&shared) + shared.db.longest_call());
        loop {
            // A cancellation shows as a lease that is gone: look at once. So do leases that are shorter from now on.
            tokio::select! {
                () = db::wait(&mut wakes, lease(&shared) / 3, |told| told.channel == channel::CANCELLED) => {}
                () = live.changed() => {
                    drop(beat);
                    beat = beats.register("step heartbeat", lease(&shared) + shared.db.longest_call());
                }
            }
            let lease = lease(&shared);
            let mut renewed = true;
            for &queue in &shared.own {
                let name = &shared.queues[queue];
                for leases in shared.held.leases(queue).chunks(BATCH) {
                    renewed &= renew(&shared, queue, name, leases, lease).await;
                    if renewed {
                        beat.beat();
                    }
                }
                let words = shared.held.take_progress(queue);
                record(&shared, name, &words).await;
            }
            *granted.lock().unwrap_or_else(PoisonError::into_inner) = lease;
            match renewed {
                true => beat.beat(),
                false => beat.fail(),
            }
        }
    };
    let guarding = async {
        loop {
            let lease = *granted.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep(lease / 20).await;
            let lost = shared.held.lose_unrenewed(lease);
            shared.metrics.lease_losses.add(lost.len() as u64, &[]);
            for (queue, leased) in lost {
                log_step!(ERROR, shared, queue, leased, "its lease could not be renewed in time, giving it up");
            }
        }
    };
    tokio::select! {
        () = shared.abandon.cancelled() => {}
        () = renewing => {}
        () = guarding => {}
    }
}

/// What PostgreSQL refuses together for its data is recorded one by one.
async fn record(shared: &Shared, name: &str, words: &[Word]) {
    if words.is_empty() {
        return;
    }
    match record_progress(&shared.db, name, words).await {
        Ok(_) => {}
        Err(error) if error.is_bad_data() && words.len() > 1 => {
            for word in words {
                if let Err(error) = record_progress(&shared.db, name, std::slice::from_ref(word)).await {
                    tracing::warn!(%error, queue = name, task = %word.lease.task_id, "progress was not recorded");
                }
            }
        }
        Err(error) => tracing::warn!(%error, queue = name, "progress was not recorded"),
    }
}

fn lease(shared: &Shared) -> Duration {
    shared.live.worker(|config| config.lease)
}

/// Whether the database said so.
async fn renew(shared: &Shared, queue: usize, name: &str, leases: &[Lease], lease: Duration) -> bool {
    let asked = Instant::now();
    let answer = tokio::time::timeout(lease / 3, extend_leases(&shared.db, name, leases, lease)).await;
    let renewed = matches!(answer, Ok(Ok(_)));
    match answer {
        Ok(Ok(answer)) => {
            let (lost, cancelled) = shared.held.renewed(queue, leases, asked, &answer);
            shared.metrics.lease_losses.add(lost.len() as u64, &[]);
            for leased in lost {
                log_step!(
                    WARN,
                    shared,
                    queue,
                    leased,
                    "its lease was lost: the step is another's by now, or was given up"
                );
            }
            for leased in cancelled {
                log_step!(INFO, shared, queue, leased, "its task was cancelled, the handler is told");
            }
        }
        Ok(Err(error)) => tracing::error!(%error, queue = name, "renewing leases failed"),
        Err(_) => tracing::error!(queue = name, "renewing leases failed: no answer in time"),
    }
    renewed
}
