//! What was changed, by whom, from where and why.

use axum::extract::State;
use axum::Json;
use serde::Deserialize;
use utoipa::IntoParams;

use super::access::Admin;
use super::extract::Asked;
use super::listed::{limit, Listed};
use super::problem::{Outcome, ReadRefused};
use super::Api;
use crate::engine::audit::ChangeFilter;
use crate::engine::lists;

/// Which changes
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only those of this: a task's id, a template, a token's name
    object: Option<String>,
    /// Only those of this person, or token
    who: Option<String>,
    /// `next` of the page before
    cursor: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

/// List changes
///
/// Who has changed what through the API, from where, and why, the newest first. Each has its number (`id`), when (`at`), `who`, `via` (api, web or cli), from
/// which `address`, the `action`, its `object`, `why`, `details`, and whether it is `done` (null: it is under way, or nobody knows), or the `error` with
/// which it was refused. It takes the role admin.
#[utoipa::path(get, path = "/audit", tag = "access", params(Filter), responses(
    (status = 200, description = "A page of changes", body = Listed, example = json!({ "items": [{
        "id": 7, "at": "2026-11-29T10:00:00Z", "who": "ops", "via": "api", "address": "10.0.0.7", "action": "task.cancel",
        "object": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "why": "ordered twice", "details": null, "done": true, "error": null }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Admin, Asked(asked): Asked<Filter>) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let filter = ChangeFilter {
        before: None,
        object: asked.object,
        who: asked.who,
    };
    let (changes, next) = lists::changes_page(&api.shards, &filter, asked.cursor.as_deref(), limit).await?;
    Ok(Json(Listed::continued(changes, next)))
}
