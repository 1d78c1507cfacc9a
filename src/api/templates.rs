//! Templates and their versions.

use axum::extract::State;
use axum::Json;
use serde::Deserialize;
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};

use super::access::{Admin, As, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{Listed, Paged};
use super::problem::{ChangeRefused, Outcome, ReadRefused};
use super::Api;
use crate::engine::audit::Change;
use crate::engine::{read, register};
use crate::error::Error;
use crate::template::difference::difference;
use crate::template::Template;

/// List templates
///
/// By namespace and name: each with its current version, and how many steps and versions it has. It takes the role reader.
#[utoipa::path(get, path = "/templates", tag = "templates", params(Paged), responses(
    (status = 200, description = "A page of templates", body = Listed, example = json!({ "items": [{
        "namespace": "fulfillment", "name": "order_fulfillment", "version": "1.0", "steps": 4, "versions": 2 }], "next": null })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let all = api.shards.list(|db| async move { read::list_templates(&db).await }).await?;
    Ok(Json(Listed::of_all(all, &asked, &["namespace", "name"])?))
}

/// A template to be registered
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "source": "name: order\nnamespace: fulfillment\nsteps:\n  - { name: validate, handler: ValidateOrder }\n", "why": "release 12" }))]
pub(super) struct NewTemplate {
    /// The file's text: YAML or JSON
    source: String,
    /// The file's name, for errors
    #[serde(default = "unnamed")]
    origin: String,
    /// For those who read the record
    why: Option<String>,
}

fn unnamed() -> String {
    "source".into()
}

/// Register a template
///
/// It is the current version from now on, also if it was there before; tasks that there are keep theirs. It takes the role admin.
#[utoipa::path(post, path = "/templates", tag = "templates", request_body = NewTemplate, responses(
    (status = 200, description = "Its version, and whether that is new", body = Object, example = json!({
        "namespace": "fulfillment", "name": "order", "version": "3", "created": true })),
    ChangeRefused))]
pub(super) async fn register(State(api): State<Api>, As(caller): Admin, Body(given): Body<NewTemplate>) -> Outcome<Json<Value>> {
    let template = Template::parse(&given.source, &given.origin).map_err(Error::from)?;
    let name = format!("{}/{}", template.namespace, template.name);
    let change = Change {
        action: "templates.register",
        object: Some(&name),
        why: given.why.as_deref(),
        ..Change::default()
    };
    let db = api.shards.of_definition(&template).await?;
    let doing = async { Ok(register::register(&db, &template).await?) };
    let registered = caller.change(&db, change, doing, |_| None).await?;
    Ok(Json(
        json!({ "namespace": template.namespace, "name": template.name, "version": registered.version, "created": registered.created }),
    ))
}

/// List the versions of a template
///
/// The newest 1,000, the newest first. It takes the role reader.
#[utoipa::path(get, path = "/templates/{namespace}/{name}/versions", tag = "templates",
    params(("namespace" = String, Path, description = "Its namespace"), ("name" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The versions", body = Listed, example = json!({ "items": [{
        "version": "2.0", "registered_at": "2026-11-29T10:00:00Z", "current": true, "steps": 4 }], "next": null })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn versions(State(api): State<Api>, _: Reader, Part((namespace, name)): Part<(String, String)>) -> Outcome<Json<Listed>> {
    let versions = read::list_template_versions(&api.shards.of_namespace(&namespace).await?, &format!("{namespace}/{name}")).await?;
    Ok(Json(Listed::whole(versions)))
}

/// Which versions
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Versions {
    /// The earlier one
    from: String,
    /// The later one; none: the current one
    to: Option<String>,
}

/// Compare two versions of a template
///
/// Which steps came (`added`), went (`removed`) and changed, field by field, before and after; and what else did. It takes the role reader.
#[utoipa::path(get, path = "/templates/{namespace}/{name}/diff", tag = "templates",
    params(("namespace" = String, Path, description = "Its namespace"), ("name" = String, Path, description = "Its name"), Versions), responses(
    (status = 200, description = "How they differ", body = Object, example = json!({
        "added": ["bill"], "removed": [], "changed": { "send": { "depends_on": [["pack"], ["check"]] } }, "template": {} })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn diff(
    State(api): State<Api>,
    _: Reader,
    Part((namespace, name)): Part<(String, String)>,
    Asked(asked): Asked<Versions>,
) -> Outcome<Json<Value>> {
    let template = format!("{namespace}/{name}");
    let db = api.shards.of_namespace(&namespace).await?;
    let from = read::read_template(&db, &template, Some(&asked.from)).await?;
    let to = read::read_template(&db, &template, asked.to.as_deref()).await?;
    Ok(Json(json!(difference(&from, &to))))
}

/// Which version
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Version {
    /// None: the current one
    version: Option<String>,
}

/// Show a template
///
/// Its definition, in its current version or another. It takes the role reader.
#[utoipa::path(get, path = "/templates/{namespace}/{name}", tag = "templates",
    params(("namespace" = String, Path, description = "Its namespace"), ("name" = String, Path, description = "Its name"), Version), responses(
    (status = 200, description = "The definition", body = Object, example = json!({
        "namespace": "fulfillment", "name": "order_fulfillment", "version": "1.0", "steps": [{ "name": "validate", "handler": "ValidateOrder" }] })),
    (status = 304, description = "It is what the header If-None-Match names by its ETag"),
    ReadRefused))]
pub(super) async fn show(
    State(api): State<Api>,
    _: Reader,
    Part((namespace, name)): Part<(String, String)>,
    Asked(asked): Asked<Version>,
) -> Outcome<Json<Value>> {
    let db = api.shards.of_namespace(&namespace).await?;
    Ok(Json(
        read::read_template(&db, &format!("{namespace}/{name}"), asked.version.as_deref()).await?,
    ))
}
