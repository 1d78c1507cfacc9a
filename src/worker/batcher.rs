//! The batcher of one queue: commits reports together.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::Semaphore;
use tokio::time::{timeout_at, Instant};

use super::{Outcome, Shared};
use crate::backoff::Backoff;
use crate::engine::complete::{complete_steps, Completion, Lease};
use crate::engine::fail::{fail_steps, Failure};
use crate::engine::lease::lease_holders;
use crate::error::{Error, Result};

/// Two commits may be under way for a queue: while one waits for the disk, the next one is prepared.
const CONCURRENT_COMMITS: usize = 2;

pub(super) async fn run(shared: Arc<Shared>, queue: usize, mut outcomes: UnboundedReceiver<(Lease, Outcome)>) {
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
        let batch = collect(&shared, first, &mut outcomes).await;
        let shared = shared.clone();
        tokio::spawn(async move {
            commit(&shared, queue, batch).await;
            drop(permit);
        });
    }
}

/// Adds what comes in until the batch is full, the linger is over, or nothing is left to wait for.
async fn collect(shared: &Shared, first: (Lease, Outcome), outcomes: &mut UnboundedReceiver<(Lease, Outcome)>) -> Vec<(Lease, Outcome)> {
    let deadline = Instant::now() + shared.config.linger;
    let mut batch = vec![first];
    while batch.len() < shared.config.batch {
        match outcomes.try_recv() {
            Ok(outcome) => batch.push(outcome),
            Err(_) if !shared.held.any_unreported() => break,
            Err(_) => match timeout_at(deadline, outcomes.recv()).await {
                Ok(Some(outcome)) => batch.push(outcome),
                Ok(None) | Err(_) => break,
            },
        }
    }
    batch
}

async fn commit(shared: &Shared, queue: usize, batch: Vec<(Lease, Outcome)>) {
    let (mut completions, mut failures) = (Vec::new(), Vec::new());
    for (lease, outcome) in batch {
        match outcome {
            Outcome::Complete(result) => completions.push(Completion { lease, result }),
            Outcome::Fail(failure) => failures.push((lease, failure)),
        }
    }
    let refused = report(shared, queue, completions).await;
    failures.extend(refused.into_iter().map(|(completion, error)| {
        let failure = Failure::permanent("ResultRefused", error.to_string());
        (completion.lease, failure)
    }));
    let refused = report(shared, queue, failures).await;
    let bare = refused
        .into_iter()
        .map(|((lease, failure), error)| (lease, failure.bare(&error)))
        .collect();
    for ((lease, _), error) in report(shared, queue, bare).await {
        tracing::error!(%error, task = %lease.task_id, step = lease.step, "PostgreSQL refuses the report, the lease will run out");
        shared.held.remove(queue, [&lease]);
    }
}

trait Report: Sized + Sync {
    fn lease(&self) -> Lease;
    fn send(shared: &Shared, queue: usize, reports: &[Self]) -> impl Future<Output = Result<Vec<i64>>> + Send;
}

impl Report for Completion {
    fn lease(&self) -> Lease {
        self.lease
    }

    async fn send(shared: &Shared, queue: usize, reports: &[Self]) -> Result<Vec<i64>> {
        complete_steps(&shared.db, &shared.queues[queue], shared.membership.id(), reports).await
    }
}

impl Report for (Lease, Failure) {
    fn lease(&self) -> Lease {
        self.0
    }

    async fn send(shared: &Shared, queue: usize, reports: &[Self]) -> Result<Vec<i64>> {
        fail_steps(&shared.db, &shared.queues[queue], shared.membership.id(), reports).await
    }
}

/// Reports all of them together; where PostgreSQL refuses the data of that, one by one: a bad row must not hold up the others. Returns
/// those that it refuses alone, with its errors; they are still held.
async fn report<R: Report>(shared: &Shared, queue: usize, reports: Vec<R>) -> Vec<(R, Error)> {
    let mut refused = Vec::new();
    if reports.is_empty() {
        return refused;
    }
    match until_done(shared, || R::send(shared, queue, &reports)).await {
        Some(Err(_)) => {}
        done => {
            let leases: Vec<Lease> = reports.iter().map(R::lease).collect();
            settle(shared, queue, &leases, done).await;
            return refused;
        }
    }
    for report in reports {
        match until_done(shared, || R::send(shared, queue, std::slice::from_ref(&report))).await {
            Some(Err(error)) => refused.push((report, error)),
            done => settle(shared, queue, &[report.lease()], done).await,
        }
    }
    refused
}

/// The reports were taken, or there is no time left for them.
async fn settle(shared: &Shared, queue: usize, leases: &[Lease], done: Option<Result<Vec<i64>>>) {
    shared.held.remove(queue, leases);
    if let Some(Ok(counted)) = done {
        tell_stale(shared, queue, leases, &counted).await;
    }
}

/// Tries until the database takes the report, refuses its data for good, or the worker is out of time (None). The heartbeat keeps the
/// leases meanwhile; should they be lost all the same, the fence refuses the report.
async fn until_done<F>(shared: &Shared, mut attempt: impl FnMut() -> F) -> Option<Result<Vec<i64>>>
where
    F: Future<Output = Result<Vec<i64>>>,
{
    let mut backoff = Backoff::default();
    loop {
        match attempt().await {
            Err(error) if !error.is_bad_data() => {
                tracing::error!(%error, "reporting failed, trying again");
                tokio::select! {
                    () = shared.abandon.cancelled() => return None,
                    () = tokio::time::sleep(backoff.next_delay()) => {}
                }
            }
            done => return Some(done),
        }
    }
}

/// Names who has what this worker reported too late.
async fn tell_stale(shared: &Shared, queue: usize, sent: &[Lease], counted: &[i64]) {
    let stale: Vec<Lease> = sent.iter().filter(|lease| !counted.contains(&lease.msg_id)).copied().collect();
    if stale.is_empty() {
        return;
    }
    let (queue, me) = (&shared.queues[queue], shared.membership.name());
    match lease_holders(&shared.db, queue, &stale).await {
        Ok(holders) => {
            for (lease, holder) in stale.iter().zip(holders) {
                let holder = holder.unwrap_or_else(|| "nobody".into());
                tracing::warn!(task = %lease.task_id, step = lease.step, me, holder, "a report was refused: the step is another's by now");
            }
        }
        Err(error) => tracing::warn!(%error, stale = stale.len(), "reports were refused: the steps are others' by now"),
    }
}
