//! Every setting, with its default: the types are read by the layers, and their comments are the reference and the JSON Schema.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::api::ApiConfig;
use super::check::{is_web_address, problems};
use super::schema;
use super::secret::{Address, Secret};
use super::servers::{DirectConfig, FailoverConfig, ReplicaConfig};
use super::shards::{self, ShardConfig};
use super::span::{self, Span};
use crate::error::{Error, Result};
use crate::redaction::Redaction;
use crate::schedule::{Named, Schedule};

/// What one process is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where tasks are: postgres://user:password@host:port/database, with commas between several hosts of which one is the primary (docs/failover.md). Without it,
    /// what `tasker dev` runs in this folder.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-secret" = true))]
    pub database_url: Option<Secret>,
    /// In Rails the name in database.yml of the database where tasks are; without it the primary one.
    #[schemars(extend("x-restart" = true))]
    pub database: Option<String>,
    /// Where the configuration is kept that a fleet shares: `database`, `etcd://user:password@host:port,…/prefix` (of a build with etcd), or `file:/path` of a file or a
    /// folder. Without it, the database.
    #[schemars(with = "Option<String>", extend("x-restart" = true))]
    pub coordinator: Option<Address>,
    /// Database connections of a process at most, to each shard that it works with: three to work, however many namespaces a worker has, one for heartbeats, one for
    /// probes, one to LISTEN.
    #[schemars(range(min = 4, max = 1000), extend("x-restart" = true))]
    pub connections: u32,
    /// How the primary is followed when it becomes another server (docs/failover.md).
    pub failover: FailoverConfig,
    /// PostgreSQL's own address, where the other is that of a pooler (docs/deployment.md).
    pub direct: DirectConfig,
    /// The databases of those namespaces that do not live in that one, by name: `eu: { number: 1, url: postgres://…, namespaces: [billing] }` (docs/shards.md).
    #[schemars(extend("x-restart" = true))]
    pub shards: BTreeMap<String, ShardConfig>,
    /// The only one of them that this process works with; without it, those of its namespaces, or all.
    #[schemars(extend("x-restart" = true))]
    pub shard: Option<String>,
    /// Which servers answer who only looks.
    pub replicas: ReplicaConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// What is traced.
    pub traces: TracesConfig,
    /// What of inputs, results and signals is not shown, on no page, by the API, by the command line and in no error: JSONPaths (RFC 9535) from the payload on,
    /// such as `$.customer.email`, or names, such as `password`, wherever they are.
    #[schemars(extend("x-restart" = true))]
    pub redact: Vec<String>,
    /// How health is judged.
    pub health: HealthConfig,
    /// How `tasker serve` works.
    pub orchestrator: OrchestratorConfig,
    /// How `tasker worker` works.
    pub worker: WorkerConfig,
    /// How `tasker serve` answers others than probes (docs/api.md).
    pub api: ApiConfig,
    /// Tasks that begin at their times, by name: `nightly: { workflow: reports/nightly, cron: "0 3 * * *" }` (docs/schedules.md). An orchestrator that starts takes
    /// them over from its file, and deletes those that the file had before; where it has none at all, nothing is changed.
    #[schemars(extend("x-restart" = true))]
    pub schedules: Option<BTreeMap<String, Value>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            database_url: None,
            database: None,
            coordinator: None,
            connections: 6,
            failover: FailoverConfig::default(),
            direct: DirectConfig::default(),
            shards: BTreeMap::new(),
            shard: None,
            replicas: ReplicaConfig::default(),
            log: LogConfig::default(),
            traces: TracesConfig::default(),
            redact: Vec::new(),
            health: HealthConfig::default(),
            orchestrator: OrchestratorConfig::default(),
            worker: WorkerConfig::default(),
            api: ApiConfig::default(),
            schedules: None,
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged: a level, or a filter such as `info,tasker=debug`.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
    /// The names of fields that are not told: of the log, and of inputs that are refused.
    pub redact: Vec<String>,
    /// Whether each step that a worker has finished leaves a line: which, how it ended, and how long its handler had it.
    pub steps: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: "info".into(),
            format: LogFormat::Text,
            redact: Vec::new(),
            steps: false,
        }
    }
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What is traced.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// Which part of the traces that begin here is kept. Without it, OTEL_TRACES_SAMPLER says so.
    #[schemars(range(min = 0, max = 1))]
    pub sample: Option<f64>,
}

