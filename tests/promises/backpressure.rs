//! Backpressure: a backlog that grows too long or too old is the same state for the whole fleet, slows down or turns away what comes, and loses
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::backpressure::{measure, Measured};
use tasker::engine::read;
use tasker::engine::submit::{NewTask, Submitted, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::{Error, Priority};
use uuid::Uuid;

use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

impl World {
    async fn submit_as(&self, count: usize, priority: Priority) -> tasker::Result<Vec<Submitted>> {
        let task = NewTask {
            input: json!({}).into(),
            priority: Some(priority),
            ..NewTask::default()
        };
        Submitter::new(self.db.clone()).submit("one", None, &vec![task; count]).await
    }

    /// (before, after) of the namespace, if that has changed.
    async fn measured(&self) -> Option<(String, String)> {
        let measured: Vec<Measured> = measure(&self.db, Duration::ZERO).await.expect("measures");
        let mut changed = measured.into_iter().filter(|of| of.was != of.pressure);
        changed.next().map(|of| (of.was, of.pressure))
    }

    /// Claims so many tasks.
    async fn claim_some(&self, count: i32) -> i64 {
        sqlx::query_scalar("SELECT coalesce(sum(claimed), 0) FROM tasker.claim_tasks($1, NULL, 1000000, $2)")
            .bind(self.orchestrator)
            .bind(count)
            .fetch_one(&self.pool)
            .await
            .expect("claims")
    }
}

fn from_to(was: &str, is: &str) -> Option<(String, String)> {
    Some((was.into(), is.into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_becomes_worse_at_its_thresholds_and_better_below_four_fifths_of_them() {
    World::with(async |world| {
        world.register(ONE).await;
        world
            .set_rules("here", json!({ "depth_warning": 5, "depth_critical": 10 }))
            .await
            .unwrap();
        assert_eq!(world.measured().await, None);
        world.submit_as(5, Priority::Normal).await.unwrap();
        assert_eq!(world.measured().await, from_to("normal", "warning"));
        world.submit_as(5, Priority::Normal).await.unwrap();
        assert_eq!(world.measured().await, from_to("warning", "critical"));
        world.claim_some(2).await;
        assert_eq!(world.measured().await, None, "8 of 10 are still critical");
        world.claim_some(1).await;
        assert_eq!(world.measured().await, from_to("critical", "warning"));
        world.submit_as(1, Priority::Normal).await.unwrap();
        assert_eq!(world.measured().await, None, "8 of 10 are not critical yet");
        world.claim_some(4).await;
        assert_eq!(world.measured().await, None, "4 of 5 are still a warning");
        world.claim_some(1).await;
        assert_eq!(world.measured().await, from_to("warning", "normal"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn age_counts_as_depth_does_and_rules_that_are_taken_back_end_it() {
    World::with(async |world| {
        world.register(ONE).await;
        world.set_rules("here", json!({ "age_critical_seconds": 60.0 })).await.unwrap();
        let task = world.submit("one", json!({})).await;
        assert_eq!(world.measured().await, None);
        sqlx::query("UPDATE tasker.tasks SET claim_order = claim_order - interval '2 minutes' WHERE id = $1")
            .bind(task)
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(world.measured().await, from_to("normal", "critical"));
        world.set_rules("here", json!({ "age_critical_seconds": 3600.0 })).await.unwrap();
        assert_eq!(world.measured().await, from_to("critical", "normal"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_orchestrators_measure_no_more_often_than_one() {
    World::with(async |world| {
        world.register(ONE).await;
        world.set_rules("here", json!({ "depth_warning": 1 })).await.unwrap();
        world.submit_as(1, Priority::Normal).await.unwrap();
        let measuring = (0..8).map(|_| {
            let db = world.db.clone();
            tokio::spawn(async move { measure(&db, Duration::from_secs(60)).await.unwrap().len() })
        });
        let mut told = 0;
        for measured in measuring.collect::<Vec<_>>() {
            told += measured.await.unwrap();
        }
        assert_eq!(told, 1);
        assert!(measure(&world.db, Duration::from_secs(60)).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn low_priorities_are_parked_at_critical_and_come_back_in_order() {
    World::with(async |world| {
        world.register(ONE).await;
        let rules = json!({ "depth_critical": 10, "shed_low_priority": true, "queue_target": 1000 });
        world.set_rules("here", rules).await.unwrap();
        let low: Vec<Uuid> = world
            .submit_as(50, Priority::Low)
            .await
            .unwrap()
            .iter()
            .map(|task| task.id)
            .collect();
        assert_eq!(world.measured().await, None, "what would be parked does not count");
        world.submit_as(10, Priority::Normal).await.unwrap();
        assert_eq!(world.measured().await, from_to("normal", "critical"));
        assert_eq!(world.claim_some(1000).await, 10);
        assert_eq!(world.claim_some(1000).await, 0, "they stay where they are");
        assert_eq!(world.measured().await, from_to("critical", "normal"));
        let mut came = Vec::new();
        while world.claim_some(20).await > 0 {
            for step in world.lease("here_queue", 100).await {
                came.push(step.task_id);
            }
        }
        came.retain(|task| low.contains(task));
        assert_eq!(came, low);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_at_critical_is_held_refused_or_made_to_wait_as_the_rules_say() {
    World::with(async |world| {
        world.register(ONE).await;
        world.set_rules("here", json!({ "depth_critical": 2 })).await.unwrap();
        world.submit_as(2, Priority::Normal).await.unwrap();
        assert_eq!(world.measured().await, from_to("normal", "critical"));
        world
            .submit_as(1, Priority::Normal)
            .await
            .expect("held, where nothing else is said");

        world.set_rules("here", json!({ "throttle_new_tasks": "refuse" })).await.unwrap();
        match world.submit_as(1, Priority::Normal).await {
            Err(Error::Backpressure { message, retry_after }) => {
                assert!(message.starts_with("namespace here takes no new tasks"), "{message}");
                assert!((1..=60).contains(&retry_after));
            }
            other => panic!("{other:?}"),
        }
        let by_sql = sqlx::query("SELECT tasker.create_task('one', '{}')").execute(&world.pool).await;
        assert_eq!(by_sql.unwrap_err().as_database_error().unwrap().code().unwrap(), "TK007");

        world
            .set_rules("here", json!({ "throttle_new_tasks": "wait", "throttle_wait_seconds": 0.1 }))
            .await
            .unwrap();
        assert!(matches!(
            world.submit_as(1, Priority::Normal).await,
            Err(Error::Backpressure { .. })
        ));
        world.set_rules("here", json!({ "throttle_wait_seconds": 60.0 })).await.unwrap();
        let (submitted, ()) = tokio::join!(world.submit_as(1, Priority::Normal), async {
            world.claim_some(3).await;
            assert_eq!(world.measured().await, from_to("critical", "normal"));
        });
        submitted.expect("taken once it is over");
        let tasks: Value = sqlx::query_scalar("SELECT to_jsonb(count(*)) FROM tasker.tasks")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(tasks, 4, "nothing was half accepted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_in_one_namespace_does_not_hold_up_another() {
    World::with(async |world| {
        for namespace in ["noisy", "quiet"] {
            world
                .register(&format!(
                    "name: {namespace}\nnamespace: {namespace}\nsteps:\n  - {{ name: only, handler: H }}\n"
                ))
                .await;
        }
        let task = NewTask {
            input: json!({}).into(),
            priority: Some(Priority::Urgent),
            ..NewTask::default()
        };
        Submitter::new(world.db.clone())
            .submit("noisy", None, &vec![task; 5_000])
            .await
            .unwrap();
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let mut workers = Vec::new();
        for (namespace, pause) in [("noisy", 50), ("quiet", 0)] {
            let config = WorkerConfig {
                namespaces: vec![namespace.into()],
                concurrency: 1,
                ..WorkerConfig::default()
            };
            let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
            worker.handle_with(Handlers::default().with("H", move |_: Arc<Step>| async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Ok(json!(null))
            }));
            workers.push(worker);
        }
        for _ in 0..20 {
            let quiet = world.submit("quiet", json!({})).await;
            let ended = read::wait_for_end(&world.db, quiet, Some(Duration::from_secs(60))).await.unwrap();
            assert_eq!(ended, "complete");
        }
        let waiting = world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'pending'").await;
        assert!(
            waiting > 1_000,
            "the others, of a higher priority and there before, were not over: {waiting}"
        );
        for worker in workers {
            worker.shutdown(Duration::ZERO).await;
        }
        orchestrator.shutdown().await;
    })
    .await;
}
