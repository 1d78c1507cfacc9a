//! Leasing steps from a queue, renewing the leases, handing them back.

use std::time::Duration;

use serde_json::Value;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryScalar;
use sqlx::types::Json;
use sqlx::{FromRow, Postgres, Row};
use uuid::Uuid;

use super::trace::{Trace, TracedTask};
use crate::db::Db;
use crate::error::Result;

/// The lease under which a report is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lease {
    pub(crate) msg_id: i64,
    pub(crate) fence: i32,
    pub(crate) task_id: Uuid,
    pub(crate) step: i16,
    /// Whether reports of the task's other steps could decide the same thing: its row is locked first.
    pub(crate) shared: bool,
}

impl Lease {
    /// A call that says whether the lease still is the caller's. The first parameters of `sql` are bound: queue, message, fence, task and step.
    pub(super) fn still_holds<'q>(&self, sql: &'q str, queue: &'q str) -> QueryScalar<'q, Postgres, bool, PgArguments> {
        let query = sqlx::query_scalar(sql).bind(queue).bind(self.msg_id);
        query.bind(self.fence).bind(self.task_id).bind(self.step)
    }
}

/// Leases as parallel arrays.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) ids: Vec<i64>,
    pub(super) fences: Vec<i32>,
    pub(super) tasks: Vec<Uuid>,
    pub(super) steps: Vec<i16>,
}

impl<'l> FromIterator<&'l Lease> for Held {
    fn from_iter<I: IntoIterator<Item = &'l Lease>>(leases: I) -> Held {
        let mut held = Held::default();
        for lease in leases {
            held.ids.push(lease.msg_id);
            held.fences.push(lease.fence);
            held.tasks.push(lease.task_id);
            held.steps.push(lease.step);
        }
        held
    }
}

/// A step as it is leased: all that its handler needs. The JSON is as PostgreSQL wrote it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct LeasedStep {
    /// The message behind it.
    pub msg_id: i64,
    /// The fence of this lease.
    pub fence: i32,
    /// The task it belongs to.
    pub task_id: Uuid,
    /// Its position in the template.
    pub step: i16,
    /// Its name in the template.
    pub name: String,
    /// What runs it.
    pub handler: String,
    /// The template's name.
    pub template: String,
    /// The version the task began with.
    pub version: String,
    /// 1 for the first run.
    pub attempt: i32,
    /// Counts the first run.
    pub max_attempts: i32,
    /// How often a worker leased this attempt and was never heard of again, whether or not it had begun it.
    pub crashes: i32,
    /// How often that happened while it ran as a suspect.
    pub kills: i32,
    /// How long the handler may run, in milliseconds.
    pub timeout_ms: Option<i64>,
    /// Its input and checkpoint are too large to travel with it.
    pub(crate) large: bool,
    /// The task's input: a JSON object. None: it is large; [`Step::input`](crate::worker::Step::input) reads it.
    pub input: Option<String>,
    /// The step's `config`: a JSON object.
    pub config: String,
    /// The results of the steps it depends on, by name: a JSON object. None: they are large; [`Step::results`](crate::worker::Step::results) reads
    /// them.
    pub results: Option<String>,
    /// How many bytes they have altogether, where it depends on any.
    pub results_bytes: i64,
    /// Where its task is part of a trace.
    #[sqlx(json(nullable))]
    pub trace: Option<Trace>,
    /// What an earlier attempt left with a checkpoint, as JSON; None where it is large, too.
    pub checkpoint: Option<String>,
    /// Its completion belongs into the handler's own transaction.
    pub transactional: bool,
    /// How long it waited in the queue, in seconds.
    pub waited: f64,
    /// Of the steps it depends on, those whose results are what became of many tasks (see [`super::children`]). None: none of them is.
    pub fan_outs: Option<Vec<String>>,
    pub(crate) shared: bool,
}

/// A step whose lease ran out this often is a suspect. Once happens to all that a worker held when it was killed.
const SUSPICIOUS: i32 = 2;

impl LeasedStep {
    /// Whether it may take its worker down.
    pub(crate) fn is_suspect(&self) -> bool {
        self.crashes >= SUSPICIOUS
    }

    pub(crate) fn lease(&self) -> Lease {
        Lease {
            msg_id: self.msg_id,
            fence: self.fence,
            task_id: self.task_id,
            step: self.step,
            shared: self.shared,
        }
    }
}

/// What a handler says while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) lease: Lease,
    pub(crate) progress: Option<Value>,
    pub(crate) checkpoint: Option<Value>,
}

/// Records progress and checkpoints. Returns the messages that are no longer the caller's.
pub(crate) async fn record_progress(db: &Db, queue: &str, words: &[Word]) -> Result<Vec<i64>> {
    let held: Held = words.iter().map(|word| &word.lease).collect();
    let progress: Vec<Option<&Value>> = words.iter().map(|word| word.progress.as_ref()).collect();
    let checkpoints: Vec<Option<&Value>> = words.iter().map(|word| word.checkpoint.as_ref()).collect();
    let query = sqlx::query_scalar("SELECT tasker.record_progress($1, $2, $3, $4, $5, $6, $7)");
    let query = query
        .bind(queue)
        .bind(held.ids)
        .bind(held.fences)
        .bind(held.tasks)
        .bind(held.steps)
        .bind(progress)
        .bind(checkpoints);
    Ok(query.fetch_all(db.pool()).await?)
}

