//! The configuration that all processes share.

use std::time::Duration;

use axum::extract::State;
use axum::Json;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::access::{Admin, As, Caller, Reader};
use super::extract::{Asked, Body};
use super::listed::{limit, Listed, Newest};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::Api;
use crate::config::distributed::{self, Place};
use crate::config::drift;
use crate::engine::audit::Change;
use crate::engine::fleet;

/// Show the configuration
///
/// The newest version of what is set for running processes: for all (`overrides`), by namespace and by instance; who has changed it, and why. It takes the
/// role reader.
#[utoipa::path(get, path = "/configuration", tag = "configuration", responses(
    (status = 200, description = "The newest version", body = Object, example = json!({
        "version": 3, "at": "2026-11-29T10:00:00Z", "who": "ada", "why": "more at once", "overrides": { "worker": { "threads": 20 } } })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn show(State(api): State<Api>, _: Reader) -> Outcome<Json<Value>> {
    Ok(Json(json!(api.coordinator.get().await?)))
}

/// List versions of the configuration
///
/// The newest first, each whole. It takes the role reader.
#[utoipa::path(get, path = "/configuration/versions", tag = "configuration", params(Newest), responses(
    (status = 200, description = "The versions", body = Listed, example = json!({ "items": [{
        "version": 3, "at": "2026-11-29T10:00:00Z", "who": "ada", "why": "more at once", "overrides": { "worker": { "threads": 20 } } }], "next": null })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn versions(State(api): State<Api>, _: Reader, Asked(asked): Asked<Newest>) -> Outcome<Json<Listed>> {
    let versions = api.coordinator.history(limit(asked.limit)?.into()).await?;
    Ok(Json(Listed::whole(versions.iter().map(|version| json!(version)).collect())))
}

/// How long
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Grace {
    /// For how many seconds members may differ, as in a rolling deployment
    #[param(minimum = 0, maximum = 86_400, default = 120)]
    grace: Option<u32>,
}

/// List members that have drifted
///
/// Those whose settings differ from those of others like them. It takes the role reader.
#[utoipa::path(get, path = "/configuration/drift", tag = "configuration", params(Grace), responses(
    (status = 200, description = "The members", body = Listed, example = json!({ "items": [{
        "kind": "worker", "name": "web-1:4711", "seconds": 300.0, "keys": { "worker.threads": [10, 20] } }], "next": null })),
    ReadRefused))]
pub(super) async fn drift(State(api): State<Api>, _: Reader, Asked(asked): Asked<Grace>) -> Outcome<Json<Listed>> {
    let fleet = fleet::overview_of_all(&api.shards).await?;
    let members = fleet["members"].as_array().map_or(&[][..], Vec::as_slice);
    let grace = match asked.grace {
        None => drift::GRACE,
        Some(seconds @ 0..=86_400) => Duration::from_secs(seconds.into()),
        Some(_) => return Err(Problem::bad_request("grace: expected 0 to 86400")),
    };
    let found = drift::drift(members, grace);
    Ok(Json(Listed::whole(found.iter().map(|member| json!(member)).collect())))
}

/// A setting
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "setting": "worker.threads", "value": 20, "why": "more at once" }))]
pub(crate) struct SetSetting {
    /// Such as orchestrator.batch; of a namespace such as max_attempts
    setting: String,
    /// null takes the setting back, so that what is farther counts again
    value: Value,
    /// This namespace's rules; * for all that have none of their own
    namespace: Option<String>,
    /// Of the process with this ORCHESTRATOR_ID, or on this host
    instance: Option<String>,
    /// For those who read the record
    why: Option<String>,
}

/// Change a setting
///
/// Of all processes, of those of a namespace or an instance, while they run. It takes the role admin.
#[utoipa::path(post, path = "/configuration/set", tag = "configuration", request_body = SetSetting, responses(
    (status = 200, description = "The new version", body = Object, example = json!({
        "version": 4, "at": "2026-11-29T10:00:00Z", "who": "ada", "why": "more at once", "overrides": { "worker": { "threads": 20 } } })),
    ChangeRefused))]
pub(crate) async fn set(State(api): State<Api>, As(caller): Admin, Body(given): Body<SetSetting>) -> Outcome<Json<Value>> {
    let place = match (given.namespace.as_deref(), given.instance.as_deref()) {
        (Some(namespace), _) => Place::Namespace(namespace),
        (_, Some(instance)) => Place::Instance(instance),
        _ => Place::Everywhere,
    };
    let path = place.path(&given.setting);
    let change = Change {
        action: "configuration.set",
        object: Some(&given.setting),
        why: given.why.as_deref(),
        details: Some(json!({ "value": given.value, "namespace": given.namespace, "instance": given.instance })),
        ..Change::default()
    };
    edit(&api, &caller, change, |overrides| {
        distributed::set(overrides, &path, given.value.clone())
    })
    .await
}

async fn edit(api: &Api, caller: &Caller, change: Change<'_>, edit: impl Fn(&mut Value) + Sync) -> Outcome<Json<Value>> {
    let author = caller.author(change.why);
    let doing = async {
        let edit = |overrides: &mut Value| {
            edit(overrides);
            Ok(())
        };
        Ok(distributed::change(&*api.coordinator, &author, edit).await?)
    };
    let version = caller.change(&api.registry().await?, change, doing, |_| None).await?;
    Ok(Json(json!(version)))
}

/// All that is set
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "overrides": { "worker": { "threads": 20 } }, "why": "as in the repository" }))]
pub(crate) struct Apply {
    /// As `GET /configuration` has them: settings, `namespace_defaults`, `namespaces`, `instances`
    #[schema(value_type = Object)]
    overrides: Map<String, Value>,
    /// For those who read the record
    why: Option<String>,
}

/// Apply a configuration
///
/// In place of all that was set for running processes. It takes the role admin.
#[utoipa::path(post, path = "/configuration/apply", tag = "configuration", request_body = Apply, responses(
    (status = 200, description = "The new version", body = Object, example = json!({
        "version": 6, "at": "2026-11-29T10:00:00Z", "who": "ada", "why": "as in the repository", "overrides": { "worker": { "threads": 20 } } })),
    ChangeRefused))]
pub(crate) async fn apply(State(api): State<Api>, As(caller): Admin, Body(given): Body<Apply>) -> Outcome<Json<Value>> {
    let change = Change {
        action: "configuration.apply",
        why: given.why.as_deref(),
        details: Some(json!({ "overrides": given.overrides })),
        ..Change::default()
    };
    edit(&api, &caller, change, |overrides| *overrides = json!(given.overrides)).await
}

/// Which version
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "version": 3, "why": "it was better" }))]
pub(crate) struct Rollback {
    version: i64,
    /// For those who read the record
    why: Option<String>,
}

/// Roll back the configuration
///
/// An earlier version is in force again, as a new one. It takes the role admin.
#[utoipa::path(post, path = "/configuration/rollback", tag = "configuration", request_body = Rollback, responses(
    (status = 200, description = "The new version", body = Object, example = json!({
        "version": 5, "at": "2026-11-29T10:00:00Z", "who": "ada", "why": "it was better", "overrides": {} })),
    ChangeRefused))]
pub(crate) async fn rollback(State(api): State<Api>, As(caller): Admin, Body(given): Body<Rollback>) -> Outcome<Json<Value>> {
    let earlier = distributed::earlier(&*api.coordinator, given.version).await?;
    let change = Change {
        action: "configuration.rollback",
        why: given.why.as_deref(),
        details: Some(json!({ "version": given.version })),
        ..Change::default()
    };
    edit(&api, &caller, change, |overrides| overrides.clone_from(&earlier)).await
}
