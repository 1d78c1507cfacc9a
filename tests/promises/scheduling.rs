//! Tasks that wait for their time.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::engine::{cancel, read};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use uuid::Uuid;

use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

/// A task that may not start before so many seconds from now.
async fn submit_in(world: &World, seconds: i64) -> Uuid {
    let task = NewTask {
        input: json!({}).into(),
        run_at: Some(Utc::now() + TimeDelta::seconds(seconds)),
        ..NewTask::default()
    };
    let submitter = Submitter::new(world.db.clone());
    submitter.submit("one", None, &[task]).await.unwrap()[0].id
}

/// An hour goes by.
async fn an_hour_later(world: &World) {
    world
        .run("UPDATE tasker.tasks SET run_at = run_at - interval '1 hour', due_at = due_at - interval '1 hour', deadline_at = deadline_at - interval '1 hour', look_at = look_at - interval '1 hour', created_at = created_at - interval '1 hour'")
        .await;
}

async fn begin_due(world: &World, limit: i32) -> i64 {
    world
        .count(&format!("SELECT begun::bigint FROM tasker.begin_due_tasks({limit})"))
        .await
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_starts_as_soon_as_its_time_has_come_and_not_before() {
    World::with(async |world| {
        world.register(ONE).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_: Arc<Step>| async { Ok(json!(null)) }));

        let later = submit_in(world, 3600).await;
        let soon = submit_in(world, 1).await;
        let now = submit_in(world, -3600).await;
        for id in [now, soon] {
            assert_eq!(
                read::wait_for_end(&world.db, id, Some(Duration::from_secs(30))).await.unwrap(),
                "complete"
            );
            let task = world.task(id).await;
            assert!(time(&task["started_at"]) >= time(&task["run_at"]), "{task}");
        }
        assert_eq!(world.task(later).await["state"], "waiting");
        assert!(cancel::cancel_tasks(&world.db, &[later]).await.unwrap() == [later]);
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE due_at IS NOT NULL").await, 0);
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_due_begins_in_the_order_of_its_time_and_is_found_below_no_mark() {
    World::with(async |world| {
        world.register(ONE).await;
        let mut tasks = Vec::new();
        for seconds in [3_000, 1_000, 2_000, 10_000] {
            tasks.push(submit_in(world, seconds).await);
        }
        assert_eq!((begin_due(world, 10).await, world.claim().await), (0, 0));
        // The marks go on meanwhile, as they do for all that comes in.
        for _ in 0..3 {
            world.submit("one", json!({})).await;
            world.claim().await;
            world.run("SELECT tasker.move_marks()").await;
        }
        an_hour_later(world).await;
        assert_eq!(begin_due(world, 2).await, 2);
        assert_eq!(world.claim().await, 2);
        for (task, state) in tasks.iter().zip(["waiting", "running", "running", "waiting"]) {
            assert_eq!(world.task(*task).await["state"], state);
        }
        assert_eq!((begin_due(world, 10).await, world.claim().await), (1, 1));
        let next = world.text("SELECT next_due::text FROM tasker.begin_due_tasks(10)").await;
        assert_eq!(next, world.text("SELECT max(run_at)::text FROM tasker.tasks").await);
    })
    .await;
}

#[tokio::test]
async fn its_deadline_and_its_limits_count_from_its_time() {
    World::with(async |world| {
        world
            .register(&format!("{ONE}deadline: 30m\nstuck_after: {{ pending: 20m }}\n"))
            .await;
        let [stuck, late] = [submit_in(world, 2_000).await, submit_in(world, 1_000).await];
        let expire = async || world.count("SELECT tasker.expire_tasks(100)::bigint").await;
        assert_eq!(expire().await, 0);
        an_hour_later(world).await;
        // Nobody was there to begin them: the time of one is 26 minutes ago, that of the other 43.
        assert_eq!(expire().await, 2);
        let reasons: Vec<(Value, Value)> = world
            .dead_letters("here")
            .await
            .into_iter()
            .map(|letter| (letter["task"].clone(), letter["reason"].clone()))
            .collect();
        for expected in [(json!(stuck), json!("stuck")), (json!(late), json!("deadline"))] {
            assert!(reasons.contains(&expected), "{reasons:?}");
        }
        assert_eq!((begin_due(world, 10).await, world.claim().await), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_time_that_never_comes_is_refused() {
    World::with(async |world| {
        world.register(ONE).await;
        for never in ["infinity", "-infinity"] {
            let create = format!("SELECT tasker.create_task('one', '{{}}', p_run_at => '{never}')");
            let error = sqlx::query(&create).execute(&world.pool).await.unwrap_err();
            assert!(error.to_string().contains("time 1 never comes"), "{error}");
        }
    })
    .await;
}
