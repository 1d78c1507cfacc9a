//! `tasker subscription`: create, list, show, pause, resume, replay, rotate-secret, delete.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{json, Value};

use super::server::{part, read, Reach};
use super::{field, listing, print, say, By, Connection, Named};
use crate::engine::subscriptions;
use crate::engine::tags::read_tags;
use crate::error::{Error, Result};
use crate::subscription::Subscription as Definition;

#[derive(Subcommand)]
pub(super) enum Subscription {
    /// Create a subscription to what happens from now on, or change one
    Create(Box<Create>),
    /// List the subscriptions, and how far each was told
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show a subscription, as each shard has it
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Deliver nothing, and keep everything
    Pause(Named),
    /// Let it go on from where it was; also one that was disabled, since its sink had taken nothing for days
    Resume(Named),
    /// Deliver once more what has happened since, as far as it is kept
    Replay {
        /// Its name
        name: String,
        /// From then on: 2026-03-01T00:00:00Z
        #[arg(long)]
        from: DateTime<Utc>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Give it another secret, beside the one it has, and print it
    RotateSecret {
        /// Its name
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a subscription; what it was not told yet is not told any more
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
    /// Types of events, such as task.complete,task.failed
    #[arg(long, required = true, value_delimiter = ',')]
    types: Vec<String>,
    /// Of tasks in these namespaces only
    #[arg(long = "namespace", value_delimiter = ',')]
    namespaces: Option<Vec<String>>,
    /// Of tasks of these templates only (NAMESPACE/NAME)
    #[arg(long = "template", value_delimiter = ',')]
    templates: Option<Vec<String>>,
    /// Of tasks with these tags only (customer=42,region=eu)
    #[arg(long)]
    tags: Option<String>,
    /// Where each event is posted
    #[arg(long, required_unless_present = "pull")]
    webhook: Option<String>,
    /// By which its requests are signed (whsec_…); default: one is made, and printed
    #[arg(long, requires = "webhook", env = "TASKER_WEBHOOK_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// How many are posted at once, of different tasks
    #[arg(long, requires = "webhook")]
    at_once: Option<usize>,
    /// How long an answer may take
    #[arg(long, requires = "webhook")]
    timeout: Option<String>,
    /// When nothing more is tried, since one event was not taken for so long
    #[arg(long, requires = "webhook")]
    patience: Option<String>,
    /// Nowhere: who wants them asks for them, by GET /api/v1/subscriptions/NAME/events
    #[arg(long, conflicts_with = "webhook")]
    pull: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Create {
    fn written(&self) -> Result<Value> {
        let invalid = |problem: &str| Error::Invalid(problem.to_owned());
        let tags = self.tags.as_deref().map(read_tags).transpose().map_err(invalid)?;
        let mut webhook = json!({ "url": self.webhook, "at_once": self.at_once, "timeout": self.timeout, "patience": self.patience });
        let mut written = json!({ "types": self.types, "namespaces": self.namespaces, "templates": self.templates, "tags": tags });
        for fields in [&mut webhook, &mut written].into_iter().filter_map(Value::as_object_mut) {
            fields.retain(|_, value| !value.is_null());
        }
        match self.pull {
            true => written["pull"] = json!(true),
            false => written["webhook"] = webhook,
        }
        Ok(written)
    }

    async fn run(self) -> Result<()> {
        let written = self.written()?;
        let definition = Definition::parse(&written).map_err(Error::Invalid)?;
        let (outcome, secret) = match self.connection.reach()? {
            Reach::Database(shards) => {
                let put = subscriptions::put(&shards, &self.name, &definition, self.secret.as_deref()).await?;
                (put.outcome, put.secret)
            }
            Reach::Server(server) => {
                let body = json!({ "definition": written, "secret": self.secret });
                let mut put = server.put(&format!("/subscriptions/{}", part(&self.name)), body)?;
                (read(put["outcome"].take())?, read(put["secret"].take())?)
            }
        };
        say(&format!("{}: {outcome}", self.name));
        if let Some(secret) = secret.filter(|_| self.secret.is_none()) {
            say(&format!("its secret, which is not shown again: {secret}"));
        }
        Ok(())
    }
}

impl Subscription {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Subscription::Create(create) => create.run().await?,
            Subscription::List { json, connection } => {
                let listed = match connection.reach()? {
                    Reach::Database(shards) => subscriptions::list(&shards).await?,
                    Reach::Server(server) => server.all("/subscriptions", &[])?,
                };
                print(json, &json!(listed), || {
                    listing(
                        &["NAME", "TYPES", "TO", "STATE", "DELIVERED", "LAG", "PROBLEM"],
                        &["name", "types", "to", "state", "delivered", "lag", "problem"],
                        &listed.iter().map(row).collect::<Vec<_>>(),
                    )
                });
            }
            Subscription::Show { name, connection } => {
                let shown = match connection.reach()? {
                    Reach::Database(shards) => json!(subscriptions::show(&shards, &name).await?),
                    Reach::Server(server) => server.get(&path(&name, ""), &[])?["items"].take(),
                };
                print(true, &shown, String::new);
            }
            Subscription::Pause(Named { name, by, connection }) => {
                pause(&connection, &name, true, &by).await?;
                say(&format!("{name}: paused"));
            }
            Subscription::Resume(Named { name, by, connection }) => {
                pause(&connection, &name, false, &by).await?;
                say(&format!("{name}: goes on"));
            }
            Subscription::Replay { name, from, connection } => {
                match connection.reach()? {
                    Reach::Database(shards) => subscriptions::replay(&shards, &name, from).await?,
                    Reach::Server(server) => drop(server.post(&path(&name, "/replay"), json!({ "from": from }))?),
                }
                say(&format!("{name}: begins at {}", from.to_rfc3339()));
            }
            Subscription::RotateSecret { name, connection } => {
                let secret: String = match connection.reach()? {
                    Reach::Database(shards) => subscriptions::rotate(&shards, &name).await?,
                    Reach::Server(server) => read(server.post(&path(&name, "/rotate-secret"), json!({}))?["secret"].take())?,
                };
                say(&secret);
            }
            Subscription::Delete { name, connection } => {
                match connection.reach()? {
                    Reach::Database(shards) => subscriptions::delete(&shards, &name).await?,
                    Reach::Server(server) => drop(server.delete(&path(&name, ""))?),
                }
                say(&format!("{name}: deleted"));
            }
        }
        Ok(0)
    }
}

fn path(name: &str, verb: &str) -> String {
    format!("/subscriptions/{}{verb}", part(name))
}

async fn pause(connection: &Connection, name: &str, paused: bool, by: &By) -> Result<()> {
    match connection.reach()? {
        Reach::Database(shards) => subscriptions::pause(&shards, name, paused, &by.who, by.why.as_deref()).await,
        Reach::Server(server) => {
            let verb = if paused { "/pause" } else { "/resume" };
            server.post(&path(name, verb), json!({ "why": by.why })).map(drop)
        }
    }
}

/// As a line of the list.
fn row(subscription: &Value) -> Value {
    let types: Vec<&str> = subscription["types"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let state = ["disabled", "paused"].into_iter().find(|state| !subscription[*state].is_null());
    let to = subscription["sink"]["webhook"]["url"].as_str().unwrap_or("pull");
    json!({ "name": subscription["name"], "types": types.join(","), "to": to, "delivered": subscription["delivered"], "problem": subscription["problem"],
            "state": state.unwrap_or(if subscription["failing_since"].is_null() { "on" } else { "failing" }),
            "lag": format!("{:.1} s", subscription["lag"].as_f64().unwrap_or_default()), "shard": field(subscription, "shard") })
}
