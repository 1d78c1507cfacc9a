//! The rules of namespaces, which all processes share: how steps are tried again, when too much waits, and limits.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::template::{Backoff, Limit};

/// The rules of a namespace, which PostgreSQL itself keeps to; None says nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Attempts of a step, the first run included; 5 where nothing else is said.
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<i32>,
    /// How delays grow; exponential where nothing else is said.
    pub backoff: Option<Backoff>,
    /// By what an exponential delay grows; 2 where nothing else is said.
    #[schemars(range(min = 1, max = 100))]
    pub multiplier: Option<f64>,
    /// The first delay; 1 where nothing else is said.
    #[schemars(range(min = 0.001, max = 31_622_400))]
    pub base_seconds: Option<f64>,
    /// The longest delay; 600 where nothing else is said.
    #[schemars(range(min = 0.001, max = 31_622_400))]
    pub max_seconds: Option<f64>,
    /// The spread of the delays; 0.1 where nothing else is said.
    #[schemars(range(min = 0, max = 1))]
    pub jitter: Option<f64>,
    /// After how many days a dead letter is deleted; never where nothing else is said.
    #[schemars(range(min = 1, max = 36_500))]
    pub retention_days: Option<i32>,
    /// How many dead letters raise an alert; none do where nothing else is said.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub alert_threshold: Option<i32>,
    /// How long a task that has ended is kept, with all that is known of it, its key among it: at least a minute; for ever where nothing else is said (docs/history.md).
    #[schemars(range(min = 60, max = 3_153_600_000.0))]
    pub history_seconds: Option<f64>,
    /// In place of `orchestrator.queue_target`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_target: Option<i32>,
    /// From how many waiting tasks on the namespace is in the state warning; never where nothing is said. It is well again below four fifths.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub depth_warning: Option<i32>,
    /// And critical.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub depth_critical: Option<i32>,
    /// The same, by how long the first of them waits.
    #[schemars(range(min = 0.1, max = 31_622_400))]
    pub age_warning_seconds: Option<f64>,
    /// And critical.
    #[schemars(range(min = 0.1, max = 31_622_400))]
    pub age_critical_seconds: Option<f64>,
    /// What happens to new tasks at critical: they are taken all the same and wait with the others (hold, where nothing else is said); are refused, with
    /// when to try again; or their callers wait for some time first.
    pub throttle_new_tasks: Option<Throttle>,
    /// How long callers wait; 5 where nothing else is said.
    #[schemars(range(min = 0, max = 60))]
    pub throttle_wait_seconds: Option<f64>,
    /// Whether tasks of low priority stay where they are at critical, until it is over; false where nothing else is said. They do not count then.
    pub shed_low_priority: Option<bool>,
    /// Limits on its steps, by names of your choice; none where nothing is said. (Not in `namespace_defaults`.)
    pub limits: Option<BTreeMap<String, Limit>>,
}

/// What happens to new tasks of a namespace that is critical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Throttle {
    /// They are taken, and wait with the others.
    Hold,
    /// They are refused.
    Refuse,
    /// Their callers wait for some time, and they are refused if it is not over by then.
    Wait,
}
