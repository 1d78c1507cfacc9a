//! A task that is cancelled while a handler runs is cancelling until that handler, or its lease, has ended; what became of it is kept.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::fail::Failure;
use tasker::worker::{Handlers, Outcome, Worker, WorkerConfig};
use tokio::sync::Notify;
use uuid::Uuid;

use super::world::{Leased, World};

const TWO: &str =
    "name: two\nnamespace: here\nsteps:\n  - { name: first, handler: h }\n  - { name: second, handler: h, depends_on: [first] }\n";

/// The states of the task and of its first step, and what became of that.
async fn seen(world: &World, task: Uuid) -> [Value; 3] {
    let task = world.task(task).await;
    let step = &task["steps"][0];
    [task["state"].clone(), step["state"].clone(), step["after_cancel"].clone()]
}

/// A task whose first step runs, and is cancelled.
async fn cancelled(world: &World) -> (Uuid, Leased) {
    let task = world.submit("two", json!({})).await;
    world.claim().await;
    let held = world.lease("here_queue", 1).await.remove(0);
    assert_eq!(cancel_tasks(&world.db, &[task]).await.unwrap(), [task]);
    assert_eq!(seen(world, task).await, [json!("cancelling"), json!("cancelling"), Value::Null]);
    assert!(cancel_tasks(&world.db, &[task]).await.unwrap().is_empty(), "once is enough");
    (task, held)
}

async fn look_again(world: &World) {
    world.run("UPDATE tasker.tasks SET look_at = now() WHERE look_at IS NOT NULL").await;
    world.count("SELECT tasker.expire_tasks(100)::bigint").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_comes_after_the_cancellation_is_kept_and_does_not_count() {
    World::with(async |world| {
        world.register(TWO).await;
        let (task, held) = cancelled(world).await;
        look_again(world).await;
        assert_eq!(world.task(task).await["state"], "cancelling", "it runs still");
        assert!(world.complete(&[held], r#"{"paid": 7}"#).await.is_empty());
        assert_eq!(seen(world, task).await, [json!("cancelled"), json!("cancelled"), json!("complete")]);
        let step = &world.task(task).await["steps"][0];
        assert_eq!((&step["result"], &step["finished_at"].is_string()), (&json!({ "paid": 7 }), &true));
        assert!(world.lease("here_queue", 10).await.is_empty(), "nothing comes after it");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_comes_after_the_cancellation_is_kept_and_is_no_dead_letter() {
    World::with(async |world| {
        world.register(TWO).await;
        let (task, held) = cancelled(world).await;
        world.fail(&held, "the card was refused", true, None).await;
        assert_eq!(seen(world, task).await, [json!("cancelled"), json!("cancelled"), json!("failed")]);
        assert_eq!(world.task(task).await["steps"][0]["errors"][0]["message"], "the card was refused");
        assert!(world.dead_letters("here").await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_handler_that_is_never_heard_of_again_is_unknown() {
    World::with(async |world| {
        world.register(TWO).await;
        // Whether it is an orchestrator that looks, or a worker that finds the message.
        let (task, held) = cancelled(world).await;
        world.expire(&held).await;
        look_again(world).await;
        assert_eq!(seen(world, task).await, [json!("cancelled"), json!("cancelled"), json!("unknown")]);

        let (task, held) = cancelled(world).await;
        world.expire(&held).await;
        assert!(world.lease("here_queue", 10).await.is_empty());
        assert_eq!(seen(world, task).await, [json!("cancelled"), json!("cancelled"), json!("unknown")]);
        assert!(world.complete(&[held], "{}").await.is_empty());
        assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue").await, 0);

        // Lost before the cancellation, too; but not what nobody has begun.
        let (begun, not) = (world.submit("two", json!({})).await, world.submit("two", json!({})).await);
        world.claim().await;
        let held = world.lease("here_queue", 1).await.remove(0);
        world.expire(&held).await;
        cancel_tasks(&world.db, &[begun, not]).await.unwrap();
        assert_eq!(seen(world, begun).await, [json!("cancelled"), json!("cancelled"), json!("unknown")]);
        assert_eq!(seen(world, not).await, [json!("cancelled"), json!("cancelled"), Value::Null]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_held_until_the_cancelled_handler_has_ended() {
    World::with(async |world| {
        world.register(TWO).await;
        world
            .set_rules("here", json!({ "limits": { "one": { "concurrency": 1 } } }))
            .await
            .unwrap();
        let task = world.submit("two", json!({})).await;
        world.claim().await;
        while world.grant().await > 0 {}
        let held = world.lease("here_queue", 1).await;
        cancel_tasks(&world.db, &[task]).await.unwrap();
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits").await, 1);
        world.complete(&held, "{}").await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits").await, 0);
        assert_eq!(world.task(task).await["state"], "cancelled");
    })
    .await;
}

/// A worker of `here`.
async fn worker(world: &World) -> Arc<Worker> {
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        concurrency: 2,
        ..WorkerConfig::default()
    };
    Arc::new(Worker::start(&world.db, config).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_handler_is_told_and_one_that_waits_does_not_begin() {
    World::with(async |world| {
        world.register(TWO).await;
        let worker = worker(world).await;
        let told = world.submit("two", json!({})).await;
        let step = worker.next().await.unwrap().remove(0);
        assert_eq!(step.leased.task_id, told);
        cancel_tasks(&world.db, &[told]).await.unwrap();
        while !step.is_lost() {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.task(told).await["state"], "cancelling");
        assert!(worker.report(&step, Outcome::Fail(Failure::retryable("Stopped", "as it was told"))));
        tasker::engine::read::wait_for_end(&world.db, told, Some(Duration::from_secs(30)))
            .await
            .unwrap();
        assert_eq!(seen(world, told).await[2], "failed");

        // One runs, one waits for a handler.
        let (first, second) = (world.submit("two", json!({})).await, world.submit("two", json!({})).await);
        let running = worker.next().await.unwrap().remove(0);
        while worker.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        cancel_tasks(&world.db, &[first, second]).await.unwrap();
        while !running.is_lost() {
            tokio::task::yield_now().await;
        }
        assert!(worker.try_next().is_none());
        worker.report(&running, Outcome::Complete("{}".into()));
        for (task, last_word) in [(first, json!("complete")), (second, Value::Null)] {
            look_again(world).await;
            tasker::engine::read::wait_for_end(&world.db, task, Some(Duration::from_secs(30)))
                .await
                .unwrap();
            assert_eq!(seen(world, task).await[2], last_word);
        }
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_in_rust_is_stopped_and_that_is_its_last_word() {
    World::with(async |world| {
        world.register(TWO).await;
        let worker = worker(world).await;
        let begun = Arc::new(Notify::new());
        let tell = begun.clone();
        worker.handle_with(Handlers::default().with("h", move |_| {
            tell.notify_one();
            std::future::pending()
        }));
        let task = world.submit("two", json!({})).await;
        begun.notified().await;
        cancel_tasks(&world.db, &[task]).await.unwrap();
        tasker::engine::read::wait_for_end(&world.db, task, Some(Duration::from_secs(30)))
            .await
            .unwrap();
        assert_eq!(seen(world, task).await, [json!("cancelled"), json!("cancelled"), json!("failed")]);
        assert_eq!(world.task(task).await["steps"][0]["errors"][0]["class"], "Cancelled");
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}
