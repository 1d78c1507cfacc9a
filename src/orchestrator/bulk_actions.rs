//! Bulk actions: a slice at a time, of whichever nobody else is at.

use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::{self, channel, Db, Wake};
use crate::engine::bulk_actions::{work, Worked};
use crate::health::{Beat, Beats};

/// How often to look when none was announced.
const POLL: Duration = Duration::from_secs(60);

/// Between two slices: others want the database, too.
const BREATH: Duration = Duration::from_millis(10);

pub(super) struct BulkActions {
    db: Db,
    wakes: broadcast::Receiver<Wake>,
    beat: Beat,
}

impl BulkActions {
    pub(super) fn new(db: &Db, beats: &Beats, wakes: broadcast::Receiver<Wake>) -> Self {
        BulkActions {
            db: db.clone(),
            wakes,
            beat: beats.register("bulk actions", 2 * POLL),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let worked = work(&self.db).await;
            self.beat.note(&worked);
            let rest = match worked {
                Ok(worked) => {
                    backoff.reset();
                    match worked {
                        Worked::Slice => BREATH,
                        Worked::Rest(rest) => rest,
                        Worked::Nothing => POLL,
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "bulk actions failed");
                    backoff.next_delay()
                }
            };
            let wait = db::wait(&mut self.wakes, rest, |told| told.channel == channel::BULK_ACTIONS);
            tokio::select! { () = stop.cancelled() => {}, () = wait => {} }
        }
    }
}
