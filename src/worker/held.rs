//! What this worker holds: every step from its lease until its report is committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::engine::lease::{Lease, LeasedStep, Renewed, Word};

#[derive(Debug)]
pub(super) struct Held {
    entries: Mutex<Entries>,
    /// Something was removed.
    freed: Notify,
    /// How many were ever reported.
    finished: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    /// By queue, message and fence: a message that was lost may be leased again here while its former handler still runs.
    by_lease: HashMap<Key, Entry>,
    /// Of each queue, how many of them are not reported yet.
    unreported: Vec<usize>,
    /// How much their reports are that wait to be committed.
    bytes: usize,
    pace: Pace,
}

/// While so many bytes of reports wait to be committed, nothing more is leased.
const MOST_BYTES: usize = 32 << 20;

type Key = (usize, i64, i32);

#[derive(Debug)]
struct Entry {
    leased: Arc<LeasedStep>,
    /// The lease ends that long after this moment, at the earliest.
    renewed: Instant,
    /// The handler is to stop: the lease is lost, or the task was cancelled.
    lost: CancellationToken,
    /// The task was: the lease is still held, so that the handler's last word is heard.
    cancelled: bool,
    reported: bool,
    /// Of its report.
    bytes: usize,
    /// What the handler said of its progress since it was last recorded.
    progress: Option<Value>,
}

