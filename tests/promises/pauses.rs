//! Pauses: of a task, a template, a namespace or a handler. What runs ends, and nothing new begins.

use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::dead_letters::By;
use tasker::engine::pauses::{list, pause, resume, Pausable};
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step};
use tasker::Error;
use uuid::Uuid;

use super::command_line::tasker;
use super::world::World;

const ORDER: &str = "
name: order
namespace: here
steps:
  - { name: reserve, handler: Reserve, retry: { max_attempts: 3, base: 1ms } }
  - { name: charge, handler: Charge, depends_on: [reserve] }
";

async fn paused(world: &World, what: Pausable, name: &str) {
    let by = By {
        who: "ann".into(),
        why: Some("the bank is down".into()),
    };
    assert!(pause(&world.db, what, name, &by).await.unwrap());
    assert!(!pause(&world.db, what, name, &by).await.unwrap(), "it is already");
}

async fn resumed(world: &World, what: Pausable, name: &str) {
    assert!(resume(&world.db, what, name).await.unwrap());
    assert!(!resume(&world.db, what, name).await.unwrap());
    world.enqueue_due_retries().await;
    assert_eq!(world.count("SELECT count(*) FROM tasker.pauses").await, 0);
}

fn step<'a>(task: &'a Value, name: &str) -> &'a Value {
    task["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap()
}

