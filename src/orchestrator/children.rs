//! Steps whose work is other tasks: these are created, counted as they end, and cancelled where nobody waits for them any more.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, Notify};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::db::{self, channel, Db, Wake};
use crate::engine::children::{move_children, Moved};
use crate::engine::member::Membership;
use crate::health::{Beat, Beats};

/// How many are created, and counted, in one transaction: as many as it takes [`TIME`] for, within these bounds. Some cost a hundredth of what others do.
const SLICES: RangeInclusive<i32> = 50..=2_000;
/// How many in the first one.
const FIRST: i32 = 500;
/// How long that transaction takes, in the main: others wait for what it has locked.
const TIME: RangeInclusive<Duration> = Duration::from_millis(60)..=Duration::from_millis(150);
/// Under load, many that end are counted together: between two times it rests twice as long as the first one took, within these bounds.
const REST: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(50);
/// The loop that looks for what is due looks for children, too, and says so.
const POLL: Duration = Duration::from_secs(30);

pub(super) struct Children {
    db: Db,
    membership: Arc<Membership>,
    wakes: broadcast::Receiver<Wake>,
    found: Arc<Notify>,
    beat: Beat,
}

impl Children {
    pub(super) fn new(db: &Db, membership: &Arc<Membership>, beats: &Beats, wakes: broadcast::Receiver<Wake>, found: Arc<Notify>) -> Self {
        Children {
            db: db.clone(),
            membership: membership.clone(),
            wakes,
            found,
            beat: beats.register("children", POLL * 2 + Duration::from_secs(60)),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut slice = FIRST;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let moved = move_children(&self.db, slice).await;
            let took = began.elapsed();
            slice = next_slice(slice, took);
            self.beat.note(&moved);
            let wait = async {
                match moved {
                    Ok(Moved::Much) => backoff.reset(),
                    Ok(moved) => {
                        backoff.reset();
                        tokio::time::sleep((2 * took).clamp(*REST.start(), *REST.end())).await;
                        if moved == Moved::Nothing {
                            tokio::select! {
                                () = db::wait(&mut self.wakes, POLL, |told| told.channel == channel::CHILDREN && self.membership.leads()) => {}
                                () = self.found.notified() => {}
                            }
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "looking after children failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = wait => {} }
        }
    }
}

/// After so many took that long.
fn next_slice(slice: i32, took: Duration) -> i32 {
    let next = match took {
        took if took > *TIME.end() => slice / 2,
        took if took < *TIME.start() => slice * 2,
        _ => slice,
    };
    next.clamp(*SLICES.start(), *SLICES.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_halved_while_it_takes_too_long_and_grows_again() {
        let after = |slice, ms| next_slice(slice, Duration::from_millis(ms));
        assert_eq!((after(1_000, 300), after(500, 160), after(250, 75)), (500, 250, 250));
        assert_eq!((after(250, 10), after(2_000, 10), after(60, 500)), (500, 2_000, 50));
    }
}
