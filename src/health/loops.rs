//! The loops of a process: what it does again and again until it stops. One that panics is begun anew; one that panics again and again ends the
//! process's work, which health says, and so does whoever runs it.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use opentelemetry::KeyValue;
use tokio_util::task::TaskTracker;

use super::Health;
use crate::backoff::Backoff;
use crate::telemetry;

/// So many panics, each soon after the one before, are no accident.
const TRIES: u32 = 5;

/// A loop that has run for so long had recovered.
const RECOVERED: Duration = Duration::from_secs(600);

/// The loops of an orchestrator or a worker.
#[derive(Debug, Clone)]
pub(crate) struct Loops {
    health: Health,
    running: TaskTracker,
}

impl Loops {
    pub(crate) fn of(health: &Health) -> Loops {
        Loops {
            health: health.clone(),
            running: TaskTracker::new(),
        }
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Runs what `begin` begins, until it ends by itself.
    pub(crate) fn run<L>(&self, name: impl Into<String>, mut begin: impl FnMut() -> L + Send + 'static)
    where
        L: Future<Output = ()> + Send,
    {
        let (name, health) = (name.into(), self.health.clone());
        self.running.spawn(async move {
            let (mut panics, mut backoff) = (0, Backoff::default());
            loop {
                let began = Instant::now();
                let all = async {
                    #[cfg(debug_assertions)]
                    panic_if_told(&name, panics);
                    begin().await;
                };
                let Err(panic) = AssertUnwindSafe(all).catch_unwind().await else {
                    return;
                };
                if began.elapsed() > RECOVERED {
                    (panics, backoff) = (0, Backoff::default());
                }
                panics += 1;
                let why = said(panic.as_ref());
                tracing::error!(why, panics, "the loop {name} panicked");
                telemetry::metrics().loop_panics.add(1, &[KeyValue::new("loop", name.clone())]);
                if panics == TRIES {
                    return health.give_up(format!("the loop {name} panicked {TRIES} times, the last time with: {why}"));
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        });
    }

    /// Waits until all have ended.
    pub(crate) async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

/// For tests: TASKER_TEST_PANICS is the name of a loop and how often it panics.
#[cfg(debug_assertions)]
fn panic_if_told(name: &str, panics: u32) {
    let told = std::env::var("TASKER_TEST_PANICS").unwrap_or_default();
    let told = told.rsplit_once(' ').filter(|(of, _)| *of == name);
    assert!(told.is_none_or(|(_, times)| times.parse().unwrap_or(0) <= panics), "as it was told");
}

/// What a panic was told.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words")
}
