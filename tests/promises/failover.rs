//! The primary dies, or is no primary any more: another server is, and every process goes on there without a restart.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tasker::engine::read::{read_task, wait_for_end};
use tasker::engine::register::register;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::private_postgres::PrivatePostgres;
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::{Db, Error, Template};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::command_line::json_of;
use crate::health::{own_postgres, Serve};
use crate::world::free_port;

pub(crate) const TWO: &str = "
name: two
namespace: here
steps:
  - { name: first, handler: H }
  - { name: second, handler: H, depends_on: [first] }
";

/// A primary and its synchronous standby.
pub(crate) struct Pair {
    primary: PrivatePostgres,
    pub(crate) standby: PrivatePostgres,
    /// Of both, and of each.
    url: String,
    pub(crate) of_primary: String,
    pub(crate) of_standby: String,
    _folders: [TempDir; 2],
}

/// What is said of one server's place in its URL.
fn place(url: &str) -> &str {
    url.split('@')
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .expect("host and port")
}

impl Pair {
    pub(crate) async fn start() -> Pair {
        let folders = [TempDir::new().expect("a folder"), TempDir::new().expect("a folder")];
        let (primary, url) = own_postgres(&folders[0]).await;
        let standby = primary.standby(folders[1].path()).expect("copies");
        let of_standby = standby.start().await.expect("starts");
        let mut connection = PgConnection::connect(&url).await.expect("connects");
        connection
            .execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            .await
            .expect("sets");
        connection.execute("SELECT pg_reload_conf()").await.expect("reloads");
        while sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
            .fetch_one(&mut connection)
            .await
            .expect("asks")
            == 0
        {}
        connection.close().await.expect("closes");
        let both = format!("{},{}", place(&of_standby), place(&url));
        Pair {
            url: format!("{}?target_session_attrs=read-write", url.replace(place(&url), &both)),
            of_primary: url,
            of_standby,
            primary,
            standby,
            _folders: folders,
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.primary.stop().ok();
        self.standby.stop().ok();
    }
}

/// Some who submit, and remember what was accepted, until they are told to stop.
pub(crate) struct Load {
    accepted: Arc<Mutex<Vec<Uuid>>>,
    stop: Arc<AtomicBool>,
    submitting: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(db: &Db, clients: usize) -> Load {
        let (accepted, stop) = (Arc::<Mutex<Vec<Uuid>>>::default(), Arc::<AtomicBool>::default());
        let client = |_| {
            let (submitter, accepted, stop) = (Submitter::new(db.clone()), accepted.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match submitter.submit("two", None, &[NewTask::default()]).await {
                        Ok(tasks) => accepted.lock().unwrap().extend(tasks.iter().map(|task| task.id)),
                        Err(error) => assert!(matches!(error, Error::Database(_)), "{error}"),
                    }
                }
            })
        };
        Load {
            submitting: (0..clients).map(client).collect(),
            accepted,
            stop,
        }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    /// Until so many more were accepted.
    pub(crate) async fn goes_on(&self, more: usize, when: &str) {
        let before = self.accepted();
        let going = async {
            while self.accepted() < before + more {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(120), going).await;
        in_time.unwrap_or_else(|_| panic!("{when}: {before} were accepted, and {} now", self.accepted()));
    }

    /// What was accepted altogether.
    pub(crate) async fn stop(self) -> Vec<Uuid> {
        self.stop.store(true, Ordering::Relaxed);
        for submitting in self.submitting {
            submitting.await.unwrap();
        }
        Arc::into_inner(self.accepted).unwrap().into_inner().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_dies_is_replaced_by_its_standby_and_nothing_that_was_accepted_is_lost() {
    let pair = Pair::start().await;
    let db = Db::connect(&pair.url, 8).await.unwrap();
    register(&db, &Template::parse(TWO, "two.yml").unwrap()).await.unwrap();
    let serve = Serve::start(&pair.url, &[], &[]);
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&db, config).await.unwrap());
    let done = Arc::new(Mutex::new(0));
    let counting = done.clone();
    worker.handle_with(Handlers::default().with("H", move |_| {
        *counting.lock().unwrap() += 1;
        async { Ok(json!(1)) }
    }));
    let load = Load::start(&db, 4);
    load.goes_on(200, "at first").await;
    assert_eq!(is_at(&pair), place(&pair.of_primary));
    pair.primary.kill().unwrap();
    let died = Instant::now();
    pair.standby.promote().unwrap();
    let promoted = died.elapsed();
    load.goes_on(1, "after the promotion").await;
    eprintln!(
        "the first task after the death was accepted after {:.1} s, the promotion took {:.1} s of these",
        died.elapsed().as_secs_f64(),
        promoted.as_secs_f64()
    );
    load.goes_on(200, "on the new primary").await;
    let accepted = load.stop().await;
    assert_eq!(accepted.iter().collect::<HashSet<_>>().len(), accepted.len());
    for task in &accepted {
        assert_eq!(wait_for_end(&db, *task, Some(Duration::from_secs(60))).await.unwrap(), "complete");
    }
    assert!(*done.lock().unwrap() >= 2 * accepted.len());
    serve.until("/ready", |status, _| status == 200).await;
    let is_ready = async {
        while !worker.health().ready().await.ready {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_ready).await.expect("it is ready");
    assert_eq!(is_at(&pair), place(&pair.of_standby));
    worker.shutdown(Duration::from_secs(5)).await;
    db.close().await;
}

/// Carries what comes to this address to a server.
async fn forward(from: SocketAddr, to: String) {
    let listener = TcpListener::bind(from).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    copy_bidirectional(&mut near, &mut far).await.ok();
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_another_address_is_followed() {
    // Names are the machine's: a process has others only where it may have an /etc/hosts of its own.
    if !Command::new("unshare")
        .args(["--mount", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        return eprintln!("not tried: this machine does not let a process have an /etc/hosts of its own");
    }
    let pair = Pair::start().await;
    let db = Db::connect(&pair.of_primary, 4).await.unwrap();
    register(&db, &Template::parse(TWO, "two.yml").unwrap()).await.unwrap();
    let port = free_port();
    forward(([127, 0, 0, 2], port).into(), place(&pair.of_primary).to_owned()).await;
    forward(([127, 0, 0, 3], port).into(), place(&pair.of_standby).to_owned()).await;
    let folder = TempDir::new().unwrap();
    let hosts = folder.path().join("hosts");
    let lead_to = |address: &str| fs::write(&hosts, format!("127.0.0.1 localhost\n{address} the-database.test\n")).unwrap();
    lead_to("127.0.0.2");
    let mut tasker = Command::new("unshare");
    tasker.args(["--mount", "sh", "-c", "mount --bind \"$HOSTS\" /etc/hosts && exec \"$0\" \"$@\""]);
    tasker.arg(env!("CARGO_BIN_EXE_tasker")).env("HOSTS", &hosts);
    let url = pair
        .of_primary
        .replace(place(&pair.of_primary), &format!("the-database.test:{port}"));
    let serve = Serve::by(tasker, &url, &[], &[]);
    serve.until("/ready", |status, _| status == 200).await;

    pair.primary.kill().unwrap();
    pair.standby.promote().unwrap();
    lead_to("127.0.0.3");
    let db = Db::connect(&pair.of_standby, 4).await.unwrap();
    let task = Submitter::new(db.clone()).submit("two", None, &[NewTask::default()]).await.unwrap()[0].id;
    while read_task(&db, task).await.unwrap()["state"] == "pending" {}
    serve.until("/ready", |status, _| status == 200).await;
    db.close().await;
}

/// Where the primary is, as the command line says.
fn is_at(pair: &Pair) -> String {
    let shards = json_of(&pair.url, &["shard", "list", "--json"]);
    shards[0]["primary"].as_str().unwrap().to_owned()
}

/// Leaves the standby where it is while the primary goes on, and then makes it the primary: as a backup of then would be.
async fn lose_the_last(pair: &Pair, meanwhile: impl AsyncFnOnce()) {
    let mut connection = PgConnection::connect(&pair.of_primary).await.unwrap();
    connection.execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    connection.execute("SELECT pg_reload_conf()").await.unwrap();
    connection.close().await.unwrap();
    pair.standby.kill().unwrap();
    meanwhile().await;
    pair.primary.kill().unwrap();
    pair.standby.crash().unwrap();
    pair.standby.promote().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_last_of_the_past_is_lost_what_is_left_runs_again_and_nothing_counts_for_another() {
    let pair = Pair::start().await;
    let db = Db::connect(&pair.url, 8).await.unwrap();
    register(&db, &Template::parse(TWO, "two.yml").unwrap()).await.unwrap();
    let serve = Serve::start(&pair.url, &[], &[]);
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        lease: Duration::from_secs(3),
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&db, config).await.unwrap());
    // Long enough that many are under way when the past is lost.
    worker.handle_with(Handlers::default().with("H", |step: Arc<Step>| async move {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..300))).await;
        Ok(json!(step.leased.task_id))
    }));
    let load = Load::start(&db, 1);
    load.goes_on(200, "at first").await;
    lose_the_last(&pair, async || load.goes_on(300, "without the standby").await).await;
    let before = load.accepted();
    load.goes_on(300, "on what is left").await;
    let accepted = load.stop().await;
    for task in &accepted[before + 1..] {
        assert_eq!(wait_for_end(&db, *task, Some(Duration::from_secs(60))).await.unwrap(), "complete");
    }

