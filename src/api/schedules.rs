//! Schedules.

use axum::extract::State;
use axum::http::StatusCode;
use axum::Json;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::access::{As, Caller, Operator, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{Listed, Paged};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::steering::{Done, Reason};
use super::Api;
use crate::db::Db;
use crate::engine::audit::Change;
use crate::engine::schedules;
use crate::schedule::Schedule;

/// How many of its next and last times a schedule shows.
const TIMES: i32 = 10;

/// List schedules
///
/// By name: with their definitions, next times, and what became of the last ones. It takes the role reader.
#[utoipa::path(get, path = "/schedules", tag = "schedules", params(Paged), responses(
    (status = 200, description = "A page of schedules", body = Listed, example = json!({ "items": [{
        "name": "nightly", "template": "reports/nightly", "definition": { "cron": "0 3 * * *" }, "next_at": "2026-11-30T03:00:00Z" }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let all = api.shards.list(|db| async move { schedules::list(&db).await }).await?;
    Ok(Json(Listed::of_all(all, &asked, &["name"])?))
}

/// Show a schedule
///
/// With its next times, and what became of the last ones. It takes the role reader.
#[utoipa::path(get, path = "/schedules/{name}", tag = "schedules", params(("name" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The schedule", body = Object, example = json!({
        "name": "nightly", "template": "reports/nightly", "definition": { "cron": "0 3 * * *" }, "next": ["2026-11-30T03:00:00Z"] })),
    ReadRefused))]
pub(super) async fn show(State(api): State<Api>, _: Reader, Part(name): Part<String>) -> Outcome<Json<Value>> {
    Ok(Json(find(&api, &name).await?.1))
}

/// It, and the database that has it. Errors: none has.
pub(crate) async fn find(api: &Api, name: &str) -> Outcome<(Db, Value)> {
    Ok(schedules::find(&api.shards, name, TIMES).await?)
}

/// A schedule to be created, or changed
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "template": "reports/nightly", "definition": { "cron": "0 3 * * *", "time_zone": "Europe/Berlin" } }))]
pub(super) struct PutSchedule {
    /// Of whose tasks: name, or namespace/name
    template: String,
    /// cron and time_zone, or every; jitter, overlap, catch_up, starts_at, ends_at, input, priority and version (docs/schedules.md)
    #[schema(value_type = Object)]
    definition: Value,
    /// For those who read the record
    why: Option<String>,
}

/// What became of it
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SchedulePut {
    /// created, changed or unchanged
    outcome: String,
}

/// Create or change a schedule
///
/// Its old form never begins anything from then on. It takes the role operator.
#[utoipa::path(put, path = "/schedules/{name}", tag = "schedules", params(("name" = String, Path, description = "Its name")), request_body = PutSchedule,
    responses((status = 200, description = "What became of it", body = SchedulePut, example = json!({ "outcome": "created" })), ChangeRefused))]
pub(super) async fn put(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(given): Body<PutSchedule>,
) -> Outcome<Json<SchedulePut>> {
    let schedule = Schedule::parse(&given.definition).map_err(|problem| Problem::invalid(format!("definition: {problem}")))?;
    let change = Change {
        details: Some(json!({ "template": given.template, "definition": given.definition })),
        ..Change::of("schedule.put", &name, given.why.as_deref())
    };
    let db = schedules::home_for(&api.shards, &name, &given.template).await?;
    let put = async { Ok(schedules::put(&db, &name, &given.template, &schedule).await?) };
    let outcome = caller.change(&db, change, put, |_| None).await?;
    Ok(Json(SchedulePut { outcome }))
}

/// Why
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Why {
    /// For those who read the record
    pub(super) why: Option<String>,
}

