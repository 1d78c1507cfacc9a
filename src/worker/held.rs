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
    /// What was ever reported, as a [`Load`].
    finished: AtomicU64,
}

#[derive(Debug, Default)]
struct Entries {
    /// By queue, message and fence: a message that was lost may be leased again here while its former handler still runs.
    by_lease: HashMap<Key, Entry>,
    /// Of each queue, how many of them are not reported yet.
    unreported: Vec<usize>,
    load: Load,
    /// That of those that are not reported yet.
    busy: Load,
    /// Of each queue, what part of a handler one of the newest steps takes.
    parts: Vec<f64>,
    /// How much their reports are that wait to be committed.
    bytes: usize,
    pace: Pace,
}

/// While so many bytes of reports wait to be committed, nothing more is leased.
const MOST_BYTES: usize = 32 << 20;

type Key = (usize, i64, i32);

/// How many handlers steps take: one each, or a part of one where a call has many. In parts of a handler, so that sums are exact.
type Load = u64;

const HANDLER: Load = 1_000_000;

/// How much of [`Entries::parts`] is the newest step's.
const NEWEST: f64 = 0.2;

#[derive(Debug)]
struct Entry {
    leased: Arc<LeasedStep>,
    load: Load,
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

impl Entries {
    /// It counts no more.
    fn forget(&mut self, queue: usize, entry: &Entry) {
        self.load -= entry.load;
        if entry.reported {
            self.bytes -= entry.bytes;
        } else {
            self.busy -= entry.load;
            self.unreported[queue] -= 1;
        }
    }

    fn room(&self, concurrency: usize, max_prefetch: usize, suspects: usize) -> (usize, usize) {
        let limit = concurrency + self.pace.ahead.min(max_prefetch);
        if self.bytes > MOST_BYTES {
            return (limit, 0);
        }
        let all = limit + suspects.min(limit);
        (limit, all.saturating_sub((self.load / HANDLER) as usize))
    }

    fn steps(&self, queue: usize, handlers: usize) -> usize {
        (handlers as f64 / self.parts[queue]).round() as usize
    }
}

fn key(queue: usize, lease: &Lease) -> Key {
    (queue, lease.msg_id, lease.fence)
}

/// How many calls the handlers finish in [`Pace::AHEAD`], measured over at least half of it.
#[derive(Debug)]
struct Pace {
    ahead: usize,
    since: Instant,
    finished: Load,
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
            parts: vec![1.0; queues],
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

    /// Adds a step that was leased after the moment `asked`, and of which one call has `batch`; the token is cancelled when its lease is lost, or
    /// its task is cancelled.
    pub(super) fn add(&self, queue: usize, leased: Arc<LeasedStep>, batch: usize, asked: Instant) -> CancellationToken {
        let lost = CancellationToken::new();
        let key = key(queue, &leased.lease());
        let load = HANDLER.div_ceil(batch as u64);
        let entry = Entry {
            leased,
            load,
            renewed: asked,
            lost: lost.clone(),
            cancelled: false,
            reported: false,
            bytes: 0,
            progress: None,
        };
        let mut entries = self.entries();
        let before = entries.by_lease.insert(key, entry);
        if let Some(before) = before {
            entries.forget(queue, &before);
        }
        entries.load += load;
        entries.busy += load;
        entries.unreported[queue] += 1;
        entries.parts[queue] += NEWEST * (1.0 / batch as f64 - entries.parts[queue]);
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
        let load = entry.load;
        entries.bytes += bytes;
        entries.busy -= load;
        entries.unreported[queue] -= 1;
        self.finished.fetch_add(load, Ordering::Relaxed);
        true
    }

    /// Their reports are committed, or they were handed back.
    pub(super) fn remove<'a>(&self, queue: usize, leases: impl IntoIterator<Item = &'a Lease>) {
        let mut entries = self.entries();
        for lease in leases {
            if let Some(entry) = entries.by_lease.remove(&key(queue, lease)) {
                entries.forget(queue, &entry);
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

    /// How many handlers the steps take that are leased and not yet reported.
    pub(super) fn busy(&self) -> usize {
        self.entries().busy.div_ceil(HANDLER) as usize
    }

    /// How many more steps of a queue so many handlers can take.
    pub(super) fn free(&self, queue: usize, concurrency: usize) -> usize {
        let entries = self.entries();
        entries.steps(queue, concurrency.saturating_sub((entries.busy / HANDLER) as usize))
    }

    /// How many steps of a queue that is.
    pub(super) fn steps(&self, queue: usize, handlers: usize) -> usize {
        self.entries().steps(queue, handlers)
    }

    /// Whether all of this queue's are reported.
    pub(super) fn all_reported(&self, queue: usize) -> bool {
        self.entries().unreported[queue] == 0
    }

    /// (limit, room): for how many handlers to hold steps at the present pace, and for how many more that allows. As many suspects may wait
    /// beside them.
    pub(super) fn room(&self, concurrency: usize, max_prefetch: usize, suspects: usize) -> (usize, usize) {
        let mut entries = self.entries();
        let elapsed = entries.pace.since.elapsed();
        if elapsed >= Pace::AHEAD / 2 {
            let finished = self.finished.load(Ordering::Relaxed);
            let share = Pace::AHEAD.as_secs_f64() / elapsed.as_secs_f64();
            entries.pace = Pace {
                ahead: ((finished - entries.pace.finished) as f64 * share / HANDLER as f64) as usize,
                since: Instant::now(),
                finished,
            };
        }
        entries.room(concurrency, max_prefetch, suspects)
    }

    /// That room at the pace that was measured last.
    pub(super) fn room_at_last(&self, concurrency: usize, max_prefetch: usize, suspects: usize) -> usize {
        self.entries().room(concurrency, max_prefetch, suspects).1
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
