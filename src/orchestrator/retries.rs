//! Retries: enqueues failed steps again when they are due, to the moment.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::{self, channel, Db, Wake};
use crate::engine::claim::enqueue_due_retries;
use crate::health::{Beat, Beats};
use crate::telemetry;

const BATCH: i32 = 200;
const POLL: Duration = Duration::from_secs(5);

pub(super) struct Retries {
    db: Db,
    wakes: broadcast::Receiver<Wake>,
    beat: Beat,
}

impl Retries {
    pub(super) fn new(db: &Db, beats: &Beats, wakes: broadcast::Receiver<Wake>) -> Self {
        Retries {
            db: db.clone(),
            wakes,
            beat: beats.register("retries", Duration::from_secs(60)),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let retried = enqueue_due_retries(&self.db, BATCH).await;
            self.beat.beat();
            let wait = async {
                match retried {
                    Ok(retried) => {
                        backoff.reset();
                        telemetry::metrics().retries_enqueued.add(retried.enqueued as u64, &[]);
                        if retried.enqueued < BATCH {
                            db::wait(&mut self.wakes, until(retried.next_due), |name, _| name == channel::RETRIES).await;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "enqueuing retries failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = wait => {} }
        }
    }
}

/// How long to wait for a retry that is due at `next`. This machine's clock decides only when to ask; the database's decides what is due.
fn until(next: Option<DateTime<Utc>>) -> Duration {
    match next {
        Some(due) => (due - Utc::now())
            .to_std()
            .unwrap_or_default()
            .clamp(Duration::from_millis(5), POLL),
        None => POLL,
    }
}
