//! Durable blocks: a handler that sleeps, waits or fails between what it does runs again from its beginning, and does nothing twice.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::fail::Failure;
use tasker::engine::memories::{read_values, Awaited};
use tasker::engine::read::wait_for_end;
use tasker::engine::signals::{self, Addressee, Sent, Signal};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step};
use uuid::Uuid;

use super::world::World;

const ONE_STEP: &str = "name: durable\nnamespace: here\nsteps:\n  - { name: only, handler: h, retry: { max_attempts: 2, base: 0.01 } }\n";

/// Runs a task with that handler, and with who sends it signals; returns it once it has ended.
async fn run<F>(
    world: &World,
    template: &str,
    handler: impl Fn(Arc<Step>) -> F + Send + Sync + 'static,
    meanwhile: impl AsyncFnOnce(Uuid),
) -> Value
where
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    world.register(template).await;
    let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
    let worker = world.worker(Handlers::default().with("h", handler)).await;
    let task = world.submit("durable", json!({})).await;
    meanwhile(task).await;
    wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
    let seen = world.task(task).await;
    worker.shutdown(Duration::from_secs(5)).await;
    orchestrator.shutdown().await;
    seen
}

async fn say(world: &World, to: Addressee, name: &str, payload: Value) -> Sent {
    let signal = Signal {
        to,
        name: name.into(),
        payload: payload.to_string(),
        id: None,
        keep: None,
    };
    signals::send(&world.db, &signal).await.unwrap()
}

