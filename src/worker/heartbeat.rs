//! The heartbeat: renews the lease of everything that is held, at a third of the lease.

use std::sync::Arc;

use super::Shared;
use crate::engine::lease::extend_leases;
use crate::health::Beat;

/// How many leases one call renews.
const BATCH: usize = 500;

pub(super) async fn run(shared: Arc<Shared>, beat: Beat) {
    loop {
        tokio::select! {
            () = shared.abandon.cancelled() => return,
            () = tokio::time::sleep(shared.config.lease / 3) => {}
        }
        for (queue, name) in shared.queues.iter().enumerate() {
            for leases in shared.held.leases(queue).chunks(BATCH) {
                match extend_leases(&shared.db, name, leases, shared.config.lease).await {
                    Ok(lost) if !lost.is_empty() => {
                        tracing::warn!(queue = name, messages = ?lost, "leases were lost");
                        shared.held.lose(queue, &lost);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::error!(%error, queue = name, "renewing leases failed"),
                }
            }
        }
        beat.beat();
    }
}
