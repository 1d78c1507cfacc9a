//! Failing steps: a retry later, or a dead letter.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;

use super::lease::{Held, Lease};
use crate::db::Db;
use crate::error::Result;

/// Why a step failed, as it is stored with the step and in its dead letter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The error's class, in the handler's language.
    pub class: String,
    /// For people.
    pub message: String,
    /// Trimmed by whoever reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
    /// A dead letter's reason, where it is neither "permanent_error" nor "attempts_exhausted".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
    /// Never try again.
    #[serde(default)]
    pub permanent: bool,
    /// Nothing went wrong: the handler only wants to be called again. Such failures that say the same are one error, with how often (`times`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_purpose: bool,
    /// How its handler ended otherwise than by a result or an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Box<Ending>>,
    /// In place of the backoff, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<f64>,
}

/// How a handler ended otherwise than by a result or an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It waits for a signal, to be remembered under this name.
    WaitsFor(String),
    /// It ended the task early; this is the step's result.
    Finished(Value),
}

impl Failure {
    /// A failure that is worth another attempt.
    pub fn retryable(class: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure {
            class: class.into(),
            message: message.into(),
            ..Failure::default()
        }
    }

    /// A handler that only wants to be called again, perhaps since what it waits for is not there yet.
    pub fn again(message: impl Into<String>) -> Failure {
        Failure {
            on_purpose: true,
            ..Failure::retryable("Again", message)
        }
    }

    /// A failure that no other attempt can mend.
    pub fn permanent(class: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure {
            permanent: true,
            ..Failure::retryable(class, message)
        }
    }

    /// The handler is to be called again after that time, and this was no attempt.
    pub fn snooze(delay: Duration) -> Failure {
        Failure {
            reason: Some("snoozed".into()),
            ..Failure::retryable("Snooze", "")
        }
        .retry_after(delay)
    }

    /// The handler is to be called again when the signal has come that it waits for under that name, or its time is over;
    /// and this was no attempt.
    pub fn wait(name: impl Into<String>) -> Failure {
        Failure {
            ending: Some(Box::new(Ending::WaitsFor(name.into()))),
            ..Failure::snooze(Duration::ZERO)
        }
    }

    /// No failure: the step is complete with this result, and its task with it; all that is left of the task is skipped.
    pub fn finish(result: Value) -> Failure {
        Failure {
            ending: Some(Box::new(Ending::Finished(result))),
            ..Failure::permanent("Finished", "")
        }
    }

    /// The task is not worth anything any more: it ends as `discarded`, without a dead letter.
    pub fn discard(class: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure {
            reason: Some("discarded".into()),
            ..Failure::permanent(class, message)
        }
    }

    /// Says when to try again, in place of the template's backoff.
    pub fn retry_after(self, delay: Duration) -> Failure {
        Failure {
            retry_after: Some(delay.as_secs_f64()),
            ..self
        }
    }

    /// Without what the handler said, which PostgreSQL refused with that error.
    pub(crate) fn bare(&self, refusal: &crate::Error) -> Failure {
        Failure {
            class: "ErrorRefused".into(),
            message: format!("the handler's error cannot be stored: {refusal}"),
            backtrace: Vec::new(),
            ..self.clone()
        }
    }

    /// What PostgreSQL can store: no U+0000, no endless text, a delay that is one.
    fn storable(&self) -> Failure {
        let clean = |text: &str, most: usize| text.chars().filter(|&c| c != '\0').take(most).collect::<String>();
        Failure {
            class: clean(&self.class, 1_000),
            message: clean(&self.message, 10_000),
            backtrace: self.backtrace.iter().take(30).map(|line| clean(line, 1_000)).collect(),
            reason: self.reason.as_deref().map(|reason| clean(reason, 100).into()),
            retry_after: self.retry_after.filter(|s| s.is_finite()).map(|s| s.clamp(0.0, 366.0 * 86_400.0)),
            ..self.clone()
        }
    }
}

/// What a handler could not read may be read by its next attempt.
impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Failure {
        Failure::retryable("TaskerError", error.to_string())
    }
}

/// Ends one step for good with a failure of constants, for what [`fail_steps`] refuses whatever is said. False: the report is stale.
pub(crate) async fn fail_barely(db: &Db, queue: &str, lease: &Lease) -> Result<bool> {
    super::again_on_conflict(|| async {
        let sql = "SELECT tasker.fail_barely($1, $2, $3, $4, $5, 'unreadable', 'its failure cannot be stored')";
        Ok(lease.still_holds(sql, queue).fetch_one(db.pool()).await?)
    })
    .await
}

/// A failure that counted.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Failed {
    /// The message.
    pub(crate) counted: i64,
    /// What the step is now: `waiting_retry`, `waiting`, `complete`, `dead`, `discarded` or `cancelled`.
    pub(crate) state: String,
}

/// Fails steps of one queue together. Returns the messages whose report counted; the others were stale.
pub(crate) async fn fail_steps(db: &Db, queue: &str, worker: i32, mut failures: Vec<&(Lease, Failure)>) -> Result<Vec<Failed>> {
    failures.sort_by_key(|(lease, _)| *lease);
    let held: Held = failures.iter().map(|(lease, _)| lease).collect();
    let errors: Vec<Failure> = failures.iter().map(|(_, failure)| failure.storable()).collect();
    let permanent: Vec<bool> = errors.iter().map(|failure| failure.permanent).collect();
    let retry_after: Vec<Option<f64>> = errors.iter().map(|failure| failure.retry_after).collect();
    let errors: Vec<Json<Failure>> = errors.into_iter().map(Json).collect();
    super::again_on_conflict(|| async {
        Ok(
            sqlx::query_as("SELECT counted, state::text FROM tasker.fail_steps($1, $2, $3, $4, $5, $6, $7, $8, $9)")
                .bind(queue)
                .bind(worker)
                .bind(&held.ids)
                .bind(&held.fences)
                .bind(&held.tasks)
                .bind(&held.steps)
                .bind(&errors)
                .bind(&permanent)
                .bind(&retry_after)
                .fetch_all(db.pool())
                .await?,
        )
    })
    .await
}
