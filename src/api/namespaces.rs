//! Namespaces and their rules.

use axum::extract::State;
use axum::Json;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use utoipa::ToSchema;

use super::access::{Admin, As, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{Listed, Paged};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::Api;
use crate::config::Rules;
use crate::engine::audit::Change;
use crate::engine::namespaces;

/// List namespaces
///
/// By name, with their rules. It takes the role reader.
#[utoipa::path(get, path = "/namespaces", tag = "namespaces", params(Paged), responses(
    (status = 200, description = "A page of namespaces", body = Listed, example = json!({ "items": [{ "name": "fulfillment", "max_attempts": 5 }], "next": null })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let all = api.shards.list(|db| async move { namespaces::list(&db).await }).await?;
    Ok(Json(Listed::of_all(all, &asked, &["name"])?))
}

/// How many are created at once.
const MOST: usize = 100;

/// Namespaces to be
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "names": ["fulfillment"], "why": "a new team" }))]
pub(super) struct NewNamespaces {
    /// Each of a to z, 0 to 9 and _, at most 37 of them
    #[schema(min_items = 1, max_items = 100)]
    names: Vec<String>,
    /// For those who read the record
    why: Option<String>,
}

/// Create namespaces
///
/// With their queues, where they are missing. It takes the role admin.
#[utoipa::path(post, path = "/namespaces", tag = "namespaces", request_body = NewNamespaces, responses(
    (status = 200, description = "The namespaces, with their rules", body = Listed, example = json!({ "items": [{ "name": "fulfillment", "max_attempts": 5 }], "next": null })),
    ChangeRefused))]
pub(super) async fn create(State(api): State<Api>, As(caller): Admin, Body(given): Body<NewNamespaces>) -> Outcome<Json<Listed>> {
    if !(1..=MOST).contains(&given.names.len()) {
        return Err(Problem::invalid(format!("names: expected 1 to {MOST}")));
    }
    let change = Change {
        action: "namespaces.create",
        why: given.why.as_deref(),
        details: Some(json!({ "names": given.names })),
        ..Change::default()
    };
    let mut created = Vec::new();
    for (db, names) in api.shards.of_namespaces(given.names.clone()).await? {
        let doing = async { Ok(namespaces::create(&db, &names).await?) };
        created.extend(caller.change(&db, change.clone(), doing, |_| None).await?);
    }
    Ok(Json(Listed::whole(created)))
}

/// Rules of a namespace
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "rules": { "max_attempts": 8, "base_seconds": 2.0 }, "why": "the bank is slow" }))]
pub(super) struct SetRules {
    /// Those that change, as in tasker.yml below `namespaces`
    #[schema(value_type = Object)]
    rules: Map<String, Value>,
    /// For those who read the record
    why: Option<String>,
}

/// Change the rules of a namespace
///
/// Also for tasks that are under way, as a new version of the configuration. It takes the role admin.
#[utoipa::path(post, path = "/namespaces/{namespace}/rules", tag = "namespaces",
    params(("namespace" = String, Path, description = "Its name")), request_body = SetRules, responses(
    (status = 200, description = "The namespace, with its rules", body = Object, example = json!({ "name": "fulfillment", "max_attempts": 8, "base_seconds": 2.0 })),
    ChangeRefused))]
pub(super) async fn set(
    State(api): State<Api>,
    As(caller): Admin,
    Part(name): Part<String>,
    Body(given): Body<SetRules>,
) -> Outcome<Json<Value>> {
    let rules: Rules = serde_json::from_value(json!(given.rules)).map_err(|error| Problem::invalid(format!("rules: {error}")))?;
    let change = Change {
        action: "namespaces.rules",
        object: Some(&name),
        why: given.why.as_deref(),
        details: Some(json!(given.rules)),
        ..Change::default()
    };
    let author = caller.author(change.why);
    let db = api.shards.of_namespace(&name).await?;
    let doing = async { Ok(namespaces::set(&db, &*api.coordinator, &name, &rules, &author).await?) };
    Ok(Json(caller.change(&db, change, doing, |_| None).await?))
}
