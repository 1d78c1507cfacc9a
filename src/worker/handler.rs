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

use super::{Outcome, Step, Worker};
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

/// The handlers of a worker, by the names that templates use.
#[derive(Default)]
pub struct Handlers(HashMap<String, Arc<dyn Handler>>);

impl Handlers {
    /// Handlers in Rust have no connection of their own, which a transactional step needs.
    fn runs(&self, handler: &str, transactional: bool) -> bool {
        !transactional && self.0.contains_key(handler)
    }

    /// Adds a handler.
    #[must_use]
    pub fn with(mut self, name: &str, handler: impl Handler) -> Handlers {
        self.0.insert(name.to_owned(), Arc::new(handler));
        self
    }
}

/// As many as there may be at once, now and after each change.
pub(super) async fn run_all(worker: Arc<Worker>, handlers: Arc<Handlers>) {
    let running = Arc::new(AtomicUsize::new(0));
    let mut live = worker.shared.live.clone();
    loop {
        while running.load(Ordering::Relaxed) < worker.concurrency() {
            running.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(run(worker.clone(), handlers.clone(), running.clone()));
        }
        tokio::select! {
            () = worker.shared.stop.cancelled() => return,
            () = live.changed() => {}
            () = worker.shared.unhandled.asked() => worker.answer(|kind| handlers.runs(&kind.handler, kind.transactional)),
        }
    }
}

async fn run(worker: Arc<Worker>, handlers: Arc<Handlers>, running: Arc<AtomicUsize>) {
    let mut live = worker.shared.live.clone();
    loop {
        let more = |count: usize| (count > worker.concurrency()).then(|| count - 1);
        if running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            return;
        }
        let step = tokio::select! {
            step = worker.next() => match step {
                Some(step) => Arc::new(step),
                None => return,
            },
            () = live.changed() => continue,
        };
        let outcome = match handlers.0.get(&step.leased.handler) {
            Some(handler) if handlers.runs(&step.leased.handler, step.leased.transactional) => handle(handler, &step).await,
            _ => Some(Outcome::Decline),
        };
        match outcome {
            Some(outcome) => drop(worker.report(&step, outcome)),
            None => worker.forget(&step),
        }
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
    let time_is_over = async {
        match step.leased.timeout_ms {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms.unsigned_abs())).await,
            None => std::future::pending().await,
        }
    };
    let finished = tokio::select! {
        finished = &mut handling => finished,
        () = time_is_over => {
            handling.abort();
            let message = format!("the handler ran longer than {} ms", step.leased.timeout_ms.unwrap_or_default());
            let reason = Some("timeout".into());
            return Some(Outcome::Fail(Failure { reason, ..Failure::retryable("Timeout", message) }));
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
