//! Children: steps whose work is other tasks, as many as a list has elements that is known only at run time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::children::Page;
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::template::children::inputs;
use tasker::worker::{Handlers, Step, Worker};
use tasker::Template;
use uuid::Uuid;

use super::world::World;

/// Its lines are reserved each by itself, then it is shipped.
const ORDER: &str = "
name: order
namespace: here
steps:
  - { name: validate, handler: validate }
  - { name: reserve, each: { over: $.results.validate.lines, handler: reserve }, depends_on: [validate], retry: { max_attempts: 1 } }
  - { name: ship, handler: ship, depends_on: [reserve] }
";

/// Handlers for [`ORDER`]: a line is its number, reserved as its square; ship returns all of them, in order, null for one that is dead.
fn handlers(reserve: impl Fn(i64) -> Result<Value, Failure> + Clone + Send + Sync + 'static) -> Handlers {
    Handlers::default()
        .with("validate", |step: Arc<Step>| async move {
            let input: Value = serde_json::from_str(&step.input().await?).unwrap();
            Ok(match input["lines"].as_i64() {
                Some(lines) => json!({ "lines": (0..lines).collect::<Vec<_>>() }),
                None => json!({ "lines": input["lines"] }),
            })
        })
        .with("reserve", move |step: Arc<Step>| {
            let reserve = reserve.clone();
            async move {
                let input: Value = serde_json::from_str(&step.input().await?).unwrap();
                reserve(input["item"].as_i64().unwrap())
            }
        })
        .with("ship", |step: Arc<Step>| async move {
            let names = step.leased.fan_outs.clone().unwrap_or_default();
            let mut page = Page {
                limit: 7,
                ..Page::default()
            };
            let mut all = Vec::new();
            loop {
                let children = step.children(&names[0], &page).await?;
                let Some(last) = children.last() else { return Ok(json!(all)) };
                page.after = Some(last.item);
                all.extend(children.iter().map(|child| json!(child.result)));
            }
        })
}

fn squared(line: i64) -> Result<Value, Failure> {
    Ok(json!(line * line))
}

/// A worker and an orchestrator, until the test is through.
pub(super) struct Crew(Arc<Worker>, Orchestrator);

impl Crew {
    pub(super) async fn start(world: &World, handlers: Handlers) -> Crew {
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        Crew(world.worker(handlers).await, orchestrator)
    }

    pub(super) async fn end(self) {
        self.0.shutdown(Duration::from_secs(5)).await;
        self.1.shutdown().await;
    }
}

