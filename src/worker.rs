//! The worker: leases steps, has them handled, reports. The handling itself is somebody else's: Rust handlers ([`Worker::handle_with`]) or
//! the Ruby threads of the gem, which take steps by [`Worker::next`] and give outcomes to [`Worker::report`].
//!
//! A step's way through: `poller` (leases it) → buffer (by way of `suspects`, if its worker was lost before) → handler → `batcher` (reports
//! it, with others); `held` knows all of them, and `heartbeat` keeps their leases until their reports are committed.

mod batcher;
mod buffer;
mod bulk;
mod handler;
mod heartbeat;
mod held;
mod memory;
mod poller;
mod spans;
mod start;
mod step;
mod suspects;
mod turns;
mod unhandled;

pub use crate::config::WorkerConfig;
pub use bulk::Bulk;
pub use handler::{BulkHandler, BulkHandling, Handler, Handlers, Handling};
pub use step::{Outcome, Step};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Live;
use crate::db::Db;
use crate::engine::complete::Room;
use crate::engine::fail::Failure;
use crate::engine::lease::{record_progress, release_steps, Lease, LeasedStep, Word};
use crate::engine::member::Membership;
use crate::engine::payload::check_payload;
use crate::engine::unhandled::Kind;
use crate::error::Result;
use crate::health::Health;
use crate::telemetry::{self, Metrics};
use held::Held;
use step::Handled;
use turns::Turns;
use unhandled::Unhandled;

/// Logs what happens to a step, with all that identifies it.
macro_rules! log_step {
    ($level:ident, $shared:expr, $queue:expr, $leased:expr, $($rest:tt)+) => {
        tracing::event!(
            tracing::Level::$level,
            task = %$leased.task_id,
            step = $leased.name,
            namespace = $shared.namespaces[$queue],
            attempt = $leased.attempt,
            worker = $shared.membership.id(),
            trace_id = $leased.trace.as_ref().and_then(|trace| trace.id()),
            $($rest)+
        )
    };
}
use log_step;

/// What all parts of one worker share that work with the same database, and beside that, with all others.
#[derive(Debug)]
struct Shared {
    db: Db,
    membership: Arc<Membership>,
    unhandled: Unhandled,
    /// The queues that are there, by their places among all.
    own: Vec<usize>,
    /// Calls at once of all of them: who waits for one collects more for its own meanwhile.
    leases: Semaphore,
    commits: Arc<Semaphore>,
    live: Live,
    namespaces: Arc<[String]>,
    queues: Arc<[String]>,
    held: Arc<Held>,
    waiting: Arc<suspects::Waiting>,
    gathering: Arc<bulk::Gathering>,
    turns: Arc<Turns<Vec<Step>>>,
    /// A queue waits before it leases more, since others have something for the handlers.
    yielding: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    /// Of each queue, its namespace as a label.
    labels: Arc<[KeyValue]>,
    /// Stop taking steps.
    stop: CancellationToken,
    /// Stop reporting, too: the grace time is over.
    abandon: CancellationToken,
}

impl Shared {
    /// A step that was leased after the moment `asked` is this worker's from now on.
    fn hold(self: &Arc<Self>, queue: usize, leased: LeasedStep, asked: Instant) -> Step {
        let batch = self.gathering.batch(&leased);
        let leased = Arc::new(leased);
        let lost = self.held.add(queue, leased.clone(), batch, asked);
        Step {
            shared: self.clone(),
            leased,
            queue,
            lost,
            received: Instant::now(),
            recalled: Arc::default(),
            began: None,
            together: 1,
        }
    }

    fn label(&self, queue: usize) -> &[KeyValue] {
        std::slice::from_ref(&self.labels[queue])
    }

    /// What part of the handlers' time a queue has, beside those of others that have something to do.
    fn weight(&self, queue: usize) -> f64 {
        self.live
            .worker(|config| config.weights.get(&self.namespaces[queue]).copied().unwrap_or(1.0))
    }

    /// Handlers are done with so many steps of a queue, after that time altogether.
    fn note_activity(&self, queue: usize, completed: usize, failed: usize, time: Duration) {
        self.turns.note(queue, completed + failed, time);
        self.membership
            .note_activity(&self.namespaces[queue], completed as u64, failed as u64, time);
    }

    /// Others may have these steps of a queue.
    async fn release(&self, queue: usize, leases: &[Lease]) {
        if leases.is_empty() {
            return;
        }
        if let Err(error) = release_steps(&self.db, &self.queues[queue], leases).await {
            tracing::warn!(%error, "could not hand steps back, their leases will run out");
        }
    }

