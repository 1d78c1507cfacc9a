//! Commands with `--server`: the same as with the database, where that is out of reach.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::tokens::Role;
use tasker::http::{Certificate, Door};

use super::api::{crew, leave, Asked, ORDER};
use super::command_line::json_of;
use super::world::World;

/// Runs a command that has no database.
fn run(api: &Asked, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
    command
        .args(arguments)
        .env("TASKER_SERVER", format!("http://{}", api.address()))
        .env("TASKER_TOKEN", api.token());
    command
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
        .output()
        .unwrap()
}

fn said(output: &Output) -> (i32, String) {
    let text = [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat();
    (output.status.code().unwrap(), text)
}

/// The JSON that it prints.
fn of(api: &Asked, arguments: &[&str]) -> Value {
    let output = run(api, arguments);
    assert!(output.status.success(), "{arguments:?}: {:?}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {:?}", said(&output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_shows_by_an_api_is_what_it_shows_by_the_database() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, false).await.by(world, Role::Admin, &[]).await;
        let crew = crew(world).await;
        for card in ["good", "bad"] {
            let input = json!({ "card": card }).to_string();
            let task = [
                "task",
                "create",
                "here/order",
                "--input",
                &input,
                "--tag",
                "shop=1,2",
                "--tag",
                "by=cli",
                "--key",
                card,
                "--json",
            ];
            let created = of(&api, &task);
            assert_eq!(
                (created["created"].as_bool(), of(&api, &task)["created"].as_bool()),
                (Some(true), Some(false))
            );
            let watched = run(&api, &["task", "watch", created["id"].as_str().unwrap()]);
            assert_eq!(
                watched.status.code(),
                Some(if card == "good" { 0 } else { 1 }),
                "{:?}",
                said(&watched)
            );
        }
        leave(crew).await;
        assert_eq!(
            of(&api, &["task", "list", "--tag", "by=cli", "--limit", "1", "--json"])
                .as_array()
                .unwrap()
                .len(),
            1
        );
        let blocked = of(&api, &["task", "list", "--state", "blocked", "--json"])[0]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let letter = of(&api, &["dlq", "list", "--json"])[0]["id"].as_str().unwrap().to_owned();
        of(&api, &["schedule", "list", "--json"]);
        let (code, _) = said(&run(
            &api,
            &[
                "schedule",
                "create",
                "nightly run",
                "here/order",
                "--cron",
                "0 3 * * *",
                "--input",
                r#"{ "card": "x" }"#,
            ],
        ));
        assert_eq!(code, 0);
        assert_eq!(said(&run(&api, &["config", "set", "orchestrator.batch", "150"])).0, 0);
        for command in [
            &["task", "list", "--json"][..],
            &["task", "show", &blocked, "--json"],
            &["task", "why", &blocked, "--json"],
            &["task", "waiting", "--json"],
            &["signal", "list", "--json"],
            &["dlq", "list", "--json"],
            &["dlq", "groups", "--json"],
            &["dlq", "show", &letter, "--json"],
            &["schedule", "list", "--json"],
            &["limit", "list", "--json"],
            &["pauses", "--json"],
            &["namespace", "list", "--json"],
            &["shard", "list", "--json"],
            &["template", "list", "--json"],
            &["template", "show", "here/order", "--json"],
            &["template", "versions", "here/order", "--json"],
            &["config", "history", "--json"],
            &["config", "drift", "--json"],
        ] {
            assert_eq!(of(&api, command), json_of(&world.url, command), "{command:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_by_an_api_is_done_and_recorded_with_the_token_that_did_it() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, false).await.by(world, Role::Operator, &[]).await;
        let crew = crew(world).await;
        let create = |input: Value| api.create("order", input);
        let (bad, other) = (create(json!({ "card": "bad" })), create(json!({ "card": "bad" })));
        world.until_true("(SELECT count(*) = 2 FROM tasker.steps WHERE state = 'dead')").await;
        let letters: Vec<Value> = of(&api, &["dlq", "list", "--json"]).as_array().unwrap().clone();
        let letter_of = |task: &str| letters.iter().find(|letter| letter["task"] == task).unwrap()["id"].as_str().unwrap().to_owned();
        let done = of(&api, &["dlq", "replay", &letter_of(&bad), "--input", r#"{ "card": "good" }"#, "--why", "it was mended", "--json"]);
        assert_eq!(done["replayed"].as_array().unwrap().len(), 1);
        world.until_true(&format!("EXISTS (SELECT FROM tasker.tasks WHERE id = '{bad}' AND state = 'complete')")).await;
        let (code, text) = said(&run(&api, &["dlq", "skip", "--class", "CardDeclined", "--dry-run"]));
        assert_eq!((code, text.trim()), (0, &*format!("would skip 1: {}", letter_of(&other))));
        let dry = ["task", "replay", "--error", "CardDeclined", "--dry-run"];
        assert_eq!(said(&run(&api, &dry)).1.trim(), "would concern 1 tasks");
        assert_eq!(said(&run(&api, &["dlq", "resolve", &letter_of(&other), "--result", "null"])).0, 0);
        let log = of(&api, &["dlq", "log", "--json"]);
        assert_eq!(log, json_of(&world.url, &["dlq", "log", "--json"]));
        assert_eq!((&log[0]["letter"], &log[1]["why"]), (&json!(letter_of(&other)), &json!("it was mended")));
        assert_eq!(said(&run(&api, &["dlq", "purge"])).1.trim(), "purged 0");
        world.run("DROP TABLE pgmq.q_here_queue_dlq").await;
        let repaired = of(&api, &["queue", "repair", "--json"]);
        assert_eq!((&repaired[0]["namespace"], repaired[0]["found"].is_string()), (&json!("here"), true), "{repaired}");
        assert_eq!(said(&run(&api, &["queue", "repair"])).1.trim(), "no queue is broken");
        world.until_true(&format!("EXISTS (SELECT FROM tasker.tasks WHERE id = '{other}' AND state = 'complete')")).await;
        leave(crew).await;

        let waiting: Vec<String> = (0..3).map(|_| create(json!({ "card": "good" }))).collect();
        let (code, text) = said(&run(&api, &["task", "cancel", &waiting[0], &other]));
        assert_eq!((code, text.trim()), (1, "cancelled 1 of 2"));
        assert_eq!(said(&run(&api, &["pause", "namespace", "here", "--why", "the bank is away"])).1.trim(), "here: paused");
        assert_eq!(of(&api, &["pauses", "--json"])[0]["why"], "the bank is away");
        assert_eq!(said(&run(&api, &["resume", "namespace", "here"])).1.trim(), "here: goes on");
        let fork = of(&api, &["task", "fork", &bad, "--json"]);
        assert_eq!(fork["forked_from"], bad.as_str());
        let why = world.text("SELECT string_agg(who || ' ' || action || ' ' || coalesce(why, ''), ', ' ORDER BY id) FROM tasker.audit WHERE action <> 'task.create'").await;
        let expected = "operator dead_letters.replay it was mended, operator dead_letters.resolve , operator dead_letters.purge , operator queues.repair , operator queues.repair , operator task.cancel , operator task.cancel , operator pause the bank is away, operator resume , operator task.fork ";
        assert_eq!(why, expected);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_namespaces_and_the_configuration_are_kept_by_an_api() {
    World::with(async |world| {
        let open = Asked::open(world, false).await;
        let api = open.by(world, Role::Admin, &[]).await;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let order = file("order.yml", ORDER);
        let register = ["template", "register", &order, "--json"];
        assert_eq!(
            (of(&api, &register)["created"].as_bool(), of(&api, &register)["created"].as_bool()),
            (Some(true), Some(false))
        );
        assert_eq!(
            of(&api, &["namespace", "create", "there", "here", "--json"])
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let (code, text) = said(&run(&api, &["namespace", "create", "Not one"]));
        assert!(
            code == 1 && text.contains("'Not one' cannot be the name of a namespace"),
            "{code}: {text}"
        );
        let set = of(
            &api,
            &[
                "namespace",
                "set",
                "there",
                "--max-attempts",
                "8",
                "--why",
                "the bank is slow",
                "--json",
            ],
        );
        assert_eq!(set, json!([json_of(&world.url, &["namespace", "list", "--json"])[1]]));
        assert_eq!(set[0]["max_attempts"], 8);

        let settings = file("shared.yml", "orchestrator: { batch: 150 }");
        assert_eq!(
            said(&run(&api, &["config", "apply", &settings])).1.trim(),
            r#"version 2: {"orchestrator":{"batch":150}}"#
        );
        let wrong = json!({ "overrides": { "orchestrator": { "batch": -1 } } });
        let refused = api.post("/configuration/apply", wrong);
        refused.is_refused(422, "orchestrator.batch");
        let refused = api.post("/templates", json!({ "source": "name: order\nsteps: 5", "origin": "order.yml" }));
        refused.is_refused(422, "order.yml:");
        let operator = open.by(world, Role::Operator, &[]).await;
        for path in ["/templates", "/namespaces", "/namespaces/there/rules", "/configuration/apply"] {
            operator.post(path, json!({})).is_refused(403, "this takes admin");
        }
        let recorded = world
            .text("SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM tasker.audit WHERE error IS NULL")
            .await;
        assert_eq!(
            recorded,
            "configuration.apply namespaces.create namespaces.rules templates.register"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_what_goes_on_is_the_same_by_an_api() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, false).await.by(world, Role::Reader, &[]).await;
        api.create("order", json!({ "card": "good" }));
        let by_database = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .arg("top")
            .env("DATABASE_URL", &world.url)
            .output()
            .unwrap();
        let (code, picture) = said(&by_database);
        assert!(
            code == 0 && picture.contains("here") && picture.contains("what needs a person"),
            "{picture}"
        );
        let oldest = |picture: &str| picture.replace(|c: char| c.is_ascii_digit() || c == '.', "");
        assert_eq!(oldest(&said(&run(&api, &["top", "--once"])).1), oldest(&picture));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_says_what_an_api_refuses_and_what_it_does_not_have() {
    World::with(async |world| {
        let open = Asked::open(world, false).await;
        let reader = open.by(world, Role::Reader, &[]).await;
        let nobody = "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b";
        for (api, command, code, expected) in [
            (&reader, &["task", "show", nobody][..], 4, "no task"),
            (
                &reader,
                &["task", "cancel", nobody],
                3,
                "is of the role reader: this takes operator",
            ),
            (&open, &["task", "list"], 3, "a token that counts"),
            (&reader, &["template", "show", "order"], 1, "expected namespace/name"),
            (&reader, &["shard", "check"], 3, "works with the database itself"),
            (
                &reader,
                &["task", "list", "--database-url", "nonsense"],
                3,
                "the database URL is not valid",
            ),
            (&reader, &["task", "list", "--server", "localhost:1"], 3, "expected http"),
            (&reader, &["task", "list", "--server", "http://127.0.0.1:1"], 3, "does not answer"),
        ] {
            let (found, text) = said(&run(api, command));
            assert!(found == code && text.contains(expected), "{command:?}: {found}: {text}");
            assert!(api.token().is_empty() || !text.contains(api.token()), "{text}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_certificate_of_ones_own_is_asked_where_that_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = "req -x509 -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -newkey rsa:2048 -nodes -keyout key -out certificate";
    assert!(Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(&folder)
        .output()
        .unwrap()
        .status
        .success());
    let (certificate, key) = (folder.path().join("certificate"), folder.path().join("key"));
    let door = Door::bind("127.0.0.1:0".parse().ok(), ([127, 0, 0, 1], 0).into()).await.unwrap();
    let port = door.address().unwrap().port();
    let answer = axum::Router::new().fallback(|| async { axum::Json(json!({ "items": [], "next": null })) });
    let serving = door.encrypted(Certificate::read(&certificate, &key).unwrap()).open(answer);
    let list = |roots: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
        command
            .args(["task", "list", "--json", "--server", &format!("https://localhost:{port}")])
            .env("SSL_CERT_FILE", roots);
        said(&command.output().unwrap())
    };
    assert_eq!(list(certificate.to_str().unwrap()), (0, "[]\n".into()));
    let (code, text) = list("");
    assert!(code == 3 && text.contains("does not answer"), "{text}");
    let (code, text) = list(key.to_str().unwrap());
    assert!(code == 3 && text.contains("it has no certificate"), "{text}");
    tokio::time::timeout(Duration::from_secs(30), serving.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_all_tasks_of_a_filter_is_a_bulk_action_whose_end_the_command_waits_for() {
    World::with(async |world| {
        world.register(ORDER).await;
        let api = Asked::open(world, false).await.by(world, Role::Operator, &[]).await;
        let crew = crew(world).await;
        let tasks: Vec<String> = (0..3).map(|_| api.create("order", json!({ "card": "bad" }))).collect();
        world
            .until_true("(SELECT count(*) = 3 FROM tasker.tasks WHERE state = 'blocked')")
            .await;
        let cancelled = of(&api, &["task", "cancel", "--state", "blocked", "--json"]);
        assert_eq!(cancelled, json!({ "cancelled": 3, "of": 3 }));
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'cancelled'").await,
            tasks.len() as i64
        );
        assert_eq!(api.get("/bulk-actions").body["items"][0]["who"], "operator");
        for dry in [&["--all"][..], &["--all", "--dry-run"]] {
            let (code, text) = said(&run(&api, &[&["task", "cancel"], dry].concat()));
            assert!(code == 1 && text.contains("expected one"), "{text}");
        }
        leave(crew).await;
    })
    .await;
}
