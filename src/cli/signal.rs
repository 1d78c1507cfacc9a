//! `tasker signal`: send and list; and `tasker task waiting`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{json, Value};
use uuid::Uuid;

use super::server::{read, Reach};
use super::{field, listing, print, read_json, say, table, Connection};
use crate::engine::lists;
use crate::engine::signals::{self, Addressee, SignalFilter, WaitFilter};
use crate::error::Result;

#[derive(Subcommand)]
pub(super) enum Signal {
    /// Send a signal to a task, or by a key
    Send {
        /// What the step waits for
        name: String,
        /// To this task
        #[arg(long, required_unless_present = "key")]
        task: Option<Uuid>,
        /// To all tasks that wait with this key
        #[arg(long, conflicts_with = "task")]
        key: Option<String>,
        /// JSON; @FILE reads it from a file, - from standard input
        #[arg(long, short, default_value = "null")]
        payload: String,
        /// The sender's own id of it: the same counts once
        #[arg(long)]
        id: Option<String>,
        /// How long it is kept ("1h"); default: 7 days
        #[arg(long, value_parser = humantime::parse_duration)]
        keep: Option<Duration>,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the signals that are not forgotten, the newest first
    List {
        /// Only of this name
        #[arg(long)]
        name: Option<String>,
        /// Only to this task
        #[arg(long)]
        task: Option<Uuid>,
        /// Only by this key
        #[arg(long)]
        key: Option<String>,
        /// Only those that no step has waited for
        #[arg(long)]
        unclaimed: bool,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        limit: i32,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

impl Signal {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Signal::Send {
                name,
                task,
                key,
                payload,
                id,
                keep,
                json,
                connection,
            } => {
                let signal = signals::Signal {
                    to: match task {
                        Some(task) => Addressee::Task(task),
                        None => Addressee::Key(key.unwrap_or_default()),
                    },
                    name,
                    payload: read_json(&payload)?.to_string(),
                    id,
                    keep,
                };
                let sent = match connection.reach()? {
                    Reach::Database(shards) => signals::send_to(&shards, &signal).await?,
                    Reach::Server(server) => read(server.post("/signals", of(&signal)?)?)?,
                };
                print(json, &json!(sent), || match sent.outcome.as_str() {
                    "awaited" => "sent: a step waits for it".into(),
                    "kept" => "kept: no step waits for it yet".into(),
                    "duplicate" => "a signal with this id was sent before: this one does not count".into(),
                    _ => "late: the task has ended".into(),
                });
                if let (false, Some(note)) = (json, &sent.note) {
                    say(note);
                }
                Ok(if sent.outcome == "late" { 1 } else { 0 })
            }
            Signal::List {
                name,
                task,
                key,
                unclaimed,
                limit,
                json,
                connection,
            } => {
                let filter = SignalFilter {
                    name,
                    task,
                    key,
                    unclaimed,
                };
                let listed = match connection.reach()? {
                    Reach::Database(shards) => lists::signals(&shards, &filter, limit).await?,
                    Reach::Server(server) => {
                        let SignalFilter {
                            name,
                            task,
                            key,
                            unclaimed,
                        } = filter;
                        let query = [
                            ("name", json!(name)),
                            ("task", json!(task)),
                            ("key", json!(key)),
                            ("unclaimed", json!(unclaimed)),
                        ];
                        server.list("/signals", &query, limit as usize)?
                    }
                };
                print(json, &json!(listed), || {
                    listing(
                        &["SENT", "NAME", "TASK", "KEY", "ITS ID", "RECEIVED", "PAYLOAD"],
                        &["sent_at", "name", "task", "key", "sender_id", "received", "payload"],
                        &listed,
                    )
                });
                Ok(0)
            }
        }
    }
}

/// As the API has it.
fn of(signal: &signals::Signal) -> Result<Value> {
    let (task, key) = match &signal.to {
        Addressee::Task(task) => (Some(task), None),
        Addressee::Key(key) => (None, Some(key)),
    };
    let payload = read_json(&signal.payload)?;
    let keep = signal.keep.map(|keep| keep.as_secs().max(1));
    Ok(json!({ "task": task, "key": key, "name": signal.name, "payload": payload, "id": signal.id, "keep": keep }))
}

#[derive(Args)]
pub(super) struct Waiting {
    /// Only of tasks of this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Only for this signal
    #[arg(long)]
    signal: Option<String>,
    /// Only what this person is asked for
    #[arg(long)]
    assignee: Option<String>,
    /// Only behind this task's
    #[arg(long)]
    after: Option<Uuid>,
    /// How many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    limit: i32,
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Waiting {
    pub(super) async fn run(self) -> Result<i32> {
        let filter = WaitFilter {
            namespace: self.namespace,
            signal: self.signal,
            assignee: self.assignee,
            after: self.after,
        };
        let waits = match self.connection.reach()? {
            Reach::Database(shards) => lists::waits_page(&shards, &filter, None, self.limit).await?.0,
            Reach::Server(server) => {
                let WaitFilter {
                    namespace,
                    signal,
                    assignee,
                    after,
                } = filter;
                let query = [
                    ("namespace", json!(namespace)),
                    ("signal", json!(signal)),
                    ("assignee", json!(assignee)),
                    ("cursor", json!(after)),
                ];
                server.list("/waits", &query, self.limit as usize)?
            }
        };
        print(self.json, &json!(waits), || {
            let row = |wait: &Value| {
                let who: Vec<&str> = wait["assignees"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                let mut row = ["task", "template", "step", "signal", "key", "since", "due_at", "times_out_at"]
                    .map(|name| field(wait, name))
                    .to_vec();
                row.push(if who.is_empty() { "-".into() } else { who.join(", ") });
                row
            };
            let headings = ["TASK", "TEMPLATE", "STEP", "SIGNAL", "KEY", "SINCE", "DUE", "TIMES OUT", "WHO"];
            table(&headings, &waits.iter().map(row).collect::<Vec<_>>())
        });
        Ok(0)
    }
}
