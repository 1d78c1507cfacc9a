//! Moving namespaces to another shard while they work: migrations/0040_moves.sql has the order, and says why. Each part may be done again, so that a move that
//! was cut off goes on where it was.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{json, Value};
use uuid::Uuid;

use super::homes::Move as Known;
use super::namespaces;
use super::shards::{by_shard, Shards};
use crate::db::{Db, Turn};
use crate::error::{Error, Result};

/// How long transactions that were open when a shard closes may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(50);

/// How many tasks are looked at in one statement.
const SLICE: i32 = 5_000;

/// How many entries are written in one statement.
const BATCH: usize = 1_000;

/// How far clocks may go back.
const SKEW: Duration = Duration::from_secs(3_600);

/// One of the two shards.
#[derive(Debug, Clone)]
struct Side {
    name: String,
    number: i32,
    db: Db,
}

/// Namespaces that are to move, and how far they are.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    names: Vec<String>,
    from: Side,
    to: Side,
    stage: Stage,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Tasks are created where they always were.
    Begins,
    /// The old shard takes none any more, and the new one none yet.
    Closed,
    /// Tasks are created in the new one.
    Open,
    /// And none is left in the old one.
    Ended,
}

/// What there is to move, or was moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    pub(crate) namespaces: Vec<String>,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) stage: Stage,
    pub(crate) versions: usize,
    pub(crate) schedules: usize,
    /// Of tasks in the old shard.
    pub(crate) keys: usize,
    /// In the old shard.
    pub(crate) tasks: i64,
    /// Of those, how many have not ended.
    pub(crate) unfinished: i64,
}

/// What is in a shard of these namespaces.
#[derive(Default)]
struct Walked {
    tasks: i64,
    unfinished: i64,
    keys: usize,
}

impl Side {
    async fn of(shards: &Shards, name: &str) -> Result<Side> {
        Ok(Side {
            name: name.to_owned(),
            number: i32::from(shards.number_of(name)?),
            db: shards.named(name).await?,
        })
    }

    async fn call(&self, statement: &'static str, names: &[String]) -> Result<()> {
        sqlx::query(statement).bind(names).execute(self.db.pool()).await?;
        Ok(())
    }

    async fn call_about(&self, statement: &'static str, names: &[String], shard: Option<i32>) -> Result<()> {
        sqlx::query(statement).bind(names).bind(shard).execute(self.db.pool()).await?;
        Ok(())
    }

    async fn all(&self, statement: &'static str, names: &[String]) -> Result<Vec<Value>> {
        Ok(sqlx::query_scalar(statement).bind(names).fetch_all(self.db.pool()).await?)
    }

    async fn write(&self, statement: &'static str, entries: &[Value]) -> Result<()> {
        for some in entries.chunks(BATCH) {
            sqlx::query(statement).bind(json!(some)).execute(self.db.pool()).await?;
        }
        Ok(())
    }

    async fn write_each(&self, statement: &'static str, entries: &[Value]) -> Result<()> {
        for entry in entries {
            sqlx::query(statement).bind(entry).execute(self.db.pool()).await?;
        }
        Ok(())
    }
}

/// What is to be done so that these namespaces live in the shard `to`. Nothing is changed.
/// Errors: [`Error::NotFound`], [`Error::Config`] for an unknown shard, [`Error::Invalid`] where they do not live in one shard, or are on the way to another, or
/// cannot go without others.
pub(crate) async fn plan(shards: &Shards, mut names: Vec<String>, to: &str) -> Result<Move> {
    names.sort();
    names.dedup();
    let to = Side::of(shards, to).await?;
    shards.moves(&to.name).await?;
    let mut from = None;
    for name in &names {
        shards.of_namespace(name).await?;
        let home = shards.home_of(name).to_owned();
        let home = match home == to.name {
            false => home,
            true => shards.others_of(name).pop_first().ok_or_else(|| {
                Error::Invalid(format!(
                    "{name} lives in {home} already, as tasker.yml says: where it has tasks elsewhere, let tasker.yml say so until it has moved"
                ))
            })?,
        };
        match &from {
            None => from = Some(home),
            Some(other) if *other == home => {}
            Some(other) => {
                return Err(Error::Invalid(format!(
                    "{name} lives in {home}, and another of them in {other}: move them one after the other"
                )))
            }
        }
    }
    let from = from.ok_or_else(|| Error::Invalid("expected the names of namespaces".into()))?;
    let from = Side::of(shards, &from).await?;
    let known = namespaces::list(&from.db).await?;
    if let Some(name) = names.iter().find(|name| !known.iter().any(|known| known["name"] == ***name)) {
        return Err(Error::NotFound(format!("no namespace {name} in the shard {}", from.name)));
    }
    let stage = stage(shards, &names, &from, &to).await?;
    if stage == Stage::Begins {
        let ties: Vec<(String, String)> = sqlx::query_as("SELECT template, other FROM tasker.find_ties($1)")
            .bind(&names)
            .fetch_all(from.db.pool())
            .await?;
        if let Some((template, other)) = ties.first() {
            return Err(Error::Invalid(format!(
                "{template} has steps, or children, of {other}, and a task has all of them in one shard: move {other}, too, in the same command"
            )));
        }
    }
    Ok(Move { names, from, to, stage })
}