fn key(queue: usize, lease: &Lease) -> Key {
    (queue, lease.msg_id, lease.fence)
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
    pub(super) fn of(queues: usize) -> Held {
        let entries = Entries {
            unreported: vec![0; queues],
            ..Entries::default()
        };
        Held {
            entries: Mutex::new(entries),
            freed: Notify::new(),
            finished: AtomicU64::new(0),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a step that was leased after the moment `asked`; the token is cancelled when its lease is lost, or its task is cancelled.
    pub(super) fn add(&self, queue: usize, leased: Arc<LeasedStep>, asked: Instant) -> CancellationToken {
        let lost = CancellationToken::new();
        let key = key(queue, &leased.lease());
        let entry = Entry {
            leased,
            renewed: asked,
            lost: lost.clone(),
            cancelled: false,
            reported: false,
            bytes: 0,
            progress: None,
        };
        let mut entries = self.entries();
        let before = entries.by_lease.insert(key, entry);
        entries.bytes -= before.as_ref().map_or(0, |before| before.bytes);
        if before.is_none_or(|before| before.reported) {
            entries.unreported[queue] += 1;
        }
        lost
    }

    /// The handler is done with it. False: it was reported before, or it is not held any more.
    pub(super) fn reported(&self, queue: usize, lease: &Lease, bytes: usize) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.by_lease.get_mut(&key(queue, lease)).filter(|entry| !entry.reported) else {
            return false;
        };
        entry.reported = true;
        entry.bytes = bytes;
        entries.bytes += bytes;
        entries.unreported[queue] -= 1;
        self.finished.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Their reports are committed, or they were handed back.
    pub(super) fn remove<'a>(&self, queue: usize, leases: impl IntoIterator<Item = &'a Lease>) {
        let mut entries = self.entries();
        for lease in leases {
            match entries.by_lease.remove(&key(queue, lease)) {
                Some(entry) if entry.reported => entries.bytes -= entry.bytes,
                Some(_) => entries.unreported[queue] -= 1,
                None => {}
            }
        }
        drop(entries);
        self.freed.notify_waiters();
    }

    /// Whether this step is held still.
    pub(super) fn holds(&self, queue: usize, lease: &Lease) -> bool {
        self.entries().by_lease.contains_key(&key(queue, lease))
    }

    /// Whether this step's task was cancelled, and its last word is still waited for.
    pub(super) fn is_cancelled(&self, queue: usize, lease: &Lease) -> bool {
        self.entries().by_lease.get(&key(queue, lease)).is_some_and(|entry| entry.cancelled)
    }

    /// How many steps are leased and not yet reported.
    pub(super) fn count_unreported(&self) -> usize {
        self.entries().unreported.iter().sum()
    }

    /// Whether all of this queue's are reported.
    pub(super) fn all_reported(&self, queue: usize) -> bool {
        self.entries().unreported[queue] == 0
    }

    /// (limit, room): how many steps to hold at the present pace, and how many more that allows. As many suspects may wait beside them.
    pub(super) fn room(&self, concurrency: usize, max_prefetch: usize, suspects: usize) -> (usize, usize) {
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
        if entries.bytes > MOST_BYTES {
            return (limit, 0);
        }
        (limit, (limit + suspects.min(limit)).saturating_sub(entries.by_lease.len()))
    }

    /// Those who wait look again.
    pub(super) fn look_again(&self) {
        self.freed.notify_waiters();
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
        self.until(|| self.entries().by_lease.is_empty().then_some(())).await;
    }

    /// The leases of a queue that are worth renewing.
    pub(super) fn leases(&self, queue: usize) -> Vec<Lease> {
        let entries = self.entries();
        let renewable = entries
            .by_lease
            .iter()
            .filter(|((q, ..), entry)| *q == queue && (entry.cancelled || !entry.lost.is_cancelled()));
        renewable.map(|(_, entry)| entry.leased.lease()).collect()
    }

    /// Of `asked`, for which renewal was asked at that moment, all but those that are gone are renewed. Returns (lost, cancelled): those that are
    /// gone without a report of ours, and those whose handlers learn now that their task was cancelled.
    pub(super) fn renewed(
        &self,
        queue: usize,
        asked: &[Lease],
        at: Instant,
        renewed: &Renewed,
    ) -> (Vec<Arc<LeasedStep>>, Vec<Arc<LeasedStep>>) {
        let mut entries = self.entries();
        let (mut lost, mut cancelled) = (Vec::new(), Vec::new());
        for lease in asked {
            let Some(entry) = entries.by_lease.get_mut(&key(queue, lease)) else {
                continue;
            };
            if renewed.gone.contains(&lease.msg_id) {
                if !entry.reported {
                    entry.cancelled = false;
                    entry.lost.cancel();
                    lost.push(entry.leased.clone());
                }
                continue;
            }
            entry.renewed = at;
            if renewed.cancelled.contains(&lease.msg_id) && !entry.reported && !entry.cancelled {
                entry.cancelled = true;
                entry.lost.cancel();
                cancelled.push(entry.leased.clone());
            }
        }
        (lost, cancelled)
    }

    /// Gives up the steps whose lease was not renewed for `lease`: by now they may be another's. Returns them, with their queues.
    pub(super) fn lose_unrenewed(&self, lease: Duration) -> Vec<(usize, Arc<LeasedStep>)> {
        let entries = self.entries();
        let over = entries
            .by_lease
            .iter()
            .filter(|(_, entry)| !entry.lost.is_cancelled() && entry.renewed.elapsed() >= lease);
        let lose = |((queue, ..), entry): (&Key, &Entry)| {
            entry.lost.cancel();
            (*queue, entry.leased.clone())
        };
        over.map(lose).collect()
    }

    /// Notes the progress of a step, for the next heartbeat.
    pub(super) fn note_progress(&self, queue: usize, lease: &Lease, progress: Value) {
        if let Some(entry) = self.entries().by_lease.get_mut(&key(queue, lease)) {
            entry.progress = Some(progress);
        }
    }

    /// The progress of a queue's steps that was noted since the last call.
    pub(super) fn take_progress(&self, queue: usize) -> Vec<Word> {
        let mut entries = self.entries();
        let mine = entries
            .by_lease
            .iter_mut()
            .filter(|((q, ..), entry)| *q == queue && !entry.reported);
        let word = |entry: &mut Entry| {
            Some(Word {
                lease: entry.leased.lease(),
                progress: Some(entry.progress.take()?),
                checkpoint: None,
            })
        };
        mine.filter_map(|(_, entry)| word(entry)).collect()
    }

    /// The steps that are not reported, with their queues.
    pub(super) fn unreported(&self) -> Vec<(usize, Arc<LeasedStep>)> {
        self.entries()
            .by_lease
            .iter()
            .filter(|(_, entry)| !entry.reported)
            .map(|((queue, ..), entry)| (*queue, entry.leased.clone()))
            .collect()
    }
}
