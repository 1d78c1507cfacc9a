//! The REST API, asked over HTTP: tasks, and what all resources have in common.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::api::{document, Api, ApiConfig};
use tasker::engine::configuration::coordinator_of;
use tasker::engine::fail::Failure;
use tasker::engine::shards::Shards;
use tasker::engine::tokens::{create_token, Holder, NewToken, Role};
use tasker::http::{Door, Serving};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker};
use tasker::Db;

use crate::world::World;

/// The API of a world, and who asks it.
#[derive(Clone)]
pub(crate) struct Asked {
    address: String,
    token: Option<String>,
    serving: Arc<Serving>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) media_type: String,
    /// Empty: there is none.
    pub(crate) etag: String,
    pub(crate) body: Value,
}

impl Asked {
    /// Asks without a token.
    pub(crate) async fn open(world: &World, trusts_loopback: bool) -> Asked {
        let config = ApiConfig {
            trust_loopback: trusts_loopback,
            ..ApiConfig::default()
        };
        Asked::with_config(world, &config).await
    }

    pub(crate) async fn with_config(world: &World, config: &ApiConfig) -> Asked {
        Asked::of(&world.db, config).await
    }

    /// The API over these connections.
    pub(crate) async fn of(db: &Db, config: &ApiConfig) -> Asked {
        Asked::of_shards(&Shards::of(db), config).await
    }

    /// The API over these shards.
    pub(crate) async fn of_shards(shards: &Shards, config: &ApiConfig) -> Asked {
        let door = Door::bind("127.0.0.1:0".parse().ok(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = door.address().unwrap().to_string();
        let coordinator = coordinator_of(shards).await.unwrap();
        let api = Api::new(shards, coordinator, config).unwrap();
        Asked {
            address,
            token: None,
            serving: Arc::new(door.open(tasker::web::router(api))),
        }
    }

    /// The same, asked with a new token of this role.
    pub(crate) async fn by(&self, world: &World, role: Role, namespaces: &[&str]) -> Asked {
        let namespaces = Some(namespaces.iter().map(|name| name.to_string()).collect()).filter(|names: &Vec<_>| !names.is_empty());
        let holder = Holder {
            name: format!("{}{}", role.name(), namespaces.iter().flatten().cloned().collect::<String>()),
            role,
            namespaces,
        };
        let token = create_token(&world.db, &NewToken { holder, expires_at: None }, "test")
            .await
            .unwrap();
        self.with(&token)
    }

    pub(crate) fn with(&self, token: &str) -> Asked {
        Asked {
            address: self.address.clone(),
            token: Some(token.to_owned()),
            serving: self.serving.clone(),
        }
    }

    /// Asks by METHOD PATH, with these headers beside the token, and this body.
    pub(crate) fn send(&self, what: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
        let (method, path) = what.split_once(' ').expect("a method and a path");
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}/api/v1{path}", self.address));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        let answered = match body {
            Some(body) => agent.run(request.body(body.to_owned()).unwrap()),
            None => agent.run(request.body(()).unwrap()),
        };
        let mut answered = answered.unwrap_or_else(|error| panic!("{what}: {error}"));
        let text = answered.body_mut().read_to_string().expect("a body");
        let header = |name: &str| answered.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        Answer {
            status: answered.status().as_u16(),
            media_type: header("content-type"),
            etag: header("etag"),
            body: match text.is_empty() {
                true => Value::Null,
                false => serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what}: {error}: {text}")),
            },
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path}"), &[], None)
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Answer {
        self.send(
            &format!("POST {path}"),
            &[("content-type", "application/json")],
            Some(&body.to_string()),
        )
    }

    pub(crate) fn put(&self, path: &str, body: Value) -> Answer {
        self.send(
            &format!("PUT {path}"),
            &[("content-type", "application/json")],
            Some(&body.to_string()),
        )
    }

    /// A page of the dashboard.
    pub(crate) fn page(&self, path: &str) -> String {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.get(format!("http://{}{path}", self.address)).call().unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.body_mut().read_to_string().unwrap()
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// What it answers where that is to succeed.
    pub(crate) fn done(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body);
        assert!((200..300).contains(&answer.status), "{path}: {answer:?}");
        answer.body
    }

    pub(crate) fn create(&self, template: &str, input: Value) -> String {
        let created = self.done("/tasks", json!({ "template": template, "tasks": [{ "input": input }] }));
        created["tasks"][0]["id"].as_str().unwrap().to_owned()
    }
}

impl Answer {
    /// It is a problem with this status that says so.
    pub(crate) fn is_refused(&self, status: u16, says: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.media_type, "application/problem+json");
        assert_eq!(self.body["status"], status);
        let detail = self.body["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{detail:?} does not say {says:?}");
    }
}

pub(crate) const ORDER: &str = "
name: order
namespace: here
input_schema: { type: object, properties: { card: { type: string } } }
steps:
  - { name: check, handler: check }
  - { name: charge, handler: charge, depends_on: [check], retry: { max_attempts: 1 } }
";

