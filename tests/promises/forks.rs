//! Forks: a task is run again from a step on, as another one.

use serde_json::{json, Value};
use tasker::engine::cancel::{cancel_tasks, undo_tasks};
use tasker::engine::children::{read_children, Page};
use tasker::engine::fork::fork_task;
use tasker::Error;
use uuid::Uuid;

use super::command_line::json_of;
use super::world::World;

const ORDER: &str = "
name: order
namespace: here
tags: { customer: $.input.customer }
input_schema: { properties: { lines: { type: array } } }
steps:
  - { name: check, handler: h, undo: u }
  - { name: lines, each: { over: $.input.lines, handler: h }, depends_on: [check] }
  - { name: charge, handler: h, depends_on: [lines], retry: { max_attempts: 1 } }
  - { name: note, handler: h, depends_on: [check] }
  - { name: gift, handler: h, depends_on: [check], if: $.input.gift == true }
  - { name: ship, handler: h, depends_on: [charge, note, gift] }
";

/// Leases and completes whatever there is, but what is called so fails. The names of the steps, in order.
async fn work(world: &World, fails: &str) -> Vec<String> {
    let mut done = Vec::new();
    loop {
        world.claim().await;
        let leased = world.lease("here_queue", 20).await;
        let idle = leased.is_empty();
        for step in leased {
            done.push(step.name.clone());
            match step.name == fails {
                true => drop(world.fail(&step, "no", true, None).await),
                false => drop(world.complete(&[step], r#"{"by": "first"}"#).await),
            }
        }
        if idle && world.move_children(100).await == (0, 0) && world.move_children(100).await == (0, 0) {
            return done;
        }
    }
}

fn step<'a>(task: &'a Value, name: &str) -> &'a Value {
    task["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_blocked_is_run_again_from_a_step_on_with_what_was_done_before_and_beside_it() {
    World::with(async |world| {
        world.register(ORDER).await;
        let task = world.submit("order", json!({ "customer": 7, "lines": [1, 2] })).await;
        assert_eq!(work(world, "charge").await.len(), 5);
        let fork = fork_task(&world.db, task, Some("charge"), None).await.unwrap();
        let charge = world.lease("here_queue", 9).await;
        assert_eq!((charge.len(), charge[0].name.as_str(), charge[0].task_id), (1, "charge", fork));
        let page = Page {
            after: None,
            limit: 10,
            dead: false,
        };
        let lines = read_children(&world.db, fork, Some(charge[0].step), "lines", &page).await.unwrap();
        assert_eq!(lines.len(), 2, "its handler reads the results of what was done for the other");
        world.complete(&charge, "{}").await;
        assert_eq!(work(world, "").await, ["ship"]);
        let seen = world.task(fork).await;
        assert_eq!(
            (&seen["state"], &seen["forked_from"], &seen["tags"]),
            (&json!("complete"), &json!(task), &json!({ "customer": "7" }))
        );
        assert_eq!(step(&seen, "check")["result"]["by"], "first");
        assert_eq!(step(&seen, "gift")["state"], "skipped");
        assert_eq!(world.task(task).await["forks"], json!([fork]));
        assert_eq!(world.task(task).await["state"], "blocked", "the other one is as it was");
        assert_eq!(world.reconcile().await, 0);

        let of_fork = fork_task(&world.db, fork, Some("ship"), None).await.unwrap();
        assert_eq!(read_children(&world.db, of_fork, None, "lines", &page).await.unwrap().len(), 2);
        assert_eq!(work(world, "").await, ["ship"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_done_again_from_the_beginning_also_with_another_input() {
    World::with(async |world| {
        world.register(ORDER).await;
        let task = world.submit("order", json!({ "customer": 7, "lines": [] })).await;
        assert_eq!(work(world, "").await.len(), 4);
        let fork = fork_task(&world.db, task, None, Some(&json!({ "customer": 8, "lines": [1], "gift": true })))
            .await
            .unwrap();
        assert_eq!(world.task(fork).await["tags"], json!({ "customer": "8" }));
        assert_eq!(work(world, "").await.len(), 6);
        assert_eq!(world.task(fork).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_undoes_nothing_that_it_took_over() {
    World::with(async |world| {
        world.register(ORDER).await;
        let task = world.submit("order", json!({ "lines": [1, 2] })).await;
        work(world, "").await;
        let fork = fork_task(&world.db, task, Some("charge"), None).await.unwrap();
        assert_eq!(undo_tasks(&world.db, &[fork]).await.unwrap(), [fork]);
        assert_eq!(work(world, "").await, Vec::<String>::new());
        let seen = world.task(fork).await;
        assert_eq!(
            (&seen["state"], &step(&seen, "check.undo")["state"]),
            (&json!("cancelled"), &json!("skipped"))
        );
        undo_tasks(&world.db, &[task]).await.unwrap();
        assert_eq!(work(world, "").await, ["check.undo"]);
        let undone = fork_task(&world.db, task, Some("charge"), None).await;
        assert!(
            matches!(&undone, Err(Error::Invalid(problem)) if problem.contains("was undone")),
            "{undone:?}"
        );
        assert!(fork_task(&world.db, task, None, None).await.is_ok());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_forked_says_so_and_an_operator_forks_from_the_command_line() {
    World::with(async |world| {
        world.register(ORDER).await;
        let task = world.submit("order", json!({ "lines": [1] })).await;
        let unknown = Uuid::from_u128(1);
        assert!(matches!(fork_task(&world.db, unknown, None, None).await, Err(Error::NotFound(_))));
        let early = fork_task(&world.db, task, None, None).await;
        assert!(
            matches!(&early, Err(Error::Invalid(problem)) if problem.contains("is pending") && problem.contains("cancel it first")),
            "{early:?}"
        );
        cancel_tasks(&world.db, &[task]).await.unwrap();
        assert!(matches!(
            fork_task(&world.db, task, Some("chek"), None).await,
            Err(Error::NotFound(_))
        ));
        assert!(matches!(
            fork_task(&world.db, task, None, Some(&json!([]))).await,
            Err(Error::Invalid(_))
        ));
        let wrong = fork_task(&world.db, task, None, Some(&json!({ "lines": 1 }))).await;
        assert!(
            matches!(&wrong, Err(Error::Invalid(problem)) if problem.contains("input_schema of here/order: /lines: ")),
            "{wrong:?}"
        );
        let wrong = fork_task(&world.db, unknown, None, Some(&json!({}))).await;
        assert!(
            matches!(&wrong, Err(Error::NotFound(problem)) if problem.contains("no task")),
            "{wrong:?}"
        );
        let forked = json_of(&world.url, &["task", "fork", &task.to_string(), "--from", "lines", "--json"]);
        let fork: Uuid = forked["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(forked["forked_from"], json!(task));
        assert_eq!(work(world, "").await.len(), 5, "what was not done there is done, too");
        assert_eq!(world.task(fork).await["state"], "complete");
    })
    .await;
}
