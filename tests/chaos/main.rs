//! The chaos suite: real processes under random faults, and a checker that does not trust the engine.
//!
//! CHAOS_SECONDS (default 30) and CHAOS_SEED (default: drawn, and printed) steer it; `bin/chaos` runs the long form.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checker;
mod disk;
mod failovers;
mod faults;
mod flood;
mod load;
mod processes;
mod proxy;
mod worker;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::PgPool;
use tasker::private_postgres::PrivatePostgres;
use tasker::Db;

use crate::disk::SmallDisk;
use crate::failovers::Pair;
use crate::faults::Faults;
use crate::load::Load;
use crate::processes::Processes;

/// One run at a time: each wants the whole machine.
static ALONE: Mutex<()> = Mutex::new(());

/// Not a test: what the suite starts as its Rust workers.
#[test]
fn worker_process() {
    if let Ok(url) = std::env::var("CHAOS_WORKER") {
        worker::run(&url);
    }
}

#[test]
fn nothing_is_lost_and_nothing_counts_twice_under_random_faults() {
    let found = run(Ordeal::Faults(Duration::from_secs(setting("CHAOS_SECONDS").unwrap_or(20))));
    assert!(found.is_empty(), "the checker found:\n{}", found.join("\n"));
}

#[test]
fn a_rolling_restart_of_every_process_under_load_runs_no_step_twice() {
    let found = run(Ordeal::RollingRestarts(2));
    assert!(found.is_empty(), "the checker found:\n{}", found.join("\n"));
}

#[test]
fn a_flood_of_tasks_is_throttled_and_parked_and_loses_nothing() {
    let found = run(Ordeal::Flood(setting("CHAOS_FLOOD").unwrap_or(20_000) as usize));
    assert!(found.is_empty(), "the checker found:\n{}", found.join("\n"));
}

#[test]
fn a_primary_that_is_lost_again_and_again_is_replaced_and_nothing_that_was_accepted_is_lost() {
    let found = run_failovers(setting("CHAOS_FAILOVERS").unwrap_or(2));
    assert!(found.is_empty(), "the checker found:\n{}", found.join("\n"));
}

/// Runs the load while the primary is lost so many times, each time in the other way; returns what the checker found.
fn run_failovers(count: u64) -> Vec<String> {
    alone(async |seed| {
        let folder = tempfile::tempdir().unwrap();
        let mut pair = Pair::start(folder.path()).await;
        let db = Db::connect(&pair.url(), 4).await.unwrap();
        db.migrate().await.unwrap();
        load::prepare(&db, &pair.pool()).await;
        let journal = folder.path().join("journal");
        std::fs::create_dir(&journal).unwrap();
        let mut processes = Processes::start(&pair.url(), &journal).await;
        let load = Load::start(db.clone(), seed, load::anything);
        for round in 0..count {
            tokio::time::sleep(Duration::from_secs(3)).await;
            pair.fail_over(&mut processes, round % 2 == 1).await;
            pair.heal().await;
        }
        let accepted = load.stop().await;
        let pool = pair.pool();
        let settled = checker::settle(&pool, &mut processes, Duration::from_secs(60)).await;
        let mut found = processes.stop().await;
        println!("accepted {} tasks; left: {settled:?}", accepted.len());
        found.extend(checker::check(&pool, &accepted, &journal).await);
        if settled > 0 {
            found.push(format!("{settled} tasks neither ended nor were blocked"));
        }
        db.close().await;
        pool.close().await;
        found
    })
}

/// While no other run goes on, with a seed that is printed.
fn alone<T>(run: impl AsyncFnOnce(u64) -> T) -> T {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(seed))
}

/// What the system goes through.
enum Ordeal {
    /// Random faults for that long.
    Faults(Duration),
    /// The same, with a bug in the engine.
    Bug(Bug, Duration),
    /// So many restarts of every process, one after the other, and no fault.
    RollingRestarts(usize),
    /// So many tasks at once.
    Flood(usize),
}

/// A bug that is put into the running engine, and what provokes it.
#[derive(Clone, Copy)]
struct Bug {
    function: &'static str,
    now: &'static str,
    then: &'static str,
    only_freezes: bool,
}

const COMPLETE: &str = "complete_steps(text,integer,bigint[],integer[],uuid[],smallint[],text[],uuid[],integer,interval)";

/// A checker that cannot fail proves nothing: each of these bugs must be found.
#[test]
fn the_checker_finds_an_engine_without_fences() {
    must_find(Bug {
        function: "make_queue_functions(text)",
        now: "AND q.read_ct = p_fences[width_bucket(q.msg_id, ids)]",
        then: "",
        only_freezes: true,
    });
}

