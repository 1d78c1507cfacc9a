//! What this worker holds: every step from its lease until its report is committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct Held {
    entries: Mutex<Entries>,
    /// Something was removed.
    freed: Notify,
    /// How many were ever reported.
    finished: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    by_message: HashMap<(usize, i64), Entry>,
    /// How many of them are reported and wait for the commit.
    reported: usize,
    pace: Pace,
}

#[derive(Debug)]
struct Entry {
    fence: i32,
    lost: Arc<AtomicBool>,
    reported: bool,
}

/// How many steps the handlers finish in [`Pace::AHEAD`], measured over at least half of it.
#[derive(Debug)]
struct Pace {
    ahead: usize,
    since: Instant,
    finished: u64,
}

impl Pace {
    const AHEAD: Duration = Duration::from_millis(100);
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            ahead: 0,
            since: Instant::now(),
            finished: 0,
        }
    }
}

impl Held {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a leased step; the flag is raised when its lease is lost.
    pub(super) fn add(&self, queue: usize, msg_id: i64, fence: i32) -> Arc<AtomicBool> {
        let lost = Arc::new(AtomicBool::new(false));
        self.entries().by_message.insert(
            (queue, msg_id),
            Entry {
                fence,
                lost: lost.clone(),
                reported: false,
            },
        );
        lost
    }

    /// The handler is done with it. False: it was reported before, or it is not held any more.
    pub(super) fn reported(&self, queue: usize, msg_id: i64) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.by_message.get_mut(&(queue, msg_id)).filter(|entry| !entry.reported) else {
            return false;
        };
        entry.reported = true;
        entries.reported += 1;
        self.finished.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Its report is committed, or it was handed back.
    pub(super) fn remove(&self, queue: usize, msg_id: i64) {
        self.remove_all(queue, &[msg_id]);
    }

    pub(super) fn remove_all(&self, queue: usize, messages: &[i64]) {
        let mut entries = self.entries();
        for &msg_id in messages {
            if entries.by_message.remove(&(queue, msg_id)).is_some_and(|entry| entry.reported) {
                entries.reported -= 1;
            }
        }
        drop(entries);
        self.freed.notify_waiters();
    }

    /// Whether any step is leased and not yet reported.
    pub(super) fn any_unreported(&self) -> bool {
        let entries = self.entries();
        entries.by_message.len() > entries.reported
    }

    /// (limit, room): how many steps to hold at the present pace, and how many more that allows.
    pub(super) fn room(&self, concurrency: usize, max_prefetch: usize) -> (usize, usize) {
        let mut entries = self.entries();
        let elapsed = entries.pace.since.elapsed();
        if elapsed >= Pace::AHEAD / 2 {
            let finished = self.finished.load(Ordering::Relaxed);
            let share = Pace::AHEAD.as_secs_f64() / elapsed.as_secs_f64();
            entries.pace = Pace {
                ahead: ((finished - entries.pace.finished) as f64 * share) as usize,
                since: Instant::now(),
                finished,
            };
        }
        let limit = concurrency + entries.pace.ahead.min(max_prefetch);
        (limit, limit.saturating_sub(entries.by_message.len()))
    }

    /// Waits until something is removed after `check` said no.
    pub(super) async fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(found) = check() {
                return found;
            }
            freed.await;
        }
    }

    /// Waits until nothing is held.
    pub(super) async fn emptied(&self) {
        self.until(|| self.entries().by_message.is_empty().then_some(())).await;
    }

    /// (message, fence) of every held step of a queue whose lease is worth renewing.
    pub(super) fn leases(&self, queue: usize) -> Vec<(i64, i32)> {
        let entries = self.entries();
        let renewable = |((q, msg_id), entry): (&(usize, i64), &Entry)| {
            (*q == queue && !entry.lost.load(Ordering::Relaxed)).then_some((*msg_id, entry.fence))
        };
        entries.by_message.iter().filter_map(renewable).collect()
    }

    /// These leases are no longer ours.
    pub(super) fn lose(&self, queue: usize, messages: &[i64]) {
        let entries = self.entries();
        for entry in messages.iter().filter_map(|msg_id| entries.by_message.get(&(queue, *msg_id))) {
            entry.lost.store(true, Ordering::Relaxed);
        }
    }

    /// (queue, message, fence) of every step that is not reported.
    pub(super) fn unreported(&self) -> Vec<(usize, i64, i32)> {
        self.entries()
            .by_message
            .iter()
            .filter(|(_, e)| !e.reported)
            .map(|((queue, msg_id), e)| (*queue, *msg_id, e.fence))
            .collect()
    }
}
