//! Logs between Ruby and Rust: Ruby's lines join Rust's, or Rust's join those of a Ruby logger, by way of a channel: threads of the runtime never
//! touch Ruby.

use std::sync::LazyLock;

use magnus::{function, prelude::*, Error, RModule, Ruby};
use tasker::telemetry::{self, About};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::Mutex;
use tracing::Level;

use crate::waiting::wait;
use crate::worker::Step;

/// What a Ruby logger has not taken yet; more goes to standard error.
const WAITING: usize = 10_000;

/// Severity and text; none: the last one was before.
type Line = Option<(u8, String)>;

static LINES: LazyLock<(Sender<Line>, Mutex<Receiver<Line>>)> = LazyLock::new(|| {
    let (lines, waiting) = mpsc::channel(WAITING);
    (lines, Mutex::new(waiting))
});

pub(crate) fn init(native: RModule) -> Result<(), Error> {
    native.define_singleton_method("init_logging", function!(telemetry::init_logging, 0))?;
    native.define_singleton_method("log", function!(log, 4))?;
    native.define_singleton_method("forward_logs", function!(forward_logs, 0))?;
    native.define_singleton_method("stop_forwarding_logs", function!(stop_forwarding_logs, 0))?;
    native.define_singleton_method("next_log", function!(next_log, 0))?;
    Ok(())
}

/// A line of Ruby's, of a severity of Logger's, about a step perhaps, and what it raised.
fn log(severity: u8, message: String, step: Option<&Step>, error: Option<String>) {
    let level = match severity {
        0 => Level::DEBUG,
        1 => Level::INFO,
        2 => Level::WARN,
        _ => Level::ERROR,
    };
    let trace_id = step.and_then(Step::trace_id);
    let task = step.map(|step| step.core.leased.task_id.to_string());
    let about = About {
        task: task.as_deref(),
        step: step.map(|step| step.core.leased.name.as_str()),
        namespace: step.map(|step| &*step.namespace),
        attempt: step.map(|step| step.core.leased.attempt),
        worker: step.map(|step| step.worker),
        trace_id: trace_id.as_deref(),
        error: error.as_deref(),
    };
    telemetry::log(level, &message, &about);
}

/// From now on, Rust's lines wait for next_log.
fn forward_logs() {
    telemetry::log_to(|level, line| {
        let severity = match level {
            Level::ERROR => 3,
            Level::WARN => 2,
            Level::INFO => 1,
            _ => 0,
        };
        LINES.0.try_send(Some((severity, line))).is_ok()
    });
}

/// They go to standard error again. The lines that wait are still there.
fn stop_forwarding_logs() {
    telemetry::log_to_standard_error();
    LINES.0.blocking_send(None).ok();
}

/// [severity, line], as soon as there is one; nil after the last.
fn next_log(ruby: &Ruby) -> Result<Line, Error> {
    let line = wait(ruby, None, || async { LINES.1.lock().await.recv().await })?;
    Ok(line.flatten().flatten())
}
