//! What one broken part, peer or row does to the whole: nothing, but to itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};

use crate::health::Serve;
use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end_take_no_more_than_their_share_and_end_all_the_same() {
    World::with(async |world| {
        let serve = Serve::start(&world.url, &[], &[]);
        let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", serve.id())).unwrap().count();
        let before = descriptors();
        let mut half_open: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(serve.address()).unwrap()).collect();
        for stream in &mut half_open {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
        }
        // As often as Kubernetes would, on a machine that is busy.
        let alive = (0..100).any(|_| serve.health(&["--live"]).1 == 0);
        assert!(alive, "the socket has connections of its own");
        assert!(descriptors() <= before + 90, "{} were {before}", descriptors());
        for stream in &mut half_open {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            // Whatever it is told: it is the end.
            stream.read_to_end(&mut Vec::new()).ok();
        }
        serve.until("/health", |status, _| status == 200).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_panics_is_begun_anew() {
    World::with(async |world| {
        world.register(ONE).await;
        let serve = Serve::start(&world.url, &[], &[("TASKER_TEST_PANICS", "admission 2")]);
        let task = world.submit("one", json!({})).await;
        tokio::time::timeout(Duration::from_secs(60), world.until_running(task))
            .await
            .unwrap();
        serve
            .until("/health", |status, body| status == 200 && body["late_loops"] == json!([]))
            .await;
        let metrics = serve.text("/metrics");
        assert!(metrics.contains("tasker_loop_panics_total{loop=\"admission\"} 2"), "{metrics}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_one_of_whose_loops_panics_again_and_again_ends_and_says_why() {
    World::with(async |world| {
        let ended = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("DATABASE_URL", &world.url)
            .env("TASKER_RUN_DIR", tempfile::tempdir().unwrap().path())
            .env("TASKER_TEST_PANICS", "heartbeat 99")
            .env_remove("NAMESPACE")
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(3), "{said}");
        let last = said.lines().last().unwrap();
        assert_eq!(
            last,
            "tasker: the loop heartbeat panicked 5 times, the last time with: as it was told"
        );
    })
    .await;
}

/// An orchestrator that has no more than `ulimit` allows it.
fn limited(world: &World, ulimit: &str) -> Child {
    Command::new("bash")
        .arg("-c")
        .arg(format!("ulimit {ulimit}; exec \"$0\" serve --listen 127.0.0.1:0"))
        .arg(env!("CARGO_BIN_EXE_tasker"))
        .env("DATABASE_URL", &world.url)
        .env("TASKER_RUN_DIR", tempfile::tempdir().unwrap().path())
        .env_remove("NAMESPACE")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_few_descriptors_a_process_runs_or_says_why_not() {
    World::with(async |world| {
        for descriptors in [8, 10, 12, 14, 16, 20] {
            let mut process = limited(world, &format!("-n {descriptors}"));
            let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
            let mut said: Vec<String> = Vec::new();
            let told = log
                .by_ref()
                .inspect(|line| said.push(line.clone()))
                .any(|line| line.contains("answering GET") || line.contains("Too many open files"));
            assert!(told, "{descriptors}: {said:?}");
            // Time for its loops to come round, if it runs.
            tokio::time::sleep(Duration::from_secs(2)).await;
            process.kill().ok();
            said.extend(log);
            process.wait().unwrap();
            assert!(!said.iter().any(|line| line.contains("panicked")), "{descriptors}: {said:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_little_memory_a_process_runs_or_says_why_not() {
    World::with(async |world| {
        for (kilobytes, suffices) in [(50_000, false), (60_000, false), (80_000, false), (400_000, true)] {
            let mut process = limited(world, &format!("-v {kilobytes}"));
            let log = BufReader::new(process.stderr.take().unwrap());
            let mut said: Vec<String> = Vec::new();
            let answers = log.split(b'\n').any(|line| {
                said.push(String::from_utf8_lossy(&line.unwrap()).into_owned());
                said.last().is_some_and(|line| line.contains("answering GET"))
            });
            assert!(answers || !suffices, "{kilobytes}: {said:?}");
            process.kill().ok();
            let ended = process.wait().unwrap();
            // Where there is no room for the program itself, the system ends it before it begins.
            let began = ended.signal() != Some(Signal::SIGSEGV as i32);
            assert!(!said.is_empty() || !began, "{kilobytes}: {ended}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_full_disk_and_a_run_directory_that_cannot_be_made_stop_nothing() {
    World::with(async |world| {
        let run_dir = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("DATABASE_URL", &world.url)
            .env("TASKER_RUN_DIR", run_dir.path())
            .env_remove("NAMESPACE")
            .stderr(std::fs::File::options().write(true).open("/dev/full").unwrap())
            .spawn()
            .unwrap();
        world.register(ONE).await;
        let task = world.submit("one", json!({})).await;
        tokio::time::timeout(Duration::from_secs(60), world.until_running(task))
            .await
            .unwrap();
        process.kill().unwrap();
        process.wait().unwrap();

        let serve = Serve::start(&world.url, &[], &[("TASKER_RUN_DIR", "/proc/tasker")]);
        assert_eq!(serve.get("/health").0, 200, "its port answers all the same");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_directory_that_another_user_put_there_is_not_used() {
    World::with(async |world| {
        let (folder, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(others.path(), &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        let serve = Serve::start(&world.url, &[], &[("TASKER_RUN_DIR", link.to_str().unwrap())]);
        assert_eq!(serve.get("/health").0, 200, "its port answers all the same");
        assert_eq!(std::fs::read_dir(others.path()).unwrap().count(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_run_hold_up_nobody_and_become_dead_letters() {
    World::with(async |world| {
        world.register(ONE).await;
        world
            .run(
                "INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, claim_order, input, created_at)
                 SELECT tasker.uuidv7(), t.id, 9999, t.namespace_id, 4, 'pending', now() - interval '1 day', '{}', now()
                 FROM tasker.templates t, generate_series(1, 3000)",
            )
            .await;
        let infinite = sqlx::query("UPDATE tasker.tasks SET claim_order = '-infinity'")
            .execute(&world.pool)
            .await;
        assert!(infinite.is_err());
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let task = world.submit("one", json!({})).await;
        tokio::time::timeout(Duration::from_secs(60), world.until_running(task))
            .await
            .unwrap();
        orchestrator.shutdown().await;
        world
            .run(
                "DO $$ DECLARE v_last uuid := '00000000-0000-0000-0000-000000000000';
                 BEGIN WHILE v_last IS NOT NULL LOOP SELECT last INTO v_last FROM tasker.reconcile(v_last, 500); END LOOP; END $$",
            )
            .await;
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.tasks WHERE version_id = 9999 AND state = 'failed'")
                .await,
            3000
        );
        assert_eq!(world.counter("unrunnable_tasks").await, 3000);
        let letters = world.dead_letters("here").await;
        assert_eq!((letters.len(), &letters[0]["reason"]), (3000, &json!("unknown_version")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_read_as_often_as_can_be_counted_is_a_dead_letter_and_the_others_go_on() {
    World::with(async |world| {
        world.register(ONE).await;
        let mut tasks = Vec::new();
        for _ in 0..3 {
            tasks.push(world.submit("one", json!({})).await);
        }
        world.claim().await;
        let poisoned = world
            .text("SELECT message ->> 'task' FROM pgmq.q_here_queue ORDER BY msg_id LIMIT 1")
            .await;
        world
            .run("UPDATE pgmq.q_here_queue SET read_ct = 2147483647 WHERE msg_id = (SELECT min(msg_id) FROM pgmq.q_here_queue)")
            .await;
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_: Arc<Step>| async { Ok(json!(null)) }));
        for task in tasks {
            let expected = if task.to_string() == poisoned { "blocked" } else { "complete" };
            let reached = async {
                while world.task(task).await["state"] != expected {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), reached).await.expect(expected);
        }
        assert_eq!(world.dead_letters("here").await[0]["reason"], "unreadable");
        assert!(worker.health().ready().await.ready);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}
