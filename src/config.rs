//! Configuration: layers of settings, of which the nearest wins and each value knows where it comes from, and a coordinator for what a fleet
//! shares and changes while it runs.
//!
//! `defaults` → `tasker.yml` (`shared`, then the environment's section) → environment variables → flags, in each process ([`Local`]); above them, in
//! the coordinator, what is set for all, for namespaces, and for single instances ([`distributed`]). [`Live`] is what comes out, now and after
//! every change.

mod api;
mod check;
pub mod distributed;
pub mod drift;
mod effective;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod folder;
mod layers;
mod live;
mod local;
pub mod overrides;
mod rules;
pub mod schema;
mod secret;
mod servers;
mod settings;
mod shards;
mod sources;
mod span;
#[cfg(test)]
mod tests;

pub use crate::template::{Breaker, Limit};
pub use api::{ApiConfig, JwtConfig, ProxyConfig};
pub(crate) use check::is_web_address;
pub use check::Problem;
pub use effective::Effective;
pub use live::Live;
pub use local::{Given, Local};
pub use rules::{Rules, Throttle};
pub use secret::{Address, Secret};
pub use servers::{DirectConfig, FailoverConfig, ReplicaConfig};
pub use settings::{HealthConfig, LogConfig, LogFormat, OrchestratorConfig, Settings, TracesConfig, WorkerConfig};
pub(crate) use shards::DEFAULT_NUMBER as DEFAULT_SHARD_NUMBER;
pub use shards::{ShardConfig, DEFAULT as DEFAULT_SHARD};
pub use sources::{check_file, read_source};

use std::path::Path;

use crate::error::{Error, Result};

/// Where `tasker dev` keeps its database, relative to the working folder.
pub const DEV_FOLDER: &str = ".tasker";

/// The database to use: `given` (a setting, which may be empty), or the private one of `tasker dev`.
///
/// Errors: [`Error::Config`] when there is neither.
pub fn database_url(given: Option<&str>) -> Result<String> {
    if let Some(url) = given.map(str::trim).filter(|url| !url.is_empty()) {
        return Ok(url.to_owned());
    }
    match std::fs::read_to_string(Path::new(DEV_FOLDER).join("database_url")) {
        Ok(url) => Ok(url.trim().to_owned()),
        Err(_) => Err(Error::Config(
            "no database is configured: set DATABASE_URL, or start a private one with `tasker dev`".into(),
        )),
    }
}
