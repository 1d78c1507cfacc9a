//! What has happened to a task, as the API tells it: as a list, and while it happens.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::{json, Value};

use super::api::{crew, leave, Asked, ORDER};
use super::world::World;

/// The events of a task from a stream, which ends with the task; those after `last`.
fn follow(api: &Asked, task: &str, last: Option<&str>) -> (u16, Vec<Value>) {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let mut asked = agent
        .get(format!("http://{}/api/v1/tasks/{task}/events", api.address()))
        .header("accept", "text/event-stream");
    if let Some(last) = last {
        asked = asked.header("last-event-id", last);
    }
    let answer = asked.call().unwrap();
    let status = answer.status().as_u16();
    let lines = BufReader::new(answer.into_body().into_reader()).lines().map(Result::unwrap);
    let events = lines
        .filter_map(|line| line.strip_prefix("data: ").map(|data| serde_json::from_str(data).unwrap()))
        .collect();
    (status, events)
}

fn types(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap().trim_start_matches("tasker."))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_task_hears_what_happens_and_goes_on_where_it_was() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let task = api.create("order", json!({ "card": "good" }));
        let follower = {
            let (api, task) = (api.clone(), task.clone());
            tokio::task::spawn_blocking(move || follow(&api, &task, None).1)
        };
        world
            .until_true("EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%read_task%')")
            .await;
        let crew = crew(world).await;
        let heard = follower.await.unwrap();
        leave(crew).await;

        let told = types(&heard);
        assert_eq!((told[0], *told.last().unwrap()), ("task.created", "task.complete"), "{told:?}");
        assert!(told.contains(&"step.complete"), "{told:?}");
        assert!(heard
            .iter()
            .all(|event| event["source"] == format!("/tasks/{task}") && event["specversion"] == "1.0"));
        let listed = api.get(&format!("/tasks/{task}/events")).body["items"].as_array().unwrap().clone();
        assert!(listed.iter().all(|event| heard.contains(event)), "{heard:#?}\n{listed:#?}");

        world
            .run("UPDATE tasker.steps SET enqueued_at = enqueued_at - interval '1 hour'")
            .await;
        let second = listed[2]["id"].as_str().unwrap();
        let (status, again) = follow(&api, &task, Some(second));
        let told = |events: &[Value]| {
            events
                .iter()
                .map(|event| event["id"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let mut expected = told(&listed);
        expected.retain(|id| id != second && !id.contains("step.enqueued"));
        assert_eq!((status, told(&again)), (200, expected), "what is an hour older is not told again");
        world
            .run("UPDATE tasker.steps SET enqueued_at = enqueued_at - interval '1 hour', started_at = NULL, finished_at = NULL")
            .await;
        world
            .run("UPDATE tasker.tasks SET created_at = created_at - interval '1 hour', started_at = NULL")
            .await;
        let last = listed.last().unwrap()["id"].as_str().unwrap();
        assert_eq!(follow(&api, &task, Some(last)), (204, vec![]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_failed_is_an_event_with_its_error() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let crew = crew(world).await;
        let task = api.create("order", json!({ "card": "bad" }));
        world.until_true("EXISTS (SELECT FROM tasker.steps WHERE state = 'dead')").await;
        let events = api.get(&format!("/tasks/{task}/events")).body["items"].as_array().unwrap().clone();
        let failed: Vec<&Value> = events.iter().filter(|event| event["type"] == "tasker.step.failed").collect();
        let about = json!({ "step": "charge", "template": "order", "namespace": "here", "attempt": 1, "error": { "class": "CardDeclined", "message": "no funds" } });
        assert_eq!(failed.iter().map(|event| &event["data"]).collect::<Vec<_>>(), [&about]);
        api.get("/tasks/0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b/events").is_refused(404, "no task");
        leave(crew).await;
    })
    .await;
}
