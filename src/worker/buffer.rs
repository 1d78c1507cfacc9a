//! The buffer: leased steps that wait for a handler, one by one, or those of a bulk handler together. There is a permit for each call; who gets one
//! takes the call whose turn it is by then.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::bulk::{Gathered, Gathering, Of};
use super::turns::Turns;
use super::Step;

/// Where steps enter. Once nobody has one any more, nobody waits for a step.
#[derive(Debug, Clone)]
pub(super) struct Buffer(Arc<Entrance>);

#[derive(Debug)]
struct Entrance {
    gathering: Arc<Gathering>,
    stop: CancellationToken,
    exit: Exit,
}

/// Where handlers take them.
#[derive(Debug, Clone)]
pub(super) struct Exit {
    turns: Arc<Turns<Vec<Step>>>,
    waiting: Arc<Semaphore>,
}

impl Buffer {
    pub(super) fn of(turns: &Arc<Turns<Vec<Step>>>, gathering: &Arc<Gathering>, stop: &CancellationToken) -> (Buffer, Exit) {
        let exit = Exit {
            turns: turns.clone(),
            waiting: Arc::new(Semaphore::new(0)),
        };
        let entrance = Entrance {
            gathering: gathering.clone(),
            stop: stop.clone(),
            exit: exit.clone(),
        };
        (Buffer(Arc::new(entrance)), exit)
    }

    pub(super) fn add(&self, step: Step) {
        let queue = step.queue;
        match self.0.gathering.add(step) {
            Gathered::Ready(steps) => self.add_call(queue, steps),
            Gathered::First(of, number, within) => drop(tokio::spawn(self.clone().close(of, number, within))),
            Gathered::Beside => {}
        }
    }

    fn add_call(&self, queue: usize, steps: Vec<Step>) {
        let exit = &self.0.exit;
        exit.turns.add(queue, steps.len(), steps);
        exit.waiting.add_permits(1);
    }

    /// When the first of a call has waited long enough, it is called with what there is.
    async fn close(self, of: Of, number: u64, within: Duration) {
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = tokio::time::sleep(within) => {}
        }
        if let Some(steps) = self.0.gathering.close(&of, number) {
            self.add_call(of.0, steps);
        }
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.exit.waiting.close();
    }
}

impl Exit {
    /// The steps of the next call, when there is one. None: no more will come.
    pub(super) async fn next(&self) -> Option<Vec<Step>> {
        loop {
            self.waiting.acquire().await.ok()?.forget();
            // None: the worker is handing it back.
            if let Some(steps) = self.turns.next() {
                return Some(steps);
            }
        }
    }

    /// The steps of the next call, if there is one.
    pub(super) fn try_next(&self) -> Option<Vec<Step>> {
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
