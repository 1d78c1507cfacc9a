//! `tasker schedule`: create, list, show, pause, resume, trigger, backfill, delete.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{json, Value};
use uuid::Uuid;

use super::server::{part, read, Reach};
use super::{field, listing, print, read_json, say, table, By, Connection, Named};
use crate::engine::schedules;
use crate::error::{Error, Result};
use crate::schedule::Schedule as Definition;

#[derive(Subcommand)]
pub(super) enum Schedule {
    /// Create a schedule, or change one: its old form never begins anything from then on
    Create(Box<Create>),
    /// List the schedules with their next time, and what became of the last one
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show a schedule with its next times, and what became of the last ones
    Show {
        /// Its name
        name: String,
        /// How many of each
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i32).range(1..=1_000))]
        count: i32,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Let a schedule begin nothing
    Pause(Named),
    /// Let it go on; what would have been meanwhile does not begin
    Resume(Named),
    /// Begin a task of a schedule now, beside what runs
    Trigger {
        /// Its name
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Begin a task for each time that lies back, beside what runs, but for those that have had one
    Backfill {
        /// Its name
        name: String,
        /// From then on: 2026-03-01T00:00:00Z
        #[arg(long)]
        from: DateTime<Utc>,
        /// Until then
        #[arg(long)]
        until: DateTime<Utc>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a schedule; what it began goes on
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Args)]
pub(super) struct Create {
    /// Its name
    name: String,
    /// Of whose tasks: name, or namespace/name
    template: String,
    /// A pattern of five fields, or six with seconds first
    #[arg(long, required_unless_present = "every")]
    cron: Option<String>,
    /// Again and again after that time ("15m")
    #[arg(long, conflicts_with = "cron")]
    every: Option<String>,
    /// Of the pattern: one of IANA's, such as Europe/Berlin; default: UTC
    #[arg(long, requires = "cron")]
    time_zone: Option<String>,
    /// Begin at random within that time after each
    #[arg(long)]
    jitter: Option<String>,
    /// When a task of it has not ended: allow, skip, queue or cancel_old
    #[arg(long)]
    overlap: Option<String>,
    /// What is done about times at which no orchestrator ran: none, last or all
    #[arg(long)]
    catch_up: Option<String>,
    /// Not before (2030-01-31T08:00:00Z)
    #[arg(long)]
    starts_at: Option<String>,
    /// Not after
    #[arg(long)]
    ends_at: Option<String>,
    /// A JSON object; @FILE reads it from a file, - from standard input. A value "$time" is the time
    #[arg(long, short)]
    input: Option<String>,
    /// low, normal, high or urgent; default: the template's
    #[arg(long)]
    priority: Option<String>,
    /// The template's version; default: the current one
    #[arg(long)]
    version: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl Create {
    async fn run(self) -> Result<()> {
        let input = self.input.as_deref().map(read_json).transpose()?;
        let mut written = json!({
            "cron": self.cron, "every": self.every, "time_zone": self.time_zone, "jitter": self.jitter, "overlap": self.overlap,
            "catch_up": self.catch_up, "starts_at": self.starts_at, "ends_at": self.ends_at, "input": input, "priority": self.priority,
            "version": self.version,
        });
        if let Some(fields) = written.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        let schedule = Definition::parse(&written).map_err(Error::Invalid)?;
        let outcome = match self.connection.reach()? {
            Reach::Database(shards) => {
                schedules::put(
                    &schedules::home_for(&shards, &self.name, &self.template).await?,
                    &self.name,
                    &self.template,
                    &schedule,
                )
                .await?
            }
            Reach::Server(server) => {
                let body = json!({ "template": self.template, "definition": written });
                read(server.put(&format!("/schedules/{}", part(&self.name)), body)?["outcome"].take())?
            }
        };
        say(&format!("{}: {outcome}", self.name));
        Ok(())
    }
}

impl Schedule {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Schedule::Create(create) => create.run().await?,
            Schedule::List { json, connection } => {
                let listed = match connection.reach()? {
                    Reach::Database(shards) => shards.list(|db| async move { schedules::list(&db).await }).await?,
                    Reach::Server(server) => server.all("/schedules", &[])?,
                };
                let row = |schedule: &Value| {
                    json!({ "name": schedule["name"], "template": schedule["template"], "when": when(schedule), "owner": schedule["owner"],
                            "next": if schedule["paused"].is_null() { field(schedule, "next_at") } else { "paused".into() },
                            "last": field(&schedule["last"], "time"), "state": field(&schedule["last"], "state") })
                };
                print(json, &json!(listed), || {
                    listing(
                        &["NAME", "TEMPLATE", "WHEN", "OWNER", "NEXT", "LAST", "WHICH WAS"],
                        &["name", "template", "when", "owner", "next", "last", "state"],
                        &listed.iter().map(row).collect::<Vec<_>>(),
                    )
                });
            }
            Schedule::Show {
                name,
                count,
                json,
                connection,
            } => {
                let mut shown = match connection.reach()? {
                    Reach::Database(shards) => schedules::find(&shards, &name, count).await?.1,
                    Reach::Server(server) => server.get(&format!("/schedules/{}", part(&name)), &[])?,
                };
                if let Some(ticks) = shown["ticks"].as_array_mut() {
                    ticks.truncate(count as usize);
                }
                shown["next"] = json!(next(&shown, count as usize));
                print(json, &shown, || describe(&shown));
            }
            Schedule::Pause(Named { name, by, connection }) => {
                pause(&connection, &name, true, &by).await?;
                say(&format!("{name}: paused"));
            }
            Schedule::Resume(Named { name, by, connection }) => {
                pause(&connection, &name, false, &by).await?;
                say(&format!("{name}: goes on"));
            }
            Schedule::Trigger { name, connection } => {
                let tasks: Vec<Uuid> = match connection.reach()? {
                    Reach::Database(shards) => schedules::trigger(&schedules::find(&shards, &name, 0).await?.0, &name).await?,
                    Reach::Server(server) => read(server.post(&format!("/schedules/{}/trigger", part(&name)), json!({}))?["tasks"].take())?,
                };
                tasks.iter().for_each(|task| say(&task.to_string()));
            }
            Schedule::Backfill {
                name,
                from,
                until,
                connection,
            } => {
                let tasks: Vec<Uuid> = match connection.reach()? {
                    Reach::Database(shards) => {
                        schedules::backfill(&schedules::find(&shards, &name, 0).await?.0, &name, from, until).await?
                    }
                    Reach::Server(server) => {
                        let path = format!("/schedules/{}/backfill", part(&name));
                        read(server.post(&path, json!({ "from": from, "until": until }))?["tasks"].take())?
                    }
                };
                say(&format!("{} tasks begin", tasks.len()));
            }
            Schedule::Delete { name, connection } => {
                match connection.reach()? {
                    Reach::Database(shards) => schedules::delete(&schedules::find(&shards, &name, 0).await?.0, &name).await?,
                    Reach::Server(server) => drop(server.delete(&format!("/schedules/{}", part(&name)))?),
                }
                say(&format!("{name}: deleted"));
            }
        }
        Ok(0)
    }
}

