//! Signals, and what waits for them.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::access::{As, Reader, Submitter};
use super::extract::{Asked, Body};
use super::listed::{limit, Listed};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::tasks::namespace_of;
use super::Api;
use crate::engine::audit::Change;
use crate::engine::lists;
use crate::engine::signals::{self, Addressee, Signal, SignalFilter, WaitFilter};

/// A signal to be sent
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "approval", "task": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "payload": { "approved": true }, "id": "approval-42" }))]
pub(crate) struct NewSignal {
    /// What the step waits for
    name: String,
    /// To this task; or
    task: Option<Uuid>,
    /// To all tasks that wait with this key
    key: Option<String>,
    /// Any JSON: the result of the step that waits
    #[serde(default)]
    payload: Value,
    /// The sender's own id of it: for its addressee, the same counts once
    id: Option<String>,
    /// For how many seconds it is kept, and its id known; none: for 7 days
    #[schema(minimum = 0, maximum = 31_536_000)]
    keep: Option<u32>,
    /// For those who read the record
    why: Option<String>,
}

/// What became of it
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SentSignal {
    /// awaited (a step waits for it now), kept (none does yet), duplicate (its id is known), or late (its task has ended)
    outcome: String,
    /// What looks like a mistake
    note: Option<String>,
}

/// Send a signal
///
/// To a task, or to all that wait with a key. It takes the role submitter; one of named namespaces sends to their tasks only, and to no key.
#[utoipa::path(post, path = "/signals", tag = "signals", request_body = NewSignal, responses(
    (status = 202, description = "What becomes of it", body = SentSignal, example = json!({ "outcome": "awaited", "note": null })),
    ChangeRefused))]
pub(crate) async fn send(
    State(api): State<Api>,
    As(caller): Submitter,
    Body(given): Body<NewSignal>,
) -> Outcome<(StatusCode, Json<SentSignal>)> {
    let to = match (given.task, given.key) {
        (Some(task), None) => {
            if caller.is_bounded() {
                caller.may_submit_to(Some(&namespace_of(&api, task).await?))?;
            }
            Addressee::Task(task)
        }
        (None, Some(key)) => {
            caller.may_submit_to(None)?;
            Addressee::Key(key)
        }
        _ => return Err(Problem::invalid("expected a task, or a key")),
    };
    let object = match &to {
        Addressee::Task(task) => task.to_string(),
        Addressee::Key(key) => key.clone(),
    };
    let change = Change {
        action: "signal.send",
        object: Some(&object),
        why: given.why.as_deref(),
        details: Some(json!({ "name": given.name, "id": given.id })),
        ..Change::default()
    };
    let signal = Signal {
        to,
        name: given.name.clone(),
        payload: given.payload.to_string(),
        id: given.id.clone(),
        keep: given.keep.map(|seconds| Duration::from_secs(seconds.into())),
    };
    let db = match &signal.to {
        Addressee::Task(task) => api.shards.of_task(*task).await?,
        Addressee::Key(_) => api.registry().await?,
    };
    let send = async { Ok(signals::send_to(&api.shards, &signal).await?) };
    let sent = caller.change(&db, change, send, |_| None).await?;
    let sent = SentSignal {
        outcome: sent.outcome,
        note: sent.note,
    };
    Ok((StatusCode::ACCEPTED, Json(sent)))
}

/// Which signals
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    name: Option<String>,
    /// To this task
    task: Option<Uuid>,
    /// By this key
    key: Option<String>,
    /// Only those that nobody has had
    #[serde(default)]
    unclaimed: bool,
    /// How many at most: the newest
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

/// List signals
///
/// The newest that are not forgotten, with their payloads, and who has had them. It takes the role reader.
#[utoipa::path(get, path = "/signals", tag = "signals", params(Filter), responses(
    (status = 200, description = "Signals", body = Listed, example = json!({ "items": [{
        "name": "approval", "task": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "payload": { "approved": true }, "received": 1 }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<Filter>) -> Outcome<Json<Listed>> {
    let filter = SignalFilter {
        name: asked.name,
        task: asked.task,
        key: asked.key,
        unclaimed: asked.unclaimed,
    };
    let (limit, filter) = (limit(asked.limit)?, &filter);
    Ok(Json(Listed::whole(lists::signals(&api.shards, filter, limit).await?)))
}

/// Which waits
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitsAsked {
    /// Of tasks of this namespace
    namespace: Option<String>,
    /// For this signal
    signal: Option<String>,
    /// Whom this person is asked to send
    assignee: Option<String>,
    /// `next` of the page before
    cursor: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

/// List what waits for a signal
///
/// Approvals among them: which task and step, for which signal, since when and until when, who is asked, and by which schema and form. It takes the role
/// reader.
#[utoipa::path(get, path = "/waits", tag = "signals", params(WaitsAsked), responses(
    (status = 200, description = "A page of waits", body = Listed, example = json!({ "items": [{
        "task": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "step": "approval", "signal": "approval", "assignees": ["ada"] }], "next": null })),
    ReadRefused))]
pub(super) async fn waits(State(api): State<Api>, _: Reader, Asked(asked): Asked<WaitsAsked>) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let filter = WaitFilter {
        namespace: asked.namespace,
        signal: asked.signal,
        assignee: asked.assignee,
        after: None,
    };
    let (waits, next) = lists::waits_page(&api.shards, &filter, asked.cursor.as_deref(), limit).await?;
    Ok(Json(Listed::continued(waits, next)))
}
