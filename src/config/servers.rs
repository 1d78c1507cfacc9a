//! Which servers the database is on, and who asks which of them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::span::{self, Span};

/// Of `failover.timeout`, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How the primary is followed when it becomes another server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverConfig {
    /// How long a call waits for a connection, also while no server is the primary. At most five minutes.
    #[serde(with = "span")]
    #[schemars(with = "Span", extend("x-restart" = true))]
    pub timeout: Duration,
    /// How often a process that knows of several servers asks whether its own still is the primary, where nothing makes it doubt that.
    #[serde(with = "span")]
    #[schemars(with = "Span", extend("x-restart" = true))]
    pub check_interval: Duration,
}

impl Default for FailoverConfig {
    fn default() -> Self {
        FailoverConfig {
            timeout: Duration::from_secs(10),
            check_interval: Duration::from_secs(5),
        }
    }
}

impl FailoverConfig {
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if !(Duration::from_secs(1)..=LONGEST_WAIT).contains(&self.timeout) {
            let given = humantime::format_duration(self.timeout);
            found.push(("failover.timeout", format!("is {given}: expected 1s to 5m")));
        }
        if self.check_interval < Duration::from_millis(100) {
            let given = humantime::format_duration(self.check_interval);
            found.push(("failover.check_interval", format!("is {given}: expected at least 100ms")));
        }
        found
    }
}

/// PostgreSQL's own address, where the database is reached through a pooler that gives each transaction another session (PgBouncer's `pool_mode = transaction`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DirectConfig {
    /// Where a process LISTENs, over one connection, and migrates: postgres://user:password@host:port/database (docs/deployment.md). Without it, it polls behind
    /// such a pooler, and nobody can migrate.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub url: Option<Secret>,
}

/// Which servers answer who only looks: at pages, the API, the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicaConfig {
    /// Where they are: postgres://user:password@host:port/database, with commas between several hosts (docs/failover.md). Without it the primary answers.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub url: Option<Secret>,
    /// How old an answer may be; where all of them are farther behind, the primary answers.
    #[serde(with = "span")]
    #[schemars(with = "Span", extend("x-restart" = true))]
    pub max_lag: Duration,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        ReplicaConfig {
            url: None,
            max_lag: Duration::from_secs(5),
        }
    }
}

impl ReplicaConfig {
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let given = humantime::format_duration(self.max_lag);
        let problem = || format!("is {given}: expected at least 2s, since it is asked for each second");
        let is_short = self.max_lag < Duration::from_secs(2);
        is_short.then(|| ("replicas.max_lag", problem())).into_iter().collect()
    }
}
