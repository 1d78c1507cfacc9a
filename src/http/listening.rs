//! Answering on a listener, with bounds on what clients may do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::resource::{getrlimit, Resource};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::certificate::Certificate;

/// What clients of a listener may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// How many connections there are at once; others wait for one of them to end.
    connections: usize,
    /// How long a client may take to say what it wants, or to want something more.
    patience: Duration,
    /// How long an answer may take to begin.
    answer: Duration,
    /// How long a connection lasts. None: as long as its client wants.
    lifetime: Option<Duration>,
}

impl Bounds {
    /// One answer a connection.
    pub(super) const PROBES: Bounds = Bounds {
        connections: 64,
        patience: Duration::from_secs(5),
        answer: Duration::from_secs(10),
        lifetime: Some(Duration::from_secs(10)),
    };

    /// Answers that are waited for, and connections that are used again: half of the files that this process may have open, so that the others have enough.
    pub(super) fn api() -> Bounds {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(files, _)| files);
        Bounds {
            connections: usize::try_from(files / 2).unwrap_or(usize::MAX).clamp(64, 2_048),
            patience: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            lifetime: None,
        }
    }
}

/// A listener that may know the addresses of its clients.
pub(super) trait Addressed: Listener {
    fn client(address: &Self::Addr) -> Option<ConnectInfo<SocketAddr>>;
}

impl Addressed for TcpListener {
    fn client(address: &SocketAddr) -> Option<ConnectInfo<SocketAddr>> {
        Some(ConnectInfo(*address))
    }
}

impl Addressed for UnixListener {
    fn client(_: &Self::Addr) -> Option<ConnectInfo<SocketAddr>> {
        None
    }
}

/// Each listener has connections of its own: whoever uses up those of the port leaves the socket's to local probes. `tls`: they are encrypted.
pub(super) async fn answer_on<L: Addressed>(
    mut listener: L,
    router: &Router,
    bounds: &Bounds,
    tls: Option<&Certificate>,
    stop: &CancellationToken,
) {
    let (places, answering) = (Arc::new(Semaphore::new(bounds.connections)), TaskTracker::new());
    let accept = async {
        loop {
            // Never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (io, address) = listener.accept().await;
            let connection = Connection {
                router: router.clone(),
                client: L::client(&address),
                bounds: *bounds,
                stop: stop.clone(),
            };
            let acceptor = tls.map(Certificate::acceptor);
            answering.spawn(async move {
                match acceptor {
                    None => connection.serve(io).await,
                    Some(acceptor) => {
                        // A client that says nothing is left as one that wants nothing.
                        if let Ok(Ok(io)) = tokio::time::timeout(connection.bounds.patience, acceptor.accept(io)).await {
                            connection.serve(io).await;
                        }
                    }
                }
                drop(place);
            });
        }
    };
    tokio::select! { () = stop.cancelled() => {}, () = accept => {} }
    answering.close();
    answering.wait().await;
}

/// Of one client.
struct Connection {
    router: Router,
    client: Option<ConnectInfo<SocketAddr>>,
    bounds: Bounds,
    stop: CancellationToken,
}

impl Connection {
    async fn serve(self, io: impl AsyncRead + AsyncWrite + Unpin) {
        let Connection {
            router,
            client,
            bounds,
            stop,
        } = self;
        let service = service_fn(move |request| answer(router.clone(), client, bounds.answer, request));
        let serve = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.patience)
            .keep_alive(bounds.lifetime.is_none())
            .serve_connection(TokioIo::new(io), service);
        let mut serve = std::pin::pin!(serve);
        let over = async {
            match bounds.lifetime {
                Some(lifetime) => tokio::time::sleep(lifetime).await,
                None => stop.cancelled().await,
            }
        };
        tokio::select! {
            _ = &mut serve => {}
            () = over => {
                // What is being answered on one that would be used again ends.
                if bounds.lifetime.is_none() {
                    serve.as_mut().graceful_shutdown();
                    serve.await.ok();
                }
            }
        }
    }
}

async fn answer(
    router: Router,
    client: Option<ConnectInfo<SocketAddr>>,
    longest: Duration,
    request: hyper::Request<Incoming>,
) -> Result<Response, Infallible> {
    let mut request: Request = request.map(Body::new);
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    match tokio::time::timeout(longest, router.oneshot(request)).await {
        Ok(answered) => answered,
        Err(_) => Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
    }
}
