//! Bulk actions: what is done in the background to all tasks that a filter lets through.

use serde_json::{json, Value};
use tasker::engine::bulk::Action;
use tasker::engine::bulk_actions::{begin, list, show, stop, work, NewBulkAction, Worked};
use tasker::engine::dead_letters::{By, Replay};
use tasker::engine::read::TaskFilter;
use tasker::engine::tokens::Role;

use super::api::{crew, leave, Asked, ORDER};
use super::world::World;

const JOB: &str = "
name: job
namespace: here
steps:
  - { name: a, handler: H }
";

fn jobs(action: Action) -> NewBulkAction {
    NewBulkAction {
        filter: TaskFilter {
            template: Some("job".into()),
            ..TaskFilter::default()
        },
        action,
        per_second: None,
    }
}

fn by() -> By {
    By {
        who: "ada".into(),
        why: None,
    }
}

async fn create(world: &World, tasks: usize) {
    let create = format!("SELECT count(*) FROM tasker.create_tasks('job', array_fill('{{}}'::jsonb, ARRAY[{tasks}]))");
    assert_eq!(world.count(&create).await, tasks as i64);
}

#[tokio::test]
async fn it_is_done_slice_by_slice_to_the_tasks_that_were_there_and_goes_on_where_one_was_left() {
    World::with(async |world| {
        world.register(JOB).await;
        create(world, 450).await;
        let id = begin(&world.db, &jobs(Action::Cancel { undo: false }), &by()).await.unwrap();
        world
            .until_true("clock_timestamp() > (SELECT created_at + interval '3 ms' FROM tasker.bulk_actions)")
            .await;
        create(world, 3).await;

        assert_eq!(work(&world.db).await.unwrap(), Worked::Slice);
        assert_eq!(show(&world.db, id).await.unwrap()["done"], 200);
        // Somebody takes a slice and dies.
        world.run("SELECT tasker.take_bulk_action('1 minute')").await;
        assert!(matches!(work(&world.db).await.unwrap(), Worked::Rest(_)), "it is somebody's");
        world.run("UPDATE tasker.bulk_actions SET taken_until = clock_timestamp()").await;
        while work(&world.db).await.unwrap() == Worked::Slice {}

        let ended = show(&world.db, id).await.unwrap();
        let seen = ["state", "found", "done", "who"].map(|name| ended[name].clone());
        assert_eq!(seen, [json!("complete"), json!(450), json!(450), json!("ada")]);
        let left = "SELECT count(*) FROM tasker.tasks WHERE state = 'pending'";
        assert_eq!(world.count(left).await, 3, "those that came in later are not concerned");
    })
    .await;
}

#[tokio::test]
async fn a_slice_that_two_have_done_counts_once() {
    World::with(async |world| {
        world.register(JOB).await;
        create(world, 2).await;
        let id = begin(&world.db, &jobs(Action::Cancel { undo: false }), &by()).await.unwrap();
        let advance =
            "SELECT tasker.advance_bulk_action(id, before, '00000000-0000-0000-0000-000000000001', 2, 2) FROM tasker.bulk_actions";
        let before = world.text("SELECT before::text FROM tasker.bulk_actions").await;
        world.run(advance).await;
        world.run(&advance.replace(" before,", &format!(" '{before}',"))).await;
        assert_eq!(show(&world.db, id).await.unwrap()["done"], 2);
    })
    .await;
}

