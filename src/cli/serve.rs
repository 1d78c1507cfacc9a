//! `tasker serve`: an orchestrator with its health endpoints.

use std::net::SocketAddr;

use clap::Args;
use tokio::signal::unix::{signal, SignalKind};

use super::Connection;
use crate::db::Db;
use crate::engine::member::Kind;
use crate::error::{Error, Result};
use crate::health::HealthConfig;
use crate::http::Server;
use crate::orchestrator::{Orchestrator, OrchestratorConfig};

#[derive(Args)]
pub(super) struct Serve {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
pub(super) struct Options {
    /// Where to answer GET /health, /ready and /health/detailed
    #[arg(long, env = "TASKER_LISTEN", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
    /// Admit the tasks of these namespaces only
    #[arg(long = "namespace", env = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Leave tasks waiting, where priority counts, while their queue holds this many messages
    #[arg(long, default_value_t = 100)]
    queue_target: u32,
    /// Where alerts on dead letters are posted as JSON
    #[arg(long, env = "TASKER_ALERT_WEBHOOK", hide_env_values = true)]
    alert_webhook: Option<String>,
    /// Database connections at most (three to work, one for heartbeats, one for probes, one to LISTEN)
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(4..))]
    connections: u32,
}

impl Serve {
    pub(super) async fn run(self) -> Result<i32> {
        // The address first: a port in use should not cost a membership.
        let server = self.options.bind().await?;
        let db = self.connection.open_with(self.options.connections).await?;
        serve(db, server, self.options).await
    }
}

impl Options {
    pub(super) async fn bind(&self) -> Result<Server> {
        Server::bind(Some(self.listen), Kind::Orchestrator).await
    }
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn serve(db: Db, server: Server, options: Options) -> Result<i32> {
    let config = OrchestratorConfig {
        namespaces: options.namespaces,
        queue_target: options.queue_target,
        alert_webhook: options.alert_webhook,
        health: HealthConfig::from_env()?,
        ..OrchestratorConfig::default()
    };
    let mut stopping = StopSignals::new()?;
    let orchestrator = Orchestrator::start(&db, config).await?;
    let serving = server.start(orchestrator.health().clone());

    stopping.next().await;
    let finish = async {
        orchestrator.shutdown().await;
        serving.stop().await;
        db.close().await;
    };
    tokio::select! {
        () = finish => Ok(0),
        () = stopping.next() => Ok(130),
    }
}

/// SIGTERM and SIGINT.
pub(super) struct StopSignals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl StopSignals {
    pub(super) fn new() -> Result<StopSignals> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::System {
                what: "cannot listen for signals".into(),
                source,
            })
        };
        Ok(StopSignals {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {} }
    }
}
