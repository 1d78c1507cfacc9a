//! Time-weighted priority: urgent work goes first, and nothing starves.

use std::time::{Duration, Instant};

use serde_json::json;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::Priority;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn urgent_tasks_go_first_and_a_task_gains_one_priority_for_every_minute_it_waits() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let submitter = Submitter::new(world.db.clone());
        let submit = async |priority: Priority, waited_seconds: f64| {
            let task = NewTask {
                input: json!({}).into(),
                priority: Some(priority),
                ..NewTask::default()
            };
            let id = submitter.submit("one", None, &[task]).await.unwrap()[0].id;
            sqlx::query("UPDATE tasker.tasks SET claim_order = claim_order - make_interval(secs => $2) WHERE id = $1")
                .bind(id)
                .bind(waited_seconds)
                .execute(&world.pool)
                .await
                .unwrap();
            id
        };
        let low = submit(Priority::Low, 0.0).await;
        let normal = submit(Priority::Normal, 0.0).await;
        let urgent = submit(Priority::Urgent, 0.0).await;
        let high = submit(Priority::High, 0.0).await;
        let low_after_four_minutes = submit(Priority::Low, 240.0).await;
        let low_after_ninety_seconds = submit(Priority::Low, 90.0).await;

        let mut order = Vec::new();
        for _ in 0..6 {
            let claimed: i32 =
                sqlx::query_scalar("SELECT claimed FROM tasker.claim_tasks((SELECT max(id) FROM tasker.members), NULL, 100, 1)")
                    .fetch_one(&world.pool)
                    .await
                    .unwrap();
            assert_eq!(claimed, 1);
            order.extend(world.lease("here_queue", 10).await.iter().map(|step| step.task_id));
        }
        assert_eq!(order, [low_after_four_minutes, urgent, high, low_after_ninety_seconds, normal, low]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_waits_where_priority_counts_while_the_queue_is_full() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        for _ in 0..5 {
            world.submit("one", json!({})).await;
        }
        let claim = async || -> i32 {
            sqlx::query_scalar("SELECT claimed FROM tasker.claim_tasks((SELECT max(id) FROM tasker.members), NULL, 3, 100)")
                .fetch_one(&world.pool)
                .await
                .unwrap()
        };
        assert_eq!((claim().await, claim().await), (3, 0));
        world.complete(&world.lease("here_queue", 1).await, "{}").await;
        assert_eq!((claim().await, claim().await), (1, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_others_that_never_ends_does_not_starve_a_low_task() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let submitter = Submitter::new(world.db.clone());
        let submit = async |priority: Priority| {
            let task = NewTask {
                input: json!({}).into(),
                priority: Some(priority),
                ..NewTask::default()
            };
            submitter.submit("one", None, &[task]).await.unwrap()[0].id
        };
        let low = submit(Priority::Low).await;
        let began = Instant::now();
        for _ in 0..5 {
            submit(Priority::Normal).await;
        }
        // As many come as are claimed: there is always a normal one that could go first.
        let (mut passed, mut overtaken) = (0, 0);
        while world.task(low).await["state"] == "pending" {
            assert!(began.elapsed() < Duration::from_secs(120), "starved by {passed} others");
            submit(Priority::Normal).await;
            let sql = "SELECT coalesce(sum(claimed), 0) FROM tasker.claim_tasks($1, NULL, 1000000, 1)";
            let claimed: i64 = sqlx::query_scalar(sql)
                .bind(world.orchestrator)
                .fetch_one(&world.pool)
                .await
                .unwrap();
            passed += claimed;
            overtaken = world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'pending'").await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(60), "a priority is worth a minute");
        assert!(overtaken >= 5, "it went before normal ones that came later");
    })
    .await;
}