fn text_of(output: &Output) -> (i32, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Leases and completes whatever there is, until there is nothing.
async fn work(world: &World) -> usize {
    let mut done = 0;
    loop {
        world.claim().await;
        world.enqueue_due_retries().await;
        let leased = world.lease("here_queue", 20).await;
        if leased.is_empty() {
            return done;
        }
        done += leased.len();
        world.complete(&leased, "{}").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_task_that_is_paused_what_runs_ends_and_what_comes_next_waits_until_it_is_resumed() {
    World::with(async |world| {
        world.register(ORDER).await;
        let (task, other) = (world.submit("order", json!({})).await, world.submit("order", json!({})).await);
        world.claim().await;
        let running = world.lease("here_queue", 1).await;
        assert_eq!(running[0].task_id, task);
        paused(world, Pausable::Task, &task.to_string()).await;
        assert_eq!(world.complete(&running, "{}").await.len(), 1);
        assert_eq!(work(world).await, 2, "the other goes on");
        assert_eq!(world.task(other).await["state"], "complete");
        let seen = world.task(task).await;
        assert_eq!(
            (&seen["state"], &seen["pause"]["who"], &seen["pause"]["why"]),
            (&json!("paused"), &json!("ann"), &json!("the bank is down"))
        );
        assert_eq!(step(&seen, "reserve")["state"], "complete", "what ran counts");
        assert_eq!(step(&seen, "charge")["waits_for"], format!("task {task} to be resumed"));
        assert_eq!(world.reconcile().await, 0);
        resumed(world, Pausable::Task, &task.to_string()).await;
        assert_eq!(work(world).await, 1);
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_in_the_queue_or_for_its_retry_does_not_begin_either() {
    World::with(async |world| {
        world.register(ORDER).await;
        let (queued, failing) = (world.submit("order", json!({})).await, world.submit("order", json!({})).await);
        world.claim().await;
        let mut leased = world.lease("here_queue", 2).await;
        world.expire(&leased[0]).await;
        let held = leased.remove(1);
        assert_eq!(held.task_id, failing);
        paused(world, Pausable::Template, "order").await;
        assert!(world.fail(&held, "no", false, Some(0.0)).await);
        assert_eq!(work(world).await, 0);
        let later = world.submit("order", json!({})).await;
        assert_eq!(work(world).await, 0, "nor does a task that comes later");
        for task in [queued, failing, later] {
            assert_eq!(world.task(task).await["state"], "paused");
        }
        assert_eq!(step(&world.task(failing).await, "reserve")["attempt"], 1);
        resumed(world, Pausable::Template, "here/order").await;
        assert_eq!(work(world).await, 6);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_paused_keeps_its_tasks_in_their_order_and_hands_out_nothing() {
    World::with(async |world| {
        world.register(ORDER).await;
        let tasks = [world.submit("order", json!({})).await, world.submit("order", json!({})).await];
        world.claim().await;
        let running = world.lease("here_queue", 1).await;
        paused(world, Pausable::Namespace, "here").await;
        assert_eq!(world.complete(&running, "{}").await.len(), 1);
        let later = world.submit("order", json!({})).await;
        assert_eq!(work(world).await, 0);
        assert_eq!(world.task(later).await["state"], "paused");
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.tasks WHERE claim_order IS NOT NULL").await,
            1,
            "it is not claimed"
        );
        assert_eq!(
            step(&world.task(tasks[1]).await, "reserve")["waits_for"],
            "namespace here to be resumed"
        );
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.paused_steps").await,
            0,
            "they wait in the queue"
        );
        resumed(world, Pausable::Namespace, "here").await;
        assert_eq!(work(world).await, 5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_paused_lets_the_other_steps_run_and_gives_back_its_permits() {
    World::with(async |world| {
        world.register(ORDER).await;
        let one = json!({ "limits": { "one": { "handler": "Charge", "concurrency": 1 } } });
        world.set_rules("here", one).await.unwrap();
        paused(world, Pausable::Handler, "here/Charge").await;
        let tasks = [world.submit("order", json!({})).await, world.submit("order", json!({})).await];
        assert_eq!(work(world).await, 2, "both are reserved");
        let seen = world.task(tasks[0]).await;
        assert_eq!(
            (&seen["state"], &step(&seen, "charge")["waits_for"]),
            (&json!("waiting"), &json!("handler here/Charge to be resumed"))
        );
        assert_eq!(list(&world.db).await.unwrap()[0]["held"], 2);
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits").await, 0);
        assert_eq!(cancel_tasks(&world.db, &tasks[..1]).await.unwrap(), tasks[..1]);
        resumed(world, Pausable::Handler, "here/Charge").await;
        let charging = world.granted("here_queue").await;
        assert_eq!((charging.len(), charging[0].task_id), (1, tasks[1]));
        world.complete(&charging, "{}").await;
        assert_eq!(world.task(tasks[0]).await["state"], "cancelled");
        assert_eq!(world.task(tasks[1]).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_concerns_children_too_and_two_pauses_want_to_be_resumed_twice() {
    World::with(async |world| {
        world
            .register("name: market\nnamespace: here\nsteps: [{ name: lines, each: { over: $.input.lines, handler: Reserve } }]")
            .await;
        let task = world.submit("market", json!({ "lines": [1, 2, 3] })).await;
        paused(world, Pausable::Task, &task.to_string()).await;
        paused(world, Pausable::Handler, "here/Reserve").await;
        world.claim().await;
        world.move_children(100).await;
        assert_eq!(work(world).await, 0);
        assert_eq!(world.children("tasker.visible_state(t) = 'paused'").await, 3);
        assert!(resume(&world.db, Pausable::Task, &task.to_string()).await.unwrap());
        assert_eq!(work(world).await, 0, "the handler is paused");
        assert_eq!(list(&world.db).await.unwrap()[0]["held"], 3);
        resumed(world, Pausable::Handler, "here/Reserve").await;
        assert_eq!(work(world).await, 3);
        world.move_children(100).await;
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_that_come_and_go_while_workers_work_lose_nothing() {
    World::with(async |world| {
        world.register(ORDER).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let handler = |_: Arc<Step>| async { Ok(Value::Null) };
        let worker = world
            .worker(Handlers::default().with("Reserve", handler).with("Charge", handler))
            .await;
        let mut tasks: Vec<Uuid> = Vec::new();
        for round in 0..12 {
            for _ in 0..25 {
                tasks.push(world.submit("order", json!({})).await);
            }
            let (kind, name) = match round % 4 {
                0 => (Pausable::Template, "here/order".to_owned()),
                1 => (Pausable::Handler, "here/Charge".to_owned()),
                2 => (Pausable::Namespace, "here".to_owned()),
                _ => (Pausable::Task, tasks[tasks.len() - 1].to_string()),
            };
            paused(world, kind, &name).await;
            tasks.push(world.submit("order", json!({})).await);
            assert!(resume(&world.db, kind, &name).await.unwrap());
        }
        for task in &tasks {
            let state = wait_for_end(&world.db, *task, Some(Duration::from_secs(60))).await.unwrap();
            assert_eq!(state, "complete");
        }
        world.until_true("NOT EXISTS (SELECT FROM tasker.pauses)").await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.paused_steps").await, 0);
        worker.shutdown(Duration::from_secs(10)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_with_no_step_that_is_paused_though_it_was_its_own_that_made_it_ready() {
    World::with(async |world| {
        world.register(ORDER).await;
        let charged = Arc::new(AtomicUsize::new(0));
        let count = charged.clone();
        let handlers = Handlers::default()
            .with("Reserve", |_: Arc<Step>| async { Ok(Value::Null) })
            .with("Charge", move |_: Arc<Step>| {
                count.fetch_add(1, Ordering::SeqCst);
                async { Ok(Value::Null) }
            });
        let worker = world.worker(handlers).await;
        for (what, name) in [
            (Pausable::Handler, "here/Charge"),
            (Pausable::Template, "here/order"),
            (Pausable::Namespace, "here"),
        ] {
            world
                .until_true("NOT EXISTS (SELECT FROM tasker.tasks WHERE finished_at IS NULL)")
                .await;
            let before = charged.load(Ordering::SeqCst);
            paused(world, what, name).await;
            let task = world.submit("order", json!({})).await;
            if what == Pausable::Handler {
                world.until_true("EXISTS (SELECT FROM tasker.paused_steps WHERE step = 1)").await;
            } else if what == Pausable::Template {
                world.until_true("EXISTS (SELECT FROM tasker.paused_steps WHERE step = 0)").await;
            }
            assert_eq!(world.task(task).await["finished_at"], Value::Null);
            assert_eq!(charged.load(Ordering::SeqCst), before, "{name}");
            resumed(world, what, name).await;
            world.enqueue_due_retries().await;
        }
        world
            .until_true("NOT EXISTS (SELECT FROM tasker.tasks WHERE finished_at IS NULL)")
            .await;
        assert_eq!(charged.load(Ordering::SeqCst), 3);
        worker.shutdown(Duration::from_secs(10)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_paused_says_so_and_operators_do_it_from_the_command_line() {
    World::with(async |world| {
        world.register(ORDER).await;
        let by = By {
            who: "ann".into(),
            why: None,
        };
        for (what, name) in [
            (Pausable::Task, "x"),
            (Pausable::Task, "------------------------------------"),
            (Pausable::Task, "00000000-0000-7000-8000-000000000000"),
            (Pausable::Template, "nothing"),
            (Pausable::Namespace, "nowhere"),
            (Pausable::Handler, "Charge"),
            (Pausable::Handler, "here/Nobody"),
        ] {
            let refused = pause(&world.db, what, name, &by).await;
            assert!(matches!(refused, Err(Error::NotFound(_))), "{what:?} {name}: {refused:?}");
        }
        let run = |arguments: &[&str]| text_of(&tasker(&world.url, arguments));
        assert_eq!(
            run(&["pause", "namespace", "here", "--who", "ann", "--why", "audit"]),
            (0, "here: paused".into())
        );
        let (_, listed) = run(&["pauses"]);
        assert!(
            listed.contains("namespace") && listed.contains("ann") && listed.contains("audit"),
            "{listed}"
        );
        let task = world.submit("order", json!({})).await;
        let (_, shown) = run(&["task", "show", &task.to_string()]);
        assert!(
            shown.contains("pause       namespace here, by ann at") && shown.contains("audit"),
            "{shown}"
        );
        assert_eq!(run(&["resume", "namespace", "here"]), (0, "here: goes on".into()));
        assert_eq!(run(&["resume", "namespace", "here"]), (0, "here: was not paused".into()));
        assert_eq!(run(&["pause", "handler", "Charge"]).0, 4);
        assert_eq!(run(&["pause", "hander", "here/Charge"]).0, 2);
    })
    .await;
}
