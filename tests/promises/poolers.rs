//! Between the processes and PostgreSQL there may be a pooler: PgBouncer, and one through which no notification comes.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Executor, Row};
use tasker::config::distributed::{change, set, Configuration};
use tasker::config::{Given, Local, Secret, Settings};
use tasker::engine::configuration::DatabaseCoordinator;
use tasker::engine::read;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step, Worker};
use tasker::{Db, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::configuration::author;
use crate::world::{free_port, Server, World};

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

fn pgbouncer(folder: &Path, port: u16, pool_mode: &str, to: &PgConnectOptions) -> Server {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let password = to.to_url_lossy().password().unwrap_or_default().to_owned();
    let settings = format!(
        "[databases]\n* = host={} port={} user={} password={password}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = {pool_mode}\ndefault_pool_size = 40\n",
        to.get_host(),
        to.get_port(),
        to.get_username(),
    );
    let file = folder.join("pgbouncer.ini");
    fs::write(&file, settings).unwrap();
    let mut command = Command::new("pgbouncer");
    // It refuses to run as root.
    if nix::unistd::Uid::effective().is_root() {
        command.args(["-u", "nobody"]);
    }
    Server::start(command.arg(file))
}

/// A pooler through which no notification comes. Returns its port.
async fn deaf(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(carry_all_but_notifications(near, to));
        }
    });
    port
}

/// Until one of both has gone.
async fn carry_all_but_notifications(near: TcpStream, to: u16) -> io::Result<Infallible> {
    let far = TcpStream::connect(("127.0.0.1", to)).await?;
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
    tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
    loop {
        let (kind, length) = (far_in.read_u8().await?, far_in.read_u32().await?);
        let mut rest = vec![0; length as usize - 4];
        far_in.read_exact(&mut rest).await?;
        if kind != b'A' {
            near_out.write_all(&[&[kind], &length.to_be_bytes()[..], &rest].concat()).await?;
        }
    }
}

impl World {
    fn options(&self) -> PgConnectOptions {
        self.url.parse().unwrap()
    }

