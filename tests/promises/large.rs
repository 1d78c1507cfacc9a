//! What is large, or strange, or both: nothing of it stops anything else, and nothing of it is held when it is not wanted.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::fail::Failure;
use tasker::engine::read::{read_results, wait_for_end};
use tasker::engine::submit::{Input, NewTask, Submitter};
use tasker::engine::{dead_letters, read};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::Error;
use uuid::Uuid;

use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";
const TWO: &str = "
name: two
namespace: here
steps:
  - { name: first, handler: First }
  - { name: second, handler: Second, depends_on: [first] }
";

async fn worker(world: &World, handlers: Handlers) -> Arc<Worker> {
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        poll: Duration::from_millis(100),
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
    worker.handle_with(handlers);
    worker
}

/// Text that does not compress.
fn noise(bytes: usize) -> String {
    (0..bytes).map(|_| fastrand::alphanumeric()).collect()
}

async fn end(world: &World, task: Uuid) -> String {
    wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap()
}

/// Completes what waits in the queue, each with a result of that many bytes, which PostgreSQL makes itself.
async fn complete_with(world: &World, bytes: usize) -> i64 {
    let sql = format!(
        "WITH leased AS MATERIALIZED (SELECT * FROM tasker.lease_steps('here_queue', 7, 50, '1 hour') ORDER BY msg_id)
         SELECT coalesce(sum(cardinality(c.counted)), 0)::bigint FROM (
             SELECT array_agg(msg_id) AS ids, array_agg(fence) AS fences, array_agg(task_id) AS tasks, array_agg(step) AS steps,
                    array_agg(to_json(repeat('x', {bytes} - 2))::text) AS results FROM leased) AS l,
             tasker.complete_steps('here_queue', 7, l.ids, l.fences, l.tasks, l.steps, l.results, l.tasks) AS c WHERE l.ids IS NOT NULL"
    );
    world.count(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_parents_returned_too_much_altogether_is_a_dead_letter_and_everything_else_goes_on() {
    World::with(async |world| {
        const PARENTS: usize = 262;
        const BYTES: usize = 1_040_000;
        let parents: Vec<String> = (0..PARENTS).map(|n| format!("p{n}")).collect();
        let mut steps: Vec<Value> = parents.iter().map(|name| json!({ "name": name, "handler": "H" })).collect();
        steps.push(json!({ "name": "all", "handler": "H", "depends_on": parents }));
        world
            .register(&json!({ "name": "wide", "namespace": "here", "steps": steps }).to_string())
            .await;
        world.register(ONE).await;
        let wide = world.submit("wide", json!({})).await;
        world.claim().await;
        let mut completed = 0;
        while completed < PARENTS as i64 {
            completed += complete_with(world, BYTES).await;
        }
        let trivial = world.submit("one", json!({})).await;
        let worker = worker(world, Handlers::default().with("H", |_| async { Ok(json!(1)) })).await;
        assert_eq!(end(world, trivial).await, "complete");
        assert_eq!(end(world, wide).await, "blocked");

        // Everything can be looked at.
        let task = world.task(wide).await;
        let steps = task["steps"].as_array().unwrap();
        let complete = steps.iter().filter(|step| step["state"] == "complete" && step["attempt"] == 1);
        assert_eq!(complete.count(), PARENTS, "the parents' completions stand");
        assert_eq!(steps[PARENTS]["errors"][0]["class"], "PayloadTooLarge");
        assert!(steps
            .iter()
            .all(|step| step["result_bytes"].is_null() || step["result_bytes"] == BYTES));
        let result = read_results(&world.db, wide, None, &["p261".into()], None).await.unwrap();
        assert_eq!((result[0].0.as_str(), result[0].1.len()), ("p261", BYTES));
        let letters = dead_letters::list(&world.db, &Default::default(), 10).await.unwrap();
        assert_eq!((letters.len(), &letters[0]["reason"]), (1, &json!("payload_too_large")));
        assert_eq!(
            letters[0]["results"].as_array().unwrap().len(),
            PARENTS,
            "they are named, not copied"
        );
        let shown = dead_letters::show(&world.db, letters[0]["id"].as_str().unwrap()).await.unwrap();
        assert_eq!(shown["results"].as_object().unwrap().len(), (16 << 20) / BYTES);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_large_is_read_when_it_is_wanted() {
    World::with(async |world| {
        world.register(TWO).await;
        let (input, result, checkpoint) = (noise(200_000), noise(300_000), noise(100_000));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let worker_of = Arc::new(Mutex::new(None::<Arc<Worker>>));
        let handlers = {
            let (seen, worker_of) = (seen.clone(), worker_of.clone());
            let (result, checkpoint) = (result.clone(), checkpoint.clone());
            Handlers::default()
                .with("First", move |_| {
                    let result = result.clone();
                    async move { Ok(json!(result)) }
                })
                .with("Second", move |step: Arc<Step>| {
                    let (seen, checkpoint, worker) = (seen.clone(), checkpoint.clone(), worker_of.lock().unwrap().clone().unwrap());
                    async move {
                        let along = (step.leased.input.is_some(), step.leased.results.is_some());
                        assert_eq!((along, step.leased.results_bytes), ((false, false), 300_002));
                        let before = step.names_before().await?;
                        let results = step.results(&before).await?;
                        let read = (step.input().await?, results, step.checkpoint().await?);
                        seen.lock().unwrap().push(read);
                        if step.leased.attempt == 1 {
                            worker.checkpoint(&step, json!(checkpoint)).await?;
                            return Err(Failure::retryable("Again", "with its checkpoint").retry_after(Duration::ZERO));
                        }
                        Ok(json!(null))
                    }
                })
        };
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        *worker_of.lock().unwrap() = Some(worker.clone());
        worker.handle_with(handlers);
        let task = world.submit("two", json!({ "text": input })).await;
        assert_eq!(end(world, task).await, "complete");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), 2);
        for (attempt, (read_input, results, read_checkpoint)) in seen.iter().enumerate() {
            assert_eq!(serde_json::from_str::<Value>(read_input).unwrap(), json!({ "text": input }));
            assert_eq!(results, &[("first".to_owned(), json!(result).to_string())]);
            assert_eq!(read_checkpoint.clone(), (attempt == 1).then(|| json!(checkpoint).to_string()));
        }
        *worker_of.lock().unwrap() = None;
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_many_large_steps_brings_little() {
    World::with(async |world| {
        world.register(ONE).await;
        let tasks: Vec<NewTask> = [noise(900_000), "x".repeat(900_000)]
            .into_iter()
            .cycle()
            .take(60)
            .map(|text| NewTask {
                input: json!({ "text": text }).into(),
                ..NewTask::default()
            })
            .collect();
        Submitter::new(world.db.clone()).submit("one", None, &tasks).await.unwrap();
        world.claim().await;
        let brought = "SELECT count(*) FILTER (WHERE large) * 1000000 + coalesce(sum(octet_length(input)), 0)
                       FROM tasker.lease_steps('here_queue', 7, 100, '1 hour')";
        assert_eq!(
            world.count(brought).await,
            60_000_000,
            "all are large, and none of their inputs comes along"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_of_many_bytes_is_made_in_pieces_and_whole_or_not_at_all() {
    World::with(async |world| {
        world.register(ONE).await;
        let submitter = Submitter::new(world.db.clone());
        let mut tasks: Vec<NewTask> = (0..40)
            .map(|n| NewTask {
                input: json!({ "n": n, "text": "x".repeat(900_000) }).into(),
                key: Some(format!("key {}", 40 - n)),
                ..NewTask::default()
            })
            .collect();
        let submitted = submitter.submit("one", None, &tasks).await.unwrap();
        for (n, task) in submitted.iter().enumerate() {
            let sql = format!("SELECT (input ->> 'n')::bigint FROM tasker.tasks WHERE id = '{}'", task.id);
            assert_eq!(world.count(&sql).await, n as i64, "the answer is in the tasks' order");
        }
        for (n, task) in tasks.iter_mut().enumerate() {
            task.key = Some(format!("other {n}"));
        }
        tasks[39].key = Some("k".repeat(300));
        let refused = submitter.submit("one", None, &tasks).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 40);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_cannot_be_leased_is_a_dead_letter_and_its_queue_goes_on() {
    World::with(async |world| {
        world.register(ONE).await;
        let mut tasks = Vec::new();
        for n in 0..20 {
            tasks.push(world.submit("one", json!({ "n": n })).await);
        }
        world.claim().await;
        // Whoever leases it next has one too many for an integer.
        world
            .run("UPDATE pgmq.q_here_queue SET read_ct = 2147483647 WHERE msg_id = 7")
            .await;
        let poisoned = world.text("SELECT task_id::text FROM tasker.steps WHERE msg_id = 7").await;
        let worker = worker(world, Handlers::default().with("H", |_| async { Ok(json!(1)) })).await;
        for task in tasks {
            let expected = if task.to_string() == poisoned { "blocked" } else { "complete" };
            assert_eq!(end(world, task).await, expected);
        }
        let letters = world.dead_letters("here").await;
        assert_eq!((letters.len(), &letters[0]["reason"]), (1, &json!("unreadable")));
        assert_eq!((&letters[0]["task"], &letters[0]["step"]), (&json!(poisoned), &json!("only")));
        assert_eq!(world.counter("unreadable_steps").await, 1);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_postgresql_refuses_whatever_it_says_ends_its_step_all_the_same() {
    World::with(async |world| {
        world.register(ONE).await;
        world
            .run(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF NEW.errors -> 0 ->> 'class' <> 'TaskerError' THEN RAISE 'no' USING ERRCODE = '54000'; END IF;
                     RETURN NEW;
                 END $$;
                 CREATE TRIGGER refuse BEFORE UPDATE ON tasker.steps FOR EACH ROW EXECUTE FUNCTION refuse()",
            )
            .await;
        let task = world.submit("one", json!({})).await;
        world.claim().await;
        let fail = |_| async { Err(Failure::retryable("Oops", "no")) };
        let worker = worker(world, Handlers::default().with("H", fail)).await;
        assert_eq!(end(world, task).await, "blocked");
        assert_eq!(world.dead_letters("here").await[0]["errors"][0]["class"], "TaskerError");
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_any_size_pass_through_and_hide_nothing() {
    World::with(async |world| {
        world.register(ONE).await;
        let digits = "123456789012345678901234567890.000000000000000000001";
        let input = format!(r#"{{"exact": {digits}, "huge": 1e400, "small": 1e-400}}"#);
        let task = world
            .text(&format!("SELECT tasker.create_task('one', '{input}')::text"))
            .await
            .parse()
            .unwrap();
        world.claim().await;
        let step = world.lease("here_queue", 1).await.remove(0);
        world.fail(&step, "no", true, None).await;
        let huge = format!("1{}", "0".repeat(400));
        for seen in [
            world.task(task).await,
            dead_letters::list(&world.db, &Default::default(), 1).await.unwrap().remove(0),
        ] {
            assert_eq!(
                (seen["input"]["exact"].to_string(), seen["input"]["huge"].to_string()),
                (digits.into(), huge.clone())
            );
        }
        // The library passes on what it does not look into, but not what would become a hundred thousand digits.
        let submit = async |json: &str| {
            let task = NewTask {
                input: Input::of_json(json.into()),
                ..NewTask::default()
            };
            Submitter::new(world.db.clone()).submit("one", None, &[task]).await
        };
        let id = submit(&input).await.unwrap()[0].id;
        assert_eq!(read::read_task(&world.db, id).await.unwrap()["input"]["exact"].to_string(), digits);
        for refused in [r#"{"n": 1e131071}"#, r#"{"n": [1, -1E+99999]}"#, r#"{"n": 1e-5000}"#] {
            assert!(matches!(submit(refused).await, Err(Error::TooLarge(_))), "{refused}");
        }
        assert!(submit(r#"{"n": "1e131071", "m": "\"1e99999"}"#).await.is_ok(), "a string is none");
        let many = |number: &str| format!(r#"{{"n": [{}]}}"#, vec![number; 2_000].join(","));
        assert!(
            matches!(submit(&many("1e600")).await, Err(Error::TooLarge(_))),
            "altogether they are"
        );
        // Whoever speaks SQL is told the same.
        for (json, accepted) in [
            (r#"{"n": 1e131071}"#, false),
            (r#"{"n": [1, {"m": -1E+9999}]}"#, false),
            (r#"{"n": 1e-5000}"#, false),
            (&many("1e600"), false),
            (&many("1e400"), true),
            (&format!(r#"{{"n": "{}"}}"#, "1".repeat(100_000)), true),
        ] {
            let created = sqlx::query("SELECT tasker.create_task('one', $1::text::jsonb)")
                .bind(json)
                .execute(&world.pool)
                .await;
            let answer = created.map_err(|error| error.as_database_error().unwrap().code().unwrap().into_owned());
            assert_eq!(
                answer.map(drop),
                if accepted { Ok(()) } else { Err("TK006".to_owned()) },
                "{:.60}",
                json
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_small_in_a_row_and_huge_as_text_does_not_travel_with_a_lease() {
    World::with(async |world| {
        world.register(ONE).await;
        // As only the owner of the schema can.
        world
            .run(
                "INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, claim_order, input, created_at)
                 SELECT tasker.uuidv7(), t.id, t.current_version_id, t.namespace_id, 2, 'pending', now(),
                        '{\"n\": [1e131071, 1e131071, 1e131071]}', now() FROM tasker.templates t, generate_series(1, 20)",
            )
            .await;
        world.claim().await;
        let bytes = world
            .count(
                "SELECT coalesce(sum(octet_length(l.input)), 0) + 1000 * count(*) FILTER (WHERE l.large)
                 FROM tasker.lease_steps('here_queue', 7, 20, '1 hour') AS l",
            )
            .await;
        assert_eq!(bytes, 20_000, "all are large, and none came along");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_very_many_attempts_the_first_and_the_last_errors_are_kept() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H, retry: { max_attempts: 70 } }\n")
            .await;
        let task = world.submit("one", json!({})).await;
        world.claim().await;
        for n in 1..=70 {
            let step = world.lease("here_queue", 1).await.remove(0);
            assert!(world.fail(&step, &format!("no {n}"), false, Some(0.0)).await);
            world.enqueue_due_retries().await;
        }
        let errors = world.task(task).await["steps"][0]["errors"].clone();
        let attempts: Vec<u64> = errors
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error["attempt"].as_u64().unwrap())
            .collect();
        assert_eq!(attempts, (1..=10).chain(31..=70).collect::<Vec<u64>>());
        assert_eq!(world.dead_letters("here").await[0]["errors"].as_array().unwrap().len(), 50);
    })
    .await;
}
