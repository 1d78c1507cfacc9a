//! Work that is not listed first: a handler says page by page what there is to do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::children::{read_children, Page};
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step};

use super::world::World;

const IMPORT: &str = "
name: import
namespace: here
steps:
  - { name: start, handler: start }
  - { name: rows, each: { pages: list, handler: row, input: { row: $item, n: $index, file: $.input.file }, OPTIONS }, depends_on: [start], retry: { base: 0.01, max_attempts: 2 } }
  - { name: end, handler: end, depends_on: [rows] }
";

fn import(options: &str) -> String {
    IMPORT.replace(", OPTIONS", options)
}

fn context(step: &Step) -> Value {
    serde_json::from_str(step.leased.input.as_deref().expect("it is small")).expect("JSON")
}

/// Pages of three rows each, of ten.
fn page(context: &Value) -> Value {
    let from = context["cursor"].as_i64().unwrap_or_default();
    let to = (from + 3).min(10);
    json!({ "items": (from..to).collect::<Vec<_>>(), "next": (to < 10).then_some(to) })
}

async fn orchestrator(world: &World) -> Orchestrator {
    Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_called_page_by_page_and_each_of_its_elements_is_a_task() {
    for (options, tasks) in [("", 10), (", limit: 2", 10), (", batch: 2", 7)] {
        World::with(async |world| {
            world.register(&import(options)).await;
            let orchestrator = orchestrator(world).await;
            let pages = Arc::new(Mutex::new(Vec::new()));
            let (asked, running, most) = (pages.clone(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (count, peak) = (running.clone(), most.clone());
            let handlers = Handlers::default()
                .with("start", |_| async { Ok(json!({ "from": "here" })) })
                .with("list", move |step: Arc<Step>| {
                    let context = context(&step);
                    asked.lock().unwrap().push(context.clone());
                    async move { Ok(page(&context)) }
                })
                .with("row", move |step: Arc<Step>| {
                    let (running, most) = (count.clone(), peak.clone());
                    async move {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        running.fetch_sub(1, Ordering::SeqCst);
                        Ok(context(&step))
                    }
                })
                .with("end", |_| async { Ok(json!(null)) });
            let worker = world.worker(handlers).await;
            let task = world.submit("import", json!({ "file": "a.csv" })).await;
            assert_eq!(
                wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
            assert_eq!(
                world.task(task).await["steps"][1]["result"],
                json!({ "size": tasks, "errors": 0 }),
                "{options}"
            );
            let pages = pages.lock().unwrap().clone();
            let cursors: Vec<&Value> = pages.iter().map(|context| &context["cursor"]).collect();
            assert_eq!(cursors, [&json!(null), &json!(3), &json!(6), &json!(9)]);
            assert_eq!(
                (&pages[0]["input"]["file"], &pages[0]["results"]["start"]["from"]),
                (&json!("a.csv"), &json!("here"))
            );
            if options == ", limit: 2" {
                assert!(most.load(Ordering::SeqCst) <= 2);
            }
            let all = Page {
                limit: 100,
                ..Page::default()
            };
            let children = read_children(&world.db, task, None, "rows", &all).await.unwrap();
            let rows: Vec<Value> = children
                .iter()
                .map(|child| serde_json::from_str::<Value>(child.result.as_ref().unwrap().get()).unwrap())
                .collect();
            let numbers: Vec<i64> = rows.iter().map(|row| row["n"].as_i64().unwrap()).collect();
            assert_eq!(numbers, (0..tasks).collect::<Vec<_>>());
            if options != ", batch: 2" {
                assert!(rows.iter().all(|row| row["row"] == row["n"] && row["file"] == "a.csv"));
            }
            worker.shutdown(Duration::from_secs(5)).await;
            orchestrator.shutdown().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_be_read_blocks_its_task_and_goes_on_when_it_is_replayed() {
    World::with(async |world| {
        world.register(&import(", tolerate: 5")).await;
        let orchestrator = orchestrator(world).await;
        let is_down = Arc::new(AtomicUsize::new(1));
        let down = is_down.clone();
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let rows = seen.clone();
        let handlers = Handlers::default()
            .with("start", |_| async { Ok(json!(null)) })
            .with("list", move |step: Arc<Step>| {
                let (context, down) = (context(&step), down.load(Ordering::SeqCst));
                async move {
                    match context["cursor"] == 6 && down == 1 {
                        true => Err(Failure::retryable("Down", "the API is down")),
                        false => Ok(page(&context)),
                    }
                }
            })
            .with("row", move |step: Arc<Step>| {
                let row = context(&step)["row"].as_i64().unwrap();
                *rows.lock().unwrap().entry(row).or_insert(0) += 1;
                async move { Ok(json!(row)) }
            })
            .with("end", |_| async { Ok(json!(null)) });
        let worker = world.worker(handlers).await;
        let task = world.submit("import", json!({ "file": "a.csv" })).await;
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "blocked"
        );
        let why = world.task(task).await["steps"][1]["waits_for"].as_str().unwrap().to_owned();
        assert_eq!(why, "page 3 of what is to be done, or its tasks, of which some are dead");
        let dead = Page {
            limit: 10,
            dead: true,
            ..Page::default()
        };
        let dead = read_children(&world.db, task, None, "rows", &dead).await.unwrap();
        assert_eq!((dead[0].item, &dead[0].error.as_ref().unwrap()["class"]), (-3, &json!("Down")));
        is_down.store(0, Ordering::SeqCst);
        world.replay_all("here").await;
        world
            .until_true(&format!(
                "EXISTS (SELECT FROM tasker.tasks WHERE id = '{task}' AND state = 'complete')"
            ))
            .await;
        assert_eq!(*seen.lock().unwrap(), (0..10).map(|row| (row, 1)).collect());
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_page_is_a_dead_letter_that_says_so_and_none_at_all_is_complete() {
    World::with(async |world| {
        world.register(&import("")).await;
        let orchestrator = orchestrator(world).await;
        let handlers = Handlers::default()
            .with("start", |_| async { Ok(json!(null)) })
            .with("list", |step: Arc<Step>| {
                let empty = context(&step)["input"]["empty"] == true;
                async move { Ok(if empty { json!({ "items": [] }) } else { json!([1, 2]) }) }
            })
            .with("row", |_| async { Ok(json!(null)) })
            .with("end", |_| async { Ok(json!(null)) });
        let worker = world.worker(handlers).await;
        let wrong = world.submit("import", json!({})).await;
        let empty = world.submit("import", json!({ "empty": true })).await;
        assert_eq!(
            wait_for_end(&world.db, wrong, Some(Duration::from_secs(60))).await.unwrap(),
            "blocked"
        );
        let error = &world.task(wrong).await["steps"][1]["errors"][0]["message"];
        assert_eq!(error, "page 1 is no { items: [ … ], next: … }");
        assert_eq!(
            wait_for_end(&world.db, empty, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        assert_eq!(world.task(empty).await["steps"][1]["result"], json!({ "size": 0, "errors": 0 }));
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_may_be_dead_is_one_of_all_pages_and_not_of_the_first() {
    for (share, state) in [("20%", "complete"), ("19%", "blocked")] {
        World::with(async |world| {
            let template = "name: import\nnamespace: here\nsteps: [{ name: rows, each: { pages: list, handler: row, tolerate: SHARE } }]";
            world.register(&template.replace("SHARE", share)).await;
            let task = world.submit("import", json!({})).await;
            let mut pages = [
                r#"{"items": [1, 2, 3], "next": 3}"#,
                r#"{"items": [4, 5, 6, 7, 8, 9, 10], "next": null}"#,
            ]
            .into_iter();
            let mut dead = 0;
            loop {
                world.claim().await;
                let leased = world.lease("here_queue", 20).await;
                if leased.is_empty() && world.move_children(100).await == (0, 0) {
                    break;
                }
                for step in leased {
                    let is_page = format!("SELECT (item < 0)::int::bigint FROM tasker.tasks WHERE id = '{}'", step.task_id);
                    if world.count(&is_page).await == 1 {
                        world.complete(&[step], pages.next().unwrap()).await;
                    } else if dead < 2 {
                        dead += 1;
                        world.fail(&step, "no", true, None).await;
                        world.move_children(100).await;
                        assert_eq!(
                            world.task(task).await["state"],
                            "running",
                            "{dead} of three are dead, and there are more to come"
                        );
                    } else {
                        world.complete(&[step], "{}").await;
                    }
                }
            }
            assert_eq!(world.task(task).await["state"], state, "{share}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_cancelled_takes_its_page_along() {
    World::with(async |world| {
        world
            .register(
                &import("")
                    .replace("handler: start", "sleep: 1ms")
                    .replace("retry: {", "retry: { jitter: 0,"),
            )
            .await;
        let orchestrator = orchestrator(world).await;
        let task = world.submit("import", json!({})).await;
        world
            .until_true("EXISTS (SELECT FROM tasker.tasks WHERE item = -1 AND state = 'running')")
            .await;
        cancel_tasks(&world.db, &[task]).await.unwrap();
        assert_eq!(
            wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
            "cancelled"
        );
        assert_eq!(world.children("item = -1 AND state = 'cancelled'").await, 1);
        orchestrator.shutdown().await;
    })
    .await;
}
