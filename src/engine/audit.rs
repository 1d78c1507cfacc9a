//! The record of what anybody changed (`migrations/0036_access.sql`).

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::db::Db;
use crate::error::Result;

/// What somebody is about to change.
#[derive(Debug, Clone, Default)]
pub struct Change<'c> {
    /// A person's name, or a token's.
    pub who: &'c str,
    /// Through what: api, web, cli.
    pub via: &'c str,
    /// From where.
    pub address: Option<IpAddr>,
    /// Such as task.cancel.
    pub action: &'c str,
    /// Of what: a task's id, a template's name. None: it is not known before.
    pub object: Option<&'c str>,
    /// For those who read the record.
    pub why: Option<&'c str>,
    /// What else is to be known of it.
    pub details: Option<Value>,
}

impl<'c> Change<'c> {
    /// Of something that has a name, and why.
    pub(crate) fn of(action: &'c str, object: &'c str, why: Option<&'c str>) -> Change<'c> {
        Change {
            action,
            object: Some(object),
            why,
            ..Change::default()
        }
    }
}

/// Records it, before it is done; [`end`] says what became of it. Returns its number. Errors: those of the database.
pub async fn begin(db: &Db, change: &Change<'_>) -> Result<i64> {
    let query = sqlx::query_scalar("SELECT tasker.begin_change($1, $2, $3, $4, $5, $6, $7)")
        .bind(change.who)
        .bind(change.via)
        .bind(change.address.map(|address| address.to_string()))
        .bind(change.action)
        .bind(change.object)
        .bind(change.why)
        .bind(&change.details);
    Ok(query.fetch_one(db.pool()).await?)
}

/// What became of it: it is done, or refused with this error; `object`: what came of it.
pub async fn end(db: &Db, change: i64, error: Option<&str>, object: Option<&str>) -> Result<()> {
    let query = sqlx::query("SELECT tasker.end_change($1, $2, $3)");
    query.bind(change).bind(error).bind(object).execute(db.pool()).await?;
    Ok(())
}

/// Which of them to list.
#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    /// Only those before this number.
    pub before: Option<i64>,
    /// Only those of this.
    pub object: Option<String>,
    /// Only those of this person, or token.
    pub who: Option<String>,
}

/// What was changed, the newest first, at most `limit`. Errors: those of the database.
pub async fn list(db: &Db, filter: &ChangeFilter, limit: i32) -> Result<Vec<Value>> {
    let query = sqlx::query_scalar("SELECT tasker.list_changes($1, $2, $3, $4)")
        .bind(filter.before)
        .bind(&filter.object);
    let mut changes: Vec<Value> = query.bind(&filter.who).bind(limit).fetch_all(db.readers()).await?;
    let hidden = db.hidden();
    for change in &mut changes {
        let details = &mut change["details"];
        hidden.hide_within(details, &["definition", "input"]);
        hidden.hide_within(details, &["action", "how", "input"]);
        hidden.hide_within(details, &["action", "result"]);
    }
    Ok(changes)
}

/// Forgets what was changed longer ago than that.
pub(crate) async fn forget(db: &Db, age: Duration) -> Result<()> {
    const SLICE: i32 = 1_000;
    loop {
        let query = sqlx::query_scalar("SELECT tasker.forget_changes($1 * interval '1 second', $2)");
        let forgotten: i32 = query.bind(age.as_secs_f64()).bind(SLICE).fetch_one(db.pool()).await?;
        if forgotten < SLICE {
            return Ok(());
        }
    }
}
