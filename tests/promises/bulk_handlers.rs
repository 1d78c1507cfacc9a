//! Bulk handlers: one call has many steps, and each its own outcome.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Bulk, Handlers, Outcome, Step, Worker, WorkerConfig};
use uuid::Uuid;

use crate::world::World;

const GEOCODE: &str =
    "{ name: geocode, namespace: here, steps: [{ name: find, handler: Geocode, retry: { max_attempts: 2, base: 1ms, max: 2ms } }] }";

/// As long as a test may take: whoever waits for it has not gathered what it should have.
const LONG: Duration = Duration::from_secs(60);

/// Submits a task of `geocode` for each of `numbers`, claimed.
async fn addresses(world: &World, numbers: impl Iterator<Item = i64>) -> Vec<Uuid> {
    let tasks: Vec<NewTask> = numbers
        .map(|number| NewTask {
            input: json!({ "number": number }).into(),
            ..NewTask::default()
        })
        .collect();
    let submitted = Submitter::new(world.db.clone()).submit("geocode", None, &tasks).await.unwrap();
    world.claim().await;
    submitted.into_iter().map(|task| task.id).collect()
}

fn one_at_a_time() -> WorkerConfig {
    WorkerConfig {
        namespaces: vec!["here".into()],
        concurrency: 1,
        ..WorkerConfig::default()
    }
}

fn number(step: &Step) -> i64 {
    let input: Value = serde_json::from_str(step.leased.input.as_ref().unwrap()).unwrap();
    input["number"].as_i64().unwrap()
}

/// A worker with one handler at once, which calls `outcome` for each step; and how many steps its calls had.
async fn geocoder(
    world: &World,
    bulk: Bulk,
    outcome: impl Fn(&Step) -> Result<Value, Failure> + Send + Sync + 'static,
) -> (Arc<Worker>, Arc<Mutex<Vec<usize>>>) {
    let worker = Arc::new(Worker::start(&world.db, one_at_a_time()).await.unwrap());
    let (calls, noted) = (Arc::new(Mutex::new(Vec::new())), Arc::new(outcome));
    let counted = calls.clone();
    worker.handle_with(Handlers::default().with_bulk("Geocode", bulk, move |steps: Vec<Arc<Step>>| {
        counted.lock().unwrap().push(steps.len());
        let outcome = noted.clone();
        async move { steps.iter().map(|step| outcome(step)).collect::<Vec<_>>() }
    }));
    (worker, calls)
}

