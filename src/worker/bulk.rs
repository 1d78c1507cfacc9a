//! Steps of bulk handlers, which are handled many at a time: they gather here until there are enough for one call, or the first has waited
//! long enough.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::Step;
use crate::engine::lease::LeasedStep;

/// How many steps a bulk handler has in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// At most; from 1.
    pub batch: usize,
    /// How long the first of them waits for others.
    pub within: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// By handler.
    rules: RwLock<HashMap<String, Bulk>>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    calls: HashMap<Of, Call>,
    /// How many were ever begun.
    begun: u64,
}

/// A queue, and a handler.
pub(super) type Of = (usize, String);

#[derive(Debug)]
struct Call {
    number: u64,
    steps: Vec<Step>,
}

/// Where a step has gone.
pub(super) enum Gathered {
    /// These are to be handled together.
    Ready(Vec<Step>),
    /// It is the first of a call, of that number, for which others are waited so long.
    First(Of, u64, Duration),
    /// Others are there already.
    Beside,
}

impl Gathering {
    pub(super) fn set(&self, handler: &str, bulk: Bulk) {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.insert(handler.to_owned(), bulk);
    }

    /// None: its handler has it alone. So has any handler a suspect: what may take the worker down is beside nothing.
    fn rule(&self, leased: &LeasedStep) -> Option<Bulk> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        rules.get(&leased.handler).filter(|_| !leased.is_suspect()).copied()
    }

    /// How many of its kind one call has.
    pub(super) fn batch(&self, leased: &LeasedStep) -> usize {
        self.rule(leased).map_or(1, |bulk| bulk.batch.max(1))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, step: Step) -> Gathered {
        let Some(Bulk { batch, within }) = self.rule(&step.leased).filter(|bulk| bulk.batch > 1) else {
            return Gathered::Ready(vec![step]);
        };
        let of = (step.queue, step.leased.handler.clone());
        let mut open = self.open();
        let Open { calls, begun } = &mut *open;
        let call = calls.entry(of.clone()).or_insert_with(|| {
            *begun += 1;
            Call {
                number: *begun,
                steps: Vec::new(),
            }
        });
        call.steps.push(step);
        match call.steps.len() {
            count if count >= batch => Gathered::Ready(calls.remove(&of).map_or_else(Vec::new, |call| call.steps)),
            1 => Gathered::First(of, call.number, within),
            _ => Gathered::Beside,
        }
    }

    /// The steps of that call, unless it was full before.
    pub(super) fn close(&self, of: &Of, number: u64) -> Option<Vec<Step>> {
        let calls = &mut self.open().calls;
        calls.get(of).filter(|call| call.number == number)?;
        calls.remove(of).map(|call| call.steps)
    }

    /// All that wait here.
    pub(super) fn drain(&self) -> Vec<Step> {
        self.open().calls.drain().flat_map(|(_, call)| call.steps).collect()
    }
}
