//! The buffer: leased steps that wait for a handler. For each there is a [`Ready`]; who receives that takes the step whose turn it is by then.

use std::sync::Arc;

use super::turns::Turns;
use super::Step;

/// A step waits for a handler: [`Worker::begin`](super::Worker::begin) takes one.
#[derive(Debug)]
pub struct Ready(());

/// Where steps enter.
#[derive(Debug, Clone)]
pub(super) struct Buffer {
    turns: Arc<Turns<Step>>,
    ready: flume::Sender<Ready>,
}

impl Buffer {
    pub(super) fn of(turns: Arc<Turns<Step>>) -> (Buffer, flume::Receiver<Ready>) {
        let (ready, receiver) = flume::unbounded();
        (Buffer { turns, ready }, receiver)
    }

    pub(super) fn add(&self, step: Step) {
        self.turns.add(step.queue, step);
        // The receiver lives as long as the worker.
        self.ready.send(Ready(())).ok();
    }
}
