//! Traces: one follows a task through real processes, in Rust and in Ruby, to a collector.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tasker::engine::read;
use uuid::Uuid;

use crate::collector::Collector;
use crate::health::Serve;
use crate::world::World;

const DIAMOND: &str = "
name: diamond
namespace: traced
steps:
  - { name: first, handler: Work }
  - { name: left, handler: Work, depends_on: [first] }
  - { name: right, handler: FailOnce, depends_on: [first], retry: { base: 0.01 } }
  - { name: last, handler: Follow, depends_on: [left, right] }
";

const AFTER: &str = "name: after\nnamespace: traced\nsteps:\n  - { name: only, handler: Work }\n";

const HANDLERS: &str = r#"
class Work < TaskerCore::StepHandler
  def call(step) = step.trace
end
class FailOnce < TaskerCore::StepHandler
  def call(step) = step.attempt == 1 ? raise("not yet") : nil
end
class Follow < TaskerCore::StepHandler
  def call(_) = TaskerCore.enqueue("after").id
end
"#;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A worker of the gem's, in a process of its own.
struct RubyWorker(Child);

impl RubyWorker {
    fn start(url: &str, environment: &[(&str, &str)]) -> RubyWorker {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("handlers.rb"), HANDLERS).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new("ruby");
        command.arg("-I").arg(root.join("lib")).arg(root.join("exe/tasker"));
        command
            .args(["worker", "--namespace", "traced", "-r"])
            .arg(folder.keep().join("handlers.rb"));
        let run_dir = tempfile::tempdir().unwrap().keep();
        let command = command.env("DATABASE_URL", url).env("TASKER_RUN_DIR", run_dir);
        RubyWorker(command.envs(environment.iter().copied()).spawn().expect("bin/setup installs Ruby"))
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for RubyWorker {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn create(url: &str, template: &str, environment: &[(&str, &str)]) -> Uuid {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
    command.args(["task", "create", template, "--input", "{}"]).env("DATABASE_URL", url);
    let output = command.envs(environment.iter().copied()).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{output:?}"))
}

fn exporting(service: &'static str, endpoint: &str, protocol: &'static str) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.into()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.into()),
        ("OTEL_SERVICE_NAME", service.into()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".into()),
    ]
}

