//! Shards: the databases that tasks are in.

use axum::extract::State;
use axum::Json;
use serde_json::json;

use super::access::Operator;
use super::listed::Listed;
use super::problem::{Outcome, ReadRefused};
use super::Api;
use crate::engine::shards;

/// List shards
///
/// Each is one PostgreSQL: the servers that it may be on, and which of them is the primary now. It takes the role operator.
#[utoipa::path(get, path = "/shards", tag = "fleet", responses(
    (status = 200, description = "The shards", body = Listed, example = json!({ "items": [{
        "name": "default", "number": 0, "region": null, "error": null, "servers": ["db-1:5432", "db-2:5432"], "primary": "db-1:5432", "namespaces": 3 }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Operator) -> Outcome<Json<Listed>> {
    let all = shards::list(&api.shards).await;
    Ok(Json(Listed::whole(all.iter().map(|shard| json!(shard)).collect())))
}
