//! The REST API, under `/api/v1`: the verbs of the engine as resources, who may use them, and what was changed by whom. No SQL.
//!
//! `docs/api.md` is its guide, and [`document`] its OpenAPI 3.1 document, made from the handlers.

pub(crate) mod access;
mod audit;
pub(crate) mod bulk_actions;
pub(crate) mod configuration;
pub(crate) mod dead_letters;
pub(crate) mod etag;
mod events;
pub(crate) mod extract;
pub(crate) mod fleet;
pub(crate) mod followed;
mod groups;
mod jwt;
mod listed;
mod namespaces;
mod openapi;
pub(crate) mod problem;
mod proxy;
pub(crate) mod schedules;
mod shards;
pub(crate) mod signals;
mod signatures;
mod statistics;
pub(crate) mod steering;
pub(crate) mod streamed;
mod subscriptions;
pub(crate) mod tasks;
mod templates;
mod tokens;
mod waiting;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::from_fn;
use axum::routing::get;
use axum::{Json, Router};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tower_http::cors::CorsLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::distributed::ConfigurationCoordinator;
pub use crate::config::ApiConfig;
use crate::engine::shards::Shards;
use crate::error::{Error, Result};
pub use access::SignedIn;
use events::Events;
use jwt::Jwt;
use problem::Problem;
use proxy::Proxy;
use waiting::Waiting;

/// What the API works with.
#[derive(Debug, Clone)]
pub struct Api {
    pub(crate) shards: Shards,
    pub(crate) coordinator: Arc<dyn ConfigurationCoordinator>,
    trusts_loopback: bool,
    jwt: Option<Arc<Jwt>>,
    proxy: Option<Arc<Proxy>>,
    cors: Option<CorsLayer>,
    /// Where links to traces lead.
    pub(crate) trace_url: Option<Arc<str>>,
    /// By the names of tokens.
    rates: Arc<DefaultKeyedRateLimiter<String>>,
    waiting: Waiting,
    events: Events,
}

impl Api {
    /// Of these databases. Errors: [`Error::Config`].
    pub fn new(shards: &Shards, coordinator: Arc<dyn ConfigurationCoordinator>, config: &ApiConfig) -> Result<Api> {
        let rate = NonZeroU32::new(config.rate).unwrap_or(NonZeroU32::MIN);
        Ok(Api {
            shards: shards.clone(),
            coordinator,
            trusts_loopback: config.trust_loopback,
            jwt: Jwt::new(&config.jwt)?.map(Arc::new),
            proxy: Proxy::new(&config.proxy)?.map(Arc::new),
            cors: cors(&config.allowed_origins)?,
            trace_url: config.trace_url.as_deref().map(Arc::from),
            rates: Arc::new(RateLimiter::keyed(Quota::per_second(rate))),
            waiting: Waiting::default(),
            events: Events::default(),
        })
    }

    /// What answers requests; those over a network have their client's address as [`axum::extract::ConnectInfo`].
    pub fn router(self) -> Router {
        let (router, document) = routes().split_for_parts();
        let document = Arc::new(openapi::complete(document));
        let cors = self.cors.clone();
        let router = router
            .route(
                "/api/v1/openapi.json",
                get(move || async move { Json((*document).clone()) }).layer(from_fn(etag::tagged)),
            )
            .fallback(|| async { Problem::not_found("there is no such resource: GET /api/v1/openapi.json has those that there are") })
            .method_not_allowed_fallback(|| async {
                Problem::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "this resource has no such method: GET /api/v1/openapi.json has those that it has",
                )
            })
            .with_state(self);
        match cors {
            Some(cors) => router.layer(cors),
            None => router,
        }
    }
}

/// What lets pages of these sites use the API, with tokens that they send. None: none may.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let parse = |origin: &String| {
        let not = |_| Error::Config(format!("api.allowed_origins has {origin:?}, which is no origin"));
        origin.parse::<HeaderValue>().map_err(not)
    };
    let origins = origins.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_NONE_MATCH,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([ETAG, RETRY_AFTER])
        .max_age(Duration::from_secs(600));
    Ok(Some(layer))
}

