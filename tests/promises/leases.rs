//! Every lease has a fence, a message that no row stands behind is never run, and a worker that leaves hands back.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::read::wait_for_end;
use tasker::worker::{Handlers, Outcome, Worker, WorkerConfig};

use crate::world::{Leased, World};

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";
const TWO: &str =
    "name: two\nnamespace: here\nsteps:\n  - { name: first, handler: H }\n  - { name: second, handler: H, depends_on: [first] }\n";

/// Leases the step that waits, loses it, and leases it again: the lease that was lost, and the one that holds.
async fn lose(world: &World) -> (Leased, Leased) {
    let lost = world.lease("here_queue", 10).await.remove(0);
    world.expire(&lost).await;
    (lost, world.lease("here_queue", 10).await.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_under_a_lost_lease_is_refused_and_counted() {
    World::with(async |world| {
        world.register(TWO).await;
        let task = world.submit("two", json!({})).await;
        world.claim().await;
        let (lost, holder) = lose(world).await;
        assert_eq!((holder.msg_id, holder.fence, holder.crashes), (lost.msg_id, lost.fence + 1, 1));

        assert!(world
            .complete(std::slice::from_ref(&lost), r#"{"by": "the loser"}"#)
            .await
            .is_empty());
        assert!(!world.fail(&lost, "by the loser", true, None).await);
        assert_eq!(world.step_states(task).await, ["in_progress", "pending"]);
        assert_eq!(world.counter("stale_reports").await, 2);

        assert_eq!(world.complete(&[holder], r#"{"by": "the holder"}"#).await, [lost.msg_id]);
        assert_eq!(world.task(task).await["steps"][0]["result"], json!({ "by": "the holder" }));
        assert_eq!(world.step_states(task).await, ["complete", "enqueued"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_cannot_be_extended_or_handed_back() {
    World::with(async |world| {
        world.register(ONE).await;
        world.submit("one", json!({})).await;
        world.claim().await;
        let (lost, holder) = lose(world).await;

        let refused: Vec<i64> = sqlx::query_scalar("SELECT id FROM tasker.extend_leases('here_queue', $1, $2, $3, $4, interval '1 hour')")
            .bind(vec![lost.msg_id])
            .bind(vec![lost.fence])
            .bind(vec![lost.task_id])
            .bind(vec![lost.step])
            .fetch_all(&world.pool)
            .await
            .unwrap();
        assert_eq!(refused, [lost.msg_id]);
        let released: i32 = sqlx::query_scalar("SELECT tasker.release_steps('here_queue', $1, $2, $3, $4)")
            .bind(vec![lost.msg_id])
            .bind(vec![lost.fence])
            .bind(vec![lost.task_id])
            .bind(vec![lost.step])
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(released, 0);
        assert!(world.lease("here_queue", 10).await.is_empty(), "the holder's lease still holds");
        assert_eq!(world.complete(&[holder], "{}").await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_that_lost_its_membership_claims_nothing() {
    World::with(async |world| {
        world.register(ONE).await;
        world.submit("one", json!({})).await;
        sqlx::query("UPDATE tasker.members SET lease_until = clock_timestamp()")
            .execute(&world.pool)
            .await
            .unwrap();
        let refused = sqlx::query("SELECT * FROM tasker.claim_tasks((SELECT max(id) FROM tasker.members), NULL, 100, 100)")
            .execute(&world.pool)
            .await
            .expect_err("the membership is over");
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "TK005");
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'pending'").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_not_ours_are_dead_lettered_and_stale_ones_removed() {
    World::with(async |world| {
        world.register(ONE).await;
        let task = world.submit("one", json!({})).await;
        world.claim().await;
        let foreign = [
            json!("hello"),
            json!({ "task": 1 }),
            json!({ "task": "no uuid", "step": 0 }),
            json!([1, 2]),
        ];
        for message in &foreign {
            sqlx::query("SELECT pgmq.send('here_queue', $1::jsonb)")
                .bind(message)
                .execute(&world.pool)
                .await
                .unwrap();
        }
        for (task, step) in [("018f0000-0000-7000-8000-000000000000", 0), (task.to_string().as_str(), 7)] {
            let message = json!({ "task": task, "step": step, "attempt": 1 });
            sqlx::query("SELECT pgmq.send('here_queue', $1::jsonb)").bind(message).execute(&world.pool).await.unwrap();
        }
        // A copy of a real message.
        sqlx::query("SELECT pgmq.send('here_queue', message) FROM pgmq.q_here_queue WHERE message @> '{\"attempt\": 1, \"step\": 0}' AND message ->> 'task' = $1")
            .bind(task.to_string())
            .execute(&world.pool)
            .await
            .unwrap();

        let leased = world.lease("here_queue", 100).await;
        assert_eq!(leased.iter().map(|s| s.task_id).collect::<Vec<_>>(), [task]);
        let letters = world.dead_letters("here").await;
        assert_eq!(letters[..4].iter().map(|l| l["message"].clone()).collect::<Vec<_>>(), foreign);
        let reasons: Vec<&str> = letters.iter().map(|l| l["reason"].as_str().unwrap()).collect();
        assert_eq!(reasons, ["not_a_step", "not_a_step", "not_a_step", "not_a_step", "unknown_task", "unknown_step"]);
        assert_eq!(
            (world.counter("foreign_messages").await, world.counter("stale_messages").await),
            (6, 1)
        );
        assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_runs_nothing_more() {
    World::with(async |world| {
        world.register(TWO).await;
        let (running, waiting) = (world.submit("two", json!({})).await, world.submit("two", json!({})).await);
        world.claim().await;
        let held = world.lease("here_queue", 1).await;
        assert_eq!(held[0].task_id, running);

        assert_eq!(cancel_tasks(&world.db, &[running, waiting]).await.unwrap().len(), 2);
        assert_eq!(cancel_tasks(&world.db, &[running, waiting]).await.unwrap().len(), 0, "only once");
        assert!(world.complete(&held, "{}").await.is_empty(), "its running step does not count");
        assert!(world.lease("here_queue", 10).await.is_empty());
        for task in [running, waiting] {
            assert_eq!(world.task(task).await["state"], "cancelled");
            assert_eq!(world.step_states(task).await, ["cancelled", "cancelled"]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_hands_back_what_it_did_not_begin_and_it_is_no_crash() {
    World::with(async |world| {
        world.register(ONE).await;
        for _ in 0..3 {
            world.submit("one", json!({})).await;
        }
        world.claim().await;
        let config = || WorkerConfig {
            namespaces: vec!["here".into()],
            concurrency: 3,
            ..WorkerConfig::default()
        };
        let worker = Worker::start(&world.db, config()).await.unwrap();
        let begun = worker.next().await.unwrap().remove(0);
        let unfinished = worker.next().await.unwrap().remove(0);
        worker.report(&begun, Outcome::Complete("{}".into()));
        worker.shutdown(Duration::from_millis(100)).await;
        assert!(!worker.report(&unfinished, Outcome::Complete("{}".into())), "it was handed back");

        // A renewal that was under way may lock one of them for a moment more.
        let mut again = Vec::new();
        while again.len() < 2 {
            again.extend(world.lease("here_queue", 10).await);
        }
        assert_eq!(again.len(), 2);
        assert!(again.iter().all(|step| step.crashes == 0 && step.attempt == 1));
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.members WHERE kind = 'worker' AND left_at IS NULL")
                .await,
            0
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_while_a_handler_runs_longer_than_one() {
    World::with(async |world| {
        world.register(ONE).await;
        let task = world.submit("one", json!({})).await;
        world.claim().await;
        let lease = Duration::from_secs(1);
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            lease,
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        let (begin, mut begun) = tokio::sync::mpsc::channel(1);
        let (finish, finished) = tokio::sync::watch::channel(false);
        worker.handle_with(Handlers::default().with("H", move |_| {
            let (begin, mut finished) = (begin.clone(), finished.clone());
            async move {
                begin.send(()).await.ok();
                finished.wait_for(|done| *done).await.ok();
                Ok(json!("by the first"))
            }
        }));
        begun.recv().await.unwrap();
        let began = tokio::time::Instant::now();
        while began.elapsed() < 3 * lease {
            assert!(
                world.lease("here_queue", 1).await.is_empty(),
                "the lease ran out under a living worker"
            );
            tokio::time::sleep(lease / 10).await;
        }
        finish.send(true).unwrap();
        assert_eq!(wait_for_end(&world.db, task, None).await.unwrap(), "complete");
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_renew_gives_up_its_steps_and_stops_their_handlers() {
    World::with(async |world| {
        world.register(ONE).await;
        world.submit("one", json!({})).await;
        world.claim().await;
        // A worker behind a door that will be shut.
        let db = tasker::Db::connect(&world.url, 5).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            lease: Duration::from_secs(1),
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&db, config).await.unwrap());
        let (begin, mut begun) = tokio::sync::mpsc::channel(1);
        let (alive, stopped) = tokio::sync::oneshot::channel::<()>();
        let alive = Arc::new(std::sync::Mutex::new(Some(alive)));
        worker.handle_with(Handlers::default().with("H", move |_| {
            let (begin, alive) = (begin.clone(), alive.lock().unwrap().take());
            async move {
                begin.send(()).await.ok();
                std::future::pending::<()>().await;
                drop(alive);
                Ok(json!(null))
            }
        }));
        begun.recv().await.unwrap();
        db.close().await;
        assert!(stopped.await.is_err(), "the handler was dropped");
        while world.lease("here_queue", 1).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        worker.shutdown(Duration::ZERO).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_checkpoints_under_a_lost_lease_are_refused() {
    World::with(async |world| {
        world.register(ONE).await;
        world.submit("one", json!({})).await;
        world.claim().await;
        let (lost, holder) = lose(world).await;
        let record = async |fence: i32| -> Vec<i64> {
            sqlx::query_scalar("SELECT tasker.record_progress('here_queue', $1, $2, $3, $4, $5, $5)")
                .bind(vec![lost.msg_id])
                .bind(vec![fence])
                .bind(vec![lost.task_id])
                .bind(vec![lost.step])
                .bind(vec![json!({ "fence": fence })])
                .fetch_all(&world.pool)
                .await
                .unwrap()
        };
        assert_eq!(record(lost.fence).await, [lost.msg_id]);
        assert!(record(holder.fence).await.is_empty());
        assert_eq!(
            world.task(lost.task_id).await["steps"][0]["progress"],
            json!({ "fence": holder.fence })
        );
    })
    .await;
}

const FORK: &str = "
name: fork
namespace: here
steps:
  - { name: first, handler: H }
  - { name: left, handler: H, depends_on: [first] }
  - { name: right, handler: H, depends_on: [first] }
  - { name: away, handler: H, depends_on: [first], namespace: there }
";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_completion_makes_ready_is_leased_by_the_same_call_as_far_as_there_is_room() {
    World::with(async |world| {
        world.register(FORK).await;
        world.submit("fork", json!({})).await;
        world.claim().await;
        let first = world.lease("here_queue", 1).await.remove(0);
        let completing = "SELECT (next).* FROM tasker.complete_steps('here_queue', 7, ARRAY[$1::bigint], ARRAY[$2::int], ARRAY[$3::uuid], \
                          ARRAY[$4::smallint], ARRAY['{\"of\": \"first\"}'], ARRAY[$3::uuid], 1, interval '1 hour') WHERE (next).msg_id IS NOT NULL";
        let completing = sqlx::query_as(completing)
            .bind(first.msg_id)
            .bind(first.fence)
            .bind(first.task_id)
            .bind(first.step);
        let taken: Vec<Leased> = completing.fetch_all(&world.pool).await.unwrap();
        assert_eq!(taken.len(), 1, "there was room for one");
        let taken = Leased {
            queue: "here_queue".into(),
            ..taken[0].clone()
        };
        assert_eq!((taken.name.as_str(), taken.fence, taken.crashes), ("left", 1, 0));
        assert_eq!(taken.results, r#"{"first": {"of": "first"}}"#);
        assert_eq!(
            world.step_states(first.task_id).await,
            ["complete", "in_progress", "enqueued", "enqueued"]
        );
        let others: Vec<String> = world.lease("here_queue", 10).await.into_iter().map(|step| step.name).collect();
        assert_eq!(others, ["right"]);

        // Its worker dies.
        world.expire(&taken).await;
        let again = world.lease("here_queue", 10).await.remove(0);
        assert_eq!((again.msg_id, again.fence, again.crashes), (taken.msg_id, 2, 1));
        assert!(world.complete(&[taken], "{}").await.is_empty());
        assert_eq!(world.complete(&[again], "{}").await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_with_a_task_by_itself_while_nothing_waits() {
    World::with(async |world| {
        world.register(TWO).await;
        let tasks = [world.submit("two", json!({})).await, world.submit("two", json!({})).await];
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            concurrency: 2,
            ..WorkerConfig::default()
        };
        world.claim().await;
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(null)) }));
        for task in tasks {
            assert_eq!(wait_for_end(&world.db, task, None).await.unwrap(), "complete");
        }
        let gone_on_with = "SELECT count(*) FROM tasker.steps WHERE started_at = enqueued_at AND step = 1";
        assert_eq!(world.count(gone_on_with).await, 2);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}
