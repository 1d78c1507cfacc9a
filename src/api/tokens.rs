//! The tokens by which others use the API.

use axum::extract::State;
use axum::http::StatusCode;
use axum::Json;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::access::{Admin, As};
use super::extract::{Asked, Body, Part};
use super::listed::Listed;
use super::problem::{ChangeRefused, Outcome, ReadRefused};
use super::steering::{Done, Reason};
use super::Api;
use crate::engine::audit::Change;
use crate::engine::tokens::{create_token, list_tokens, revoke_token, Holder, NewToken, Role};

/// Which tokens
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Those that are revoked, or have expired, too
    #[serde(default)]
    all: bool,
}

/// List tokens
///
/// The newest 1,000, with when they were last used, as of some minute; never the tokens themselves. It takes the role admin.
#[utoipa::path(get, path = "/tokens", tag = "access", params(Filter), responses(
    (status = 200, description = "The tokens", body = Listed, example = json!({ "items": [{
        "name": "shop", "role": "submitter", "namespaces": ["shop"], "last_used_at": "2026-11-29T10:00:00Z" }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Admin, Asked(asked): Asked<Filter>) -> Outcome<Json<Listed>> {
    Ok(Json(Listed::whole(list_tokens(&api.registry().await?, asked.all).await?)))
}

/// A token to be created
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "shop", "role": "submitter", "namespaces": ["shop"] }))]
pub(super) struct CreateToken {
    /// By which it is listed and revoked, and which the record of changes has
    name: String,
    #[schema(value_type = String, pattern = "^(reader|submitter|operator|admin)$")]
    role: Role,
    /// Whose tasks a submitter may create; none: all
    namespaces: Option<Vec<String>>,
    /// When it ends; none: when it is revoked
    expires_at: Option<DateTime<Utc>>,
    /// For those who read the record
    why: Option<String>,
}

/// The token
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CreatedToken {
    /// It is kept nowhere, and cannot be shown again
    token: String,
}

/// Create a token
///
/// It is shown this once. It takes the role admin.
#[utoipa::path(post, path = "/tokens", tag = "access", request_body = CreateToken, responses(
    (status = 201, description = "The token", body = CreatedToken, example = json!({ "token": "tasker_5f0c…" })), ChangeRefused))]
pub(super) async fn create(
    State(api): State<Api>,
    As(caller): Admin,
    Body(given): Body<CreateToken>,
) -> Outcome<(StatusCode, Json<CreatedToken>)> {
    let change = Change {
        action: "token.create",
        object: Some(&given.name),
        why: given.why.as_deref(),
        details: Some(json!({ "role": given.role, "namespaces": given.namespaces, "expires_at": given.expires_at })),
        ..Change::default()
    };
    let new = NewToken {
        holder: Holder {
            name: given.name.clone(),
            role: given.role,
            namespaces: given.namespaces.clone(),
        },
        expires_at: given.expires_at,
    };
    let by = caller.by(None);
    let db = api.registry().await?;
    let create = async { Ok(create_token(&db, &new, &by.who).await?) };
    let token = caller.change(&db, change, create, |_| None).await?;
    Ok((StatusCode::CREATED, Json(CreatedToken { token })))
}

/// Revoke a token
///
/// It counts no more, from the next request on. It takes the role admin.
#[utoipa::path(post, path = "/tokens/{name}/revoke", tag = "access", params(("name" = String, Path, description = "Its name")), request_body = Reason,
    responses((status = 200, description = "It is revoked", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(super) async fn revoke(
    State(api): State<Api>,
    As(caller): Admin,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    let change = Change {
        action: "token.revoke",
        object: Some(&name),
        why: why.as_deref(),
        ..Change::default()
    };
    let by = caller.by(None);
    let db = api.registry().await?;
    let revoke = async { Ok(revoke_token(&db, &name, &by.who).await?) };
    caller.change(&db, change, revoke, |()| None).await?;
    Ok(Json(Done { done: true }))
}
