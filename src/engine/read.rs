//! Reading what operators and clients see, as JSON objects whose fields `migrations/0014_read.sql` lists.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::Db;
use crate::error::{Error, Result};

/// Which tasks; what is None (or empty) filters nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskFilter {
    /// The task's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The task's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The class of the last error of a step of it that is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Only tasks older than this one: the last of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Uuid>,
    /// The task's idempotency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Only tasks that were created since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Only tasks that have all of these tags.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// The states in which a task stays for good.
pub const ENDED: [&str; 4] = ["complete", "failed", "cancelled", "discarded"];

/// Whether nobody waits for a task in this state any more: it has ended, or a person must look at it.
pub(crate) fn is_over(state: &str) -> bool {
    state == "blocked" || ENDED.contains(&state)
}

/// How many bytes of results [`read_task`] reads.
const RESULTS_OF_A_TASK: i64 = 1 << 20;

/// A task with its steps. Their results come along, in order, as long as they have no more than a mebibyte altogether; of the others `result` is
/// null, and [`read_results`] reads them. Errors: [`Error::NotFound`].
pub async fn read_task(db: &Db, task: Uuid) -> Result<Value> {
    read_with(db, task, RESULTS_OF_A_TASK).await
}

/// The same without any results. Errors: [`Error::NotFound`].
pub(crate) async fn read_outline(db: &Db, task: Uuid) -> Result<Value> {
    read_with(db, task, 0).await
}

async fn read_with(db: &Db, task: Uuid, bytes: i64) -> Result<Value> {
    let read = || sqlx::query_scalar("SELECT tasker.read_task($1)").bind(task);
    let mut readers = db.readers();
    let mut found: Option<Value> = read().fetch_one(readers).await?;
    if found.is_none() && readers.is_of_a_replica {
        // It may be younger than what a replica knows.
        readers = db.pool();
        found = read().fetch_one(readers).await?;
    }
    let mut found = found.ok_or_else(|| Error::NotFound(format!("no task {task}")))?;
    let mut steps: Vec<Value> = sqlx::query_scalar("SELECT tasker.read_steps($1, $2)")
        .bind(task)
        .bind(bytes)
        .fetch_all(readers)
        .await?;
    let hidden = db.hidden();
    hidden.hide_fields(&mut found, &["input"]);
    for step in &mut steps {
        hidden.hide_fields(step, &["result", "progress"]);
    }
    found["steps"] = Value::Array(steps);
    Ok(found)
}

/// (name, JSON) of the results of these steps of a task, of those that are complete or skipped. `before`: only of steps that this one depends on;
/// `bytes`: the first of them that have no more altogether.
pub async fn read_results(db: &Db, task: Uuid, before: Option<i16>, names: &[String], bytes: Option<i64>) -> Result<Vec<(String, String)>> {
    let query = sqlx::query_as("SELECT name, result FROM tasker.read_results($1, $2, $3, $4)");
    let query = query.bind(task).bind(before).bind(names).bind(bytes);
    let results: Vec<(String, String)> = query.fetch_all(db.readers()).await?;
    let hidden = db.hidden();
    Ok(results.into_iter().map(|(name, json)| (name, hidden.hide_in_json(json))).collect())
}

/// At most `limit` tasks, the newest first.
pub async fn list_tasks(db: &Db, filter: &TaskFilter, limit: i32) -> Result<Vec<Value>> {
    let mut filter = filter.clone();
    let mut found = Vec::new();
    loop {
        let page = page_of_tasks(db, &filter, limit - found.len() as i32).await?;
        found.extend(page.tasks);
        filter.before = page.next;
        if filter.before.is_none() || found.len() >= limit as usize {
            return Ok(found);
        }
    }
}

/// Part of a list of tasks.
#[derive(Debug)]
pub struct TaskPage {
    /// The newest first; fewer than were asked for, or none, where many had to be looked at.
    pub tasks: Vec<Value>,
    /// [`TaskFilter::before`] of the next page; None: this is the last.
    pub next: Option<Uuid>,
}

/// How long one page of tasks is looked for; what one list takes, however many tasks there are.
const PATIENCE: Duration = Duration::from_millis(50);

/// At most `limit` tasks, the newest first, of those that can be looked at in some 50 ms.
pub async fn page_of_tasks(db: &Db, filter: &TaskFilter, limit: i32) -> Result<TaskPage> {
    let query = sqlx::query_as("SELECT tasks, next FROM tasker.list_tasks($1, $2, $3)").bind(Json(filter));
    let (Json(tasks), next) = query.bind(limit).bind(PATIENCE).fetch_one(db.readers()).await?;
    Ok(TaskPage { tasks, next })
}

/// How many ids [`matching_tasks`] reads at once.
const IDS: i32 = 10_000;

