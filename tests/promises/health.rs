//! Probes: each level is driven through each of its failures, with real processes and a real database that goes away.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use sqlx::{Connection, Executor, PgConnection};
use tasker::engine::member::Kind;
use tasker::http::Server;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::private_postgres::PrivatePostgres;
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::Db;
use tempfile::TempDir;

use crate::world::World;

const ONE_STEP: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

/// An orchestrator in a process of its own, with a run directory of its own.
pub(crate) struct Serve {
    process: Child,
    address: String,
    api: String,
    run_dir: TempDir,
}

impl Serve {
    pub(crate) fn start(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Serve {
        Serve::by(Command::new(env!("CARGO_BIN_EXE_tasker")), url, arguments, environment)
    }

    /// The same where `tasker` is a command that becomes it.
    pub(crate) fn by(mut tasker: Command, url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Serve {
        let run_dir = tempfile::tempdir().expect("a folder");
        let mut process = tasker
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .env("DATABASE_URL", url)
            .env("TASKER_RUN_DIR", run_dir.path())
            .env("TASKER__API__LISTEN", "127.0.0.1:0")
            .env_remove("NAMESPACE")
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut log = BufReader::new(process.stderr.take().expect("its log")).lines();
        let mut said = Vec::new();
        let mut address = || {
            log.by_ref()
                .map(|line| line.expect("text"))
                .find_map(|line| match line.split_once("address=") {
                    Some((_, address)) => Some(address.to_owned()),
                    None => {
                        said.push(line);
                        None
                    }
                })
                .unwrap_or_else(|| panic!("it does not say where it listens: {said:?}"))
        };
        let (address, api) = (address(), address());
        std::thread::spawn(move || log.for_each(drop));
        Serve {
            process,
            address,
            api,
            run_dir,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn api(&self) -> &str {
        &self.api
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        get(&self.address, path)
    }

    pub(crate) fn text(&self, path: &str) -> String {
        text(&self.address, path).1
    }

    /// Asks until the answer is as expected.
    pub(crate) async fn until(&self, path: &str, expected: impl Fn(u16, &Value) -> bool) -> Value {
        let asking = async {
            loop {
                let (status, body) = self.get(path);
                if expected(status, &body) {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), asking)
            .await
            .unwrap_or_else(|_| panic!("{path} answers {:?}", self.get(path)))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).expect("signals");
    }

    /// Until none of its threads runs any more: those that do when the signal comes may answer yet.
    fn stand_still(&self) {
        self.signal(Signal::SIGSTOP);
        let threads = || std::fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("lists its threads");
        let stands = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        while !threads().all(|thread| std::fs::read_to_string(thread.expect("a thread").path().join("stat")).is_ok_and(stands)) {
            std::thread::yield_now();
        }
    }

    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        self.process.wait().expect("ends");
    }

    /// `tasker health` beside it: what it prints, and its exit code.
    pub(crate) fn health(&self, arguments: &[&str]) -> (String, i32) {
        let output = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .arg("health")
            .args(arguments)
            .env("TASKER_RUN_DIR", self.run_dir.path())
            .output()
            .expect("runs");
        (
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            output.status.code().expect("ends"),
        )
    }
}

impl Serve {
    /// The same until it says so, as Kubernetes asks several times: on a machine that is busy an answer may not come in time.
    fn until_health(&self, arguments: &[&str], said: &str, code: i32) {
        let began = Instant::now();
        let mut last = self.health(arguments);
        while last != (said.into(), code) && began.elapsed() < Duration::from_secs(30) {
            last = self.health(arguments);
        }
        assert_eq!(last, (said.into(), code));
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn get(address: &str, path: &str) -> (u16, Value) {
    let (status, body) = text(address, path);
    (
        status,
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}")),
    )
}

fn text(address: &str, path: &str) -> (u16, String) {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .new_agent();
    let mut answer = agent
        .get(format!("http://{address}{path}"))
        .call()
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    let body = answer.body_mut().read_to_string().expect("a body");
    (answer.status().as_u16(), body)
}

fn says(body: &Value, what: &str) -> bool {
    body["failed"]
        .as_array()
        .is_some_and(|failed| failed.iter().any(|f| f.as_str().is_some_and(|f| f.contains(what))))
}

/// A PostgreSQL of the test's own, migrated.
pub(crate) async fn own_postgres(folder: &TempDir) -> (PrivatePostgres, String) {
    let postgres = PrivatePostgres::in_folder(folder.path()).expect("PostgreSQL is installed");
    let url = postgres.start().await.expect("starts");
    let db = Db::connect(&url, 4).await.expect("connects");
    db.migrate().await.expect("migrates");
    db.close().await;
    (postgres, url)
}

/// Every process of a server.
async fn processes(url: &str) -> Vec<Pid> {
    let mut connection = PgConnection::connect(url).await.expect("connects");
    let pids: Vec<i32> = sqlx::query_scalar(
        "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int UNION ALL SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
    )
    .fetch_all(&mut connection)
    .await
    .expect("lists");
    connection.close().await.expect("closes");
    pids.into_iter().map(Pid::from_raw).collect()
}

/// Some may have ended by themselves.
fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        kill(*pid, signal).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_ends_readiness_at_once_and_liveness_after_a_grace() {
    let folder = tempfile::tempdir().unwrap();
    let (postgres, url) = own_postgres(&folder).await;
    let patient = Serve::start(&url, &[], &[]);
    let impatient = Serve::start(&url, &[], &[("TASKER_DATABASE_GRACE", "3s")]);
    for serve in [&patient, &impatient] {
        assert_eq!(serve.get("/health").0, 200);
        assert_eq!(serve.get("/ready").0, 200);
    }

    let paused = processes(&url).await;
    signal_all(&paused, Signal::SIGSTOP);
    let not_ready = patient.until("/ready", |status, _| status == 503).await;
    assert!(says(&not_ready, "the database does not answer"), "{not_ready}");
    let dead = impatient.until("/health/live", |status, _| status == 503).await;
    assert!(says(&dead, "the database does not answer"), "{dead}");
    patient
        .until("/health/live", |status, live| status == 200 && live["database"] == false)
        .await;
    assert!(patient.get("/health/detailed").1["fleet"]["error"].is_string());

    signal_all(&paused, Signal::SIGCONT);
    impatient.until("/health/live", |status, _| status == 200).await;
    patient.until("/ready", |status, _| status == 200).await;

    postgres.stop().unwrap();
    patient.until("/ready", |status, _| status == 503).await;
    assert_eq!(patient.get("/health/live").0, 200);
    impatient.until("/health/live", |status, _| status == 503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_behind_ends_readiness_and_a_queue_that_is_gone_that_of_its_workers() {
    World::with(async |world| {
        world.register(ONE_STEP).await;
        let serve = Serve::start(&world.url, &[], &[]);
        assert_eq!(serve.get("/ready").0, 200);

        world.run("ALTER TABLE pgmq.q_here_queue RENAME TO elsewhere").await;
        let body = serve.until("/ready", |_, body| body["warnings"] != json!([])).await;
        assert!(
            body["warnings"].to_string().contains("the queue here_queue cannot be worked with"),
            "{body}"
        );
        assert_eq!(serve.get("/ready").0, 200);
        world.run("ALTER TABLE pgmq.elsewhere RENAME TO q_here_queue").await;
        serve.until("/ready", |_, body| body["warnings"] == json!([])).await;

        world
            .run("DELETE FROM tasker._sqlx_migrations WHERE version = (SELECT max(version) FROM tasker._sqlx_migrations)")
            .await;
        let body = serve.until("/health/ready", |status, _| status == 503).await;
        assert!(says(&body, "run `tasker migrate`"), "{body}");
        assert_eq!(serve.get("/health").0, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_stands_still_and_memory_that_runs_out_end_liveness() {
    World::with(async |world| {
        let wedged = Serve::start(&world.url, &[], &[("TASKER_TEST_WEDGED", "admission")]);
        let body = wedged.until("/health", |status, _| status == 503).await;
        assert_eq!(body["failed"], json!(["the loop admission stands still"]));
        assert_eq!(wedged.get("/ready").0, 200);

        let swollen = Serve::start(&world.url, &[], &[("TASKER_MEMORY_LIMIT", "1000000")]);
        let (status, body) = swollen.get("/health");
        assert!(status == 503 && says(&body, "of 1000000 bytes are used"), "{body}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_probes_at_once_are_answered_while_every_connection_is_stuck() {
    World::with(async |world| {
        world.register(ONE_STEP).await;
        world.submit("one", json!({})).await;
        let serve = Serve::start(&world.url, &["--connections", "4"], &[]);
        let mut session = PgConnection::connect(&world.url).await.unwrap();
        let mut locking = session.begin().await.unwrap();
        locking.execute("LOCK TABLE tasker.tasks").await.unwrap();
        // The one connection for work waits for that lock, and the other loops wait for the connection.
        serve
            .until("/ready", |status, body| status == 503 && says(body, "calls wait"))
            .await;

        let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..200)
                .map(|n| {
                    scope.spawn({
                        let serve = &serve;
                        move || serve.get(["/health", "/ready", "/health/detailed"][n % 3])
                    })
                })
                .collect();
            asked.into_iter().map(|answer| answer.join().unwrap()).collect()
        });
        assert!(answers.iter().step_by(3).all(|(status, _)| *status == 200));
        serve
            .until("/health", |status, body| status == 200 && body["database"] == true)
            .await;
        let open = world
            .count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tasker'")
            .await;
        locking.rollback().await.unwrap();
        // The world's own are among them.
        assert!(open <= 4 + 16, "{open} connections");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_shuts_down_is_not_ready_from_the_beginning_of_it() {
    World::with(async |world| {
        world.register(ONE_STEP).await;
        world.submit("one", json!({})).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        let (running, go_on) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let handler = {
            let (running, go_on) = (running.clone(), go_on.clone());
            move |_: Arc<Step>| {
                let (running, go_on) = (running.clone(), go_on.clone());
                async move {
                    running.notify_one();
                    go_on.notified().await;
                    Ok(json!(null))
                }
            }
        };
        worker.handle_with(Handlers::default().with("H", handler));
        let server = Server::bind(Some("127.0.0.1:0".parse().unwrap()), Kind::Worker).await.unwrap();
        let address = server.address().unwrap().to_string();
        let serving = server.start(worker.health().clone());
        running.notified().await;
        let asked = address.clone();
        assert_eq!(tokio::task::spawn_blocking(move || get(&asked, "/ready").0).await.unwrap(), 200);

        let shutdown = tokio::spawn({
            let worker = worker.clone();
            async move { worker.shutdown(Duration::from_secs(30)).await }
        });
        let draining = tokio::task::spawn_blocking(move || loop {
            let (status, body) = get(&address, "/ready");
            if status == 503 {
                return (body, get(&address, "/health").0);
            }
        });
        let (body, live) = draining.await.unwrap();
        assert!(body["draining"] == true && says(&body, "shutting down"), "{body}");
        assert_eq!(live, 200);
        assert!(!shutdown.is_finished());
        go_on.notify_one();
        shutdown.await.unwrap();
        serving.stop().await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn detailed_health_tells_of_the_whole_fleet() {
    World::with(async |world| {
        world.register(ONE_STEP).await;
        for _ in 0..3 {
            world.submit("one", json!({})).await;
        }
        world.claim().await;
        let leased = world.lease("here_queue", 2).await;
        world.fail(&leased[0], "broken", true, None).await;
        world.run("SELECT tasker.create_task('one', '{}', 'high')").await;
        world.run("UPDATE tasker.tasks SET claim_order = claim_order - interval '1 hour' WHERE state = 'pending'").await;

        // Reports nobody: what a worker does is told with its heartbeat.
        let worker = world.count("SELECT tasker.join_members('worker', 'bee', '1', '{here}', interval '1 hour')::bigint").await;
        world
            .run(&format!(
                "SELECT tasker.renew_membership({worker}, interval '1 hour', '{{\"busy\": {{\"running\": 2}}}}', '{{\"here\": {{\"completed\": 600, \"failed\": 60}}}}')"
            ))
            .await;
        world.run("UPDATE tasker.activity SET at = at - interval '30 s'").await;

        let serve = Serve::start(&world.url, &["--namespace", "elsewhere"], &[]);
        let detailed = serve
            .until("/health/detailed", |_, body| {
                body["fleet"]["namespaces"].is_object() && body["ready"]["ready"] == true
            })
            .await;
        let here = &detailed["fleet"]["namespaces"]["here"];
        assert_eq!(here["queue"]["depth"], 2, "{here}");
        assert!(here["queue"]["oldest_seconds"].as_f64().is_some_and(|s| s > 0.0), "{here}");
        assert_eq!(here["dead_letters"]["depth"], 1, "{here}");
        assert_eq!(here["backlog"]["high"]["pending"], 1, "{here}");
        assert!(here["backlog"]["high"]["oldest_seconds"].as_f64().is_some_and(|s| s > 3600.0), "{here}");
        assert_eq!(here["backlog"]["low"], json!({ "pending": 0, "oldest_seconds": null, "escalation": null }));
        assert_eq!(here["rates"]["1m"], json!({ "completed": 10, "failed": 1 }), "{here}");
        assert_eq!(here["rates"]["5m"], json!({ "completed": 2, "failed": 0.2 }), "{here}");
        assert_eq!(here["workers"], 1);
        let members = detailed["fleet"]["members"].as_array().unwrap();
        let bee = members.iter().find(|member| member["name"] == "bee").unwrap();
        assert_eq!((&bee["kind"], &bee["report"]["busy"]["running"]), (&json!("worker"), &json!(2)));
        assert!(bee["heartbeat_seconds"].as_f64().is_some_and(|s| (0.0..60.0).contains(&s)), "{bee}");
        assert!(detailed["fleet"]["database"]["max_connections"].as_i64().is_some_and(|n| n > 0));
        assert!(detailed["live"]["memory"]["used"].as_i64().is_some_and(|n| n > 1_000_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_finds_who_runs_here_and_who_is_dead_or_stands_still() {
    World::with(async |world| {
        let mut serve = Serve::start(&world.url, &[], &[]);
        let pid = serve.process.id();
        serve.until_health(&[], &format!("orchestrator {pid}: ok"), 0);
        serve.until_health(&["--ready"], &format!("orchestrator {pid}: ok"), 0);
        assert_eq!(serve.health(&["--worker"]), ("no worker runs here".into(), 1));
        let detailed: Value = serde_json::from_str(&serve.health(&["--detailed"]).0).unwrap();
        assert_eq!(detailed["live"]["pid"], pid);

        serve.stand_still();
        assert_eq!(
            serve.health(&[]),
            (format!("orchestrator {pid}: it stands still: no answer in time"), 1)
        );
        serve.signal(Signal::SIGCONT);
        serve.until_health(&[], &format!("orchestrator {pid}: ok"), 0);

        serve.end(Signal::SIGKILL);
        assert_eq!(
            serve.health(&[]),
            (format!("orchestrator {pid}: it is dead: nobody answers on its socket"), 1)
        );

        // The next one takes away what the dead have left, and one that is told to stop leaves nothing.
        let mut next = Serve::start(&world.url, &[], &[("TASKER_RUN_DIR", serve.run_dir.path().to_str().unwrap())]);
        serve.until_health(&[], &format!("orchestrator {}: ok", next.process.id()), 0);
        next.end(Signal::SIGTERM);
        assert_eq!(serve.health(&[]), ("neither an orchestrator nor a worker runs here".into(), 1));
    })
    .await;
}
