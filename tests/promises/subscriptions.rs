//! What happens is told to those who have subscribed to it: at least once, in order for each task, and to nobody else's cost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{json, Value};
use tasker::engine::shards::Shards;
use tasker::engine::subscriptions;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::subscription::Subscription;
use tasker::worker::{Handlers, Step};

use crate::api::Asked;
use crate::command_line::tasker as command;
use crate::sink::{Posted, Sink};
use crate::world::World;

pub(crate) const CHAIN: &str = "
name: chain
namespace: here
steps: [{ name: a, handler: H }, { name: b, handler: H, depends_on: [a] }]
";

const OTHER: &str = "
name: other
namespace: there
steps: [{ name: a, handler: H }]
";

pub(crate) const TYPES: [&str; 6] = [
    "task.created",
    "task.started",
    "step.enqueued",
    "step.complete",
    "task.complete",
    "step.failed",
];

pub(crate) async fn subscribe(world: &World, name: &str, definition: Value) -> Option<String> {
    let subscription = Subscription::parse(&definition).unwrap();
    let put = subscriptions::put(&Shards::of(&world.db), name, &subscription, None).await.unwrap();
    assert_eq!(put.outcome, "created");
    put.secret
}

async fn shown(world: &World, name: &str) -> Value {
    subscriptions::show(&Shards::of(&world.db), name).await.unwrap().remove(0)
}

pub(crate) async fn orchestrator(world: &World) -> Orchestrator {
    Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap()
}

pub(crate) fn handlers() -> Handlers {
    Handlers::default().with("H", |_: Arc<Step>| async move { Ok(json!({ "done": true })) })
}

/// The types of what was told of each task, in the order in which it came.
fn by_task(posted: &[Posted]) -> BTreeMap<String, Vec<String>> {
    let mut tasks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for posted in posted {
        let step = posted.event["data"]["step"]
            .as_str()
            .map_or(String::new(), |step| format!(" {step}"));
        let of = posted.event["source"].as_str().unwrap().to_owned();
        tasks.entry(of).or_default().push(format!("{}{step}", posted.kind()));
    }
    tasks
}

