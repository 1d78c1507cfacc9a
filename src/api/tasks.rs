//! Tasks: creating, listing, showing, waiting for them.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::Json;
use chrono::{DateTime, Utc};
use opentelemetry::context::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::access::{As, Reader, Submitter};
use super::extract::{Asked, Body, Part};
use super::listed::{limit, Listed};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::Api;
use crate::db::Db;
use crate::engine::audit::Change;
use crate::engine::children::{read_children, read_family, Page};
use crate::engine::lists;
use crate::engine::memories::read_values;
use crate::engine::read::{self, TaskFilter};
use crate::engine::reasons::explain;
use crate::engine::submit::{self, Submitted};
use crate::engine::tags::read_tags;
use crate::telemetry::{self, Carrier};
use crate::template::{Priority, Unique};

/// How many tasks one call creates at most.
const MAX_TASKS: usize = 1_000;

/// How long a call waits for a task at most, in seconds.
const MAX_WAIT: f64 = 30.0;

/// Tasks to be created, all or none
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "template": "fulfillment/order_fulfillment", "tasks": [{ "input": { "order_id": 42 }, "key": "order-42" }] }))]
pub(crate) struct NewTasks {
    /// Name, or namespace/name
    template: String,
    /// None: the current one
    version: Option<String>,
    /// One to a thousand
    #[schema(min_items = 1, max_items = 1000)]
    tasks: Vec<NewTask>,
    /// For those who read the record
    why: Option<String>,
}

/// A task to be created
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTask {
    /// An object that the template's input_schema accepts
    #[serde(default = "nothing")]
    #[schema(value_type = Object)]
    input: Value,
    /// None: the template's
    #[schema(value_type = Option<String>, pattern = "^(low|normal|high|urgent)$")]
    priority: Option<Priority>,
    /// The same key is the same task, within the template. For a single task, the header Idempotency-Key is one
    key: Option<String>,
    /// By which it can be found
    #[serde(default)]
    tags: BTreeMap<String, String>,
    /// Not before
    run_at: Option<DateTime<Utc>>,
    /// Which others are the same, in place of what its template says
    #[schema(value_type = Option<Object>)]
    unique: Option<Value>,
}

fn nothing() -> Value {
    json!({})
}

/// What became of them
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreatedTasks {
    tasks: Vec<CreatedTask>,
}

/// What became of a task that was to be created
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreatedTask {
    id: Uuid,
    /// False when its key was known, or it is unique and there was one: then it is that earlier one
    created: bool,
}

impl NewTask {
    fn task(self, key: Option<&str>) -> Outcome<submit::NewTask> {
        Ok(submit::NewTask {
            input: self.input.into(),
            priority: self.priority,
            key: self.key.or(key.map(str::to_owned)),
            tags: self.tags,
            run_at: self.run_at,
            unique: self
                .unique
                .map(|rule| Unique::parse(&rule))
                .transpose()
                .map_err(|problem| Problem::invalid(format!("unique: {problem}")))?,
        })
    }
}

