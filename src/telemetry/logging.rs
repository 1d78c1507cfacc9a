//! Logs: structured, to standard error; each error is counted as well.

use opentelemetry::KeyValue;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::EnvFilter;

/// Logs to standard error: TASKER_LOG says what (a filter such as `info` or `tasker=debug`; default `info`), TASKER_LOG_FORMAT how
/// (`text`, the default, or `json`). Does nothing where a subscriber is set already.
pub fn init_logging() {
    let filter = EnvFilter::try_from_env("TASKER_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let json = std::env::var("TASKER_LOG_FORMAT").is_ok_and(|format| format == "json");
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(CountErrors)
        .try_init()
        .ok();
}

/// Counts what is logged as an error, by the module it comes from.
struct CountErrors;

impl<S: Subscriber> Layer<S> for CountErrors {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let of = event.metadata();
        if *of.level() == Level::ERROR && of.target().starts_with("tasker") {
            let component = of.target().rsplit("::").next().unwrap_or_default();
            super::metrics().errors.add(1, &[KeyValue::new("component", component)]);
        }
    }
}