async fn ends(world: &World, tasks: &[Uuid]) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for task in tasks {
        *ends.entry(wait_for_end(&world.db, *task, Some(LONG)).await.unwrap()).or_default() += 1;
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_many_tasks_come_together_in_full_calls_even_where_one_handler_runs_at_a_time() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        let tasks = addresses(world, 0..200).await;
        let bulk = Bulk { batch: 50, within: LONG };
        let (worker, calls) = geocoder(world, bulk, |step| Ok(json!(number(step)))).await;
        assert_eq!(ends(world, &tasks).await, [("complete".into(), 200)].into());
        assert_eq!(*calls.lock().unwrap(), [50; 4]);
        for (number, task) in tasks.iter().enumerate() {
            assert_eq!(world.task(*task).await["steps"][0]["result"], number, "each has its own result");
        }
        worker.shutdown(LONG).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_waited_long_enough_is_handled_however_few_they_are() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        let bulk = Bulk {
            batch: 1_000,
            within: Duration::from_millis(20),
        };
        let (worker, calls) = geocoder(world, bulk, |_| Ok(json!(null))).await;
        for _ in 0..3 {
            let tasks = addresses(world, 0..1).await;
            assert_eq!(ends(world, &tasks).await, [("complete".into(), 1)].into());
        }
        assert_eq!(*calls.lock().unwrap(), [1; 3]);
        worker.shutdown(LONG).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_a_call_has_an_outcome_of_its_own() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let tasks = addresses(world, 0..9).await;
        let bulk = Bulk {
            batch: 9,
            within: Duration::from_millis(50),
        };
        let (worker, _) = geocoder(world, bulk, |step| match (number(step) % 3, step.leased.attempt) {
            (0, _) => Err(Failure::permanent("NoSuchAddress", "there is none")),
            (1, 1) => Err(Failure::retryable("Busy", "once more")),
            _ => Ok(json!(step.leased.attempt)),
        })
        .await;
        assert_eq!(ends(world, &tasks).await, [("blocked".into(), 3), ("complete".into(), 6)].into());
        for (number, task) in tasks.iter().enumerate() {
            let step = world.task(*task).await["steps"][0].clone();
            let expected = [json!(null), json!(2), json!(1)][number % 3].clone();
            assert_eq!(step["result"], expected, "{step}");
        }
        worker.shutdown(LONG).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_panics_takes_too_long_or_returns_too_little_fails_each_of_its_steps() {
    World::with(async |world| {
        let worker = Arc::new(Worker::start(&world.db, one_at_a_time()).await.unwrap());
        let bulk = Bulk { batch: 3, within: LONG };
        worker.handle_with(Handlers::default().with_bulk("Geocode", bulk, |steps: Vec<Arc<Step>>| async move {
            match number(&steps[0]) {
                0..3 => panic!("there is no map"),
                3..6 => std::future::pending().await,
                _ => vec![Ok(json!(null))],
            }
        }));
        for (numbers, class) in [(0..3, "Panic"), (3..6, "Timeout"), (6..9, "WrongNumberOfOutcomes")] {
            let timeout = if class == "Timeout" { "timeout: 100ms, " } else { "" };
            let steps = format!("[{{ name: find, handler: Geocode, {timeout}retry: {{ max_attempts: 1 }} }}]");
            world
                .register(&format!("{{ name: geocode, namespace: here, steps: {steps} }}"))
                .await;
            let tasks = addresses(world, numbers).await;
            assert_eq!(ends(world, &tasks).await, [("blocked".into(), 3)].into());
            for task in tasks {
                assert_eq!(world.task(task).await["steps"][0]["errors"][0]["class"], class);
            }
        }
        worker.shutdown(LONG).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_while_it_gathers_is_not_in_the_call() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        let worker = Worker::start(&world.db, one_at_a_time()).await.unwrap();
        worker.gather("Geocode", Bulk { batch: 3, within: LONG });
        let mut call = Vec::new();
        // The worker may hear of it only when the call has begun.
        while call.len() != 2 {
            let first = addresses(world, 0..2).await;
            leased(world, "here", 2).await;
            tasker::engine::cancel::cancel_tasks(&world.db, &first[..1]).await.unwrap();
            addresses(world, 2..3).await;
            call = worker.next().await.unwrap();
            for step in &call {
                worker.report(step, Outcome::Complete("null".into()));
            }
            assert_eq!(ends(world, &first).await, [("cancelled".into(), 1), ("complete".into(), 1)].into());
        }
        assert_eq!(call.iter().map(number).collect::<Vec<_>>(), [1, 2]);
        worker.shutdown(LONG).await;
    })
    .await;
}

/// Waits until so many messages of a namespace are leased.
async fn leased(world: &World, namespace: &str, count: i64) {
    let sql = format!("SELECT count(*) FROM pgmq.q_{namespace}_queue WHERE vt > clock_timestamp()");
    while world.count(&sql).await < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_hands_back_at_once_what_it_gathered() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        let worker = Worker::start(&world.db, one_at_a_time()).await.unwrap();
        worker.gather("Geocode", Bulk { batch: 100, within: LONG });
        addresses(world, 0..3).await;
        leased(world, "here", 3).await;
        worker.shutdown(LONG).await;
        let again = world.lease("here_queue", 10).await;
        assert_eq!(again.len(), 3);
        assert!(again.iter().all(|step| step.crashes == 0 && step.attempt == 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_taken_workers_down_is_in_a_call_by_itself() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        addresses(world, 0..3).await;
        for _ in 0..2 {
            let lost = world.lease("here_queue", 1).await;
            world.expire(&lost[0]).await;
        }
        let worker = Worker::start(&world.db, one_at_a_time()).await.unwrap();
        worker.gather("Geocode", Bulk { batch: 2, within: LONG });
        let mut calls = vec![worker.next().await.unwrap()];
        for step in &calls[0] {
            worker.report(step, Outcome::Complete("null".into()));
        }
        calls.push(worker.next().await.unwrap());
        calls.sort_by_key(Vec::len);
        let numbers: Vec<Vec<i64>> = calls.iter().map(|call| call.iter().map(number).collect()).collect();
        assert_eq!(numbers, [vec![0], vec![1, 2]]);
        worker.shutdown(Duration::ZERO).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_not_keep_the_steps_of_other_handlers_because_it_has_room_for_a_bulk_handlers() {
    World::with(async |world| {
        world.register(GEOCODE).await;
        world
            .register("{ name: slow, namespace: here, steps: [{ name: walk, handler: Walk }] }")
            .await;
        let worker = Worker::start(&world.db, one_at_a_time()).await.unwrap();
        worker.gather("Geocode", Bulk { batch: 200, within: LONG });
        // It learns that steps are small here; then others come.
        addresses(world, 0..200).await;
        let call = worker.next().await.unwrap();
        assert_eq!(call.len(), 200);
        let tasks = vec![
            NewTask {
                input: json!({}).into(),
                ..NewTask::default()
            };
            500
        ];
        Submitter::new(world.db.clone()).submit("slow", None, &tasks).await.unwrap();
        world.claim().await;
        for step in &call {
            worker.report(step, Outcome::Complete("null".into()));
        }
        let walking = worker.next().await.unwrap();
        let kept = "SELECT count(*) FROM pgmq.q_here_queue WHERE vt > clock_timestamp()";
        // What was too much is handed back.
        while world.count(kept).await > 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worker.report(&walking[0], Outcome::Complete("null".into()));
        worker.shutdown(Duration::ZERO).await;
    })
    .await;
}
