//! Time in a task: steps that sleep, delays, and handlers that want to be called later. None of them holds a worker.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step};
use tasker::Template;

use super::world::World;

const TRIAL: &str = "
name: trial
namespace: here
steps:
  - { name: welcome, handler: h }
  - { name: cool_off, sleep: 14d, depends_on: [welcome] }
  - { name: remind, handler: h, depends_on: [cool_off], delay: 1h }
";

/// As if all that waits had waited long enough. Returns how many sleeps ended, and how many steps were enqueued.
async fn later(world: &World) -> (i64, i32) {
    for column in ["retry_at", "wakes_at"] {
        world
            .run(&format!("UPDATE tasker.steps SET {column} = now() WHERE {column} IS NOT NULL"))
            .await;
    }
    (
        world.count("SELECT tasker.end_sleeps(100)::bigint").await,
        world.enqueue_due_retries().await,
    )
}

async fn begun(world: &World) -> uuid::Uuid {
    let task = world.submit("trial", json!({})).await;
    world.claim().await;
    let welcome = world.lease("here_queue", 1).await;
    world.complete(&welcome, "{}").await;
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_sleeps_is_a_row_until_its_time_is_over() {
    World::with(async |world| {
        world.register(TRIAL).await;
        let task = begun(world).await;
        assert_eq!(world.step_states(task).await, ["complete", "waiting", "pending"]);
        assert_eq!(world.task(task).await["state"], "waiting");
        assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue").await, 0);
        let wakes = "SELECT count(*) FROM tasker.steps WHERE wakes_at BETWEEN now() + interval '13 days' AND now() + interval '15 days'";
        assert_eq!(world.count(wakes).await, 1);
        assert_eq!(
            (
                world.count("SELECT tasker.end_sleeps(100)::bigint").await,
                world.enqueue_due_retries().await
            ),
            (0, 0)
        );

        assert_eq!(later(world).await, (1, 0));
        assert_eq!(
            world.step_states(task).await,
            ["complete", "complete", "waiting"],
            "the delay begins now"
        );
        assert_eq!(later(world).await, (0, 1));
        let remind = world.lease("here_queue", 1).await;
        assert_eq!((remind[0].name.as_str(), remind[0].attempt), ("remind", 1));
        world.complete(&remind, "{}").await;
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_sleeps_can_be_cancelled_and_can_run_out_of_time() {
    World::with(async |world| {
        world.register(TRIAL).await;
        let cancelled = begun(world).await;
        assert_eq!(cancel_tasks(&world.db, &[cancelled]).await.unwrap(), [cancelled]);
        assert_eq!(world.task(cancelled).await["state"], "cancelled");
        assert_eq!(world.step_states(cancelled).await, ["complete", "cancelled", "cancelled"]);

        world
            .register(
                &format!("{TRIAL}deadline: 1h\n")
                    .replace("name: trial", "name: late")
                    .replace("14d", "13d"),
            )
            .await;
        let late = world.submit("late", json!({})).await;
        world.claim().await;
        let welcome = world.lease("here_queue", 1).await;
        world.complete(&welcome, "{}").await;
        world
            .run("UPDATE tasker.tasks SET deadline_at = now(), look_at = now() WHERE deadline_at IS NOT NULL")
            .await;
        world.count("SELECT tasker.expire_tasks(100)::bigint").await;
        assert_eq!(world.step_states(late).await, ["complete", "dead", "pending"]);
        let letters = world.dead_letters("here").await;
        assert_eq!((letters.len(), &letters[0]["reason"]), (1, &json!("deadline")));
        world.replay_all("here").await;
        assert_eq!(later(world).await, (1, 0), "it has slept enough");
        assert_eq!(world.step_states(late).await, ["complete", "complete", "waiting"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeps_that_end_together_make_what_follows_ready_once() {
    World::with(async |world| {
        let naps = "  - { name: one, sleep: 200ms }\n  - { name: two, sleep: 200ms }\n";
        let join = "  - { name: join, handler: h, depends_on: [one, two] }\n";
        world.register(&format!("name: naps\nnamespace: here\nsteps:\n{naps}{join}")).await;
        let mut orchestrators = Vec::new();
        for _ in 0..3 {
            orchestrators.push(Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap());
        }
        let worker = world.worker(Handlers::default().with("h", |_| async { Ok(json!(null)) })).await;
        let mut tasks = Vec::new();
        for _ in 0..100 {
            tasks.push(world.submit("naps", json!({})).await);
        }
        for task in tasks {
            assert_eq!(
                wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
        }
        assert_eq!(world.count("SELECT count(*) FROM tasker.steps WHERE state <> 'complete'").await, 0);
        worker.shutdown(Duration::from_secs(5)).await;
        for orchestrator in orchestrators {
            orchestrator.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_snoozes_uses_no_attempt_and_leaves_no_error() {
    World::with(async |world| {
        world
            .register("name: polls\nnamespace: here\nsteps:\n  - { name: only, handler: h, retry: { max_attempts: 1 } }\n")
            .await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = calls.clone();
        let worker = world
            .worker(Handlers::default().with("h", move |step: Arc<Step>| {
                let calls = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                async move {
                    match calls {
                        1..=5 => Err(Failure::snooze(Duration::from_millis(5))),
                        _ => Ok(json!(step.leased.attempt)),
                    }
                }
            }))
            .await;
        let task = world.submit("polls", json!({})).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        let seen = world.task(task).await;
        let step = &seen["steps"][0];
        assert_eq!(
            (&step["result"], &step["errors"], &step["attempt"]),
            (&json!(1), &json!([]), &json!(1))
        );
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 6);
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[test]
fn a_step_runs_a_handler_or_sleeps() {
    let problem = |step: &str| {
        let error = Template::parse(&format!("name: t\nnamespace: n\nsteps:\n  - {{ name: a, {step} }}\n"), "t.yml");
        error
            .expect_err("it is not valid")
            .to_string()
            .trim_start_matches("t.yml:4: ")
            .to_owned()
    };
    for (step, said) in [
        (
            "handler: H, sleep: 1h",
            "step \"a\" has a handler and sleep: expected one of these",
        ),
        (
            "delay: 1h",
            "step \"a\" does not say what it is: expected `handler: NameOfAHandler`, `sleep: 14d`, `wait: approved`, `each: { over: …, handler: … }` or `workflow: name`",
        ),
        (
            "sleep: 1h, transactional: true",
            "step \"a\" sleeps, and has transactional: nothing runs there",
        ),
        (
            "sleep: 2y",
            "step \"a\": sleep is \"2y\": expected a duration such as 30, \"30s\" or \"1h 30m\", of at most a year",
        ),
    ] {
        assert_eq!(problem(step), said);
    }
    let written: Value = json!(Template::parse(TRIAL, "t.yml").unwrap());
    assert_eq!(written["steps"][1]["sleep"]["secs"], 14 * 24 * 3600);
}
