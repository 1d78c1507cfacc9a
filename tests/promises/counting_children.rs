//! Children are counted once each, whatever happens to them, to their parent, or to whoever creates and counts them.

use std::time::Duration;

use serde_json::json;
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use uuid::Uuid;

use super::world::World;

const BARE: &str = "
name: bare
namespace: here
steps:
  - { name: all, each: { over: $.input.lines, handler: h } }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_an_expansion_leaves_no_item_twice_and_none_out() {
    World::with(async |world| {
        world.register(BARE).await;
        let task = world.submit("bare", json!({ "lines": (0..50).collect::<Vec<_>>() })).await;
        world.claim().await;
        assert_eq!(world.move_children(20).await.1, 20);
        world.run("BEGIN; SELECT * FROM tasker.move_fan_outs(20); ROLLBACK").await;
        assert_eq!(world.children("true").await, 20);

        // The first of them are complete before the others are there.
        world.claim().await;
        world.complete(&world.lease("here_queue", 20).await, "1").await;
        assert_eq!(world.move_children(20).await.1, 20);
        assert_eq!(world.task(task).await["state"], "running");
        assert_eq!((world.move_children(20).await.1, world.move_children(20).await.1), (10, 0));
        assert_eq!(
            world
                .count("SELECT count(DISTINCT item) FROM tasker.tasks WHERE parent_id IS NOT NULL")
                .await,
            50
        );
        world.claim().await;
        let rest = world.lease("here_queue", 100).await;
        assert_eq!(rest.len(), 30);
        world.complete(&rest, "1").await;
        world.move_children(20).await;
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_a_task_cancels_its_children_and_theirs() {
    World::with(async |world| {
        let inner = "name: inner\nnamespace: here\nsteps:\n  - { name: all, each: { over: $.input.lines, handler: h } }\n";
        world.register(inner).await;
        world
            .register("name: outer\nnamespace: here\nsteps:\n  - { name: all, each: { over: $.input.rows, workflow: inner } }\n")
            .await;
        let task = world
            .submit("outer", json!({ "rows": vec![json!({ "lines": [1, 2, 3] }); 10] }))
            .await;
        world.claim().await;
        assert_eq!(world.move_children(7).await.1, 7, "it is not through yet");
        world.claim().await;
        world.move_children(3).await;
        assert!(world.children("true").await > 7);
        assert_eq!(cancel_tasks(&world.db, &[task]).await.unwrap(), [task]);
        assert_eq!(world.task(task).await["state"], "cancelling");
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "cancelled"
        );
        world.until_true("count(*) = 0 FROM tasker.tasks WHERE finished_at IS NULL").await;
        assert_eq!(world.children("state <> 'cancelled'").await, 0);
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_cancelled_by_itself_is_missing_for_its_parent() {
    World::with(async |world| {
        world.register(BARE).await;
        let task = world.submit("bare", json!({ "lines": [1, 2] })).await;
        world.claim().await;
        world.move_children(10).await;
        let child: Uuid = world
            .text("SELECT id::text FROM tasker.tasks WHERE item = 1")
            .await
            .parse()
            .unwrap();
        cancel_tasks(&world.db, &[child]).await.unwrap();
        world.move_children(10).await;
        let seen = world.task(task).await;
        assert_eq!(
            (&seen["state"], &seen["steps"][0]["waits_for"]),
            (&json!("blocked"), &json!("1 of 2 tasks, which is dead"))
        );
        assert_eq!(cancel_tasks(&world.db, &[task]).await.unwrap(), [task]);
        for _ in 0..3 {
            world.move_children(10).await;
        }
        assert_eq!(world.task(task).await["state"], "cancelled");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_drifted_and_children_that_nobody_waits_for_are_found() {
    World::with(async |world| {
        world.register(BARE).await;
        let task = world.submit("bare", json!({ "lines": [1, 2] })).await;
        world.claim().await;
        world.move_children(10).await;
        world.claim().await;
        let leased = world.lease("here_queue", 2).await;
        world.complete(&leased[..1], "1").await;
        assert_eq!(world.reconcile().await, 0, "what is not counted yet has not drifted");
        world
            .run("UPDATE tasker.fan_outs SET ended = -5; DELETE FROM tasker.child_ends")
            .await;
        world.complete(&leased[1..], "1").await;
        assert_eq!(world.reconcile().await, 1);
        world.move_children(10).await;
        assert_eq!(world.task(task).await["state"], "complete");

        let purged = world.submit("bare", json!({ "lines": [1, 2] })).await;
        world.claim().await;
        world.move_children(10).await;
        world.claim().await;
        world.run(&format!("DELETE FROM tasker.tasks WHERE id = '{purged}'")).await;
        let orphans = world.lease("here_queue", 1).await;
        world.complete(&orphans, "1").await;
        world.move_children(10).await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.child_ends").await, 0);
        assert_eq!(world.reconcile().await, 1, "the other one runs for nobody");
        assert_eq!(world.children("state = 'cancelled'").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_settled_by_hand_lets_its_task_go_on_without_its_children() {
    World::with(async |world| {
        world.register(&format!("{BARE}  - {{ name: after, handler: h, depends_on: [all] }}\ndeadline: 1h\n")).await;
        let task = world.submit("bare", json!({ "lines": [1, 2] })).await;
        world.claim().await;
        world.move_children(10).await;
        world.claim().await;
        world.run("UPDATE tasker.tasks SET deadline_at = now(), look_at = now()").await;
        world.count("SELECT tasker.expire_tasks(100)::bigint").await;
        world.move_children(10).await;
        assert_eq!(world.step_states(task).await, ["dead", "pending"]);
        assert_eq!(world.children("state = 'blocked'").await, 2);
        world
            .run("SELECT tasker.settle_dead_letters(ARRAY(SELECT 'here/' || msg_id FROM pgmq.q_here_queue_dlq WHERE message ->> 'template' = 'bare'), NULL, 'test', NULL)")
            .await;
        assert_eq!(world.step_states(task).await, ["skipped", "enqueued"]);
        assert_eq!(world.task(task).await["state"], "running");
        world.move_children(10).await;
        assert_eq!(world.children("state = 'cancelled'").await, 2, "nobody waits for them");
        world.complete(&world.lease("here_queue", 1).await, "1").await;
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}
