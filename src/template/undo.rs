//! Undo: what takes back a step's effect, and in which order (`migrations/0032_undo.sql`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use super::problems::Problems;
use super::rules::RetryDocument;
use super::{Kind, Retry, Template};
use crate::span::Span;

/// What takes back a step's effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Undo {
    /// Its code; it sees what the step saw, and the step's result.
    pub handler: String,
    /// When it is tried again, and how often.
    #[serde(skip_serializing_if = "super::is_default")]
    pub retry: Retry,
    /// How long one attempt may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// `undo: RefundCharge`, or with its own rules.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected the name of a handler, or { handler: …, retry: …, timeout: … }")]
pub(super) enum UndoDocument {
    Named(Spanned<String>),
    Ruled(Box<Ruled>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ruled {
    handler: Spanned<String>,
    retry: Option<RetryDocument>,
    timeout: Option<Spanned<Span>>,
}

impl UndoDocument {
    /// `rules`: the template's own, for what is not said here.
    pub(super) fn validate(self, step: &str, rules: &Retry, found: &mut Problems) -> Undo {
        let (handler, retry, timeout) = match self {
            UndoDocument::Named(handler) => (handler, None, None),
            UndoDocument::Ruled(ruled) => (ruled.handler, ruled.retry, ruled.timeout),
        };
        Undo {
            handler: found.handler(step, handler),
            retry: retry.map_or_else(Retry::default, |retry| retry.validate(found)).or(rules),
            timeout: timeout.and_then(|timeout| found.span(&timeout, "timeout")),
        }
    }
}

/// What undoes one step: a handler, or that other tasks are undone.
#[derive(Debug)]
pub(crate) struct Undoing {
    /// The step, by position.
    pub(crate) undoes: usize,
    /// Those that come next, by their positions among all of these.
    pub(crate) next: Vec<usize>,
}

impl Template {
    /// What undoes its steps, in any order: of those that name a handler for it, and of those whose work is other tasks.
    pub(crate) fn undoings(&self) -> Vec<Undoing> {
        let undone: Vec<usize> = (0..self.steps.len())
            .filter(|&step| self.undo(step).is_some() || matches!(self.steps[step].kind, Kind::Each { .. } | Kind::Workflow { .. }))
            .collect();
        let before = |step: usize| {
            let mut next = Vec::new();
            let mut seen = vec![false; self.steps.len()];
            let mut ways = self.steps[step].parents.clone();
            while let Some(way) = ways.pop() {
                if std::mem::replace(&mut seen[way], true) {
                    continue;
                }
                match undone.binary_search(&way) {
                    Ok(position) => next.push(position),
                    Err(_) => ways.extend(&self.steps[way].parents),
                }
            }
            next.sort_unstable();
            next
        };
        undone
            .iter()
            .map(|&undoes| Undoing {
                undoes,
                next: before(undoes),
            })
            .collect()
    }

    /// The handler that undoes a step, as far as it is the step itself that is undone, and not its children.
    pub(crate) fn undo(&self, step: usize) -> Option<&Undo> {
        self.steps[step].undo.as_ref().filter(|_| self.steps[step].kind.handler().is_some())
    }
}