    /// How many steps of a queue this worker may go on with by itself when it reports so many: of those that become ready by that as many as it has free
    /// handlers that no other queue waits for; of those that waited for a permit as many as it would lease.
    fn room_for_next(&self, queue: usize, reported: usize) -> Room {
        if self.stop.is_cancelled() || self.unhandled.any() || self.turns.others_want(queue) {
            return Room::default();
        }
        let (concurrency, prefetch) = self.live.worker(|config| (config.concurrency, config.max_prefetch));
        let room = self.held.room_at_last(concurrency, prefetch, self.waiting.count());
        Room {
            next: self.held.free(queue, concurrency) as i32,
            ahead: (self.held.steps(queue, room) + reported) as i32,
        }
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    all: Arc<start::All>,
    exit: buffer::Exit,
}

impl Worker {
    /// The steps of the next call, when there is one: one, or several of a bulk handler ([`Worker::gather`]). It begins: from now on its time counts.
    /// None: the worker has shut down.
    pub async fn next(&self) -> Option<Vec<Step>> {
        loop {
            let begun = self.begin(self.exit.next().await?);
            if !begun.is_empty() {
                return Some(begun);
            }
        }
    }

    /// The steps of the next call, if there is one.
    pub fn try_next(&self) -> Option<Vec<Step>> {
        while self.exit.count() > 0 {
            let begun = self.begin(self.exit.try_next()?);
            if !begun.is_empty() {
                return Some(begun);
            }
        }
        None
    }

    /// From now on, the steps of this handler come together.
    pub fn gather(&self, handler: &str, bulk: Bulk) {
        self.all.gathering.set(handler, bulk);
    }

    /// How many calls wait for a handler.
    pub fn waiting(&self) -> usize {
        self.exit.count()
    }

    /// Whether it has shut down.
    pub fn is_stopped(&self) -> bool {
        self.exit.is_closed()
    }

    /// Those of a call that were not cancelled, or lost, meanwhile.
    fn begin(&self, mut call: Vec<Step>) -> Vec<Step> {
        // Who has left the handlers to others looks again, once these have nothing more for them.
        if self.all.yielding.load(Ordering::Relaxed) && !self.all.turns.any_waits() {
            self.all.yielding.store(false, Ordering::Relaxed);
            self.all.held.look_again();
        }
        call.retain(|step| {
            let lost = step.is_lost();
            if lost {
                self.report(step, Outcome::HandBack);
            }
            !lost
        });
        let together = call.len();
        for step in &mut call {
            step.began = Some(Instant::now());
            step.together = together as u32;
            let waited = step.leased.waited + step.received.elapsed().as_secs_f64();
            self.all.metrics.step_wait.record(waited, step.shared.label(step.queue));
        }
        call
    }

    /// The handler is done.
    fn note_duration(&self, step: &Step, outcome: &'static str) {
        if let Some(began) = step.began {
            let labels = [
                self.all.labels[step.queue].clone(),
                KeyValue::new("template", step.leased.template.clone()),
                KeyValue::new("outcome", outcome),
            ];
            self.all.metrics.step_duration.record(began.elapsed().as_secs_f64(), &labels);
        }
    }

    /// Reports the outcome of a step; it is committed within milliseconds, together with others. Of several reports of one step the first
    /// is taken (true), and none is after the step was handed back.
    pub fn report(&self, step: &Step, outcome: Outcome) -> bool {
        let outcome = match outcome {
            Outcome::Complete(result) => match check_payload("the result", &result) {
                Ok(()) => Outcome::Complete(result),
                Err(error) => Outcome::Fail(Failure {
                    reason: Some("payload_too_large".into()),
                    ..Failure::permanent("PayloadTooLarge", error.to_string())
                }),
            },
            Outcome::Decline => {
                if step.shared.unhandled.note() {
                    let handler = &step.leased.handler;
                    log_step!(
                        WARN,
                        step.shared,
                        step.queue,
                        step.leased,
                        handler,
                        "this worker has not the handler of a step, and leaves it to others"
                    );
                }
                Outcome::Decline
            }
            other => other,
        };
        let taken = self.all.held.reported(step.queue, &step.lease(), outcome.bytes());
        if taken {
            if let Some(name) = outcome.name() {
                self.note_duration(step, name);
            }
            // The receiver ends only after every step is accounted for.
            let handled = Handled {
                step: step.clone(),
                outcome,
                ended: Instant::now(),
            };
            self.all.reports[step.queue].send(handled).ok();
        }
        taken
    }

    /// Notes how far a handler is; it is recorded with the next heartbeat, and can be read on the task.
    pub fn progress(&self, step: &Step, progress: Value) {
        self.all.held.note_progress(step.queue, &step.lease(), progress);
    }

