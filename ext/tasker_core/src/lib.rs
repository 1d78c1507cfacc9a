//! The native extension of the gem: Ruby classes over the core, one file each. No logic lives here that Rust users would miss.
//!
//! Two rules keep Ruby safe. Threads of the tokio runtime never touch Ruby: what they find reaches Ruby threads through channels. And a
//! Ruby thread that waits does so without the GVL, and can be interrupted (`waiting`).

// Ruby's view is documented in lib/tasker_core; rustdoc has no reader here.
#![allow(missing_docs)]

mod client;
mod dead_letters;
mod json;
mod logs;
mod orchestrator;
mod pauses;
mod raise;
mod runtime;
mod schedules;
mod settings;
mod signals;
mod waiting;
mod web;
mod worker;

use magnus::{function, prelude::*, Error, RModule, Ruby, Value};
use tasker::engine::member;
use tasker::health::local::{self, Level};
use tasker::template::Kind;

/// Called by Ruby when the library is loaded; `TaskerCore` and its errors are defined by then.
#[magnus::init(name = "tasker_core")]
fn init(ruby: &Ruby) -> Result<(), Error> {
    let tasker_core: RModule = ruby.class_object().const_get("TaskerCore")?;
    let native = tasker_core.define_module("Native")?;
    native.const_set("VERSION", env!("CARGO_PKG_VERSION"))?;
    native.define_singleton_method("check_template", function!(check_template, 2))?;
    native.define_singleton_method("check_tasks", function!(client::check_tasks, 3))?;
    native.define_singleton_method("worker_settings", function!(settings::read, 2))?;
    native.define_singleton_method("check_unique", function!(client::check_unique, 1))?;
    native.define_singleton_method("sameness", function!(client::sameness, 2))?;
    native.define_singleton_method("holds?", function!(holds, 2))?;
    native.define_singleton_method("child_inputs", function!(child_inputs, 4))?;
    native.define_singleton_method("output", function!(output, 2))?;
    native.define_singleton_method("begin_wait", function!(begin_wait, 2))?;
    native.define_singleton_method("check_payload", function!(signals::check_payload, 3))?;
    native.define_singleton_method("parse_schedule", function!(schedules::parse, 1))?;
    native.define_singleton_method("due_times", function!(schedules::due, 3))?;
    native.define_singleton_method("to_json", function!(worker::storable, 1))?;
    native.define_singleton_method("result_to_json", function!(worker::storable_result, 2))?;
    native.define_singleton_method("seconds", function!(seconds, 1))?;
    native.define_singleton_method("database_url", function!(database_url, 1))?;
    native.define_singleton_method("local_workers", function!(local_workers, 0))?;
    native.define_singleton_method("flush_telemetry", function!(flush_telemetry, 0))?;
    native.define_singleton_method("run_command", function!(run_command, 2))?;
    client::init(ruby, native)?;
    dead_letters::init(native)?;
    logs::init(native)?;
    orchestrator::init(ruby, native)?;
    pauses::init(native)?;
    schedules::init(native)?;
    signals::init(native)?;
    web::init(ruby, native)?;
    worker::init(ruby, native)
}

/// [definition, version or nil, lines of its steps] of a valid template, the definition as JSON; raises TaskerCore::TemplateError with
/// every problem.
fn check_template(ruby: &Ruby, source: String, origin: String) -> Result<(String, Option<String>, Vec<u64>), Error> {
    let template = tasker::Template::parse(&source, &origin).map_err(|error| raise::error(ruby, &error.into()))?;
    let lines = template.steps.iter().map(|step| step.line).collect();
    Ok((serde_json::json!(template).to_string(), template.version, lines))
}

/// Whether a step with this condition runs, of {input, results} as JSON.
fn holds(ruby: &Ruby, condition: String, of: String) -> Result<bool, Error> {
    Ok(tasker::template::condition::holds(&condition, &json::parse(ruby, &of)?))
}

/// The inputs of the tasks of a step (JSON, as a template has it), of {input, results} as JSON, each as JSON; or why it cannot have any. `page`: the one that
/// was just read, as JSON, and the number of its first task.
fn child_inputs(
    ruby: &Ruby,
    step: String,
    of: String,
    page: Option<String>,
    first: usize,
) -> Result<(Option<Vec<String>>, Option<String>), Error> {
    let kind: Kind = serde_json::from_value(json::parse(ruby, &step)?)
        .map_err(|error| raise::error(ruby, &tasker::Error::Invalid(format!("the step is not valid: {error}"))))?;
    let page = page.map(|page| json::parse(ruby, &page)).transpose()?;
    let page = page.as_ref().map(|page| (page, first));
    Ok(match tasker::template::children::inputs(&kind, &json::parse(ruby, &of)?, page) {
        Ok(inputs) => (Some(inputs.iter().map(|input| input.to_string()).collect()), None),
        Err(problem) => (None, Some(problem)),
    })
}

/// What a task has to say, by what its template names as its output, of {input, results} as JSON.
fn output(ruby: &Ruby, path: Option<String>, of: String) -> Result<String, Error> {
    Ok(tasker::template::children::output(path.as_deref(), &json::parse(ruby, &of)?).to_string())
}

type Begun = (Option<String>, Vec<String>, Option<String>);

/// The key of the signal that a step waits for (its wait as JSON, as a template has it), and who is to send it, of {input, results} as JSON; or why it cannot
/// wait.
fn begin_wait(ruby: &Ruby, wait: String, of: String) -> Result<Begun, Error> {
    let wait = serde_json::from_value(json::parse(ruby, &wait)?)
        .map_err(|error| raise::error(ruby, &tasker::Error::Invalid(format!("the step is not valid: {error}"))))?;
    Ok(match tasker::template::wait::begin(&wait, &json::parse(ruby, &of)?) {
        Ok((key, assignees)) => (key, assignees, None),
        Err(problem) => (None, Vec::new(), Some(problem)),
    })
}

/// The database that is meant: the given one, or that of `tasker dev` in this folder.
fn database_url(ruby: &Ruby, given: Option<String>) -> Result<String, Error> {
    tasker::config::database_url(given.as_deref()).map_err(|error| raise::error(ruby, &error))
}

/// How long this text says ("5m", "1h 30m"), in seconds; nil: it is no length of time.
fn seconds(text: String) -> Option<f64> {
    tasker::seconds(&text)
}

/// The workers of this host: process id, and what has failed there.
fn local_workers(ruby: &Ruby) -> Result<Vec<(String, Vec<String>)>, Error> {
    let answers = waiting::run_without_gvl(ruby, || local::ask(Some(member::Kind::Worker), Level::Live))?;
    Ok(answers.into_iter().map(|a| (a.pid.clone(), a.failures())).collect())
}

/// Pushes what has not been pushed yet of metrics and traces; waits for that no longer than some seconds.
fn flush_telemetry(ruby: &Ruby) -> Result<(), Error> {
    if !tasker::telemetry::is_pushing() {
        return Ok(());
    }
    waiting::block_on(ruby, async {
        tasker::telemetry::flush().await;
        Ok(())
    })
}

/// Runs the command line and returns its exit code. It takes the signals INT and TERM for itself. `file`: see [`settings::of_file`].
fn run_command(ruby: &Ruby, arguments: Vec<String>, file: Value) -> Result<i32, Error> {
    let arguments = arguments.into_iter().map(Into::into);
    let settings = settings::of_file(ruby, file)?;
    let run = || match settings {
        Some(settings) => tasker::cli::run_embedded(arguments, settings),
        None => tasker::cli::run(arguments),
    };
    waiting::run_without_gvl(ruby, run)
}
