//! The binary `tasker` as an operator uses it: what it prints, and its exit codes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{json, Value};

use crate::world::{free_port, World};

pub(crate) fn tasker(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
    command
        .args(arguments)
        .env("DATABASE_URL", url)
        .env_remove("NAMESPACE")
        .stdin(Stdio::null());
    command.output().expect("tasker runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Runs it, expects success, and returns standard output as JSON.
pub(crate) fn json_of(url: &str, arguments: &[&str]) -> Value {
    let output = tasker(url, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output.stdout)))
}

/// Runs it, expects `code` and exactly one line on standard error that contains `expected`.
fn refused(url: &str, arguments: &[&str], code: i32, expected: &str) {
    let output = tasker(url, arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(expected), "{arguments:?} says {said:?}, not {expected:?}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".yml").tempfile().expect("a file");
    file.write_all(content.as_bytes()).expect("writes");
    file
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_registers_creates_lists_shows_and_cancels() {
    World::with(async |world| {
        let url = world.url.as_str();
        let template = file("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n");
        let path = template.path().to_str().unwrap();
        let registered = json_of(url, &["template", "register", path, "--json"]);
        assert_eq!(
            registered,
            json!({ "namespace": "here", "name": "one", "version": "1", "created": true })
        );
        assert_eq!(json_of(url, &["template", "list", "--json"])[0]["steps"], 1);
        assert_eq!(json_of(url, &["template", "show", "one", "--json"])["steps"][0]["handler"], "H");

        let later = json_of(url, &["task", "create", "one", "--in", "1h", "--json"]);
        let listed = json_of(url, &["task", "list", "--state", "waiting", "--json"]);
        assert_eq!(listed[0]["id"], later["id"]);
        refused(url, &["task", "create", "one", "--at", "tomorrow"], 2, "tomorrow");

        let created = json_of(
            url,
            &[
                "task",
                "create",
                "one",
                "--input",
                r#"{"n": 1}"#,
                "--priority",
                "high",
                "--key",
                "k",
                "--json",
            ],
        );
        let id = created["id"].as_str().unwrap();
        assert_eq!(
            json_of(url, &["task", "create", "one", "--key", "k", "--json"]),
            json!({ "id": id, "created": false })
        );
        let shown = json_of(url, &["task", "show", id, "--json"]);
        assert_eq!(
            (&shown["input"], &shown["priority"], &shown["state"]),
            (&json!({ "n": 1 }), &json!("high"), &json!("pending"))
        );
        assert!(text(&tasker(url, &["task", "show", id]).stdout).contains("only  pending  0/5"));
        assert_eq!(
            json_of(url, &["task", "list", "--state", "pending", "--json"])
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(json_of(url, &["task", "cancel", id, "--json"]), json!({ "cancelled": [id] }));
        assert_eq!(
            tasker(url, &["task", "cancel", id]).status.code(),
            Some(1),
            "nothing was left to cancel"
        );
        assert_eq!(tasker(url, &["task", "watch", id]).status.code(), Some(1), "it did not complete");
        assert_eq!(tasker(url, &["migrate"]).status.code(), Some(0), "again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_templates_and_payloads_are_refused_with_a_clear_message() {
    World::with(async |world| {
        let url = world.url.as_str();
        let broken = file("name: one\nnamespace: here\nsteps:\n  - { name: a, handler: H, depends_on: [b] }\n");
        let path = broken.path().to_str().unwrap();
        refused(
            url,
            &["template", "register", path],
            1,
            &format!("tasker: {path}:4: step \"a\" depends on unknown step \"b\": expected one of a"),
        );
        refused(
            url,
            &["template", "register", "no/such.yml"],
            3,
            "tasker: no/such.yml: No such file",
        );
        refused(url, &["task", "create", "nothing"], 4, "tasker: no template nothing");
        refused(url, &["task", "create", "nothing", "--input", "{"], 1, "tasker: not valid JSON");
        refused(
            url,
            &["task", "create", "nothing", "--priority", "huge"],
            2,
            "expected low, normal, high or urgent",
        );
        refused(
            url,
            &["task", "show", "018f0000-0000-7000-8000-000000000000"],
            4,
            "tasker: no task 018f0000",
        );
        refused(url, &["task", "show", "7"], 2, "invalid value '7'");
        refused(url, &["flask"], 2, "unrecognized subcommand 'flask'");
        assert_eq!(world.count("SELECT count(*) FROM tasker.templates").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_as_it_must_be_is_named() {
    World::with(async |world| {
        let url = world.url.as_str();
        let nobody = free_port();
        let (scheme, rest) = url.split_once("://").unwrap();
        let (user, place) = rest.rsplit_once('@').unwrap();
        let user = user.split(':').next().unwrap();
        refused(
            &format!("postgres://x@127.0.0.1:{nobody}/x"),
            &["serve"],
            3,
            &format!("cannot connect to PostgreSQL at 127.0.0.1:{nobody} (user x, database x)"),
        );
        refused(
            &format!("{scheme}://{user}:wrong@{place}"),
            &["task", "list"],
            3,
            "password authentication failed",
        );
        refused(
            "mysql://x",
            &["task", "list"],
            3,
            "it begins with mysql://, which is not PostgreSQL's): expected postgres://user:password@host:port/database",
        );
        refused("127.0.0.1:5432", &["task", "list"], 3, "(it begins otherwise)");
        let empty = format!("{}/postgres", url.rsplit_once('/').unwrap().0);
        refused(&empty, &["serve", "--listen", "127.0.0.1:0"], 3, "run `tasker migrate`");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_answers_probes_and_stops_on_sigterm() {
    World::with(async |world| {
        refused(&world.url, &["serve", "--connections", "3"], 2, "3 is not in 4..");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        refused(
            &world.url,
            &["serve", "--listen", &address],
            3,
            &format!("cannot listen on {address}"),
        );
        drop(taken);

        let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
        command
            .args(["serve", "--listen", &address])
            .env("DATABASE_URL", &world.url)
            .env_remove("NAMESPACE")
            .stderr(Stdio::piped());
        let mut serve = Running(command.spawn().unwrap());
        let mut log = BufReader::new(serve.0.stderr.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().contains("answering GET /health")));
        for path in ["/health", "/ready"] {
            let answer = get(&address, path);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
        assert!(get(&address, "/ready").contains(r#""pool":{"max":5,"#));
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.members WHERE left_at IS NULL AND name <> 'test'")
                .await,
            1
        );

        nix::sys::signal::kill(nix::unistd::Pid::from_raw(serve.0.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(serve.0.wait().unwrap().code(), Some(0));
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.members WHERE left_at IS NULL AND name <> 'test'")
                .await,
            0
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_and_settles_dead_letters() {
    World::with(async |world| {
        let url = world.url.as_str();
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        for message in ["one", "two"] {
            world.submit("one", json!({})).await;
            world.claim().await;
            world.fail(&world.lease("here_queue", 1).await[0], message, true, None).await;
        }
        assert_eq!(json_of(url, &["dlq", "groups", "--json"])[0]["count"], 2);
        let listed = json_of(url, &["dlq", "list", "--json"]);
        let id = listed[0]["id"].as_str().unwrap();
        assert_eq!(json_of(url, &["dlq", "show", id, "--json"])["errors"][0]["message"], "two");
        assert!(text(&tasker(url, &["dlq", "list"]).stdout).contains("TestError: two"));

        refused(url, &["dlq", "replay"], 1, "which dead letters? give ids or filters, or --all");
        refused(url, &["dlq", "discard", id], 1, "give --why");
        refused(url, &["dlq", "show", "here/77"], 4, "no dead letter here/77");
        let dry = text(&tasker(url, &["dlq", "replay", "--class", "TestError", "--dry-run"]).stdout);
        assert!(dry.starts_with("would replay 2: here/"), "{dry}");
        assert_eq!(
            json_of(url, &["dlq", "discard", id, "--who", "ada", "--why", "hopeless", "--json"])["discarded"],
            json!([id])
        );
        assert_eq!(
            json_of(url, &["dlq", "replay", "--all", "--json"])["replayed"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(json_of(url, &["dlq", "list", "--json"]), json!([]));
        assert_eq!(json_of(url, &["dlq", "log", "--json"])[1]["who"], "ada");

        assert_eq!(
            json_of(url, &["namespace", "set", "here", "--max-attempts", "9", "--json"])[0]["max_attempts"],
            9
        );
        refused(
            url,
            &["namespace", "set", "here", "--backoff", "never"],
            2,
            "expected fixed, linear or exponential",
        );
        assert!(text(&tasker(url, &["namespace", "list"]).stdout).contains("exponential"));
    })
    .await;
}

#[test]
fn dev_runs_a_private_postgresql_and_an_orchestrator_and_ends_both() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("dev");
    let folder = folder.to_str().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
    command
        .args(["dev", "--folder", folder, "--listen", "127.0.0.1:0"])
        .env_remove("DATABASE_URL")
        .env_remove("NAMESPACE");
    let mut dev = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let url = BufReader::new(dev.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| Some(line.strip_prefix("PostgreSQL: ")?.to_owned()));
    let url = url.expect("it says where the database is");
    let mut log = BufReader::new(dev.0.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("answering GET /health")));
    assert_eq!(json_of(&url, &["task", "list", "--json"]), json!([]));

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dev.0.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(dev.0.wait().unwrap().code(), Some(0));
    refused(&url, &["task", "list"], 3, "cannot connect to PostgreSQL");
}

fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: tasker\r\nConnection: close\r\n\r\n").unwrap();
    std::io::read_to_string(stream).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sets_limits_sees_what_waits_and_closes_breakers() {
    World::with(async |world| {
        let url = world.url.as_str();
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let set = |limit: &str, value: &str| {
            let output = tasker(url, &["config", "set", limit, value, "--namespace", "here"]);
            assert!(output.status.success(), "{}", text(&output.stderr));
        };
        set("limits.narrow", "{ handler: H, key: account.id, concurrency: 1 }");
        set("limits.narrow.breaker", "{ minimum: 1, open_seconds: 3600 }");
        let task = world.submit("one", json!({ "account": { "id": 7 } })).await;
        world.submit("one", json!({ "account": { "id": 7 } })).await;
        let leased = world.granted("here_queue").await;
        let limits = json_of(url, &["limit", "list", "--json"]);
        assert_eq!((&limits[0]["granted"], &limits[0]["waiting"]), (&json!(1), &json!(1)));
        assert_eq!((leased.len(), leased[0].task_id), (1, task));
        world.fail(&leased[0], "no answer", false, Some(3600.0)).await;
        assert_eq!(world.granted("here_queue").await.len(), 0);
        let listed = text(&tasker(url, &["limit", "list"]).stdout);
        assert!(
            listed.contains("here/narrow") && listed.contains("H, by account.id") && listed.ends_with("open"),
            "{listed}"
        );
        refused(url, &["limit", "reset", "narrow"], 1, "expected NAMESPACE/LIMIT");
        refused(url, &["limit", "reset", "here/other"], 4, "no limit here/other");
        refused(
            url,
            &["config", "set", "limits.narrow.concurency", "1", "--namespace", "here"],
            1,
            "did you mean concurrency?",
        );
        assert_eq!(text(&tasker(url, &["limit", "reset", "here/narrow"]).stdout), "1 closed");
        assert_eq!(world.granted("here_queue").await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_waits_for_a_signal_and_sends_it() {
    World::with(async |world| {
        let url = world.url.as_str();
        world
            .register("name: buy\nnamespace: here\nsteps:\n  - { name: approval, wait: { signal: approved, key: $.input.order, assignees: [ann] } }\n")
            .await;
        let task = world.submit("buy", json!({ "order": 17 })).await;
        let id = task.to_string();
        let sent = tasker(url, &["signal", "send", "aproved", "--task", &id]);
        assert_eq!(
            text(&sent.stdout),
            "kept: no step waits for it yet\nno step of buy waits for \"aproved\": its steps wait for approved"
        );
        let unclaimed = json_of(url, &["signal", "list", "--unclaimed", "--json"]);
        assert_eq!((&unclaimed[0]["name"], &unclaimed[0]["task"]), (&json!("aproved"), &json!(task)));
        world.claim().await;
        world.run("SELECT tasker.match_signals(100)").await;
        let waiting = json_of(url, &["task", "waiting", "--assignee", "ann", "--json"]);
        assert_eq!((&waiting[0]["task"], &waiting[0]["key"]), (&json!(task), &json!("17")));
        assert!(text(&tasker(url, &["task", "waiting"]).stdout).ends_with("ann"));
        assert!(text(&tasker(url, &["task", "show", &id]).stdout).contains("waits for the signal approved (key 17)"));

        refused(url, &["signal", "send", "approved"], 2, "--task");
        refused(url, &["signal", "send", "approved", "--key", "17", "--payload", "{"], 1, "JSON");
        refused(url, &["signal", "send", "approved", "--task", &uuid::Uuid::nil().to_string()], 4, "no task");
        let sent = json_of(url, &["signal", "send", "approved", "--key", "17", "--payload", "{\"by\": \"ann\"}", "--json"]);
        assert_eq!(sent["outcome"], "awaited");
        world.run("SELECT tasker.match_signals(100)").await;
        assert_eq!(world.task(task).await["steps"][0]["result"]["by"], "ann");
        let late = tasker(url, &["signal", "send", "approved", "--task", &id]);
        assert_eq!((text(&late.stdout).as_str(), late.status.code()), ("late: the task has ended", Some(1)));
    })
    .await;
}