const ALL_OF_A_CHAIN: [&str; 7] = [
    "task.created",
    "task.started",
    "step.enqueued a",
    "step.complete a",
    "step.enqueued b",
    "step.complete b",
    "task.complete",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_told_what_it_wants_signed_and_in_order_for_each_task() {
    World::with(async |world| {
        world.register(CHAIN).await;
        world.register(OTHER).await;
        let sink = Sink::open().await;
        let secret = subscribe(
            world,
            "here",
            json!({ "types": TYPES, "namespaces": ["here"], "webhook": { "url": sink.url } }),
        )
        .await
        .unwrap();
        let only = Sink::open().await;
        subscribe(
            world,
            "tagged",
            json!({ "types": ["task.complete"], "templates": ["here/chain"], "tags": { "customer": "42" }, "webhook": { "url": only.url } }),
        )
        .await;
        let worker = world.worker(handlers()).await;
        let orchestrator = orchestrator(world).await;
        for _ in 0..20 {
            world.submit("chain", json!({})).await;
            world.submit("other", json!({})).await;
        }
        let tagged = world
            .text("SELECT tasker.create_task('chain', '{}', p_tags => '{\"customer\": \"42\"}')::text")
            .await;
        let taken = sink.until_taken(21 * 7).await;
        let tasks = by_task(&taken);
        assert_eq!(tasks.len(), 21, "and nothing of the other namespace");
        assert!(tasks.values().all(|told| told == &ALL_OF_A_CHAIN), "{tasks:#?}");

        let ids: BTreeSet<(&str, &str)> = taken
            .iter()
            .map(|posted| (posted.event["source"].as_str().unwrap(), posted.event["id"].as_str().unwrap()))
            .collect();
        assert_eq!(ids.len(), taken.len(), "each has an id of its own");
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        for posted in &taken {
            let header = |name: &str| posted.headers[name].clone();
            assert_eq!(header("content-type"), "application/cloudevents+json");
            let signed = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), posted.body);
            let signature = STANDARD.decode(header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
            ring::hmac::verify(&key, signed.as_bytes(), &signature).expect("it is signed");
            let event = &posted.event;
            assert_eq!((&event["specversion"], &event["data"]["namespace"]), (&json!("1.0"), &json!("here")));
        }

        let told = only.until_taken(1).await;
        assert_eq!(told[0].event["source"], format!("/tasks/{tagged}"));
        assert_eq!(told[0].event["data"]["tags"]["customer"], "42");
        assert_eq!(only.all().len(), 1);
        orchestrator.shutdown().await;
        worker.shutdown(std::time::Duration::from_secs(5)).await;
        assert_eq!(shown(world, "here").await["delivered"], 21 * 7);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_in_every_way_is_told_everything_in_order_and_holds_up_nobody_else() {
    World::with(async |world| {
        world.register(CHAIN).await;
        let (bad, good) = (Sink::open().await, Sink::open().await);
        let tries = Arc::new(AtomicUsize::new(0));
        // Nothing at all for its timeout; then refusals, redirects, and wishes to be left alone, one event in four among them taken; then all is well.
        bad.answer(move |_| match tries.fetch_add(1, Ordering::Relaxed) {
            0..=5 => None,
            n if n % 4 == 0 || n > 16 => Some((200, vec![])),
            n if n % 4 == 1 => Some((503, vec![("retry-after", "1")])),
            n if n % 4 == 2 => Some((302, vec![("location", "/elsewhere")])),
            _ => Some((500, vec![])),
        });
        let definition =
            |sink: &Sink| json!({ "types": ["task.created", "task.complete"], "webhook": { "url": sink.url, "timeout": "1s" } });
        subscribe(world, "bad", definition(&bad)).await;
        subscribe(world, "good", definition(&good)).await;
        let worker = world.worker(handlers()).await;
        let orchestrator = orchestrator(world).await;
        for _ in 0..8 {
            world.submit("chain", json!({})).await;
        }
        good.until_taken(16).await;
        assert!(bad.taken().is_empty(), "it has answered nothing so far");
        world
            .until_true(
                "problem IS NOT NULL FROM tasker.deliveries d JOIN tasker.subscriptions s ON s.id = d.subscription_id WHERE s.name = 'bad'",
            )
            .await;
        let state = shown(world, "bad").await;
        assert!(!state["failing_since"].is_null() && state["lag"].as_f64().unwrap() > 0.0, "{state}");
        let taken = bad.until_taken(16).await;
        let tasks = by_task(&taken);
        assert!(tasks.values().all(|told| told == &["task.created", "task.complete"]), "{tasks:#?}");
        assert_eq!(tasks.len(), 8);
        let mut ids: HashMap<String, BTreeSet<String>> = HashMap::new();
        for posted in bad.all() {
            let id = posted.headers["webhook-id"].clone();
            ids.entry(id).or_default().insert(posted.body);
        }
        assert!(ids.values().all(|bodies| bodies.len() == 1), "what is sent again is the same");
        world
            .until_true("bool_and(failing_since = array_fill(NULL::timestamptz, ARRAY[16])) FROM tasker.deliveries")
            .await;
        orchestrator.shutdown().await;
        worker.shutdown(std::time::Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_whose_sink_takes_nothing_for_too_long_is_disabled_with_an_alert_and_goes_on_where_it_was() {
    World::with(async |world| {
        world.register(CHAIN).await;
        let sink = Sink::open().await;
        sink.answer(|_| Some((500, vec![])));
        subscribe(
            world,
            "hooks",
            json!({ "types": ["task.created"], "webhook": { "url": sink.url, "patience": "2s" } }),
        )
        .await;
        subscribe(world, "alerts", json!({ "types": ["alert.raised", "alert.cleared"], "pull": true })).await;
        let orchestrator = orchestrator(world).await;
        world.submit("chain", json!({})).await;
        world
            .until_true("disabled IS NOT NULL FROM tasker.subscriptions WHERE name = 'hooks'")
            .await;
        let state = shown(world, "hooks").await;
        assert_eq!(state["disabled"]["why"], "it answered 500 Internal Server Error");
        world
            .until_true("EXISTS (SELECT FROM tasker.events WHERE type = 'alert.raised')")
            .await;
        assert_eq!(
            world.text("SELECT subscription FROM tasker.alerts WHERE cleared_at IS NULL").await,
            "hooks"
        );

        let tried = sink.all().len();
        world.submit("chain", json!({})).await;
        sink.answer(|_| Some((200, vec![])));
        subscriptions::pause(&Shards::of(&world.db), "hooks", false, "test", None)
            .await
            .unwrap();
        let taken = sink.until_taken(2).await;
        assert_eq!(by_task(&taken).len(), 2, "also what has happened meanwhile");
        assert_eq!(sink.all().len(), tried + 2);
        world
            .until_true("EXISTS (SELECT FROM tasker.events WHERE type = 'alert.cleared')")
            .await;

        // Who says that it is gone is not asked again.
        sink.answer(|_| Some((410, vec![])));
        world.submit("chain", json!({})).await;
        world
            .until_true("disabled IS NOT NULL FROM tasker.subscriptions WHERE name = 'hooks'")
            .await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_paused_resumed_replayed_changed_and_given_another_secret() {
    World::with(async |world| {
        world.register(CHAIN).await;
        let shards = Shards::of(&world.db);
        let sink = Sink::open().await;
        let before = chrono::Utc::now();
        subscribe(world, "hooks", json!({ "types": ["task.created"], "webhook": { "url": sink.url } })).await;
        let orchestrator = orchestrator(world).await;
        world.submit("chain", json!({})).await;
        sink.until_taken(1).await;

        subscriptions::pause(&shards, "hooks", true, "ann", Some("too much")).await.unwrap();
        assert_eq!(shown(world, "hooks").await["paused"]["who"], "ann");
        world.submit("chain", json!({})).await;
        world.until_true("count(*) = 2 FROM tasker.events").await;
        subscriptions::pause(&shards, "hooks", false, "ann", None).await.unwrap();
        let taken = sink.until_taken(2).await;
        let first = taken[0].headers["webhook-id"].clone();

        subscriptions::replay(&shards, "hooks", before).await.unwrap();
        let again = sink.until_taken(4).await;
        let times = again.iter().filter(|posted| posted.headers["webhook-id"] == first).count();
        assert_eq!(times, 2, "the same again, by the same id");

        let secret = subscriptions::rotate(&shards, "hooks").await.unwrap();
        assert!(secret.starts_with("whsec_"));
        let changed =
            Subscription::parse(&json!({ "types": ["task.created"], "tags": { "new": "yes" }, "webhook": { "url": sink.url } })).unwrap();
        let put = subscriptions::put(&shards, "hooks", &changed, None).await.unwrap();
        assert_eq!((put.outcome.as_str(), put.secret), ("changed", None));
        world.submit("chain", json!({})).await;
        world
            .run("SELECT tasker.create_task('chain', '{}', p_tags => '{\"new\": \"yes\"}')")
            .await;
        let taken = sink.until_taken(5).await;
        assert_eq!(taken[4].event["data"]["tags"]["new"], "yes");
        assert_eq!(
            taken[4].headers["webhook-signature"].split(' ').count(),
            2,
            "the secret of before counts, too"
        );
        orchestrator.shutdown().await;

        for gone in [
            subscriptions::delete(&shards, "none").await,
            subscriptions::replay(&shards, "none", before).await,
        ] {
            assert_eq!(gone.unwrap_err().to_string(), "no subscription none");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_orchestrator_that_delivers_is_killed_another_goes_on() {
    World::with(async |world| {
        world.register(CHAIN).await;
        let sink = Sink::open().await;
        subscribe(world, "hooks", json!({ "types": ["task.created"], "webhook": { "url": sink.url } })).await;
        let config = OrchestratorConfig {
            lease: std::time::Duration::from_secs(2),
            ..OrchestratorConfig::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasker.yml");
        std::fs::write(&file, "shared: { orchestrator: { lease: 2s } }").unwrap();
        let mut first = std::process::Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(["serve", "--database-url", &world.url, "--listen", "127.0.0.1:0"])
            .env("TASKER_CONFIG", &file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        world.until_true("member IS NOT NULL FROM tasker.deliveries").await;
        world.submit("chain", json!({})).await;
        sink.until_taken(1).await;
        let second = Orchestrator::start(&world.db, config).await.unwrap();
        // Nothing is answered while it is killed: what was on its way comes again.
        sink.answer(|_| None);
        world.submit("chain", json!({})).await;
        sink.until(|posted| posted.len() >= 2).await;
        first.kill().unwrap();
        first.wait().unwrap();
        sink.answer(|_| Some((200, vec![])));
        world.submit("chain", json!({})).await;
        let taken = sink.until_taken(3).await;
        assert_eq!(by_task(&taken).len(), 3);
        second.shutdown().await;
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.deliveries WHERE member IS NOT NULL").await,
            0,
            "handed over"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orchestrators_share_subscriptions_among_themselves() {
    World::with(async |world| {
        for n in 0..6 {
            subscribe(
                world,
                &format!("hooks {n}"),
                json!({ "types": ["task.created"], "webhook": { "url": "http://127.0.0.1:9/" } }),
            )
            .await;
        }
        let all_held = |members: i64| {
            format!("count(*) FILTER (WHERE member IS NOT NULL) = 6 AND count(DISTINCT member) = {members} FROM tasker.deliveries")
        };
        let first = orchestrator(world).await;
        world.until_true(&all_held(1)).await;
        let second = orchestrator(world).await;
        world.until_true(&all_held(2)).await;
        assert_eq!(
            world
                .count("SELECT max(n) FROM (SELECT count(*) AS n FROM tasker.deliveries GROUP BY member) AS c")
                .await,
            3
        );
        first.shutdown().await;
        world.until_true(&all_held(1)).await;
        second.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_subscription_is_refused_and_says_what_was_expected() {
    World::with(async |world| {
        let api = Asked::open(world, true).await;
        for (definition, expected) in [
            (json!({ "types": ["task.complete"] }), "expected either a webhook"),
            (
                json!({ "types": ["task.complete"], "pull": true, "more": 1 }),
                "unknown field `more`",
            ),
            (json!({ "types": ["task.done"], "pull": true }), "unknown type of event task.done"),
            (json!({ "types": [], "pull": true }), "one type of event at least"),
            (
                json!({ "types": ["task.complete"], "webhook": { "url": "ftp://x" } }),
                "expected http:// or https:// and a host",
            ),
            (
                json!({ "types": ["task.complete"], "webhook": { "url": "http://x", "at_once": 17 } }),
                "expected 1 to 16",
            ),
            (
                json!({ "types": ["task.complete"], "webhook": { "url": "http://x", "timeout": "5m" } }),
                "expected 1s to 1m",
            ),
            (
                json!({ "types": ["task.complete"], "templates": ["chain"], "pull": true }),
                "expected namespace/name",
            ),
        ] {
            let refused = api.put("/subscriptions/wrong", json!({ "definition": definition }));
            assert_eq!(refused.status, 422, "{refused:?}");
            assert!(refused.body["detail"].as_str().unwrap().contains(expected), "{refused:?}");
        }
        let refused = api.put(
            "/subscriptions/wrong",
            json!({ "definition": { "types": ["task.complete"], "webhook": { "url": "http://x" } }, "secret": "short" }),
        );
        assert_eq!(refused.status, 422, "{refused:?}");
        assert_eq!(api.get("/subscriptions/wrong").status, 404);
        assert_eq!(world.count("SELECT count(*) FROM tasker.subscriptions").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_the_same_by_the_database_and_by_a_server() {
    World::with(async |world| {
        let api = Asked::open(world, true).await;
        let server = format!("http://{}", api.address());
        for by in [vec![], vec!["--server", &server]] {
            let run = |arguments: &[&str]| {
                let output = command(&world.url, &[arguments, &by].concat());
                let text = String::from_utf8(output.stdout).unwrap();
                assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
                text
            };
            let hook = ["--webhook", "http://ann:pass@127.0.0.1:9/services/T0K3N"];
            let created = run(&[
                &["subscription", "create", "hooks", "--types", "task.complete,task.failed"],
                &hook[..],
            ]
            .concat());
            assert!(created.contains("hooks: created") && created.contains("whsec_"), "{created}");
            let listed = run(&["subscription", "list"]);
            assert!(
                listed.contains("task.complete,task.failed") && listed.contains("http://127.0.0.1:9/…"),
                "{listed}"
            );
            assert!(run(&["subscription", "pause", "hooks"]).contains("paused"));
            assert!(run(&["subscription", "show", "hooks"]).contains("\"who\""));
            assert!(run(&["subscription", "resume", "hooks"]).contains("goes on"));
            assert!(run(&["subscription", "replay", "hooks", "--from", "2026-01-01T00:00:00Z"]).contains("begins at"));
            assert!(run(&["subscription", "rotate-secret", "hooks"]).starts_with("whsec_"));
            assert!(run(&["subscription", "delete", "hooks"]).contains("deleted"));
        }
    })
    .await;
}
