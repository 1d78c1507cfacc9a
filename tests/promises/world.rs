//! A database of its own for every test, and the engine's functions as any SQL client can call them.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgPool};
use tasker::config::distributed::Author;
use tasker::engine::configuration::DatabaseCoordinator;
use tasker::engine::namespaces;
use tasker::engine::register::{register, Registered};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Db, Template};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// What every test's database is copied from: another for those that go by a pooler, which run beside the others.
fn template() -> &'static str {
    match std::env::var_os("TEST_POOLER_PORT") {
        Some(_) => "tasker_test_template_pooled",
        None => "tasker_test_template",
    }
}

static MIGRATED: OnceCell<()> = OnceCell::const_new();

pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) db: Db,
    /// For what only a test would ask.
    pub(crate) pool: PgPool,
    pub(crate) orchestrator: i32,
}

/// A leased step, as `tasker.lease_steps` returns it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Leased {
    #[sqlx(skip)]
    pub(crate) queue: String,
    pub(crate) msg_id: i64,
    pub(crate) fence: i32,
    pub(crate) task_id: Uuid,
    pub(crate) step: i16,
    pub(crate) name: String,
    pub(crate) attempt: i32,
    pub(crate) crashes: i32,
    pub(crate) results: String,
}

fn server() -> PgConnectOptions {
    let url = std::env::var("DATABASE_URL").expect("set DATABASE_URL to a server where databases may be created, or run bin/test");
    url.parse().expect("DATABASE_URL is a URL")
}

/// By way of the pooler that the run has, if it has one (bin/test).
fn pooled(options: PgConnectOptions) -> PgConnectOptions {
    match std::env::var("TEST_POOLER_PORT") {
        Ok(port) => options.port(port.parse().expect("a port")).ssl_mode(PgSslMode::Disable),
        Err(_) => options,
    }
}

