//! The HTTP face of an orchestrator or a worker: its health and metrics, on a port and on its socket in the run directory (see
//! [`crate::health::local`]).

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde_json::{json, Value};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::member::Kind;
use crate::error::{Error, Result};
use crate::health::local::Socket;
use crate::health::Health;

/// How many ports after the default one are tried.
const NEXT_PORTS: u16 = 100;

/// How many connections a listener has at once; others wait for one of them to end.
const CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants. It has as long again for the answer, and then the connection ends, as it does after the answer.
const PATIENCE: Duration = Duration::from_secs(5);

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Error {
    Error::Listen {
        address: address.to_string(),
        reason: error.to_string(),
    }
}

/// Where one process answers.
#[derive(Debug)]
pub struct Server {
    port: Option<TcpListener>,
    socket: Option<Socket>,
}

impl Server {
    /// Takes the address, if one is given, and the socket. Errors: [`Error::Listen`] for the address. Without the socket, which the log
    /// says, other processes of the host find this one by its address only.
    pub async fn bind(address: Option<SocketAddr>, kind: Kind) -> Result<Server> {
        let port = match address {
            Some(address) => Some(TcpListener::bind(address).await.map_err(|e| cannot_listen(address, &e))?),
            None => None,
        };
        Ok(Server::on(port, kind))
    }

    /// The same with an address that nobody asked for: where its port is taken, by another orchestrator of this host perhaps, one of the next is.
    pub async fn bind_from(address: SocketAddr, kind: Kind) -> Result<Server> {
        let mut wanted = address;
        let port = loop {
            match TcpListener::bind(wanted).await {
                Ok(port) => break port,
                Err(error) if error.kind() == ErrorKind::AddrInUse && wanted.port() < address.port() + NEXT_PORTS => {
                    wanted.set_port(wanted.port() + 1);
                }
                Err(error) => return Err(cannot_listen(wanted, &error)),
            }
        };
        if wanted != address {
            tracing::warn!(taken = %address, address = %wanted, "the default port is taken, answering on another");
        }
        Ok(Server::on(Some(port), kind))
    }

    fn on(port: Option<TcpListener>, kind: Kind) -> Server {
        let socket = Socket::listen(kind)
            .inspect_err(|error| {
                let folder = crate::health::local::folder();
                tracing::warn!(%error, folder = %folder.display(), "no socket for local probes: set TASKER_RUN_DIR to a folder of this user's");
            })
            .ok();
        Server { port, socket }
    }

    /// The address that was taken.
    pub fn address(&self) -> Option<SocketAddr> {
        self.port.as_ref()?.local_addr().ok()
    }

    /// Begins to answer.
    pub fn start(self, health: Health) -> Serving {
        tracing::info!(
            address = self.address().map(tracing::field::display),
            "answering GET /health, /ready and /health/detailed"
        );
        let serving = Serving::default();
        serving.answering.spawn(self.serve(health, serving.stop.clone()));
        serving.answering.close();
        serving
    }

    async fn serve(self, health: Health, stop: CancellationToken) {
        let router = router(health);
        let port = async {
            if let Some(port) = self.port {
                answer_on(port, &router, &stop).await;
            }
        };
        let socket = async {
            if let Some(socket) = self.socket {
                let Socket { listener, file: _file } = socket;
                answer_on(listener, &router, &stop).await;
            }
        };
        tokio::join!(port, socket);
    }
}

/// Each listener has connections of its own: whoever uses up those of the port leaves the socket's to local probes.
async fn answer_on(mut listener: impl Listener, router: &Router, stop: &CancellationToken) {
    let (places, answering) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    let accept = async {
        loop {
            // Never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (connection, _) = listener.accept().await;
            let answer = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(connection), TowerToHyperService::new(router.clone()));
            answering.spawn(async move {
                tokio::time::timeout(2 * PATIENCE, answer).await.ok();
                drop(place);
            });
        }
    };
    tokio::select! { () = stop.cancelled() => {}, () = accept => {} }
    answering.close();
    answering.wait().await;
}

/// A server that answers.
#[derive(Debug, Default)]
pub struct Serving {
    stop: CancellationToken,
    answering: TaskTracker,
}

impl Serving {
    /// Answers no more; what is being answered has two seconds to end.
    pub async fn stop(&self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(2), self.answering.wait()).await.ok();
    }
}

fn router(health: Health) -> Router {
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
