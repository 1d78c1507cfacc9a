//! The poller of one queue: leases steps into the buffer while there is room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use super::{Shared, Step};
use crate::backoff::Backoff;
use crate::db::{self, channel, Wake};
use crate::engine::fail::{fail_steps, Failure};
use crate::engine::lease::{lease_steps, LeasedStep};
use crate::engine::LowWaterMarks;
use crate::health::Beat;

pub(super) async fn run(shared: Arc<Shared>, queue: usize, buffer: flume::Sender<Step>, mut wakes: broadcast::Receiver<Wake>, beat: Beat) {
    let name = &shared.queues[queue];
    let config = &shared.config;
    let mut marks = LowWaterMarks::default();
    let mut backoff = Backoff::default();
    let mut poll = config.poll;
    while !shared.stop.is_cancelled() {
        let room = tokio::select! {
            () = shared.stop.cancelled() => return,
            room = room(&shared, &buffer) => room,
            // A full buffer is no reason to be called late.
            () = tokio::time::sleep(Duration::from_secs(5)) => { beat.beat(); continue }
        };
        // Not cancelled by `stop`: what was leased must reach the buffer, to be handed back from there.
        let limit = room.min(config.batch);
        let asked = Instant::now();
        let leased = lease_steps(&shared.db, name, shared.membership.id(), &mut marks, limit as i32, config.lease).await;
        beat.beat();
        let wait = match leased {
            Ok(steps) if !steps.is_empty() => {
                let full = steps.len() == limit;
                for leased in steps {
                    accept(&shared, queue, &buffer, leased, asked).await;
                }
                backoff.reset();
                poll = Duration::from_millis(2);
                if full {
                    continue;
                } else {
                    None
                }
            }
            Ok(_) => None,
            Err(error) => {
                tracing::error!(%error, queue = name, "leasing failed");
                Some(backoff.next_delay())
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = async {
                match wait {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => db::wait(&mut wakes, poll, |channel, payload| channel == channel::STEPS && payload == name).await,
                }
            } => poll = (poll * 2).min(config.poll),
        }
    }
}

/// Waits until it is worth leasing: for any free handler when the buffer is empty, for a quarter of the buffer when it is not.
async fn room(shared: &Shared, buffer: &flume::Sender<Step>) -> usize {
    let check = || {
        let (limit, room) = shared.held.room(shared.config.concurrency, shared.config.max_prefetch);
        (room > 0 && (buffer.is_empty() || room >= limit / 4)).then_some(room)
    };
    shared.held.until(check).await
}

/// Puts a leased step into the buffer, unless it has taken its workers down too often: that one is dead-lettered.
async fn accept(shared: &Shared, queue: usize, buffer: &flume::Sender<Step>, leased: LeasedStep, asked: Instant) {
    let lost = shared.held.add(queue, leased.lease(), asked);
    let step = Step { leased, queue, lost };
    let crashes = step.leased.crashes;
    if crashes < shared.config.max_crashes as i32 {
        // The receiver lives as long as the worker.
        buffer.send(step).ok();
        return;
    }
    let mut failure = Failure::permanent(
        "WorkerCrashed",
        format!("{crashes} workers leased this step and were never heard of again"),
    );
    failure.reason = Some("poison".into());
    if let Err(error) = fail_steps(
        &shared.db,
        &shared.queues[queue],
        shared.membership.id(),
        &[(step.lease(), failure)],
    )
    .await
    {
        tracing::error!(%error, "could not dead-letter a poison step, its lease will run out");
    }
    shared.held.remove(queue, [&step.lease()]);
}