fn awaited(signal: &str) -> Awaited {
    Awaited {
        signal: signal.into(),
        ..Awaited::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_sleeps_waits_and_fails_does_each_block_once_and_uses_one_attempt_for_its_error() {
    World::with(async |world| {
        let did = Arc::new(Mutex::new(Vec::new()));
        let (noted, runs) = (did.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = runs.clone();
        let handler = move |step: Arc<Step>| {
            let (did, run) = (noted.clone(), counted.fetch_add(1, Ordering::Relaxed) + 1);
            async move {
                let once = |what: &'static str| {
                    let did = did.clone();
                    move || async move {
                        did.lock().unwrap().push(what);
                        Ok(json!({ what: run }))
                    }
                };
                let charged = step.once("charge", once("charge")).await?;
                step.sleep(Duration::from_millis(20)).await?;
                step.once("remind", once("remind")).await?;
                step.sleep(Duration::from_millis(20)).await?;
                let first = step.wait_for(&awaited("approved")).await?;
                let second = step.wait_for(&awaited("approved")).await?;
                step.once("fail", || async { Ok(json!(null)) }).await?;
                if step.leased.attempt == 1 {
                    return Err(Failure::retryable("Broken", "after all of it"));
                }
                let again = step.once("charge", once("charge")).await?;
                Ok(json!({ "charged": charged, "again": again, "first": first, "second": second }))
            }
        };
        let seen = run(world, ONE_STEP, handler, async |task| {
            let wrong = say(world, Addressee::Task(task), "aproved", json!("Ann")).await;
            let hint = "no step of durable waits for \"aproved\", unless a handler does";
            assert_eq!((wrong.outcome.as_str(), wrong.note.as_deref()), ("kept", Some(hint)));
            say(world, Addressee::Task(task), "approved", json!("Ann")).await;
            world
                .until_true("EXISTS (SELECT FROM tasker.waits JOIN tasker.steps s USING (task_id, step) WHERE place = 'wait/approved/2' AND s.state = 'waiting')")
                .await;
            let seen = world.task(task).await;
            assert_eq!(
                (&seen["state"], &seen["steps"][0]["waits_for"]),
                (&json!("waiting"), &json!("the signal approved"))
            );
            let sent = say(world, Addressee::Task(task), "approved", json!("Bob")).await;
            assert_eq!((sent.outcome.as_str(), sent.note), ("awaited", None));
        })
        .await;
        assert_eq!(seen["state"], "complete");
        let once = json!({ "charge": 1 });
        assert_eq!(
            seen["steps"][0]["result"],
            json!({ "charged": once, "again": once, "first": "Ann", "second": "Bob" })
        );
        assert_eq!(
            (&seen["steps"][0]["attempt"], &seen["steps"][0]["errors"].as_array().unwrap().len()),
            (&json!(2), &1)
        );
        assert_eq!(*did.lock().unwrap(), ["charge", "remind"]);
        assert_eq!(runs.load(Ordering::Relaxed), 6, "two sleeps, two waits, one error");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_waits_too_long_or_by_a_key_is_told() {
    World::with(async |world| {
        let handler = |step: Arc<Step>| async move {
            let never = Awaited {
                timeout: Some(Duration::from_millis(20)),
                ..awaited("never")
            };
            let paid = Awaited {
                key: Some("order-17".into()),
                ..awaited("paid")
            };
            Ok(json!([step.wait_for(&never).await?, step.wait_for(&paid).await?]))
        };
        let seen = run(world, ONE_STEP, handler, async |_| {
            say(world, Addressee::Key("order-17".into()), "paid", json!(90)).await;
        })
        .await;
        assert_eq!(seen["steps"][0]["result"], json!([null, 90]));
        assert_eq!((&seen["steps"][0]["attempt"], &seen["steps"][0]["errors"]), (&json!(1), &json!([])));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_waits_holds_no_worker_and_ends_with_its_task() {
    World::with(async |world| {
        let handler = |step: Arc<Step>| async move { Ok(json!(step.wait_for(&awaited("never")).await?)) };
        let seen = run(world, ONE_STEP, handler, async |task| {
            world.until_true("EXISTS (SELECT FROM tasker.steps WHERE state = 'waiting')").await;
            assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue").await, 0);
            assert_eq!(cancel_tasks(&world.db, &[task]).await.unwrap(), [task]);
        })
        .await;
        assert_eq!(
            (&seen["state"], &seen["steps"][0]["state"]),
            (&json!("cancelled"), &json!("cancelled"))
        );
        assert_eq!(world.count("SELECT count(*) FROM tasker.waits WHERE since IS NOT NULL").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_lost_its_step_leaves_nothing_to_remember() {
    World::with(async |world| {
        world.register(ONE_STEP).await;
        world.submit("durable", json!({})).await;
        world.claim().await;
        let old = world.lease("here_queue", 1).await.remove(0);
        world.expire(&old).await;
        let new = world.lease("here_queue", 1).await.remove(0);
        for (step, held) in [(&old, 0), (&new, 1)] {
            let of = format!("'here_queue', {}, {}, '{}', 0::smallint", step.msg_id, step.fence, step.task_id);
            for call in [
                format!("remember({of}, 'a', '{}')", step.fence),
                format!("await_signal({of}, 'b', 'go', NULL, NULL)"),
                format!("publish_value({of}, 'c', '{}')", step.fence),
            ] {
                assert_eq!(world.count(&format!("SELECT tasker.{call}::int::bigint")).await, held, "{call}");
            }
        }
        assert_eq!(world.count("SELECT value::bigint FROM tasker.memories").await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_publishes_can_be_read_while_its_task_runs() {
    World::with(async |world| {
        let handler = |step: Arc<Step>| async move {
            step.publish("eta", "\"12:30\"").await?;
            step.publish("left", "5").await?;
            step.publish("left", "4").await?;
            step.wait_for(&awaited("go")).await?;
            Ok(json!(null))
        };
        run(world, ONE_STEP, handler, async |task| {
            world.until_true("EXISTS (SELECT FROM tasker.steps WHERE state = 'waiting')").await;
            assert_eq!(read_values(&world.db, task).await.unwrap(), json!({ "eta": "12:30", "left": 4 }));
            say(world, Addressee::Task(task), "go", json!(null)).await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_to_come_along_is_recalled_by_its_name() {
    World::with(async |world| {
        let handler = |step: Arc<Step>| async move {
            for name in ["a", "b", "c"] {
                step.once(name, || async { Ok(json!(name.repeat(500_000))) }).await?;
            }
            step.sleep(Duration::from_millis(5)).await?;
            let mut sizes = Vec::new();
            for name in ["a", "b", "c"] {
                let value = step
                    .once(name, || async { Err(Failure::permanent("Twice", "it ran twice")) })
                    .await?;
                sizes.push(value.as_str().map(str::len));
            }
            Ok(json!(sizes))
        };
        let seen = run(world, ONE_STEP, handler, async |_| {}).await;
        assert_eq!(seen["steps"][0]["result"], json!([500_000, 500_000, 500_000]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_finishes_its_task_skips_all_that_is_left_of_it() {
    World::with(async |world| {
        let template = "
name: durable
namespace: here
output: $.results.look
steps:
  - { name: look, handler: h }
  - { name: then, handler: h, depends_on: [look] }
  - { name: nap, sleep: 14d }
  - { name: told, wait: approved }
  - { name: parts, each: { over: '$.input.parts', handler: unknown } }
";
        world.register(&template.replace("name: durable", "name: child")).await;
        world
            .register("name: parent\nnamespace: here\nsteps:\n  - { name: child, workflow: child, input: { parts: $.input.parts } }\n")
            .await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let parent = world.submit("parent", json!({ "parts": [1, 2, 3] })).await;
        world
            .until_true("(SELECT count(*) = 3 FROM tasker.tasks WHERE item IS NOT NULL AND state = 'running' AND parent_step = 4)")
            .await;
        let worker = world
            .worker(Handlers::default().with("h", |_| async { Err(Failure::finish(json!({ "nothing": "to do" }))) }))
            .await;
        assert_eq!(
            wait_for_end(&world.db, parent, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        assert_eq!(world.task(parent).await["steps"][0]["result"], json!({ "nothing": "to do" }));
        let child: Uuid = sqlx::query_scalar("SELECT id FROM tasker.tasks WHERE parent_id = $1")
            .bind(parent)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let seen = world.task(child).await;
        assert_eq!(seen["state"], "complete");
        for step in &seen["steps"].as_array().unwrap()[1..] {
            assert_eq!(
                (&step["state"], &step["skipped_because"]),
                (&json!("skipped"), &json!("step look finished the task")),
                "{step}"
            );
        }
        assert_eq!(world.children("parent_step = 4 AND state = 'cancelled'").await, 3);
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}
