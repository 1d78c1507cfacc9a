//! Fair shares: the namespaces of a worker have each their part of its handlers' time, whatever waits in the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sqlx::Executor;
use tasker::engine::read;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Outcome, Step, Worker, WorkerConfig};

use crate::world::World;

impl World {
    /// Registers `first` and `second`, of two steps each, and submits so many tasks.
    async fn two_namespaces(&self, counts: [usize; 2]) {
        for (namespace, count) in ["first", "second"].into_iter().zip(counts) {
            let steps = "[{ name: a, handler: H }, { name: b, handler: H, depends_on: [a] }]";
            self.register(&format!("{{ name: {namespace}, namespace: {namespace}, steps: {steps} }}"))
                .await;
            let tasks = vec![
                NewTask {
                    input: json!({}).into(),
                    ..NewTask::default()
                };
                count
            ];
            Submitter::new(self.db.clone()).submit(namespace, None, &tasks).await.unwrap();
        }
    }

    /// A worker of both, with two handlers at once, each taking so many milliseconds; and the order in which their steps begin.
    async fn worker_of_both(&self, weights: BTreeMap<String, f64>, ms: u64) -> (Arc<Worker>, Arc<Mutex<Vec<String>>>) {
        let config = WorkerConfig {
            namespaces: vec!["first".into(), "second".into()],
            concurrency: 2,
            weights,
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&self.db, config).await.unwrap());
        let order = Arc::new(Mutex::new(Vec::new()));
        let noted = order.clone();
        worker.handle_with(Handlers::default().with("H", move |step: Arc<Step>| {
            noted.lock().unwrap().push(step.leased.template.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(json!(null))
            }
        }));
        (worker, order)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_divide_a_workers_handlers_while_both_namespaces_have_much_to_do() {
    World::with(async |world| {
        world.two_namespaces([400, 400]).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        // Slow enough that what is leased ahead never runs out, whatever else the machine does.
        let (worker, order) = world.worker_of_both([("first".into(), 4.0)].into(), 25).await;
        while order.lock().unwrap().len() < 300 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        let first = order.lock().unwrap()[..300]
            .iter()
            .filter(|namespace| *namespace == "first")
            .count();
        assert!((210..=270).contains(&first), "{first} of 300 are of the heavy one, 240 should be");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_namespace_leaves_room_for_a_few_steps_of_another_in_the_same_worker() {
    World::with(async |world| {
        world.two_namespaces([2_000, 0]).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let (worker, order) = world.worker_of_both(BTreeMap::new(), 5).await;
        for _ in 0..5 {
            let task = world.submit("second", json!({})).await;
            let ended = read::wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
            assert_eq!(ended, "complete");
        }
        let begun = order.lock().unwrap().len();
        assert!(begun < 2_000, "{begun} steps began before ten of the other had");
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_does_not_wait_behind_what_its_worker_has_leased_ahead_of_another_namespace() {
    World::with(async |world| {
        world.two_namespaces([2_000, 0]).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["first".into(), "second".into()],
            concurrency: 1,
            ..WorkerConfig::default()
        };
        let worker = Worker::start(&world.db, config).await.unwrap();
        // The faster steps are done, the more are leased ahead.
        let mut running = worker.next().await.unwrap().remove(0);
        while worker.waiting() < 10 {
            worker.report(&running, Outcome::Complete("{}".into()));
            running = worker.next().await.unwrap().remove(0);
        }
        world.submit("second", json!({})).await;
        let leased = |queue: &str| format!("SELECT count(*) FROM pgmq.q_{queue}_queue WHERE vt > clock_timestamp()");
        let (first, second) = (leased("first"), leased("second"));
        // Until it is leased, and the worker has it: all that is leased waits, but for the one that runs.
        while world.count(&second).await == 0 || world.count(&first).await + world.count(&second).await != worker.waiting() as i64 + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(worker.waiting() >= 10, "ten of the first still wait");
        let mut before = 0;
        while running.leased.template == "first" {
            worker.report(&running, Outcome::Complete("{}".into()));
            running = worker.next().await.unwrap().remove(0);
            before += 1;
        }
        assert!(before <= 10, "{before} steps of the first went before it");
        worker.shutdown(Duration::ZERO).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_stands_still_holds_up_no_other_of_its_worker() {
    World::with(async |world| {
        world.two_namespaces([0, 0]).await;
        let (worker, _) = world.worker_of_both(BTreeMap::new(), 1).await;
        let mut lock = world.pool.begin().await.unwrap();
        lock.execute("LOCK TABLE pgmq.q_first_queue IN ACCESS EXCLUSIVE MODE")
            .await
            .unwrap();
        let is_waited_for = "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'pgmq.q_first_queue'::regclass)";
        world.until_true(is_waited_for).await;
        let others = async {
            for _ in 0..20 {
                let task = world.submit("second", json!({})).await;
                let ended = read::wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
                assert_eq!(ended, "complete");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), others)
            .await
            .expect("they wait for no lock of the first");
        lock.rollback().await.unwrap();
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_in_which_nothing_is_holds_up_none_however_long_it_rests() {
    World::with(async |world| {
        let namespaces: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
        for namespace in &namespaces {
            world
                .register(&format!(
                    "{{ name: {namespace}, namespace: {namespace}, steps: [{{ name: a, handler: H }}] }}"
                ))
                .await;
        }
        let config = WorkerConfig {
            namespaces: namespaces.clone(),
            poll: Duration::from_secs(3_600),
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(null)) }));
        for _ in 0..20 {
            for namespace in &namespaces {
                let task = world.submit(namespace, json!({})).await;
                let ended = read::wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
                assert_eq!(ended, "complete", "{namespace}");
            }
        }
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}
