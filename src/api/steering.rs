//! What an operator does about tasks: cancel, pause, resume, replay, reprioritise, fork.

use axum::extract::State;
use axum::http::StatusCode;
use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::access::{As, Caller, Operator};
use super::extract::{Body, Part};
use super::problem::{ChangeRefused, Outcome};
use super::tasks::known;
use super::Api;
use crate::engine::audit::Change;
use crate::engine::bulk::{apply, Action};
use crate::engine::dead_letters::Replay;
use crate::engine::fork::fork_task;
use crate::template::Priority;

/// Why
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "why": "ordered twice" }))]
pub(crate) struct Reason {
    /// For those who read the record
    pub(super) why: Option<String>,
}

/// Whether anything was done
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "done": true }))]
pub(crate) struct Done {
    /// False: there was nothing to do, since it had ended, or was so already
    pub(super) done: bool,
}

async fn act(api: &Api, caller: &Caller, id: Uuid, verb: &'static str, why: Option<&str>, action: Action) -> Outcome<Json<Done>> {
    let db = known(api, id).await?;
    let object = id.to_string();
    let change = Change {
        action: verb,
        object: Some(&object),
        why,
        ..Change::default()
    };
    let doing = async { Ok(!apply(&db, &[id], &action).await?.is_empty()) };
    let done = caller.change(&db, change, doing, |_| None).await?;
    Ok(Json(Done { done }))
}

/// How to cancel
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "undo": false, "why": "ordered twice" }))]
pub(crate) struct Cancel {
    /// Whether what it did is undone, too, also where it has ended
    #[serde(default)]
    undo: bool,
    /// For those who read the record
    why: Option<String>,
}

/// Cancel a task
///
/// With those that are its steps, unless it has ended. A running handler learns of it at its next heartbeat. It takes the role operator.
#[utoipa::path(post, path = "/tasks/{id}/cancel", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), request_body = Cancel,
    responses((status = 200, description = "Whether this call cancelled it", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn cancel(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<Uuid>,
    Body(how): Body<Cancel>,
) -> Outcome<Json<Done>> {
    let verb = if how.undo { "task.undo" } else { "task.cancel" };
    act(&api, &caller, id, verb, how.why.as_deref(), Action::Cancel { undo: how.undo }).await
}

/// Pause a task
///
/// With those that are its steps: what runs ends, and nothing new begins. It takes the role operator.
#[utoipa::path(post, path = "/tasks/{id}/pause", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), request_body = Reason,
    responses((status = 200, description = "Whether this call paused it", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn pause(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<Uuid>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    let action = Action::Pause(caller.by(why.as_deref()));
    act(&api, &caller, id, "task.pause", why.as_deref(), action).await
}

/// Resume a task
///
/// It goes on where it was. It takes the role operator.
#[utoipa::path(post, path = "/tasks/{id}/resume", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), request_body = Reason,
    responses((status = 200, description = "Whether it was paused", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn resume(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<Uuid>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    act(&api, &caller, id, "task.resume", why.as_deref(), Action::Resume).await
}

/// How to replay
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "why": "the address is right now" }))]
pub(crate) struct ReplayTask {
    /// In place of the task's input
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
    /// In place of the steps' own
    #[schema(minimum = 1, maximum = 1000)]
    max_attempts: Option<u16>,
    /// For those who read the record
    why: Option<String>,
}

/// Replay a task
///
/// Its dead steps start over, with all their attempts. It takes the role operator.
#[utoipa::path(post, path = "/tasks/{id}/replay", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), request_body = ReplayTask,
    responses((status = 200, description = "Whether it had dead steps", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn replay(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<Uuid>,
    Body(given): Body<ReplayTask>,
) -> Outcome<Json<Done>> {
    let action = Action::Replay {
        how: Replay {
            input: given.input,
            max_attempts: given.max_attempts,
            per_second: None,
        },
        by: caller.by(given.why.as_deref()),
    };
    act(&api, &caller, id, "task.replay", given.why.as_deref(), action).await
}

/// Which priority
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "priority": "urgent", "why": "the customer is waiting" }))]
pub(crate) struct Prioritize {
    #[schema(value_type = String, pattern = "^(low|normal|high|urgent)$")]
    priority: Priority,
    /// For those who read the record
    why: Option<String>,
}

/// Give a task another priority
///
/// With those that are its steps, unless it has ended. It takes the role operator.
#[utoipa::path(post, path = "/tasks/{id}/prioritize", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")),
    request_body = Prioritize,
    responses((status = 200, description = "Whether it had another", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn prioritize(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<Uuid>,
    Body(given): Body<Prioritize>,
) -> Outcome<Json<Done>> {
    let action = Action::Prioritize { priority: given.priority };
    act(&api, &caller, id, "task.prioritize", given.why.as_deref(), action).await
}

/// How to fork
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "from": "charge", "why": "the card was changed" }))]
pub(crate) struct Fork {
    /// The step from which on it runs again; none: all
    from: Option<String>,
    /// In place of the task's input
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
    /// For those who read the record
    why: Option<String>,
}

/// The task that came of it
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Forked {
    id: Uuid,
}

/// Fork a task
///
/// Another task that has the results of the steps before one, and runs from that on; the task itself, which has ended or is blocked, stays as it is. It takes
/// the role operator.
#[utoipa::path(post, path = "/tasks/{id}/fork", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), request_body = Fork, responses(
    (status = 201, description = "The new task", body = Forked, example = json!({ "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2c" })),
    ChangeRefused))]
pub(crate) async fn fork(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<Uuid>,
    Body(given): Body<Fork>,
) -> Outcome<(StatusCode, Json<Forked>)> {
    let db = known(&api, id).await?;
    let object = id.to_string();
    let change = Change {
        action: "task.fork",
        object: Some(&object),
        why: given.why.as_deref(),
        details: given.from.as_ref().map(|from| serde_json::json!({ "from": from })),
        ..Change::default()
    };
    let fork = async { Ok(fork_task(&db, id, given.from.as_deref(), given.input.as_ref()).await?) };
    let id = caller.change(&db, change, fork, |_| None).await?;
    Ok((StatusCode::CREATED, Json(Forked { id })))
}
