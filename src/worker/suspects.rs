//! Suspects: steps whose lease ran out more than once. One of them may take its worker down again, and whatever is beside it; so they begin one at a
//! time, each counted before it does. What was only beside a killer comes through; the killer is dead-lettered, even though nobody lives to
//! report it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::{log_step, Step};
use crate::engine::lease::begin_suspect;

/// How many suspects are held that have not begun.
#[derive(Debug, Default)]
pub(super) struct Waiting(AtomicUsize);

impl Waiting {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn run(stop: CancellationToken, suspects: Arc<Mutex<UnboundedReceiver<Step>>>, buffer: Buffer) {
    let mut suspects = suspects.lock().await;
    while let Some(step) = tokio::select! { () = stop.cancelled() => None, step = suspects.recv() => step } {
        let shared = step.shared.clone();
        shared.waiting.remove();
        let leased = step.leased.clone();
        let lease = leased.lease();
        let queue = step.queue;
        match begin_suspect(&shared.db, &shared.queues[queue], &lease).await {
            Ok(true) => {
                log_step!(
                    WARN,
                    shared,
                    queue,
                    leased,
                    kills = leased.kills,
                    "running a step whose worker was lost"
                );
                buffer.add(step);
                let ended = shared.held.until(|| (!shared.held.holds(queue, &lease)).then_some(()));
                tokio::select! { () = stop.cancelled() => break, () = ended => {} }
            }
            Ok(false) => shared.held.remove(queue, [&lease]),
            Err(error) => {
                log_step!(ERROR, shared, queue, leased, %error, "a suspect cannot be counted and is not run, its lease will run out");
                shared.held.remove(queue, [&lease]);
            }
        }
    }
    // Shutdown hands back what is in the buffer.
    suspects.close();
    while let Some(step) = suspects.recv().await {
        buffer.add(step);
    }
}
