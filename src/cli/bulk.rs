//! `tasker task cancel`, `pause`, `resume`, `replay`, `prioritize`: what is done to tasks that are named, or that filters let through.

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::server::{read, Server};
use super::{print, About, By, Connection};
use crate::db::Db;
use crate::engine::bulk::{self, Action};
use crate::engine::dead_letters::Replay as How;
use crate::engine::read::TaskFilter;
use crate::engine::shards::by_shard;
use crate::error::{Error, Result};
use crate::template::Priority;

/// What a task must be like.
#[derive(Args)]
pub(super) struct Filters {
    /// Only of this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Only of this template
    #[arg(long)]
    template: Option<String>,
    /// Only in this state
    #[arg(long, value_parser = ["pending", "running", "waiting", "blocked", "complete", "failed", "cancelling", "cancelled", "discarded", "paused", "undoing"])]
    state: Option<String>,
    /// Only with a dead step whose last error is of this class
    #[arg(long, value_name = "CLASS")]
    error: Option<String>,
    /// Only with this idempotency key
    #[arg(long)]
    key: Option<String>,
    /// Only with this tag (customer=42); may be given again: all of them
    #[arg(long = "tag", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// Only those that were created since then: 2026-03-01T12:00:00Z, or within 90m
    #[arg(long, value_parser = since)]
    since: Option<DateTime<Utc>>,
}

impl Filters {
    pub(super) fn filter(self) -> TaskFilter {
        TaskFilter {
            namespace: self.namespace,
            template: self.template,
            state: self.state,
            error: self.error,
            before: None,
            key: self.key,
            since: self.since,
            tags: self.tags.into_iter().collect(),
        }
    }
}

