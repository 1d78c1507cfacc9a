//! What runs, and what holds it back: queues, members, limits, pauses.

use axum::extract::State;
use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::ToSchema;

use super::access::{As, Operator, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{Listed, Paged};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::steering::Done;
use super::Api;
use crate::engine::audit::Change;
use crate::engine::pauses::{self, Pausable};
use crate::engine::{fleet, limits, repair};

/// Show the fleet
///
/// All that can be told of it at once: namespaces that are awake, members, limits, steps that no worker has a handler for, queues that cannot be worked
/// with. It takes the role reader.
#[utoipa::path(get, path = "/fleet", tag = "fleet", responses(
    (status = 200, description = "The fleet", body = Object, example = json!({ "namespaces": { "fulfillment": { "workers": 2 } }, "members": [], "asleep": 0 })),
    ReadRefused))]
pub(super) async fn whole(State(api): State<Api>, _: Reader) -> Outcome<Json<Value>> {
    Ok(Json(fleet::of_all(&api.shards).await?))
}

/// List queues
///
/// By namespace: what waits, and for how long, who works there, how fast it goes, and how many are dead. It takes the role reader.
#[utoipa::path(get, path = "/queues", tag = "fleet", params(Paged), responses(
    (status = 200, description = "A page of queues", body = Listed, example = json!({ "items": [{
        "namespace": "fulfillment", "queue": { "depth": 3 }, "workers": 2, "dead_letters": { "depth": 0 } }], "next": null })),
    ReadRefused))]
pub(super) async fn queues(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let mut fleet = fleet::of_all(&api.shards).await?;
    let all = fleet["namespaces"].as_object_mut().map(std::mem::take).unwrap_or_default();
    let named = |(name, mut of): (String, Value)| {
        of["namespace"] = json!(name);
        of
    };
    let all = all.into_iter().map(named).collect();
    Ok(Json(Listed::of_all(all, &asked, &["namespace"])?))
}

/// Which queues
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "namespaces": ["fulfillment"], "why": "its table was dropped" }))]
pub(crate) struct BrokenQueues {
    /// Of these namespaces; none: all that lack something
    #[serde(default)]
    #[schema(max_items = 1000)]
    namespaces: Vec<String>,
    /// For those who read the record
    why: Option<String>,
}

/// Repair queues
///
/// What they lack is made, or they are made anew, and the messages and letters are sent again that steps have lost. It takes the role operator.
#[utoipa::path(post, path = "/queues/repair", tag = "fleet", request_body = BrokenQueues, responses(
    (status = 200, description = "What was wrong with them", body = Listed, example = json!({ "items": [{
        "namespace": "fulfillment", "found": "the table pgmq.q_fulfillment_queue is missing", "messages": 3, "letters": 0 }], "next": null })),
    ChangeRefused))]
pub(super) async fn repair(State(api): State<Api>, As(caller): Operator, Body(given): Body<BrokenQueues>) -> Outcome<Json<Listed>> {
    if given.namespaces.len() > 1_000 {
        return Err(Problem::invalid("namespaces: expected 1000 at most"));
    }
    let mut repaired = Vec::new();
    for (db, namespaces) in api.shards.of_namespaces_or_all(given.namespaces).await? {
        let change = Change {
            action: "queues.repair",
            why: given.why.as_deref(),
            details: Some(json!({ "namespaces": namespaces })),
            ..Change::default()
        };
        let repair = async { Ok(repair::repair(&db, namespaces).await?) };
        repaired.extend(caller.change(&db, change, repair, |_| None).await?);
    }
    Ok(Json(Listed::whole(repaired.iter().map(|queue| json!(queue)).collect())))
}

/// List members
///
/// The orchestrators and workers that are there, with what they last said of themselves. It takes the role reader.
#[utoipa::path(get, path = "/members", tag = "fleet", params(Paged), responses(
    (status = 200, description = "A page of members", body = Listed, example = json!({ "items": [{
        "kind": "worker", "name": "web-1:4711", "namespaces": ["fulfillment"] }], "next": null })),
    ReadRefused))]
pub(super) async fn members(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let mut fleet = fleet::overview_of_all(&api.shards).await?;
    let all = fleet["members"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(Json(Listed::of_all(all, &asked, &["kind", "name"])?))
}

/// List limits
///
/// By namespace and name: how many permits are granted, how many steps wait, and the circuit breakers that are not closed. It takes the role reader.
#[utoipa::path(get, path = "/limits", tag = "fleet", params(Paged), responses(
    (status = 200, description = "A page of limits", body = Listed, example = json!({ "items": [{
        "namespace": "fulfillment", "name": "bank", "granted": 2, "waiting": 5, "breakers": [] }], "next": null })),
    ReadRefused))]