/// Delete a schedule
///
/// What it began goes on. It takes the role operator.
#[utoipa::path(delete, path = "/schedules/{name}", tag = "schedules", params(("name" = String, Path, description = "Its name"), Why), responses(
    (status = 200, description = "It is deleted", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn delete(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Asked(Why { why }): Asked<Why>,
) -> Outcome<Json<Done>> {
    let (db, _) = find(&api, &name).await?;
    let delete = async { Ok(schedules::delete(&db, &name).await?) };
    caller
        .change(&db, Change::of("schedule.delete", &name, why.as_deref()), delete, |()| None)
        .await?;
    Ok(Json(Done { done: true }))
}

async fn pausing(api: &Api, caller: &Caller, name: &str, paused: bool, why: Option<&str>) -> Outcome<Json<Done>> {
    let action = if paused { "schedule.pause" } else { "schedule.resume" };
    let by = caller.by(why);
    let (db, _) = find(api, name).await?;
    let pause = async { Ok(schedules::pause(&db, name, paused, &by.who, why).await?) };
    caller.change(&db, Change::of(action, name, why), pause, |()| None).await?;
    Ok(Json(Done { done: true }))
}

/// Pause a schedule
///
/// It begins nothing. It takes the role operator.
#[utoipa::path(post, path = "/schedules/{name}/pause", tag = "schedules", params(("name" = String, Path, description = "Its name")),
    request_body = Reason, responses((status = 200, description = "It is paused", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn pause(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    pausing(&api, &caller, &name, true, why.as_deref()).await
}

/// Resume a schedule
///
/// What would have been meanwhile does not begin. It takes the role operator.
#[utoipa::path(post, path = "/schedules/{name}/resume", tag = "schedules", params(("name" = String, Path, description = "Its name")),
    request_body = Reason, responses((status = 200, description = "It goes on", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn resume(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    pausing(&api, &caller, &name, false, why.as_deref()).await
}

/// The tasks that began
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TasksBegan {
    pub(crate) tasks: Vec<Uuid>,
}

/// Trigger a schedule
///
/// A task of it begins now, beside what runs. It takes the role operator.
#[utoipa::path(post, path = "/schedules/{name}/trigger", tag = "schedules", params(("name" = String, Path, description = "Its name")),
    request_body = Reason, responses((status = 201, description = "The task", body = TasksBegan, example = json!({
        "tasks": ["0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b"] })), ChangeRefused))]
pub(crate) async fn trigger(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<(StatusCode, Json<TasksBegan>)> {
    let (db, _) = find(&api, &name).await?;
    let trigger = async { Ok(schedules::trigger(&db, &name).await?) };
    let tasks = caller
        .change(&db, Change::of("schedule.trigger", &name, why.as_deref()), trigger, |_| None)
        .await?;
    Ok((StatusCode::CREATED, Json(TasksBegan { tasks })))
}

/// Which times
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "from": "2026-11-01T00:00:00Z", "until": "2026-11-08T00:00:00Z" }))]
pub(crate) struct Backfill {
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    /// For those who read the record
    why: Option<String>,
}

/// Catch up a schedule
///
/// A task begins for each of its times that lie back, beside what runs, but for those that have had one; 10,000 of them at most. It takes the role operator.
#[utoipa::path(post, path = "/schedules/{name}/backfill", tag = "schedules", params(("name" = String, Path, description = "Its name")),
    request_body = Backfill, responses((status = 201, description = "The tasks", body = TasksBegan, example = json!({
        "tasks": ["0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b"] })), ChangeRefused))]
pub(crate) async fn backfill(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(given): Body<Backfill>,
) -> Outcome<(StatusCode, Json<TasksBegan>)> {
    let change = Change {
        details: Some(json!({ "from": given.from, "until": given.until })),
        ..Change::of("schedule.backfill", &name, given.why.as_deref())
    };
    let (db, _) = find(&api, &name).await?;
    let backfill = async { Ok(schedules::backfill(&db, &name, given.from, given.until).await?) };
    let tasks = caller.change(&db, change, backfill, |_| None).await?;
    Ok((StatusCode::CREATED, Json(TasksBegan { tasks })))
}
