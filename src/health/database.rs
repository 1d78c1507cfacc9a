//! Whether the database answers, and since when it has not. Who asks does not wait for it: one question is under way at a time, and its answer is
//! there for the next who asks.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::fresh::FRESH;
use crate::db::Db;
use crate::error::Error;

/// How long who asks waits for the answer: most come within a millisecond.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// How long a question is under way.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// What is said of a database that says nothing.
pub(super) const NO_ANSWER: &str = "the database does not answer";

#[derive(Debug, Default)]
pub(super) struct Database {
    known: Mutex<Known>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Known {
    asked: Option<Instant>,
    under_way: bool,
    away: Option<Away>,
}

/// The database does not answer.
#[derive(Debug, Clone)]
pub(super) struct Away {
    pub(super) since: Instant,
    pub(super) why: String,
}

impl Database {
    /// None: it answers, as far as is known.
    pub(super) async fn away(self: &Arc<Self>, db: &Db) -> Option<Away> {
        // From now on: it may be answered before it is waited for.
        let mut answered = pin!(self.answered.notified());
        answered.as_mut().enable();
        let (ask, asked) = {
            let mut known = self.known();
            let ask = !known.under_way && known.asked.is_none_or(|at| at.elapsed() >= FRESH);
            if ask {
                (known.under_way, known.asked) = (true, Some(Instant::now()));
            }
            match known.under_way {
                true => (ask, known.asked),
                false => return known.away.clone(),
            }
        };
        if ask {
            tokio::spawn(self.clone().ask(db.clone()));
        }
        if tokio::time::timeout(PATIENCE, answered).await.is_err() {
            let since = asked.unwrap_or_else(Instant::now);
            let mut known = self.known();
            if known.under_way && since.elapsed() > FRESH {
                known.away.get_or_insert(Away {
                    since,
                    why: NO_ANSWER.to_owned(),
                });
            }
        }
        self.known().away.clone()
    }

    async fn ask(self: Arc<Self>, db: Db) {
        let asked = Instant::now();
        let why = match tokio::time::timeout(GIVEN_UP, db.check_writable()).await {
            Ok(Ok(())) => None,
            Ok(Err(error @ Error::Unreachable { .. })) => Some(error.to_string()),
            Ok(Err(error)) => Some(format!("the database does not answer: {error}")),
            Err(_) => Some(db.refusal().unwrap_or_else(|| NO_ANSWER.to_owned())),
        };
        let mut known = self.known();
        known.under_way = false;
        known.away = why.map(|why| Away {
            since: known.away.as_ref().map_or(asked, |away| away.since),
            why,
        });
        drop(known);
        self.answered.notify_waiters();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