    let mut connection = PgConnection::connect(&pair.of_standby).await.unwrap();
    let count = async |connection: &mut PgConnection, sql: &str| sqlx::query_scalar::<_, i64>(sql).fetch_one(connection).await.unwrap();
    while count(&mut connection, "SELECT count(*) FROM tasker.tasks WHERE finished_at IS NULL").await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = count(&mut connection, "SELECT count(*) FROM tasker.tasks").await;
    assert!((kept as usize) < accepted.len(), "nothing was lost: {kept} of {}", accepted.len());
    for (what, sql) in [
        (
            "tasks did not complete",
            "SELECT count(*) FROM tasker.tasks WHERE state <> 'complete'",
        ),
        (
            "results are of another task",
            "SELECT count(*) FROM tasker.steps WHERE result #>> '{}' IS DISTINCT FROM task_id::text",
        ),
        ("messages are left", "SELECT count(*) FROM pgmq.q_here_queue"),
        (
            "things had to be mended",
            "SELECT coalesce(sum(value), 0)::bigint FROM tasker.counters WHERE name = 'reconciled'",
        ),
    ] {
        assert_eq!(count(&mut connection, sql).await, 0, "{what}");
    }
    connection.close().await.unwrap();
    serve.until("/ready", |status, _| status == 200).await;
    worker.shutdown(Duration::from_secs(5)).await;
    db.close().await;
}
