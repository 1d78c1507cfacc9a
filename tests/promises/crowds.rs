//! Many orchestrators and workers on one database: nothing runs twice, nothing is left, nobody deadlocks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use sqlx::postgres::PgListener;
use tasker::engine::read::wait_for_end;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::Db;

use crate::world::World;

const DIAMOND: &str = "
name: diamond
namespace: here
steps:
  - { name: top, handler: H }
  - { name: left, handler: H, depends_on: [top] }
  - { name: right, handler: H, namespace: there, depends_on: [top] }
  - { name: bottom, handler: H, depends_on: [left, right] }
";

async fn submit(world: &World, template: &str, count: usize) -> Vec<uuid::Uuid> {
    let tasks: Vec<NewTask> = (0..count)
        .map(|n| NewTask {
            input: json!({ "n": n }).into(),
            ..NewTask::default()
        })
        .collect();
    let submitted = Submitter::new(world.db.clone()).submit(template, None, &tasks).await.unwrap();
    submitted.into_iter().map(|task| task.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_orchestrators_and_four_workers_run_every_step_once() {
    World::with(async |world| {
        world.register(DIAMOND).await;
        let tasks = submit(world, "diamond", 500).await;
        let runs: Arc<Mutex<HashMap<(String, String), usize>>> = Arc::default();
        let mut orchestrators = Vec::new();
        for _ in 0..2 {
            let db = Db::connect(&world.url, 5).await.unwrap();
            orchestrators.push(
                Orchestrator::start(
                    &db,
                    OrchestratorConfig {
                        batch: 50,
                        ..OrchestratorConfig::default()
                    },
                )
                .await
                .unwrap(),
            );
        }
        let mut workers = Vec::new();
        for _ in 0..4 {
            let db = Db::connect(&world.url, 5).await.unwrap();
            let config = WorkerConfig {
                namespaces: vec!["here".into(), "there".into()],
                batch: 37,
                ..WorkerConfig::default()
            };
            let worker = Arc::new(Worker::start(&db, config).await.unwrap());
            let runs = runs.clone();
            worker.handle_with(Handlers::default().with("H", move |step: Arc<tasker::worker::Step>| {
                let key = (step.leased.task_id.to_string(), step.leased.name.clone());
                *runs.lock().unwrap().entry(key).or_default() += 1;
                async { Ok(Value::Null) }
            }));
            workers.push(worker);
        }
        for task in &tasks {
            assert_eq!(
                wait_for_end(&world.db, *task, Some(Duration::from_secs(120))).await.unwrap(),
                "complete"
            );
        }
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tasker'";
        let (sessions, own) = (world.count(sessions).await, i64::from(world.db.pool_use().open));
        assert!(sessions - own <= 6 * 5, "{sessions} sessions, {own} of them this test's own");
        for worker in workers {
            worker.shutdown(Duration::from_secs(10)).await;
        }
        for orchestrator in orchestrators {
            orchestrator.shutdown().await;
        }
        let runs = runs.lock().unwrap().clone();
        assert_eq!(runs.len(), 4 * tasks.len());
        assert!(runs.values().all(|count| *count == 1), "a step ran twice");
        assert_eq!(world.counter("stale_reports").await + world.counter("stale_messages").await, 0);
        let left = "SELECT (SELECT count(*) FROM pgmq.q_here_queue) + (SELECT count(*) FROM pgmq.q_there_queue)";
        assert_eq!(world.count(left).await, 0);
    })
    .await;
}

/// DESIGN, section 3: siblings completed by different workers in different orders deadlocked a prototype.
#[tokio::test(flavor = "multi_thread")]
async fn siblings_completed_by_many_workers_in_any_order_do_not_deadlock() {
    World::with(async |world| {
        world.register(DIAMOND).await;
        submit(world, "diamond", 400).await;
        world.claim().await;
        world.complete(&world.lease("here_queue", 400).await, "{}").await;
        let (mut left, mut right) = (world.lease("here_queue", 400).await, world.lease("there_queue", 400).await);
        assert_eq!((left.len(), right.len()), (400, 400));
        fastrand::shuffle(&mut left);
        fastrand::shuffle(&mut right);
        let counted = AtomicUsize::new(0);
        let reports = left.chunks(40).zip(right.chunks(40)).flat_map(|(l, r)| [l, r]).map(async |batch| {
            counted.fetch_add(world.complete(batch, "{}").await.len(), Ordering::Relaxed);
        });
        futures::future::join_all(reports).await;
        assert_eq!(counted.into_inner(), 800);
        assert_eq!(
            world
                .count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
                .await,
            0
        );
        assert_eq!(world.lease("here_queue", 1000).await.len(), 400, "every last step is ready, once");
    })
    .await;
}

#[tokio::test]
async fn a_notification_calls_as_many_as_there_is_something_for_and_each_member_knows_its_rank_among_the_others() {
    World::with(async |world| {
        world.register("name: t\nnamespace: here\nsteps: [{ name: s, handler: H }]").await;
        let mut heard = PgListener::connect(&world.url).await.unwrap();
        heard.listen("tasker_tasks").await.unwrap();
        world.run("SELECT tasker.create_tasks('t', array_fill('{}'::jsonb, '{5}'))").await;
        let told = heard.recv().await.unwrap();
        let parts: Vec<&str> = told.payload().split(' ').collect();
        assert!(parts[0] == "here" && parts[1].parse::<u32>().is_ok() && parts[2] == "5", "{told:?}");

        let join = async |kind: &str, namespaces: &str| {
            let join = format!("SELECT tasker.join_members('{kind}', 'host:1', '0', '{namespaces}', '1 hour')::bigint");
            world.count(&join).await
        };
        world.run("UPDATE tasker.members SET left_at = now()").await;
        let (first, second) = (join("worker", "{here}").await, join("worker", "{here,there}").await);
        let gone = join("worker", "{here}").await;
        world
            .run(&format!("UPDATE tasker.members SET left_at = now() WHERE id = {gone}"))
            .await;
        let (third, of_all) = (join("worker", "{there}").await, join("orchestrator", "{}").await);
        for (member, ranks) in [
            (first, r#"{"here": [0, 2]}"#),
            (second, r#"{"here": [1, 2], "there": [0, 2]}"#),
            (third, r#"{"there": [1, 2]}"#),
            (of_all, r#"{"": [0, 1]}"#),
        ] {
            let told = world
                .text(&format!("SELECT (tasker.renew_membership({member}, '1 hour')).ranks::text"))
                .await;
            assert_eq!(told, ranks, "{member}");
        }
    })
    .await;
}
