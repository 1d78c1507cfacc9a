//! What this worker has no handlers for. It asks what steps are held back because nobody has one; whoever runs the handlers answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Shared;
use crate::engine::repair::free_held;
use crate::engine::unhandled::{answer, ask, Kind};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Unhandled {
    /// There are kinds of step that it is known to have none for.
    any: AtomicBool,
    questions: Mutex<Questions>,
    asked: Arc<Notify>,
    answered: Notify,
}

#[derive(Debug, Default)]
struct Questions {
    open: Vec<Kind>,
    answers: Vec<(Kind, bool)>,
}

impl Unhandled {
    /// `asked` is told when something is asked.
    pub(super) fn of(asked: &Arc<Notify>) -> Unhandled {
        Unhandled {
            any: AtomicBool::default(),
            questions: Mutex::default(),
            asked: asked.clone(),
            answered: Notify::new(),
        }
    }

    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether there was none before.
    pub(super) fn note(&self) -> bool {
        !self.any.swap(true, Ordering::AcqRel)
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) -> Vec<Kind> {
        self.questions().open.clone()
    }

    pub(super) fn answer(&self, able: impl Fn(&Kind) -> bool) {
        let mut questions = self.questions();
        questions.answers = questions
            .open
            .drain(..)
            .map(|kind| (able(&kind), kind))
            .map(|(able, kind)| (kind, able))
            .collect();
        drop(questions);
        self.answered.notify_one();
    }
}

pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let done = tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.membership.unhandled() => asked(&shared).await,
            () = shared.unhandled.answered.notified() => tell(&shared).await,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "could not ask, or say, what has no handler");
        }
    }
}

async fn asked(shared: &Shared) -> Result<()> {
    let of = &shared.unhandled;
    let kinds = ask(&shared.db, shared.membership.id()).await?;
    if !kinds.is_empty() {
        of.questions().open = kinds;
        of.asked.notify_one();
    } else if of.any() {
        // Of a new membership nothing is known.
        tell(shared).await?;
    }
    Ok(())
}

async fn tell(shared: &Shared) -> Result<()> {
    let answers = std::mem::take(&mut shared.unhandled.questions().answers);
    let others = answer(&shared.db, shared.membership.id(), &answers).await?;
    shared.unhandled.any.store(others, Ordering::Release);
    if answers.iter().any(|(_, able)| *able) {
        while !free_held(&shared.db).await? {}
    }
    Ok(())
}
