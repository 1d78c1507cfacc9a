//! The HTTP face of an orchestrator or a worker: its health and metrics, on a port and on its socket in the run directory (see
//! [`crate::health::local`]); and of an orchestrator the API, on a port of its own, so that none of its clients is in the way of a probe.

mod certificate;
pub(crate) mod client;
mod health;
mod listening;

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::member::Kind;
use crate::error::{Error, Result};
use crate::health::local::Socket;
use crate::health::Health;
pub use certificate::Certificate;
use listening::{answer_on, Bounds};

/// How many ports after the default one are tried.
const NEXT_PORTS: u16 = 100;

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Error {
    Error::Listen {
        address: address.to_string(),
        reason: error.to_string(),
    }
}

/// Takes an address. Errors: [`Error::Listen`].
async fn take(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| cannot_listen(address, &error))
}

/// The same with an address that nobody asked for: where its port is taken, by another orchestrator of this host perhaps, one of the next is.
async fn take_from(address: SocketAddr) -> Result<TcpListener> {
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
    Ok(port)
}

/// Lets this process have as many files open as it may, for many clients at once. Where that is refused, it has fewer.
pub fn allow_many_connections() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
    }
}

/// Where one process answers probes.
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
            Some(address) => Some(take(address).await?),
            None => None,
        };
        Ok(Server::on(port, kind))
    }

    /// The same with an address that nobody asked for: where its port is taken, one of the next is.
    pub async fn bind_from(address: SocketAddr, kind: Kind) -> Result<Server> {
        Ok(Server::on(Some(take_from(address).await?), kind))
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
        Serving::begin(|stop| self.serve(health, stop))
    }

    async fn serve(self, health: Health, stop: CancellationToken) {
        let router = health::router(health);
        let port = async {
            if let Some(port) = self.port {
                answer_on(port, &router, &Bounds::PROBES, None, &stop).await;
            }
        };
        let socket = async {
            if let Some(socket) = self.socket {
                let Socket { listener, file: _file } = socket;
                answer_on(listener, &router, &Bounds::PROBES, None, &stop).await;
            }
        };
        tokio::join!(port, socket);
    }
}

/// Where an orchestrator answers others than probes.
#[derive(Debug)]
pub struct Door {
    port: TcpListener,
    certificate: Option<Certificate>,
}

impl Door {
    /// Takes the address; None: the default one, or one of the next. Errors: [`Error::Listen`].
    pub async fn bind(address: Option<SocketAddr>, default: SocketAddr) -> Result<Door> {
        let port = match address {
            Some(address) => take(address).await?,
            None => take_from(default).await?,
        };
        Ok(Door { port, certificate: None })
    }

    /// The same, over TLS.
    pub fn encrypted(self, certificate: Certificate) -> Door {
        Door {
            certificate: Some(certificate),
            ..self
        }
    }

    /// The address that was taken.
    pub fn address(&self) -> Option<SocketAddr> {
        self.port.local_addr().ok()
    }

    /// Begins to answer with `router`, whose requests have the client's address as [`axum::extract::ConnectInfo`].
    pub fn open(self, router: Router) -> Serving {
        let tls = self.certificate.as_ref().map(|_| true);
        tracing::info!(
            address = self.address().map(tracing::field::display),
            tls,
            "answering pages and /api/v1"
        );
        Serving::begin(|stop| async move { answer_on(self.port, &router, &Bounds::api(), self.certificate.as_ref(), &stop).await })
    }
}

/// A server that answers.
#[derive(Debug, Default)]
pub struct Serving {
    stop: CancellationToken,
    answering: TaskTracker,
}

impl Serving {
    fn begin<S: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(CancellationToken) -> S) -> Serving {
        let serving = Serving::default();
        serving.answering.spawn(serve(serving.stop.clone()));
        serving.answering.close();
        serving
    }

    /// Answers no more; what is being answered has two seconds to end.
    pub async fn stop(&self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(2), self.answering.wait()).await.ok();
    }
}
