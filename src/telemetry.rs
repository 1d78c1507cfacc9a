//! Logs. Traces and metrics will join them here.

use tracing_subscriber::EnvFilter;

/// Logs to standard error: TASKER_LOG says what (a filter such as `info` or `tasker=debug`; default `info`), TASKER_LOG_FORMAT how
/// (`text`, the default, or `json`). Does nothing where a subscriber is set already.
pub fn init_logging() {
    let filter = EnvFilter::try_from_env("TASKER_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let json = std::env::var("TASKER_LOG_FORMAT").is_ok_and(|format| format == "json");
    if json {
        builder.json().try_init().ok()
    } else {
        builder.try_init().ok()
    };
}
