//! Bulk actions: what is done in the background to all tasks that a filter lets through.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::Json;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};

use super::access::{As, Caller, Operator, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{limit, Listed};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::steering::{Done, Reason};
use super::Api;
use crate::engine::audit::Change;
use crate::engine::bulk::{self, Action};
use crate::engine::bulk_actions::{self, NewBulkAction};
use crate::engine::dead_letters::Replay;
use crate::engine::lists;
use crate::engine::read::TaskFilter;
use crate::template::Priority;

/// What is done
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    /// They are cancelled
    Cancel,
    /// They are cancelled, and what they did is undone, also where they have ended
    Undo,
    /// They are paused
    Pause,
    /// They go on where they were
    Resume,
    /// Their dead steps start over
    Replay,
    /// Their dead steps are complete with a result
    Resolve,
    /// Their dead steps end without a result
    Skip,
    /// Their dead letters are deleted; those that they blocked have failed
    Discard,
    /// They get another priority
    Prioritize,
}

/// To which tasks: those that are so in all that is said
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BulkFilter {
    namespace: Option<String>,
    /// The template's name
    template: Option<String>,
    /// pending, waiting, running, blocked, paused, cancelling, undoing, complete, failed, cancelled or discarded
    state: Option<String>,
    /// The class of the last error of a step that is dead
    error: Option<String>,
    /// The idempotency key
    key: Option<String>,
    /// Only those that were created since then
    since: Option<DateTime<Utc>>,
    /// They have all of these
    tags: BTreeMap<String, String>,
}

/// What to do to which tasks
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "filter": { "template": "order_fulfillment", "error": "BankAway" }, "verb": "replay", "per_second": 20, "why": "the bank answers again" }))]
pub(crate) struct NewBulk {
    filter: BulkFilter,
    verb: Verb,
    /// Of prioritize: which
    #[schema(value_type = Option<String>, pattern = "^(low|normal|high|urgent)$")]
    priority: Option<Priority>,
    /// Of resolve: the result of the steps
    result: Option<Value>,
    /// Of replay: in place of the tasks' input
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
    /// Of replay: in place of the steps' own
    #[schema(minimum = 1, maximum = 1000)]
    max_attempts: Option<u16>,
    /// How many tasks a second; none: as fast as it goes
    #[schema(minimum = 0.001, maximum = 1_000_000)]
    per_second: Option<f64>,
    /// For those who read the record
    why: Option<String>,
}

/// The bulk action that began
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BegunBulk {
    /// By which it can be shown and stopped
    pub(crate) id: i64,
    /// Where there are several shards, one is begun in each that may have such tasks: all of them
    pub(crate) ids: Vec<i64>,
}

impl NewBulk {
    fn whole(self, caller: &Caller) -> Outcome<NewBulkAction> {
        Ok(NewBulkAction {
            action: self.action(caller)?,
            per_second: self.per_second,
            filter: self.filter.into(),
        })
    }

    fn action(&self, caller: &Caller) -> Outcome<Action> {
        let by = caller.by(self.why.as_deref());
        Ok(match self.verb {
            Verb::Cancel => Action::Cancel { undo: false },
            Verb::Undo => Action::Cancel { undo: true },
            Verb::Pause => Action::Pause(by),
            Verb::Resume => Action::Resume,
            Verb::Replay => Action::Replay {
                how: Replay {
                    input: self.input.clone(),
                    max_attempts: self.max_attempts,
                    per_second: None,
                },
                by,
            },
            Verb::Resolve => Action::Settle {
                result: Some(
                    self.result
                        .clone()
                        .ok_or_else(|| Problem::invalid("steps are resolved with a result: expected result"))?,
                ),
                by,
            },
            Verb::Skip => Action::Settle { result: None, by },
            Verb::Discard => Action::Discard(by),
            Verb::Prioritize => Action::Prioritize {
                priority: self
                    .priority
                    .ok_or_else(|| Problem::invalid("tasks are prioritized by giving them one: expected priority"))?,
            },
        })
    }
}

impl From<BulkFilter> for TaskFilter {
    fn from(filter: BulkFilter) -> TaskFilter {
        TaskFilter {
            namespace: filter.namespace,
            template: filter.template,
            state: filter.state,
            error: filter.error,
            key: filter.key,
            since: filter.since,
            tags: filter.tags,
            before: None,
        }
    }
}

