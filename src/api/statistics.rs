//! Statistics: series for charts.

use axum::extract::State;
use axum::Json;
use serde::Deserialize;
use utoipa::IntoParams;

use super::access::Reader;
use super::extract::Asked;
use super::listed::Listed;
use super::problem::{Outcome, Problem, ReadRefused};
use super::Api;
use crate::engine::lists;

/// Which minutes
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Minutes {
    /// None: all
    namespace: Option<String>,
    /// How many
    #[param(minimum = 1, maximum = 120, default = 60)]
    minutes: Option<i32>,
}

/// Show what was done in each minute
///
/// Of the last hour or two, the oldest first: how many steps were completed, how many attempts failed, and how many seconds handlers took altogether. The
/// newest minute or two are not known yet. It takes the role reader.
#[utoipa::path(get, path = "/statistics", tag = "fleet", params(Minutes), responses(
    (status = 200, description = "The minutes", body = Listed, example = json!({ "items": [{
        "at": "2026-11-29T12:00:00+00:00", "completed": 1200, "failed": 3, "seconds": 61.5 }], "next": null })),
    ReadRefused))]
pub(super) async fn minutes(State(api): State<Api>, _: Reader, Asked(asked): Asked<Minutes>) -> Outcome<Json<Listed>> {
    let minutes = asked.minutes.unwrap_or(60);
    if !(1..=120).contains(&minutes) {
        return Err(Problem::bad_request("minutes: expected 1 to 120"));
    }
    Ok(Json(Listed::whole(
        lists::minutes(&api.shards, minutes, asked.namespace.as_deref()).await?,
    )))
}
