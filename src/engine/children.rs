//! Children: tasks that do the work of another task's step (see `migrations/0026_children.sql`).

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::Value;
use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

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

/// Counts the children that have ended or died of at most `limit` tasks, and creates, or cancels, at most `limit` of them. What somebody else is at is left.
pub(crate) async fn move_children(db: &Db, limit: i32) -> Result<Moved> {
    let sql = "SELECT t.tallied >= $1 OR m.more, t.tallied + m.moved > 0
               FROM tasker.tally_children($1) AS t(tallied), tasker.move_fan_outs($1) AS m";
    let (more, any): (bool, bool) =
        super::again_on_conflict(|| async { Ok(sqlx::query_as(sql).bind(limit).fetch_one(db.pool()).await?) }).await?;
    Ok(match (more, any) {
        (true, _) => Moved::Much,
        (false, true) => Moved::Something,
        (false, false) => Moved::Nothing,
    })
}

/// What became of one task that is part of another's step.
#[derive(Debug, Serialize)]
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
    let rows: Vec<Row> = query.fetch_all(db.pool()).await?;
    let child = |(item, id, state, result, error): Row| Child {
        item,
        id,
        state,
        result: result.and_then(|json| RawValue::from_string(json).ok()),
        error,
    };
    Ok(rows.into_iter().map(child).collect())
}
