//! `tasker task`: create, show, list, watch; what is done to many is in `bulk`.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Subcommand;
use opentelemetry::context::FutureExt;
use serde_json::{json, Value};
use uuid::Uuid;

use super::bulk::{self, tag, Filters};
use super::server::{part, read as read_as, Reach};
use super::signal::Waiting;
use super::watch::{describe, follow, whole};
use super::{field, listing, print, read_json, table, About, Connection};
use crate::engine::children::{read_children, Child, Page};
use crate::engine::fork::fork_task;
use crate::engine::lists;
use crate::engine::memories::read_values;
use crate::engine::read::{self, TaskFilter};
use crate::engine::reasons::{explain, Reason};
use crate::engine::submit::{NewTask, Submitted, Submitter};
use crate::engine::tags::write_tag;
use crate::error::{Error, Result};
use crate::telemetry::{self, Carrier};
use crate::template::{Priority, Unique};

#[derive(Subcommand)]
pub(super) enum Task {
    /// Create a task
    Create {
        /// name, or namespace/name
        template: String,
        /// A JSON object; @FILE reads it from a file, - from standard input
        #[arg(long, short, default_value = "{}")]
        input: String,
        /// low, normal, high or urgent; default: the template's
        #[arg(long)]
        priority: Option<Priority>,
        /// The same key returns the same task
        #[arg(long)]
        key: Option<String>,
        /// By which it can be found (customer=42); may be given again
        #[arg(long = "tag", value_parser = tag)]
        tags: Vec<(String, String)>,
        /// Which others are the same, in place of what the template says ('{ by: customer_id, while: queued }')
        #[arg(long, value_name = "RULE", value_parser = unique)]
        unique: Option<Value>,
        /// Not before then (2030-01-31T08:00:00Z)
        #[arg(long)]
        at: Option<DateTime<Utc>>,
        /// Not before so long from now ("1h 30m")
        #[arg(long = "in", value_name = "DURATION", conflicts_with = "at", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        /// The template's version; default: the current one
        #[arg(long)]
        version: Option<String>,
        /// Watch it to its end
        #[arg(long)]
        watch: bool,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show a task with its steps
    Show {
        /// The task's id
        id: Uuid,
        /// A JSON object with everything
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// What became of the tasks that are the work of a step, in order
    Children {
        /// The task's id
        id: Uuid,
        /// The step's name
        step: String,
        /// Only those that are dead
        #[arg(long)]
        dead: bool,
        /// Only those behind this item
        #[arg(long)]
        after: Option<i32>,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        limit: i32,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// What waits for a signal, such as a person's approval; those first that have waited longest
    Waiting(Waiting),
    /// List tasks, the newest first
    List {
        #[command(flatten)]
        filters: Filters,
        /// Only tasks older than this one
        #[arg(long)]
        before: Option<Uuid>,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        limit: i32,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Say why a task, and each of its steps that neither runs nor is complete, is where it is
    Why {
        /// The task's id
        id: Uuid,
        /// JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Follow a task until it ends or is blocked; exits with 0 only if it is complete
    Watch {
        /// The task's id
        id: Uuid,
        /// A JSON object for every change of state
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Cancel tasks that have not ended
    Cancel(bulk::Cancel),
    /// Let nothing new begin of tasks; what runs ends
    Pause(bulk::Pause),
    /// Let them go on
    Resume(bulk::Resume),
    /// Let their dead steps start over
    Replay(bulk::Replay),
    /// Run a task that has ended, or is blocked, again from a step on, as another task
    Fork {
        /// The task's id
        id: Uuid,
        /// The first step that is done again; what was complete beside it, and before it, is taken over. Default: all is done again
        #[arg(long, value_name = "STEP")]
        from: Option<String>,
        /// A JSON object in place of its input; @FILE reads it from a file, - from standard input
        #[arg(long, short)]
        input: Option<String>,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Give tasks that have not ended another priority
    Prioritize(bulk::Prioritize),
}

impl Task {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Task::Create {
                template,
                input,
                priority,
                key,
                tags,
                unique,
                at,
                wait,
                version,
                watch,
                json,
                connection,
            } => {
                let tags: BTreeMap<String, String> = tags.into_iter().collect();
                let input = read_json(&input)?;
                let run_at = at.or_else(|| Utc::now().checked_add_signed(TimeDelta::from_std(wait?).ok()?));
                let reach = connection.reach_of(About::Template(&template)).await?;
                let submitted = match &reach {
                    Reach::Database(db) => {
                        let task = NewTask {
                            input: input.into(),
                            priority,
                            key,
                            tags,
                            unique: unique.map(|rule| Unique::parse(&rule)).transpose().map_err(Error::Invalid)?,
                            run_at,
                        };
                        let submitter = Submitter::new((**db).clone());
                        let submitted = submitter
                            .submit(&template, version.as_deref(), &[task])
                            .with_context(telemetry::extract(&carrier()))
                            .await;
                        telemetry::flush().await;
                        submitted?.remove(0)
                    }
                    Reach::Server(server) => {
                        let task =
                            json!({ "input": input, "priority": priority, "key": key, "tags": tags, "unique": unique, "run_at": run_at });
                        let body = json!({ "template": template, "version": version, "tasks": [task] });
                        read_as::<Submitted>(server.post("/tasks", body)?["tasks"][0].take())?
                    }
                };
                print(json, &json!(submitted), || match submitted.created {
                    true => submitted.id.to_string(),
                    false => format!("{} (the key was known)", submitted.id),
                });
                if watch {
                    follow(&reach, submitted.id, json).await
                } else {
                    Ok(0)
                }
            }
            Task::Show { id, json, connection } => {
                let reach = connection.reach_of(About::Task(id)).await?;
                let mut task = whole(&reach, id).await?;
                task["values"] = match &reach {
                    Reach::Database(db) => read_values(db, id).await?,
                    Reach::Server(server) => server.get(&format!("/tasks/{id}/values"), &[])?,
                };
                print(json, &task, || describe(&task));
                Ok(0)
            }
            Task::Children {
                id,
                step,
                dead,
                after,
                limit,
                json,
                connection,
            } => {
                let children: Vec<Child> = match connection.reach_of(About::Task(id)).await? {
                    Reach::Database(db) => read_children(&db, id, None, &step, &Page { after, limit, dead }).await?,
                    Reach::Server(server) => {
                        let path = format!("/tasks/{id}/steps/{}/children", part(&step));
                        let children = server.list(&path, &[("dead", json!(dead)), ("cursor", json!(after))], limit as usize)?;
                        children.into_iter().map(read_as).collect::<Result<_>>()?
                    }
                };
                print(json, &json!(children), || {
                    let row = |child: &Child| {
                        let end = child
                            .error
                            .as_ref()
                            .map(|error| format!("{}: {}", field(error, "class"), field(error, "message")));
                        let result = child.result.as_ref().map(|result| result.get().chars().take(100).collect());
                        let end = end.or(result).unwrap_or_else(|| "-".into());
                        vec![child.item.to_string(), child.id.to_string(), child.state.clone(), end]
                    };
                    table(&["ITEM", "ID", "STATE", "RESULT"], &children.iter().map(row).collect::<Vec<_>>())
                });
                Ok(0)
            }
            Task::Waiting(waiting) => waiting.run().await,
            Task::List {
                filters,
                before,
                limit,
                json,
                connection,
            } => {
                let filter = TaskFilter {
                    before,
                    ..filters.filter()
                };
                let tasks = match connection.reach()? {
                    Reach::Database(shards) => lists::tasks(&shards, &filter, limit).await?,
                    Reach::Server(server) => server.list("/tasks", &query(&filter), limit as usize)?,
                };
                print(json, &json!(tasks), || {
                    listing(
                        &["ID", "NAMESPACE", "TEMPLATE", "VERSION", "STATE", "PRIORITY", "CREATED"],
                        &["id", "namespace", "template", "version", "state", "priority", "created_at"],
                        &tasks,
                    )
                });
                Ok(0)
            }
            Task::Why { id, json, connection } => {
                let reasons: Vec<Reason> = match connection.reach_of(About::Task(id)).await? {
                    Reach::Database(db) => explain(&db, &read::read_task(&db, id).await?).await?,
                    Reach::Server(server) => read_as(server.get(&format!("/tasks/{id}/reasons"), &[])?["items"].take())?,
                };
                print(json, &json!(reasons), || match reasons.is_empty() {
                    true => "It is complete, or runs.".into(),
                    false => reasons.iter().map(said).collect::<Vec<_>>().join("\n"),
                });
                Ok(0)
            }
            Task::Watch { id, json, connection } => follow(&connection.reach_of(About::Task(id)).await?, id, json).await,
            Task::Cancel(cancel) => cancel.run().await,
            Task::Pause(pause) => pause.run().await,
            Task::Resume(resume) => resume.run().await,
            Task::Replay(replay) => replay.run().await,
            Task::Fork {
                id,
                from,
                input,
                json,
                connection,
            } => {
                let input = input.as_deref().map(read_json).transpose()?;
                let fork: Uuid = match connection.reach_of(About::Task(id)).await? {
                    Reach::Database(db) => fork_task(&db, id, from.as_deref(), input.as_ref()).await?,
                    Reach::Server(server) => {
                        let body = json!({ "from": from, "input": input });
                        read_as(server.post(&format!("/tasks/{id}/fork"), body)?["id"].take())?
                    }
                };
                print(json, &json!({ "id": fork, "forked_from": id }), || fork.to_string());
                Ok(0)
            }
            Task::Prioritize(prioritize) => prioritize.run().await,
        }
    }
}

/// As the API has it.
pub(super) fn query(filter: &TaskFilter) -> Vec<(&'static str, Value)> {
    let tags: Vec<String> = filter.tags.iter().map(|(name, value)| write_tag(name, value)).collect();
    vec![
        ("namespace", json!(filter.namespace)),
        ("template", json!(filter.template)),
        ("state", json!(filter.state)),
        ("error", json!(filter.error)),
        ("key", json!(filter.key)),
        ("since", json!(filter.since)),
        ("cursor", json!(filter.before)),
        ("tag", json!(Some(tags.join(",")).filter(|tags| !tags.is_empty()))),
    ]
}

fn said(reason: &Reason) -> String {
    match &reason.step {
        Some(step) => format!("{step}: {}", reason.why),
        None => reason.why.clone(),
    }
}

/// A rule of uniqueness as it is written.
fn unique(text: &str) -> std::result::Result<Value, String> {
    let rule: Value = serde_saphyr::from_str(text).map_err(|_| "expected YAML or JSON, such as { by: customer_id, while: queued }")?;
    Unique::parse(&rule).map(|_| rule)
}

/// The trace that whoever runs this command is in
/// (<https://opentelemetry.io/docs/specs/otel/context/env-carriers/>).
fn carrier() -> Carrier {
    let names = ["traceparent", "tracestate"].into_iter();
    names
        .filter_map(|name| Some((name.to_owned(), std::env::var(name.to_uppercase()).ok()?)))
        .collect()
}