/// How far these namespaces are on their way.
async fn stage(shards: &Shards, names: &[String], from: &Side, to: &Side) -> Result<Stage> {
    let (there, here) = (shards.moves(&from.name).await?, shards.moves(&to.name).await?);
    let of = |all: &[Known], name: &String| {
        let known = all.iter().find(|known| known.namespace == *name);
        known.map_or((None, None), |known| (known.lives_in, known.also_in))
    };
    let mut stages = Vec::new();
    for name in names {
        let ((old, old_also), (new, new_also)) = (of(&there, name), of(&here, name));
        let other = |also: Option<i32>, expected: i32| also.filter(|also| *also != expected);
        if let Some(other) = other(old_also, to.number).or(other(new_also, from.number)) {
            return Err(Error::Invalid(format!(
                "{name} has tasks in shard {} yet: end that move first",
                shards.name_of(other).unwrap_or_default()
            )));
        }
        stages.push(match (old == Some(to.number), new == Some(to.number)) {
            (true, true) => Stage::Open,
            (true, false) => Stage::Closed,
            (false, _) => Stage::Begins,
        });
    }
    let first = stages.first().copied().unwrap_or(Stage::Begins);
    match stages.iter().all(|stage| *stage == first) {
        true => Ok(first),
        false => Err(Error::Invalid(
            "some of them have moved already: move those together that were to move together".into(),
        )),
    }
}

impl Move {
    /// What there is to move.
    pub(crate) async fn look(&self) -> Result<Moved> {
        let walked = self.walk(Uuid::nil(), None, false).await?;
        let schedules = self.from.all("SELECT tasker.export_schedules($1)", &self.names).await?.len();
        Ok(self.told(walked, self.copy_versions(false).await?, schedules))
    }

    fn told(&self, walked: Walked, versions: usize, schedules: usize) -> Moved {
        Moved {
            namespaces: self.names.clone(),
            from: self.from.name.clone(),
            to: self.to.name.clone(),
            stage: self.stage,
            versions,
            schedules,
            keys: walked.keys,
            tasks: walked.tasks,
            unfinished: walked.unfinished,
        }
    }

    /// Does what is left to do; `said` is told of each part. New tasks are created in the new shard then; those that are left in the old one go on there.
    /// Errors: [`Error::Invalid`] where somebody else moves namespaces out of that shard, or while transactions are open there that do not end: then all is as it
    /// was, and nothing was created in the new shard.
    pub(crate) async fn run(mut self, said: impl Fn(&str)) -> Result<Moved> {
        let mut turn = self.from.db.take_turn("tasker.turn_moves").await?;
        let began = now(&self.from.db).await?;
        let mut versions = 0;
        // The keys of tasks before it are copied.
        let mut copied = Uuid::nil();
        if self.stage == Stage::Begins {
            let (from, to) = (Some(self.from.number), Some(self.to.number));
            self.to
                .call_about("SELECT tasker.receive_namespaces($1, $2)", &self.names, from)
                .await?;
            self.from.call_about("SELECT tasker.announce_move($1, $2)", &self.names, to).await?;
            said("what its templates are, and the keys of its tasks, are copied");
            versions = self.copy_versions(true).await?;
            self.copy_moved_keys().await?;
            // What these transactions have created is behind them.
            self.outlast(&turn).await?;
            self.walk(Uuid::nil(), Some(at(began)), true).await?;
            copied = at(began.saturating_sub(SKEW));
            self.from
                .call_about("SELECT tasker.close_namespaces($1, $2)", &self.names, to)
                .await?;
            if let Err(error) = self.outlast(&turn).await {
                turn.check().await?;
                self.reopen().await?;
                return Err(error);
            }
            self.stage = Stage::Closed;
        } else if self.stage == Stage::Closed {
            self.outlast(&turn).await?;
            self.copy_moved_keys().await?;
        }
        let mut schedules = 0;
        if self.stage == Stage::Closed {
            versions = versions.max(self.copy_versions(true).await?);
            self.walk(copied, None, true).await?;
            let uniques = self.from.all("SELECT tasker.export_uniques($1)", &self.names).await?;
            self.to.write("SELECT tasker.import_uniques($1)", &uniques).await?;
            let pauses = self.from.all("SELECT tasker.export_pauses($1)", &self.names).await?;
            self.to.write_each("SELECT tasker.import_pause($1)", &pauses).await?;
            let all = self.from.all("SELECT tasker.export_schedules($1)", &self.names).await?;
            self.to.write_each("SELECT tasker.import_schedule($1)", &all).await?;
            schedules = all.len();
            turn.check().await?;
            self.to.call("SELECT tasker.open_namespaces($1)", &self.names).await?;
            self.stage = Stage::Open;
            said(&format!("new tasks are created in {}", self.to.name));
        }
        self.from.call("SELECT tasker.drop_moved_schedules($1)", &self.names).await?;
        let walked = self.walk(Uuid::nil(), None, false).await?;
        if walked.tasks == 0 {
            for side in [&self.to, &self.from] {
                side.call("SELECT tasker.end_move($1)", &self.names).await?;
            }
            self.stage = Stage::Ended;
        }
        Ok(self.told(walked, versions, schedules))
    }

