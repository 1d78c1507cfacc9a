//! Several databases, each a PostgreSQL of its own with its own disk flushes, and one fleet.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{json, Value};
use sqlx::PgPool;
use tasker::config::{Secret, Settings, ShardConfig};
use tasker::engine::register::register;
use tasker::engine::shards::Shards;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::Orchestrator;
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Db, Template};

use crate::latency::percentiles;
use crate::site::{now, Language, Site, NAMESPACE};
use crate::throughput::{fill, Shape};

pub(crate) const COLUMNS: [&str; 2] = ["linear-4, steps/s in sum", "submitted one by one, tasks/s in sum"];

/// So many of them at once, each with a worker and an orchestrator.
pub(crate) async fn measure(sites: &[Site], steps: usize) -> Vec<Value> {
    let template = [Shape::Linear4.template()];
    let places = join_all(sites.iter().map(|site| site.place(&template))).await;
    let tasks = steps / 4 / places.len();
    let submitting = places.iter().map(|place| submit_singly(&place.db));
    let submitted: f64 = join_all(submitting).await.iter().sum();
    for place in &places {
        fill(place, tasks).await;
        place.settle().await;
    }
    let crews = join_all(places.iter().map(|place| place.work(Language::Rust, 1))).await;
    let began = Instant::now();
    join_all(places.iter().map(|place| place.drained())).await;
    let seconds = began.elapsed().as_secs_f64();
    join_all(crews.into_iter().map(|crew| crew.stop())).await;
    join_all(places.into_iter().map(|place| place.leave())).await;
    vec![json!(4.0 * (tasks * sites.len()) as f64 / seconds), json!(submitted)]
}

/// Tasks a second of eight clients, each one task after the other.
async fn submit_singly(db: &Db) -> f64 {
    const EACH: usize = 250;
    let one = || async {
        let submitter = Submitter::new(db.clone());
        for _ in 0..EACH {
            submitter.submit("flow", None, &[NewTask::default()]).await.expect("submits");
        }
    };
    let began = Instant::now();
    join_all((0..8).map(|_| one())).await;
    (8 * EACH) as f64 / began.elapsed().as_secs_f64()
}

pub(crate) const BESIDE: [&str; 2] = ["p50, ms", "p99, ms"];

/// From the submission of a task in the first shard to its handler's beginning, while the second is there, and once it was stopped; one worker and one
/// orchestrator have both.
pub(crate) async fn beside(one: &Site, other: Site) -> [Vec<Value>; 2] {
    let (near, far) = (one.database().await, other.database().await);
    let shard = ShardConfig {
        number: 1,
        url: Some(Secret::from(far)),
        namespaces: vec!["far".into()],
        ..ShardConfig::default()
    };
    let settings = Settings {
        shards: [("far".to_owned(), shard)].into(),
        worker: WorkerConfig {
            namespaces: vec![NAMESPACE.into(), "far".into()],
            ..WorkerConfig::default()
        },
        ..Settings::default()
    };
    let shards = Shards::new(near.clone(), 6, settings.clone());
    shards.named("default").await.expect("connects").migrate().await.expect("migrates");
    shards.add("far").await.expect("is made a shard").close().await;
    let template = Template::parse(&Shape::Jobs.template(), "bench").expect("our own template");
    register(&shards.of_definition(&template).await.expect("is there"), &template)
        .await
        .expect("registers");
    let orchestrator = Orchestrator::start_in(&shards, settings.clone()).await.expect("starts");
    let worker = std::sync::Arc::new(Worker::start_in(&shards, settings).await.expect("starts"));
    worker.handle_with(Handlers::default().with("Noop", |_| async { Ok(json!(now())) }));
    let submitter = shards.submitter(&format!("{NAMESPACE}/flow")).await.expect("is there");
    let pool = PgPool::connect_lazy(&near).expect("our own URL");
    let there = rounds(&submitter, &pool).await;
    drop(other);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopped = rounds(&submitter, &pool).await;
    worker.shutdown(Duration::from_secs(1)).await;
    orchestrator.shutdown().await;
    pool.close().await;
    shards.close().await;
    [there, stopped]
}

async fn rounds(submitter: &Submitter, pool: &PgPool) -> Vec<Value> {
    const ROUNDS: usize = 200;
    let mut waited = Vec::new();
    for _ in 0..ROUNDS {
        let submitted = now();
        let task = submitter
            .submit(&format!("{NAMESPACE}/flow"), None, &[NewTask::default()])
            .await
            .expect("submits")[0]
            .id;
        let mut began = None;
        while began.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            began =
                sqlx::query_scalar::<_, Option<f64>>("SELECT (SELECT result::float8 FROM tasker.steps WHERE task_id = $1 AND step = 0)")
                    .bind(task)
                    .fetch_one(pool)
                    .await
                    .expect("reads");
        }
        waited.push(began.unwrap_or_default() - submitted);
    }
    percentiles(waited)
}