/// Cards that are bad are declined.
pub(crate) async fn crew(world: &World) -> (Arc<Worker>, Orchestrator) {
    let handlers = Handlers::default()
        .with("check", |_| async { Ok(json!({ "checked": true })) })
        .with("charge", |step: Arc<tasker::worker::Step>| async move {
            let input: Value = serde_json::from_str(&step.input().await?).unwrap();
            match input["card"] == "bad" {
                true => Err(Failure::permanent("CardDeclined", "no funds")),
                false => Ok(json!({ "charged": true })),
            }
        });
    let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
    (world.worker(handlers).await, orchestrator)
}

pub(crate) async fn leave((worker, orchestrator): (Arc<Worker>, Orchestrator)) {
    worker.shutdown(Duration::from_secs(5)).await;
    orchestrator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_created_waited_for_listed_and_shown() {
    World::with(async |world| {
        world.register(ORDER).await;
        let crew = crew(world).await;
        let api = Asked::open(world, true).await;
        let task = api.create("here/order", json!({ "card": "good" }));
        assert_eq!(
            api.get(&format!("/tasks/{task}/wait")).body,
            json!({ "id": task, "state": "complete" })
        );
        let shown = api.get(&format!("/tasks/{task}")).body;
        assert_eq!(
            (&shown["state"], &shown["steps"][1]["result"]),
            (&json!("complete"), &json!({ "charged": true }))
        );

        let tags = json!({ "template": "here/order", "tasks": [{ "tags": { "customer": "42" } }, { "tags": { "customer": "43" } }] });
        let tagged = api.done("/tasks", tags)["tasks"][0]["id"].clone();
        let found = api.get("/tasks?template=order&tag=customer=42&limit=5").body;
        assert_eq!((found["items"].as_array().unwrap().len(), &found["items"][0]["id"]), (1, &tagged));

        let mut seen = Vec::new();
        let mut page = api.get("/tasks?limit=2").body;
        loop {
            seen.extend(page["items"].as_array().unwrap().iter().map(|task| task["id"].to_string()));
            match page["next"].as_str() {
                Some(next) => page = api.get(&format!("/tasks?limit=2&cursor={next}")).body,
                None => break,
            }
        }
        seen.dedup();
        assert_eq!(seen.len(), 3, "each is on one page");
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_is_the_same_task() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let headers = [("content-type", "application/json"), ("idempotency-key", "order-42")];
        let create = || api.send("POST /tasks", &headers, Some(r#"{"template":"order","tasks":[{}]}"#));
        let (first, again) = (create(), create());
        assert_eq!((first.status, again.status), (201, 201));
        assert_eq!(first.body["tasks"][0]["id"], again.body["tasks"][0]["id"]);
        assert_eq!(
            (&first.body["tasks"][0]["created"], &again.body["tasks"][0]["created"]),
            (&json!(true), &json!(false))
        );
        let several = api.send("POST /tasks", &headers, Some(r#"{"template":"order","tasks":[{},{}]}"#));
        several.is_refused(400, "Idempotency-Key is for a single task");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_what_was_expected() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let nobody = "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b";
        let input = |input: Value| json!({ "template": "order", "tasks": [{ "input": input }] });
        api.post("/tasks", input(json!({ "card": 7 })))
            .is_refused(422, "/card: 7 is not of type \"string\"");
        api.post("/tasks", input(json!({ "card": "\0" }))).is_refused(422, "U+0000");
        api.post("/tasks", input(json!({ "card": "a".repeat(1 << 20) })))
            .is_refused(413, "at most 1048576");
        api.post("/tasks", json!({ "template": "orders", "tasks": [{}] }))
            .is_refused(404, "no template orders");
        api.post("/tasks", json!({ "template": "order", "tasks": [] }))
            .is_refused(422, "expected 1 to 1000");
        api.post("/tasks", json!({ "template": "order", "tasks": [{ "priority": "asap" }] }))
            .is_refused(422, "unknown variant `asap`");
        api.send("POST /tasks", &[("content-type", "application/json")], Some("{"))
            .is_refused(400, "EOF");
        api.send("POST /tasks", &[("content-type", "text/plain")], Some("{}"))
            .is_refused(415, "application/json");
        let large = format!("\"{}\"", "a".repeat(5 << 20));
        api.send("POST /tasks", &[("content-type", "application/json")], Some(&large))
            .is_refused(413, "more than 4194304 bytes");
        api.get("/tasks/7").is_refused(404, "an id is a UUID such as");
        api.get(&format!("/tasks/{nobody}")).is_refused(404, nobody);
        api.get(&format!("/tasks/{nobody}/steps/a/children")).is_refused(404, nobody);
        api.post(&format!("/tasks/{nobody}/cancel"), json!({})).is_refused(404, nobody);
        api.get("/tasks?limit=1001").is_refused(400, "1 to 1000");
        api.get("/tasks?colour=red").is_refused(400, "unknown field `colour`");
        api.get("/tasks?namespace=%00").is_refused(400, "U+0000");
        api.get("/dead-letters?cursor=seven").is_refused(422, "expected namespace/number");
        api.get("/orders").is_refused(404, "openapi.json");
        api.send("DELETE /tasks", &[], None).is_refused(405, "no such method");
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 0, "nothing is half done");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_cancels_pauses_prioritises_replays_and_forks_tasks() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let done = |task: &str, verb: &str, body: Value| api.done(&format!("/tasks/{task}/{verb}"), body);
        let (yes, no) = (json!({ "done": true }), json!({ "done": false }));
        let task = api.create("order", json!({}));
        assert_eq!(done(&task, "prioritize", json!({ "priority": "urgent" })), yes);
        assert_eq!(done(&task, "pause", json!({ "why": "wait" })), yes);
        let shown = api.get(&format!("/tasks/{task}")).body;
        assert_eq!(
            (&shown["state"], &shown["priority"], &shown["pause"]["why"]),
            (&json!("paused"), &json!("urgent"), &json!("wait"))
        );
        assert_eq!(done(&task, "resume", json!({})), yes);
        assert_eq!(
            (done(&task, "cancel", json!({})), done(&task, "cancel", json!({}))),
            (yes.clone(), no)
        );

        let crew = crew(world).await;
        let task = api.create("order", json!({ "card": "bad" }));
        assert_eq!(api.get(&format!("/tasks/{task}/wait")).body["state"], "blocked");
        let fork = done(&task, "fork", json!({ "from": "charge", "input": { "card": "good" } }))["id"].clone();
        assert_eq!(
            api.get(&format!("/tasks/{}/wait", fork.as_str().unwrap())).body["state"],
            "complete"
        );
        assert_eq!(done(&task, "replay", json!({ "input": { "card": "good" } })), yes);
        world
            .until_true(&format!("state = 'complete' FROM tasker.tasks WHERE id = '{task}'"))
            .await;
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_many_wait_for_tasks_each_is_told_of_its_end() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        let tasks: Vec<String> = (0..20).map(|_| api.create("order", json!({}))).collect();
        let waiting: Vec<_> = tasks
            .iter()
            .cycle()
            .take(100)
            .map(|task| {
                let (api, path) = (api.clone(), format!("/tasks/{task}/wait"));
                std::thread::spawn(move || api.get(&path).body["state"].clone())
            })
            .collect();
        world
            .until_true("count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%task_states%'")
            .await;
        let crew = crew(world).await;
        for waiter in waiting {
            assert_eq!(waiter.join().unwrap(), "complete");
        }
        assert_eq!(api.get(&format!("/tasks/{}/wait?timeout=0", tasks[0])).body["state"], "complete");
        leave(crew).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_what_changes_seldom_is_not_sent_it_again() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, true).await;
        for path in [
            "/templates/here/order",
            "/templates",
            "/namespaces",
            "/configuration",
            "/openapi.json",
        ] {
            let first = api.get(path);
            let ask = |tag: &str| api.send(&format!("GET {path}"), &[("if-none-match", tag)], None);
            let again = ask(&first.etag);
            assert_eq!((first.status, again.status, &again.body), (200, 304, &Value::Null), "{path}");
            assert_eq!(ask("\"another\"").body, first.body);
        }
        let before = api.get("/templates").etag;
        world.register(&ORDER.replace("name: order", "version: \"2\"\nname: order")).await;
        assert_ne!(api.get("/templates").etag, before);
        assert_eq!(api.get("/tasks").etag, "", "it changes all the time");
    })
    .await;
}

#[test]
fn each_route_has_a_description_an_example_and_its_errors() {
    let document = serde_json::to_value(document()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, route) in methods.as_object().unwrap() {
            let name = format!("{method} {path}");
            routes += 1;
            for text in ["summary", "description"] {
                assert!(route[text].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {text}");
            }
            let described = route["description"].as_str().unwrap().replace('\n', " ");
            assert!(described.contains("takes the role"), "{name} does not say who may");
            let responses = route["responses"].as_object().unwrap();
            let with_content = responses.iter().filter(|(status, _)| *status != "204");
            let (good, bad): (Vec<_>, Vec<_>) = with_content.partition(|(status, _)| status.starts_with('2'));
            assert_eq!(good.len(), 1, "{name}");
            assert!(
                !good[0].1["content"]["application/json"]["example"].is_null(),
                "{name} has no example"
            );
            let expected = if method == "get" { 7 } else { 10 };
            let bad: Vec<_> = bad.into_iter().filter(|(status, _)| *status != "304").collect();
            assert_eq!(bad.len(), expected, "{name}");
            for (status, problem) in bad {
                let content = &problem["content"]["application/problem+json"];
                assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem", "{name} {status}");
                assert_eq!(content["example"]["status"].to_string(), *status, "{name}");
            }
            for parameter in route["parameters"].as_array().into_iter().flatten() {
                let described = !parameter["description"].is_null()
                    || parameter["name"] == "namespace"
                    || parameter["name"] == "handler"
                    || parameter["name"] == "name";
                assert!(described, "{name}: {} has no description", parameter["name"]);
            }
        }
    }
    assert!(routes > 40, "{routes} routes");
}
