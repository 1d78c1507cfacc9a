//! Turns: which of a worker's namespaces is next when several have something to do, so that one with much does not starve the others. Each gets its share
//! of the handlers' time, by weight: whose step the next free handler takes, and who leases when there is room. (Start-time fair queueing: P. Goyal,
//! H. M. Vin, H. Cheng, SIGCOMM 1996.)

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a step is taken to cost, in seconds, before any was handled.
const UNKNOWN: f64 = 0.001;

/// How much of what a step is taken to cost is the newest report's.
const NEWEST: f64 = 0.2;

#[derive(Debug)]
pub(super) struct Turns<T> {
    all: Mutex<All<T>>,
}

#[derive(Debug)]
struct All<T> {
    queues: Vec<Queue<T>>,
    /// The turn of the last that a handler took: who has had nothing to do for a while goes on from here, and has saved up nothing.
    now: f64,
    /// What room was given to queues that have not leased it yet.
    promised: usize,
}

#[derive(Debug)]
struct Queue<T> {
    /// What waits for a handler, with its turn.
    waiting: VecDeque<(f64, T)>,
    /// The turn of its next step: the seconds of those so far, by weight. The least is next.
    turn: f64,
    /// It waits for room to lease.
    wants: bool,
    /// Of one step, in seconds.
    cost: f64,
    weight: f64,
}

impl<T> Turns<T> {
    pub(super) fn of(queues: usize) -> Turns<T> {
        let queue = || Queue {
            waiting: VecDeque::new(),
            turn: 0.0,
            wants: false,
            cost: UNKNOWN,
            weight: 1.0,
        };
        Turns {
            all: Mutex::new(All {
                queues: (0..queues).map(|_| queue()).collect(),
                now: 0.0,
                promised: 0,
            }),
        }
    }

    fn all(&self) -> MutexGuard<'_, All<T>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many steps of the queue wait for a handler, which is to have them at once.
    pub(super) fn add(&self, queue: usize, count: usize, steps: T) {
        let mut all = self.all();
        let now = all.now;
        let own = &mut all.queues[queue];
        let turn = own.turn.max(now);
        own.turn = turn + count as f64 * own.cost / own.weight;
        own.waiting.push_back((turn, steps));
    }

    /// Whose turn it is with a handler.
    pub(super) fn next(&self) -> Option<T> {
        let mut all = self.all();
        let turn = |queue: &Queue<T>| queue.waiting.front().map_or(f64::INFINITY, |(turn, _)| *turn);
        let next = all.queues.iter_mut().min_by(|a, b| turn(a).total_cmp(&turn(b)))?;
        let (turn, steps) = next.waiting.pop_front()?;
        all.now = turn;
        Some(steps)
    }

    /// Whether a step of the queue waits for a handler.
    pub(super) fn waits(&self, queue: usize) -> bool {
        !self.all().queues[queue].waiting.is_empty()
    }

    /// The same of any queue.
    pub(super) fn any_waits(&self) -> bool {
        self.all().queues.iter().any(|queue| !queue.waiting.is_empty())
    }

    /// The queue wants to lease; there is `room` for so many steps, which is enough where so many as are `worth` it are left of what is promised to others, or for `one`
    /// whatever is. How many are for it, if it is its turn, `least` if there is room for these: they are promised to it until it has [`leased`](Turns::leased).
    pub(super) fn lease(&self, queue: usize, (room, worth): (usize, usize), (one, least): (bool, usize), weight: f64) -> Option<usize> {
        let mut all = self.all();
        let promised = all.promised;
        let own = &mut all.queues[queue];
        own.weight = weight;
        own.wants = true;
        let room = room.checked_sub(promised).filter(|room| *room >= worth);
        let room = room.or(one.then_some(1))?;
        let turn = own.turn;
        let wanting = all.queues.iter().filter(|other| other.wants);
        if wanting.clone().any(|other| other.turn < turn) {
            return None;
        }
        let weights: f64 = wanting.map(|other| other.weight).sum();
        let share = ((room as f64 * weight / weights).ceil() as usize).max(least.min(room));
        all.promised += share;
        all.queues[queue].wants = false;
        Some(share)
    }

    /// What it has leased of that is with the others that wait.
    pub(super) fn leased(&self, share: usize) {
        self.all().promised -= share;
    }

    /// So many of its steps took their handlers that long.
    pub(super) fn note(&self, queue: usize, steps: usize, time: Duration) {
        if steps > 0 {
            let own = &mut self.all().queues[queue];
            own.cost += NEWEST * (time.as_secs_f64() / steps as f64 - own.cost);
        }
    }

