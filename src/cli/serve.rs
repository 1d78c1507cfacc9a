//! `tasker serve`: an orchestrator with its health endpoints.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use serde_json::{json, Value};
use tokio::signal::unix::{signal, SignalKind};
use tokio_util::sync::CancellationToken;

use super::Connection;
use crate::api::Api;
use crate::config::distributed::Configuration;
use crate::config::{Local, Settings};
use crate::engine::configuration::coordinator_of;
use crate::engine::member::Kind;
use crate::engine::shards::Shards;
use crate::error::{Error, Result};
use crate::http::{allow_many_connections, Certificate, Door, Server};
use crate::orchestrator::Orchestrator;
use crate::{telemetry, web};

#[derive(Args)]
pub(super) struct Serve {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
pub(super) struct Options {
    /// Settings; default: TASKER_CONFIG, or config/tasker.yml, or tasker.yml, if there is one. Each setting is overridden by its flag
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where to answer GET /health, /ready, /health/detailed and /metrics; default: 127.0.0.1:8470, or
    /// the next port that is free
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Admit the tasks of these namespaces only
    #[arg(long = "namespace", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Leave tasks waiting, where priority counts, while their queue holds this many messages; default: 100
    #[arg(long)]
    queue_target: Option<u32>,
    /// Where alerts on dead letters are posted as JSON
    #[arg(long)]
    alert_webhook: Option<String>,
    /// Database connections at most (three to work, one for heartbeats, one for probes, one to LISTEN); default: 6
    #[arg(long, value_parser = clap::value_parser!(u32).range(4..=1000))]
    connections: Option<u32>,
}

/// Where an orchestrator answers when nothing else is said: probes, and the API.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8470);
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8480);

/// Where a process answers, before it has joined anything: an address in use should not cost a membership.
pub(super) struct Doors {
    probes: Server,
    api: Option<Door>,
}

impl Serve {
    pub(super) async fn run(self) -> Result<i32> {
        let local = self.options.local(&self.connection)?;
        let settings = local.with(0, &json!({}))?.settings;
        let doors = Doors::bind(&settings).await?;
        let shards = self.connection.shards(&local, settings.connections)?;
        serve(&shards, doors, local).await
    }
}

impl Options {
    pub(super) fn local(&self, connection: &Connection) -> Result<Local> {
        connection.local(self.config.clone(), self.flags())
    }

    /// Those that are given, as settings.
    fn flags(&self) -> Value {
        let namespaces = Some(&self.namespaces).filter(|names| !names.is_empty());
        let mut orchestrator = json!({
            "listen": self.listen, "namespaces": namespaces, "queue_target": self.queue_target, "alert_webhook": self.alert_webhook,
        });
        if let Some(given) = orchestrator.as_object_mut() {
            given.retain(|_, value| !value.is_null());
        }
        let mut flags = json!({ "orchestrator": orchestrator });
        if let Some(connections) = self.connections {
            flags["connections"] = json!(connections);
        }
        flags
    }
}

impl Doors {
    pub(super) async fn bind(settings: &Settings) -> Result<Doors> {
        let probes = match settings.orchestrator.listen {
            Some(address) => Server::bind(Some(address), Kind::Orchestrator).await?,
            None => Server::bind_from(LISTEN, Kind::Orchestrator).await?,
        };
        let api = match settings.api.enabled {
            true => {
                let door = Door::bind(settings.api.listen, API).await?;
                Some(match (&settings.api.tls_certificate, &settings.api.tls_key) {
                    (Some(certificate), Some(key)) => door.encrypted(Certificate::read(certificate, key)?),
                    _ => door,
                })
            }
            false => None,
        };
        Ok(Doors { probes, api })
    }
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn serve(shards: &Shards, doors: Doors, local: Local) -> Result<i32> {
    let mut stopping = StopSignals::new()?;
    allow_many_connections();
    let settings = local.with(0, &json!({}))?.settings;
    let coordinator = coordinator_of(shards).await?;
    let (configuration, live) = Configuration::start(local, coordinator.clone()).await?;
    let stop = CancellationToken::new();
    let following = tokio::spawn(configuration.run(stop.clone(), telemetry::take_over));
    let orchestrator = Orchestrator::start_in(shards, live).await?;
    let probed = doors.probes.start(orchestrator.health().clone());
    let for_people = shards.for_people(&settings);
    orchestrator.health().read_fleet_from(&for_people);
    let api = Api::new(&for_people, coordinator, &settings.api)?;
    let asked = doors.api.map(|door| door.open(web::router(api))).unwrap_or_default();

    let given_up = tokio::select! {
        () = stopping.next() => None,
        why = orchestrator.health().given_up() => Some(why),
    };
    let finish = async {
        asked.stop().await;
        orchestrator.shutdown().await;
        stop.cancel();
        following.await.ok();
        probed.stop().await;
        shards.close().await;
        for_people.close().await;
    };
    tokio::select! {
        () = finish => given_up.map_or(Ok(0), |why| Err(Error::GivenUp(why))),
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
