//! Conditions: a step runs where its condition is true; what is skipped takes along what depends on nothing else.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::template::condition::holds;
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::Template;

use super::world::World;

/// `large` and what follows it only above a total of 1000; `ship` in any case.
const ORDER: &str = r#"
name: order
namespace: here
steps:
  - { name: check, handler: h }
  - { name: large, handler: h, depends_on: [check], if: "$.results.check.total > 1000" }
  - { name: approve, handler: h, depends_on: [large] }
  - { name: gift, handler: h, if: "$.input.gift == true" }
  - { name: ship, handler: h, depends_on: [check, approve, gift] }
"#;

/// What became of each step, and why where it was skipped.
async fn steps(world: &World, task: uuid::Uuid) -> Vec<(String, Option<String>)> {
    let task = world.task(task).await;
    let steps = task["steps"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    steps
        .map(|step| (text(&step["state"]).unwrap(), text(&step["skipped_because"])))
        .collect()
}

fn ran() -> (String, Option<String>) {
    ("complete".into(), None)
}

fn skipped(why: &str) -> (String, Option<String>) {
    ("skipped".into(), Some(why.into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_takes_along_what_depends_on_nothing_else() {
    World::with(async |world| {
        world.register(ORDER).await;
        for (total, gift, expected) in [
            (2000, true, [ran(), ran(), ran(), ran(), ran()]),
            (
                10,
                false,
                [
                    ran(),
                    skipped(r#"($."results"."check"."total" > 1000) is not true"#),
                    skipped("no step before it ran"),
                    skipped(r#"($."input"."gift" == true) is not true"#),
                    ran(),
                ],
            ),
        ] {
            let task = world.submit("order", json!({ "gift": gift })).await;
            world.claim().await;
            let mut last = String::new();
            loop {
                let leased = world.lease("here_queue", 1).await;
                let Some(step) = leased.first() else { break };
                last = step.results.clone();
                assert_eq!(world.complete(&leased, &json!({ "total": total }).to_string()).await.len(), 1);
            }
            assert_eq!(world.task(task).await["state"], "complete");
            assert_eq!(steps(world, task).await, expected);
            let seen: Value = serde_json::from_str(&last).unwrap();
            let names: Vec<&str> = seen.as_object().unwrap().keys().map(String::as_str).collect();
            match gift {
                true => assert_eq!(names, ["approve", "check", "gift"]),
                false => assert_eq!(names, ["check"], "what was skipped has no result"),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_all_of_whose_steps_are_skipped_is_complete() {
    World::with(async |world| {
        let chain: String = (1..300)
            .map(|n| format!("  - {{ name: s{n}, handler: h, depends_on: [s{}] }}\n", n - 1))
            .collect();
        let root = r#"  - { name: s0, handler: h, if: "$.input.go" }"#;
        world
            .register(&format!("name: never\nnamespace: here\nsteps:\n{root}\n{chain}"))
            .await;
        let task = world.submit("never", json!({})).await;
        world.claim().await;
        assert_eq!(world.task(task).await["state"], "complete");
        assert!(steps(world, task).await.iter().all(|(state, _)| state == "skipped"));
        assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_under_many_workers_each_end_once() {
    World::with(async |world| {
        world.register(ORDER).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let mut workers = Vec::new();
        for _ in 0..4 {
            let config = WorkerConfig {
                namespaces: vec!["here".into()],
                concurrency: 4,
                ..WorkerConfig::default()
            };
            let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
            worker.handle_with(Handlers::default().with("h", |step: Arc<Step>| async move {
                let input: Value = serde_json::from_str(&step.input().await?).unwrap_or_default();
                Ok(json!({ "total": input["total"] }))
            }));
            workers.push(worker);
        }
        let mut tasks = Vec::new();
        for n in 0..200 {
            let input = json!({ "total": if n % 2 == 0 { 1001 } else { 1000 }, "gift": n % 3 == 0 });
            tasks.push((n, world.submit("order", input).await));
        }
        for (n, task) in tasks {
            assert_eq!(
                wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
            let states: Vec<bool> = world.step_states(task).await.iter().map(|state| state == "complete").collect();
            assert_eq!(states, [true, n % 2 == 0, n % 2 == 0, n % 3 == 0, true]);
        }
        for worker in workers {
            worker.shutdown(Duration::from_secs(5)).await;
        }
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_and_the_library_decide_alike() {
    World::with(async |world| {
        let of = json!({ "input": { "n": 1e3, "name": "Ann", "list": [1, 2, 3], "ok": true, "no": null },
                         "results": { "a": { "total": 1000.0, "lines": [{ "sku": "x", "qty": 2 }, { "sku": "y" }] } } });
        let conditions = [
            "$.input.n == 1000",
            "$.results.a.total > 999.99",
            "$.results.a.total > 1000",
            "$.input.ok",
            "$.input.missing",
            "$.input.missing == null",
            "$.input.no == null",
            "!($.input.missing == 1)",
            "($.input.missing > 1) is unknown",
            "exists($.results.a.lines[*] ? (@.qty > 1))",
            "exists($.results.a.lines[*] ? (@.qty > 2))",
            "$.results.a.lines[*].qty > 1",
            "$.input.list[last] == 3",
            "$.input.list.size() == 3",
            "$.input.list[*] > 2",
            "$.input.name starts with \"A\"",
            "$.input.name like_regex \"^a\" flag \"i\"",
            "$.input.name > 1",
            "$.input.n / 0 > 1",
            "$.input.n.type() == \"number\" && $.input.ok == true",
            "$.input.name == \"Bob\" || $.input.list[0] == 1",
            "strict $.input.missing == 1",
            "true",
            "1",
            "$",
        ];
        for condition in conditions {
            let sql = "SELECT coalesce(jsonb_path_match($1, $2::text::jsonpath, '{}', true), false)";
            let theirs: Result<bool, _> = sqlx::query_scalar(sql).bind(&of).bind(condition).fetch_one(&world.pool).await;
            assert_eq!(
                holds(condition, &of),
                theirs.unwrap_or_else(|error| panic!("{condition}: {error}")),
                "{condition}"
            );
        }
    })
    .await;
}

#[test]
fn a_wrong_condition_is_told_with_its_line() {
    let problem = |condition: &str| {
        let yaml = format!(
            "name: t\nnamespace: n\nsteps:\n  - {{ name: a, handler: H }}\n  - {{ name: other, handler: H }}\n  - {{ name: b, handler: H, depends_on: [a], if: '{condition}' }}\n"
        );
        Template::parse(&yaml, "t.yml").expect_err("it is not valid").to_string()
    };
    let said = problem("$.results.a >");
    assert!(
        said.starts_with("t.yml:6: step \"b\": if \"$.results.a >\" is no SQL/JSON path: at position"),
        "{said}"
    );
    assert_eq!(
        problem("$.results.other.x == 1 && $.results.a.y == 1"),
        "t.yml:6: step \"b\": if \"$.results.other.x == 1 && $.results.a.y == 1\" asks for the result of other, and the step depends on a alone"
    );
}