/// The ids of all tasks that `filter` lets through, the newest first: what an action on it would concern. `open`: of those that have not ended.
pub async fn matching_tasks(db: &Db, filter: &TaskFilter, open: bool) -> Result<Vec<Uuid>> {
    let mut filter = filter.clone();
    let mut found: Vec<Uuid> = Vec::new();
    loop {
        let (page, next) = find_tasks(db, &filter, IDS, open).await?;
        found.extend(&page);
        filter.before = next;
        if next.is_none() {
            return Ok(found);
        }
    }
}

/// The ids of at most `limit` of them, of those that can be looked at in some 50 ms, and [`TaskFilter::before`] of the next ones.
pub(crate) async fn find_tasks(db: &Db, filter: &TaskFilter, limit: i32, open: bool) -> Result<(Vec<Uuid>, Option<Uuid>)> {
    let query = sqlx::query_as("SELECT ids, next FROM tasker.find_tasks($1, $2, $3, $4)").bind(Json(filter));
    Ok(query.bind(limit).bind(open).bind(PATIENCE).fetch_one(db.pool()).await?)
}

/// How many tasks `filter` lets through, and whether these are all: counted for some 100 ms.
pub(crate) async fn count_tasks(db: &Db, filter: &TaskFilter) -> Result<(i64, bool)> {
    let (mut filter, mut found) = (filter.clone(), 0);
    let until = Instant::now() + PATIENCE;
    loop {
        let (page, next) = find_tasks(db, &filter, IDS / 2, false).await?;
        found += page.len() as i64;
        filter.before = next;
        if next.is_none() {
            return Ok((found, true));
        }
        if Instant::now() >= until {
            return Ok((found, false));
        }
    }
}

/// The states of tasks; those that do not exist are left out.
pub async fn task_states(db: &Db, tasks: &[Uuid]) -> Result<Vec<(Uuid, String)>> {
    Ok(sqlx::query_as("SELECT id, state FROM tasker.task_states($1)")
        .bind(tasks)
        .fetch_all(db.pool())
        .await?)
}

/// Every template in its current version.
pub async fn list_templates(db: &Db) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.list_templates()").fetch_all(db.readers()).await?)
}

/// The newest 1,000 versions of a template (name or namespace/name), the newest first. Errors: [`Error::NotFound`].
pub async fn list_template_versions(db: &Db, template: &str) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.list_template_versions($1)").bind(template);
    Ok(query.fetch_all(db.pool()).await?)
}

/// A template's definition with its namespace, name and version. Errors: [`Error::NotFound`].
pub async fn read_template(db: &Db, template: &str, version: Option<&str>) -> Result<Value> {
    Ok(sqlx::query_scalar("SELECT f.definition || jsonb_build_object('version', f.version, 'registered_at', f.created_at) FROM tasker.find_template($1, $2) AS f")
        .bind(template)
        .bind(version)
        .fetch_one(db.pool())
        .await?)
}

/// What was done in each of the last `minutes` minutes, the oldest first, in a namespace or in all: how many steps were completed and how many attempts
/// failed, and how many seconds handlers took. The newest minute or two are not in it yet.
pub async fn read_minutes(db: &Db, minutes: i32, namespace: Option<&str>) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.read_minutes($1, $2)")
        .bind(minutes)
        .bind(namespace);
    Ok(query.fetch_all(db.readers()).await?)
}

/// What went wrong without anything being lost, by name, since the database was made.
pub async fn counters(db: &Db) -> Result<Vec<(String, i64)>> {
    Ok(sqlx::query_as("SELECT name, value FROM tasker.counters ORDER BY name")
        .fetch_all(db.pool())
        .await?)
}

/// Whether a connection leads to an installation at all; only then may it be asked for [`INSTALLATION`].
pub const IS_INSTALLED: &str = "SELECT (to_regprocedure('tasker.which_installation()') IS NOT NULL)::text";

/// Which database of which server a connection leads to, and whose installation is there; a copy, a restored one or a replica is another.
pub const INSTALLATION: &str = "SELECT tasker.which_installation()";

/// Which installation `db` leads to.
pub async fn installation(db: &Db) -> Result<String> {
    Ok(sqlx::query_scalar(INSTALLATION).fetch_one(db.pool()).await?)
}

/// The task's state once it has ended or is blocked, or whatever it is after `timeout`. Errors: [`Error::NotFound`].
pub async fn wait_for_end(db: &Db, task: Uuid, timeout: Option<Duration>) -> Result<String> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut delay = Duration::from_millis(2);
    loop {
        let states = task_states(db, &[task]).await?;
        let (_, state) = states
            .into_iter()
            .next()
            .ok_or_else(|| Error::NotFound(format!("no task {task}")))?;
        let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if over || is_over(&state) {
            return Ok(state);
        }
        let left = deadline.map_or(delay, |deadline| deadline.saturating_duration_since(Instant::now()));
        tokio::time::sleep(delay.min(left)).await;
        delay = (delay * 2).min(Duration::from_millis(200));
    }
}
