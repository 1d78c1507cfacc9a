//! Who is to look when something has come in. Where a fleet is large, a few look at once, and not all: each member knows its own rank among those that could.

use std::time::Duration;

use serde::Deserialize;

/// So many look at whatever there is, and at what is due to the moment.
const FEW: u32 = 8;

/// So many more than there are steps are called: some of them may have no room, or be gone.
const SPARE: u32 = 2;

/// No longer than this, where it would be less in a small fleet.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How much more seldom than in a small fleet a member of a large one looks by itself, at most.
const SELDOM: f64 = 8.0;

/// A member's rank among those of its kind that work for the same namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "(u32, u32)")]
pub(crate) struct Rank {
    /// How many were there before it.
    before: u32,
    /// How many there are.
    of: u32,
}

impl From<(u32, u32)> for Rank {
    fn from((before, of): (u32, u32)) -> Rank {
        Rank { before, of }
    }
}

impl Rank {
    /// Whether it is one of those that look at what concerns all.
    pub(crate) fn leads(self) -> bool {
        self.before < FEW
    }

    /// Whether it is one of those that are called when `count` have come in; `ticket` is any number, the same for all.
    pub(crate) fn is_called(self, (ticket, count): (u32, u32)) -> bool {
        if self.of <= FEW {
            return true;
        }
        let after = (self.before % self.of + self.of - ticket % self.of) % self.of;
        after < count.saturating_add(SPARE)
    }

    /// How long it rests where a member of a small fleet would for so long: all together look as often as a few would.
    pub(crate) fn rest(self, rest: Duration) -> Duration {
        let longer = rest.mul_f64((f64::from(self.of) / f64::from(FEW)).clamp(1.0, SELDOM));
        longer.min(rest.max(LONGEST_REST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(of: u32, call: (u32, u32)) -> Vec<u32> {
        (0..of).filter(|rank| Rank { before: *rank, of }.is_called(call)).collect()
    }

    #[test]
    fn of_a_large_fleet_a_few_are_called_and_each_as_often_as_the_others() {
        assert_eq!(called(100, (199, 1)), [0, 1, 99]);
        let mut calls = vec![0; 100];
        for ticket in 0..100 {
            called(100, (ticket, 5)).iter().for_each(|rank| calls[*rank as usize] += 1);
        }
        assert_eq!(calls, vec![7; 100]);
    }

    #[test]
    fn all_are_called_where_they_are_few_or_there_is_much() {
        for (of, count) in [(1, 1), (8, 1), (100, 98), (100, u32::MAX)] {
            assert_eq!(called(of, (7, count)).len(), of as usize);
        }
    }

    #[test]
    fn a_fleet_looks_no_more_often_by_itself_than_a_small_one() {
        let rests = |of, seconds| Rank { before: 0, of }.rest(Duration::from_secs(seconds)).as_secs();
        assert_eq!([rests(1, 1), rests(8, 1), rests(32, 1), rests(1_000, 1)], [1, 1, 4, 8]);
        assert_eq!([rests(50, 10), rests(50, 600)], [30, 600]);
        assert!(Rank { before: 7, of: 50 }.leads() && !Rank { before: 8, of: 50 }.leads());
    }
}
