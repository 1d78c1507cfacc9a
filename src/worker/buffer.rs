//! The buffer: leased steps that wait for a handler. There is a permit for each; who gets one takes the step whose turn it is by then.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::turns::Turns;
use super::Step;

/// Where steps enter. Once nobody has one any more, nobody waits for a step.
#[derive(Debug, Clone)]
pub(super) struct Buffer(Arc<Entrance>);

#[derive(Debug)]
struct Entrance(Exit);

/// Where handlers take them.
#[derive(Debug, Clone)]
pub(super) struct Exit {
    turns: Arc<Turns<Step>>,
    waiting: Arc<Semaphore>,
}

impl Buffer {
    pub(super) fn of(turns: Arc<Turns<Step>>) -> (Buffer, Exit) {
        let exit = Exit {
            turns,
            waiting: Arc::new(Semaphore::new(0)),
        };
        (Buffer(Arc::new(Entrance(exit.clone()))), exit)
    }

    pub(super) fn add(&self, step: Step) {
        let exit = &self.0 .0;
        exit.turns.add(step.queue, step);
        exit.waiting.add_permits(1);
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.0.waiting.close();
    }
}

impl Exit {
    /// The next step, when there is one. None: no more will come.
    pub(super) async fn next(&self) -> Option<Step> {
        loop {
            self.waiting.acquire().await.ok()?.forget();
            // None: the worker is handing it back.
            if let Some(step) = self.turns.next() {
                return Some(step);
            }
        }
    }

    /// The next step, if there is one.
    pub(super) fn try_next(&self) -> Option<Step> {
        self.waiting.try_acquire().ok()?.forget();
        self.turns.next()
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.waiting.available_permits()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.waiting.is_closed()
    }
}