async fn pause(connection: &Connection, name: &str, paused: bool, by: &By) -> Result<()> {
    match connection.reach()? {
        Reach::Database(shards) => {
            schedules::pause(
                &schedules::find(&shards, name, 0).await?.0,
                name,
                paused,
                &by.who,
                by.why.as_deref(),
            )
            .await
        }
        Reach::Server(server) => {
            let verb = if paused { "pause" } else { "resume" };
            server
                .post(&format!("/schedules/{}/{verb}", part(name)), json!({ "why": by.why }))
                .map(drop)
        }
    }
}

fn when(schedule: &Value) -> String {
    let read: Option<Definition> = serde_json::from_value(schedule["definition"].clone()).ok();
    read.map_or_else(|| "-".into(), |definition| definition.when.to_string())
}

/// The next times, unless it is paused.
fn next(schedule: &Value, count: usize) -> Vec<DateTime<Utc>> {
    let read: Option<Definition> = serde_json::from_value(schedule["definition"].clone()).ok();
    let times = read
        .filter(|_| schedule["paused"].is_null())
        .and_then(|definition| definition.times().ok());
    times.map(|times| times.take(Utc::now(), count)).unwrap_or_default()
}

fn describe(schedule: &Value) -> String {
    let paused = match &schedule["paused"] {
        Value::Null => String::new(),
        paused => format!(
            "\npaused    by {} at {}: {}",
            field(paused, "who"),
            field(paused, "at"),
            field(paused, "why")
        ),
    };
    let lines = |times: &Value| {
        times
            .as_array()
            .into_iter()
            .flatten()
            .map(|time| vec![time.as_str().unwrap_or_default().to_owned()])
            .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = schedule["ticks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tick| ["time", "state", "task", "why"].map(|name| field(tick, name)).to_vec())
        .collect();
    format!(
        "name      {}\ntemplate  {}\nwhen      {}\nowner     {}{paused}\nall       {}\n\n{}\n\n{}",
        field(schedule, "name"),
        field(schedule, "template"),
        when(schedule),
        field(schedule, "owner"),
        schedule["definition"],
        table(&["NEXT"], &lines(&schedule["next"])),
        table(&["LAST", "STATE", "TASK", "WHY"], &rows)
    )
}
