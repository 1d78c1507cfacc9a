//! The batcher of one queue: commits reports together, and takes what they make ready.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use opentelemetry::KeyValue;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{timeout, timeout_at, Instant};

use super::buffer::Buffer;
use super::spans::{self, Reporting};
use super::{log_step, Handled, Outcome, Shared, Step};
use crate::backoff::Backoff;
use crate::engine::complete::{complete_steps, Completed, Completion};
use crate::engine::fail::{fail_barely, fail_steps, Failure};
use crate::engine::lease::{lease_holders, release_steps, Lease};
use crate::engine::unhandled::decline_steps;
use crate::error::{Error, Result};
use crate::health::{said, Beat};

/// Two commits may be under way for a queue: while one waits for the disk, the next one is prepared.
const CONCURRENT_COMMITS: usize = 2;

/// And for all queues of a database, so that many of them neither want more connections than a few, nor commit a few reports each: one more, since a queue that
/// cannot be worked with should not hold up the others.
pub(super) const ALL_CONCURRENT_COMMITS: usize = 3;

/// A commit that takes longer does not count among those.
const SLOW: Duration = Duration::from_millis(500);

/// So many bytes are committed together at most, unless one report alone has more.
const MOST_BYTES: usize = 4 << 20;

pub(super) async fn run(
    shared: Arc<Shared>,
    queue: usize,
    outcomes: Arc<Mutex<UnboundedReceiver<Handled>>>,
    buffer: Buffer,
    beat: Arc<Beat>,
) {
    let mut outcomes = outcomes.lock().await;
    let commits = Arc::new(Semaphore::new(CONCURRENT_COMMITS));
    loop {
        let first = tokio::select! {
            () = shared.abandon.cancelled() => return,
            outcome = outcomes.recv() => outcome,
        };
        let Some(first) = first else { return };
        // While this waits, more outcomes come in.
        let Ok(permit) = commits.clone().acquire_owned().await else {
            return;
        };
        let Ok(of_all) = shared.commits.clone().acquire_owned().await else {
            return;
        };
        let batch = collect(&shared, queue, first, &mut outcomes).await;
        let commit = Commit {
            shared: shared.clone(),
            queue,
            buffer: buffer.clone(),
            beat: beat.clone(),
        };
        tokio::spawn(async move {
            let leases: Vec<Lease> = batch.iter().map(|handled| handled.step.lease()).collect();
            let mut committing = pin!(AssertUnwindSafe(commit.run(batch)).catch_unwind());
            let committed = match timeout(SLOW, &mut committing).await {
                Ok(committed) => committed,
                // Its queue, or its database, stands still: that should hold up no other.
                Err(_) => {
                    drop(of_all);
                    committing.await
                }
            };
            if let Err(panic) = committed {
                // Whoever leases them next runs them again.
                tracing::error!(why = said(panic.as_ref()), "reporting panicked, the leases will run out");
                commit.shared.held.remove(queue, &leases);
            }
            drop(permit);
        });
    }
}

/// Adds what comes in until the batch is full, the linger is over, or nothing is left to wait for.
async fn collect(shared: &Shared, queue: usize, first: Handled, outcomes: &mut UnboundedReceiver<Handled>) -> Vec<Handled> {
    let (linger, most) = shared.live.worker(|config| (config.linger, config.batch));
    let deadline = Instant::now() + linger;
    let mut bytes = first.outcome.bytes();
    let mut batch = vec![first];
    while batch.len() < most && bytes < MOST_BYTES {
        let next = match outcomes.try_recv() {
            Ok(outcome) => outcome,
            Err(_) if shared.held.all_reported(queue) => break,
            Err(_) => match timeout_at(deadline, outcomes.recv()).await {
                Ok(Some(outcome)) => outcome,
                Ok(None) | Err(_) => break,
            },
        };
        bytes += next.outcome.bytes();
        batch.push(next);
    }
    batch
}

/// One commit.
struct Commit {
    shared: Arc<Shared>,
    queue: usize,
    buffer: Buffer,
    beat: Arc<Beat>,
}

