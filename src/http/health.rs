//! What probes, metrics and autoscalers are told.

use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{json, Value};

use crate::health::Health;

pub(super) fn router(health: Health) -> Router {
    Router::new()
        .route("/health", get(live))
        .route("/health/live", get(live))
        .route("/health/detailed", get(detailed))
        .route("/ready", get(ready))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/capacity", get(capacity))
        .route("/capacity/{namespace}", get(capacity_of))
        .with_state(health)
}

async fn live(State(health): State<Health>) -> impl IntoResponse {
    let live = health.live().await;
    answer(live.healthy, live)
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let ready = health.ready().await;
    answer(ready.ready, ready)
}

async fn detailed(State(health): State<Health>) -> Json<Value> {
    Json(health.detailed().await)
}

/// What each namespace needs, for autoscalers.
async fn capacity(State(health): State<Health>) -> impl IntoResponse {
    match health.capacity().await {
        Ok(of) => (StatusCode::OK, Json(json!(of))),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))),
    }
}

async fn capacity_of(State(health): State<Health>, Path(namespace): Path<String>) -> impl IntoResponse {
    match health.capacity().await {
        Ok(mut of) => match of.remove(&namespace) {
            Some(of) => (StatusCode::OK, Json(of)),
            None => (StatusCode::NOT_FOUND, Json(json!({ "error": format!("no namespace {namespace}") }))),
        },
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error }))),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], health.metrics().await)
}

/// 200 when all is well; 503 otherwise, which is what probes go by.
fn answer<T: Serialize>(well: bool, report: T) -> (StatusCode, Json<T>) {
    let status = match well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report))
}
