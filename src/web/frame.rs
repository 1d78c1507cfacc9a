//! What all pages have: the frame around their content, and the same for what is refused.

use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use maud::{html, Markup, DOCTYPE};

use super::page::{root, Page};
use super::{assets, session, Web};
use crate::api::problem::Problem;

const MENU: [(&str, &str); 11] = [
    ("tasks", "Tasks"),
    ("dead-letters", "Dead letters"),
    ("approvals", "Approvals"),
    ("bulk-actions", "Bulk actions"),
    ("schedules", "Schedules"),
    ("queues", "Queues"),
    ("limits", "Limits"),
    ("workers", "Workers"),
    ("templates", "Templates"),
    ("configuration", "Configuration"),
    ("audit", "Audit"),
];

/// What the browser may do for a page of ours: nothing but what we have put into the binary.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

pub(super) async fn none(uri: Uri) -> Problem {
    Problem::not_found(format!("There is no page {}", uri.path()))
}

/// Puts the frame around what the handler has made: a page, or why there is none.
pub(super) async fn framed(State(web): State<Web>, request: Request, next: Next) -> Response {
    let (path, asked) = (
        request.uri().path().to_owned(),
        request.uri().path_and_query().map(ToString::to_string),
    );
    let is_stream = request
        .headers()
        .get(ACCEPT)
        .is_some_and(|accept| accept.to_str().is_ok_and(|accept| accept.contains("text/event-stream")));
    let mut response = next.run(request).await;
    let root = root(&path);
    let (status, page) = match response.extensions_mut().remove::<Problem>() {
        Some(_) if is_stream => return response,
        Some(problem) if problem.status() == StatusCode::UNAUTHORIZED => (problem.status(), session::page(&root, asked.as_deref(), None)),
        Some(problem) => (problem.status(), refusal(&problem, &root)),
        None => match response.extensions_mut().remove::<Page>() {
            Some(page) => (response.status(), page),
            None => return response,
        },
    };
    let mut framed = (status, Html(frame(&page, &root, &path, &web.api.shards.away()).into_string())).into_response();
    let headers = framed.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    framed
}

fn refusal(problem: &Problem, root: &str) -> Page {
    let title = match problem.status() {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::FORBIDDEN => "Not allowed",
        StatusCode::SERVICE_UNAVAILABLE => "Away for now",
        _ => "That did not work",
    };
    let body = html! {
        h1 { (title) }
        p.refusal role="alert" { (problem.detail()) }
        @if problem.status() == StatusCode::SERVICE_UNAVAILABLE {
            p { "Nothing is lost. " a href="" { "Try again" } }
        } @else {
            p { a href=(root) { "To the first page" } }
        }
    };
    Page {
        title: title.into(),
        body,
        viewer: None,
    }
}

fn frame(page: &Page, root: &str, path: &str, away: &[String]) -> Markup {
    let asset = |file: &str| format!("{root}assets/{}", assets::name(file));
    let section = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // What no page of ours uses.
                meta name="htmx-config" content=r#"{"history":false}"#;
                title { (page.title) " · tasker" }
                link rel="icon" href=(asset("icon.svg")) type="image/svg+xml";
                link rel="stylesheet" href=(asset("tasker.css"));
                script src=(asset("htmx.min.js")) defer {}
                script src=(asset("hx-sse.min.js")) defer {}
            }
            body {
                a.skip href="#main" { "To the content" }
                header {
                    a.brand href=(root) aria-current=[section.is_empty().then_some("page")] { "tasker" }
                    nav aria-label="Sections" {
                        ul {
                            @for (place, name) in MENU {
                                li { a href={ (root) (place) } aria-current=[(section == place).then_some("page")] { (name) } }
                            }
                        }
                    }
                    @if let Some(viewer) = &page.viewer {
                        div.viewer {
                            span { (viewer.name()) }
                            @if viewer.has_cookie() {
                                form method="post" action={ (root) "session/end" } { button.quiet { "Sign out" } }
                            }
                        }
                    }
                }
                main id="main" tabindex="-1" {
                    @if page.viewer.is_some() && !away.is_empty() {
                        p.refusal role="alert" { "What is in " (away.join(", ")) " cannot be shown for now: that shard does not answer. Nothing is lost." }
                    }
                    (page.body)
                }
            }
        }
    }
}
