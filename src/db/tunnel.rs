//! TLS that is made here, because the driver lets nobody say which certificates it accepts: it talks to a socket that only this user can reach,
//! and each connection to that is one to the server. For those servers only whose certificate the driver would refuse (see [`super::certificate`]).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::certificate::{self, Certificates};

/// Asks for TLS (PostgreSQL 15, 55.7, SSLRequest: its length, and 1234 and 5679).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Open until it is dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    folder: PathBuf,
    process: u32,
    accepting: AbortHandle,
}

impl Tunnel {
    /// Opens one to the server of `options`, after one connection proved that it leads there. With it, how the driver connects through it.
    /// Errors: why it does not.
    pub(super) async fn open(options: &PgConnectOptions, certificates: &Certificates) -> Result<(Tunnel, PgConnectOptions), String> {
        let named = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
        let way = Arc::new(Way {
            host: options.get_host().trim_matches(['[', ']']).to_owned(),
            port: options.get_port(),
            tls: TlsConnector::from(Arc::new(certificate::tls(certificates, named)?)),
        });
        drop(way.connect().await.map_err(|error| error.to_string())?);

        let folder = std::env::temp_dir().join(format!("tasker-{}", uuid::Uuid::new_v4().simple()));
        let within = |error: io::Error| format!("no socket can be made in {}: {error}", folder.display());
        DirBuilder::new().mode(0o700).create(&folder).map_err(within)?;
        let listener = UnixListener::bind(folder.join(format!(".s.PGSQL.{}", way.port))).map_err(within)?;
        let accepting = tokio::spawn(accept(listener, way)).abort_handle();
        let through = options.clone().socket(&folder).ssl_mode(PgSslMode::Disable);
        let tunnel = Tunnel {
            folder,
            process: std::process::id(),
            accepting,
        };
        Ok((tunnel, through))
    }
}

impl Drop for Tunnel {
    /// A child that was forked leaves its parent's alone.
    fn drop(&mut self) {
        if self.process == std::process::id() {
            self.accepting.abort();
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// The way to a server.
struct Way {
    host: String,
    port: u16,
    tls: TlsConnector,
}

impl Way {
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&SSL_REQUEST).await?;
        match stream.read_u8().await? {
            b'S' => self.tls.connect(name, stream).await,
            _ => Err(io::Error::other("the server does not support TLS")),
        }
    }
}

async fn accept(listener: UnixListener, way: Arc<Way>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(carry(client, way.clone()))),
            Err(error) => {
                tracing::warn!(%error, "no more connections to the database can be made for now");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Both ends close when one does.
async fn carry(client: UnixStream, way: Arc<Way>) {
    match way.connect().await {
        Ok(server) => {
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (tokio::io::split(client), tokio::io::split(server));
            tokio::select! {
                _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
            }
        }
        Err(error) => tracing::warn!(%error, host = way.host, "no TLS connection can be made to the database"),
    }
}
