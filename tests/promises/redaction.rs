//! The setting `redact`: what it names is on no page, in no answer and in no error, and what was hidden survives an edit of the rest.

use std::process::Command;
use std::sync::Arc;

use serde_json::{json, Value};
use tasker::api::ApiConfig;
use tasker::engine::fail::Failure;
use tasker::engine::schedules;
use tasker::redaction::Redaction;
use tasker::schedule::Schedule;
use tasker::worker::Handlers;
use tasker::Db;

use super::api::Asked;
use super::children::Crew;
use super::world::World;

const ORDER: &str = "
name: order
namespace: here
input_schema: { type: object, properties: { amount: { type: number, minimum: 0 }, card: { type: string, pattern: '^secret' } } }
steps:
  - { name: check, handler: check }
  - { name: agree, wait: agreed, depends_on: [check] }
  - { name: charge, handler: charge, depends_on: [agree], retry: { max_attempts: 1 } }
";

const SECRET: &str = "secret-4111";

/// For people.
fn redacting(world: &World) -> Db {
    let paths = ["card".to_owned(), "$.token.value".to_owned()];
    world.db.clone().redacting(Redaction::parse(&paths).unwrap()).for_people()
}

/// Fails unless the handlers have what is hidden from people.
fn handlers() -> Handlers {
    Handlers::default()
        .with("check", |_| async { Ok(json!({ "token": { "value": SECRET }, "checked": true })) })
        .with("charge", |step: Arc<tasker::worker::Step>| async move {
            let input: Value = serde_json::from_str(&step.input().await?).unwrap();
            assert!(input["card"].as_str().unwrap_or_default().starts_with(SECRET), "{input}");
            match input["amount"].as_i64() {
                Some(1..) => Ok(json!({ "card": input["card"], "charged": true })),
                _ => Err(Failure::permanent("Declined", "no amount")),
            }
        })
}

/// A task whose last step is dead, and its letter.
async fn blocked(world: &World, api: &Asked) -> (String, String) {
    let id = api.create("order", json!({ "card": SECRET, "amount": 0 }));
    world.until_true("EXISTS (SELECT FROM tasker.waits WHERE since IS NOT NULL)").await;
    api.done("/signals", json!({ "task": id, "name": "agreed", "payload": { "card": SECRET } }));
    world.until_true("EXISTS (SELECT FROM tasker.steps WHERE state = 'dead')").await;
    let letter = api.get("/dead-letters").body["items"][0]["id"].as_str().unwrap().to_owned();
    (id, letter)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_is_on_no_page_in_no_answer_and_on_no_terminal_but_handlers_have_it() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::of(&redacting(world), &ApiConfig::default()).await;
        let crew = Crew::start(world, handlers()).await;
        let (id, letter) = blocked(world, &api).await;
        let schedule = Schedule::parse(&json!({ "every": "1d", "input": { "card": SECRET, "amount": 1 } })).unwrap();
        schedules::put(&world.db, "nightly", "order", &schedule).await.unwrap();

        let refused = api.post(
            "/tasks",
            json!({ "template": "order", "tasks": [{ "input": { "card": "4111-secret" } }] }),
        );
        refused.is_refused(422, "/card");
        assert!(!refused.body.to_string().contains("4111"), "{refused:?}");

        let shown: Vec<String> = ["", "/steps/check/result", "/reasons"]
            .iter()
            .map(|of| format!("/tasks/{id}{of}"))
            .chain(["/tasks", "/signals", "/dead-letters", "/schedules", "/schedules/nightly", "/audit"].map(str::to_owned))
            .chain([format!("/dead-letters/{letter}")])
            .map(|path| (api.get(&path), path))
            .inspect(|(answer, path)| assert_eq!(answer.status, 200, "{path}"))
            .map(|(answer, _)| answer.body.to_string())
            .chain(["", "?step=check", "?step=agree", "?step=charge"].map(|chosen| api.page(&format!("/tasks/{id}{chosen}"))))
            .chain([
                api.page(&format!("/dead-letters/{letter}")),
                api.page("/dead-letters"),
                api.page("/schedules"),
                api.page("/audit"),
            ])
            .chain(printed(
                world,
                &[
                    &["task", "show", &id, "--json"],
                    &["task", "show", &id],
                    &["signal", "list", "--json"],
                    &["dlq", "show", &letter],
                ],
            ))
            .collect();
        for text in &shown {
            assert!(!text.contains("4111"), "{text}");
        }
        assert!(shown.iter().filter(|text| text.contains("[redacted]")).count() >= 10, "{shown:#?}");
        crew.end().await;
    })
    .await;
}

/// By commands whose settings redact the same.
fn printed(world: &World, commands: &[&[&str]]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasker.yml");
    std::fs::write(&file, "shared: { redact: [card, $.token.value] }").unwrap();
    let run = |arguments: &&[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
        let done = command
            .args(*arguments)
            .env("DATABASE_URL", &world.url)
            .env("TASKER_CONFIG", &file)
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    commands.iter().map(run).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_edited_where_it_is_shown_keeps_what_is_hidden_in_it() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::of(&redacting(world), &ApiConfig::default()).await;
        let crew = Crew::start(world, handlers()).await;
        let (id, letter) = blocked(world, &api).await;

        let mut input = api.get(&format!("/dead-letters/{letter}")).body["input"].take();
        assert_eq!(input, json!({ "card": "[redacted]", "amount": 0 }));
        let copied = api.post("/tasks", json!({ "template": "order", "tasks": [{ "input": input }] }));
        copied.is_refused(422, "/card");

        input["amount"] = json!(7);
        api.done("/dead-letters/replay", json!({ "ids": [letter], "input": input }));
        world.until_true("EXISTS (SELECT FROM tasker.tasks WHERE state = 'complete')").await;
        let forked = api.done(&format!("/tasks/{id}/fork"), json!({ "input": input }));
        let fork = forked["id"].as_str().unwrap();
        assert_eq!(
            world
                .text(&format!("SELECT input ->> 'card' FROM tasker.tasks WHERE id = '{fork}'"))
                .await,
            SECRET
        );
        crew.end().await;
    })
    .await;
}
