//! Errors: tried again by the step's rules, or dead-lettered with everything that is known; and what a handler does hurts only its step.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_grows_by_the_rule_up_to_its_bound() {
    World::with(async |world| {
        let delay = async |rule: &str, failures: i32| -> f64 {
            sqlx::query_scalar("SELECT tasker.backoff_seconds($1, 2, 2, 30, 0, $2)")
                .bind(rule)
                .bind(failures)
                .fetch_one(&world.pool)
                .await
                .unwrap()
        };
        for (rule, expected) in [
            ("fixed", [2.0, 2.0, 2.0, 2.0]),
            ("linear", [2.0, 4.0, 6.0, 30.0]),
            ("exponential", [2.0, 4.0, 8.0, 30.0]),
        ] {
            for (failures, expected) in [1, 2, 3, 1000].into_iter().zip(expected) {
                assert_eq!(delay(rule, failures).await, expected, "{rule} after {failures} failures");
            }
        }
        let spread: Vec<f64> =
            sqlx::query_scalar("SELECT tasker.backoff_seconds('fixed', 2, 10, 100, 0.5, 1) FROM generate_series(1, 1000)")
                .fetch_all(&world.pool)
                .await
                .unwrap();
        assert!(spread.iter().all(|s| (5.0..=15.0).contains(s)) && spread.iter().any(|s| *s < 7.0) && spread.iter().any(|s| *s > 13.0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_waits_for_its_retry_and_the_task_says_so() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H, retry: { base: 1h, max: 1h } }\n")
            .await;
        let task = world.submit("one", json!({})).await;
        world.claim().await;
        let step = world.lease("here_queue", 1).await.remove(0);
        assert!(world.fail(&step, "not now", false, None).await);

        assert_eq!(world.enqueue_due_retries().await, 0, "it is not due");
        let seen = world.task(task).await;
        assert_eq!(
            (&seen["state"], &seen["steps"][0]["state"]),
            (&json!("waiting"), &json!("waiting_retry"))
        );
        assert_eq!(seen["steps"][0]["errors"][0]["message"], "not now");

        sqlx::query("UPDATE tasker.steps SET retry_at = clock_timestamp()")
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(world.enqueue_due_retries().await, 1);
        assert_eq!(world.lease("here_queue", 1).await[0].attempt, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_carries_the_reason_the_errors_the_input_and_the_results_so_far() {
    World::with(async |world| {
        world
            .register("name: two\nnamespace: here\nsteps:\n  - { name: first, handler: F }\n  - { name: second, handler: S, depends_on: [first], retry: { max_attempts: 2 } }\n")
            .await;
        let task = world.submit("two", json!({ "order": 7 })).await;
        world.claim().await;
        world.complete(&world.lease("here_queue", 1).await, r#"{"total": 3}"#).await;
        for message in ["one", "two"] {
            world.enqueue_due_retries().await;
            let step = world.lease("here_queue", 1).await.remove(0);
            assert_eq!(step.results, r#"{"first": {"total": 3}}"#);
            world.fail(&step, message, false, Some(0.0)).await;
        }
        let letter = world.dead_letters("here").await.remove(0);
        let expected = json!({
            "reason": "attempts_exhausted", "queue": "here_queue", "task": task, "step": "second", "handler": "S", "template": "two",
            "input": { "order": 7 }, "results": ["first"],
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&letter[field], value, "{field}");
        }
        let errors: Vec<(&Value, &Value)> = letter["errors"].as_array().unwrap().iter().map(|e| (&e["attempt"], &e["message"])).collect();
        assert_eq!(errors, [(&json!(1), &json!("one")), (&json!(2), &json!("two"))]);
        // Read from the task, they are shown with the letter.
        let listed = tasker::engine::dead_letters::list(&world.db, &Default::default(), 1).await.unwrap();
        let shown = tasker::engine::dead_letters::show(&world.db, listed[0]["id"].as_str().unwrap()).await.unwrap();
        assert_eq!(shown["results"], json!({ "first": { "total": 3 } }));
        assert_eq!(world.task(task).await["state"], "blocked");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_only_poll_are_one_error_that_says_how_often() {
    World::with(async |world| {
        world
            .register("name: polls\nnamespace: here\nsteps:\n  - { name: only, handler: polls, retry: { max_attempts: 9 } }\n")
            .await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let worker = world
            .worker(Handlers::default().with("polls", |step: Arc<tasker::worker::Step>| async move {
                let at_once = Duration::from_millis(1);
                match step.leased.attempt {
                    1..=3 => Err(Failure::again("not there yet").retry_after(at_once)),
                    4 => Err(Failure::again("on its way").retry_after(at_once)),
                    5 => Err(Failure::retryable("Oops", "on its way").retry_after(at_once)),
                    _ => Ok(json!("there")),
                }
            }))
            .await;
        let task = world.submit("polls", json!({})).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        let seen = world.task(task).await;
        let errors = seen["steps"][0]["errors"].as_array().unwrap();
        let said: Vec<_> = errors
            .iter()
            .map(|e| (e["message"].as_str().unwrap(), e["attempt"].as_i64().unwrap(), e["times"].as_i64()))
            .collect();
        assert_eq!(
            said,
            [("not there yet", 3, Some(3)), ("on its way", 4, None), ("on its way", 5, None)]
        );
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_handler_does_hurts_only_its_step() {
    World::with(async |world| {
        let handlers = ["panics", "hangs", "fails", "returns_what_jsonb_cannot_hold", "works"];
        for handler in handlers {
            // A panic writes its backtrace first, which takes as long as the machine likes.
            let timeout = if handler == "hangs" { "200ms" } else { "60s" };
            let step = format!("{{ name: only, handler: {handler}, timeout: {timeout}, retry: {{ max_attempts: 2, base: 10ms }} }}");
            world
                .register(&format!("name: {handler}\nnamespace: here\nsteps:\n  - {step}\n"))
                .await;
        }
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            concurrency: 2,
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        worker.handle_with(
            Handlers::default()
                .with("panics", |_| async { panic!("no hands") })
                .with("hangs", |_| std::future::pending())
                .with("fails", |_| async {
                    Err(Failure::retryable("Oops", "a NUL \0 in the message").retry_after(Duration::from_millis(1)))
                })
                .with("returns_what_jsonb_cannot_hold", |_| async { Ok(json!("a NUL \0")) })
                .with("works", |_| async { Ok(json!(42)) }),
        );
        let mut tasks = Vec::new();
        for handler in handlers {
            tasks.push(world.submit(handler, json!({})).await);
        }
        let mut classes = Vec::new();
        for task in tasks {
            let state = wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
            let seen = world.task(task).await;
            let errors = seen["steps"][0]["errors"].as_array().unwrap();
            classes.push((
                state,
                errors.len(),
                errors.last().map(|e| e["class"].as_str().unwrap().to_owned()).unwrap_or_default(),
            ));
        }
        let expected = [
            ("blocked", 2, "Panic"),
            ("blocked", 2, "Timeout"),
            ("blocked", 2, "Oops"),
            ("blocked", 1, "ResultRefused"),
            ("complete", 0, ""),
        ];
        assert_eq!(
            classes,
            expected.map(|(state, errors, class)| (state.to_owned(), errors, class.to_owned()))
        );
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_keeps_killing_its_workers_is_dead_lettered_and_what_was_beside_it_comes_through() {
    World::with(async |world| {
        world
            .register("name: killer\nnamespace: here\nsteps:\n  - { name: only, handler: Kill }\n")
            .await;
        world
            .register("name: bystander\nnamespace: here\nsteps:\n  - { name: only, handler: Live }\n")
            .await;
        let mut bystanders = Vec::new();
        for _ in 0..5 {
            bystanders.push(world.submit("bystander", json!({})).await);
        }
        let killer = world.submit("killer", json!({})).await;
        world.claim().await;
        // All of them were in the buffer of a worker that died.
        for step in world.lease("here_queue", 10).await {
            world.expire(&step).await;
        }
        let all_ended = async {
            assert_eq!(wait_for_end(&world.db, killer, None).await.unwrap(), "blocked");
            for bystander in &bystanders {
                assert_eq!(wait_for_end(&world.db, *bystander, None).await.unwrap(), "complete");
            }
        };
        tokio::pin!(all_ended);
        loop {
            // A worker that dies with whatever it holds, and without a report, as soon as it is given the killer.
            let db = tasker::Db::connect(&world.url, 5).await.unwrap();
            let config = WorkerConfig {
                namespaces: vec!["here".into()],
                max_crashes: 2,
                // What a dying worker still leased is free again soon: closing its pool does not wait for connections in the making.
                lease: Duration::from_secs(3),
                ..WorkerConfig::default()
            };
            let worker = Worker::start(&db, config).await.unwrap();
            loop {
                let step = tokio::select! {
                    step = worker.next() => step.unwrap().remove(0),
                    () = &mut all_ended => {
                        let letters = world.dead_letters("here").await;
                        assert_eq!((letters.len(), &letters[0]["reason"], &letters[0]["task"]), (1, &json!("poison"), &json!(killer)));
                        worker.shutdown(Duration::from_secs(1)).await;
                        return;
                    }
                };
                if step.leased.handler == "Kill" {
                    break;
                }
                worker.report(&step, tasker::worker::Outcome::Complete("{}".into()));
            }
            db.close().await;
            sqlx::query("UPDATE pgmq.q_here_queue SET vt = clock_timestamp()")
                .execute(&world.pool)
                .await
                .unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_past_its_deadline_is_given_up_wherever_it_is() {
    World::with(async |world| {
        let flow = "name: flow\nnamespace: here\ndeadline: 1h\nsteps:\n  - { name: a, handler: H }\n  - { name: b, handler: H, depends_on: [a], namespace: there }\n";
        world.register(flow).await;
        let (running, waiting) = (world.submit("flow", json!({})).await, world.submit("flow", json!({})).await);
        world.claim().await;
        let held = world.lease("here_queue", 10).await;
        let of = |task| held.iter().find(|step| step.task_id == task).unwrap().clone();
        world.fail(&of(waiting), "not now", false, Some(3600.0)).await;
        let (pending, done) = (world.submit("flow", json!({})).await, world.submit("flow", json!({})).await);
        sqlx::query("UPDATE tasker.tasks SET state = 'complete', claim_order = NULL WHERE id = $1").bind(done).execute(&world.pool).await.unwrap();
        let expire = async || world.count("SELECT tasker.expire_tasks(100)::bigint").await;
        assert_eq!(expire().await, 0, "there is time left");

        sqlx::query("UPDATE tasker.tasks SET deadline_at = deadline_at - interval '1 hour', look_at = look_at - interval '1 hour'").execute(&world.pool).await.unwrap();
        assert_eq!((expire().await, expire().await), (3, 0));
        for task in [running, waiting, pending] {
            assert_eq!(world.task(task).await["state"], "blocked");
            assert_eq!(world.step_states(task).await, ["dead", "pending"]);
        }
        assert_eq!(world.task(done).await["state"], "complete");
        let letters = world.dead_letters("here").await;
        assert_eq!(letters.iter().map(|letter| letter["reason"].as_str().unwrap()).collect::<Vec<_>>(), ["deadline"; 3]);
        assert!(world.complete(&[of(running)], "{}").await.is_empty(), "its report is stale");
        assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_one_state_for_longer_than_its_template_allows_is_dead_lettered_as_stuck() {
    World::with(async |world| {
        let flow = "name: flow\nnamespace: here\nstuck_after: { pending: 3h, enqueued: 2h, in_progress: 1h }\nsteps:\n  - { name: a, handler: H }\n  - { name: b, handler: H, namespace: there }\n";
        world.register(flow).await;
        let running = world.submit("flow", json!({})).await;
        world.claim().await;
        let held = world.lease("here_queue", 1).await;
        let pending = world.submit("flow", json!({})).await;
        let hours_later = async |hours: i32| {
            let sql = format!(
                "UPDATE tasker.tasks SET look_at = look_at - interval '{hours} hours', created_at = created_at - interval '{hours} hours';
                 UPDATE tasker.steps SET enqueued_at = enqueued_at - interval '{hours} hours';
                 UPDATE pgmq.q_here_queue SET last_read_at = last_read_at - interval '{hours} hours'"
            );
            sqlx::raw_sql(&sql).execute(&world.pool).await.unwrap();
            world.count("SELECT tasker.expire_tasks(100)::bigint").await
        };
        assert_eq!(hours_later(0).await, 0, "there is time left");
        assert_eq!(hours_later(1).await, 1, "a worker hangs");
        assert_eq!(world.step_states(running).await, ["dead", "enqueued"]);
        assert!(world.complete(&held, "{}").await.is_empty(), "its report is stale");
        assert_eq!(hours_later(1).await, 1, "no worker takes the other step");
        assert_eq!(world.step_states(running).await, ["dead", "dead"]);
        assert_eq!(hours_later(1).await, 1, "no orchestrator takes the other task");
        assert_eq!(world.step_states(pending).await, ["dead", "dead"]);
        let mut said = Vec::new();
        for letter in [world.dead_letters("here").await, world.dead_letters("there").await].concat() {
            assert_eq!(letter["reason"], "stuck");
            said.push(letter["errors"][0]["message"].as_str().unwrap().split(' ').nth(2).unwrap().to_owned());
        }
        assert_eq!(said, ["in_progress", "pending", "enqueued", "pending"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_says_that_a_result_is_too_large() {
    World::with(async |world| {
        let step = "{ name: only, handler: writes, retry: { max_attempts: 1 } }";
        world
            .register(&format!("name: writes\nnamespace: here\nsteps:\n  - {step}\n"))
            .await;
        world.submit("writes", json!({})).await;
        world.claim().await;
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            concurrency: 1,
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("writes", |_| async {
            Ok(json!("x".repeat(tasker::engine::payload::MAX_PAYLOAD_BYTES)))
        }));
        let letters = loop {
            match world.dead_letters("here").await {
                letters if !letters.is_empty() => break letters,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert_eq!(letters[0]["reason"], "payload_too_large");
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}