/// Leases at most `limit` steps of `queue` for `lease`, and admits tasks if it holds fewer; with `unable`, leaves what the worker is known to have no
/// handler for. Never waits. Returns the steps, and those of the tasks that are traced.
pub(crate) async fn lease_steps(
    db: &Db,
    queue: &str,
    worker: i32,
    limit: i32,
    lease: Duration,
    unable: bool,
) -> Result<(Vec<LeasedStep>, Vec<TracedTask>)> {
    let rows: Vec<PgRow> = super::again_on_conflict(|| async {
        let query = sqlx::query("SELECT * FROM tasker.lease_steps($1, $2, $3, make_interval(secs => $4), $5)");
        let query = query.bind(queue).bind(worker).bind(limit).bind(lease.as_secs_f64()).bind(unable);
        Ok(query.fetch_all(db.pool()).await?)
    })
    .await?;
    let (mut steps, mut traced) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match row.try_get::<Option<i64>, _>("msg_id")? {
            Some(_) => steps.push(LeasedStep::from_row(&row)?),
            None => traced = row.try_get::<Json<_>, _>("trace")?.0,
        }
    }
    Ok((steps, traced))
}

/// After leasing has failed for its data: gives those of the first `limit` steps of `queue` that cannot be leased a certain end. Returns how many.
pub(crate) async fn give_up_unreadable(db: &Db, queue: &str, worker: i32, limit: i32) -> Result<usize> {
    let query = sqlx::query_scalar("SELECT tasker.give_up_unreadable($1, $2, $3)");
    let gone: Vec<i64> = query.bind(queue).bind(worker).bind(limit).fetch_one(db.pool()).await?;
    Ok(gone.len())
}

/// (input, checkpoint), as JSON: what was too large to travel with a lease.
pub(crate) async fn read_leased(db: &Db, task: Uuid, step: i16) -> Result<(String, Option<String>)> {
    Ok(sqlx::query_as("SELECT input, checkpoint FROM tasker.read_leased($1, $2)")
        .bind(task)
        .bind(step)
        .fetch_one(db.pool())
        .await?)
}

/// The names of the steps that this one depends on, in order.
pub(crate) async fn names_before(db: &Db, task: Uuid, step: i16) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("SELECT tasker.names_before($1, $2)")
        .bind(task)
        .bind(step)
        .fetch_all(db.pool())
        .await?)
}

/// Counts that a suspect begins; false when its lease is no longer the caller's.
pub(crate) async fn begin_suspect(db: &Db, queue: &str, lease: &Lease) -> Result<bool> {
    let query = lease.still_holds("SELECT tasker.begin_suspect($1, $2, $3, $4, $5)", queue);
    Ok(query.fetch_one(db.pool()).await?)
}

/// What came of renewing leases, of all but those that were simply renewed.
#[derive(Debug, Default)]
pub(crate) struct Renewed {
    /// The messages that are no longer the caller's.
    pub(crate) gone: Vec<i64>,
    /// Those that are, but whose task was cancelled.
    pub(crate) cancelled: Vec<i64>,
}

/// Renews leases.
pub(crate) async fn extend_leases(db: &Db, queue: &str, leases: &[Lease], lease: Duration) -> Result<Renewed> {
    let query = sqlx::query_as("SELECT id, cancelled FROM tasker.extend_leases($1, $2, $3, $4, $5, make_interval(secs => $6))").bind(queue);
    let held: Held = leases.iter().collect();
    let query = query.bind(held.ids).bind(held.fences).bind(held.tasks).bind(held.steps);
    let query = query.bind(lease.as_secs_f64());
    let mut renewed = Renewed::default();
    for (id, cancelled) in query.fetch_all(db.upkeep()).await? {
        match cancelled {
            true => renewed.cancelled.push(id),
            false => renewed.gone.push(id),
        }
    }
    Ok(renewed)
}

/// The members that have these steps now, or had them last: host:pid.
pub(crate) async fn lease_holders(db: &Db, queue: &str, leases: &[Lease]) -> Result<Vec<Option<String>>> {
    let held: Held = leases.iter().collect();
    let query = sqlx::query_scalar("SELECT tasker.lease_holders($1, $2, $3, $4)").bind(queue);
    let query = query.bind(held.ids).bind(held.tasks).bind(held.steps);
    Ok(query.fetch_all(db.pool()).await?)
}

/// Hands leases back: visible to others at once, and not counted as a crash. Returns how many were held.
pub(crate) async fn release_steps(db: &Db, queue: &str, leases: &[Lease]) -> Result<i32> {
    let query = sqlx::query_scalar("SELECT tasker.release_steps($1, $2, $3, $4, $5)").bind(queue);
    let held: Held = leases.iter().collect();
    let query = query.bind(held.ids).bind(held.fences).bind(held.tasks).bind(held.steps);
    Ok(query.fetch_one(db.pool()).await?)
}

/// Wakes the workers of queues in which leases ran out. Returns (namespace, how many) where there were any.
pub(crate) async fn wake_expired(db: &Db) -> Result<Vec<(String, i32)>> {
    let (mut expired, mut after) = (Vec::new(), Some(0));
    while let Some(last) = after.take() {
        let query = sqlx::query_as("SELECT namespace, expired, last FROM tasker.wake_expired_leases($1)");
        let rows: Vec<(Option<String>, Option<i32>, Option<i32>)> = query.bind(last).fetch_all(db.pool()).await?;
        for row in rows {
            match row {
                (Some(namespace), Some(count), _) => expired.push((namespace, count)),
                (.., last) => after = last,
            }
        }
    }
    Ok(expired)
}

/// Moves on the marks below which no live message and no pending task is, for all processes. Returns whether anything moved.
pub(crate) async fn move_marks(db: &Db) -> Result<bool> {
    let (mut any, mut after) = (false, Some(0));
    while let Some(last) = after {
        let query = sqlx::query_as("SELECT moved, last FROM tasker.move_marks($1)");
        let (moved, next): (bool, Option<i32>) = query.bind(last).fetch_one(db.pool()).await?;
        (any, after) = (any || moved, next);
    }
    Ok(any)
}
