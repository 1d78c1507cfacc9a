//! Children: tasks that do the work of another task's step (see `migrations/0026_children.sql`).

use std::collections::hash_map::Entry;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::Value;
use sqlx::Executor;
use uuid::Uuid;

use super::schema::{problem_of_input, read_schema};
use crate::db::{answered, Db, Transaction};
use crate::error::Result;
use crate::redaction::Redaction;

/// What was to be done about children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Nothing.
    Nothing,
    /// Something, or somebody else was at it.
    Something,
    /// As much as one transaction does: there may be more.
    Much,
}

/// How many inputs are in memory while they are checked: each may have a mebibyte.
const CHECKED_AT_ONCE: usize = 50;

/// Counts the children that have ended or died of at most `limit` tasks, and creates, or cancels, at most `limit` of them. What somebody else is at is left.
/// A step whose children would have an input that their template's `input_schema` does not accept gets none of them, and is dead.
pub(crate) async fn move_children(db: &Db, limit: i32) -> Result<Moved> {
    super::again_on_conflict(|| async {
        Ok(db
            .pool()
            .within(async |session| move_in(session, limit, db.redaction()).await)
            .await?)
    })
    .await
}

async fn move_in(session: &mut Transaction<'_>, limit: i32, redaction: &Redaction) -> Result<Moved, sqlx::Error> {
    let sql = "SELECT t.tallied >= $1 OR m.more, t.tallied + m.moved > 0, m.unchecked
               FROM tasker.tally_children($1) AS t(tallied), tasker.move_fan_outs($1) AS m";
    answered(session.execute("SAVEPOINT unmoved")).await?;
    let query = sqlx::query_as(sql).bind(limit);
    let (more, any, unchecked): (bool, bool, Vec<Uuid>) = answered(query.fetch_one(&mut *session)).await?;
    let refused = find_refused(session, &unchecked, redaction).await?;
    if !refused.is_empty() {
        answered(session.execute("ROLLBACK TO unmoved")).await?;
        refuse(session, refused).await?;
        return Ok(Moved::Much);
    }
    Ok(match (more, any) {
        (true, _) => Moved::Much,
        (false, true) => Moved::Something,
        (false, false) => Moved::Nothing,
    })
}

/// What is wrong with the input of the first child of a step that its template does not accept.
async fn find_refused(
    session: &mut Transaction<'_>,
    unchecked: &[Uuid],
    redaction: &Redaction,
) -> Result<HashMap<(Uuid, i16), String>, sqlx::Error> {
    type Row = (Uuid, i16, i32, i32, String, String);
    let mut schemas = HashMap::new();
    let mut refused = HashMap::new();
    for tasks in unchecked.chunks(CHECKED_AT_ONCE) {
        let query = sqlx::query_as("SELECT task, step, item, version, template, input FROM tasker.unchecked_inputs($1)").bind(tasks);
        let inputs: Vec<Row> = answered(query.fetch_all(&mut *session)).await?;
        for (task, step, item, version, template, input) in inputs {
            if let Entry::Vacant(unknown) = schemas.entry(version) {
                unknown.insert(answered(read_schema(&mut *session, version)).await?);
            }
            let problem = schemas[&version]
                .as_ref()
                .and_then(|schema| problem_of_input(schema, &template, &input, redaction));
            if let Some(problem) = problem {
                refused.entry((task, step)).or_insert_with(|| format!("task {item}: {problem}"));
            }
        }
    }
    Ok(refused)
}

async fn refuse(session: &mut Transaction<'_>, refused: HashMap<(Uuid, i16), String>) -> Result<(), sqlx::Error> {
    let (steps, problems): (Vec<(Uuid, i16)>, Vec<String>) = refused.into_iter().unzip();
    let (tasks, steps): (Vec<Uuid>, Vec<i16>) = steps.into_iter().unzip();
    let query = sqlx::query("SELECT tasker.refuse_children($1, $2, $3)");
    answered(query.bind(tasks).bind(steps).bind(problems).execute(&mut *session)).await?;
    Ok(())
}

/// What became of one task that is part of another's step.
#[derive(Debug, Serialize, Deserialize)]
pub struct Child {
    /// Its number, from 0.
    pub item: i32,
    /// The task.
    pub id: Uuid,
    /// The task's state.
    pub state: String,
    /// What it has to say, as JSON. None: it is not complete.
    pub result: Option<Box<RawValue>>,
    /// Why it is dead.
    pub error: Option<Value>,
}

/// Which children to read.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Only those behind this number.
    pub after: Option<i32>,
    /// How many at most; there may be fewer where their results are large, but one.
    pub limit: i32,
    /// Only those that are dead.
    pub dead: bool,
}

/// The children of the step `name` of a task, in order; `before`: for the handler of that step, which depends on it.
/// Errors: those of the database.
pub async fn read_children(db: &Db, task: Uuid, before: Option<i16>, name: &str, page: &Page) -> Result<Vec<Child>> {
    type Row = (i32, Uuid, String, Option<String>, Option<Value>);
    let query = sqlx::query_as("SELECT item, id, state, result, error FROM tasker.read_children($1, $2, $3, $4, $5, $6)");
    let query = query
        .bind(task)
        .bind(before)
        .bind(name)
        .bind(page.after)
        .bind(page.limit)
        .bind(page.dead);
    let rows: Vec<Row> = query.fetch_all(db.readers()).await?;
    let hidden = db.hidden();
    let child = |(item, id, state, result, error): Row| Child {
        item,
        id,
        state,
        result: result.and_then(|json| RawValue::from_string(hidden.hide_in_json(json)).ok()),
        error,
    };
    Ok(rows.into_iter().map(child).collect())
}

/// How many tasks of a family are read, and how many of one parent.
const FAMILY: i32 = 500;
const OF_A_PARENT: i32 = 50;

/// A task with the tasks below it, by generations: objects of id, parent, step, item, depth, template and state. The first 500 of them, and of each parent
/// the first 50. Errors: those of the database.
pub async fn read_family(db: &Db, task: Uuid) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.read_family($1, $2, $3)").bind(task);
    Ok(query.bind(OF_A_PARENT).bind(FAMILY).fetch_all(db.readers()).await?)
}