    /// As soon as somebody listens there.
    async fn connect_by(&self, port: u16) -> Result<Db, Error> {
        let url = self.options().port(port).ssl_mode(PgSslMode::Disable).to_url_lossy();
        let connected = async {
            loop {
                match Db::connect(url.as_str(), 12).await {
                    Err(Error::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                    connected => return connected,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), connected).await.expect("an answer")
    }

    /// Of a process that reaches the database by that port alone: tasks are done, and a change of the configuration is in force long before anybody looks
    /// for one by the way.
    async fn works_by(&self, port: u16) {
        self.register(ONE).await;
        let db = self.connect_by(port).await.unwrap();
        let flags = json!({ "worker": { "namespaces": ["here"] } });
        let local = Local::read(Given { flags, ..Given::default() }).unwrap();
        let (configuration, mut live) = Configuration::start(local, Arc::new(DatabaseCoordinator::new(&db))).await.unwrap();
        let stop = CancellationToken::new();
        let following = tokio::spawn(configuration.run(stop.clone(), |_| {}));
        let orchestrator = Orchestrator::start(&db, OrchestratorConfig::default()).await.unwrap();
        let worker = Arc::new(Worker::start(&db, live.clone()).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_: Arc<Step>| async { Ok(json!(null)) }));
        for batch in [50, 60] {
            let task = self.submit("one", json!({})).await;
            let ended = read::wait_for_end(&db, task, Some(Duration::from_secs(60))).await.unwrap();
            assert_eq!(ended, "complete");
            let edit = |overrides: &mut Value| {
                set(overrides, &["worker", "batch"], json!(batch));
                Ok(())
            };
            change(&DatabaseCoordinator::new(&self.db), &author(), edit).await.unwrap();
            let in_force = async {
                while live.effective().settings.worker.batch != batch {
                    live.changed().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(8), in_force).await.expect("in force");
        }
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        stop.cancel();
        following.await.unwrap();
        db.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_works_behind_a_pgbouncer_that_pools_sessions() {
    World::with(async |world| {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let _pgbouncer = pgbouncer(folder.path(), port, "session", &world.options());
        world.works_by(port).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_works_behind_a_pgbouncer_that_pools_transactions() {
    World::with(async |world| {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let _pgbouncer = pgbouncer(folder.path(), port, "transaction", &world.options());
        world.works_by(port).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_such_a_pgbouncer_goes_back_as_it_was_also_after_a_statement_that_failed() {
    World::with(async |world| {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let _pgbouncer = pgbouncer(folder.path(), port, "transaction", &world.options());
        let db = world.connect_by(port).await.unwrap();
        world.register(ONE).await;
        let unknown = Submitter::new(db.clone()).submit("nowhere", None, &[NewTask::default()]).await;
        assert!(matches!(unknown, Err(Error::NotFound(_))), "{unknown:?}");
        Submitter::new(db.clone()).submit("one", None, &[NewTask::default()]).await.unwrap();
        let others = world.options().port(port).ssl_mode(PgSslMode::Disable).extra_float_digits(None);
        let mut others = others.connect().await.unwrap();
        let left = "SELECT current_setting('enable_seqscan') || ' ' || current_setting('statement_timeout') || ' ' || count(*) FROM pg_prepared_statements";
        let left: String = others.fetch_one(left).await.unwrap().get(0);
        assert_eq!(left, "on 0 0");
        db.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_and_listening_go_by_the_address_behind_the_pooler_and_by_no_other_database() {
    World::with(async |world| {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let _pgbouncer = pgbouncer(folder.path(), port, "transaction", &world.options());
        world.connect_by(port).await.unwrap().close().await;
        let name = format!("{}_empty", world.options().get_database().unwrap());
        sqlx::query(&format!("CREATE DATABASE {name}")).execute(&world.pool).await.unwrap();
        let pooled = |options: PgConnectOptions| options.port(port).ssl_mode(PgSslMode::Disable).to_url_lossy().to_string();
        let empty = world.options().database(&name);
        let migrate = |direct: Option<&PgConnectOptions>| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
            command.arg("migrate").env("DATABASE_URL", pooled(empty.clone()));
            if let Some(direct) = direct {
                command.env("TASKER__DIRECT__URL", direct.to_url_lossy().as_str());
            }
            let done = command.output().unwrap();
            (done.status.success(), String::from_utf8(done.stderr).unwrap())
        };
        let (done, why) = migrate(None);
        assert!(!done && why.contains("direct.url"), "{why}");
        let (done, why) = migrate(Some(&world.options()));
        assert!(!done && why.contains("another database"), "{why}");
        let (done, why) = migrate(Some(&world.options().database(&name).port(port).ssl_mode(PgSslMode::Disable)));
        assert!(!done && why.contains("expected PostgreSQL's own address"), "{why}");
        let (done, why) = migrate(Some(&empty));
        assert!(done, "{why}");

        let mut settings = Settings::default();
        settings.direct.url = Some(Secret::from(world.options().to_url_lossy().to_string()));
        let db = Db::configured(&pooled(world.options()), 8, &settings).await.unwrap();
        let orchestrator = Orchestrator::start(&db, OrchestratorConfig::default()).await.unwrap();
        let listeners = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        world.until_true(&format!("({listeners}) = 1")).await;
        orchestrator.shutdown().await;
        db.close().await;
        sqlx::query(&format!("DROP DATABASE {name} WITH (FORCE)"))
            .execute(&world.pool)
            .await
            .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pgbouncer_that_pools_statements_is_refused_with_what_to_do() {
    World::with(async |world| {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let _pgbouncer = pgbouncer(folder.path(), port, "statement", &world.options());
        let refused = world.connect_by(port).await.unwrap_err();
        assert!(matches!(refused, Error::Config(_)), "{refused}");
        assert!(
            refused.to_string().contains("expected pool_mode = transaction or session"),
            "{refused}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_works_where_no_notification_arrives() {
    World::with(async |world| {
        let port = deaf(world.options().get_port()).await;
        world.works_by(port).await;
    })
    .await;
}