impl Commit {
    async fn run(&self, batch: Vec<Handled>) {
        let (mut completions, mut failures) = (Vec::new(), Vec::new());
        let (mut declined, mut returned) = (Vec::new(), Vec::new());
        for Handled { step, outcome, ended } in batch {
            let lease = step.lease();
            match outcome {
                Outcome::Complete(result) => completions.push(Reported {
                    report: Completion { lease, result },
                    step,
                    ended,
                }),
                Outcome::Fail(failure) => failures.push(Reported {
                    report: (lease, failure),
                    step,
                    ended,
                }),
                Outcome::Decline => declined.push(lease),
                Outcome::HandBack => returned.push(lease),
            }
        }
        self.give_back(&declined, &returned).await;
        let refused = self.report(completions).await;
        failures.extend(refused.into_iter().map(|(reported, error)| {
            let failure = Failure::permanent("ResultRefused", error.to_string());
            reported.but(|completion| (completion.lease, failure))
        }));
        let refused = self.report(failures).await;
        let bare = refused
            .into_iter()
            .map(|(reported, error)| reported.but(|(lease, failure)| (lease, failure.bare(&error))))
            .collect();
        for (Reported { step, .. }, error) in self.report(bare).await {
            let least = fail_barely(&self.shared.db, self.queue_name(), &step.lease()).await;
            match least {
                Ok(_) => log_step!(ERROR, self.shared, self.queue, step.leased, %error, "PostgreSQL refuses the report, the step is dead"),
                Err(least) => {
                    log_step!(ERROR, self.shared, self.queue, step.leased, %error, %least, "PostgreSQL refuses the report, the lease will run out");
                }
            }
            self.shared.held.remove(self.queue, [&step.lease()]);
        }
    }

    /// Steps that no handler of this worker had.
    async fn give_back(&self, declined: &[Lease], returned: &[Lease]) {
        let (db, worker) = (&self.shared.db, self.shared.membership.id());
        let mut given_back = Ok(());
        if !declined.is_empty() {
            given_back = decline_steps(db, self.queue_name(), worker, declined).await;
        }
        if !returned.is_empty() {
            given_back = given_back.and(release_steps(db, self.queue_name(), returned).await.map(drop));
        }
        if let Err(error) = given_back {
            tracing::warn!(%error, "could not hand steps back, their leases will run out");
        }
        self.shared.held.remove(self.queue, declined.iter().chain(returned));
    }

    /// So many counted, of all of these.
    fn note<R>(&self, completed: usize, failed: usize, reports: &[Reported<R>]) {
        let shared = &self.shared;
        let time = reports.iter().map(|reported| reported.step.took(reported.ended)).sum();
        shared.note_activity(self.queue, completed, failed, time);
        shared
            .metrics
            .report_size
            .record((completed + failed) as f64, shared.label(self.queue));
    }

    fn queue_name(&self) -> &str {
        &self.shared.queues[self.queue]
    }

    /// Reports all of them together; where PostgreSQL refuses the data of that, in halves: a bad row must not hold up the others.
    /// Returns those that it refuses alone, with its errors; they are still held.
    async fn report<R: Report>(&self, reports: Vec<Reported<R>>) -> Vec<(Reported<R>, Error)> {
        let (mut refused, mut parts) = (Vec::new(), vec![reports]);
        while let Some(mut part) = parts.pop() {
            if part.len() > R::MOST {
                parts.push(part.split_off(R::MOST));
            }
            let error = match part.is_empty() {
                true => None,
                false => self.sent(&part).await,
            };
            match (error, part.pop()) {
                (Some(error), Some(alone)) if part.is_empty() => refused.push((alone, error)),
                (Some(_), last) => {
                    part.extend(last);
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                }
                (None, _) => {}
            }
        }
        refused
    }

    /// Sends until the database takes the reports, refuses their data for good (the error), or the worker is out of time. The heartbeat
    /// keeps the leases meanwhile; should they be lost all the same, the fence refuses the reports.
    async fn sent<R: Report>(&self, reports: &[Reported<R>]) -> Option<Error> {
        let held = &self.shared.held;
        let leases: Vec<Lease> = reports.iter().map(|reported| reported.step.lease()).collect();
        let mut backoff = Backoff::default();
        loop {
            let asked = Instant::now().into_std();
            match R::send(self, reports).await {
                Ok(completed) => {
                    self.beat.beat();
                    for leased in completed.next {
                        let step = self.shared.hold(self.queue, leased, asked);
                        // The handlers take from the buffer until every report is committed.
                        self.buffer.add(step);
                    }
                    held.remove(self.queue, &leases);
                    trace(&self.shared, reports, &completed.counted, asked);
                    self.log(reports, &completed.counted);
                    self.tell_stale(reports, &completed.counted).await;
                    return None;
                }
                Err(error) if error.is_bad_data() => return Some(error),
                Err(error) => {
                    self.beat.fail();
                    tracing::error!(%error, "reporting failed, trying again");
                    tokio::select! {
                        () = self.shared.abandon.cancelled() => {
                            held.remove(self.queue, &leases);
                            return None;
                        }
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                    }
                }
            }
        }
    }

    /// A line for each step, where the settings want one.
    fn log<R: Report>(&self, reports: &[Reported<R>], counted: &[i64]) {
        if !self.shared.live.effective().settings.log.steps {
            return;
        }
        let counts = |step: &Step| counted.len() == reports.len() || counted.contains(&step.leased.msg_id);
        for Reported { step, ended, report } in reports.iter().filter(|reported| counts(&reported.step)) {
            let outcome = if report.failure().is_none() { "complete" } else { "failed" };
            step.log_end(outcome, *ended);
        }
    }

