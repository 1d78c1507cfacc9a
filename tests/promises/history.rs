//! Tasks that have ended are deleted when their namespaces do not want to know them any longer; nothing else ever is.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::dead_letters::{self, By};
use tasker::engine::fail::Failure;
use tasker::engine::fork::fork_task;
use tasker::engine::history::forget_tasks;
use tasker::engine::read;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker};
use uuid::Uuid;

use crate::world::World;

const ONE: &str = "
name: one
namespace: here
steps:
  - { name: only, handler: H, retry: { max_attempts: 1 } }
";
const FAMILY: &str = "
name: family
namespace: here
steps:
  - { name: all, each: { over: '$.input.lines[*]', workflow: one } }
";

/// Whose handlers fail where their input says so.
async fn crew(world: &World) -> (Orchestrator, Arc<Worker>) {
    let handlers = Handlers::default().with("H", |step: Arc<tasker::worker::Step>| async move {
        match step.input().await.unwrap().contains("bad") {
            true => Err(Failure::permanent("Bad", "no")),
            false => Ok(json!({ "large": "x".repeat(100) })),
        }
    });
    let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
    (orchestrator, world.worker(handlers).await)
}

async fn end_of(world: &World, task: Uuid) -> String {
    read::wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap()
}

impl World {
    /// Beside what the rules allow: no test waits for a minute.
    async fn keep_for(&self, namespace: &str, seconds: f64) {
        let sql = "UPDATE tasker.namespaces SET history_seconds = $2 WHERE name = $1";
        sqlx::query(sql).bind(namespace).bind(seconds).execute(&self.pool).await.unwrap();
    }

    /// Looks as often as there is something, as an orchestrator does in time. Returns how many were deleted.
    async fn forget(&self, slice: i32) -> i32 {
        sqlx::query("UPDATE tasker.history_marks SET look_at = '-infinity'")
            .execute(&self.pool)
            .await
            .unwrap();
        let mut all = 0;
        loop {
            let (looked, forgotten) = forget_tasks(&self.db, slice).await.unwrap();
            assert!(looked <= slice);
            all += forgotten;
            if looked < slice {
                return all;
            }
        }
    }

    async fn left(&self) -> Vec<Uuid> {
        let left = sqlx::query_scalar("SELECT id FROM tasker.tasks ORDER BY id").fetch_all(&self.pool);
        left.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_has_ended_is_deleted_with_all_that_is_known_of_it_and_its_key_is_free() {
    World::with(async |world| {
        world.register(ONE).await;
        world
            .register(
                &ONE.replace("namespace: here", "namespace: other")
                    .replace("name: one", "name: kept"),
            )
            .await;
        let (orchestrator, worker) = crew(world).await;
        let submitter = Submitter::new(world.db.clone());
        let keyed = NewTask {
            key: Some("k".into()),
            tags: [("customer".to_owned(), "42".to_owned())].into(),
            ..NewTask::default()
        };
        let ended = submitter.submit("here/one", None, std::slice::from_ref(&keyed)).await.unwrap()[0].id;
        assert_eq!(end_of(world, ended).await, "complete");
        let dead = world.submit("one", json!({ "kind": "bad" })).await;
        assert_eq!(end_of(world, dead).await, "blocked");
        let cancelled = world.submit("kept", json!({})).await;
        cancel_tasks(&world.db, &[cancelled]).await.unwrap();
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        let open = world.submit("one", json!({})).await;

        assert_eq!(world.forget(10).await, 0, "no namespace has said how long");
        world.keep_for("here", 3_600.0).await;
        assert_eq!(world.forget(10).await, 0, "they have just ended");
        world.keep_for("here", 0.001).await;
        assert_eq!(world.forget(1).await, 1);
        let mut left = vec![dead, cancelled, open];
        left.sort();
        assert_eq!(world.left().await, left);
        for table in ["steps", "fan_outs", "waits", "memories", "task_values", "signals"] {
            let sql = format!("SELECT count(*) FROM tasker.{table} WHERE task_id = '{ended}'");
            assert_eq!(world.count(&sql).await, 0, "{table}");
        }
        // Its letter was discarded: it has failed, and goes.
        let letters: Vec<String> = dead_letters::of_tasks(&world.db, &[dead]).await.unwrap().into_keys().collect();
        assert_eq!(dead_letters::discard(&world.db, &letters, &By::default()).await.unwrap(), letters);
        sqlx::query("UPDATE tasker.history_marks SET anew_at = now()")
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(world.forget(10).await + world.forget(10).await, 1);
        assert!(!world.left().await.contains(&dead));
        let again = submitter.submit("here/one", None, &[keyed]).await.unwrap();
        assert!(again[0].created && again[0].id != ended);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_go_with_their_parent_and_an_origin_not_before_its_fork() {
    World::with(async |world| {
        world.register(ONE).await;
        world.register(FAMILY).await;
        let (orchestrator, worker) = crew(world).await;
        let parent = world.submit("family", json!({ "lines": [{}, {}, {}] })).await;
        assert_eq!(end_of(world, parent).await, "complete");
        let waits = world.submit("family", json!({ "lines": [{}, { "kind": "bad" }] })).await;
        assert_eq!(end_of(world, waits).await, "blocked");
        let origin = world.submit("one", json!({})).await;
        assert_eq!(end_of(world, origin).await, "complete");
        let fork = fork_task(&world.db, origin, None, None).await.unwrap();
        assert_eq!(end_of(world, fork).await, "complete");
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;

        world.keep_for("here", 0.001).await;
        // The parent with its three children, and the fork.
        assert_eq!(world.forget(100).await, 5);
        let left = world.left().await;
        assert!(
            left.contains(&waits) && left.contains(&origin) && left.len() == 4,
            "with its two children: {left:?}"
        );
        // It was looked at; once a day everything is looked at again.
        assert_eq!(world.forget(100).await, 0);
        sqlx::query("UPDATE tasker.history_marks SET anew_at = now()")
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(
            world.forget(100).await + world.forget(100).await,
            1,
            "now that there is no fork of it"
        );
        assert!(!world.left().await.contains(&origin));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_deletes_what_is_over_and_a_task_that_outlives_its_time_stays() {
    World::with(async |world| {
        world.register(ONE).await;
        world
            .register("name: long\nnamespace: here\nsteps:\n  - { name: nap, sleep: 14d }\n")
            .await;
        let long = world.submit("long", json!({})).await;
        let (orchestrator, worker) = crew(world).await;
        let tasks: Vec<Uuid> = Submitter::new(world.db.clone())
            .submit("one", None, &vec![NewTask::default(); 1_500])
            .await
            .unwrap()
            .iter()
            .map(|task| task.id)
            .collect();
        world.keep_for("here", 0.001).await;
        world.until_true("(SELECT count(*) FROM tasker.tasks) = 1").await;
        assert_eq!(world.left().await, [long]);
        let unknown = read::read_task(&world.db, tasks[0]).await.unwrap_err();
        assert!(matches!(unknown, tasker::Error::NotFound(_)), "{unknown}");
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.steps").await, 1);
    })
    .await;
}
