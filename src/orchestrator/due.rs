//! What is due, to the moment: tasks that wait for their time begin, sleeps end, failed steps are enqueued again, steps under a limit get
//! its permits, and children are created and counted.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::{self, channel, Db, Wake};
use crate::engine::children::move_children;
use crate::engine::claim::{begin_what_is_due, Due as Begun};
use crate::error::Result;
use crate::health::{Beat, Beats};
use crate::telemetry;

const BATCH: i32 = 200;
/// How many children are created in one transaction.
const CHILDREN: i32 = 1_000;
const POLL: Duration = Duration::from_secs(5);

pub(super) struct Due {
    db: Db,
    wakes: broadcast::Receiver<Wake>,
    beat: Beat,
}

impl Due {
    pub(super) fn new(db: &Db, beats: &Beats, wakes: broadcast::Receiver<Wake>) -> Self {
        Due {
            db: db.clone(),
            wakes,
            beat: beats.register("due", Duration::from_secs(60)),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let due = self.begin().await;
            self.beat.note(&due);
            let wait = async {
                match due {
                    Ok((due, children)) => {
                        backoff.reset();
                        telemetry::metrics().tasks_begun.add(due.begun as u64, &[]);
                        telemetry::metrics().retries_enqueued.add(due.enqueued as u64, &[]);
                        if due.begun.max(due.enqueued).max(due.woken) < BATCH && children < CHILDREN {
                            db::wait(&mut self.wakes, until(due.next_due), |name, _| name == channel::DUE).await;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "beginning what is due failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = wait => {} }
        }
    }

    async fn begin(&self) -> Result<(Begun, i32)> {
        let begun = begin_what_is_due(&self.db, BATCH).await?;
        let children = match begun.children {
            true => move_children(&self.db, CHILDREN).await?,
            false => 0,
        };
        Ok((begun, children))
    }
}

/// How long to wait for what is due at `next`. This machine's clock decides only when to ask; the database's decides what is due.
fn until(next: Option<DateTime<Utc>>) -> Duration {
    match next {
        Some(due) => (due - Utc::now())
            .to_std()
            .unwrap_or_default()
            .clamp(Duration::from_millis(5), POLL),
        None => POLL,
    }
}