fn routes() -> OpenApiRouter<Api> {
    let tasks = OpenApiRouter::new()
        .routes(routes!(tasks::create, tasks::list))
        .routes(routes!(tasks::show))
        .routes(routes!(tasks::reasons))
        .routes(routes!(tasks::wait))
        .routes(routes!(events::list))
        .routes(routes!(tasks::result))
        .routes(routes!(tasks::children))
        .routes(routes!(tasks::family))
        .routes(routes!(tasks::values))
        .routes(routes!(steering::cancel))
        .routes(routes!(steering::pause))
        .routes(routes!(steering::resume))
        .routes(routes!(steering::replay))
        .routes(routes!(steering::prioritize))
        .routes(routes!(steering::fork))
        .routes(routes!(signals::send, signals::list))
        .routes(routes!(signals::waits));
    let dead_letters = OpenApiRouter::new()
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::groups))
        .routes(routes!(dead_letters::actions))
        .routes(routes!(dead_letters::purge))
        .routes(routes!(dead_letters::show))
        .routes(routes!(dead_letters::replay))
        .routes(routes!(dead_letters::resolve))
        .routes(routes!(dead_letters::skip))
        .routes(routes!(dead_letters::discard));
    let bulk_actions = OpenApiRouter::new()
        .routes(routes!(bulk_actions::begin, bulk_actions::list))
        .routes(routes!(bulk_actions::dry_run))
        .routes(routes!(bulk_actions::show))
        .routes(routes!(bulk_actions::stop));
    let schedules = OpenApiRouter::new()
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::show, schedules::put, schedules::delete))
        .routes(routes!(schedules::pause))
        .routes(routes!(schedules::resume))
        .routes(routes!(schedules::trigger))
        .routes(routes!(schedules::backfill));
    let subscriptions = OpenApiRouter::new()
        .routes(routes!(subscriptions::list))
        .routes(routes!(subscriptions::show, subscriptions::put, subscriptions::delete))
        .routes(routes!(subscriptions::pause))
        .routes(routes!(subscriptions::resume))
        .routes(routes!(subscriptions::replay))
        .routes(routes!(subscriptions::rotate))
        .routes(routes!(subscriptions::events));
    let seldom_changed = OpenApiRouter::new()
        .routes(routes!(templates::list, templates::register))
        .routes(routes!(templates::show))
        .routes(routes!(templates::versions))
        .routes(routes!(templates::diff))
        .routes(routes!(namespaces::list, namespaces::create))
        .routes(routes!(configuration::show))
        .routes(routes!(configuration::versions))
        .layer(from_fn(etag::tagged));
    let fleet = OpenApiRouter::new()
        .routes(routes!(fleet::whole))
        .routes(routes!(shards::list))
        .routes(routes!(fleet::queues))
        .routes(routes!(fleet::repair))
        .routes(routes!(fleet::members))
        .routes(routes!(fleet::limits))
        .routes(routes!(fleet::reset))
        .routes(routes!(fleet::pauses, fleet::pause))
        .routes(routes!(fleet::resume))
        .routes(routes!(statistics::minutes));
    let settings = OpenApiRouter::new()
        .routes(routes!(configuration::drift))
        .routes(routes!(namespaces::set))
        .routes(routes!(configuration::set))
        .routes(routes!(configuration::apply))
        .routes(routes!(configuration::rollback))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(audit::list));
    let all = [
        bulk_actions,
        dead_letters,
        schedules,
        subscriptions,
        seldom_changed,
        fleet,
        settings,
    ]
    .into_iter()
    .fold(tasks, OpenApiRouter::merge);
    OpenApiRouter::new().nest("/api/v1", all)
}

/// The API as an OpenAPI 3.1 document.
pub fn document() -> OpenApi {
    openapi::complete(routes().split_for_parts().1)
}