pub(super) async fn end_of(world: &World, task: Uuid) -> String {
    wait_for_end(&world.db, task, Some(Duration::from_secs(60)))
        .await
        .unwrap()
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_element_of_a_list_is_a_task_and_their_results_are_read_in_order() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = Crew::start(world, handlers(squared)).await;
        for lines in [0, 1, 100] {
            let task = world.submit("order", json!({ "lines": lines })).await;
            assert_eq!(end_of(world, task).await, "complete");
            let task = world.task(task).await;
            assert_eq!(task["steps"][1]["result"], json!({ "size": lines, "errors": 0 }));
            assert_eq!(
                task["steps"][2]["result"],
                json!((0..lines).map(|line| line * line).collect::<Vec<_>>())
            );
        }
        assert_eq!(world.children("state = 'complete'").await, 101);
        assert_eq!(world.count("SELECT count(*) FROM tasker.child_ends").await, 0);
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_list_is_a_dead_letter_that_says_so() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = Crew::start(world, handlers(squared)).await;
        let task = world.submit("order", json!({ "lines": "three" })).await;
        assert_eq!(end_of(world, task).await, "blocked");
        let letters = world.dead_letters("here").await;
        assert_eq!(letters.len(), 1);
        assert_eq!(
            (&letters[0]["reason"], &letters[0]["step"]),
            (&json!("not_a_list"), &json!("reserve"))
        );
        let said =
            "$.results.validate.lines finds a value of the type string: expected one array (or a path with [*], which finds its elements)";
        assert_eq!(letters[0]["errors"][0]["message"], said);
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_child_blocks_its_parent_visibly_and_its_replay_heals_it() {
    World::with(async |world| {
        world.register(ORDER).await;
        let broken = Arc::new(AtomicUsize::new(1));
        let fails = broken.clone();
        let crew = Crew::start(
            world,
            handlers(move |line| match line % 10 == 3 && fails.load(Ordering::Relaxed) == 1 {
                true => Err(Failure::permanent("OutOfStock", format!("no {line}"))),
                false => squared(line),
            }),
        )
        .await;
        let task = world.submit("order", json!({ "lines": 30 })).await;
        world
            .until_true("count(*) = 27 FROM tasker.tasks WHERE parent_id IS NOT NULL AND state = 'complete'")
            .await;
        assert_eq!(end_of(world, task).await, "blocked");
        world.until_true("dead = 3 AND ended = 27 FROM tasker.fan_outs").await;
        let seen = world.task(task).await;
        assert_eq!(seen["steps"][1]["waits_for"], "3 of 30 tasks, which are dead");
        assert_eq!(
            seen["steps"][1]["children"],
            json!({ "total": 30, "created": 30, "ended": 27, "dead": 3, "tolerated": 0 })
        );

        broken.store(0, Ordering::Relaxed);
        world.replay_all("here").await;
        world
            .until_true(&format!("state = 'complete' FROM tasker.tasks WHERE id = '{task}'"))
            .await;
        assert_eq!(world.task(task).await["steps"][2]["result"][13], 169);
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_children_may_be_dead_as_the_step_tolerates() {
    World::with(async |world| {
        world
            .register(&ORDER.replace("handler: reserve }", "handler: reserve, tolerate: 10% }"))
            .await;
        let crew = Crew::start(
            world,
            handlers(|line| match line % 10 == 3 {
                true => Err(Failure::permanent("OutOfStock", "none")),
                false => squared(line),
            }),
        )
        .await;
        let task = world.submit("order", json!({ "lines": 30 })).await;
        assert_eq!(end_of(world, task).await, "complete");
        let seen = world.task(task).await;
        assert_eq!(seen["steps"][1]["result"], json!({ "size": 30, "errors": 3 }));
        assert_eq!(
            (&seen["steps"][2]["result"][3], &seen["steps"][2]["result"][4]),
            (&json!(null), &json!(16))
        );
        assert_eq!(world.dead_letters("here").await.len(), 3, "their letters stay");
        let strict = world.submit("order", json!({ "lines": 4 })).await;
        assert_eq!(end_of(world, strict).await, "blocked", "a tenth of 4 is none");
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_children_are_under_way_than_the_step_allows() {
    World::with(async |world| {
        world
            .register(&ORDER.replace("handler: reserve }", "handler: reserve, limit: 3 }"))
            .await;
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (running, peak, down) = (now.clone(), most.clone(), Arc::new(AtomicBool::new(false)));
        let is_down = down.clone();
        let slow = Handlers::default().with("reserve", move |_| {
            let (running, peak, down) = (running.clone(), peak.clone(), is_down.clone());
            async move {
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(3)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                match down.load(Ordering::SeqCst) {
                    true => Err(Failure::permanent("Down", "nobody answers")),
                    false => Ok(json!(1)),
                }
            }
        });
        let only =
            "name: only\nnamespace: here\nsteps:\n  - { name: reserve, each: { over: '$.input.lines[*]', handler: reserve, limit: 3 } }\n";
        world.register(only).await;
        let crew = Crew::start(world, slow).await;
        let task = world.submit("only", json!({ "lines": vec![json!({}); 60] })).await;
        assert_eq!(end_of(world, task).await, "complete");
        assert_eq!(most.load(Ordering::SeqCst), 3);

        down.store(true, Ordering::SeqCst);
        let task = world.submit("only", json!({ "lines": vec![json!({}); 60] })).await;
        world
            .until_true(&format!(
                "EXISTS (SELECT FROM tasker.fan_outs WHERE task_id = '{task}' AND dead = 60)"
            ))
            .await;
        down.store(false, Ordering::SeqCst);
        world.replay_all("here").await;
        world
            .until_true(&format!("state = 'complete' FROM tasker.tasks WHERE id = '{task}'"))
            .await;
        assert_eq!(most.load(Ordering::SeqCst), 3, "those that are replayed wait for room, too");
        assert_eq!(world.count("SELECT count(*) FROM tasker.held_replays").await, 0);
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_child_that_waits_for_room_says_so_and_can_be_cancelled() {
    World::with(async |world| {
        let only = "name: only\nnamespace: here\nsteps:\n  - { name: all, each: { over: $.input.lines, handler: h, limit: 1 } }\n";
        world.register(only).await;
        let task = world.submit("only", json!({ "lines": [1, 2, 3] })).await;
        world.claim().await;
        for _ in 0..3 {
            world.move_children(10).await;
            world.claim().await;
            let leased = world.lease("here_queue", 10).await;
            assert_eq!(leased.len(), 1);
            world.fail(&leased[0], "no", true, None).await;
        }
        world.move_children(10).await;
        world.replay_all("here").await;
        world.move_children(10).await;
        let held = "SELECT task_id::text FROM tasker.held_replays ORDER BY n";
        assert_eq!(world.count("SELECT count(*) FROM tasker.held_replays").await, 2);
        let first: Uuid = world.text(held).await.parse().unwrap();
        let said = world.task(first).await["steps"][0]["waits_for"].clone();
        assert_eq!(said, "room: its parent has no more than so many tasks at once");
        cancel_tasks(&world.db, &[first]).await.unwrap();
        assert_eq!(world.count("SELECT count(*) FROM tasker.held_replays").await, 1);

        let mut ran = 0;
        while ran < 2 {
            world.move_children(10).await;
            world.enqueue_due_retries().await;
            let leased = world.lease("here_queue", 10).await;
            assert_eq!(leased.len(), 1);
            world.complete(&leased, "1").await;
            ran += leased.len();
        }
        world.move_children(10).await;
        let counts = json!({ "total": 3, "created": 3, "ended": 2, "dead": 1, "tolerated": 0 });
        assert_eq!(world.task(task).await["steps"][0]["children"], counts);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_that_end_together_complete_their_parent_once() {
    World::with(async |world| {
        world.register(ORDER).await;
        let shipped = Arc::new(AtomicUsize::new(0));
        let count = shipped.clone();
        let mut crews = Vec::new();
        for _ in 0..3 {
            let count = count.clone();
            let once = handlers(squared).with("ship", move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                async { Ok(json!(null)) }
            });
            crews.push(Crew::start(world, once).await);
        }
        let mut tasks = Vec::new();
        for n in 0..60 {
            tasks.push(world.submit("order", json!({ "lines": n % 7 })).await);
        }
        for task in tasks {
            assert_eq!(end_of(world, task).await, "complete");
        }
        assert_eq!(shipped.load(Ordering::Relaxed), 60);
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.fan_outs WHERE ended <> total OR created <> total")
                .await,
            0
        );
        for crew in crews {
            crew.end().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_have_their_parents_priority_deadline_and_trace() {
    World::with(async |world| {
        world
            .register("name: bare\nnamespace: here\ndeadline: 1h\nsteps:\n  - { name: all, each: { over: $.input.lines, handler: h } }\n")
            .await;
        let trace = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}"#;
        world
            .run(&format!(
                "SELECT tasker.create_task('bare', '{{\"lines\": [1]}}', 'urgent', p_trace => '{trace}')"
            ))
            .await;
        world.claim().await;
        world.move_children(10).await;
        let same = "EXISTS (SELECT FROM tasker.tasks p WHERE p.id = t.parent_id AND p.deadline_at = t.deadline_at AND p.trace = t.trace)";
        assert_eq!(world.children(&format!("priority = 4 AND look_at IS NOT NULL AND {same}")).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_and_the_library_give_children_the_same_inputs() {
    World::with(async |world| {
        let seen = json!({ "input": { "id": 7, "lines": [1, { "sku": "a" }, [2], null], "none": [] }, "results": { "up": { "rows": [{ "n": 1 }, { "n": 5 }] } } });
        for (n, each) in [
            "over: $.input.lines, handler: h",
            "over: $.input.none, handler: h",
            "over: $.input.lines, handler: h, batch: 2",
            "over: '$.\"input\".lines', handler: h",
            "over: $.results.up, handler: h",
            "over: '$.input.lines[*]', handler: h, batch: 3",
            "over: '$.results.up.rows[*] ? (@.n > 2)', handler: h",
            "over: $.results.up.rows, handler: h, input: { order: $.input.id, row: $item.n, at: $index, gone: $.input.gone }",
            "over: $.results.up.rows, handler: h, input: $item",
            "over: $.input.id, handler: h",
            "over: $.input.gone, handler: h",
            "over: $.input.lines, handler: h, input: $.input.id",
        ]
        .into_iter()
        .enumerate()
        {
            let yaml = format!(
                "name: t{n}\nnamespace: here\nsteps:\n  - {{ name: up, handler: up }}\n  - {{ name: all, each: {{ {each} }}, depends_on: [up] }}\n"
            );
            world.register(&yaml).await;
            let template = Template::parse(&yaml, "t.yml").unwrap();
            let task = world.submit(&format!("t{n}"), seen["input"].clone()).await;
            world.claim().await;
            let up: Vec<_> = world.lease("here_queue", 100).await.into_iter().filter(|step| step.name == "up").collect();
            world.complete(&up, &seen["results"]["up"].to_string()).await;
            while world.move_children(1).await.1 > 0 {}
            let made = format!("SELECT coalesce(jsonb_agg(input ORDER BY item), '[]')::text FROM tasker.tasks WHERE parent_id = '{task}'");
            let made: Value = serde_json::from_str(&world.text(&made).await).unwrap();
            match inputs(&template.steps[1].kind, &seen, None) {
                Ok(expected) => assert_eq!(made, json!(expected), "{each}"),
                Err(_) => assert_eq!((made, world.step_states(task).await[1].as_str()), (json!([]), "dead"), "{each}"),
            }
            world.run("UPDATE tasker.tasks SET claim_order = NULL; DELETE FROM pgmq.q_here_queue").await;
        }
    })
    .await;
}