/// Create tasks
///
/// All of them, or none. With a key, or the header Idempotency-Key for a single one, the same call can be made again. It takes the role submitter.
#[utoipa::path(post, path = "/tasks", tag = "tasks", request_body = NewTasks,
    params(("Idempotency-Key" = Option<String>, Header, description = "The key of a single task")),
    responses((status = 201, description = "What became of each, in their order", body = CreatedTasks,
        example = json!({ "tasks": [{ "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "created": true }] })), ChangeRefused))]
pub(crate) async fn create(
    State(api): State<Api>,
    As(caller): Submitter,
    headers: HeaderMap,
    Body(given): Body<NewTasks>,
) -> Outcome<(StatusCode, Json<CreatedTasks>)> {
    caller.may_submit_to(given.template.split_once('/').map(|(namespace, _)| namespace))?;
    if !(1..=MAX_TASKS).contains(&given.tasks.len()) {
        return Err(Problem::invalid(format!("tasks: expected 1 to {MAX_TASKS}")));
    }
    let key = headers.get("idempotency-key").map(|key| key.to_str()).transpose();
    let key = key.map_err(|_| Problem::bad_request("Idempotency-Key: expected visible ASCII"))?;
    if key.is_some() && given.tasks.len() > 1 {
        return Err(Problem::bad_request(
            "Idempotency-Key is for a single task: several have a key each",
        ));
    }
    let tasks = given.tasks.into_iter().map(|new| new.task(key)).collect::<Outcome<Vec<_>>>()?;
    let change = Change {
        action: "task.create",
        why: given.why.as_deref(),
        details: Some(json!({ "template": given.template, "tasks": tasks.len() })),
        ..Change::default()
    };
    let db = api.shards.of_template(&given.template).await?;
    let submit = api.shards.submit(&given.template, given.version.as_deref(), &tasks);
    let create = async { Ok(submit.with_context(telemetry::extract(&carrier(&headers))).await?) };
    let single = |created: &Vec<Submitted>| created.first().filter(|_| created.len() == 1).map(|task| task.id.to_string());
    let created = caller.change(&db, change, create, single).await?;
    let tasks = created
        .into_iter()
        .map(|task| CreatedTask {
            id: task.id,
            created: task.created,
        })
        .collect();
    Ok((StatusCode::CREATED, Json(CreatedTasks { tasks })))
}

/// The trace that the request is a part of, which its tasks join (<https://www.w3.org/TR/trace-context/>).
fn carrier(headers: &HeaderMap) -> Carrier {
    let said = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    ["traceparent", "tracestate"].into_iter().filter_map(said).collect()
}

/// Which tasks
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
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
    /// NAME=VALUE; several, separated by commas: all of them. A backslash goes before a comma of a value
    tag: Option<String>,
    /// `next` of the page before
    cursor: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

impl Filter {
    fn tasks(self) -> Outcome<TaskFilter> {
        Ok(TaskFilter {
            namespace: self.namespace,
            template: self.template,
            state: self.state,
            error: self.error,
            key: self.key,
            since: self.since,
            before: None,
            tags: read_tags(self.tag.as_deref().unwrap_or_default()).map_err(Problem::bad_request)?,
        })
    }
}

/// List tasks
///
/// The newest first: each with its id, template, namespace, version, state, priority, key, tags and times. It takes the role reader.
#[utoipa::path(get, path = "/tasks", tag = "tasks", params(Filter), responses(
    (status = 200, description = "A page of tasks", body = Listed, example = json!({ "items": [{
        "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "template": "order_fulfillment", "namespace": "fulfillment", "state": "running" }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<Filter>) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let cursor = asked.cursor.clone();
    let (tasks, next) = lists::tasks_page(&api.shards, &asked.tasks()?, cursor.as_deref(), limit).await?;
    Ok(Json(Listed::continued(tasks, next)))
}

/// Show a task
///
/// With its steps: their states, why each is where it is, attempts, errors and results (as long as they have no more than a mebibyte altogether). It takes
/// the role reader.
#[utoipa::path(get, path = "/tasks/{id}", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), responses(
    (status = 200, description = "The task", body = Object, example = json!({
        "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "template": "order_fulfillment", "namespace": "fulfillment", "state": "running",
        "steps": [{ "name": "validate", "state": "complete", "attempt": 1, "result": { "units": 2 } }] })),
    ReadRefused))]
pub(super) async fn show(State(api): State<Api>, _: Reader, Part(id): Part<Uuid>) -> Outcome<Json<Value>> {
    Ok(Json(read::read_task(&api.shards.of_task(id).await?, id).await?))
}

/// Show why a task does not run
///
/// A sentence on the task (`step` is null), and one on each of its steps that neither runs nor is complete: what it waits for, or what became of it. It takes
/// the role reader.
#[utoipa::path(get, path = "/tasks/{id}/reasons", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), responses(
    (status = 200, description = "The sentences", body = Listed, example = json!({ "items": [{
        "step": "charge", "why": "It waits for a permit of the limit bank, 3rd in line; 5 of 5 are taken." }], "next": null })),
    ReadRefused))]
pub(super) async fn reasons(State(api): State<Api>, _: Reader, Part(id): Part<Uuid>) -> Outcome<Json<Listed>> {
    let db = api.shards.of_task(id).await?;
    let reasons = explain(&db, &read::read_task(&db, id).await?).await?;
    Ok(Json(Listed::whole(reasons.iter().map(|reason| json!(reason)).collect())))
}

/// How long to wait
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Patience {
    /// Seconds
    #[param(minimum = 0, maximum = 30, default = 30)]
    timeout: Option<f64>,
}

/// The state of a task
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskState {
    id: Uuid,
    /// It has ended where this is complete, failed, cancelled or discarded; blocked waits for a person
    state: String,
}

/// Wait for a task
///
/// Answers once the task has ended or is blocked, or the time is over; ask again then. It takes the role submitter, of any namespace: who knows a task's id
/// may know what becomes of it.
#[utoipa::path(get, path = "/tasks/{id}/wait", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id"), Patience), responses(
    (status = 200, description = "Its state", body = TaskState, example = json!({ "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "state": "complete" })),
    ReadRefused))]
pub(super) async fn wait(
    State(api): State<Api>,
    _: Submitter,
    Part(id): Part<Uuid>,
    Asked(asked): Asked<Patience>,
) -> Outcome<Json<TaskState>> {
    let timeout = asked.timeout.unwrap_or(MAX_WAIT);
    if !(0.0..=MAX_WAIT).contains(&timeout) {
        return Err(Problem::bad_request("timeout: expected 0 to 30"));
    }
    let db = api.shards.of_task(id).await?;
    let state = api.waiting.for_end(&api.shards, id, Duration::from_secs_f64(timeout)).await?;
    // Whoever has waited for a task looks at what came of it next.
    db.note_change();
    Ok(Json(TaskState { id, state }))
}

/// Show the result of a step
///
/// However large it is; null where the step is not complete. It takes the role reader.
#[utoipa::path(get, path = "/tasks/{id}/steps/{step}/result", tag = "tasks",
    params(("id" = Uuid, Path, description = "The task's id"), ("step" = String, Path, description = "The step's name")), responses(
    (status = 200, description = "The result", body = Value, example = json!({ "units": 2 })), ReadRefused))]
pub(super) async fn result(State(api): State<Api>, _: Reader, Part((id, step)): Part<(Uuid, String)>) -> Outcome<Json<Box<RawValue>>> {
    let db = known(&api, id).await?;
    let mut results = read::read_results(&db, id, None, &[step], None).await?;
    let json = results.pop().map_or("null".into(), |(_, json)| json);
    Ok(Json(
        RawValue::from_string(json).map_err(|error| Problem::invalid(error.to_string()))?,
    ))
}

/// Which children
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChildFilter {
    /// Only those that are dead
    #[serde(default)]
    dead: bool,
    /// `next` of the page before
    cursor: Option<i32>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

/// List the children of a step
///
/// The tasks that do the work of a step, in the order of its elements: the number of each (`item`), its id, state, and what came of it. It takes the role
/// reader.
#[utoipa::path(get, path = "/tasks/{id}/steps/{step}/children", tag = "tasks",
    params(("id" = Uuid, Path, description = "The task's id"), ("step" = String, Path, description = "The step's name"), ChildFilter), responses(
    (status = 200, description = "A page of children", body = Listed, example = json!({ "items": [{
        "item": 0, "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2c", "state": "complete", "result": 4, "error": null }], "next": "0" })),
    ReadRefused))]
pub(super) async fn children(
    State(api): State<Api>,
    _: Reader,
    Part((id, step)): Part<(Uuid, String)>,
    Asked(asked): Asked<ChildFilter>,
) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let page = Page {
        after: asked.cursor,
        limit,
        dead: asked.dead,
    };
    let db = known(&api, id).await?;
    let children = read_children(&db, id, None, &step, &page).await?;
    Ok(Json(Listed::until_none(
        children.iter().map(|child| json!(child)).collect(),
        "item",
    )))
}

