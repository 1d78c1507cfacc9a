//! The same pages and the same API where another server has taken the request: that of a Rails application.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::{to_bytes, Body};
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Router;
use tower::ServiceExt;

use crate::api::streamed::OneAtATime;
use crate::api::{Api, ApiConfig, SignedIn};
use crate::config::distributed::ConfigurationCoordinator;
use crate::engine::shards::Shards;
use crate::error::Result;

/// A request that another server has taken.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// GET, POST …
    pub method: String,
    /// The path under which these pages are mounted is not part of it; with the query.
    pub target: String,
    /// Their names in any case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
    /// The client's.
    pub address: Option<IpAddr>,
    /// Who asks, where that server knows.
    pub signed_in: Option<SignedIn>,
}

/// What is to be answered.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// In lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

/// What answers them.
#[derive(Debug, Clone)]
pub struct InProcess(Router);

impl InProcess {
    /// Of these databases. Errors: [`Error::Config`](crate::Error::Config).
    pub fn new(shards: &Shards, coordinator: Arc<dyn ConfigurationCoordinator>, config: &ApiConfig) -> Result<InProcess> {
        Ok(InProcess(super::router(Api::new(shards, coordinator, config)?)))
    }

    /// Answers one. What is no request is answered with a status that says so.
    pub async fn answer(&self, taken: Taken) -> Answered {
        let response = match request(taken) {
            Some(request) => {
                let answering = self.0.clone().oneshot(request);
                // A panic is a bug, and ends no more than this answer.
                tokio::spawn(answering)
                    .await
                    .map_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response(), |Ok(response)| response)
            }
            None => StatusCode::BAD_REQUEST.into_response(),
        };
        whole(response).await
    }
}

fn request(taken: Taken) -> Option<Request<Body>> {
    let mut request = Request::builder()
        .method(taken.method.as_str())
        .uri(&taken.target)
        .body(Body::from(taken.body))
        .ok()?;
    for (name, value) in taken.headers {
        request
            .headers_mut()
            .append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
    }
    let extensions = request.extensions_mut();
    extensions.insert(OneAtATime);
    if let Some(address) = taken.address {
        extensions.insert(ConnectInfo(SocketAddr::new(address, 0)));
    }
    if let Some(somebody) = taken.signed_in {
        extensions.insert(somebody);
    }
    Some(request)
}

async fn whole(response: Response) -> Answered {
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter();
    let headers = headers.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
    Answered {
        status: parts.status.as_u16(),
        headers: headers.collect(),
        // What was made in memory.
        body: to_bytes(body, usize::MAX).await.map(Vec::from).unwrap_or_default(),
    }
}
