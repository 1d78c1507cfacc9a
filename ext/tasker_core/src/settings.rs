//! The settings of a worker or orchestrator inside a Ruby process.

use magnus::{prelude::*, Error, Ruby, Value as RubyValue};
use serde_json::{json, Value};
use tasker::config::distributed::Configuration;
use tasker::config::{Given, Live, Local, Settings};
use tasker::engine::configuration::coordinator_of;
use tasker::engine::shards::Shards;
use tasker::telemetry;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{json, raise};

/// What this process sets, above the environment and the file.
pub(crate) fn local(ruby: &Ruby, flags: RubyValue, file: RubyValue) -> Result<Local, Error> {
    let given = Given {
        settings: of_file(ruby, file)?,
        flags: json::from_ruby(ruby, flags)?,
        ..Given::default()
    };
    Local::read(given).map_err(|error| raise::error(ruby, &error))
}

/// What Ruby has read: nil, or [the file's name, its section of this environment].
pub(crate) fn of_file(ruby: &Ruby, file: RubyValue) -> Result<Option<(String, Value)>, Error> {
    match file.is_nil() {
        true => Ok(None),
        false => Ok(serde_json::from_value(json::from_ruby(ruby, file)?).ok()),
    }
}

/// Without those of the coordinator.
pub(crate) fn own(ruby: &Ruby, local: &Local) -> Result<Settings, Error> {
    let effective = local.with(0, &json!({}));
    effective
        .map(|effective| effective.settings)
        .map_err(|error| raise::error(ruby, &error))
}

/// The same, as JSON: what Ruby itself has to know before it begins.
pub(crate) fn read(ruby: &Ruby, flags: RubyValue, file: RubyValue) -> Result<String, Error> {
    let settings = own(ruby, &local(ruby, flags, file)?)?;
    let grace = settings.worker.grace.as_secs_f64();
    // In one of several, so does the orchestrator that it brings along.
    let homes = settings.shards_of(&settings.worker.namespaces);
    let shard = homes.keys().next().filter(|_| homes.len() == 1 && !settings.shards.is_empty());
    Ok(
        json!({ "shard": shard, "namespaces": settings.worker.namespaces, "grace": grace, "orchestrate": settings.worker.orchestrate })
            .to_string(),
    )
}

/// With those of the coordinator, and their changes until the guard is dropped.
pub(crate) async fn follow(shards: &Shards, local: Local) -> tasker::Result<(Live, DropGuard)> {
    let coordinator = coordinator_of(shards).await?;
    let (configuration, live) = Configuration::start(local, coordinator).await?;
    let stop = CancellationToken::new();
    tokio::spawn(configuration.run(stop.clone(), telemetry::take_over));
    Ok((live, stop.drop_guard()))
}
