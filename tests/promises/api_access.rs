//! Who may ask the API for what, and what is known of it afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use chrono::Utc;
use serde_json::{json, Value};
use tasker::api::ApiConfig;
use tasker::engine::tokens::{create_token, Holder, NewToken, Role};

use super::api::Asked;
use super::command_line::{json_of, tasker};
use super::health::{own_postgres, Serve};
use super::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";
const OTHER: &str = "name: one\nnamespace: there\nsteps:\n  - { name: only, handler: H }\n";

fn create(template: &str) -> Value {
    json!({ "template": template, "tasks": [{}] })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_is_for_and_nothing_else() {
    World::with(async |world| {
        world.register(ONE).await;
        world.register(OTHER).await;
        let api = Asked::open(world, false).await;
        let task = world.submit("here/one", json!({})).await;
        let other = world.submit("there/one", json!({})).await;
        api.get("/tasks").is_refused(401, "Authorization: Bearer");
        api.with("tasker_nobodys").get("/tasks").is_refused(401, "a token that counts");
        api.send("GET /tasks", &[("authorization", "Basic dXNlcg==")], None)
            .is_refused(401, "Authorization: Bearer");

        let [submitter, reader, operator, admin] = [Role::Submitter, Role::Reader, Role::Operator, Role::Admin];
        let wait = format!("/tasks/{task}/wait?timeout=0");
        let cancel = format!("/tasks/{task}/prioritize");
        let urgent = json!({ "priority": "urgent" });
        let token = json!({ "name": "new", "role": "reader" });
        for (role, expected) in [
            (submitter, [201, 200, 403, 403, 403, 403]),
            (reader, [201, 200, 200, 403, 403, 403]),
            (operator, [201, 200, 200, 200, 403, 403]),
            (admin, [201, 200, 200, 200, 200, 201]),
        ] {
            let asked = api.by(world, role, &[]).await;
            let statuses = [
                asked.post("/tasks", create("here/one")).status,
                asked.get(&wait).status,
                asked.get("/tasks").status,
                asked.post(&cancel, urgent.clone()).status,
                asked.get("/audit").status,
                asked.post("/tokens", token.clone()).status,
            ];
            assert_eq!(statuses, expected, "{}", role.name());
        }

        let bounded = api.by(world, submitter, &["here"]).await;
        assert_eq!(bounded.post("/tasks", create("here/one")).status, 201);
        bounded
            .post("/tasks", create("there/one"))
            .is_refused(403, "is for here, and for nothing else");
        bounded.post("/tasks", create("one")).is_refused(403, "is for here");
        let signal = |to: Value| json!({ "name": "go", "task": to });
        assert_eq!(bounded.post("/signals", signal(json!(task))).status, 202);
        bounded.post("/signals", signal(json!(other))).is_refused(403, "is for here");
        bounded
            .post("/signals", json!({ "name": "go", "key": "k" }))
            .is_refused(403, "is for here");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_kept_as_its_digest_only_and_counts_until_it_expires_or_is_revoked() {
    World::with(async |world| {
        let api = Asked::open(world, false).await;
        let admin = api.by(world, Role::Admin, &[]).await;
        let created = admin.post("/tokens", json!({ "name": "shop", "role": "reader" })).body["token"].clone();
        let token = created.as_str().unwrap();
        let reader = api.with(token);
        assert_eq!(reader.get("/tasks").status, 200);
        let kept = world.text("SELECT string_agg(t::text, ' ') FROM tasker.tokens t").await;
        assert!(!kept.contains(token) && !kept.contains(&token[7..]), "{kept}");
        admin
            .post("/tokens", json!({ "name": "shop", "role": "reader" }))
            .is_refused(422, "there is a token named shop");

        let listed = admin.get("/tokens").body["items"][0].clone();
        assert_eq!((&listed["name"], &listed["created_by"]), (&json!("shop"), &json!("admin")));
        assert!(listed["last_used_at"].is_string(), "{listed}");
        assert_eq!(admin.post("/tokens/shop/revoke", json!({ "why": "leaked" })).status, 200);
        reader.get("/tasks").is_refused(401, "a token that counts");
        admin.post("/tokens/shop/revoke", json!({})).is_refused(404, "no token shop");
        assert_eq!(
            admin.post("/tokens", json!({ "name": "shop", "role": "reader" })).status,
            201,
            "the name is free again"
        );

        let holder = Holder {
            name: "short".into(),
            role: Role::Reader,
            namespaces: None,
        };
        let expires_at = Some(Utc::now() + Duration::from_millis(1500));
        let short = api.with(&create_token(&world.db, &NewToken { holder, expires_at }, "test").await.unwrap());
        while short.get("/tasks").status == 200 {}
        short.get("/tasks").is_refused(401, "a token that counts");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_as_many_requests_as_the_rate_allows_and_others_go_on() {
    World::with(async |world| {
        let config = ApiConfig {
            rate: 3,
            ..ApiConfig::default()
        };
        let api = Asked::with_config(world, &config).await;
        let eager = api.by(world, Role::Reader, &[]).await;
        let refused = loop {
            let answer = eager.get("/tasks");
            if answer.status != 200 {
                break answer;
            }
        };
        refused.is_refused(429, "too many requests");
        assert_eq!(api.by(world, Role::Operator, &[]).await.get("/tasks").status, 200);
        assert_eq!(api.get("/tasks").status, 200, "without a token, from this host");
        while eager.get("/tasks").status != 200 {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_open_but_to_programs_of_this_host() {
    World::with(async |world| {
        let api = Asked::open(world, true).await;
        assert_eq!(api.get("/tasks").status, 200);
        for header in [
            ("host", "evil.example"),
            ("origin", "https://evil.example"),
            ("x-forwarded-for", "10.0.0.7"),
            ("forwarded", "for=10.0.0.7"),
        ] {
            api.send("GET /tasks", &[header], None).is_refused(401, "Authorization: Bearer");
        }
        let token = api.by(world, Role::Reader, &[]).await;
        assert_eq!(token.send("GET /tasks", &[("x-forwarded-for", "10.0.0.7")], None).status, 200);
        api.get("/tasks?token=tasker_0123456789")
            .is_refused(400, "does not belong in a URL");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_recorded_with_who_from_where_and_why() {
    World::with(async |world| {
        world.register(ONE).await;
        let api = Asked::open(world, false).await;
        let operator = api.by(world, Role::Operator, &[]).await;
        let admin = api.by(world, Role::Admin, &[]).await;
        let created = operator.post("/tasks", create("one")).body["tasks"][0]["id"].clone();
        let task = created.as_str().unwrap();
        operator.post(&format!("/tasks/{task}/cancel"), json!({ "why": "ordered twice" }));
        operator
            .post(&format!("/tasks/{task}/fork"), json!({ "from": "nothing" }))
            .is_refused(404, "no step nothing");
        operator.get("/audit").is_refused(403, "is of the role operator: this takes admin");

        let of_task = admin.get(&format!("/audit?object={task}")).body["items"].clone();
        let told: Vec<(&Value, &Value, &Value)> = of_task
            .as_array()
            .unwrap()
            .iter()
            .map(|c| (&c["action"], &c["done"], &c["why"]))
            .collect();
        let expected = [
            (&json!("task.fork"), &json!(false), &Value::Null),
            (&json!("task.cancel"), &json!(true), &json!("ordered twice")),
            (&json!("task.create"), &json!(true), &Value::Null),
        ];
        assert_eq!(told, expected);
        let fork = &of_task[0];
        assert_eq!(
            (&fork["who"], &fork["via"], &fork["address"]),
            (&json!("operator"), &json!("api"), &json!("127.0.0.1"))
        );
        assert!(fork["error"].as_str().unwrap().contains("nothing"), "{fork}");
        let first = admin.get("/audit?who=operator&limit=1").body;
        let second = admin
            .get(&format!("/audit?who=operator&limit=1&cursor={}", first["next"].as_str().unwrap()))
            .body;
        assert_eq!(second["items"][0]["action"], "task.cancel");

        world
            .run("UPDATE tasker.audit SET at = at - interval '2 years' WHERE action = 'task.create'")
            .await;
        assert_eq!(
            world.count("SELECT tasker.forget_changes(interval '1 year', 1000)::bigint").await,
            1
        );
        assert_eq!(admin.get("/audit").body["items"].as_array().unwrap().len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_created_listed_and_revoked_by_the_command_line() {
    World::with(async |world| {
        let url = world.url.as_str();
        let said = |arguments: &[&str]| String::from_utf8(tasker(url, arguments).stdout).unwrap().trim().to_owned();
        let token = said(&[
            "token",
            "create",
            "shop",
            "--role",
            "submitter",
            "--namespace",
            "here",
            "--expires-in",
            "90d",
            "--who",
            "ada",
        ]);
        assert!(token.starts_with("tasker_") && token.len() == 71, "{token}");
        let listed = json_of(url, &["token", "list", "--json"]);
        assert_eq!(
            (&listed[0]["role"], &listed[0]["namespaces"]),
            (&json!("submitter"), &json!(["here"]))
        );
        assert!(said(&["token", "list"]).contains("shop"));
        assert_eq!(json_of(url, &["api", "schema"])["info"]["title"], "tasker");

        let serve = Serve::start(url, &[], &[("TASKER__API__TRUST_LOOPBACK", "false")]);
        let ask = |token: &str| {
            let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
            let path = format!("http://{}/api/v1/tasks", serve.api());
            let asked = agent.post(path).header("authorization", format!("Bearer {token}"));
            asked
                .content_type("application/json")
                .send(create("here/one").to_string())
                .unwrap()
                .status()
                .as_u16()
        };
        assert_eq!((ask(&token), ask("tasker_")), (404, 401), "there is no such template");
        assert!(said(&["token", "revoke", "shop"]).contains("revoked"));
        assert_eq!(ask(&token), 401);
        assert_eq!(tasker(url, &["token", "revoke", "shop"]).status.code(), Some(4));
        let refused = tasker(url, &["token", "create", "a", "--role", "reader", "--namespace", "here"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("only a submitter is one of some namespaces"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_connections_of_the_api_or_says_nothing_hurts_no_probe() {
    World::with(async |world| {
        let serve = Serve::start(&world.url, &[], &[]);
        let connect = || TcpStream::connect(serve.api()).expect("connects");
        let silent: Vec<TcpStream> = (0..500).map(|_| connect()).collect();
        let mut slow = connect();
        slow.write_all(
            b"POST /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
        )
        .unwrap();
        assert_eq!(serve.get("/health").0, 200);
        serve.until("/ready", |status, _| status == 200).await;

        // They are let go of, and others have their turn.
        let mut rest = Vec::new();
        for mut connection in silent {
            connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            connection.read_to_end(&mut rest).expect("it is closed in time");
        }
        let mut connection = connect();
        connection
            .write_all(b"GET /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_goes_on_after_a_crash_of_postgresql_and_says_when_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let (postgres, url) = own_postgres(&folder).await;
    let serve = Serve::start(&url, &[], &[]);
    let ask = || {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.get(format!("http://{}/api/v1/tasks", serve.api())).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    assert_eq!(ask().0, 200);
    postgres.crash().unwrap();
    while ask().0 != 200 {}
    postgres.stop().unwrap();
    let (status, said) = ask();
    assert_eq!(status, 503);
    assert!(
        said.contains("the database is away") && !said.contains("5432") && !said.contains("user"),
        "{said}"
    );
}
