//! The poller of one queue: leases steps into the buffer while there is room.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::broadcast;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::SemaphorePermit;

use super::buffer::Buffer;
use super::{log_step, Shared, Step};
use crate::backoff::Backoff;
use crate::db::{self, channel, Told, Wake};
use crate::engine::fail::{fail_steps, Failure};
use crate::engine::lease::{give_up_unreadable, lease_steps, Lease, LeasedStep};
use crate::engine::payload::MAX_RESULTS_BYTES;
use crate::engine::trace::tell_claims;
use crate::health::Beat;

/// After work came in, more is likely.
const SHORTEST_POLL: Duration = Duration::from_millis(2);

/// Calls at once while there is room for what each may return: one session alone leases more slowly than two report.
const CONCURRENT_LEASES: usize = 2;

/// How many queues of a database are leased from at once: more at a time would only bring less each.
pub(super) const CONCURRENT_POLLERS: usize = 2;

/// How long others leave the room to a queue that leases.
const PROMISED: Duration = Duration::from_millis(500);

/// Where leased steps go.
#[derive(Debug, Clone)]
pub(super) struct Outlets {
    pub(super) buffer: Buffer,
    pub(super) suspects: UnboundedSender<Step>,
}

pub(super) async fn run(shared: Arc<Shared>, queue: usize, outlets: Outlets, mut wakes: broadcast::Receiver<Wake>, beat: Beat) {
    let name = &shared.queues[queue];
    let mut backoff = Backoff::default();
    let mut poll = Duration::ZERO;
    // One lease finds what little there is; more at once only add to what it waits for.
    let mut concurrency = 1;
    // It had something the last time.
    let mut busy = false;
    let namespace = &shared.namespaces[queue];
    let concerns = |told: &Told| {
        let own = match &*told.channel {
            channel::STEPS => told.payload == *name,
            channel::TASKS => told.payload == *namespace,
            _ => false,
        };
        own && shared.membership.is_called(namespace, told.call)
    };
    while !shared.stop.is_cancelled() {
        let (handlers, permit) = tokio::select! {
            () = shared.stop.cancelled() => return,
            room = room(&shared, queue, busy) => room,
            // A full buffer is no reason to be called late.
            () = tokio::time::sleep(Duration::from_secs(5)) => { beat.beat(); continue }
        };
        let (batch, lease, longest_poll) = shared.live.worker(|config| (config.batch, config.lease, config.poll));
        let room = shared.held.steps(queue, handlers);
        let limit = room.min(batch);
        let calls = (room / limit).min(concurrency);
        let asked = Instant::now();
        // Not cancelled by `stop`: what was leased must reach the buffer, to be handed back from there.
        let call = |_| {
            lease_steps(
                &shared.db,
                name,
                shared.membership.id(),
                limit as i32,
                lease,
                shared.unhandled.any(),
            )
        };
        let mut calling = pin!(join_all((0..calls).map(call)));
        let (answers, promised) = match tokio::time::timeout(PROMISED, &mut calling).await {
            Ok(answers) => {
                drop(permit);
                (answers, true)
            }
            // Its queue, or its database, stands still: that should hold up no other.
            Err(_) => {
                drop(permit);
                shared.turns.leased(handlers);
                shared.held.look_again();
                (calling.await, false)
            }
        };
        let (mut leased, mut failure) = (0, None);
        let mut accepted = Accepted::of(handlers);
        for answer in answers {
            match answer {
                Ok((steps, traced)) => {
                    leased += steps.len();
                    tell_claims(&traced, shared.membership.id());
                    for step in steps {
                        if accepted.takes(&shared, &step) {
                            accept(&shared, queue, &outlets, step, asked).await;
                        }
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        shared.release(queue, &accepted.others).await;
        if promised {
            shared.turns.leased(handlers);
        }
        shared.held.look_again();
        busy = leased > 0;
        let wait = match failure {
            Some(error) => {
                beat.fail();
                tracing::error!(%error, queue = name, "leasing failed");
                if error.is_bad_data() {
                    give_up(&shared, queue, limit as i32).await;
                }
                Some(backoff.next_delay())
            }
            None => {
                beat.beat();
                backoff.reset();
                if leased > 0 {
                    poll = SHORTEST_POLL;
                }
                if leased == limit * calls {
                    concurrency = CONCURRENT_LEASES;
                    continue;
                }
                concurrency = 1;
                None
            }
        };
        let longest_poll = shared.membership.rest_of(namespace, longest_poll);
        poll = poll.clamp(SHORTEST_POLL, longest_poll.max(SHORTEST_POLL));
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = async {
                match wait {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => db::wait(&mut wakes, poll, concerns).await,
                }
            } => poll *= 2,
        }
    }
}

/// How much of what was leased is kept. Where so many steps were asked for because a bulk handler has many in one call, and others came, these are
/// more than the handlers can take.
struct Accepted {
    handlers: f64,
    most: f64,
    others: Vec<Lease>,
}

impl Accepted {
    fn of(handlers: usize) -> Accepted {
        Accepted {
            handlers: 0.0,
            most: handlers as f64 + 1.0,
            others: Vec::new(),
        }
    }

    fn takes(&mut self, shared: &Shared, step: &LeasedStep) -> bool {
        self.handlers += 1.0 / shared.gathering.batch(step) as f64;
        let takes = self.handlers <= self.most;
        if !takes {
            self.others.push(step.lease());
        }
        takes
    }
}

/// What PostgreSQL cannot hand to a worker must not stand in the way of the rest.
async fn give_up(shared: &Shared, queue: usize, limit: i32) {
    let name = &shared.queues[queue];
    match give_up_unreadable(&shared.db, name, shared.membership.id(), limit).await {
        Ok(gone) => tracing::error!(gone, queue = name, "steps that cannot be leased were dead-lettered as unreadable"),
        Err(error) => tracing::error!(%error, queue = name, "could not find the steps that cannot be leased"),
    }
}

/// For how many handlers to lease. Waits until it is worth leasing: for any room when nothing of this queue waits for a handler, for a quarter of the
/// buffer when something does, or when others keep the handlers busy and there was something the last time; and until it is this queue's turn.
/// The permit is to be kept for as long as the calls last.
async fn room(shared: &Shared, queue: usize, busy: bool) -> (usize, SemaphorePermit<'_>) {
    let check = || {
        // Room is promised to those who lease, and to nobody who waits for others to have done so.
        let permit = shared.leases.try_acquire().ok()?;
        let (concurrency, prefetch) = shared.live.worker(|config| (config.concurrency, config.max_prefetch));
        let (limit, room) = shared.held.room(concurrency, prefetch, shared.waiting.count());
        let waits = shared.turns.waits(queue);
        let may_yield = busy && !waits && room < limit / 4;
        if may_yield {
            // Before it is seen whether there is something: whoever takes the last of that then knows.
            shared.yielding.store(true, Ordering::Relaxed);
        }
        let worth = if waits || may_yield && shared.turns.any_waits() {
            (limit / 4).max(1)
        } else {
            1
        };
        // For a step after a pause, what others have leased ahead is no reason to wait.
        let one = !busy && !waits && shared.held.busy() > concurrency;
        // What is leased ahead can be one queue's now and another's next, where that is a matter of milliseconds.
        let least = limit.saturating_sub(concurrency) / 4;
        let share = shared.turns.lease(queue, (room, worth), (one, least), shared.weight(queue))?;
        Some((share, permit))
    };
    let room = shared.held.until(check).await;
    // The next of those that want to looks whether there is room left.
    shared.held.look_again();
    room
}

/// Puts a leased step where it is run from; one that has taken its workers down too often is dead-lettered.
async fn accept(shared: &Arc<Shared>, queue: usize, outlets: &Outlets, leased: LeasedStep, asked: Instant) {
    let step = shared.hold(queue, leased, asked);
    if step.leased.results_bytes > MAX_RESULTS_BYTES {
        let message = format!(
            "the results of the steps it depends on have {} bytes altogether, at most {MAX_RESULTS_BYTES} are handed to one step: keep them elsewhere, and return where",
            step.leased.results_bytes
        );
        return bury(shared, &step, "payload_too_large", Failure::permanent("PayloadTooLarge", message)).await;
    }
    let kills = step.leased.kills;
    if !step.leased.is_suspect() {
        outlets.buffer.add(step);
    } else if kills < shared.live.worker(|config| config.max_crashes) as i32 {
        shared.waiting.add();
        // The receiver lives as long as the worker.
        outlets.suspects.send(step).ok();
    } else {
        let message = format!("{kills} workers died while they ran this step");
        bury(shared, &step, "poison", Failure::permanent("WorkerCrashed", message)).await;
    }
}

/// Dead-letters a step that no handler may have.
async fn bury(shared: &Shared, step: &Step, reason: &str, failure: Failure) {
    let failure = Failure {
        reason: Some(reason.into()),
        ..failure
    };
    let (queue, lease) = (step.queue, step.lease());
    let reported = fail_steps(
        &shared.db,
        &shared.queues[queue],
        shared.membership.id(),
        [&(lease, failure)].into(),
    )
    .await;
    if let Err(error) = reported {
        log_step!(ERROR, shared, queue, step.leased, %error, reason, "could not dead-letter a step, its lease will run out");
    }
    shared.held.remove(queue, [&lease]);
}