    /// Records where the step's next attempt resumes, should this one fail: it finds the value in [`LeasedStep::checkpoint`].
    /// Errors: [`Stale`](crate::Error::Stale) when the step is no longer this worker's, or its task was cancelled; [`TooLarge`](crate::Error::TooLarge).
    pub async fn checkpoint(&self, step: &Step, checkpoint: Value) -> Result<()> {
        check_payload("the checkpoint", &checkpoint.to_string())?;
        let word = Word {
            lease: step.lease(),
            progress: None,
            checkpoint: Some(checkpoint),
        };
        let lost = record_progress(&step.shared.db, &self.all.queues[step.queue], &[word]).await?;
        step.still_ours(lost.is_empty())
    }

    /// The call that completes a step inside the handler's own transaction, on the handler's connection:
    /// [`COMPLETE_WITHIN`](crate::engine::complete::COMPLETE_WITHIN) with these arguments, in order. No row means that the step is no longer this
    /// worker's, and the transaction must be rolled back.
    pub fn completion(&self, step: &Step) -> (&str, i32, i64, i32, Uuid, i16) {
        let lease = step.lease();
        (
            &self.all.queues[step.queue],
            step.worker(),
            lease.msg_id,
            lease.fence,
            lease.task_id,
            lease.step,
        )
    }

    /// The step needs no report: it is lost, or it was completed inside the handler's own transaction.
    pub fn forget(&self, step: &Step) {
        if step.is_lost() {
            spans::tell_lost(&step.shared, step, Instant::now());
        } else {
            self.note_duration(step, "complete");
            spans::tell(&step.shared, step, Instant::now(), &spans::Reporting::within_the_handler());
            step.shared.note_activity(step.queue, 1, 0, step.took(Instant::now()));
            if self.all.live.effective().settings.log.steps {
                step.log_end("complete", Instant::now());
            }
        }
        self.all.held.remove(step.queue, [&step.lease()]);
    }

    /// Handles the steps with Rust handlers, as many at a time as the settings say, until the worker shuts down.
    pub fn handle_with(self: &Arc<Self>, handlers: Handlers) {
        for (name, bulk) in handlers.bulk() {
            self.gather(name, bulk);
        }
        tokio::spawn(handler::run_all(self.clone(), Arc::new(handlers)));
    }

    /// What it is asked for: the handlers of steps that are held back because no worker is known to have one. [`Worker::handle_with`] answers.
    pub fn asked(&self) -> Vec<Kind> {
        self.all.places().iter().flat_map(|place| place.unhandled.open()).collect()
    }

    /// Answers whether it has them.
    pub fn answer(&self, able: impl Fn(&Kind) -> bool) {
        for place in self.all.places() {
            place.unhandled.answer(&able);
        }
    }

    /// How many handlers may run at once, now.
    pub fn concurrency(&self) -> usize {
        self.all.concurrency()
    }

    /// Whose step it is.
    pub fn namespace(&self, step: &Step) -> &str {
        &self.all.namespaces[step.queue]
    }

    /// How it is.
    pub fn health(&self) -> &Health {
        &self.all.health
    }

    /// Stops taking steps, hands back at once those that were not begun, waits up to `grace` for those that were, hands back the rest, and
    /// leaves. What is still running then can no longer report: its lease is another's.
    pub async fn shutdown(&self, grace: Duration) {
        let all = &self.all;
        all.health.drain();
        all.stop();
        tracing::info!(?grace, "worker is stopping");
        all.pollers.ended().await;
        let mut unstarted = all.gathering.drain();
        unstarted.extend(std::iter::from_fn(|| all.turns.next()).flatten());
        self.hand_back(unstarted.into_iter().map(|step| (step.queue, step.leased)).collect())
            .await;
        if tokio::time::timeout(grace, all.held.emptied()).await.is_err() {
            let (cancelled, running): (Vec<_>, Vec<_>) = all
                .held
                .unreported()
                .into_iter()
                .partition(|(queue, step)| all.held.is_cancelled(*queue, &step.lease()));
            tracing::warn!(steps = running.len(), "the grace time is over, handing back what still runs");
            self.hand_back(running).await;
            // What becomes of these stays unknown: one that is handed back has not begun.
            for (queue, step) in cancelled {
                all.held.remove(queue, [&step.lease()]);
            }
            // What was reported in time is still committed.
            tokio::time::timeout(Duration::from_secs(5), all.held.emptied()).await.ok();
        }
        all.abandon.cancel();
        all.loops.ended().await;
        for place in all.places() {
            if let Err(error) = place.membership.leave().await {
                tracing::warn!(%error, "could not leave the members, the lease will run out");
            }
        }
        telemetry::flush().await;
        tracing::info!("worker stopped");
    }

    async fn hand_back(&self, steps: Vec<(usize, Arc<LeasedStep>)>) {
        for place in self.all.places() {
            for queue in &place.own {
                let leases: Vec<Lease> = steps.iter().filter(|(q, _)| q == queue).map(|(_, step)| step.lease()).collect();
                place.release(*queue, &leases).await;
                place.held.remove(*queue, &leases);
            }
        }
    }
}