#[tokio::test]
async fn one_with_a_rate_takes_no_more_than_that() {
    World::with(async |world| {
        world.register(JOB).await;
        create(world, 5).await;
        let slow = NewBulkAction {
            per_second: Some(2.5),
            ..jobs(Action::Cancel { undo: false })
        };
        begin(&world.db, &slow, &by()).await.unwrap();
        assert_eq!(work(&world.db).await.unwrap(), Worked::Slice);
        let pause = "SELECT (done = 2 AND taken_until > clock_timestamp())::int::bigint FROM tasker.bulk_actions";
        assert_eq!(world.count(pause).await, 1);
        assert!(matches!(work(&world.db).await.unwrap(), Worked::Rest(_)));
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_before_it_begins() {
    World::with(async |world| {
        let refused = async |new: NewBulkAction| begin(&world.db, &new, &by()).await.unwrap_err().to_string();
        let all = NewBulkAction {
            filter: TaskFilter::default(),
            ..jobs(Action::Resume)
        };
        assert!(refused(all).await.contains("expected one"));
        let still = NewBulkAction {
            per_second: Some(0.0),
            ..jobs(Action::Resume)
        };
        assert!(refused(still).await.contains("per_second"));
        let how = Replay {
            input: Some(json!(7)),
            ..Replay::default()
        };
        assert!(refused(jobs(Action::Replay { how, by: by() })).await.contains("JSON object"));
        assert!(list(&world.db, None, 10).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn one_that_is_stopped_does_no_more() {
    World::with(async |world| {
        world.register(JOB).await;
        create(world, 300).await;
        let id = begin(&world.db, &jobs(Action::Cancel { undo: false }), &by()).await.unwrap();
        assert_eq!(work(&world.db).await.unwrap(), Worked::Slice);
        assert!(stop(&world.db, id, "bob").await.unwrap());
        assert!(!stop(&world.db, id, "bob").await.unwrap());
        assert_eq!(work(&world.db).await.unwrap(), Worked::Nothing);
        let ended = show(&world.db, id).await.unwrap();
        assert_eq!(
            [&ended["state"], &ended["done"], &ended["stopped_by"]],
            [&json!("stopped"), &json!(200), &json!("bob")]
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_replays_what_an_operator_of_the_api_has_asked_for() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = crew(world).await;
        let api = Asked::open(world, true).await;
        let tasks: Vec<String> = (0..3).map(|_| api.create("order", json!({ "card": "bad" }))).collect();
        for task in &tasks {
            assert_eq!(api.get(&format!("/tasks/{task}/wait")).body["state"], "blocked");
        }
        let replay = json!({ "filter": { "error": "CardDeclined" }, "verb": "replay", "input": { "card": "good" }, "why": "another card" });
        let reader = api.by(world, Role::Reader, &[]).await;
        reader.post("/bulk-actions", replay.clone()).is_refused(403, "operator");
        api.post("/bulk-actions", json!({ "filter": {}, "verb": "cancel" }))
            .is_refused(422, "expected one");
        api.post("/bulk-actions", json!({ "filter": { "template": "order" }, "verb": "prioritize" }))
            .is_refused(422, "priority");
        let begun = api.post("/bulk-actions", replay);
        assert_eq!(begun.status, 202);
        for task in &tasks {
            world
                .until_true(&format!("state = 'complete' FROM tasker.tasks WHERE id = '{task}'"))
                .await;
        }
        world.until_true("finished_at IS NOT NULL FROM tasker.bulk_actions").await;
        let id = &begun.body["id"];
        let ended = api.get(&format!("/bulk-actions/{id}")).body;
        assert_eq!([&ended["state"], &ended["done"]], [&json!("complete"), &json!(3)]);
        assert_eq!(api.get("/bulk-actions").body["items"], Value::Array(vec![ended]));
        assert_eq!(
            api.post(&format!("/bulk-actions/{id}/stop"), json!({})).body,
            json!({ "done": false })
        );
        api.get("/bulk-actions/999").is_refused(404, "no bulk action 999");
        let audit = api.get(&format!("/audit?object=bulk%20action%20{id}")).body;
        assert_eq!(audit["items"][1]["why"], "another card");
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_letters_of_all_tasks_of_a_filter_are_resolved_skipped_or_discarded() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = crew(world).await;
        let api = Asked::open(world, true).await;
        for (verb, more, expected) in [
            ("resolve", json!({ "result": { "by": "hand" } }), "complete"),
            ("skip", json!({}), "complete"),
            ("discard", json!({ "why": "a robot's" }), "failed"),
        ] {
            let tasks: Vec<String> = (0..2).map(|_| api.create("order", json!({ "card": "bad" }))).collect();
            for task in &tasks {
                assert_eq!(api.get(&format!("/tasks/{task}/wait")).body["state"], "blocked");
            }
            let begin = |more: &Value| {
                let mut body = json!({ "filter": { "state": "blocked" }, "verb": verb });
                for (name, value) in more.as_object().unwrap() {
                    body[name] = value.clone();
                }
                api.post("/bulk-actions", body)
            };
            if more != json!({}) {
                begin(&json!({})).is_refused(422, if verb == "discard" { "for a reason" } else { "expected result" });
            }
            assert_eq!(begin(&more).status, 202);
            for task in &tasks {
                world
                    .until_true(&format!("state = '{expected}' FROM tasker.tasks WHERE id = '{task}'"))
                    .await;
            }
        }
        let by_hand = "SELECT count(*) FROM tasker.steps WHERE result = '{\"by\": \"hand\"}'";
        assert_eq!(world.count(by_hand).await, 2);
        assert_eq!(api.get("/dead-letters").body["items"], json!([]));
        leave(crew).await;
    })
    .await;
}
