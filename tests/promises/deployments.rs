//! Two releases side by side: a worker runs only what it has handlers for, and what nobody has waits, is named, and uses no attempt.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};

use super::command_line::json_of;
use super::world::World;

const OLD: &str = "name: old\nnamespace: here\nsteps:\n  - { name: only, handler: known }\n";
const NEW: &str =
    "name: new\nnamespace: here\nsteps:\n  - { name: first, handler: known }\n  - { name: second, handler: newer, depends_on: [first] }\n";

async fn worker(world: &World, handlers: &[&str]) -> Arc<Worker> {
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        concurrency: 4,
        lease: Duration::from_secs(2),
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
    let with = |all: Handlers, name: &&str| {
        let answer = json!(name);
        all.with(name, move |_| {
            let answer = answer.clone();
            async move { Ok(answer) }
        })
    };
    worker.handle_with(handlers.iter().fold(Handlers::default(), with));
    worker
}

async fn until(world: &World, condition: &str) {
    while world.count(&format!("SELECT ({condition})::int::bigint")).await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const HELD: &str = "EXISTS (SELECT FROM tasker.unhandled)";

#[tokio::test(flavor = "multi_thread")]
async fn what_no_worker_has_a_handler_for_waits_and_is_named_until_one_has() {
    World::with(async |world| {
        world.register(OLD).await;
        world.register(NEW).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let old = worker(world, &["known"]).await;
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(world.submit("new", json!({})).await);
        }
        until(world, "(SELECT count(*) FROM tasker.steps WHERE retry_at = 'infinity') = 20").await;
        // They are in nobody's way.
        let task = world.submit("old", json!({})).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );

        let seen = world.task(waiting[0]).await;
        let step = &seen["steps"][1];
        assert_eq!(seen["state"], "waiting");
        assert_eq!(step["waits_for"], "a worker that has the handler newer");
        assert_eq!((&step["errors"], &step["attempt"]), (&json!([]), &json!(0)));
        let said = "no worker of here has the handler newer: the step second of new (version 1) waits for one that has";
        let warns = |ready: &Value| ready["warnings"].as_array().unwrap().iter().any(|warning| warning == said);
        while !warns(&json!(old.health().ready().await)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let listed = json_of(&world.url, &["queue", "list", "--json"]);
        assert_eq!(listed[0]["state"], "no handler");

        // What is cancelled meanwhile is no longer waited for.
        assert_eq!(cancel_tasks(&world.db, &waiting[..1]).await.unwrap().len(), 1);
        assert_eq!(world.task(waiting[0]).await["state"], "cancelled");
        let new = worker(world, &["known", "newer"]).await;
        for task in &waiting[1..] {
            assert_eq!(
                wait_for_end(&world.db, *task, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
            assert_eq!(world.task(*task).await["steps"][1]["attempt"], 1);
        }
        until(world, "NOT EXISTS (SELECT FROM tasker.unhandled)").await;
        assert!(world.dead_letters("here").await.is_empty());
        old.shutdown(Duration::from_secs(5)).await;
        new.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_releases_each_runs_what_it_can_and_no_attempt_is_used() {
    World::with(async |world| {
        world.register(OLD).await;
        world.register(NEW).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let workers = [
            worker(world, &["known"]).await,
            worker(world, &["known", "newer"]).await,
            worker(world, &["known"]).await,
        ];
        let mut tasks = Vec::new();
        for n in 0..200 {
            tasks.push(world.submit(if n % 2 == 0 { "old" } else { "new" }, json!({})).await);
        }
        for task in tasks {
            assert_eq!(
                wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
        }
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.steps WHERE failures > 0 OR errors IS NOT NULL OR kills > 0")
                .await,
            0
        );
        // The last of those that have it goes.
        workers[1].shutdown(Duration::from_secs(5)).await;
        let task = world.submit("new", json!({})).await;
        until(world, HELD).await;
        let next = worker(world, &["newer"]).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        for worker in [&workers[0], &workers[2], &next] {
            worker.shutdown(Duration::from_secs(5)).await;
        }
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactional_step_waits_for_a_worker_in_ruby() {
    World::with(async |world| {
        let step = "{ name: only, handler: known, transactional: true }";
        world
            .register(&format!("name: written\nnamespace: here\nsteps:\n  - {step}\n"))
            .await;
        world.register(OLD).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let worker = worker(world, &["known"]).await;
        world.submit("written", json!({})).await;
        until(world, HELD).await;
        let task = world.submit("old", json!({})).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_back_gives_its_permit_to_others() {
    World::with(async |world| {
        world.register(OLD).await;
        world
            .register("name: newest\nnamespace: here\nsteps:\n  - { name: only, handler: newer }\n")
            .await;
        world
            .set_rules("here", json!({ "limits": { "one": { "concurrency": 1 } } }))
            .await
            .unwrap();
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let old = worker(world, &["known"]).await;
        let waits = world.submit("newest", json!({})).await;
        until(world, HELD).await;
        let task = world.submit("old", json!({})).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        let new = worker(world, &["newer"]).await;
        assert_eq!(
            wait_for_end(&world.db, waits, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        old.shutdown(Duration::from_secs(5)).await;
        new.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}
