//! Metrics: what the documents say is what is exported, and the figures are right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker::engine::fail::Failure;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::telemetry::{Described, TABLE};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};

use crate::collector::Collector;
use crate::health::Serve;
use crate::world::World;

/// As Prometheus has it: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
fn prometheus_name(of: &Described) -> String {
    let unit = match of.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    };
    let total = if of.kind == "counter" { "_total" } else { "" };
    format!("{}{unit}{total}", of.name.replace('.', "_"))
}

#[test]
fn the_document_lists_the_metrics_as_they_are() {
    let rows = TABLE.iter().map(|of| {
        let labels = if of.labels.is_empty() { "–" } else { of.labels };
        format!(
            "| `{}` | `{}` | {} | {labels} | {} |\n",
            prometheus_name(of),
            of.name,
            of.kind,
            of.meaning
        )
    });
    let table = rows.collect::<String>();
    let document = include_str!("../../docs/metrics.md");
    assert!(document.contains(&table), "docs/metrics.md should have this table:\n{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted_and_nothing_is_exported_that_is_not_listed() {
    World::with(async |world| {
        world
            .register("name: counted\nnamespace: counting\nsteps:\n  - { name: first, handler: Work }\n  - { name: last, handler: Work, depends_on: [first] }\n")
            .await;
        world
            .register("name: failing\nnamespace: counting\nsteps:\n  - { name: only, handler: Fail, retry: { max_attempts: 2, base: 0.01 } }\n")
            .await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["counting".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        let handlers = Handlers::default()
            .with("Work", |_: Arc<Step>| async { Ok(json!(1)) })
            .with("Fail", |_: Arc<Step>| async { Err(Failure::retryable("Oops", "again")) });
        worker.handle_with(handlers);
        let mut tasks = Vec::new();
        for _ in 0..5 {
            tasks.push(world.submit("counted", json!({})).await);
        }
        for task in tasks {
            tasker::engine::read::wait_for_end(&world.db, task, Some(Duration::from_secs(30))).await.unwrap();
        }
        let failing = world.submit("failing", json!({})).await;
        while world.step_states(failing).await != ["dead"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        let told = |text: &str, series: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series} in\n{text}"));
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        // Counted after the commit that was waited for.
        let own = loop {
            let own = worker.health().metrics().await;
            if own.contains("tasker_dead_letters_sent_total{namespace=\"counting\"} 1") {
                break own;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(told(&own, "tasker_tasks_submitted_total{template=\"counted\""), 5.0);
        assert_eq!(told(&own, "tasker_task_duration_seconds_count{namespace=\"counting\",template=\"counted\""), 5.0);
        let steps = |outcome: &str, template: &str| {
            format!("tasker_step_duration_seconds_count{{namespace=\"counting\",outcome=\"{outcome}\",template=\"{template}\"")
        };
        assert_eq!(told(&own, &steps("complete", "counted")), 10.0);
        assert_eq!(told(&own, &steps("failed", "failing")), 2.0);
        assert_eq!(told(&own, "tasker_step_wait_seconds_count{namespace=\"counting\""), 12.0);
        assert_eq!(told(&own, "tasker_step_retries_total{namespace=\"counting\""), 1.0);
        assert_eq!(told(&own, "tasker_dead_letters_sent_total{namespace=\"counting\""), 1.0);
        assert!(told(&own, "process_memory_usage_bytes") > 1e6);

        let fleet = orchestrator.health().metrics().await;
        assert_eq!(told(&fleet, "tasker_dead_letters{namespace=\"counting\""), 1.0);
        assert_eq!(told(&fleet, "tasker_workers{namespace=\"counting\""), 1.0);
        assert_eq!(told(&fleet, "tasker_capacity{namespace=\"counting\""), 8.0);
        assert_eq!(told(&fleet, "tasker_backlog{namespace=\"counting\",priority=\"urgent\""), 0.0);
        assert_eq!(told(&fleet, "tasker_configurations{kind=\"worker\""), 1.0);

        let listed: BTreeSet<String> = TABLE.iter().map(prometheus_name).collect();
        let exported = fleet.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let unlisted: Vec<&str> = exported.filter(|name| *name != "target_info" && !listed.contains(*name)).collect();
        assert!(unlisted.is_empty(), "{unlisted:?}");

        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_pushed_to_a_collector_by_grpc_and_by_http_as_the_standard_variables_say() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: pushed\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        world.submit("one", json!({})).await;
        for (mut collector, protocol) in [(Collector::grpc().await, "grpc"), (Collector::http().await, "http/protobuf")] {
            let endpoint = format!("http://{}", collector.address);
            let _serve = Serve::start(
                &world.url,
                &[],
                &[
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                    ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
                    ("OTEL_SERVICE_NAME", "orders"),
                ],
            );
            let pushed = tokio::time::timeout(Duration::from_secs(30), collector.metric("tasker.queue.depth")).await;
            let (service, metric) = pushed.unwrap_or_else(|_| panic!("nothing came by {protocol}"));
            assert_eq!(service, "orders");
            let data = format!("{:?}", metric.data);
            assert!(data.contains("pushed") && data.contains("AsDouble"), "{data}");
        }
    })
    .await;
}
