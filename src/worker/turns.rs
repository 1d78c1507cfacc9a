//! Turns: which of a worker's namespaces leases next when several want to, so that one with much to do does not starve the others. Each gets its share
//! of the handlers' time, by weight. (Start-time fair queueing: P. Goyal, H. M. Vin, H. Cheng, SIGCOMM 1996.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a step is taken to cost, in seconds, before any was handled.
const UNKNOWN: f64 = 0.001;

/// How much of what a step is taken to cost is the newest report's.
const NEWEST: f64 = 0.2;

#[derive(Debug)]
pub(super) struct Turns {
    all: Mutex<All>,
}

#[derive(Debug)]
struct All {
    queues: Vec<Queue>,
    /// The pass of the last turn: who has wanted nothing for a while begins here, and has saved up nothing.
    now: f64,
    /// What was given to queues that have not leased it yet.
    promised: usize,
}

#[derive(Debug, Clone)]
struct Queue {
    /// It waits for room.
    wants: bool,
    /// The seconds of its steps so far, by weight. The least is next.
    pass: f64,
    /// Of one step, in seconds.
    cost: f64,
    weight: f64,
}

impl Turns {
    pub(super) fn of(queues: usize) -> Turns {
        let queue = Queue {
            wants: false,
            pass: 0.0,
            cost: UNKNOWN,
            weight: 1.0,
        };
        Turns {
            all: Mutex::new(All {
                queues: vec![queue; queues],
                now: 0.0,
                promised: 0,
            }),
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue wants to lease; there may be `room` for so many steps, if any. How many of them are for it, if it is its turn.
    pub(super) fn take(&self, queue: usize, room: Option<usize>, weight: f64) -> Option<usize> {
        let mut all = self.all();
        let (now, promised) = (all.now, all.promised);
        let own = &mut all.queues[queue];
        own.weight = weight;
        if !own.wants {
            own.wants = true;
            own.pass = own.pass.max(now);
        }
        let room = room?.checked_sub(promised).filter(|room| *room > 0)?;
        let pass = own.pass;
        let wanting = all.queues.iter().filter(|other| other.wants);
        if wanting.clone().any(|other| other.pass < pass) {
            return None;
        }
        let weights: f64 = wanting.map(|other| other.weight).sum();
        let share = (room as f64 * weight / weights).ceil() as usize;
        all.now = pass;
        all.promised += share;
        let own = &mut all.queues[queue];
        own.wants = false;
        own.pass += share as f64 * own.cost / weight;
        Some(share)
    }

    /// Of the `share` that was for it, the queue has leased so many.
    pub(super) fn took(&self, queue: usize, share: usize, leased: usize) {
        let mut all = self.all();
        all.promised -= share;
        let own = &mut all.queues[queue];
        own.pass -= share.saturating_sub(leased) as f64 * own.cost / own.weight;
    }

    /// So many of its steps took their handlers that long.
    pub(super) fn note(&self, queue: usize, steps: usize, time: Duration) {
        if steps > 0 {
            let own = &mut self.all().queues[queue];
            own.cost += NEWEST * (time.as_secs_f64() / steps as f64 - own.cost);
        }
    }

    /// Whether another waits for room.
    pub(super) fn others_want(&self, queue: usize) -> bool {
        let all = self.all();
        all.queues.iter().enumerate().any(|(other, of)| other != queue && of.wants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two queues that always want to, until `turns` are over; how much time each had.
    fn served(costs: [u64; 2], weights: [f64; 2], turns: usize) -> [f64; 2] {
        let of = Turns::of(2);
        let mut had = [0.0; 2];
        let mut over = 0;
        let waiting = |queue: usize| of.take(queue, None, weights[queue]);
        waiting(0);
        waiting(1);
        while over < turns {
            for queue in 0..2 {
                if let Some(share) = of.take(queue, Some(4), weights[queue]) {
                    of.took(queue, share, share);
                    let time = Duration::from_millis(costs[queue]) * share as u32;
                    of.note(queue, share, time);
                    had[queue] += time.as_secs_f64();
                    over += 1;
                    waiting(queue);
                }
            }
        }
        had
    }

    #[test]
    fn queues_share_the_time_of_handlers_however_long_their_steps_are() {
        let [short, long] = served([1, 20], [1.0, 1.0], 2_000);
        assert!((0.9..1.1).contains(&(short / long)), "{short} {long}");
    }

    #[test]
    fn weights_divide_the_time() {
        let [heavy, light] = served([5, 5], [3.0, 1.0], 2_000);
        assert!((2.9..3.1).contains(&(heavy / light)), "{heavy} {light}");
    }

    #[test]
    fn who_is_alone_has_all_room_and_saves_up_nothing_for_later() {
        let of = Turns::of(2);
        assert_eq!(of.take(0, Some(100), 1.0), Some(100));
        of.took(0, 100, 0);
        for _ in 0..100 {
            assert_eq!(of.take(0, Some(8), 1.0), Some(8));
            of.took(0, 8, 8);
            of.note(0, 8, Duration::from_secs(8));
        }
        assert_eq!(of.take(0, None, 1.0), None);
        // The other comes after a long time, in which the first has had 800 seconds: it has no claim to as many.
        of.note(1, 1_000, Duration::from_secs(4_000));
        assert_eq!(of.take(1, None, 1.0), None);
        let mut turns = 0;
        while of.take(0, Some(8), 1.0).is_none() {
            assert_eq!(of.take(1, Some(8), 1.0), Some(4));
            assert_eq!(of.take(0, Some(4), 1.0), None, "that is another's");
            of.took(1, 4, 4);
            assert_eq!(of.take(1, None, 1.0), None);
            turns += 1;
        }
        assert!((1..10).contains(&turns), "{turns}");
    }
}
