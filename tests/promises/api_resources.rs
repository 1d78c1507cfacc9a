//! The REST API, asked over HTTP: dead letters, signals, schedules, the fleet, the configuration.

use serde_json::{json, Value};

use super::api::{crew, leave, Asked, ORDER};
use super::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_grouped_shown_replayed_resolved_skipped_and_discarded() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = crew(world).await;
        let api = Asked::open(world, true).await;
        let tasks: Vec<String> = (0..4).map(|_| api.create("order", json!({ "card": "bad" }))).collect();
        for task in &tasks {
            assert_eq!(api.get(&format!("/tasks/{task}/wait")).body["state"], "blocked");
        }
        let groups = api.get("/dead-letters/groups").body;
        assert_eq!(
            (&groups["items"][0]["count"], &groups["items"][0]["class"]),
            (&json!(4), &json!("CardDeclined"))
        );
        let letter = |task: &str| api.get(&format!("/dead-letters?task={task}")).body["items"][0]["id"].clone();
        let id = letter(&tasks[0]);
        let whole = api.get(&format!("/dead-letters/{}", id.as_str().unwrap())).body;
        assert_eq!(
            (&whole["input"], &whole["results"]["check"]),
            (&json!({ "card": "bad" }), &json!({ "checked": true }))
        );

        let act = |verb: &str, mut body: Value, task: &str| {
            body["ids"] = json!([letter(task)]);
            api.post(&format!("/dead-letters/{verb}"), body)
        };
        let replayed = act("replay", json!({ "input": { "card": "good" }, "why": "another card" }), &tasks[0]);
        assert_eq!(replayed.body, json!({ "ids": [id] }));
        act("resolve", json!({ "result": { "charged": "by hand" } }), &tasks[1]);
        act("skip", json!({}), &tasks[2]);
        act("discard", json!({}), &tasks[3]).is_refused(422, "expected why");
        act("discard", json!({ "why": "a test" }), &tasks[3]);
        for (task, state) in tasks.iter().zip(["complete", "complete", "complete", "failed"]) {
            world
                .until_true(&format!("state = '{state}' FROM tasker.tasks WHERE id = '{task}'"))
                .await;
        }
        assert_eq!(api.get("/dead-letters").body, json!({ "items": [], "next": null }));
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_what_waits_for_it() {
    World::with(async |world| {
        let wait = "{ name: approval, wait: { signal: approved, assignees: [ada], schema: { type: object } } }";
        world.register(&format!("name: asks\nnamespace: here\nsteps: [{wait}]\n")).await;
        let crew = crew(world).await;
        let api = Asked::open(world, true).await;
        let task = api.create("asks", json!({}));
        world.until_true("EXISTS (SELECT FROM tasker.waits WHERE since IS NOT NULL)").await;
        let waits = api.get("/waits?assignee=ada").body;
        assert_eq!(
            (&waits["items"][0]["task"], &waits["items"][0]["step"]),
            (&json!(task), &json!("approval"))
        );
        let signal = |payload: Value| json!({ "name": "approved", "task": task, "payload": payload, "id": "1" });
        api.post("/signals", signal(json!(7)))
            .is_refused(422, "7 is not of type \"object\"");
        assert_eq!(api.post("/signals", signal(json!({ "yes": true }))).body["outcome"], "awaited");
        assert_eq!(api.get(&format!("/tasks/{task}/wait")).body["state"], "complete");
        assert_eq!(api.post("/signals", signal(json!({ "yes": true }))).body["outcome"], "duplicate");
        assert_eq!(
            api.get("/signals?name=approved").body["items"][0]["payload"],
            json!({ "yes": true })
        );
        api.post("/signals", json!({ "name": "approved" }))
            .is_refused(422, "expected a task, or a key");
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_created_paused_triggered_caught_up_and_deleted() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let put = |definition: Value| api.put("/schedules/nightly", json!({ "template": "here/order", "definition": definition }));
        put(json!({ "cron": "0 25 * * *" })).is_refused(422, "definition");
        assert_eq!(put(json!({ "cron": "0 3 * * *" })).body, json!({ "outcome": "created" }));
        assert_eq!(put(json!({ "cron": "0 3 * * *" })).body, json!({ "outcome": "unchanged" }));
        assert_eq!(api.get("/schedules").body["items"][0]["name"], "nightly");
        api.done("/schedules/nightly/pause", json!({ "why": "holidays" }));
        assert_eq!(api.get("/schedules/nightly").body["paused"]["why"], "holidays");
        api.done("/schedules/nightly/resume", json!({}));
        assert_eq!(
            api.done("/schedules/nightly/trigger", json!({}))["tasks"].as_array().unwrap().len(),
            1
        );
        let week = json!({ "from": "2026-01-01T00:00:00Z", "until": "2026-01-08T00:00:00Z" });
        assert_eq!(api.done("/schedules/nightly/backfill", week)["tasks"].as_array().unwrap().len(), 7);
        assert_eq!(
            api.send("DELETE /schedules/nightly?why=over", &[], None).body,
            json!({ "done": true })
        );
        api.get("/schedules/nightly").is_refused(404, "no schedule nightly");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_is_seen_and_held_back() {
    World::with(async |world| {
        world.register(ORDER).await;
        world
            .set_rules("here", json!({ "limits": { "bank": { "concurrency": 2, "handler": "charge" } } }))
            .await
            .unwrap();
        let crew = crew(world).await;
        let api = Asked::open(world, true).await;
        api.create("order", json!({}));
        let first = |path: &str| api.get(path).body["items"][0].clone();
        assert_eq!(first("/namespaces")["name"], "here");
        assert_eq!(first("/queues")["namespace"], "here");
        assert_eq!(first("/templates")["name"], "order");
        assert_eq!(api.get("/templates/here/order").body["steps"][1]["name"], "charge");
        world.register(&ORDER.replace("handler: check", "handler: look")).await;
        let versions = api.get("/templates/here/order/versions").body["items"].clone();
        assert_eq!((versions.as_array().unwrap().len(), &versions[0]["current"]), (2, &json!(true)));
        let diff = api.get("/templates/here/order/diff?from=1").body;
        assert_eq!(
            diff,
            json!({ "added": [], "removed": [], "changed": { "check": { "handler": ["check", "look"] } }, "template": {} })
        );
        api.get("/templates/here/order?version=9")
            .is_refused(404, "no template here/order version 9");
        assert_eq!(first("/limits")["name"], "bank");
        assert_eq!(api.done("/limits/here/bank/reset", json!({})), json!({ "closed": 0 }));
        api.post("/limits/here/banks/reset", json!({}))
            .is_refused(404, "no limit here/banks");
        let kinds: Vec<Value> = api.get("/members").body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| of["kind"].clone())
            .collect();
        assert!(
            kinds.contains(&json!("worker")) && kinds.contains(&json!("orchestrator")),
            "{kinds:?}"
        );
        let here = json!({ "kind": "namespace", "name": "here", "why": "the bank is away" });
        assert_eq!(api.done("/pauses", here.clone()), json!({ "done": true }));
        assert_eq!(first("/pauses")["why"], "the bank is away");
        assert_eq!(api.done("/pauses/resume", here), json!({ "done": true }));
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_changed_and_rolled_back() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let set = |setting: &str, value: Value, namespace: Option<&str>| {
            api.post(
                "/configuration/set",
                json!({ "setting": setting, "value": value, "namespace": namespace, "why": "more" }),
            )
        };
        assert_eq!(set("orchestrator.batch", json!(100), None).body["version"], 1);
        assert_eq!(
            set("max_attempts", json!(9), Some("here")).body["overrides"]["namespaces"]["here"]["max_attempts"],
            9
        );
        set("orchestrator.batch", json!(0), None).is_refused(422, "orchestrator.batch");
        set("database_url", json!("postgres://x"), None).is_refused(422, "needs a restart");
        assert_eq!(api.get("/namespaces").body["items"][0]["max_attempts"], 9);
        let rolled_back = api.done("/configuration/rollback", json!({ "version": 1, "why": "fewer" }));
        assert_eq!(
            (&rolled_back["version"], &rolled_back["who"], &rolled_back["overrides"]),
            (&json!(3), &json!("local"), &json!({ "orchestrator": { "batch": 100 } }))
        );
        api.post("/configuration/rollback", json!({ "version": 99 }))
            .is_refused(404, "no version 99");
        assert_eq!(api.get("/configuration").body["version"], 3);
        assert_eq!(
            api.get("/configuration/versions?limit=2").body["items"].as_array().unwrap().len(),
            2
        );
        assert_eq!(api.get("/configuration/drift").body["items"], json!([]));
    })
    .await;
}
