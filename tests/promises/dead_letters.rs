//! Dead letters: every one can be found, and replayed, settled or discarded once; each action is recorded.

use serde_json::{json, Value};
use sqlx::Executor;
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::dead_letters::{self, By, Filter, Replay};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::Error;
use uuid::Uuid;

use crate::world::World;

const FLOW: &str = "
name: flow
namespace: here
steps:
  - { name: first, handler: Good }
  - { name: second, handler: Bad, depends_on: [first], retry: { max_attempts: 1 } }
  - { name: third, handler: Good, depends_on: [second] }
  - { name: aside, handler: Good, depends_on: [first] }
";

fn by() -> By {
    By {
        who: "ada".into(),
        why: Some("it was fixed".into()),
    }
}

/// Takes a new task to where its second step is dead, and its other branch done.
async fn die(world: &World, template: &str, message: &str) -> Uuid {
    let task = world.submit(template, json!({ "n": 1 })).await;
    world.claim().await;
    loop {
        let leased = world.lease("here_queue", 1).await;
        let Some(step) = leased.first() else { return task };
        match step.name.as_str() {
            "second" => assert!(world.fail(step, message, false, None).await),
            _ => assert_eq!(world.complete(&leased, "{}").await.len(), 1),
        }
    }
}

async fn ids(world: &World, filter: Filter) -> Vec<String> {
    dead_letters::matching(&world.db, &filter).await.unwrap()
}

