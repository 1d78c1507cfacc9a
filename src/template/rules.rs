//! The rules of failure: when a step is tried again or given up, and what becomes of its dead letters. A step's own rules win over its template's, which
//! win over its namespace's (`tasker namespace set`), which has a default for each.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::problems::Problems;
use super::{Backoff, DeadLetters, Retry, StuckAfter};
use crate::span::Span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryDocument {
    max_attempts: Option<Spanned<i64>>,
    backoff: Option<Spanned<String>>,
    multiplier: Option<Spanned<f64>>,
    base: Option<Spanned<Span>>,
    max: Option<Spanned<Span>>,
    jitter: Option<Spanned<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadLettersDocument {
    retention_days: Option<Spanned<i64>>,
    alert_threshold: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StuckAfterDocument {
    pending: Option<Spanned<Span>>,
    enqueued: Option<Spanned<Span>>,
    in_progress: Option<Spanned<Span>>,
}

impl StuckAfterDocument {
    pub(super) fn validate(self, found: &mut Problems) -> StuckAfter {
        StuckAfter {
            pending: self.pending.and_then(|limit| found.span(&limit, "pending")),
            enqueued: self.enqueued.and_then(|limit| found.span(&limit, "enqueued")),
            in_progress: self.in_progress.and_then(|limit| found.span(&limit, "in_progress")),
        }
    }
}

impl RetryDocument {
    pub(super) fn validate(self, found: &mut Problems) -> Retry {
        Retry {
            max_attempts: found.integer(self.max_attempts, "max_attempts", 1..=1000).map(|n| n as u16),
            backoff: self.backoff.and_then(|backoff| match backoff.value.as_str() {
                "fixed" => Some(Backoff::Fixed),
                "linear" => Some(Backoff::Linear),
                "exponential" => Some(Backoff::Exponential),
                other => {
                    found.add(&backoff, format!("backoff is {other:?}: expected fixed, linear or exponential"));
                    None
                }
            }),
            multiplier: found.number(self.multiplier, "multiplier", 1..=100),
            base: self.base.and_then(|base| found.span(&base, "base")),
            max: self.max.and_then(|max| found.span(&max, "max")),
            jitter: found.number(self.jitter, "jitter", 0..=1),
        }
    }
}

impl DeadLettersDocument {
    pub(super) fn validate(self, found: &mut Problems) -> DeadLetters {
        DeadLetters {
            retention_days: found.integer(self.retention_days, "retention_days", 1..=36_500).map(|n| n as u32),
            alert_threshold: found
                .integer(self.alert_threshold, "alert_threshold", 1..=1_000_000_000)
                .map(|n| n as u32),
        }
    }
}

impl Retry {
    /// These rules and, for what they do not say, `others`.
    pub(super) fn or(self, others: &Retry) -> Retry {
        Retry {
            max_attempts: self.max_attempts.or(others.max_attempts),
            backoff: self.backoff.or(others.backoff),
            multiplier: self.multiplier.or(others.multiplier),
            base: self.base.or(others.base),
            max: self.max.or(others.max),
            jitter: self.jitter.or(others.jitter),
        }
    }
}

impl DeadLetters {
    /// These rules and, for what they do not say, `others`.
    pub(super) fn or(self, others: &DeadLetters) -> DeadLetters {
        DeadLetters {
            retention_days: self.retention_days.or(others.retention_days),
            alert_threshold: self.alert_threshold.or(others.alert_threshold),
        }
    }
}
