//! The Rust workers of the suite. What they do they write into a journal, which the checker believes before the engine.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{json, Value};
use tasker::engine::fail::Failure;
use tasker::worker::{Bulk, Handlers, Step, Worker, WorkerConfig};
use tasker::Db;
use tokio::signal::unix::{signal, SignalKind};

pub(crate) fn run(url: &str) {
    tasker::telemetry::init_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).unwrap();
        let config = WorkerConfig {
            namespaces: vec!["work".into()],
            lease: Duration::from_secs(3),
            concurrency: 4,
            ..WorkerConfig::default()
        };
        let db = Db::connect(url, 6).await.unwrap_or_else(|_| std::process::exit(3));
        let Ok(worker) = Worker::start(&db, config).await else {
            std::process::exit(3)
        };
        let worker = Arc::new(worker);
        let together = Bulk {
            batch: 10,
            within: Duration::from_millis(50),
        };
        worker.handle_with(Handlers::default().with("Work", work).with_bulk("Many", together, many));
        term.recv().await;
        worker.shutdown(Duration::from_secs(5)).await;
    });
    std::process::exit(0);
}

/// Now and then, one of them is to be tried again.
async fn many(steps: Vec<Arc<Step>>) -> Vec<Result<Value, Failure>> {
    join_all(steps.into_iter().map(async |step| match fastrand::u8(..10) {
        0 => Err(Failure::retryable("NotYet", "as it was told")),
        _ => work(step).await,
    }))
    .await
}

async fn work(step: Arc<Step>) -> Result<Value, Failure> {
    let run = uuid::Uuid::new_v4().to_string();
    let (config, input) = (parse(&step.leased.config), parse(&step.input().await?));
    let before = step.names_before().await?;
    let results: Value = step
        .results(&before)
        .await?
        .into_iter()
        .map(|(name, json)| (name, parse(&json)))
        .collect();
    let at = monotonic();
    journal(&json!({ "task": step.leased.task_id, "step": step.leased.name, "run": run, "at": at }));
    let attempt = i64::from(step.leased.attempt);
    if config["kill"] == true {
        std::process::abort();
    }
    if attempt < config["hang_before"].as_i64().unwrap_or_default() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_millis(
        config["ms"].as_u64().or(input["ms"].as_u64()).unwrap_or_default(),
    ))
    .await;
    if config["refuse"] == true {
        return Err(Failure::permanent("Refused", "as it was told"));
    }
    if attempt < config["fail_before"].as_i64().unwrap_or_default() {
        return Err(Failure::retryable("NotYet", "as it was told"));
    }
    let seen: Value = results
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, result)| (name.clone(), result["run"].clone()))
        .collect();
    Ok(json!({ "run": run, "seen": seen }))
}

/// Seconds of the machine's own clock, which nobody sets.
pub(crate) fn monotonic() -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn journal(line: &Value) {
    let file = format!("{}/rust-{}", std::env::var("CHAOS_JOURNAL").unwrap(), std::process::id());
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}
