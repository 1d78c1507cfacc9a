//! The dashboard: pages over the same calls as the API, with everything that they need in the binary. No SQL.
//!
//! Links are relative, so that the pages are the same under any prefix. They read without JavaScript; with it, a task moves while one looks.

mod actions;
mod approvals;
mod assets;
mod bulk_actions;
mod configuration;
mod dead_letters;
mod family;
mod fleet;
mod frame;
mod graph;
mod home;
mod in_process;
mod live;
mod namespaces;
mod page;
mod schedules;
mod schema_help;
mod series;
mod session;
mod shown;
mod table;
mod task;
mod tasks;
mod templates;
mod timeline;
mod viewer;

use axum::extract::{FromRef, Request};
use axum::http::header::AGE;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::Router;
use tower::ServiceExt;

use crate::api::Api;
use crate::db::aged;
use graph::Layouts;
pub use in_process::{Answered, InProcess, Taken};
use live::Live;
pub(crate) use shown::visible;

/// What the pages work with.
#[derive(Debug, Clone)]
struct Web {
    api: Api,
    live: Live,
    layouts: Layouts,
}

impl FromRef<Web> for Api {
    fn from_ref(web: &Web) -> Api {
        web.api.clone()
    }
}

/// The pages, and the API under `/api/v1`. Requests that came over a network have their client's address as [`axum::extract::ConnectInfo`]; those that an
/// application has taken have the [`SignedIn`](crate::api::SignedIn) that it knows.
pub fn router(api: Api) -> Router {
    let web = Web {
        live: Live::default(),
        layouts: Layouts::default(),
        api: api.clone(),
    };
    let pages = Router::new()
        .route("/", get(home::show))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(task::show))
        .route("/tasks/{id}/live", get(live::follow))
        .route("/tasks/{id}/family", get(family::show))
        .route("/tasks/{id}/{verb}", post(actions::act))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/{namespace}/{number}", get(dead_letters::show))
        .route("/dead-letters/{verb}", post(actions::act_on_letters))
        .route("/approvals", get(approvals::list))
        .route("/approvals/{id}", get(approvals::show).post(approvals::answer))
        .route("/bulk-actions", get(bulk_actions::list).post(bulk_actions::begin))
        .route("/bulk-actions/new", get(bulk_actions::ask))
        .route("/bulk-actions/{id}", get(bulk_actions::show))
        .route("/bulk-actions/{id}/progress", get(bulk_actions::progress))
        .route("/bulk-actions/{id}/stop", post(bulk_actions::stop))
        .route("/queues", get(fleet::queues))
        .route("/limits", get(fleet::limits))
        .route("/limits/{namespace}/{name}/reset", post(fleet::reset))
        .route("/namespaces/{name}", get(namespaces::show))
        .route("/namespaces/{name}/{verb}", post(namespaces::act))
        .route("/workers", get(fleet::workers))
        .route("/schedules", get(schedules::list))
        .route("/schedules/{name}", get(schedules::show))
        .route("/schedules/{name}/{verb}", post(schedules::act))
        .route("/configuration", get(configuration::show))
        .route("/configuration/set", post(configuration::set))
        .route("/configuration/rollback", post(configuration::roll_back))
        .route("/templates", get(fleet::templates))
        .route("/templates/{namespace}/{name}", get(templates::show).post(templates::create))
        .route("/audit", get(fleet::audit))
        .route("/session", get(session::form).post(session::begin))
        .route("/session/end", post(session::end))
        .fallback(frame::none)
        .layer(from_fn_with_state(web.clone(), frame::framed))
        .with_state(web);
    let shards = api.shards.clone();
    let api = api.router();
    Router::new()
        .route("/assets/{name}", get(assets::show))
        .fallback(async move |request: Request| {
            let of = if request.uri().path().starts_with("/api/") { api } else { pages };
            let (Ok(mut answer), age) = aged(of.oneshot(request)).await;
            // Of what a replica has answered (RFC 9111, 5.1), also if that was kept from an answer before.
            if let Some(age) = shards.opened().map(|(_, db)| db.age()).max().max(Some(age)).flatten() {
                answer.headers_mut().insert(AGE, age.as_secs().saturating_add(1).into());
            }
            answer
        })
}
