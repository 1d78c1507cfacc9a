//! The command line, shared by the binary `tasker` and the gem's command. One file per noun.
//!
//! Exit codes: 0 done; 1 refused, or the task ended otherwise than complete; 2 wrong usage; 3 the database or the configuration is not as it
//! must be; 4 what was named does not exist; 130 stopped by a second signal.

mod api;
mod bulk;
mod check;
mod config;
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
mod task;
mod template;
mod token;
mod top;
mod watch;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use clap::{Args, Parser, Subcommand};
use serde_json::{json, Value};

use crate::config::distributed::{Author, ConfigurationCoordinator};
use crate::config::{database_url, Given, Local, Secret};
use crate::db::Db;
use crate::engine::configuration::coordinator;
use crate::engine::dead_letters;
use crate::engine::shards::Shards;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry;
use server::{Reach, Server};
use uuid::Uuid;

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

/// What a command is about, by which its shard is known.
#[derive(Clone, Copy)]
enum About<'n> {
    Task(Uuid),
    /// A name, or namespace/name.
    Template(&'n str),
    Namespace(&'n str),
    /// What is to be registered.
    Definition(&'n crate::template::Template),
}

/// Which database.
#[derive(Args, Clone, Default)]
struct Connection {
    /// postgres://user:password@host:port/database; default: DATABASE_URL, or tasker.yml, or the private one of `tasker dev`, if it runs
    #[arg(long, global = true)]
    database_url: Option<String>,
    /// Works with this one of the databases that tasker.yml names under shards; default: the one of the task, the template or the namespace that the command is about
    #[arg(long, global = true, conflicts_with = "database_url")]
    shard: Option<String>,
    /// Asks the API of a `tasker serve` there, in place of the database: http://host:port or https://host; SSL_CERT_FILE names the certificates that are trusted
    #[arg(long, global = true, env = "TASKER_SERVER")]
    server: Option<String>,
    /// By which the API knows who asks
    #[arg(long, global = true, env = "TASKER_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl Connection {
    /// Where this command finds what it is about.
    async fn reach(&self) -> Result<Reach> {
        match self.server()? {
            Some(server) => Ok(Reach::Server(server)),
            None => Ok(Reach::Database(Box::new(self.open().await?))),
        }
    }

    /// The same for a command that is about something of one shard.
    async fn reach_of(&self, what: About<'_>) -> Result<Reach> {
        match self.server()? {
            Some(server) => Ok(Reach::Server(server)),
            None => Ok(Reach::Database(Box::new(self.open_of(what).await?))),
        }
    }

    async fn open_of(&self, what: About<'_>) -> Result<Db> {
        self.check_no_server()?;
        let local = self.local(None, json!({}))?;
        let shards = self.shards(&local, 4)?;
        let db = match what {
            _ if self.database_url.is_some() || shards.settings().shard.is_some() => shards.home().await?,
            About::Task(task) => shards.of_task(task).await?,
            About::Template(template) => shards.of_template(template).await?,
            About::Namespace(namespace) => shards.of_namespace(namespace).await?,
            About::Definition(template) => shards.of_definition(template).await?,
        };
        Ok(db.for_people())
    }

    /// Brings the schema up to date, and has the ids of a shard's tasks say so.
    async fn migrate(&self) -> Result<Db> {
        self.check_no_server()?;
        let shards = self.shards(&self.local(None, json!({}))?, 4)?;
        match &shards.settings().shard {
            Some(name) => shards.add(name).await,
            None => {
                let db = shards.home().await?;
                db.migrate().await?;
                Ok(db)
            }
        }
    }

    /// The API that it asks in place of the database.
    fn server(&self) -> Result<Option<Server>> {
        let server = self.server.as_deref().filter(|_| self.database_url.is_none());
        let server = server.map(|url| Server::new(url, self.token.as_deref()));
        server.transpose()
    }

    /// For a command that does one thing after the other, and that no API has.
    async fn open(&self) -> Result<Db> {
        self.check_no_server()?;
        Ok(self.connect(&self.local(None, json!({}))?, 4).await?.for_people())
    }

    fn check_no_server(&self) -> Result<()> {
        match self.server()? {
            None => Ok(()),
            Some(_) => Err(Error::Config(
                "this command works with the database itself, and not with --server (TASKER_SERVER)".into(),
            )),
        }
    }

    /// What this process is told where it runs, and by these flags.
    fn local(&self, file: Option<PathBuf>, mut flags: Value) -> Result<Local> {
        if let Some(url) = &self.database_url {
            flags["database_url"] = json!(url);
        }
        if let Some(shard) = &self.shard {
            flags["shard"] = json!(shard);
        }
        let given = Given {
            settings: EMBEDDING.get().filter(|_| file.is_none()).cloned(),
            file,
            flags,
        };
        Local::read(given)
    }

    /// The database, and where the configuration is kept that all share.
    async fn coordinated(&self) -> Result<(Db, Arc<dyn ConfigurationCoordinator>)> {
        self.coordinated_by(self.open().await?).await
    }

    async fn coordinated_by(&self, db: Db) -> Result<(Db, Arc<dyn ConfigurationCoordinator>)> {
        let settings = self.local(None, json!({}))?.with(0, &json!({}))?.settings;
        let coordinator = coordinator(&db, &settings).await?;
        Ok((db, coordinator))
    }

    async fn connect(&self, local: &Local, connections: u32) -> Result<Db> {
        self.shards(local, connections)?.home().await
    }

    fn shards(&self, local: &Local, connections: u32) -> Result<Shards> {
        let mut settings = local.with(0, &json!({}))?.settings;
        if self.database_url.is_some() {
            settings.shard = None;
        }
        let url = database_url(settings.database_url.as_ref().map(Secret::reveal))?;
        Ok(Shards::new(url, connections, settings))
    }
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
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
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