#[test]
fn the_checker_finds_an_engine_that_completes_outside_its_transaction() {
    // As if the process died between the two transactions, now and then.
    let then = "FROM (SELECT WHERE random() > 0.05) AS alive CROSS JOIN LATERAL tasker.advance_tasks(";
    must_find(Bug {
        function: COMPLETE,
        now: "FROM tasker.advance_tasks(",
        then,
        only_freezes: false,
    });
}

#[test]
fn the_checker_finds_an_engine_that_drops_a_message() {
    let then = "EXECUTE format('DELETE FROM pgmq.%I WHERE random() < 0.002', pgmq.format_table_name(v_queue, 'q'));";
    must_find(Bug {
        function: "enqueue_steps(uuid[],smallint[],text[],tasker.taker)",
        now: "PERFORM tasker.call('tasker_steps', v_queue, cardinality(v_tasks) - v_room);",
        then,
        only_freezes: false,
    });
}

/// A bug shows when a fault hits the right moment; five runs without one would be a checker that sees nothing.
fn must_find(bug: Bug) {
    let found = (0..5)
        .map(|_| run(Ordeal::Bug(bug, Duration::from_secs(12))))
        .find(|found| !found.is_empty());
    println!("found, as it must be:\n{}", found.expect("the bug was not found").join("\n"));
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}: expected a number")))
}

/// Runs the load through the ordeal; returns what the checker found.
fn run(ordeal: Ordeal) -> Vec<String> {
    alone(async |seed| {
        let folder = tempfile::tempdir().unwrap();
        let postgres = Cluster(PrivatePostgres::in_folder(folder.path()).unwrap_or_else(|error| panic!("{error}")));
        let url = postgres.0.start().await.unwrap();
        let db = Db::connect(&url, 4).await.unwrap();
        db.migrate().await.unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(60))
            .connect_lazy(&url)
            .unwrap();
        load::prepare(&db, &pool).await;
        let disk = SmallDisk::mount(&pool).await;

        let journal = folder.path().join("journal");
        std::fs::create_dir(&journal).unwrap();
        let mut processes = Processes::start(&url, &journal).await;
        let mut found = Vec::new();
        let (accepted, done, patience) = match ordeal {
            Ordeal::Faults(time) => {
                let load = Load::start(db.clone(), seed, load::anything);
                let done = Faults::new(seed, &postgres.0, &pool, disk.as_ref(), false)
                    .run(&mut processes, time)
                    .await;
                (load.stop().await, done, 60)
            }
            Ordeal::Bug(bug, time) => {
                bug.put_in(&pool).await;
                let load = Load::start(db.clone(), seed, if bug.only_freezes { load::often_long } else { load::anything });
                let faults = Faults::new(seed, &postgres.0, &pool, disk.as_ref(), bug.only_freezes);
                let done = faults.run(&mut processes, time).await;
                (load.stop().await, done, 15)
            }
            Ordeal::RollingRestarts(count) => {
                let load = Load::start(db.clone(), seed, load::plain);
                for _ in 0..count {
                    processes.roll(&pool).await;
                }
                (load.stop().await, format!("{count} rolling restarts"), 60)
            }
            Ordeal::Flood(count) => {
                let (accepted, problems) = flood::flood(&db, &pool, &processes, count).await;
                found.extend(problems);
                (accepted, format!("a flood of {count}"), 60)
            }
        };
        let settled = checker::settle(&pool, &mut processes, Duration::from_secs(patience)).await;
        let unclean = processes.stop().await;

        println!("did: {done}");
        println!("accepted {} tasks; left: {settled:?}", accepted.len());
        found.extend(checker::check(&pool, &accepted, &journal).await);
        found.extend(unclean);
        if let Ordeal::RollingRestarts(_) = ordeal {
            found.extend(checker::check_undisturbed(&pool, &journal).await);
        }
        if settled > 0 {
            found.push(format!("{settled} tasks neither ended nor were blocked"));
        }
        db.close().await;
        pool.close().await;
        postgres.0.stop().ok();
        drop(disk);
        if !found.is_empty() {
            println!("seed {seed} found {} problems", found.len());
        }
        found
    })
}

impl Bug {
    async fn put_in(&self, pool: &PgPool) {
        let definition = "SELECT pg_get_functiondef(('tasker.' || $1)::regprocedure)";
        let source: String = sqlx::query_scalar(definition).bind(self.function).fetch_one(pool).await.unwrap();
        assert!(
            source.contains(self.now),
            "the engine has changed: {} has no {:?}",
            self.function,
            self.now
        );
        sqlx::raw_sql(&source.replacen(self.now, self.then, 1)).execute(pool).await.unwrap();
        sqlx::raw_sql("SELECT tasker.make_queue_functions(queue) FROM tasker.namespaces")
            .execute(pool)
            .await
            .unwrap();
    }
}

/// Stopped whatever happens.
struct Cluster(PrivatePostgres);

impl Drop for Cluster {
    fn drop(&mut self) {
        self.0.stop().ok();
    }
}