pub(super) async fn limits(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let all = api.shards.list(|db| async move { limits::list(&db).await }).await?;
    Ok(Json(Listed::of_all(all, &asked, &["namespace", "name"])?))
}

/// Which breakers
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "key": null, "why": "the bank answers again" }))]
pub(crate) struct ResetBreakers {
    /// Only that of this key; none: all
    key: Option<String>,
    /// For those who read the record
    why: Option<String>,
}

/// How many
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClosedBreakers {
    /// Breakers that were not closed, and are now
    closed: i32,
}

/// Close the breakers of a limit
///
/// What waits for them goes on. It takes the role operator.
#[utoipa::path(post, path = "/limits/{namespace}/{name}/reset", tag = "fleet",
    params(("namespace" = String, Path, description = "Its namespace"), ("name" = String, Path, description = "Its name")), request_body = ResetBreakers,
    responses((status = 200, description = "How many were not closed", body = ClosedBreakers, example = json!({ "closed": 1 })), ChangeRefused))]
pub(crate) async fn reset(
    State(api): State<Api>,
    As(caller): Operator,
    Part((namespace, name)): Part<(String, String)>,
    Body(given): Body<ResetBreakers>,
) -> Outcome<Json<ClosedBreakers>> {
    let object = format!("{namespace}/{name}");
    let change = Change {
        action: "limit.reset",
        object: Some(&object),
        why: given.why.as_deref(),
        details: given.key.as_ref().map(|key| json!({ "key": key })),
        ..Change::default()
    };
    let db = api.shards.of_namespace(&namespace).await?;
    let reset = async { Ok(limits::reset(&db, &namespace, &name, given.key.as_deref()).await?) };
    let closed = caller.change(&db, change, reset, |_| None).await?;
    Ok(Json(ClosedBreakers { closed }))
}

/// List pauses
///
/// Whatever is paused: by whom, why, and how many steps are held back. It takes the role reader.
#[utoipa::path(get, path = "/pauses", tag = "fleet", params(Paged), responses(
    (status = 200, description = "A page of pauses", body = Listed, example = json!({ "items": [{
        "kind": "namespace", "name": "fulfillment", "who": "ada", "why": "the bank is away", "held": 12 }], "next": null })),
    ReadRefused))]
pub(super) async fn pauses(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let all = api.shards.list(|db| async move { pauses::list(&db).await }).await?;
    Ok(Json(Listed::of_all(all, &asked, &["kind", "name"])?))
}

/// What to pause, or to resume
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "kind": "namespace", "name": "fulfillment", "why": "the bank is away" }))]
pub(crate) struct Pausing {
    #[schema(value_type = String, pattern = "^(task|template|namespace|handler)$")]
    kind: Pausable,
    /// The task's id, a template (namespace/name), a namespace, or a handler (namespace/handler)
    name: String,
    /// For those who read the record
    why: Option<String>,
}

impl Pausing {
    fn change<'c>(&'c self, action: &'c str) -> Change<'c> {
        Change {
            action,
            object: Some(&self.name),
            why: self.why.as_deref(),
            ..Change::default()
        }
    }
}

/// Pause
///
/// Nothing new begins of a task, a template, a namespace or a handler; what runs ends. It takes the role operator.
#[utoipa::path(post, path = "/pauses", tag = "fleet", request_body = Pausing, responses(
    (status = 200, description = "Whether this call paused it", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn pause(State(api): State<Api>, As(caller): Operator, Body(what): Body<Pausing>) -> Outcome<Json<Done>> {
    let by = caller.by(what.why.as_deref());
    let db = pauses::home_of(&api.shards, what.kind, &what.name).await?;
    let pause = async { Ok(pauses::pause(&db, what.kind, &what.name, &by).await?) };
    let done = caller.change(&db, what.change("pause"), pause, |_| None).await?;
    Ok(Json(Done { done }))
}

/// Resume
///
/// What was paused goes on where it was. It takes the role operator.
#[utoipa::path(post, path = "/pauses/resume", tag = "fleet", request_body = Pausing, responses(
    (status = 200, description = "Whether it was paused", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(crate) async fn resume(State(api): State<Api>, As(caller): Operator, Body(what): Body<Pausing>) -> Outcome<Json<Done>> {
    let db = pauses::home_of(&api.shards, what.kind, &what.name).await?;
    let resume = async { Ok(pauses::resume(&db, what.kind, &what.name).await?) };
    let done = caller.change(&db, what.change("resume"), resume, |_| None).await?;
    Ok(Json(Done { done }))
}
