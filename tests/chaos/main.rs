//! The chaos suite: real processes under random faults, and a checker that does not trust the engine.
//!
//! CHAOS_SECONDS (default 30) and CHAOS_SEED (default: drawn, and printed) steer it; `bin/chaos` runs the long form.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checker;
mod faults;
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
    let found = run(None, Duration::from_secs(setting("CHAOS_SECONDS").unwrap_or(30)));
    assert!(found.is_empty(), "the checker found:\n{}", found.join("\n"));
}

/// A bug that is put into the running engine, and what provokes it.
struct Bug {
    function: &'static str,
    now: &'static str,
    then: &'static str,
    only_freezes: bool,
}

const COMPLETE: &str = "complete_steps(text,integer,bigint[],integer[],uuid[],smallint[],text[])";

/// A checker that cannot fail proves nothing: each of these bugs must be found.
#[test]
fn the_checker_finds_an_engine_without_fences() {
    must_find(Bug {
        function: COMPLETE,
        now: "AND q.read_ct = r.fence",
        then: "",
        only_freezes: true,
    });
}

#[test]
fn the_checker_finds_an_engine_that_completes_outside_its_transaction() {
    // As if the process died between the two transactions, now and then.
    let then = "IF random() > 0.05 THEN PERFORM tasker.advance_tasks(v_tasks, v_steps); END IF;";
    must_find(Bug {
        function: COMPLETE,
        now: "PERFORM tasker.advance_tasks(v_tasks, v_steps);",
        then,
        only_freezes: false,
    });
}

#[test]
fn the_checker_finds_an_engine_that_drops_a_message() {
    let then = "EXECUTE format('DELETE FROM pgmq.%I WHERE random() < 0.002', pgmq.format_table_name(v_queue, 'q'));";
    must_find(Bug {
        function: "enqueue_steps(uuid[],smallint[],text[])",
        now: "PERFORM tasker.notify('tasker_steps', v_queue);",
        then,
        only_freezes: false,
    });
}

/// A bug shows when a fault hits the right moment; three runs without one would be a checker that sees nothing.
fn must_find(bug: Bug) {
    let found = (0..3)
        .map(|_| run(Some(&bug), Duration::from_secs(20)))
        .find(|found| !found.is_empty());
    println!("found, as it must be:\n{}", found.expect("the bug was not found").join("\n"));
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}: expected a number")))
}

/// Runs the load under faults for that long, with the bug if one is given; returns what the checker found.
fn run(bug: Option<&Bug>, time: Duration) -> Vec<String> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}, {} s", time.as_secs());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
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
        if let Some(bug) = bug {
            bug.put_in(&pool).await;
        }

        let journal = folder.path().join("journal");
        std::fs::create_dir(&journal).unwrap();
        let mut processes = Processes::start(&url, &journal).await;
        let only_freezes = bug.is_some_and(|bug| bug.only_freezes);
        let load = Load::start(db.clone(), seed, if only_freezes { 30 } else { 4 });
        let faults = Faults::new(seed, &postgres.0, &pool, only_freezes);
        let done = faults.run(&mut processes, time).await;
        let accepted = load.stop().await;
        let settled = checker::settle(&pool, &mut processes, Duration::from_secs(if bug.is_some() { 15 } else { 60 })).await;
        let unclean = processes.stop().await;

        println!("did: {done}");
        println!("accepted {} tasks; left: {settled:?}", accepted.len());
        let mut found = checker::check(&pool, &accepted, &journal).await;
        found.extend(unclean);
        if settled > 0 {
            found.push(format!("{settled} tasks neither ended nor were blocked"));
        }
        db.close().await;
        pool.close().await;
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
    }
}

/// Stopped whatever happens.
struct Cluster(PrivatePostgres);

impl Drop for Cluster {
    fn drop(&mut self) {
        self.0.stop().ok();
    }
}
