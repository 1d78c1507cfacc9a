//! Handlers written in Rust, and the tasks that run them.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::context::FutureExt;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::Context;
use serde_json::Value;

use super::{Bulk, Outcome, Step, Worker};
use crate::engine::fail::Failure;

/// What a handler returns, in the future.
pub type Handling = Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send>>;

/// Does the work of one step. Any `async` function of a step is one.
pub trait Handler: Send + Sync + 'static {
    /// Runs the step; the value is its result.
    fn call(&self, step: Arc<Step>) -> Handling;
}

impl<F, R> Handler for F
where
    F: Fn(Arc<Step>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    fn call(&self, step: Arc<Step>) -> Handling {
        Box::pin(self(step))
    }
}

/// What a bulk handler returns, in the future: what became of each step, in their order.
pub type BulkHandling = Pin<Box<dyn Future<Output = Vec<Result<Value, Failure>>> + Send>>;

/// Does the work of many steps in one call. Any `async` function of steps is one.
pub trait BulkHandler: Send + Sync + 'static {
    /// Runs the steps; each has an outcome of its own.
    fn call(&self, steps: Vec<Arc<Step>>) -> BulkHandling;
}

impl<F, R> BulkHandler for F
where
    F: Fn(Vec<Arc<Step>>) -> R + Send + Sync + 'static,
    R: Future<Output = Vec<Result<Value, Failure>>> + Send + 'static,
{
    fn call(&self, steps: Vec<Arc<Step>>) -> BulkHandling {
        Box::pin(self(steps))
    }
}

enum Named {
    One(Arc<dyn Handler>),
    Bulk(Bulk, Arc<dyn BulkHandler>),
}

/// The handlers of a worker, by the names that templates use.
#[derive(Default)]
pub struct Handlers(HashMap<String, Named>);

impl Handlers {
    /// Handlers in Rust have no connection of their own, which a transactional step needs.
    fn runs(&self, handler: &str, transactional: bool) -> bool {
        !transactional && self.0.contains_key(handler)
    }

    /// Adds a handler.
    #[must_use]
    pub fn with(mut self, name: &str, handler: impl Handler) -> Handlers {
        self.0.insert(name.to_owned(), Named::One(Arc::new(handler)));
        self
    }

    /// Adds a handler that has many steps in one call.
    #[must_use]
    pub fn with_bulk(mut self, name: &str, bulk: Bulk, handler: impl BulkHandler) -> Handlers {
        self.0.insert(name.to_owned(), Named::Bulk(bulk, Arc::new(handler)));
        self
    }

    /// Which of them have many steps in one call.
    pub(super) fn bulk(&self) -> impl Iterator<Item = (&str, Bulk)> {
        self.0.iter().filter_map(|(name, handler)| match handler {
            Named::Bulk(bulk, _) => Some((name.as_str(), *bulk)),
            Named::One(_) => None,
        })
    }
}

/// As many as there may be at once, now and after each change.
pub(super) async fn run_all(worker: Arc<Worker>, handlers: Arc<Handlers>) {
    let running = Arc::new(AtomicUsize::new(0));
    let mut live = worker.all.live.clone();
    loop {
        while running.load(Ordering::Relaxed) < worker.concurrency() {
            running.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(run(worker.clone(), handlers.clone(), running.clone()));
        }
        tokio::select! {
            () = worker.all.stop.cancelled() => return,
            () = live.changed() => {}
            () = worker.all.asked.notified() => worker.answer(|kind| handlers.runs(&kind.handler, kind.transactional)),
        }
    }
}