/// Begin a bulk action
///
/// On all tasks of the filter that are there now, the newest first, in the background: an orchestrator does it, and another one goes on where that dies. A
/// filter must say something. It takes the role operator.
#[utoipa::path(post, path = "/bulk-actions", tag = "bulk actions", request_body = NewBulk, responses(
    (status = 202, description = "It has begun", body = BegunBulk, example = json!({ "id": 7, "ids": [7] })), ChangeRefused))]
pub(crate) async fn begin(
    State(api): State<Api>,
    As(caller): Operator,
    Body(given): Body<NewBulk>,
) -> Outcome<(StatusCode, Json<BegunBulk>)> {
    let why = given.why.clone();
    let new = given.whole(&caller)?;
    let change = Change {
        action: "bulk.begin",
        why: why.as_deref(),
        details: Some(json!({ "filter": new.filter, "action": new.action })),
        ..Change::default()
    };
    let mut ids = Vec::new();
    for db in api.shards.of_filter(new.filter.namespace.as_deref()).await? {
        let begin = async { Ok(bulk_actions::begin(&db, &new, &caller.by(why.as_deref())).await?) };
        let said = |id: &i64| Some(format!("bulk action {id}"));
        ids.push(caller.change(&db, change.clone(), begin, said).await?);
    }
    let id = ids.first().copied().unwrap_or_default();
    Ok((StatusCode::ACCEPTED, Json(BegunBulk { id, ids })))
}

/// How many tasks
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Concerned {
    /// That there are now, and that it would concern
    tasks: usize,
}

/// Try a bulk action
///
/// It says how many tasks it would concern, and does nothing. It takes the role operator.
#[utoipa::path(post, path = "/bulk-actions/dry-run", tag = "bulk actions", request_body = NewBulk, responses(
    (status = 200, description = "How many", body = Concerned, example = json!({ "tasks": 1200 })), ChangeRefused))]
pub(super) async fn dry_run(State(api): State<Api>, As(caller): Operator, Body(given): Body<NewBulk>) -> Outcome<Json<Concerned>> {
    let new = given.whole(&caller)?;
    new.check()?;
    let mut tasks = 0;
    for db in api.shards.of_filter(new.filter.namespace.as_deref()).await? {
        tasks += bulk::matching(&db, &new.filter, &new.action).await?.len();
    }
    Ok(Json(Concerned { tasks }))
}

/// Which bulk actions
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BulkPage {
    /// `next` of the page before
    cursor: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

/// List bulk actions
///
/// The newest first: what is done to which tasks, by whom, how many were found, to how many it was done, and its state (running, complete, stopped or
/// failed). It takes the role reader.
#[utoipa::path(get, path = "/bulk-actions", tag = "bulk actions", params(BulkPage), responses(
    (status = 200, description = "A page of them", body = Listed, example = json!({ "items": [{
        "id": 7, "filter": { "error": "BankAway" }, "action": { "verb": "replay" }, "found": 1200, "done": 1180, "state": "running" }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<BulkPage>) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let (found, next) = lists::bulk_actions_page(&api.shards, asked.cursor.as_deref(), limit).await?;
    Ok(Json(Listed::continued(found, next)))
}

/// Show a bulk action
///
/// How far it is. It takes the role reader.
#[utoipa::path(get, path = "/bulk-actions/{number}", tag = "bulk actions", params(("number" = i64, Path, description = "Its number")), responses(
    (status = 200, description = "It", body = Object, example = json!({ "id": 7, "found": 1200, "done": 1180, "state": "complete" })), ReadRefused))]
pub(super) async fn show(State(api): State<Api>, _: Reader, Part(id): Part<i64>) -> Outcome<Json<Value>> {
    Ok(Json(bulk_actions::show(&api.shards.of_number(id).await?, id).await?))
}

/// Stop a bulk action
///
/// What it has done stays done. It takes the role operator.
#[utoipa::path(post, path = "/bulk-actions/{number}/stop", tag = "bulk actions", params(("number" = i64, Path, description = "Its number")), request_body = Reason,
    responses((status = 200, description = "Whether it was running", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn stop(
    State(api): State<Api>,
    As(caller): Operator,
    Part(id): Part<i64>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    let db = api.shards.of_number(id).await?;
    bulk_actions::show(&db, id).await?;
    let object = format!("bulk action {id}");
    let change = Change {
        action: "bulk.stop",
        object: Some(&object),
        why: why.as_deref(),
        ..Change::default()
    };
    let stop = async { Ok(bulk_actions::stop(&db, id, caller.name()).await?) };
    let done = caller.change(&db, change, stop, |_| None).await?;
    Ok(Json(Done { done }))
}
