//! The heartbeat: renews the lease of everything that is held, at a third of the lease, and carries the handlers' progress. What could not be
//! renewed in time is given up, before another worker has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use super::{log_step, Shared};
use crate::db::{self, channel, Wake};
use crate::engine::lease::{extend_leases, record_progress, Lease};
use crate::health::Beat;

/// How many leases one call renews.
const BATCH: usize = 500;

pub(super) async fn run(shared: Arc<Shared>, mut wakes: broadcast::Receiver<Wake>, beat: Beat) {
    let lease = shared.config.lease;
    let renewing = async {
        loop {
            // A cancellation shows as a lease that is gone: look at once.
            db::wait(&mut wakes, lease / 3, |name, _| name == channel::CANCELLED).await;
            for (queue, name) in shared.queues.iter().enumerate() {
                for leases in shared.held.leases(queue).chunks(BATCH) {
                    renew(&shared, queue, name, leases).await;
                    beat.beat();
                }
                let words = shared.held.take_progress(queue);
                if !words.is_empty() {
                    if let Err(error) = record_progress(&shared.db, name, &words).await {
                        tracing::warn!(%error, queue = name, "progress was not recorded");
                    }
                }
            }
            beat.beat();
        }
    };
    let guarding = async {
        loop {
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

async fn renew(shared: &Shared, queue: usize, name: &str, leases: &[Lease]) {
    let (asked, patience): (Instant, Duration) = (Instant::now(), shared.config.lease / 3);
    match tokio::time::timeout(patience, extend_leases(&shared.db, name, leases, shared.config.lease)).await {
        Ok(Ok(gone)) => {
            let lost = shared.held.renewed(queue, leases, asked, &gone);
            shared.metrics.lease_losses.add(lost.len() as u64, &[]);
            for leased in lost {
                log_step!(
                    WARN,
                    shared,
                    queue,
                    leased,
                    "its lease was lost: the task was cancelled, or the step is another's"
                );
            }
        }
        Ok(Err(error)) => tracing::error!(%error, queue = name, "renewing leases failed"),
        Err(_) => tracing::error!(queue = name, "renewing leases failed: no answer in time"),
    }
}
