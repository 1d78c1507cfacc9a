//! Logs between Ruby and Rust: Ruby's lines join Rust's, or Rust's join those of a Ruby logger, by way of a channel: threads of the runtime never
//! touch Ruby.

use std::sync::{Mutex, PoisonError};

use magnus::{function, method, prelude::*, Error, RModule, Ruby};
use tasker::telemetry::{self, About, Logging};
use tokio::sync::mpsc::{self, Receiver};
use tracing::Level;

use crate::waiting::wait;
use crate::worker::Step;

/// What a Ruby logger has not taken yet; more goes to standard error.
const WAITING: usize = 10_000;

pub(crate) fn init(native: RModule) -> Result<(), Error> {
    native.define_singleton_method("init_logging", function!(telemetry::init_logging, 0))?;
    native.define_singleton_method("log", function!(log, 4))?;
    let class = native.define_class("Logs", Ruby::get_with(native).class_object())?;
    class.undef_default_alloc_func();
    class.define_singleton_method("open", function!(Logs::open, 0))?;
    class.define_method("next", method!(Logs::next, 0))?;
    class.define_method("close", method!(Logs::close, 0))?;
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

/// Rust's lines for one Ruby logger.
#[magnus::wrap(class = "TaskerCore::Native::Logs", free_immediately)]
struct Logs {
    /// Severity and text.
    lines: tokio::sync::Mutex<Receiver<(u8, String)>>,
    open: Mutex<Option<Logging>>,
}

impl Logs {
    /// From now on, lines wait for `next`.
    fn open() -> Logs {
        let (lines, waiting) = mpsc::channel(WAITING);
        let open = telemetry::log_to(move |level, line| {
            let severity = match level {
                Level::ERROR => 3,
                Level::WARN => 2,
                Level::INFO => 1,
                _ => 0,
            };
            lines.try_send((severity, line)).is_ok()
        });
        Logs {
            lines: tokio::sync::Mutex::new(waiting),
            open: Mutex::new(Some(open)),
        }
    }

    /// [severity, line], as soon as there is one; nil after the last.
    fn next(ruby: &Ruby, logs: &Logs) -> Result<Option<(u8, String)>, Error> {
        let line = wait(ruby, None, || async { logs.lines.lock().await.recv().await })?;
        Ok(line.flatten())
    }

    /// New lines go where they went before. Those that wait are still there.
    fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
