//! What a pooler costs that gives each transaction another session: PgBouncer (pool_mode = transaction) with twenty connections to PostgreSQL.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::unistd::Uid;
use serde_json::{json, Value};
use sqlx::postgres::PgConnectOptions;
use sqlx::ConnectOptions;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::Db;

use crate::latency::{percentiles, rounds_at};
use crate::site::{Language, Place, Site};
use crate::throughput::{drain_once, Shape};

pub(crate) const COLUMNS: [&str; 3] = ["steps/s", "submit → begins, p50 ms", "p99 ms"];

/// How the processes reach PostgreSQL.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    Direct,
    /// By the pooler, and directly to LISTEN.
    Pooled,
    /// By the pooler alone.
    Polling,
}

pub(crate) const WAYS: [(&str, Way); 3] = [
    ("direct", Way::Direct),
    ("by PgBouncer, with direct.url", Way::Pooled),
    ("by PgBouncer alone", Way::Polling),
];

/// How many connections to PostgreSQL it makes.
const SERVER: usize = 20;

/// Ended with the measurement.
struct Pooler {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    fn start(of: &PgConnectOptions) -> Pooler {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("may be read");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let url = of.to_url_lossy();
        let (host, to, user, password) = (of.get_host(), of.get_port(), of.get_username(), url.password().unwrap_or_default());
        let settings = format!(
            "[databases]\n* = host={host} port={to} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = {SERVER}\nmax_client_conn = 2000\nlog_connections = 0\nlog_disconnections = 0\n"
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("writes");
        let mut command = Command::new("pgbouncer");
        if Uid::effective().is_root() {
            command.args(["-u", "nobody"]);
        }
        let process = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Pooler {
            process: process.expect("pgbouncer runs"),
            port,
            _folder: folder,
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

async fn place(site: &Site, shape: Shape, way: Way) -> (Place, Option<Pooler>) {
    let place = site.place(&[shape.template()]).await;
    let is_listening = match way {
        Way::Direct => return (place, None),
        Way::Pooled => true,
        Way::Polling => false,
    };
    let pooler = Pooler::start(&place.options());
    (place.by(pooler.port, is_listening).await, Some(pooler))
}

/// Steps a second of linear-4.
pub(crate) async fn rate(site: &Site, language: Language, steps: usize, way: Way) -> f64 {
    let (place, _pooler) = place(site, Shape::Linear4, way).await;
    4.0 * drain_once(place, language, steps / 4).await
}

/// How long it takes on an idle system until the handler begins: p50 and p99, in ms.
pub(crate) async fn latency(site: &Site, language: Language, way: Way) -> Vec<Value> {
    let (place, _pooler) = place(site, Shape::Jobs, way).await;
    let crew = place.work(language, 1).await;
    let (began, _) = rounds_at(&place).await;
    crew.stop().await;
    place.leave().await;
    percentiles(began)
}

pub(crate) const CROWD: [&str; 2] = ["tasks/s", "connections of PostgreSQL"];

/// What so many clients submit, each one task after the other, and how many connections PostgreSQL has for them.
pub(crate) async fn crowd(site: &Site, clients: usize, way: Way) -> Vec<Value> {
    const TASKS: usize = 10_000;
    let (place, _pooler) = place(site, Shape::Jobs, way).await;
    let mut all = Vec::new();
    for _ in 0..clients {
        all.push(place.connect(4).await);
    }
    let submit = async |db: &Db| {
        let submitter = Submitter::new(db.clone());
        for _ in 0..TASKS / clients {
            submitter.submit("flow", None, &[NewTask::default()]).await.expect("submits");
        }
    };
    join_all(all.iter().map(submit)).await;
    let began = Instant::now();
    join_all(all.iter().map(submit)).await;
    let seconds = began.elapsed().as_secs_f64();
    let connections: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
            .fetch_one(&place.pool)
            .await
            .expect("asks");
    join_all(all.iter().map(Db::close)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    place.leave().await;
    vec![json!((TASKS / clients * clients) as f64 / seconds), json!(connections)]
}
