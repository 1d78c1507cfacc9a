//! How many connections a worker of many queues wants, and what a large fleet costs that has nothing to do.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{json, Value};
use sqlx::PgPool;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};

use crate::site::{now, Site};
use crate::throughput::Shape;

pub(crate) const QUEUES: [&str; 2] = ["steps/s", "connections of the worker, most"];

/// linear-4 in so many namespaces, of which one worker has all, with so many connections at most.
pub(crate) async fn queues(site: &Site, queues: usize, connections: u32, steps: usize) -> Vec<Value> {
    let names: Vec<String> = (0..queues).map(|n| format!("bench{n}")).collect();
    let templates: Vec<String> = names
        .iter()
        .map(|name| Shape::Linear4.template().replace("\"bench\"", &format!("\"{name}\"")))
        .collect();
    let place = site.place(&templates).await;
    let submitter = Submitter::new(place.db.clone());
    let tasks = steps / 4 / queues;
    for name in &names {
        for _ in 0..tasks.div_ceil(1_000) {
            let some = vec![NewTask::default(); tasks.min(1_000)];
            submitter.submit(&format!("{name}/flow"), None, &some).await.expect("submits");
        }
    }
    place.settle().await;
    let orchestrator = place.connect(6).await;
    let orchestrator = Orchestrator::start(&orchestrator, OrchestratorConfig::default())
        .await
        .expect("starts");
    let db = place.connect(connections).await;
    let config = WorkerConfig {
        namespaces: names,
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&db, config).await.expect("starts"));
    worker.handle_with(Handlers::default().with("Noop", |_| async { Ok(json!(now())) }));
    let seconds = place.finished().await;
    let open = db.pool_use().open + 1;
    worker.shutdown(Duration::from_secs(5)).await;
    orchestrator.shutdown().await;
    let done: i64 = sqlx::query_scalar("SELECT count(*) FROM tasker.tasks")
        .fetch_one(&place.pool)
        .await
        .expect("asks");
    db.close().await;
    place.leave().await;
    vec![json!(4.0 * done as f64 / seconds), json!(open)]
}

pub(crate) const IDLE: [&str; 4] = [
    "transactions a second",
    "PostgreSQL, ms of a processor a second",
    "connections",
    "statements for a task",
];

/// So many orchestrators and workers that have nothing to do, and then one task each second.
pub(crate) async fn idle(site: &Site, orchestrators: usize, workers: usize) -> Vec<Value> {
    const SECONDS: u64 = 20;
    const TASKS: u64 = 20;
    let place = site.place(&[Shape::Jobs.template()]).await;
    let mut serving = Vec::new();
    for _ in 0..orchestrators {
        let db = place.connect(6).await;
        serving.push(Orchestrator::start(&db, OrchestratorConfig::default()).await.expect("starts"));
    }
    let mut working = Vec::new();
    for _ in 0..workers {
        let db = place.connect(6).await;
        let config = WorkerConfig {
            namespaces: vec!["bench".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&db, config).await.expect("starts"));
        worker.handle_with(Handlers::default().with("Noop", |_| async { Ok(json!(now())) }));
        working.push(worker);
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (transactions, time, statements) = spent(&place.pool).await;
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let (later, time_later, statements_later) = spent(&place.pool).await;
    let connections: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        .fetch_one(&place.pool)
        .await
        .expect("asks");
    let submitter = Submitter::new(place.db.clone());
    for _ in 0..TASKS {
        submitter.submit("flow", None, &[NewTask::default()]).await.expect("submits");
        tokio::time::sleep(Duration::from_millis(SECONDS * 1_000 / TASKS)).await;
    }
    let (.., with_tasks) = spent(&place.pool).await;
    join_all(working.iter().map(|worker| worker.shutdown(Duration::from_secs(5)))).await;
    join_all(serving.into_iter().map(Orchestrator::shutdown)).await;
    place.leave().await;
    let (quiet, busy) = (statements_later - statements, with_tasks - statements_later);
    vec![
        json!((later - transactions) / SECONDS as f64),
        json!((time_later - time) / SECONDS as f64),
        json!(connections),
        json!((busy - quiet) / TASKS as f64),
    ]
}

/// Transactions, ms of statements, and statements since the database was made. Sessions report what they did within a second or so (PostgreSQL 15, 28.2).
async fn spent(pool: &PgPool) -> (f64, f64, f64) {
    sqlx::query_as(
        "SELECT (SELECT (xact_commit + xact_rollback)::float8 FROM pg_stat_database WHERE datname = current_database()), sum(s.total_exec_time), sum(s.calls)::float8
         FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database()",
    )
    .fetch_one(pool)
    .await
    .expect("the statistics")
}