/// Nobody listens there.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// A server beside PostgreSQL, ended with the test.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(command: &mut Command) -> Server {
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Server(silent.spawn().expect("it runs: bin/test installs it"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn admin(sql: String) {
    let mut connection = server().connect().await.expect("the server of DATABASE_URL answers");
    sqlx::raw_sql(&sql)
        .execute(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().await.expect("closes");
}

impl World {
    /// Runs a test in a new, migrated database, which is dropped when the test succeeds.
    pub(crate) async fn with(test: impl AsyncFnOnce(&World)) {
        MIGRATED
            .get_or_init(|| async {
                admin(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", template())).await;
                admin(format!("CREATE DATABASE {}", template())).await;
                let db = Db::connect(server().database(template()).to_url_lossy().as_str(), 4)
                    .await
                    .expect("connects");
                db.migrate().await.expect("migrates");
                db.close().await;
            })
            .await;
        let name = format!("tasker_test_{}", Uuid::new_v4().simple());
        admin(format!("CREATE DATABASE {name} TEMPLATE {}", template())).await;
        let options = server().database(&name);
        let url = pooled(options.clone()).to_url_lossy().to_string();
        let db = Db::connect(&url, 16).await.expect("connects");
        let pool = PgPoolOptions::new().max_connections(16).connect_lazy_with(options);
        let orchestrator = sqlx::query_scalar("SELECT tasker.join_members('orchestrator', 'test', 'test', '{}', interval '1 hour')")
            .fetch_one(&pool)
            .await
            .expect("joins");
        let world = World {
            url,
            db,
            pool,
            orchestrator,
        };
        test(&world).await;
        world.db.close().await;
        world.pool.close().await;
        admin(format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }

    /// Runs a test in a new database for each of so many values, and makes the first one that fails it smaller.
    pub(crate) fn for_any<S: Strategy>(cases: u32, values: S, test: impl AsyncFn(&World, &S::Value)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let mut runner = TestRunner::new(Config {
            cases,
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Config::default()
        });
        let result = runner.run(&values, |value| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(World::with(async |world| test(world, &value).await));
            }));
            outcome.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".into());
                TestCaseError::fail(text)
            })
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }

    pub(crate) async fn register(&self, yaml: &str) -> Registered {
        let template = Template::parse(yaml, "test.yml").expect("a valid template");
        register(&self.db, &template).await.expect("registers")
    }

    pub(crate) async fn submit(&self, template: &str, input: Value) -> Uuid {
        let task = NewTask {
            input: input.into(),
            ..NewTask::default()
        };
        Submitter::new(self.db.clone())
            .submit(template, None, &[task])
            .await
            .expect("submits")[0]
            .id
    }

    /// A worker of the namespace `here`.
    pub(crate) async fn worker(&self, handlers: Handlers) -> Arc<Worker> {
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&self.db, config).await.expect("starts"));
        worker.handle_with(handlers);
        worker
    }

    /// Changes a namespace's rules.
    pub(crate) async fn set_rules(&self, namespace: &str, rules: Value) -> tasker::Result<Value> {
        let rules = serde_json::from_value(rules).expect("rules");
        let author = Author {
            who: "test".into(),
            why: None,
        };
        namespaces::set(&self.db, &DatabaseCoordinator::new(&self.db), namespace, &rules, &author).await
    }

    /// Claims every pending task.
    pub(crate) async fn claim(&self) -> i64 {
        sqlx::query_scalar("SELECT coalesce(sum(claimed), 0) FROM tasker.claim_tasks($1, NULL, 1000000, 10000)")
            .bind(self.orchestrator)
            .fetch_one(&self.pool)
            .await
            .expect("claims")
    }

    pub(crate) async fn lease(&self, queue: &str, limit: i32) -> Vec<Leased> {
        let leased: Vec<Leased> = sqlx::query_as("SELECT * FROM tasker.lease_steps($1, 7, $2, interval '1 hour')")
            .bind(queue)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .expect("leases");
        leased
            .into_iter()
            .map(|step| Leased {
                queue: queue.to_owned(),
                ..step
            })
            .collect()
    }

    /// Reports completions of one queue; returns the messages that counted.
    pub(crate) async fn complete(&self, steps: &[Leased], result: &str) -> Vec<i64> {
        let mut steps: Vec<&Leased> = steps.iter().collect();
        steps.sort_by_key(|step| step.msg_id);
        sqlx::query_scalar("SELECT unnest(counted) FROM tasker.complete_steps($1, 7, $2, $3, $4, $5, $6, $4)")
            .bind(&steps[0].queue)
            .bind(steps.iter().map(|s| s.msg_id).collect::<Vec<_>>())
            .bind(steps.iter().map(|s| s.fence).collect::<Vec<_>>())
            .bind(steps.iter().map(|s| s.task_id).collect::<Vec<_>>())
            .bind(steps.iter().map(|s| s.step).collect::<Vec<_>>())
            .bind(vec![result; steps.len()])
            .fetch_all(&self.pool)
            .await
            .expect("completes")
    }

    /// Reports a failure; whether it counted.
    pub(crate) async fn fail(&self, step: &Leased, message: &str, permanent: bool, retry_after: Option<f64>) -> bool {
        let counted: Vec<i64> = sqlx::query_scalar("SELECT counted FROM tasker.fail_steps($1, 7, $2, $3, $4, $5, $6, $7, $8)")
            .bind(&step.queue)
            .bind(vec![step.msg_id])
            .bind(vec![step.fence])
            .bind(vec![step.task_id])
            .bind(vec![step.step])
            .bind(vec![serde_json::json!({ "class": "TestError", "message": message })])
            .bind(vec![permanent])
            .bind(vec![retry_after])
            .fetch_all(&self.pool)
            .await
            .expect("fails");
        !counted.is_empty()
    }

    /// Lets a lease run out at once, as if its worker had died.
    pub(crate) async fn expire(&self, step: &Leased) {
        let sql = format!("UPDATE pgmq.q_{} SET vt = clock_timestamp() WHERE msg_id = $1", step.queue);
        sqlx::query(&sql).bind(step.msg_id).execute(&self.pool).await.expect("expires");
    }

    pub(crate) async fn enqueue_due_retries(&self) -> i32 {
        sqlx::query_scalar("SELECT enqueued FROM tasker.enqueue_due_retries(1000)")
            .fetch_one(&self.pool)
            .await
            .expect("enqueues retries")
    }

    pub(crate) async fn task(&self, id: Uuid) -> Value {
        tasker::engine::read::read_task(&self.db, id).await.expect("the task exists")
    }

    /// Replays every dead letter of a namespace at once.
    pub(crate) async fn replay_all(&self, namespace: &str) {
        let letters = format!("ARRAY(SELECT '{namespace}/' || msg_id FROM pgmq.q_{namespace}_queue_dlq)");
        self.run(&format!(
            "SELECT tasker.replay_dead_letters({letters}, NULL, NULL, NULL, 0, 'test', NULL)"
        ))
        .await;
    }

    /// As an orchestrator does, `limit` children at most: how many tasks had children to be counted, and how many were created or cancelled.
    pub(crate) async fn move_children(&self, limit: i32) -> (i64, i64) {
        let tallied = self.count("SELECT tasker.tally_children(1000)::bigint").await;
        (
            tallied,
            self.count(&format!("SELECT moved::bigint FROM tasker.move_fan_outs({limit})"))
                .await,
        )
    }

    /// How many tasks that are children are so.
    pub(crate) async fn children(&self, condition: &str) -> i64 {
        self.count(&format!(
            "SELECT count(*) FROM tasker.tasks t WHERE parent_id IS NOT NULL AND {condition}"
        ))
        .await
    }

    /// Waits until a statement, without its SELECT, is true.
    pub(crate) async fn until_true(&self, condition: &str) {
        while self.count(&format!("SELECT (SELECT {condition})::int::bigint")).await == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// The states of a task's steps, in order.
    pub(crate) async fn step_states(&self, id: Uuid) -> Vec<String> {
        let task = self.task(id).await;
        let steps = task["steps"].as_array().expect("steps").iter();
        steps.map(|step| step["state"].as_str().expect("a state").to_owned()).collect()
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) async fn text(&self, sql: &str) -> String {
        sqlx::query_scalar(sql)
            .fetch_one(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Waits until somebody has claimed a task.
    pub(crate) async fn until_running(&self, id: Uuid) {
        while self.task(id).await["state"] == "pending" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(sql)
            .execute(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// What the reconciler mends, as if all tasks that run had begun an hour ago: it leaves young ones alone.
    pub(crate) async fn reconcile(&self) -> i64 {
        self.run("UPDATE tasker.tasks SET started_at = started_at - interval '1 hour'")
            .await;
        self.count("SELECT mended::bigint FROM tasker.reconcile('00000000-0000-0000-0000-000000000000', 1000)")
            .await
    }

    pub(crate) async fn counter(&self, name: &str) -> i64 {
        self.count(&format!(
            "SELECT coalesce(max(value), 0) FROM tasker.counters WHERE name = '{name}'"
        ))
        .await
    }

    pub(crate) async fn dead_letters(&self, namespace: &str) -> Vec<Value> {
        let sql = format!("SELECT message FROM pgmq.q_{namespace}_queue_dlq ORDER BY msg_id");
        sqlx::query_scalar(&sql)
            .fetch_all(&self.pool)
            .await
            .expect("reads the dead letters")
    }
}
