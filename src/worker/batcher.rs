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
use crate::error::Result;

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
    if !completions.is_empty() {
        failures.extend(complete(shared, queue, completions).await);
    }
    if !failures.is_empty() {
        let leases: Vec<Lease> = failures.iter().map(|(lease, _)| *lease).collect();
        let (name, member) = (&shared.queues[queue], shared.membership.id());
        if let Some(Ok(counted)) = until_done(shared, || fail_steps(&shared.db, name, member, &failures)).await {
            log_stale(&leases, &counted);
        }
        shared.held.remove(queue, &leases);
    }
}

/// Completes the steps; returns those whose result PostgreSQL cannot store, as failures. One bad result must not hold up the others.
async fn complete(shared: &Shared, queue: usize, completions: Vec<Completion>) -> Vec<(Lease, Failure)> {
    let (name, member) = (&shared.queues[queue], shared.membership.id());
    let mut refused = Vec::new();
    let mut leases: Vec<Lease> = completions.iter().map(|c| c.lease).collect();
    match until_done(shared, || complete_steps(&shared.db, name, member, &completions)).await {
        Some(Ok(counted)) => log_stale(&leases, &counted),
        Some(Err(_)) => {
            for completion in &completions {
                let alone = std::slice::from_ref(completion);
                if let Some(Err(error)) = until_done(shared, || complete_steps(&shared.db, name, member, alone)).await {
                    refused.push((completion.lease, Failure::permanent("ResultRefused", error.to_string())));
                    leases.retain(|lease| *lease != completion.lease);
                }
            }
        }
        None => {}
    }
    shared.held.remove(queue, &leases);
    refused
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

fn log_stale(sent: &[Lease], counted: &[i64]) {
    if counted.len() < sent.len() {
        let stale: Vec<i64> = sent
            .iter()
            .map(|lease| lease.msg_id)
            .filter(|msg_id| !counted.contains(msg_id))
            .collect();
        tracing::warn!(messages = ?stale, "stale reports: these leases were another's by then");
    }
}