    /// Whether another waits for room to lease.
    pub(super) fn others_want(&self, queue: usize) -> bool {
        let all = self.all();
        all.queues.iter().enumerate().any(|(other, of)| other != queue && of.wants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of `seconds` of one handler's time each of two queues has that always have something to do, `ahead` steps at most.
    fn served(costs: [u64; 2], weights: [f64; 2], ahead: usize, seconds: u64) -> [f64; 2] {
        let of = Turns::of(2);
        let mut had = [Duration::ZERO; 2];
        let mut held = 0;
        let lease = |held: &mut usize| {
            for queue in [0, 1, 0] {
                let room = ahead.saturating_sub(*held);
                if let Some(share) = of.lease(queue, (room, 1), (false, 0), weights[queue]) {
                    (0..share).for_each(|_| of.add(queue, 1, queue));
                    of.leased(share);
                    *held += share;
                }
            }
        };
        while had.iter().sum::<Duration>() < Duration::from_secs(seconds) {
            lease(&mut held);
            let Some(queue) = of.next() else { break };
            held -= 1;
            let time = Duration::from_millis(costs[queue]);
            of.note(queue, 1, time);
            had[queue] += time;
        }
        had.map(|time| time.as_secs_f64())
    }

    #[test]
    fn queues_share_the_time_of_handlers_however_long_their_steps_are() {
        for ahead in [1, 20] {
            let [short, long] = served([1, 20], [1.0, 1.0], ahead, 20);
            assert!((0.9..1.1).contains(&(short / long)), "{short} {long}, {ahead} ahead");
        }
    }

    #[test]
    fn weights_divide_the_time() {
        for ahead in [1, 20] {
            let [heavy, light] = served([5, 5], [3.0, 1.0], ahead, 20);
            assert!((2.9..3.1).contains(&(heavy / light)), "{heavy} {light}, {ahead} ahead");
        }
    }

    #[test]
    fn who_has_waited_for_nothing_is_next_and_has_saved_up_nothing_for_later() {
        let of = Turns::of(2);
        for round in 0..100 {
            assert_eq!(of.lease(0, (8, 1), (false, 0), 1.0), Some(8));
            (0..8).for_each(|step| of.add(0, 1, (0, round, step)));
            of.leased(8);
            (0..8).for_each(|step| assert_eq!(of.next(), Some((0, round, step))));
        }
        (0..8).for_each(|step| of.add(0, 1, (0, 100, step)));
        assert_eq!(of.next(), Some((0, 100, 0)));
        assert_eq!(of.lease(0, (0, 1), (false, 0), 1.0), None);
        // The other comes after a long time, in which the first has had 801 steps: it has no claim to as many.
        assert_eq!(of.lease(1, (8, 1), (false, 0), 1.0), Some(4));
        assert_eq!(of.lease(0, (4, 1), (false, 0), 1.0), None, "that is promised");
        (0..4).for_each(|step| of.add(1, 1, (1, 0, step)));
        of.leased(4);
        let order: Vec<_> = std::iter::from_fn(|| of.next()).map(|(queue, ..)| queue).collect();
        assert_eq!(order, [1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn one_leases_at_a_time_what_there_is_room_for_once() {
        let of = Turns::of(2);
        assert_eq!(of.lease(0, (1, 1), (false, 0), 1.0), Some(1));
        assert_eq!(of.lease(1, (1, 1), (false, 0), 1.0), None, "that is promised");
        of.add(0, 1, ());
        of.leased(1);
        of.next();
        assert_eq!(of.lease(0, (0, 1), (false, 0), 1.0), None);
        assert_eq!(of.lease(0, (1, 1), (false, 0), 1.0), None, "it is the other's turn");
        assert_eq!(of.lease(1, (1, 1), (false, 0), 1.0), Some(1));
    }

    #[test]
    fn what_is_left_of_what_is_promised_to_others_must_be_worth_a_call() {
        let of = Turns::<()>::of(2);
        assert_eq!(of.lease(0, (100, 25), (false, 25), 1.0), Some(100));
        assert_eq!(of.lease(1, (124, 25), (false, 25), 1.0), None);
        assert_eq!(of.lease(1, (125, 25), (false, 25), 1.0), Some(25));
        of.leased(100);
        of.leased(25);
        assert_eq!(of.lease(0, (24, 25), (false, 25), 1.0), None);
        assert_eq!(of.lease(0, (24, 1), (false, 25), 1.0), Some(24));
    }

    #[test]
    fn one_may_go_before_what_another_has_leased_ahead() {
        let of = Turns::of(2);
        assert_eq!(of.lease(0, (4, 1), (false, 0), 1.0), Some(4));
        (0..4).for_each(|_| of.add(0, 1, 0));
        of.leased(4);
        of.next();
        assert_eq!(of.lease(0, (1, 1), (false, 0), 1.0), Some(1));
        assert_eq!(of.lease(1, (0, 1), (true, 0), 1.0), Some(1));
        of.add(1, 1, 1);
        assert_eq!(of.next(), Some(1));
    }
}