/// NAME=VALUE.
pub(super) fn tag(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, such as customer=42")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A moment, or how long it is ago.
fn since(text: &str) -> std::result::Result<DateTime<Utc>, String> {
    match (humantime::parse_duration(text), DateTime::parse_from_rfc3339(text)) {
        (Ok(ago), _) => TimeDelta::from_std(ago)
            .ok()
            .and_then(|ago| Utc::now().checked_sub_signed(ago))
            .ok_or_else(|| "it is too long ago".into()),
        (_, Ok(moment)) => Ok(moment.to_utc()),
        _ => Err("expected a time such as 2026-03-01T12:00:00Z, or a duration such as 90m".into()),
    }
}

/// Which tasks, and whether it happens.
#[derive(Args)]
pub(super) struct Which {
    /// The tasks' ids
    ids: Vec<Uuid>,
    #[command(flatten)]
    filters: Filters,
    /// All that the filters let through; needed where neither ids nor filters are given
    #[arg(long)]
    all: bool,
    /// Only say how many it would concern
    #[arg(long)]
    dry_run: bool,
    /// A JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub(super) struct Cancel {
    #[command(flatten)]
    which: Which,
    /// And undo what they did; also what tasks did that have ended
    #[arg(long)]
    undo: bool,
}

#[derive(Args)]
pub(super) struct Pause {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    by: By,
}

#[derive(Args)]
pub(super) struct Resume {
    #[command(flatten)]
    which: Which,
}

#[derive(Args)]
pub(super) struct Replay {
    #[command(flatten)]
    which: Which,
    /// How many steps begin in a second
    #[arg(long)]
    per_second: Option<f64>,
    #[command(flatten)]
    by: By,
}

#[derive(Args)]
pub(super) struct Prioritize {
    #[command(flatten)]
    which: Which,
    /// low, normal, high or urgent
    #[arg(long)]
    to: Priority,
}

impl Cancel {
    pub(super) async fn run(self) -> Result<i32> {
        self.which.act(&Action::Cancel { undo: self.undo }, "cancelled").await
    }
}

impl Pause {
    pub(super) async fn run(self) -> Result<i32> {
        self.which.act(&Action::Pause(self.by.recorded()), "paused").await
    }
}

impl Resume {
    pub(super) async fn run(self) -> Result<i32> {
        self.which.act(&Action::Resume, "resumed").await
    }
}

impl Replay {
    pub(super) async fn run(self) -> Result<i32> {
        let how = How {
            per_second: self.per_second,
            ..How::default()
        };
        let by = self.by.recorded();
        self.which.act(&Action::Replay { how, by }, "replayed").await
    }
}

impl Prioritize {
    pub(super) async fn run(self) -> Result<i32> {
        self.which.act(&Action::Prioritize { priority: self.to }, "prioritized").await
    }
}

/// To each, and says to how many of how many. What the API calls it is the action's own name.
fn of_named(server: &Server, ids: &[Uuid], action: &Action) -> Result<(i64, i64)> {
    let (verb, mut body) = asked(action);
    if let Some(fields) = body.as_object_mut() {
        // Each begins at once.
        fields.remove("per_second");
    }
    let mut done = 0;
    for id in ids {
        done += i64::from(server.post(&format!("/tasks/{id}/{verb}"), body.clone())?["done"] == true);
    }
    Ok((done, ids.len() as i64))
}

/// In the background, until it is done.
async fn of_filter(server: &Server, filter: &TaskFilter, action: &Action) -> Result<(i64, i64)> {
    let (mut done, mut of) = (0, 0);
    let begun: Vec<i64> = read(server.post("/bulk-actions", of_all(filter, action))?["ids"].take())?;
    for number in begun {
        let ended = loop {
            let now = server.get(&format!("/bulk-actions/{number}"), &[])?;
            match now["state"].as_str() {
                Some("running") => tokio::time::sleep(EVERY).await,
                Some("complete") => break now,
                _ => {
                    return Err(Error::Invalid(format!(
                        "the bulk action {number} has ended before it was done: {}",
                        now["error"]
                    )))
                }
            }
        };
        done += ended["done"].as_i64().unwrap_or_default();
        of += ended["found"].as_i64().unwrap_or_default();
    }
    Ok((done, of))
}

/// What the API is told of an action on all that a filter lets through.
fn of_all(filter: &TaskFilter, action: &Action) -> serde_json::Value {
    let (verb, mut body) = asked(action);
    body["filter"] = json!(filter);
    body["verb"] = json!(if body["undo"] == true { "undo" } else { verb });
    if let Some(fields) = body.as_object_mut() {
        fields.remove("undo");
    }
    body
}

/// The verb of the API, and its body.
fn asked(action: &Action) -> (&'static str, serde_json::Value) {
    match action {
        Action::Cancel { undo } => ("cancel", json!({ "undo": undo })),
        Action::Pause(by) => ("pause", json!({ "why": by.why })),
        Action::Resume => ("resume", json!({})),
        Action::Replay { how, by } => ("replay", json!({ "per_second": how.per_second, "why": by.why })),
        // No command of these asks for it.
        Action::Settle { result, by } => ("resolve", json!({ "result": result, "why": by.why })),
        Action::Discard(by) => ("discard", json!({ "why": by.why })),
        Action::Prioritize { priority } => ("prioritize", json!({ "priority": priority })),
    }
}

/// How often it is asked how far that is.
const EVERY: std::time::Duration = std::time::Duration::from_millis(500);

fn would(json: bool, tasks: u64) -> i32 {
    print(json, &json!({ "dry_run": true, "tasks": tasks }), || {
        format!("would concern {tasks} tasks")
    });
    0
}

impl Which {
    /// Does it to the tasks that it concerns, or says how many those are. That nothing was chosen must not mean everything. 1: it was not done to all that
    /// were named.
    async fn act(self, action: &Action, did: &str) -> Result<i32> {
        let filter = self.filters.filter();
        let named = self.ids.len();
        match (named, filter == TaskFilter::default()) {
            (0, true) if !self.all => return Err(Error::Invalid("which tasks? give ids or filters, or --all".into())),
            (1.., false) => return Err(Error::Invalid("give either ids or filters".into())),
            _ => {}
        }
        if let Some(server) = self.connection.server()? {
            let (done, of) = match (named, self.dry_run) {
                (0, true) => {
                    let tried = server.post("/bulk-actions/dry-run", of_all(&filter, action))?;
                    return Ok(would(self.json, tried["tasks"].as_u64().unwrap_or_default()));
                }
                (_, true) => return Ok(would(self.json, named as u64)),
                (0, _) => of_filter(&server, &filter, action).await?,
                _ => of_named(&server, &self.ids, action)?,
            };
            print(self.json, &json!({ did: done, "of": of }), || format!("{did} {done} of {of}"));
            return Ok(i32::from(done < named as i64));
        }
        let mut shards: Vec<(Db, Vec<Uuid>)> = Vec::new();
        if named == 0 {
            for db in self.connection.all()?.of_filter(filter.namespace.as_deref()).await? {
                let tasks = bulk::matching(&db, &filter, action).await?;
                shards.push((db, tasks));
            }
        }
        for tasks in by_shard(self.ids.clone()) {
            shards.push((self.connection.open_of(About::Task(tasks[0])).await?, tasks));
        }
        let count = shards.iter().map(|(_, tasks)| tasks.len()).sum::<usize>();
        if self.dry_run {
            return Ok(would(self.json, count as u64));
        }
        let mut done = Vec::new();
        for (db, tasks) in &shards {
            done.extend(bulk::apply(db, tasks, action).await?);
        }
        print(self.json, &json!({ did: done }), || format!("{did} {} of {count}", done.len()));
        Ok(i32::from(done.len() < named))
    }
}
