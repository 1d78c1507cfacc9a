//! Logs: one line for each event, from Rust and from Ruby alike, as text or as JSON, to standard error or to a logger of the application's.
//!
//! The settings `log.level` (a filter such as `info` or `tasker=debug`), `log.format` and `log.redact` say what is logged, how, and which fields are
//! not told; TASKER_LOG, TASKER_LOG_FORMAT and TASKER_LOG_REDACT say it before they are read. What tasks are given and what they return is never logged.

use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock, PoisonError, RwLock};

use chrono::{SecondsFormat, Utc};
use opentelemetry::KeyValue;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{reload, EnvFilter, Registry};

use crate::config::{LogConfig, LogFormat};

/// What changes the filter of a process that logs already.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// How lines are written now.
static LINES: LazyLock<RwLock<Lines>> = LazyLock::new(|| RwLock::new(Lines::of(&of_environment())));

fn of_environment() -> LogConfig {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    LogConfig {
        level: Some(variable("TASKER_LOG"))
            .filter(|level| !level.is_empty())
            .unwrap_or("info".into()),
        format: if variable("TASKER_LOG_FORMAT") == "json" {
            LogFormat::Json
        } else {
            LogFormat::Text
        },
        redact: variable("TASKER_LOG_REDACT")
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect(),
        steps: false,
    }
}

/// Begins to log, as the environment says. Does nothing where a subscriber is set already.
pub fn init_logging() {
    let config = of_environment();
    let (filter, handle) = reload::Layer::new(filter(&config.level));
    let registry = tracing_subscriber::registry().with(Write.with_filter(filter)).with(CountErrors);
    if registry.try_init().is_ok() {
        FILTER.set(handle).ok();
        log_as(&config);
    }
}

/// Logs so from now on.
pub fn log_as(config: &LogConfig) {
    *LINES.write().unwrap_or_else(PoisonError::into_inner) = Lines::of(config);
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter(&config.level))) {
        tracing::warn!(%error, "the level of the log cannot be changed");
    }
}

/// Whether the values of fields of this name are not told.
pub(crate) fn is_redacted(name: &str) -> bool {
    let lines = LINES.read().unwrap_or_else(PoisonError::into_inner);
    lines.redacted.iter().any(|redacted| redacted == name)
}

/// A level alone leaves out what the driver says of each statement.
fn filter(level: &str) -> EnvFilter {
    match level.contains(['=', ',']) {
        true => EnvFilter::try_new(level),
        false => EnvFilter::try_new(format!("{level},sqlx=warn")),
    }
    .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"))
}

/// What a line is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    /// The task's id.
    pub task: Option<&'a str>,
    /// The step's name.
    pub step: Option<&'a str>,
    /// Whose step.
    pub namespace: Option<&'a str>,
    /// 1 for the first run.
    pub attempt: Option<i32>,
    /// The worker's membership.
    pub worker: Option<i32>,
    /// The trace's id, in hex.
    pub trace_id: Option<&'a str>,
    /// What went wrong.
    pub error: Option<&'a str>,
}

/// Logs a line of the application's, or its handlers'.
pub fn log(level: Level, message: &str, about: &About<'_>) {
    let About {
        task,
        step,
        namespace,
        attempt,
        worker,
        trace_id,
        error,
    } = *about;
    macro_rules! at {
        ($level:expr) => {
            tracing::event!(target: "application", $level, task, step, namespace, attempt, worker, trace_id, error, "{message}")
        };
    }
    match level {
        Level::ERROR => at!(Level::ERROR),
        Level::WARN => at!(Level::WARN),
        Level::INFO => at!(Level::INFO),
        Level::DEBUG => at!(Level::DEBUG),
        Level::TRACE => at!(Level::TRACE),
    }
}

/// Where lines go instead of to standard error: a logger of the process with that id. A child of it writes to standard error again.
struct Logger {
    id: u64,
    process: u32,
    take: Box<dyn Fn(Level, String) -> bool + Send + Sync>,
}

/// In the order in which they came.
static LOGGERS: RwLock<Vec<Logger>> = RwLock::new(Vec::new());

/// While it lives, lines go to a logger.
#[derive(Debug)]
pub struct Logging(u64);

/// Hands lines (as text, without their time and level) to a logger of the application's, until what is returned is dropped; what it does not take,
/// because it returns false, goes to standard error. Of several loggers, the one that came last has the lines.
pub fn log_to(logger: impl Fn(Level, String) -> bool + Send + Sync + 'static) -> Logging {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let id = LAST.fetch_add(1, Ordering::Relaxed);
    LOGGERS.write().unwrap_or_else(PoisonError::into_inner).push(Logger {
        id,
        process: std::process::id(),
        take: Box::new(logger),
    });
    Logging(id)
}

impl Drop for Logging {
    fn drop(&mut self) {
        LOGGERS
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|logger| logger.id != self.0);
    }
}

/// How lines are written.
struct Lines {
    json: bool,
    redacted: Vec<String>,
}

impl Lines {
    fn of(config: &LogConfig) -> Lines {
        Lines {
            json: config.format == LogFormat::Json,
            redacted: config.redact.clone(),
        }
    }
}

/// Writes them.
struct Write;

impl<S: Subscriber> Layer<S> for Write {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let lines = LINES.read().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in &mut fields.others {
            if lines.redacted.iter().any(|redacted| redacted == name) {
                *value = Value::from("[redacted]");
            }
        }
        let taken = {
            let loggers = LOGGERS.read().unwrap_or_else(PoisonError::into_inner);
            let last = loggers.iter().rfind(|logger| logger.process == std::process::id());
            last.is_some_and(|logger| (logger.take)(level, fields.text()))
        };
        if !taken {
            let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
            let line = match lines.json {
                true => fields.json(level, now),
                false => format!("{now} {level:>5} {}", fields.text()),
            };
            // In one call, so that lines of several threads do not mix.
            std::io::stderr().write_all(format!("{line}\n").as_bytes()).ok();
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.others {
            match value {
                Value::String(value) if !value.contains([' ', '"', '=', '\n']) => text.push_str(&format!(" {name}={value}")),
                value => text.push_str(&format!(" {name}={value}")),
            }
        }
        text
    }

    fn json(self, level: Level, now: String) -> String {
        let mut line = Map::new();
        line.insert("timestamp".into(), now.into());
        line.insert("level".into(), level.to_string().into());
        line.insert("message".into(), self.message.into());
        line.extend(self.others.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(line).to_string()
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            // What a library adds for itself.
            (name, _) if name.starts_with("log.") => {}
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

/// Counts what is logged as an error.
struct CountErrors;

impl<S: Subscriber> Layer<S> for CountErrors {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let of = event.metadata();
        if *of.level() == Level::ERROR && of.target().starts_with("tasker") {
            let component = of.target().rsplit("::").next().unwrap_or_default();
            // Not what starts telemetry: this may be any thread.
            if let Some(telemetry) = super::started() {
                telemetry.metrics.errors.add(1, &[KeyValue::new("component", component)]);
            }
        }
    }
}