/// List the family of a task
///
/// The task itself and the tasks below it, by generations (`depth`): the first 500, and of each parent the first 50. It takes the role reader.
#[utoipa::path(get, path = "/tasks/{id}/family", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), responses(
    (status = 200, description = "The family", body = Listed, example = json!({ "items": [{
        "id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2c", "parent": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "step": "pack", "item": 0, "depth": 1,
        "template": "pack_line", "state": "complete" }], "next": null })),
    ReadRefused))]
pub(super) async fn family(State(api): State<Api>, _: Reader, Part(id): Part<Uuid>) -> Outcome<Json<Listed>> {
    let db = known(&api, id).await?;
    Ok(Json(Listed::whole(read_family(&db, id).await?)))
}

/// Show what a task has published
///
/// What its handlers have said while they ran, by name. It takes the role reader.
#[utoipa::path(get, path = "/tasks/{id}/values", tag = "tasks", params(("id" = Uuid, Path, description = "The task's id")), responses(
    (status = 200, description = "The values", body = Object, example = json!({ "progress": 40 })), ReadRefused))]
pub(super) async fn values(State(api): State<Api>, _: Reader, Part(id): Part<Uuid>) -> Outcome<Json<Value>> {
    let db = known(&api, id).await?;
    Ok(Json(read_values(&db, id).await?))
}

/// The database that has a task. Errors: there is no such task.
pub(super) async fn known(api: &Api, id: Uuid) -> Outcome<Db> {
    let db = api.shards.of_task(id).await?;
    match read::task_states(&db, &[id]).await?.is_empty() {
        false => Ok(db),
        true => Err(Problem::not_found(format!("no task {id}"))),
    }
}

/// The namespace of a task. Errors: there is no such task.
pub(super) async fn namespace_of(api: &Api, id: Uuid) -> Outcome<String> {
    let task = read::read_task(&api.shards.of_task(id).await?, id).await?;
    Ok(task["namespace"].as_str().unwrap_or_default().to_owned())
}
