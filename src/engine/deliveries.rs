//! Deliveries: what happened is put in an order, and each subscription told of it, by the orchestrator that holds it (`migrations/0043_deliveries.sql`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::subscription::Sink;

/// What an orchestrator delivers.
#[derive(Debug, Deserialize)]
pub(crate) struct Holding {
    /// Whether anybody has subscribed to anything.
    pub(crate) subscribed: bool,
    pub(crate) held: Vec<Held>,
}

/// A subscription that is to be told.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Held {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) sink: Sink,
    pub(crate) secrets: Option<Vec<String>>,
    /// How often it was changed.
    pub(crate) revision: i32,
    /// How far it was, in each lane.
    pub(crate) positions: Vec<i64>,
    /// How often somebody has set that.
    pub(crate) setting: i32,
    /// Others are to have it.
    pub(crate) surplus: bool,
}

/// An event at its place.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Placed {
    pub(crate) lane: i16,
    #[sqlx(rename = "place")]
    pub(crate) position: i64,
    /// As a CloudEvent; None: it is not wanted.
    pub(crate) event: Option<Value>,
}

/// How far a lane is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    pub(crate) lane: i16,
    pub(crate) position: i64,
    pub(crate) fails: bool,
}

/// What became of it when it was noted.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(crate) struct Noted {
    /// False: nothing was, the delivery is somebody else's, or begins elsewhere.
    pub(crate) held: bool,
    pub(crate) disabled: bool,
}

/// Puts at most `limit` events in order. Returns how many; None: somebody else is at it.
pub(crate) async fn order_events(db: &Db, limit: i32) -> Result<Option<i32>> {
    let query = sqlx::query_scalar("SELECT tasker.order_events($1)").bind(limit);
    Ok(query.fetch_one(db.pool()).await?)
}

/// Those of this member, of sinks that it knows; more than before, where nobody has them.
pub(crate) async fn hold(db: &Db, member: i32, sinks: &[&str]) -> Result<Holding> {
    let query = sqlx::query_scalar("SELECT tasker.hold_deliveries($1, $2)").bind(member).bind(sinks);
    let holding: Value = query.fetch_one(db.pool()).await?;
    serde_json::from_value(holding).map_err(|error| Error::Invalid(format!("a subscription of another version: {error}")))
}

/// Lets others have it.
pub(crate) async fn release(db: &Db, id: i64, member: i32) -> Result<()> {
    let query = sqlx::query("SELECT tasker.release_delivery($1, $2)").bind(id).bind(member);
    query.execute(db.pool()).await?;
    Ok(())
}

/// The next events of these lanes behind these positions, `limit` of each at most, and the last of each that was looked at.
pub(crate) async fn read(db: &Db, id: i64, lanes: &[i16], positions: &[i64], limit: i32) -> Result<Vec<Placed>> {
    let query = sqlx::query_as("SELECT lane, place, event FROM tasker.read_events($1, $2, $3, $4)");
    let query = query.bind(id).bind(lanes).bind(positions).bind(limit);
    Ok(query.fetch_all(db.pool()).await?)
}

/// What this subscription wants of the next `limit` events behind a position (None: behind all that there are), and the position of the last that was looked at.
/// Errors: [`Error::NotFound`].
pub(crate) async fn pull(db: &Db, name: &str, after: Option<i64>, limit: i32) -> Result<(Vec<(i64, Value)>, Option<i64>)> {
    let query = sqlx::query_as("SELECT place, event FROM tasker.pull_events($1, $2, $3)");
    let found: Vec<(i64, Option<Value>)> = query.bind(name).bind(after).bind(limit).fetch_all(db.pool()).await?;
    let last = found.last().map(|(position, _)| *position);
    let wanted = found.into_iter().filter_map(|(position, event)| Some((position, event?))).collect();
    Ok((wanted, last))
}

/// Notes how far it is, `delivered` events more than before, and why one of them was not. One that fails for longer than `patience` is disabled.
pub(crate) async fn advance(
    db: &Db,
    held: &Held,
    member: i32,
    reached: &[Reached],
    problem: Option<&str>,
    delivered: i64,
    patience: Duration,
) -> Result<Noted> {
    let query = sqlx::query_as("SELECT held, disabled FROM tasker.advance_delivery($1, $2, $3, $4, $5, $6, $7, $8, $9)")
        .bind(held.id)
        .bind(member)
        .bind(held.setting)
        .bind(reached.iter().map(|lane| lane.lane).collect::<Vec<_>>())
        .bind(reached.iter().map(|lane| lane.position).collect::<Vec<_>>())
        .bind(reached.iter().map(|lane| lane.fails).collect::<Vec<_>>());
    let query = query.bind(problem).bind(delivered).bind(patience);
    Ok(query.fetch_one(db.pool()).await?)
}

/// Forgets events that are older than `keep`, and that all have had. Returns how many.
pub(crate) async fn forget_events(db: &Db, keep: Duration) -> Result<u64> {
    const SLICE: i32 = 1_000;
    let mut forgotten = 0;
    loop {
        let query = sqlx::query_scalar("SELECT tasker.forget_events($1, $2)").bind(keep).bind(SLICE);
        let count: i32 = query.fetch_one(db.pool()).await?;
        forgotten += count as u64;
        if count < SLICE {
            return Ok(forgotten);
        }
    }
}