/// How health is judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// How long the database may be away before the process is not live any more.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub database_grace: Duration,
    /// How many bytes of memory the process may use; beside its cgroup's limit, if that is less.
    #[schemars(range(min = 1))]
    pub memory_limit: Option<u64>,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig {
            database_grace: Duration::from_secs(300),
            memory_limit: None,
        }
    }
}

/// How an orchestrator works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OrchestratorConfig {
    /// Where to answer GET /health, /ready, /health/detailed and /metrics.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-default" = "127.0.0.1:8470, or the next that is free"))]
    pub listen: Option<SocketAddr>,
    /// Whose tasks to admit; none: all.
    #[schemars(extend("x-restart" = true))]
    pub namespaces: Vec<String>,
    /// A namespace's tasks wait, where priority counts, while its queue holds this many messages, or as many as its workers have handlers and finish in
    /// 200 ms. Idle workers admit what they have room for by themselves; this is what waits for those that are busy. Fewer lets an urgent task overtake
    /// more.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_target: u32,
    /// How many tasks one cycle admits in each namespace at most.
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: u32,
    /// How often to look for tasks when no notification came: the latency where LISTEN does not work. Of more than eight, each looks more seldom.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub poll: Duration,
    /// How long a membership lasts without a heartbeat, which comes at a third of it. At least 1 s.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub lease: Duration,
    /// Where alerts on dead letters are posted as JSON, beside the log. Delivered at least once, by one of the orchestrators that have it.
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub alert_webhook: Option<Secret>,
    /// How long events are kept for subscriptions, beside those that one of them was not told yet (docs/events.md).
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub event_history: Duration,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        OrchestratorConfig {
            listen: None,
            namespaces: Vec::new(),
            queue_target: 100,
            batch: 200,
            poll: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            alert_webhook: None,
            event_history: Duration::from_secs(7 * 86_400),
        }
    }
}

/// How a worker works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Where to answer GET /health, /ready, /health/detailed and /metrics; without it nowhere.
    #[schemars(with = "Option<String>", extend("x-restart" = true))]
    pub listen: Option<SocketAddr>,
    /// Whose steps to run; at least one.
    #[schemars(extend("x-restart" = true))]
    pub namespaces: Vec<String>,
    /// What part of the handlers' time each namespace has while others have something to do, too, as in `{ billing: 3 }`; 1 where nothing is said.
    #[schemars(extend("additionalProperties" = { "type": "number", "minimum": 0.01, "maximum": 1000 }))]
    pub weights: BTreeMap<String, f64>,
    /// Whether the process is an orchestrator, too, so that it needs no other; with the settings of `orchestrator`. (Ruby's workers.)
    #[schemars(extend("x-restart" = true))]
    pub orchestrate: bool,
    /// How many handlers run at once.
    #[serde(rename = "threads")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: usize,
    /// How many steps may wait in the buffer beside those that run, at most. How many do follows the pace: what the handlers finish in
    /// 100 ms.
    #[serde(rename = "prefetch")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_prefetch: usize,
    /// How long a lease lasts without a heartbeat, which comes at a third of it: the time after which the steps of a worker that was
    /// killed run elsewhere. At least 1 s.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub lease: Duration,
    /// How long a finished step may wait for others to be reported with. A step with nothing else in flight does not wait.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub linger: Duration,
    /// How many steps are leased, or reports committed, together at most.
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: usize,
    /// How often to look for steps when no notification came. Of more than eight, each looks more seldom.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub poll: Duration,
    /// How long handlers that run may go on when the worker stops.
    #[serde(with = "span")]
    #[schemars(with = "Span", extend("x-restart" = true))]
    pub grace: Duration,
    /// How often a step that is suspected (its lease ran out twice before) may take its worker down with it before it is dead-lettered.
    #[schemars(range(min = 1, max = 1000))]
    pub max_crashes: u32,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        WorkerConfig {
            listen: None,
            namespaces: Vec::new(),
            weights: BTreeMap::new(),
            orchestrate: false,
            concurrency: 8,
            max_prefetch: 2_000,
            lease: Duration::from_secs(30),
            linger: Duration::from_millis(2),
            batch: 500,
            poll: Duration::from_secs(1),
            grace: Duration::from_secs(25),
            max_crashes: 5,
        }
    }
}

impl Settings {
    /// Errors: [`Error::Config`] with everything that is wrong.
    pub(super) fn check(&self) -> Result<()> {
        let written = serde_json::to_value(self).unwrap_or_default();
        let of_types = problems(schema::settings(), &written)
            .into_iter()
            .map(|problem| problem.to_string());
        let others = self.problems().into_iter().map(|(path, message)| format!("{path} {message}"));
        match of_types.chain(others).collect::<Vec<_>>() {
            found if found.is_empty() => Ok(()),
            found => Err(Error::Config(found.join("\n"))),
        }
    }

