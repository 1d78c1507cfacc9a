//! Signing in with a token, which the browser keeps in a cookie that no script gets, and that a link from elsewhere sends, but no form.

use axum::extract::{Query, State};
use axum::http::header::{LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::Form;
use maud::html;
use serde::Deserialize;

use super::page::{root, Page};
use super::Web;
use crate::api::access::{check_origin, COOKIE};
use crate::api::problem::{Outcome, Problem};

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    to: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct SignIn {
    token: String,
    to: Option<String>,
}

/// The form; `to`: the page that was asked for.
pub(super) fn page(root: &str, to: Option<&str>, refused: Option<&str>) -> Page {
    let body = html! {
        h1 { "Sign in" }
        p { "With a token, which " code { "tasker token create NAME --role reader" } " makes: a " b { "reader" } " sees everything, an " b { "operator" } " changes it." }
        @if let Some(refused) = refused { p.refusal role="alert" { (refused) } }
        form.stack method="post" action={ (root) "session" } {
            label for="token" { "Token" }
            input id="token" name="token" type="password" autocomplete="current-password" required autofocus;
            @if let Some(to) = to { input type="hidden" name="to" value=(to); }
            button { "Sign in" }
        }
    };
    Page {
        title: "Sign in".into(),
        body,
        viewer: None,
    }
}

pub(super) async fn form(uri: Uri, Query(asked): Query<Asked>) -> Page {
    page(&root(uri.path()), asked.to.as_deref(), None)
}

pub(super) async fn begin(State(web): State<Web>, uri: Uri, headers: HeaderMap, Form(given): Form<SignIn>) -> Outcome<Response> {
    // Nobody is to be signed in as somebody else.
    check_origin(&Method::POST, &headers)?;
    let token = given.token.trim();
    let root = root(uri.path());
    if !token.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
        return Ok(refused(&root, given.to.as_deref()));
    }
    match web.api.holder(token).await {
        Ok(_) => {}
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => return Ok(refused(&root, given.to.as_deref())),
        Err(problem) => return Err(problem),
    }
    let to = given.to.unwrap_or_default();
    // A page of ours, not of another host.
    let to = to.trim_start_matches(['/', '\\']);
    Ok(set_cookie(&headers, token, "", &format!("{root}{to}")))
}

pub(super) async fn end(uri: Uri, headers: HeaderMap) -> Response {
    set_cookie(&headers, "", "; Max-Age=0", &format!("{}session", root(uri.path())))
}

fn refused(root: &str, to: Option<&str>) -> Response {
    let page = page(
        root,
        to,
        Some("This is no token that counts: it was mistyped, revoked, or is over."),
    );
    (StatusCode::UNAUTHORIZED, page).into_response()
}

/// Over TLS, the cookie is not sent without.
fn set_cookie(headers: &HeaderMap, token: &str, more: &str, to: &str) -> Response {
    let origin = headers.get("origin").and_then(|origin| origin.to_str().ok());
    let secure = if origin.is_some_and(|origin| origin.starts_with("https://")) {
        "; Secure"
    } else {
        ""
    };
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax{secure}{more}");
    (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, to.to_owned())]).into_response()
}

impl From<axum::extract::rejection::FormRejection> for Problem {
    fn from(rejection: axum::extract::rejection::FormRejection) -> Problem {
        Problem::new(rejection.status(), rejection.body_text())
    }
}