async fn run(worker: Arc<Worker>, handlers: Arc<Handlers>, running: Arc<AtomicUsize>) {
    let mut live = worker.all.live.clone();
    loop {
        let more = |count: usize| (count > worker.concurrency()).then(|| count - 1);
        if running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            return;
        }
        let steps = tokio::select! {
            steps = worker.next() => match steps {
                Some(steps) => steps,
                None => return,
            },
            () = live.changed() => continue,
        };
        let (steps, unable): (Vec<_>, Vec<_>) = steps
            .into_iter()
            .partition(|step| handlers.runs(&step.leased.handler, step.leased.transactional));
        for step in unable {
            worker.report(&step, Outcome::Decline);
        }
        let steps: Vec<Arc<Step>> = steps.into_iter().map(Arc::new).collect();
        match steps.first().and_then(|step| handlers.0.get(&step.leased.handler)) {
            Some(Named::Bulk(_, handler)) => handle_all(&worker, handler, &steps).await,
            Some(Named::One(handler)) => {
                for step in &steps {
                    match handle(handler, step).await {
                        Some(outcome) => drop(worker.report(step, outcome)),
                        None => worker.forget(step),
                    }
                }
            }
            None => {}
        }
    }
}

/// After this long; never, without it.
async fn time_is_over(timeout_ms: Option<i64>) {
    match timeout_ms {
        Some(ms) => tokio::time::sleep(Duration::from_millis(ms.unsigned_abs())).await,
        None => std::future::pending().await,
    }
}

fn timed_out(timeout_ms: Option<i64>) -> Failure {
    let message = format!("the handler ran longer than {} ms", timeout_ms.unwrap_or_default());
    Failure {
        reason: Some("timeout".into()),
        ..Failure::retryable("Timeout", message)
    }
}

/// One call has the shortest of their times. Whoever of them is lost meanwhile does not stop it: the others are not.
async fn handle_all(worker: &Worker, handler: &Arc<dyn BulkHandler>, steps: &[Arc<Step>]) {
    let (called, with) = (handler.clone(), steps.to_vec());
    let mut handling = tokio::spawn(async move { called.call(with).await });
    let timeout_ms = steps.iter().filter_map(|step| step.leased.timeout_ms).min();
    let finished = tokio::select! {
        finished = &mut handling => finished.map_err(|panic| Failure::retryable("Panic", panic.to_string())),
        () = time_is_over(timeout_ms) => {
            handling.abort();
            Err(timed_out(timeout_ms))
        }
    };
    let outcomes = finished.and_then(|outcomes| match outcomes.len() == steps.len() {
        true => Ok(outcomes),
        false => Err(Failure::retryable(
            "WrongNumberOfOutcomes",
            format!("the handler returned {} outcomes of {} steps", outcomes.len(), steps.len()),
        )),
    });
    let outcomes = outcomes.unwrap_or_else(|failure| vec![Err(failure); steps.len()]);
    for (step, outcome) in steps.iter().zip(outcomes) {
        worker.report(
            step,
            outcome.map_or_else(Outcome::Fail, |result| Outcome::Complete(result.to_string())),
        );
    }
}

/// None: the lease was lost, and the handler was stopped.
async fn handle(handler: &Arc<dyn Handler>, step: &Arc<Step>) -> Option<Outcome> {
    // A task of its own, in which it begins, too, so that a panic ends only the step.
    let (called, with) = (handler.clone(), step.clone());
    let handling = async move { called.call(with).await };
    let mut handling = match step.context() {
        Some(context) => tokio::spawn(handling.with_context(Context::new().with_remote_span_context(context))),
        None => tokio::spawn(handling),
    };
    let timeout_ms = step.leased.timeout_ms;
    let finished = tokio::select! {
        finished = &mut handling => finished,
        () = time_is_over(timeout_ms) => {
            handling.abort();
            return Some(Outcome::Fail(timed_out(timeout_ms)));
        }
        () = step.lost.cancelled() => {
            handling.abort();
            let stopped = || Outcome::Fail(Failure::permanent("Cancelled", "the handler was stopped, because its task was cancelled"));
            return step.shared.held.is_cancelled(step.queue, &step.lease()).then(stopped);
        }
    };
    Some(match finished {
        Ok(Ok(result)) => Outcome::Complete(result.to_string()),
        Ok(Err(failure)) => Outcome::Fail(failure),
        Err(panic) => Outcome::Fail(Failure::retryable("Panic", panic.to_string())),
    })
}