    /// What no type can say: where it is, and what was expected.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let second = Duration::from_secs(1);
        let short = |lease: Duration| format!("is {}: expected at least 1s", humantime::format_duration(lease));
        let mut found = Vec::new();
        if self.orchestrator.lease < second {
            found.push(("orchestrator.lease", short(self.orchestrator.lease)));
        }
        if self.worker.lease < second {
            found.push(("worker.lease", short(self.worker.lease)));
        }
        found.extend(self.failover.problems());
        found.extend(self.replicas.problems());
        found.extend(shards::problems(&self.shards));
        for (path, poll) in [("orchestrator.poll", self.orchestrator.poll), ("worker.poll", self.worker.poll)] {
            if poll < Duration::from_millis(1) {
                found.push((path, "is 0: expected at least 1ms".into()));
            }
        }
        if let Err(problem) = self.log.level.parse::<tracing_subscriber::EnvFilter>() {
            found.push(("log.level", format!("is {:?}: {problem}", self.log.level)));
        }
        if self
            .orchestrator
            .alert_webhook
            .as_ref()
            .is_some_and(|webhook| !is_web_address(webhook.reveal()))
        {
            found.push((
                "orchestrator.alert_webhook",
                "is no address: expected http:// or https:// and a host".into(),
            ));
        }
        if let Err(problem) = Redaction::parse(&self.redact) {
            found.push(("redact", format!("has something else than paths: {problem}")));
        }
        found.extend(self.api.problems());
        if let Err(problem) = self.schedules() {
            found.push(("schedules", problem));
        }
        found
    }

    /// The shards in which a process is to work, each with those of these namespaces that live there: all shards where it is for all namespaces.
    pub fn shards_of(&self, namespaces: &[String]) -> BTreeMap<String, Vec<String>> {
        if let Some(own) = &self.shard {
            return BTreeMap::from([(own.clone(), namespaces.to_vec())]);
        }
        let all = self.shards.keys().map(String::as_str).chain([shards::DEFAULT]);
        let mut homes: BTreeMap<String, Vec<String>> = match namespaces.is_empty() {
            true => all.map(|name| (name.to_owned(), Vec::new())).collect(),
            false => BTreeMap::new(),
        };
        for namespace in namespaces {
            homes.entry(self.home_of(namespace).to_owned()).or_default().push(namespace.clone());
        }
        homes
    }

    /// The same for whoever works with a single database, which has all namespaces.
    pub(crate) fn of_one(self) -> Settings {
        Settings {
            shard: None,
            shards: BTreeMap::new(),
            ..self
        }
    }

    /// The name of the shard where a namespace lives.
    pub fn home_of(&self, namespace: &str) -> &str {
        let home = self
            .shards
            .iter()
            .find(|(_, shard)| shard.namespaces.iter().any(|of| of == namespace));
        home.map_or(shards::DEFAULT, |(name, _)| name)
    }

    /// The same of a template (name or namespace/name): the default one for a bare name.
    pub fn home_of_template(&self, template: &str) -> &str {
        let namespace = template.split_once('/').map(|(namespace, _)| namespace);
        namespace.map_or(shards::DEFAULT, |namespace| self.home_of(namespace))
    }

    /// What is not shown. Errors: [`Error::Config`].
    pub fn redaction(&self) -> Result<Redaction> {
        Redaction::parse(&self.redact).map_err(Error::Config)
    }

    /// Each with the workflow whose tasks it begins. None: there are none to keep. Errors: what is wrong.
    pub(crate) fn schedules(&self) -> Result<Option<Named>, String> {
        let read = |(name, written): (&String, &Value)| {
            let about = |problem: &str| format!("of which {name} is not valid: {problem}");
            let mut written = written.clone();
            let workflow = written.as_object_mut().and_then(|fields| fields.remove("workflow"));
            let Some(Value::String(workflow)) = workflow.filter(|_| !name.contains(':')) else {
                return Err(about("expected a name without a colon, and its workflow: NAMESPACE/NAME"));
            };
            Ok((
                name.clone(),
                (workflow, Schedule::parse(&written).map_err(|problem| about(&problem))?),
            ))
        };
        self.schedules.as_ref().map(|all| all.iter().map(read).collect()).transpose()
    }
}
