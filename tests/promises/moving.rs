//! A namespace can move to another shard while it works: nothing is lost, nothing is there twice, and ids keep working.

use std::collections::HashMap;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use sqlx::{Connection, Executor, PgConnection};
use tasker::config::Settings;
use tasker::engine::fail::Failure;
use tasker::engine::read;
use tasker::engine::shards::{number_of, Shards};
use tasker::engine::submit::{NewTask, Submitted};
use tasker::orchestrator::Orchestrator;
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::{Error, Template};
use uuid::Uuid;

use crate::shards::Two;

const MOVE: [&str; 5] = ["shard", "move", "here", "--to", "eu"];

/// Both shards, with this template in the default one.
async fn with(two: &Two<'_>, source: &str) -> Shards {
    let shards = two.shards();
    shards.add("eu").await.unwrap().close().await;
    let template = Template::parse(source, "test.yml").unwrap();
    shards.register(&template, true).await.unwrap();
    shards
}

fn keyed(key: &str) -> NewTask {
    NewTask {
        key: Some(key.to_owned()),
        ..NewTask::default()
    }
}

async fn submit(shards: &Shards, template: &str, task: NewTask) -> tasker::Result<Submitted> {
    Ok(shards.submit(template, None, &[task]).await?.remove(0))
}

fn settings(two: &Two<'_>) -> Settings {
    Settings {
        worker: WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        },
        ..two.settings()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

const ONE: &str =
    "name: one\nnamespace: here\nsteps:\n  - { name: first, handler: H }\n  - { name: second, handler: H, depends_on: [first] }\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_moves_under_load_and_each_task_runs_once_wherever_it_is() {
    Two::with(async |two| {
        let shards = with(two, ONE).await;
        let (runs, handled) = (Arc::new(Mutex::new(HashMap::<(Uuid, String), usize>::new())), Handlers::default());
        let counted = runs.clone();
        let orchestrator = Orchestrator::start_in(&shards, settings(two)).await.unwrap();
        let worker = Arc::new(Worker::start_in(&shards, settings(two)).await.unwrap());
        worker.handle_with(handled.with("H", move |step: Arc<Step>| {
            *counted
                .lock()
                .unwrap()
                .entry((step.leased.task_id, step.leased.name.clone()))
                .or_default() += 1;
            async { Ok(json!(null)) }
        }));

        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..4)
            .map(|client| {
                // Each knows what tasker.yml says, and nothing else.
                let (shards, stop) = (two.shards(), stop.clone());
                tokio::spawn(async move {
                    let (mut ids, mut moved) = (HashMap::new(), 0);
                    while !stop.load(Ordering::Relaxed) || moved < 20 {
                        let key = format!("{client}-{}", ids.len());
                        let template = if client == 0 { "one" } else { "here/one" };
                        let task = submit(&shards, template, keyed(&key)).await.unwrap();
                        assert!(task.created, "{key}");
                        moved += usize::from(number_of(task.id) == 7);
                        ids.insert(key, task.id);
                    }
                    shards.close().await;
                    ids
                })
            })
            .collect();
        while runs.lock().unwrap().len() < 100 {
            tokio::task::yield_now().await;
        }
        let moved = two.told(&MOVE);
        assert_eq!(
            (&moved["stage"], &moved["versions"], &moved["from"]),
            (&json!("open"), &json!(1), &json!("default"))
        );
        stop.store(true, Ordering::Relaxed);
        let mut ids = HashMap::new();
        for client in clients {
            ids.extend(client.await.unwrap());
        }

        for id in ids.values() {
            let db = shards.of_task(*id).await.unwrap();
            assert_eq!(
                read::wait_for_end(&db, *id, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
        }
        let all = "SELECT count(*) FROM tasker.tasks";
        let (old, new) = (two.world.count(all).await, two.count_there(all).await);
        assert_eq!(old + new, ids.len() as i64);
        assert!(old > 0 && new >= 80, "{old} {new}");
        let ran = runs.lock().unwrap().clone();
        assert_eq!(ran.len(), 2 * ids.len());
        assert!(ran.values().all(|runs| *runs == 1), "{ran:?}");
        for (key, id) in &ids {
            let again = submit(&shards, "here/one", keyed(key)).await.unwrap();
            assert_eq!(again, Submitted { id: *id, created: false }, "{key}");
        }
        for number in [0, 7] {
            let id = ids.values().find(|id| number_of(**id) == number).unwrap().to_string();
            assert_eq!(two.told(&["task", "show", &id])["state"], "complete");
        }
        let listed = two.told(&["task", "list", "--namespace", "here", "--limit", "1000"]);
        assert_eq!(listed.as_array().unwrap().len(), ids.len().min(1_000));

        let checked = said(&two.tasker(&["shard", "check"]));
        assert!(
            checked.contains("here has moved here, and tasker.yml has it live in default"),
            "{checked}"
        );
        assert!(!checked.contains("nobody works on them"), "{checked}");
        let again = two.told(&MOVE);
        assert_eq!(
            (&again["stage"], &again["tasks"], &again["unfinished"]),
            (&json!("open"), &json!(old), &json!(0))
        );
        two.world.run("DELETE FROM tasker.tasks").await;
        assert!(two.says(&MOVE).contains("here lives in eu: nothing is left in default"));
        assert_eq!(two.count_there("SELECT count(*) FROM tasker.moved_keys").await, 0);
        let created = submit(&shards, "here/one", NewTask::default()).await.unwrap();
        assert_eq!(number_of(created.id), 7);
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_waits_for_what_is_being_created_and_without_an_end_of_that_all_stays_as_it_was() {
    Two::with(async |two| {
        let shards = with(two, ONE).await;
        let mut open = PgConnection::connect(&two.world.url).await.unwrap();
        open.execute("BEGIN; SELECT tasker.create_task('here/one', '{}', p_key => 'slow')")
            .await
            .unwrap();
        let refused = two.tasker(&MOVE);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            said(&refused).contains("transactions in default have been open for more than 10 s"),
            "{}",
            said(&refused)
        );
        let before = submit(&shards, "here/one", keyed("before")).await.unwrap();
        assert_eq!(number_of(before.id), 0);

        let mut moving = two.command(&MOVE).spawn().unwrap();
        two.world
            .until_true("(SELECT coalesce(also_in = 7, false) FROM tasker.namespaces WHERE name = 'here')")
            .await;
        open.execute("COMMIT").await.unwrap();
        assert!(moving.wait().unwrap().success());
        for key in ["slow", "before"] {
            let again = submit(&shards, "here/one", keyed(key)).await.unwrap();
            assert_eq!((number_of(again.id), again.created), (0, false), "{key}");
        }
        let after = submit(&shards, "here/one", keyed("after")).await.unwrap();
        assert_eq!((number_of(after.id), after.created), (7, true));
        open.close().await.unwrap();
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_a_move_has_closed_is_opened_again_where_a_transaction_in_it_does_not_end() {
    Two::with(async |two| {
        let shards = with(two, ONE).await;
        let connect = async || PgConnection::connect(&two.world.url).await.unwrap();
        let (mut first, mut second) = (connect().await, connect().await);
        let open = "BEGIN; SELECT FROM tasker.namespaces";
        first.execute(open).await.unwrap();
        let moving = two.command(&MOVE).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        two.world
            .until_true("EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query LIKE '%tasker.open\\_transactions%')")
            .await;
        // The move waits for the first transaction, and not yet for the second one.
        second.execute(open).await.unwrap();
        first.execute("COMMIT").await.unwrap();
        two.world
            .until_true("EXISTS (SELECT FROM tasker.namespaces WHERE name = 'here' AND lives_in = 7)")
            .await;
        let refused = moving.wait_with_output().unwrap();
        assert!(
            said(&refused).contains("transactions in default have been open for more than 10 s"),
            "{}",
            said(&refused)
        );
        let task = submit(&shards, "here/one", NewTask::default()).await.unwrap();
        assert_eq!(number_of(task.id), 0);

        second.execute("COMMIT").await.unwrap();
        assert_eq!(two.told(&MOVE)["stage"], "open");
        for connection in [first, second] {
            connection.close().await.unwrap();
        }
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_cut_off_goes_on_where_it_was_and_meanwhile_who_creates_a_task_waits() {
    Two::with(async |two| {
        let shards = with(two, ONE).await;
        let known = submit(&shards, "here/one", keyed("known")).await.unwrap();
        let mut open = PgConnection::connect(&two.world.url).await.unwrap();
        open.execute("BEGIN; SELECT FROM tasker.namespaces").await.unwrap();
        let mut moving = two.command(&MOVE).spawn().unwrap();
        two.world
            .until_true("(SELECT coalesce(also_in = 7, false) FROM tasker.namespaces WHERE name = 'here')")
            .await;
        moving.kill().unwrap();
        moving.wait().unwrap();
        open.close().await.unwrap();
        let begins = submit(&shards, "here/one", keyed("begins")).await.unwrap();
        assert_eq!(number_of(begins.id), 0);

        // It cannot open the new shard, and is cut off when the old one is closed.
        let mut there = PgConnection::connect(&two.eu_url()).await.unwrap();
        there
            .execute("BEGIN; SELECT tasker.await_turn('tasker.turn_namespaces')")
            .await
            .unwrap();
        let mut moving = two.command(&MOVE).spawn().unwrap();
        two.world
            .until_true("(SELECT coalesce(lives_in = 7, false) FROM tasker.namespaces WHERE name = 'here')")
            .await;
        // What it has asked for last is asked, though nobody hears the answer.
        let waiting =
            "pg_stat_activity WHERE datname = current_database() || '_eu' AND wait_event_type = 'Lock' AND query LIKE '%open_namespaces%'";
        two.world.until_true(&format!("EXISTS (SELECT FROM {waiting})")).await;
        moving.kill().unwrap();
        moving.wait().unwrap();
        two.world
            .run(&format!("SELECT pg_terminate_backend(pid, 10000) FROM {waiting}"))
            .await;
        there.close().await.unwrap();
        let creating = tokio::spawn({
            let shards = shards.clone();
            async move { submit(&shards, "here/one", keyed("meanwhile")).await.unwrap() }
        });
        let (known_again, here) = (keyed("known"), shards.named("default").await.unwrap());
        let refused = tasker::engine::submit::Submitter::new(here)
            .submit("here/one", None, &[known_again])
            .await;
        assert!(matches!(refused, Err(Error::Moved { shard: 7, .. })), "{refused:?}");
        assert!(!creating.is_finished());
        assert_eq!(two.told(&[&MOVE[..], &["--dry-run"]].concat())["stage"], "closed");
        assert_eq!(two.told(&MOVE)["stage"], "open");
        assert_eq!(number_of(creating.await.unwrap().id), 7);
        for (key, id) in [("known", known.id), ("begins", begins.id)] {
            assert_eq!(submit(&shards, "here/one", keyed(key)).await.unwrap().id, id);
        }

        let back = two.told(&["shard", "move", "here", "--to", "default"]);
        assert_eq!(back["stage"], "open");
        let home = submit(&shards, "here/one", keyed("home")).await.unwrap();
        assert_eq!(number_of(home.id), 0);
        for (key, number) in [("known", 0), ("begins", 0), ("meanwhile", 7)] {
            let again = submit(&shards, "here/one", keyed(key)).await.unwrap();
            assert_eq!((number_of(again.id), again.created), (number, false), "{key}");
        }
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_is_refused_and_a_dry_run_changes_nothing() {
    Two::with(async |two| {
        let shards = with(two, ONE).await;
        let wide = "name: wide\nnamespace: near\nsteps:\n  - { name: far, handler: H, namespace: here }\n";
        shards.register(&Template::parse(wide, "wide.yml").unwrap(), true).await.unwrap();
        for (arguments, what) in [
            (
                &MOVE[..],
                "near/wide has steps, or children, of near, and a task has all of them in one shard: move near, too",
            ),
            (&["shard", "move", "here", "--to", "us"], "there is no shard us"),
            (&["shard", "move", "nowhere", "--to", "eu"], "no namespace nowhere"),
            (&["shard", "move", "there", "--to", "eu"], "there lives in eu already"),
            (&["shard", "move", "here", "there", "--to", "eu"], "there lives in eu already"),
        ] {
            let refused = two.tasker(arguments);
            assert!(
                !refused.status.success() && said(&refused).contains(what),
                "{arguments:?}: {}",
                said(&refused)
            );
        }
        submit(&shards, "here/one", keyed("known")).await.unwrap();
        let both = ["shard", "move", "here", "near", "--to", "eu"];
        let dry = two.told(&[&both[..], &["--dry-run"]].concat());
        assert_eq!(
            (&dry["stage"], &dry["versions"], &dry["keys"], &dry["tasks"]),
            (&json!("begins"), &json!(2), &json!(1), &json!(1))
        );
        let moves = "SELECT count(*) FROM tasker.list_moves()";
        assert_eq!((two.world.count(moves).await, two.count_there(moves).await), (0, 0));
        assert_eq!(two.told(&both)["versions"], 2);
        let task = submit(&shards, "near/wide", NewTask::default()).await.unwrap();
        assert_eq!(number_of(task.id), 7);
        let template = "name: new\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";
        // Also one that knows no more than tasker.yml registers it where it is to be.
        let other = two.shards();
        other.register(&Template::parse(template, "new.yml").unwrap(), true).await.unwrap();
        assert_eq!(two.count_there("SELECT count(*) FROM tasker.templates WHERE name = 'new'").await, 1);
        assert_eq!(two.world.count("SELECT count(*) FROM tasker.templates WHERE name = 'new'").await, 0);
        other.close().await;
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_and_pauses_move_with_their_namespace() {
    Two::with(async |two| {
        let own = format!("{ONE}schedules:\n  nightly: {{ cron: \"0 3 * * *\" }}\n");
        let shards = with(two, &own).await;
        two.says(&["schedule", "create", "hourly", "here/one", "--cron", "0 * * * *"]);
        two.says(&["pause", "handler", "here/H", "--why", "it is broken"]);
        let next = "SELECT string_agg(name || ' ' || owner, ', ' ORDER BY name) FROM tasker.schedules WHERE look_at IS NOT NULL";
        two.told(&MOVE);
        assert_eq!(two.world.count("SELECT count(*) FROM tasker.schedules").await, 0);
        let listed = two.told(&["schedule", "list"]);
        let names: Vec<&Value> = listed.as_array().unwrap().iter().map(|of| &of["name"]).collect();
        assert_eq!(names, ["here/one:nightly", "hourly"]);
        let due = format!("SELECT count(*) FROM ({next}) AS n(names) WHERE names = 'here/one:nightly template, hourly operator'");
        assert_eq!(two.count_there(&due).await, 1);
        two.says(&["schedule", "trigger", "hourly"]);
        assert_eq!(two.count_there("SELECT count(*) FROM tasker.tasks").await, 1);
        let paused = "SELECT count(*) FROM tasker.pauses WHERE kind = 'handler' AND name = 'here/H' AND why = 'it is broken'";
        assert_eq!(two.count_there(paused).await, 1);

        // Whoever begins with a tasker.yml of before.
        let weekly = json!({ "weekly": { "workflow": "here/one", "cron": "0 4 * * 1" } });
        let settings = Settings {
            schedules: Some(weekly.as_object().unwrap().clone().into_iter().collect()),
            ..settings(two)
        };
        let other = two.shards();
        let orchestrator = Orchestrator::start_in(&other, settings).await.unwrap();
        while two.count_there("SELECT count(*) FROM tasker.schedules WHERE owner = 'file'").await == 0 {}
        assert_eq!(two.world.count("SELECT count(*) FROM tasker.schedules").await, 0);
        orchestrator.shutdown().await;
        other.close().await;
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unique_tasks_stay_unique_across_a_move() {
    Two::with(async |two| {
        let shards = with(two, "name: live\nnamespace: here\nunique: {}\nsteps: [{ name: s, handler: H }]").await;
        let within = "name: hourly\nnamespace: here\nunique: { within: 1h }\nsteps: [{ name: s, handler: H }]";
        shards
            .register(&Template::parse(within, "within.yml").unwrap(), true)
            .await
            .unwrap();
        let live = submit(&shards, "here/live", NewTask::default()).await.unwrap();
        let hourly = submit(&shards, "here/hourly", NewTask::default()).await.unwrap();
        let done = format!(
            "UPDATE tasker.tasks SET state = 'complete', claim_order = NULL, started_at = now(), finished_at = now() WHERE id = '{}'",
            hourly.id
        );
        two.world.run(&done).await;
        two.told(&MOVE);
        let refused = submit(&shards, "here/live", NewTask::default()).await;
        assert!(matches!(refused, Err(Error::Backpressure { .. })), "{refused:?}");
        let same = submit(&shards, "here/hourly", NewTask::default()).await.unwrap();
        assert_eq!(
            same,
            Submitted {
                id: hourly.id,
                created: false
            }
        );

        two.says(&["task", "cancel", &live.id.to_string()]);
        let orchestrator = Orchestrator::start_in(&shards, two.settings()).await.unwrap();
        let created = loop {
            match submit(&shards, "here/live", NewTask::default()).await {
                Err(Error::Backpressure { .. }) => {}
                created => break created.unwrap(),
            }
        };
        assert_eq!((number_of(created.id), created.created), (7, true));
        orchestrator.shutdown().await;
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_found_and_replayed_in_the_shard_where_they_are() {
    Two::with(async |two| {
        let shards = with(
            two,
            "name: one\nnamespace: here\nsteps: [{ name: only, handler: H, retry: { max_attempts: 1 } }]",
        )
        .await;
        let orchestrator = Orchestrator::start_in(&shards, settings(two)).await.unwrap();
        let worker = Arc::new(Worker::start_in(&shards, settings(two)).await.unwrap());
        let broken = Arc::new(AtomicBool::new(true));
        let is_broken = broken.clone();
        worker.handle_with(Handlers::default().with("H", move |_| {
            let broken = is_broken.load(Ordering::Relaxed);
            async move {
                if broken {
                    Err(Failure::permanent("Broken", "it is broken"))
                } else {
                    Ok(json!(null))
                }
            }
        }));
        let old = submit(&shards, "here/one", NewTask::default()).await.unwrap().id;
        two.told(&MOVE);
        let new = submit(&shards, "here/one", NewTask::default()).await.unwrap().id;
        for id in [old, new] {
            let db = shards.of_task(id).await.unwrap();
            while read::read_task(&db, id).await.unwrap()["state"] != "blocked" {}
        }
        let letters = two.told(&["dlq", "list", "--namespace", "here"]);
        let ids: Vec<&str> = letters
            .as_array()
            .unwrap()
            .iter()
            .map(|letter| letter["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, ["here/7000000000001", "here/1"]);
        let queues = two.told(&["queue", "list"]);
        let of: Vec<(&Value, &Value)> = queues
            .as_array()
            .unwrap()
            .iter()
            .map(|queue| (&queue["namespace"], &queue["dead"]))
            .collect();
        assert_eq!(of, [(&json!("here"), &json!(1)), (&json!("here in default"), &json!(1))]);
        for (id, task) in ids.iter().zip([new, old]) {
            assert_eq!(two.told(&["dlq", "show", id])["task"], task.to_string());
        }
        broken.store(false, Ordering::Relaxed);
        two.says(&["dlq", "replay", ids[0], ids[1]]);
        for id in [old, new] {
            let db = shards.of_task(id).await.unwrap();
            assert_eq!(
                read::wait_for_end(&db, id, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
        }
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        shards.close().await;
    })
    .await;
}
