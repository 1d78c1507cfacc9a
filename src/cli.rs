//! The command line, shared by the binary `tasker` and the gem's command. One file per noun.
//!
//! Exit codes: 0 done; 1 refused, or the task ended otherwise than complete; 2 wrong usage; 3 the database or the configuration is not as it
//! must be; 4 what was named does not exist; 130 stopped by a second signal.

mod api;
mod bulk;
mod check;
mod config;
mod connection;
mod dev;
mod dlq;
mod health;
mod limit;
mod migrate;
mod namespace;
mod pause;
mod queue;
mod schedule;
mod serve;
mod server;
mod shard;
mod signal;
mod subscription;
mod task;
mod template;
mod token;
mod top;
mod watch;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::sync::OnceLock;

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::config::distributed::Author;
use crate::engine::dead_letters;
use crate::error::{Error, ErrorKind, Result};
use crate::{telemetry, threads};
use connection::{About, Connection};

#[derive(Parser)]
#[command(name = "tasker", version, about = "Workflow orchestration that needs nothing but PostgreSQL")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an orchestrator
    Serve(serve::Serve),
    /// Create or bring up to date the schema in the database
    Migrate(migrate::Migrate),
    /// Ask the orchestrators and workers of this host how they are; exits with 1 unless all that are asked are well
    Health(health::Health),
    /// Create, show, list, watch and cancel tasks
    #[command(subcommand)]
    Task(task::Task),
    /// Have tasks begin at their times
    #[command(subcommand)]
    Schedule(schedule::Schedule),
    /// Have others told what happens
    #[command(subcommand)]
    Subscription(subscription::Subscription),
    /// Send signals to tasks, and list them
    #[command(subcommand)]
    Signal(signal::Signal),
    /// Look at dead letters, replay, resolve, skip and discard them
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// Show, check and change the configuration
    #[command(subcommand)]
    Config(config::Config),
    /// Show what waits, and how the namespaces are
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Show the limits on steps, and close their circuit breakers
    #[command(subcommand)]
    Limit(limit::Limit),
    /// Let nothing new begin of a task, a template, a namespace or a handler; what runs ends
    Pause(pause::Pause),
    /// Let it go on
    Resume(pause::Resume),
    /// List what is paused, by whom and why
    Pauses(pause::Pauses),
    /// List namespaces and change their rules
    #[command(subcommand)]
    Namespace(namespace::Namespace),
    /// Look whether the database is as it must be, after a restore for example; exits with 1 if it is not
    Check(check::Check),
    /// Show the databases that tasks are in
    #[command(subcommand)]
    Shard(shard::Shard),
    /// Check, register, show and list templates
    #[command(subcommand)]
    Template(template::Template),
    /// Show what goes on, at a terminal
    Top(top::Top),
    /// Print what the API can do
    #[command(subcommand)]
    Api(api::Api),
    /// Create, list and revoke the tokens by which others use the API
    #[command(subcommand)]
    Token(token::Token),
    /// Run a Ruby worker (with the command of the gem tasker_core)
    #[command(disable_help_flag = true)]
    Worker {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
    /// Run a private PostgreSQL in .tasker/, migrated, and an orchestrator
    Dev(dev::Dev),
}

/// Who does something, and why.
#[derive(Args)]
struct By {
    /// Who does it
    #[arg(long, env = "USER", default_value = "unknown")]
    who: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

/// Something that has a name, and to which somebody does something.
#[derive(Args)]
struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    connection: Connection,
}

impl By {
    /// As it is recorded with what is done to tasks.
    fn recorded(self) -> dead_letters::By {
        dead_letters::By {
            who: self.who,
            why: self.why,
        }
    }

    fn author(self) -> Author {
        Author {
            who: self.who,
            why: self.why,
        }
    }
}

/// The settings of the program that this is a part of.
static EMBEDDING: OnceLock<(String, Value)> = OnceLock::new();

/// The same as [`run`] inside a program that has read its settings: the name of their file, and its section of this environment.
pub fn run_embedded(arguments: impl IntoIterator<Item = OsString>, settings: (String, Value)) -> i32 {
    EMBEDDING.get_or_init(|| settings);
    run(arguments)
}

/// Runs one command and returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> i32 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return error.exit_code();
        }
    };
    telemetry::init_logging();
    let runtime = match threads::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&Error::System {
                what: "cannot start threads".into(),
                source: error,
            })
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Serve(serve) => serve.run().await,
            Command::Migrate(migrate) => migrate.run().await,
            Command::Task(task) => task.run().await,
            Command::Schedule(schedule) => schedule.run().await,
            Command::Subscription(subscription) => subscription.run().await,
            Command::Signal(signal) => signal.run().await,
            Command::Health(health) => Ok(health.run()),
            Command::Dlq(dlq) => dlq.run().await,
            Command::Config(config) => config.run().await,
            Command::Queue(queue) => queue.run().await,
            Command::Limit(limit) => limit.run().await,
            Command::Pause(pause) => pause.run().await,
            Command::Resume(resume) => resume.run().await,
            Command::Pauses(pauses) => pauses.run().await,
            Command::Namespace(namespace) => namespace.run().await,
            Command::Check(check) => check.run().await,
            Command::Shard(shard) => shard.run().await,
            Command::Template(template) => template.run().await,
            Command::Top(top) => top.run().await,
            Command::Api(api) => api.run(),
            Command::Token(token) => token.run().await,
            Command::Worker { .. } => Err(Error::Config(
                "Ruby workers are run by the command of the gem: gem install tasker_core, then `tasker worker` from there".into(),
            )),
            Command::Dev(dev) => dev.run().await,
        }
    });
    runtime.shutdown_background();
    done.unwrap_or_else(|error| report(&error))
}

fn report(error: &Error) -> i32 {
    eprintln!("tasker: {error}");
    match error.kind() {
        ErrorKind::Template
        | ErrorKind::Invalid
        | ErrorKind::TooLarge
        | ErrorKind::Stale
        | ErrorKind::Backpressure
        | ErrorKind::NotUnique => 1,
        ErrorKind::Config | ErrorKind::Database => 3,
        ErrorKind::NotFound => 4,
    }
}

/// JSON as it is given in an argument: itself, @FILE, or - for standard input.
fn read_json(given: &str) -> Result<serde_json::Value> {
    let text = match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).map_err(|source| Error::System {
            what: file.to_owned(),
            source,
        })?,
        None if given == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|source| Error::System {
                what: "standard input".into(),
                source,
            })?;
            text
        }
        None => given.to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| Error::Invalid(format!("not valid JSON: {error}")))
}

/// Prints a line. That nobody reads it any more (`| head`) is no error.
fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Prints JSON for programs, or text for people.
fn print(json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) {
    if json {
        say(&value.to_string());
    } else {
        say(&text());
    }
}

/// Rows under headings, each column as wide as its widest cell.
fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = std::iter::once(headings.iter().map(|h| (*h).to_owned()).collect())
        .chain(rows.iter().cloned())
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        row.iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect::<Vec<_>>()
            .join("  ")
            .trim_end()
            .to_owned()
    };
    cells.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Under these headings, the fields of each object that `names` names.
fn listing(headings: &[&str], names: &[&str], objects: &[serde_json::Value]) -> String {
    let row = |object| names.iter().map(|name| field(object, name)).collect();
    table(headings, &objects.iter().map(row).collect::<Vec<_>>())
}

/// A string field of a JSON object; "-" where there is none.
fn field(object: &serde_json::Value, name: &str) -> String {
    match &object[name] {
        serde_json::Value::Null => "-".into(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