async fn finish(world: &World) {
    loop {
        world.enqueue_due_retries().await;
        let leased = world.lease("here_queue", 10).await;
        if leased.is_empty() {
            return;
        }
        world.complete(&leased, r#"{"by": "a worker"}"#).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_filtered_paged_and_grouped() {
    World::with(async |world| {
        world.register(FLOW).await;
        let mut tasks = Vec::new();
        for message in ["one", "two", "three"] {
            tasks.push(die(world, "flow", message).await);
        }
        sqlx::query("SELECT pgmq.send('here_queue', '\"hello\"'::jsonb)")
            .execute(&world.pool)
            .await
            .unwrap();
        world.lease("here_queue", 1).await;

        let all = dead_letters::list(&world.db, &Filter::default(), 100).await.unwrap();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0]["reason"], "not_a_step", "the newest first");
        let page = dead_letters::list(&world.db, &Filter::default(), 2).await.unwrap();
        let before = page[1]["id"].as_str().map(str::to_owned);
        let rest = dead_letters::list(
            &world.db,
            &Filter {
                before,
                ..Filter::default()
            },
            100,
        )
        .await
        .unwrap();
        assert_eq!([page, rest].concat(), all);

        let only = |field: &str, value: &str| -> Filter { serde_json::from_value(json!({ field: value })).unwrap() };
        for (filter, count) in [
            (only("namespace", "here"), 4),
            (only("namespace", "there"), 0),
            (only("template", "flow"), 3),
            (only("handler", "Bad"), 3),
            (only("handler", "Good"), 0),
            (only("reason", "attempts_exhausted"), 3),
            (only("class", "TestError"), 3),
            (only("task", &tasks[0].to_string()), 1),
            (
                Filter {
                    older_than: Some(3600.0),
                    ..Filter::default()
                },
                0,
            ),
            (
                Filter {
                    newer_than: Some(3600.0),
                    ..Filter::default()
                },
                4,
            ),
        ] {
            assert_eq!(ids(world, filter.clone()).await.len(), count, "{filter:?}");
        }
        let groups = dead_letters::groups(&world.db, &Filter::default()).await.unwrap();
        let counted: Vec<(&Value, &Value)> = groups.iter().map(|g| (&g["class"], &g["count"])).collect();
        assert_eq!(counted, [(&json!("TestError"), &json!(3)), (&Value::Null, &json!(1))]);

        let id = all[1]["id"].as_str().unwrap();
        assert_eq!(dead_letters::show(&world.db, id).await.unwrap()["errors"][0]["message"], "three");
        assert!(matches!(dead_letters::show(&world.db, "here/999").await, Err(Error::NotFound(_))));
        assert!(matches!(dead_letters::show(&world.db, "nonsense").await, Err(Error::Invalid(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_step_starts_over_and_its_task_completes() {
    World::with(async |world| {
        world.register(FLOW).await;
        let task = die(world, "flow", "broken").await;
        assert_eq!(world.step_states(task).await, ["complete", "dead", "pending", "complete"]);
        let letters = ids(world, Filter::default()).await;
        let how = Replay {
            input: Some(json!({ "n": 2 })),
            max_attempts: Some(4),
            ..Replay::default()
        };
        assert_eq!(dead_letters::replay(&world.db, &letters, &how, &by()).await.unwrap(), letters);
        assert!(
            dead_letters::replay(&world.db, &letters, &how, &by()).await.unwrap().is_empty(),
            "only once"
        );

        let seen = world.task(task).await;
        assert_eq!((&seen["input"], &seen["steps"][1]["max_attempts"]), (&json!({ "n": 2 }), &json!(4)));
        assert_eq!(
            seen["steps"][1]["errors"].as_array().unwrap().len(),
            1,
            "what went wrong is not forgotten"
        );
        finish(world).await;
        assert_eq!(world.task(task).await["state"], "complete");
        assert!(ids(world, Filter::default()).await.is_empty());
        let action = dead_letters::actions(&world.db, 10).await.unwrap().remove(0);
        assert_eq!(
            (&action["action"], &action["who"], &action["why"]),
            (&json!("replay"), &json!("ada"), &json!("it was fixed"))
        );
        assert_eq!(action["details"]["letter"]["errors"][0]["message"], "broken");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_replay_is_spread_by_its_rate() {
    World::with(async |world| {
        world.register(FLOW).await;
        for _ in 0..5 {
            die(world, "flow", "broken").await;
        }
        let how = Replay { per_second: Some(0.1), ..Replay::default() };
        let letters = ids(world, Filter::default()).await;
        assert_eq!(dead_letters::replay(&world.db, &letters, &how, &by()).await.unwrap().len(), 5);
        let waits: Vec<f64> = sqlx::query_scalar(
            "SELECT round(extract(epoch FROM retry_at - min(retry_at) OVER ()))::float8 FROM tasker.steps WHERE retry_at IS NOT NULL ORDER BY retry_at",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        assert_eq!(waits, [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(world.enqueue_due_retries().await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_resolved_or_skipped_by_hand_and_its_task_goes_on() {
    World::with(async |world| {
        world.register(FLOW).await;
        let (resolved, skipped) = (die(world, "flow", "one").await, die(world, "flow", "two").await);
        let letter = async |task: Uuid| {
            ids(
                world,
                Filter {
                    task: Some(task.to_string()),
                    ..Filter::default()
                },
            )
            .await
        };
        dead_letters::settle(&world.db, &letter(resolved).await, Some(&json!({ "by": "hand" })), &by())
            .await
            .unwrap();
        dead_letters::settle(&world.db, &letter(skipped).await, None, &by()).await.unwrap();
        let leased = world.lease("here_queue", 10).await;
        let results: Vec<&str> = leased.iter().map(|step| step.results.as_str()).collect();
        assert_eq!(results, [r#"{"second": {"by": "hand"}}"#, r#"{"second": null}"#]);
        world.complete(&leased, "{}").await;
        assert_eq!(world.step_states(resolved).await, ["complete", "complete", "complete", "complete"]);
        assert_eq!(world.step_states(skipped).await, ["complete", "skipped", "complete", "complete"]);
        for task in [resolved, skipped] {
            assert_eq!(world.task(task).await["state"], "complete");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_letter_fails_its_task_and_is_recorded_whole() {
    World::with(async |world| {
        world.register(FLOW).await;
        let task = die(world, "flow", "hopeless").await;
        let letters = ids(world, Filter::default()).await;
        assert_eq!(dead_letters::discard(&world.db, &letters, &by()).await.unwrap(), letters);
        assert_eq!(world.task(task).await["state"], "failed");
        assert!(ids(world, Filter::default()).await.is_empty());
        let action = dead_letters::actions(&world.db, 10).await.unwrap().remove(0);
        assert_eq!(
            (&action["action"], &action["details"]["letter"]["input"]),
            (&json!("discard"), &json!({ "n": 1 }))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_letter_of_a_cancelled_task_is_not_replayed_and_not_lost() {
    World::with(async |world| {
        world.register(FLOW).await;
        let task = die(world, "flow", "broken").await;
        cancel_tasks(&world.db, &[task]).await.unwrap();
        let letters = ids(world, Filter::default()).await;
        assert!(dead_letters::replay(&world.db, &letters, &Replay::default(), &by())
            .await
            .unwrap()
            .is_empty());
        assert!(dead_letters::settle(&world.db, &letters, None, &by()).await.unwrap().is_empty());
        assert_eq!(ids(world, Filter::default()).await, letters);
        assert_eq!(dead_letters::discard(&world.db, &letters, &by()).await.unwrap(), letters);
        assert_eq!(world.task(task).await["state"], "cancelled");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_operators_replay_a_letter_once() {
    World::with(async |world| {
        world.register(FLOW).await;
        for _ in 0..10 {
            die(world, "flow", "broken").await;
        }
        let letters = ids(world, Filter::default()).await;
        let replays = (0..20).map(|_| {
            let (db, letters) = (world.db.clone(), letters.clone());
            tokio::spawn(async move { dead_letters::replay(&db, &letters, &Replay::default(), &by()).await.unwrap().len() })
        });
        let replayed: usize = futures::future::join_all(replays).await.into_iter().map(Result::unwrap).sum();
        assert_eq!(replayed, 10);
        finish(world).await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'complete'").await, 10);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_says_so_fails_its_task_and_the_other_branches_still_finish() {
    World::with(async |world| {
        world
            .register(&FLOW.replace("namespace: here", "namespace: here\non_failure: fail"))
            .await;
        let task = world.submit("flow", json!({})).await;
        world.claim().await;
        world.complete(&world.lease("here_queue", 1).await, "{}").await;
        let branches = world.lease("here_queue", 10).await;
        let (bad, good): (Vec<_>, Vec<_>) = branches.into_iter().partition(|step| step.name == "second");
        assert!(world.fail(&bad[0], "broken", false, None).await);
        assert_eq!(world.task(task).await["state"], "failed");
        assert_eq!(world.complete(&good, "{}").await.len(), 1);
        assert_eq!(world.step_states(task).await, ["complete", "dead", "pending", "complete"]);

        let letters = ids(world, Filter::default()).await;
        dead_letters::replay(&world.db, &letters, &Replay::default(), &by()).await.unwrap();
        assert_eq!(world.task(task).await["state"], "waiting");
        finish(world).await;
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_is_the_steps_else_its_namespaces_and_says_what_it_deleted() {
    World::with(async |world| {
        world.register(FLOW).await;
        let kept = "{ max_attempts: 1 }, dead_letters: { retention_days: 90 }";
        world
            .register(&FLOW.replace("name: flow", "name: kept").replace("{ max_attempts: 1 }", kept))
            .await;
        let (short, kept) = (die(world, "flow", "short").await, die(world, "kept", "kept").await);
        // Behind more of those that are kept than are looked at together.
        for change in [
            "ALTER TABLE pgmq.q_here_queue_dlq ALTER msg_id SET GENERATED BY DEFAULT",
            "UPDATE pgmq.q_here_queue_dlq SET msg_id = 10000 WHERE message ->> 'template' = 'flow'",
            "INSERT INTO pgmq.q_here_queue_dlq (vt, message) SELECT vt, message FROM pgmq.q_here_queue_dlq, generate_series(1, 1200) WHERE msg_id < 10000",
            "UPDATE pgmq.q_here_queue_dlq SET enqueued_at = now() - interval '31 days'",
        ] {
            world.pool.execute(change).await.unwrap();
        }
        let retention = By {
            who: "retention".into(),
            why: None,
        };
        assert_eq!(
            dead_letters::purge(&world.db, &retention).await.unwrap(),
            0,
            "kept for ever by default"
        );
        world.set_rules("here", json!({ "retention_days": 30 })).await.unwrap();
        assert_eq!(dead_letters::purge(&world.db, &retention).await.unwrap(), 1);
        assert_eq!(
            (&world.task(short).await["state"], &world.task(kept).await["state"]),
            (&json!("failed"), &json!("blocked"))
        );
        assert_eq!(dead_letters::actions(&world.db, 10).await.unwrap()[0]["action"], "purge");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespaces_rules_hold_where_its_steps_say_nothing() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let quick = json!({ "max_attempts": 2, "backoff": "fixed", "base_seconds": 0.001 });
        world.set_rules("here", quick).await.unwrap();
        let task = world.submit("one", json!({})).await;
        world.claim().await;
        for _ in 0..2 {
            let step = loop {
                world.enqueue_due_retries().await;
                if let Some(step) = world.lease("here_queue", 1).await.pop() {
                    break step;
                }
            };
            world.fail(&step, "no", false, None).await;
        }
        assert_eq!(world.task(task).await["state"], "blocked");
        assert!(matches!(world.set_rules("nowhere", json!({})).await, Err(Error::NotFound(_))));
        assert!(matches!(
            world.set_rules("here", json!({ "max_attempts": 0 })).await,
            Err(Error::Invalid(_))
        ));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_raised_once_for_every_crossing_of_a_threshold() {
    World::with(async |world| {
        let own = "{ max_attempts: 1 }, dead_letters: { alert_threshold: 2 }";
        world.register(FLOW).await;
        world
            .register(&FLOW.replace("name: flow", "name: own").replace("{ max_attempts: 1 }", own))
            .await;
        world.set_rules("here", json!({ "alert_threshold": 1 })).await.unwrap();
        let check = async || -> Vec<Value> {
            sqlx::query_scalar("SELECT tasker.check_alerts('{here}')")
                .fetch_all(&world.pool)
                .await
                .unwrap()
        };
        let scope = |alert: &Value| (alert["template"].as_str().unwrap().to_owned(), alert["letters"].as_i64().unwrap());
        assert!(check().await.is_empty());
        die(world, "own", "one").await;
        assert!(check().await.is_empty(), "the step's own threshold is 2");
        die(world, "flow", "one").await;
        assert_eq!(
            check().await.iter().map(scope).collect::<Vec<_>>(),
            [(String::new(), 1)],
            "its namespace's is 1"
        );
        die(world, "own", "two").await;
        assert_eq!(check().await.iter().map(scope).collect::<Vec<_>>(), [("own".to_owned(), 2)]);
        die(world, "own", "three").await;
        die(world, "flow", "two").await;
        assert!(check().await.is_empty(), "not for every letter");

        dead_letters::discard(&world.db, &ids(world, Filter::default()).await, &by())
            .await
            .unwrap();
        assert!(check().await.is_empty());
        die(world, "flow", "again").await;
        assert_eq!(check().await.len(), 1, "another crossing");
        assert_eq!(world.counter("dead_letter_alerts").await, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_reaches_the_webhook_although_that_refused_it_first_and_goes_nowhere_else() {
    World::with(async |world| {
        world.register(FLOW).await;
        world.set_rules("here", json!({ "alert_threshold": 1 })).await.unwrap();
        // Refuses the first call: it is elsewhere, it says.
        let (seen, mut posts) = tokio::sync::mpsc::unbounded_channel();
        let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let elsewhere = seen.clone();
        let router = axum::Router::new().route(
            "/elsewhere",
            axum::routing::any(async move || elsewhere.send(json!("redirected")).unwrap()),
        );
        let router = router.route(
            "/alerts",
            axum::routing::post(move |axum::Json(alert): axum::Json<Value>| {
                let first = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
                seen.send(alert).unwrap();
                async move {
                    let status = if first {
                        axum::http::StatusCode::FOUND
                    } else {
                        axum::http::StatusCode::OK
                    };
                    (status, [(axum::http::header::LOCATION, "/elsewhere")])
                }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let webhook = format!("http://{}/alerts", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let start = async || {
            let config = OrchestratorConfig {
                alert_webhook: Some(webhook.clone().into()),
                ..OrchestratorConfig::default()
            };
            Orchestrator::start(&world.db, config).await.unwrap()
        };

        die(world, "flow", "broken").await;
        let orchestrator = start().await;
        assert_eq!(posts.recv().await.unwrap()["namespace"], "here");
        orchestrator.shutdown().await;
        sqlx::query("UPDATE tasker.alerts SET next_try_at = clock_timestamp()")
            .execute(&world.pool)
            .await
            .unwrap();
        let orchestrator = start().await;
        assert_eq!(posts.recv().await.unwrap()["tries"], 2);
        while world.count("SELECT count(*) FROM tasker.alerts WHERE delivered_at IS NULL").await > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        orchestrator.shutdown().await;
        assert!(posts.try_recv().is_err(), "and not again");
    })
    .await;
}