    /// Names who has what this worker reported too late.
    async fn tell_stale<R>(&self, reports: &[Reported<R>], counted: &[i64]) {
        if counted.len() == reports.len() {
            return;
        }
        let steps = reports.iter().map(|reported| &reported.step);
        let stale: Vec<&Step> = steps.filter(|step| !counted.contains(&step.leased.msg_id)).collect();
        self.shared
            .metrics
            .claim_conflicts
            .add(stale.len() as u64, &[KeyValue::new("kind", "report")]);
        let me = self.shared.membership.name();
        let leases: Vec<Lease> = stale.iter().map(|step| step.lease()).collect();
        match lease_holders(&self.shared.db, self.queue_name(), &leases).await {
            Ok(holders) => {
                for (step, holder) in stale.iter().zip(holders) {
                    let holder = holder.unwrap_or_else(|| "nobody".into());
                    log_step!(
                        WARN,
                        self.shared,
                        self.queue,
                        step.leased,
                        me,
                        holder,
                        "a report was refused: the step is another's by now"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, stale = stale.len(), "reports were refused: the steps are others' by now"),
        }
    }
}

/// A step, and what is reported of it.
struct Reported<R> {
    step: Step,
    ended: std::time::Instant,
    report: R,
}

impl<R> Reported<R> {
    /// The same step, and another report.
    fn but<Q>(self, other: impl FnOnce(R) -> Q) -> Reported<Q> {
        Reported {
            step: self.step,
            ended: self.ended,
            report: other(self.report),
        }
    }
}

/// Tells the spans of the steps that are traced.
fn trace<R: Report>(shared: &Shared, reports: &[Reported<R>], counted: &[i64], began: std::time::Instant) {
    for Reported { step, ended, report } in reports.iter().filter(|reported| reported.step.leased.trace.is_some()) {
        if counted.len() < reports.len() && !counted.contains(&step.leased.msg_id) {
            spans::tell_lost(shared, step, *ended);
            continue;
        }
        let reporting = Reporting {
            began,
            function: R::FUNCTION,
            batch: reports.len(),
            failure: report.failure(),
        };
        spans::tell(shared, step, *ended, &reporting);
    }
}

trait Report: Sized + Sync + Send {
    /// What commits it.
    const FUNCTION: &'static str;
    /// How many are reported together at most.
    const MOST: usize;
    fn failure(&self) -> Option<&Failure>;
    fn send(commit: &Commit, reports: &[Reported<Self>]) -> impl Future<Output = Result<Completed>> + Send;
}

impl Report for Completion {
    const FUNCTION: &'static str = "tasker.complete_steps";
    const MOST: usize = usize::MAX;

    fn failure(&self) -> Option<&Failure> {
        None
    }

    async fn send(commit: &Commit, reports: &[Reported<Self>]) -> Result<Completed> {
        let shared = &commit.shared;
        let room = shared.room_for_next(commit.queue, reports.len());
        let (worker, lease) = (shared.membership.id(), shared.live.worker(|config| config.lease));
        let completions = reports.iter().map(|reported| &reported.report).collect();
        let completed = complete_steps(&shared.db, commit.queue_name(), worker, completions, room, lease).await?;
        commit.note(completed.counted.len(), 0, reports);
        for done in &completed.done {
            let labels = [
                KeyValue::new("namespace", done.namespace.clone()),
                KeyValue::new("template", done.template.clone()),
            ];
            for seconds in &done.seconds {
                shared.metrics.task_duration.record(*seconds, &labels);
            }
        }
        Ok(completed)
    }
}

impl Report for (Lease, Failure) {
    const FUNCTION: &'static str = "tasker.fail_steps";
    /// Each may become a dead letter, with its input.
    const MOST: usize = 100;

    fn failure(&self) -> Option<&Failure> {
        Some(&self.1)
    }

    async fn send(commit: &Commit, reports: &[Reported<Self>]) -> Result<Completed> {
        let shared = &commit.shared;
        let failures = reports.iter().map(|reported| &reported.report).collect();
        let failed = fail_steps(&shared.db, commit.queue_name(), shared.membership.id(), failures).await?;
        commit.note(0, failed.len(), reports);
        let with_state = |state: &str| failed.iter().filter(|f| f.state == state).count() as u64;
        let label = shared.label(commit.queue);
        shared.metrics.step_retries.add(with_state("waiting_retry"), label);
        shared.metrics.dead_letters_sent.add(with_state("dead"), label);
        Ok(Completed {
            counted: failed.iter().map(|f| f.counted).collect(),
            ..Completed::default()
        })
    }
}
