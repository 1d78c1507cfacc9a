//! An owner of the schemas who is no superuser, whoever else migrates at the same time, and rights that are taken away.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tasker::engine::read::wait_for_end;
use tasker::engine::register::register;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use tasker::{Db, Template};
use uuid::Uuid;

use crate::health::Serve;
use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

/// Runs a test in an empty database whose owner may do nothing else.
async fn with_an_owner(world: &World, test: impl AsyncFnOnce(&str)) {
    let name = format!("tasker_test_owner_{}", Uuid::new_v4().simple());
    world.run(&format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await;
    world.run(&format!("CREATE DATABASE {name} OWNER {name}")).await;
    let options: PgConnectOptions = world.url.parse().unwrap();
    test(options.username(&name).password("secret").database(&name).to_url_lossy().as_str()).await;
    world.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
    world.run(&format!("DROP ROLE {name}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_migrates_waits_for_another_and_says_for_whom_and_nobody_else_can_make_him_wait() {
    World::with(async |world| {
        with_an_owner(world, async |url| {
            let mut other = PgConnection::connect(url).await.unwrap();
            other
                .execute("CREATE SCHEMA tasker; CREATE TABLE tasker.turn_migrate ()")
                .await
                .unwrap();
            other.execute("BEGIN; LOCK TABLE tasker.turn_migrate").await.unwrap();
            let process: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.unwrap();
            let mut migrating = Command::new(env!("CARGO_BIN_EXE_tasker"))
                .arg("migrate")
                .env("DATABASE_URL", url)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(migrating.stderr.take().unwrap()).lines().map(Result::unwrap);
            let waits = said.find(|line| line.contains("waiting for somebody else who migrates")).unwrap();
            assert!(waits.contains(&format!("process={process}")), "{waits}");
            other.execute("COMMIT").await.unwrap();
            said.for_each(drop);
            assert!(migrating.wait().unwrap().success());

            // Locks that anybody may take are none of ours.
            let theirs = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'tasker'::regnamespace AND prosrc ~ 'advisory'";
            assert_eq!(sqlx::query_scalar::<_, i64>(theirs).fetch_one(&mut other).await.unwrap(), 0);
            let turns: Vec<String> =
                sqlx::query_scalar("SELECT oid::regclass::text FROM pg_class WHERE relname ~ '^turn_' AND relkind = 'r'")
                    .fetch_all(&mut other)
                    .await
                    .unwrap();
            let stranger: PgConnectOptions = url.parse().unwrap();
            world
                .run(&format!(
                    "CREATE ROLE {0}_stranger LOGIN PASSWORD 'secret'",
                    stranger.get_username()
                ))
                .await;
            let name = format!("{}_stranger", stranger.get_username());
            let mut stranger = stranger.username(&name).connect().await.unwrap();
            for turn in turns {
                let refused = stranger
                    .execute(format!("BEGIN; LOCK TABLE {turn} IN ACCESS SHARE MODE").as_str())
                    .await;
                let refused = refused.unwrap_err().into_database_error().unwrap();
                assert_eq!(refused.code().as_deref(), Some("42501"), "{turn}");
                stranger.execute("ROLLBACK").await.unwrap();
            }
            world.run(&format!("DROP ROLE {name}")).await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_away_from_one_table_end_readiness() {
    World::with(async |world| {
        with_an_owner(world, async |url| {
            let db = Db::connect(url, 12).await.unwrap();
            db.migrate().await.unwrap();
            register(&db, &Template::parse(ONE, "one.yml").unwrap()).await.unwrap();
            let serve = Serve::start(url, &[], &[]);
            let config = WorkerConfig {
                namespaces: vec!["here".into()],
                ..WorkerConfig::default()
            };
            let worker = Arc::new(Worker::start(&db, config).await.unwrap());
            worker.handle_with(Handlers::default().with("H", |_: Arc<Step>| async { Ok(json!(null)) }));
            let submit = async || Submitter::new(db.clone()).submit("one", None, &[NewTask::default()]).await.unwrap()[0].id;
            assert_eq!(
                wait_for_end(&db, submit().await, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
            serve.until("/ready", |status, _| status == 200).await;

            let mut owner = PgConnection::connect(url).await.unwrap();
            owner.execute("REVOKE ALL ON tasker.steps FROM CURRENT_USER").await.unwrap();
            let task = submit().await;
            serve.until("/ready", |status, _| status == 503).await;
            let unready = async {
                while worker.health().ready().await.ready {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), unready).await.expect("not ready");

            owner.execute("GRANT ALL ON tasker.steps TO CURRENT_USER").await.unwrap();
            assert_eq!(wait_for_end(&db, task, Some(Duration::from_secs(60))).await.unwrap(), "complete");
            serve.until("/ready", |status, _| status == 200).await;
            worker.shutdown(Duration::from_secs(5)).await;
            db.close().await;
        })
        .await;
    })
    .await;
}
