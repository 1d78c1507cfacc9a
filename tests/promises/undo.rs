//! Undo: what a task did is taken back, in the reverse order of its graph, when it is cancelled so, or fails and its template says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::{cancel_tasks, undo_tasks};
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step};
use tasker::Template;
use uuid::Uuid;

use super::world::World;

/// A trip: the flight and the hotel are booked side by side, paid, and a mail is sent, which nobody takes back.
const TRIP: &str = "
name: trip
namespace: here
on_failure: undo
steps:
  - { name: flight, handler: do, undo: undo }
  - { name: hotel, handler: do, undo: undo }
  - { name: check, handler: do, depends_on: [flight, hotel] }
  - { name: pay, handler: pay, undo: { handler: undo, retry: { max_attempts: 2, base: 1s } }, depends_on: [check], retry: { max_attempts: 1 } }
  - { name: mail, handler: mail, depends_on: [pay], retry: { max_attempts: 1 } }
";

/// What was done and undone, in order.
type Journal = Arc<Mutex<Vec<String>>>;

/// Handlers that write down what they do; `fails`: those steps whose handler does not.
fn handlers(journal: &Journal, fails: &'static [&'static str]) -> Handlers {
    let handler = |journal: &Journal| {
        let journal = journal.clone();
        move |step: Arc<Step>| {
            let journal = journal.clone();
            async move {
                if fails.contains(&step.leased.name.as_str()) {
                    return Err(Failure::permanent("Refused", "no"));
                }
                let before = step.names_before().await?;
                let saw: BTreeMap<String, Value> = step
                    .results(&before)
                    .await?
                    .into_iter()
                    .map(|(name, result)| (name, serde_json::from_str(&result).unwrap()))
                    .collect();
                journal.lock().unwrap().push(step.leased.name.clone());
                Ok(json!({ "did": step.leased.name, "saw": saw }))
            }
        }
    };
    ["do", "undo", "pay", "mail", "reserve", "release"]
        .into_iter()
        .fold(Handlers::default(), |handlers, name| handlers.with(name, handler(journal)))
}

/// A worker and an orchestrator, while `test` runs.
async fn running(world: &World, handlers: Handlers, test: impl AsyncFnOnce()) {
    let worker = world.worker(handlers).await;
    let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
    test().await;
    orchestrator.shutdown().await;
    worker.shutdown(Duration::from_secs(10)).await;
}

async fn ended(world: &World, task: Uuid) -> String {
    wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap()
}