    /// Tasks are created again where they were, and nowhere else.
    async fn reopen(&self) -> Result<()> {
        self.from.call("SELECT tasker.open_namespaces($1)", &self.names).await
    }

    /// Waits until every transaction has ended that is open in the old shard. Errors: [`Error::Invalid`] where that takes too long.
    async fn outlast(&self, turn: &Turn) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let open = || async {
            let asking = sqlx::query_scalar("SELECT tasker.open_transactions($1)").bind(turn.process());
            Ok::<Vec<String>, Error>(asking.fetch_one(self.from.db.pool()).await?)
        };
        let mut before = open().await?;
        while !before.is_empty() {
            if Instant::now() > until {
                return Err(Error::Invalid(format!(
                    "{} transactions in {} have been open for more than {} s, and may have created tasks: try again when they have ended (SELECT * FROM \
                     pg_stat_activity ORDER BY xact_start says whose they are)",
                    before.len(),
                    self.from.name,
                    PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(LOOK).await;
            let still = open().await?;
            before.retain(|one| still.contains(one));
        }
        Ok(())
    }

    /// Has the new shard know every version, or only counts them.
    async fn copy_versions(&self, really: bool) -> Result<usize> {
        let (mut after, mut count) = (0, 0);
        loop {
            let query = sqlx::query_scalar("SELECT tasker.export_versions($1, $2, 100)")
                .bind(&self.names)
                .bind(after);
            let versions: Vec<Value> = query.fetch_all(self.from.db.pool()).await?;
            let Some(last) = versions.last().and_then(|version| version["id"].as_i64()) else {
                return Ok(count);
            };
            after = i32::try_from(last).unwrap_or(i32::MAX);
            count += versions.len();
            if really {
                self.to.write_each("SELECT tasker.import_version($1)", &versions).await?;
            }
        }
    }

    /// Those of tasks that are in a shard where the namespaces were before.
    async fn copy_moved_keys(&self) -> Result<()> {
        let keys = self.from.all("SELECT tasker.export_moved_keys($1)", &self.names).await?;
        self.to.write("SELECT tasker.import_keys($1)", &keys).await
    }

    /// Looks at the tasks of the old shard after one and before another; has the new one know their keys, or only counts them.
    async fn walk(&self, mut after: Uuid, before: Option<Uuid>, copy: bool) -> Result<Walked> {
        let mut walked = Walked::default();
        loop {
            let query = sqlx::query_as("SELECT last, tasks, unfinished, keys FROM tasker.walk_tasks($1, $2, $3, $4)");
            let query = query.bind(&self.names).bind(after).bind(before).bind(SLICE);
            let (last, tasks, unfinished, keys): (Option<Uuid>, i64, i64, Option<Value>) = query.fetch_one(self.from.db.pool()).await?;
            walked.tasks += tasks;
            walked.unfinished += unfinished;
            if let Some(Value::Array(keys)) = keys {
                walked.keys += keys.len();
                if copy {
                    self.to.write("SELECT tasker.import_keys($1)", &keys).await?;
                }
            }
            match last {
                Some(last) => after = last,
                None => return Ok(walked),
            }
        }
    }
}

/// Since 1970, by that server's clock.
async fn now(db: &Db) -> Result<Duration> {
    let asking = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8");
    let seconds: f64 = asking.fetch_one(db.pool()).await?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Before the ids of all tasks that were created from then on.
fn at(since: Duration) -> Uuid {
    Uuid::from_u128(since.as_millis() << 80)
}

/// Looks how those unique tasks are that this shard knows to be in others, and had not ended.
pub(crate) async fn look_at_moved_uniques(db: &Db, shards: &Shards) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let query = sqlx::query_scalar("SELECT tasker.moved_unfinished($1, 1000)").bind(after);
        let tasks: Vec<Uuid> = query.fetch_all(db.upkeep()).await?;
        let Some(last) = tasks.last() else { return Ok(()) };
        after = *last;
        for some in by_shard(tasks) {
            let there = shards.of_task(some[0]).await?;
            let query = sqlx::query_scalar("SELECT tasker.read_uniques($1)").bind(&some);
            let now: Vec<Value> = query.fetch_all(there.upkeep()).await?;
            let note = sqlx::query("SELECT tasker.note_uniques($1, $2)").bind(&some).bind(json!(now));
            note.execute(db.upkeep()).await?;
        }
    }
}