fn borrowed<'a>(environment: &'a [(&'static str, String)], more: &[(&'static str, &'a str)]) -> Vec<(&'static str, &'a str)> {
    environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(more.iter().copied())
        .collect()
}

/// The spans that came, until those of all these names are there, by their names; and the services that sent them.
async fn spans_until(collector: &mut Collector, names: &[&str]) -> (HashMap<String, Vec<Span>>, HashSet<String>) {
    let (mut by_name, mut services) = (HashMap::<String, Vec<Span>>::new(), HashSet::new());
    let collecting = async {
        while names.iter().any(|name| !by_name.contains_key(*name)) {
            for (service, span) in collector.spans().await {
                services.insert(service);
                by_name.entry(span.name.clone()).or_default().push(span);
            }
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), collecting).await;
    assert!(done.is_ok(), "of {names:?} only these came: {:?}", by_name.keys());
    (by_name, services)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_follows_a_diamond_from_its_caller_through_orchestrator_and_ruby_worker_to_what_it_enqueues() {
    World::with(async |world| {
        world.register(DIAMOND).await;
        world.register(AFTER).await;
        for (mut collector, protocol) in [(Collector::grpc().await, "grpc"), (Collector::http().await, "http/protobuf")] {
            let endpoint = format!("http://{}", collector.address);
            let [caller, orchestrator, worker] = ["shop", "orchestrator", "worker"].map(|service| exporting(service, &endpoint, protocol));
            // The orchestrator claims it, since there is no worker yet.
            let _serve = Serve::start(&world.url, &[], &borrowed(&orchestrator, &[]));
            let task = create(&world.url, "diamond", &borrowed(&caller, &[("TRACEPARENT", CALLER)]));
            world.until_running(task).await;
            let ruby = RubyWorker::start(&world.url, &borrowed(&worker, &[]));
            let ended = read::wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
            assert_eq!(ended, "complete");
            let after: Uuid = world.task(task).await["steps"][3]["result"].as_str().unwrap().parse().unwrap();
            read::wait_for_end(&world.db, after, Some(Duration::from_secs(60))).await.unwrap();
            // What it has not pushed yet, it pushes as it stops.
            ruby.stop();

            let last = [
                "process diamond.last",
                "complete diamond.last",
                "complete after.only",
                "enqueue diamond",
                "submit diamond",
                "enqueue after",
                "submit after",
            ];
            let (spans, services) = spans_until(&mut collector, &last).await;
            assert_eq!(services, ["shop", "orchestrator", "worker"].map(str::to_owned).into());

            let all: Vec<&Span> = spans.values().flatten().collect();
            let trace = &CALLER[3..35];
            assert!(all.iter().all(|span| hex(&span.trace_id) == trace), "{all:?}");
            let ids: HashSet<&[u8]> = all.iter().map(|span| span.span_id.as_slice()).collect();
            assert_eq!(ids.len(), all.len(), "every span has an id of its own");
            let loose: Vec<_> = all.iter().filter(|span| !ids.contains(span.parent_span_id.as_slice())).collect();
            assert_eq!(
                loose.iter().map(|span| &span.name).collect::<Vec<_>>(),
                ["submit diamond"],
                "the rest hangs together"
            );
            assert_eq!(hex(&loose[0].parent_span_id), &CALLER[36..52]);
            assert!(
                all.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano),
                "{all:?}"
            );

            let one = |name: &str| {
                let [span] = spans[name].as_slice() else {
                    panic!("{name}: {:?}", spans[name])
                };
                span
            };
            let below = |name: &str, parent: &str| assert_eq!(one(name).parent_span_id, one(parent).span_id, "{name} is below {parent}");
            below("claim diamond", "submit diamond");
            below("enqueue diamond", "claim diamond");
            below("process diamond.first", "enqueue diamond");
            below("complete diamond.first", "process diamond.first");
            below("process diamond.left", "complete diamond.first");
            below("process diamond.last", "complete diamond.left");
            below("handle Follow", "process diamond.last");
            below("submit after", "handle Follow");
            below("process after.only", "enqueue after");

            let linked: Vec<_> = one("process diamond.last").links.iter().map(|link| &link.span_id).collect();
            assert_eq!(linked, [&one("complete diamond.right").span_id]);
            let [failed, retried] = spans["process diamond.right"].as_slice() else {
                panic!("two attempts")
            };
            assert_eq!(one("fail diamond.right").parent_span_id, failed.span_id);
            assert!(format!("{:?}", failed.status).contains("RuntimeError"));
            assert!(retried
                .links
                .iter()
                .map(|link| &link.span_id)
                .eq([&one("fail diamond.right").span_id]));
            // What the handler of the first step saw as its own place.
            let seen = &world.task(task).await["steps"][0]["result"];
            let handled = spans["handle Work"]
                .iter()
                .find(|span| span.parent_span_id == one("process diamond.first").span_id);
            assert_eq!(
                *seen,
                json!({ "traceparent": format!("00-{trace}-{}-01", hex(&handled.unwrap().span_id)) })
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sampling_of_the_caller_is_respected_and_without_a_caller_the_sampler_decides() {
    World::with(async |world| {
        world.register(AFTER).await;
        let mut collector = Collector::grpc().await;
        let shop = exporting("shop", &format!("http://{}", collector.address), "grpc");
        let serve = exporting("orchestrator", &format!("http://{}", collector.address), "grpc");
        let _serve = Serve::start(&world.url, &[], &borrowed(&serve, &[]));
        let unsampled = CALLER.replace("-01", "-00");
        let never = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
        for (environment, sampled) in [
            (borrowed(&shop, &[("TRACEPARENT", &unsampled)]), false),
            (borrowed(&shop, &never), false),
            (borrowed(&shop, &[never[0], ("TRACEPARENT", CALLER)]), true),
            (borrowed(&shop, &[]), true),
        ] {
            let task = create(&world.url, "after", &environment);
            world.until_running(task).await;
            let trace = world
                .text(&format!("SELECT trace ->> 'traceparent' FROM tasker.tasks WHERE id = '{task}'"))
                .await;
            assert_eq!(trace.ends_with("-01"), sampled, "{trace}");
            if sampled {
                let (spans, _) = spans_until(&mut collector, &["submit after", "enqueue after"]).await;
                let ids: Vec<_> = spans.values().flatten().map(|span| hex(&span.trace_id)).collect();
                assert_eq!(ids, vec![trace[3..35].to_owned(); 3], "nothing comes of what is not sampled");
            }
        }
        // Without a collector there are no traces but those of callers.
        let task = create(&world.url, "after", &[]);
        assert_eq!(
            world
                .count(&format!("SELECT count(trace) FROM tasker.tasks WHERE id = '{task}'"))
                .await,
            0
        );
        let task = create(&world.url, "after", &[("TRACEPARENT", CALLER)]);
        let trace = world
            .text(&format!("SELECT trace ->> 'traceparent' FROM tasker.tasks WHERE id = '{task}'"))
            .await;
        assert_eq!(trace, CALLER);
    })
    .await;
}

#[tokio::test]
async fn a_trace_that_is_none_is_refused() {
    World::with(async |world| {
        world.register(AFTER).await;
        let long = format!("{{\"tracestate\": \"{}\"}}", "x".repeat(1024));
        for bad in [
            "1",
            "[]",
            "\"00-1\"",
            "{\"traceparent\": 1}",
            "{\"traceparent\": null}",
            "{\"a\": {}}",
            &long,
        ] {
            let create = "SELECT tasker.create_task('after', '{}', p_trace => $1)";
            let error = sqlx::query(create)
                .bind(bad.parse::<serde_json::Value>().unwrap())
                .execute(&world.pool)
                .await;
            assert!(
                error.unwrap_err().to_string().contains("trace 1 is not a small object of strings"),
                "{bad}"
            );
        }
        // One of strings that says nothing is part of no trace, and hurts nobody.
        world
            .text("SELECT tasker.create_task('after', '{}', p_trace => '{\"traceparent\": \"nonsense-1\"}')::text")
            .await;
        world.claim().await;
        assert_eq!(world.lease("traced_queue", 10).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_replay_is_linked_to_the_attempt_that_it_replays() {
    World::with(async |world| {
        world.register(AFTER).await;
        let create = format!("SELECT tasker.create_task('after', '{{}}', p_trace => '{{\"traceparent\": \"{CALLER}\"}}')::text");
        world.text(&create).await;
        world.claim().await;
        let failed = world.lease("traced_queue", 1).await.remove(0);
        world.fail(&failed, "for good", true, None).await;
        world.replay_all("traced").await;
        assert_eq!(world.enqueue_due_retries().await, 1);
        let trace = world
            .text("SELECT trace::text FROM tasker.lease_steps('traced_queue', 7, 1, '1 hour')")
            .await;
        let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
        let context = json!({ "traceparent": CALLER });
        assert_eq!(trace, json!({ "context": context, "parents": null, "previous": failed.msg_id }));
    })
    .await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
