//! `tasker namespace`: the rules of failures where neither step nor template says otherwise.

use clap::Subcommand;
use serde_json::json;

use super::server::{part, read, Reach};
use super::{listing, print, About, By, Connection};
use crate::engine::namespaces::{self, Rules};
use crate::error::Result;
use crate::template::Backoff;

#[derive(Subcommand)]
pub(super) enum Namespace {
    /// List the namespaces with their rules
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Create namespaces with their queues, where they are missing: for those whose workers may not
    Create {
        /// a to z, 0 to 9 and _, at most 37 of them
        #[arg(required = true)]
        names: Vec<String>,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Change rules of a namespace, also for tasks that are under way
    Set {
        /// The namespace
        name: String,
        /// Attempts of a step, the first run included
        #[arg(long)]
        max_attempts: Option<i32>,
        /// fixed, linear or exponential
        #[arg(long, value_parser = backoff)]
        backoff: Option<Backoff>,
        /// By what an exponential delay grows
        #[arg(long)]
        multiplier: Option<f64>,
        /// The first delay
        #[arg(long)]
        base_seconds: Option<f64>,
        /// The longest delay
        #[arg(long)]
        max_seconds: Option<f64>,
        /// The spread of the delays, 0 to 1
        #[arg(long)]
        jitter: Option<f64>,
        /// After how many days a dead letter is deleted
        #[arg(long)]
        retention_days: Option<i32>,
        /// How many dead letters raise an alert
        #[arg(long)]
        alert_threshold: Option<i32>,
        /// How long a task that has ended is kept; for ever where nothing is said
        #[arg(long)]
        history_seconds: Option<f64>,
        /// Leave its tasks waiting while its queue holds this many messages
        #[arg(long)]
        queue_target: Option<i32>,
        #[command(flatten)]
        by: By,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

fn backoff(name: &str) -> std::result::Result<Backoff, String> {
    serde_json::from_value(json!(name)).map_err(|_| "expected fixed, linear or exponential".into())
}

const COLUMNS: [&str; 11] = [
    "name",
    "max_attempts",
    "backoff",
    "multiplier",
    "base_seconds",
    "max_seconds",
    "jitter",
    "retention_days",
    "alert_threshold",
    "history_seconds",
    "queue_target",
];

impl Namespace {
    pub(super) async fn run(self) -> Result<i32> {
        let (json, found) = match self {
            Namespace::List { json, connection } => match connection.reach()? {
                Reach::Database(shards) => (json, shards.list(|db| async move { namespaces::list(&db).await }).await?),
                Reach::Server(server) => (json, server.all("/namespaces", &[])?),
            },
            Namespace::Create { names, json, connection } => {
                let created = match connection.reach()? {
                    Reach::Database(shards) => {
                        let mut created = Vec::new();
                        for (db, names) in shards.of_namespaces(names).await? {
                            created.extend(namespaces::create(&db, &names).await?);
                        }
                        created
                    }
                    Reach::Server(server) => read(server.post("/namespaces", json!({ "names": names }))?["items"].take())?,
                };
                (json, created)
            }
            Namespace::Set {
                name,
                max_attempts,
                backoff,
                multiplier,
                base_seconds,
                max_seconds,
                jitter,
                retention_days,
                alert_threshold,
                history_seconds,
                queue_target,
                by,
                json,
                connection,
            } => {
                let rules = Rules {
                    max_attempts,
                    backoff,
                    multiplier,
                    base_seconds,
                    max_seconds,
                    jitter,
                    retention_days,
                    alert_threshold,
                    history_seconds,
                    queue_target,
                    ..Rules::default()
                };
                if let Some(server) = connection.server()? {
                    let set = server.post(
                        &format!("/namespaces/{}/rules", part(&name)),
                        json!({ "rules": rules, "why": by.why }),
                    )?;
                    (json, vec![set])
                } else {
                    let db = connection.open_of(About::Namespace(&name)).await?;
                    let coordinator = connection.coordinator().await?;
                    (json, vec![namespaces::set(&db, &*coordinator, &name, &rules, &by.author()).await?])
                }
            }
        };
        print(json, &json!(found), || {
            let headings = COLUMNS.map(str::to_uppercase);
            listing(&headings.each_ref().map(String::as_str), &COLUMNS, &found)
        });
        Ok(0)
    }
}