fn step<'a>(task: &'a Value, name: &str) -> &'a Value {
    task["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_is_undone_from_its_end_to_its_beginning_and_has_failed_then() {
    World::with(async |world| {
        world.register(TRIP).await;
        let journal = Journal::default();
        let task = world.submit("trip", json!({})).await;
        running(world, handlers(&journal, &["mail"]), async || {
            world
                .until_true(&format!("(SELECT finished_at IS NOT NULL FROM tasker.tasks WHERE id = '{task}')"))
                .await;
        })
        .await;
        let mut journal = journal.lock().unwrap().clone();
        journal[..2].sort();
        journal[5..].sort();
        assert_eq!(
            journal,
            ["flight", "hotel", "check", "pay", "pay.undo", "flight.undo", "hotel.undo"]
        );
        let task = world.task(task).await;
        assert_eq!((&task["state"], task["steps"].as_array().unwrap().len()), (&json!("failed"), 8));
        let undo = step(&task, "pay.undo");
        assert_eq!(
            (&undo["undoes"], &undo["state"], &undo["max_attempts"]),
            (&json!("pay"), &json!("complete"), &json!(2))
        );
        assert_eq!(undo["result"]["saw"]["pay"]["did"], "pay", "it sees what its step returned");
        assert_eq!(undo["result"]["saw"]["check"]["did"], "check", "and what that saw");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_done_is_undone_and_one_that_ran_when_the_cancel_came_is_waited_for() {
    World::with(async |world| {
        world.register(TRIP).await;
        let task = world.submit("trip", json!({})).await;
        world.claim().await;
        let mut held = world.lease("here_queue", 2).await;
        let (hotel, flight) = (held.pop().unwrap(), held.pop().unwrap());
        assert_eq!(undo_tasks(&world.db, &[task]).await.unwrap(), [task]);
        assert!(undo_tasks(&world.db, &[task]).await.unwrap().is_empty(), "once is enough");
        assert!(world.fail(&flight, "no seats", true, None).await);
        assert_eq!(world.task(task).await["state"], "cancelling", "the other runs still");
        assert!(world.complete(&[hotel], r#"{"room": 7}"#).await.is_empty());
        let seen = world.task(task).await;
        assert_eq!(seen["state"], "undoing");
        assert_eq!(step(&seen, "flight.undo")["skipped_because"], "there is nothing to undo");
        let undo = world.lease("here_queue", 9).await.remove(0);
        assert_eq!(undo.name, "hotel.undo");
        assert_eq!(world.complete(&[undo], "{}").await.len(), 1);
        let seen = world.task(task).await;
        assert_eq!(
            (&seen["state"], &step(&seen, "mail")["state"]),
            (&json!("cancelled"), &json!("cancelled"))
        );
        assert!(world.lease("here_queue", 9).await.is_empty());
        assert_eq!(world.reconcile().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_undoing_until_a_dead_undo_is_settled() {
    World::with(async |world| {
        world.register(TRIP).await;
        let journal = Journal::default();
        let task = world.submit("trip", json!({})).await;
        running(world, handlers(&journal, &["pay.undo"]), async || {
            assert_eq!(ended(world, task).await, "complete");
            assert_eq!(undo_tasks(&world.db, &[task]).await.unwrap(), [task], "a task that is complete can be undone, too");
            world.until_true(&format!("EXISTS (SELECT FROM tasker.steps WHERE task_id = '{task}' AND state = 'dead')")).await;
            assert_eq!(world.task(task).await["state"], "undoing");
            assert!(cancel_tasks(&world.db, &[task]).await.unwrap().is_empty(), "nothing stops it half way");
            assert_eq!(journal.lock().unwrap().len(), 5, "the flight is not given back before the money");
            let letters = world.dead_letters("here").await;
            assert_eq!((letters.len(), &letters[0]["step"]), (1, &json!("pay.undo")));
            world.run("SELECT tasker.settle_dead_letters(ARRAY(SELECT id FROM tasker.find_dead_letters('{}', 10)), '{\"by\": \"hand\"}', 'ann', 'paid back in cash')").await;
            assert_eq!(ended(world, task).await, "cancelled");
        })
        .await;
        let task = world.task(task).await;
        assert_eq!(step(&task, "pay.undo")["result"], json!({ "by": "hand" }));
        assert_eq!(step(&task, "hotel.undo")["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_that_was_lost_was_to_undo_is_undone_all_the_same() {
    World::with(async |world| {
        world.register(TRIP).await;
        let task = world.submit("trip", json!({})).await;
        world.claim().await;
        let held = world.lease("here_queue", 2).await;
        assert_eq!(world.complete(&held, "{}").await.len(), 2);
        undo_tasks(&world.db, &[task]).await.unwrap();
        assert_eq!(world.task(task).await["state"], "undoing");
        world.run("DELETE FROM pgmq.q_here_queue").await;
        assert_eq!(world.reconcile().await, 2);
        let held = world.lease("here_queue", 9).await;
        assert_eq!(world.complete(&held, "{}").await.len(), 2);
        assert_eq!(world.task(task).await["state"], "cancelled");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effects_of_children_and_of_theirs_are_undone_before_those_of_what_was_before_them() {
    World::with(async |world| {
        world
            .register("name: pack\nnamespace: here\nsteps: [{ name: box, handler: do, undo: undo }, { name: label, handler: do, depends_on: [box] }]")
            .await;
        world
            .register(
                "
name: order
namespace: here
on_failure: undo
steps:
  - { name: charge, handler: do, undo: undo }
  - { name: reserve, each: { over: $.input.lines, handler: reserve }, undo: release, depends_on: [charge] }
  - { name: pack, workflow: pack, depends_on: [reserve] }
  - { name: ship, handler: mail, depends_on: [pack], retry: { max_attempts: 1 } }
",
            )
            .await;
        let journal = Journal::default();
        let task = world.submit("order", json!({ "lines": [1, 2, 3] })).await;
        running(world, handlers(&journal, &["ship"]), async || assert_eq!(ended(world, task).await, "failed")).await;
        let journal = journal.lock().unwrap().clone();
        assert_eq!(journal[..6], ["charge", "reserve", "reserve", "reserve", "box", "label"]);
        assert_eq!(journal[6..], ["box.undo", "reserve.undo", "reserve.undo", "reserve.undo", "charge.undo"]);
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE parent_id IS NOT NULL AND state = 'cancelled'").await, 4);
        assert_eq!(step(&world.task(task).await, "reserve.undo")["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_stopped_before_they_are_undone_and_none_is_undone_alone_once_it_has_ended() {
    World::with(async |world| {
        world
            .register(
                "name: order\nnamespace: here\nsteps: [{ name: reserve, each: { over: $.input.lines, handler: reserve }, undo: release }]",
            )
            .await;
        let task = world.submit("order", json!({ "lines": [1, 2] })).await;
        world.claim().await;
        world.move_children(100).await;
        world.claim().await;
        let mut held = world.lease("here_queue", 2).await;
        let running = held.pop().unwrap();
        assert_eq!(world.complete(&held, "{}").await.len(), 1);
        let complete: Uuid = world
            .text("SELECT id::text FROM tasker.tasks WHERE state = 'complete'")
            .await
            .parse()
            .unwrap();
        assert!(
            undo_tasks(&world.db, &[complete]).await.unwrap().is_empty(),
            "its parent counts on it"
        );

        undo_tasks(&world.db, &[task]).await.unwrap();
        world.move_children(100).await;
        assert_eq!(world.task(task).await["state"], "cancelling");
        assert!(world.complete(&[running], "{}").await.is_empty(), "the report comes too late");
        world.move_children(100).await;
        world.move_children(100).await;
        let seen = world.task(task).await;
        assert_eq!(step(&seen, "reserve.undo")["waits_for"], "2 of 2 tasks to be undone");
        assert_eq!(world.reconcile().await, 0, "nothing is wrong with one that takes its time");
        let held = world.lease("here_queue", 9).await;
        assert_eq!(world.complete(&held, "{}").await.len(), 2);
        world.move_children(100).await;
        world.move_children(100).await;
        assert_eq!(world.task(task).await["state"], "cancelled");
    })
    .await;
}

#[test]
fn what_cannot_be_undone_says_so() {
    let refused = |step: &str| {
        let template = format!("name: t\nnamespace: here\nsteps: [{step}]");
        Template::parse(&template, "t.yml").unwrap_err().to_string()
    };
    assert!(refused("{ name: s, sleep: 1d, undo: wake }").contains("step \"s\" sleeps, and has undo: nothing runs there"));
    assert!(refused("{ name: s, workflow: other, undo: u }").contains("has undo"));
    assert!(refused("{ name: s, handler: h, undo: '' }").contains("handler is empty"));
    assert!(refused("{ name: s, handler: h, undo: { retry: {} } }").contains("expected the name of a handler, or { handler:"));
}
