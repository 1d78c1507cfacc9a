//! What is due, to the moment: tasks that wait for their time begin, sleeps end, failed steps are enqueued again, steps under a limit get its
//! permits, signals reach the steps that wait for them, and tasks of schedules are created.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{broadcast, Notify};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::{self, channel, Db, Wake};
use crate::engine::claim::{begin_what_is_due, Due as WhatWasDue};
use crate::engine::member::Membership;
use crate::engine::schedules::fire_schedules;
use crate::engine::signals::match_signals;
use crate::error::Result;
use crate::health::{Beat, Beats};
use crate::telemetry;

const BATCH: i32 = 200;
const POLL: Duration = Duration::from_secs(5);
/// After signals and schedules were looked at, until it is asked again what is due: there may be more, somebody else may have been at it, and what waits
/// now may have a time.
const BUSY: Duration = Duration::from_millis(5);

pub(super) struct Due {
    db: Db,
    membership: Arc<Membership>,
    wakes: broadcast::Receiver<Wake>,
    /// Told when there is something to do about children.
    children: Arc<Notify>,
    beat: Beat,
}

impl Due {
    pub(super) fn new(
        db: &Db,
        membership: &Arc<Membership>,
        beats: &Beats,
        wakes: broadcast::Receiver<Wake>,
        children: Arc<Notify>,
    ) -> Self {
        Due {
            db: db.clone(),
            membership: membership.clone(),
            wakes,
            children,
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
                    Ok(due) => {
                        backoff.reset();
                        telemetry::metrics().tasks_begun.add(due.begun as u64, &[]);
                        telemetry::metrics().retries_enqueued.add(due.enqueued as u64, &[]);
                        if due.children {
                            self.children.notify_one();
                        }
                        if due.signals || due.schedules {
                            tokio::time::sleep(BUSY).await;
                        } else if due.begun.max(due.enqueued).max(due.woken) < BATCH {
                            let leads = self.membership.leads();
                            let longest = if leads { POLL } else { self.membership.rest(POLL) };
                            let next = due.next_due.filter(|_| leads);
                            db::wait(&mut self.wakes, until(next, longest), |told| {
                                told.channel == channel::DUE && self.membership.leads()
                            })
                            .await;
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

    async fn begin(&self) -> Result<WhatWasDue> {
        let due = begin_what_is_due(&self.db, BATCH).await?;
        if due.signals {
            match_signals(&self.db, BATCH).await?;
        }
        if due.schedules {
            fire_schedules(&self.db, BATCH).await?;
        }
        Ok(due)
    }
}

/// How long to wait for what is due at `next`, at most. This machine's clock decides only when to ask; the database's decides what is due.
fn until(next: Option<DateTime<Utc>>, longest: Duration) -> Duration {
    match next {
        Some(due) => (due - Utc::now())
            .to_std()
            .unwrap_or_default()
            .clamp(Duration::from_millis(5), longest),
        None => longest,
    }
}
