//! Beats: every loop beats once a cycle, and one that has not within its bound is named.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The beats of one process's loops. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Beats {
    started: Instant,
    /// The shard whose loops these are, where there are several.
    of: Option<Arc<str>>,
    loops: Arc<Mutex<Vec<Arc<Loop>>>>,
}

#[derive(Debug)]
struct Loop {
    name: String,
    bound: Duration,
    last: AtomicU64,
    /// Since when each of its cycles has failed; 0: the last one did not.
    failing: AtomicU64,
}

/// One loop's own end: it beats once a cycle. Dropping it (the loop ended) takes the loop off the list.
#[derive(Debug)]
pub struct Beat {
    beats: Beats,
    of: Arc<Loop>,
}

impl Default for Beats {
    fn default() -> Self {
        Beats {
            started: Instant::now(),
            of: None,
            loops: Arc::default(),
        }
    }
}

impl Beats {
    /// The same process's, for loops that work with this shard.
    pub(crate) fn of(&self, shard: Option<&str>) -> Beats {
        Beats {
            of: shard.map(Arc::from),
            ..self.clone()
        }
    }

    /// Adds a loop that promises to beat at least once in `bound`, in the place of one of the same name that panicked.
    pub fn register(&self, name: impl Into<String>, bound: Duration) -> Beat {
        let name = match &self.of {
            Some(shard) => format!("{} of {shard}", name.into()),
            None => name.into(),
        };
        #[cfg(debug_assertions)]
        let bound = if is_wedged(&name) { Duration::from_secs(1) } else { bound };
        let of = Arc::new(Loop {
            name,
            bound,
            last: AtomicU64::new(self.millis()),
            failing: AtomicU64::new(0),
        });
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.retain(|other| other.name != of.name);
        loops.push(of.clone());
        drop(loops);
        Beat { beats: self.clone(), of }
    }

    /// The names of the loops that are late.
    pub fn late(&self) -> Vec<String> {
        let now = self.millis();
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = |l: &&Arc<Loop>| u128::from(now.saturating_sub(l.last.load(Ordering::Relaxed))) > l.bound.as_millis();
        loops.iter().filter(is_late).map(|l| l.name.clone()).collect()
    }

    /// The names of the loops whose cycles have failed, again and again, for longer than this.
    pub fn failing(&self, longer: Duration) -> Vec<String> {
        let now = self.millis();
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = |l: &&Arc<Loop>| match l.failing.load(Ordering::Relaxed) {
            0 => false,
            since => u128::from(now.saturating_sub(since)) > longer.as_millis(),
        };
        loops.iter().filter(fails).map(|l| l.name.clone()).collect()
    }

    fn millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl Beat {
    /// The loop has come round.
    pub fn beat(&self) {
        self.come_round();
        self.of.failing.store(0, Ordering::Relaxed);
    }

    /// The loop has come round, but its cycle failed.
    pub fn fail(&self) {
        self.come_round();
        let now = self.beats.millis().max(1);
        self.of.failing.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    /// As what was done says.
    pub(crate) fn note<T, E>(&self, done: &Result<T, E>) {
        match done {
            Ok(_) => self.beat(),
            Err(_) => self.fail(),
        }
    }

    fn come_round(&self) {
        #[cfg(debug_assertions)]
        if is_wedged(&self.of.name) {
            return;
        }
        self.of.last.store(self.beats.millis(), Ordering::Relaxed);
    }
}

/// For tests: TASKER_TEST_WEDGED names a loop that stands still, as far as anybody can see, and is late after a second.
#[cfg(debug_assertions)]
fn is_wedged(name: &str) -> bool {
    std::env::var("TASKER_TEST_WEDGED").is_ok_and(|wedged| wedged == name)
}

impl Drop for Beat {
    fn drop(&mut self) {
        // A loop that panicked stays on the list, and is late before long.
        if !std::thread::panicking() {
            self.beats
                .loops
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|l| !Arc::ptr_eq(l, &self.of));
        }
    }
}
