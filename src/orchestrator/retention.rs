//! Retention: deletes the dead letters whose time is over, and says which.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::Db;
use crate::engine::dead_letters::{self, By};
use crate::health::{Beat, Beats};

const EVERY: Duration = Duration::from_secs(600);

pub(super) struct Retention {
    db: Db,
    by: By,
    beat: Beat,
}

impl Retention {
    pub(super) fn new(db: &Db, beats: &Beats) -> Self {
        let by = By {
            who: "retention".into(),
            why: None,
        };
        Retention {
            db: db.clone(),
            by,
            beat: beats.register("retention", 2 * EVERY),
        }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let purged = dead_letters::purge(&self.db, &self.by).await;
            self.beat.beat();
            let delay = match purged {
                Ok(purged) => {
                    if purged > 0 {
                        tracing::info!(
                            purged,
                            "dead letters reached their retention; tasker.dead_letter_actions has each of them"
                        );
                    }
                    backoff.reset();
                    EVERY.mul_f64(0.9 + 0.2 * fastrand::f64())
                }
                Err(error) => {
                    tracing::error!(%error, "purging dead letters failed");
                    backoff.next_delay()
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(delay) => {} }
        }
    }
}
