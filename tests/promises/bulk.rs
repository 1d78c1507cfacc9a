//! What is done to many tasks at once: to those that a filter lets through.

use std::collections::BTreeMap;

use serde_json::json;
use tasker::engine::bulk::{self, Action};
use tasker::engine::claim::prioritize_tasks;
use tasker::engine::dead_letters::{By, Replay};
use tasker::engine::pauses::{pause_tasks, resume_tasks};
use tasker::engine::read::{list_tasks, matching_tasks, TaskFilter};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::template::Priority;
use uuid::Uuid;

use super::command_line::{json_of, tasker};
use super::world::World;

const ORDER: &str = "
name: order
namespace: here
tags: { customer: $.input.customer }
steps: [{ name: s, handler: h, retry: { max_attempts: 1 } }]
";

/// One task of each of these customers, in order.
async fn orders(world: &World, customers: &[i32]) -> Vec<Uuid> {
    world.register(ORDER).await;
    let task = |customer: &i32| NewTask {
        input: json!({ "customer": customer }).into(),
        ..NewTask::default()
    };
    let tasks: Vec<NewTask> = customers.iter().map(task).collect();
    let submitted = Submitter::new(world.db.clone()).submit("order", None, &tasks).await.unwrap();
    submitted.into_iter().map(|task| task.id).collect()
}

fn of(customer: &str) -> TaskFilter {
    TaskFilter {
        tags: BTreeMap::from([("customer".to_owned(), customer.to_owned())]),
        ..TaskFilter::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_found_by_the_class_of_the_error_that_they_died_of_and_replayed() {
    World::with(async |world| {
        let tasks = orders(world, &[1, 1, 2]).await;
        world.claim().await;
        for leased in world.lease("here_queue", 3).await {
            let fail = "UPDATE tasker.steps SET errors = jsonb_set(errors, '{-1,class}', '\"Timeout\"') WHERE state = 'dead'";
            assert!(world.fail(&leased, "no", true, None).await);
            if leased.task_id == tasks[0] {
                world.run(fail).await;
            }
        }
        let filter = TaskFilter {
            error: Some("Timeout".into()),
            ..TaskFilter::default()
        };
        assert_eq!(matching_tasks(&world.db, &filter, false).await.unwrap(), tasks[..1]);
        assert_eq!(list_tasks(&world.db, &filter, 10).await.unwrap()[0]["id"], json!(tasks[0]));
        let nobody = TaskFilter {
            error: Some("Other".into()),
            ..of("1")
        };
        assert!(matching_tasks(&world.db, &nobody, false).await.unwrap().is_empty());

        let replay = Action::Replay {
            how: Replay::default(),
            by: By::default(),
        };
        let mut dead = bulk::matching(&world.db, &of("1"), &replay).await.unwrap();
        dead.sort_by_key(|id| tasks.iter().position(|task| task == id));
        assert_eq!(dead, tasks[..2]);
        assert_eq!(bulk::apply(&world.db, &dead, &replay).await.unwrap().len(), 2);
        assert!(bulk::matching(&world.db, &of("1"), &replay).await.unwrap().is_empty());
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'blocked'").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_not_concerned_and_what_is_paused_can_be_resumed_together() {
    World::with(async |world| {
        let tasks = orders(world, &[1, 1, 1]).await;
        world.claim().await;
        let done = world.lease("here_queue", 1).await;
        world.complete(&done, "{}").await;
        let open = matching_tasks(&world.db, &of("1"), true).await.unwrap();
        assert_eq!(open.len(), 2);
        assert!(!open.contains(&done[0].task_id));
        let by = By {
            who: "ann".into(),
            why: None,
        };
        assert_eq!(pause_tasks(&world.db, &tasks, &by).await.unwrap().len(), 2);
        assert!(pause_tasks(&world.db, &tasks, &by).await.unwrap().is_empty());
        assert!(world.lease("here_queue", 9).await.is_empty());
        assert_eq!(resume_tasks(&world.db, &tasks).await.unwrap().len(), 2);
        world.enqueue_due_retries().await;
        world.enqueue_due_retries().await;
        let leased = world.lease("here_queue", 9).await;
        assert_eq!(leased.len(), 2);
        pause_tasks(&world.db, &tasks, &by).await.unwrap();
        world.complete(&leased, "{}").await;
        world.run("SELECT tasker.forget_pauses()").await;
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.pauses WHERE resumed_at IS NULL").await,
            0,
            "they have ended"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_given_another_priority_is_claimed_as_if_it_had_had_it_from_the_beginning() {
    World::with(async |world| {
        let tasks = orders(world, &[1, 2, 3]).await;
        // The marks are where the first of each lane is, or would be.
        world.run("UPDATE tasker.tasks SET created_at = created_at - interval '10 minutes', claim_order = claim_order - interval '10 minutes'").await;
        for _ in 0..3 {
            world.run("SELECT tasker.move_marks()").await;
        }
        assert_eq!(prioritize_tasks(&world.db, &tasks[2..], Priority::Urgent).await.unwrap(), tasks[2..]);
        assert!(prioritize_tasks(&world.db, &tasks[2..], Priority::Urgent).await.unwrap().is_empty());
        assert_eq!(prioritize_tasks(&world.db, &tasks[..1], Priority::Low).await.unwrap().len(), 1);
        assert_eq!(world.claim().await, 3, "none is behind a mark");
        let order: Vec<Uuid> = world.lease("here_queue", 9).await.iter().map(|leased| leased.task_id).collect();
        assert_eq!(order, [tasks[2], tasks[1], tasks[0]]);
        assert_eq!(world.task(tasks[2]).await["priority"], "urgent");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_counts_first_and_never_takes_nothing_for_everything() {
    World::with(async |world| {
        orders(world, &[1, 1, 2, 3]).await;
        let run = |arguments: &[&str]| tasker(&world.url, &[&["task"], arguments].concat());
        let read = |arguments: &[&str]| json_of(&world.url, &[&["task"], arguments].concat());
        assert_eq!(run(&["cancel"]).status.code(), Some(1));
        assert_eq!(
            run(&["cancel", "--tag", "customer=1", "00000000-0000-7000-8000-000000000000"])
                .status
                .code(),
            Some(1)
        );
        let counted = read(&["cancel", "--tag", "customer=1", "--dry-run", "--json"]);
        assert_eq!(counted, json!({ "dry_run": true, "tasks": 2 }));
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'pending'").await, 4);
        let done = read(&["cancel", "--tag", "customer=1", "--json"]);
        assert_eq!(done["cancelled"].as_array().unwrap().len(), 2);
        let done = read(&["prioritize", "--to", "high", "--template", "order", "--json"]);
        assert_eq!(done["prioritized"].as_array().unwrap().len(), 2);
        assert_eq!(
            read(&["pause", "--all", "--who", "ann", "--json"])["paused"]
                .as_array()
                .map(Vec::len),
            Some(2)
        );
        let listed = read(&["list", "--state", "paused", "--json"]);
        assert_eq!(listed.as_array().map(Vec::len), Some(2));
        assert_eq!(
            read(&["resume", "--state", "paused", "--json"])["resumed"].as_array().map(Vec::len),
            Some(2)
        );
        world.claim().await;
        for leased in world.lease("here_queue", 9).await {
            world.fail(&leased, "no", true, None).await;
        }
        let replay = ["replay", "--state", "blocked", "--json"];
        assert_eq!(read(&[&replay[..], &["--dry-run"]].concat())["tasks"], 2);
        assert_eq!(read(&replay)["replayed"].as_array().map(Vec::len), Some(2));
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'running'").await, 2);
    })
    .await;
}
