//! Where it happens: the private PostgreSQL, a fresh database for every measurement, and the processes.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal;
use nix::unistd::Pid;
use serde_json::{json, Value};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgPool};
use tasker::config::{Secret, Settings};
use tasker::engine::register::register;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::private_postgres::PrivatePostgres;
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Db, Error, Template};

use crate::raw;

/// Durable (synchronous_commit and fsync are on, as by default), with room for the write-ahead log.
const SETTINGS: [(&str, &str); 6] = [
    ("shared_preload_libraries", "pg_stat_statements"),
    ("shared_buffers", "2GB"),
    ("max_connections", "1000"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
    ("pg_stat_statements.track", "top"),
];

pub(crate) const NAMESPACE: &str = "bench";

/// Who runs the handlers.
#[derive(Clone, Copy)]
pub(crate) enum Language {
    Rust,
    Ruby { threads: usize },
}

impl Language {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::Ruby { .. } => "ruby",
        }
    }
}

pub(crate) struct Site {
    postgres: PrivatePostgres,
    url: String,
    _folder: tempfile::TempDir,
}

/// A database with a template in it.
pub(crate) struct Place {
    pub(crate) db: Db,
    pub(crate) pool: PgPool,
    url: String,
    /// To LISTEN at, where the other is a pooler's.
    direct: Option<String>,
}

/// What works there.
pub(crate) struct Crew {
    orchestrator: Orchestrator,
    workers: Vec<Hand>,
}

enum Hand {
    Rust(Arc<Worker>),
    Ruby(Child),
}

impl Site {
    pub(crate) async fn open() -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        let postgres = PrivatePostgres::in_folder(folder.path()).unwrap_or_else(|error| panic!("{error}"));
        let url = postgres.start_with(&SETTINGS).await.unwrap_or_else(|error| panic!("{error}"));
        Site {
            postgres,
            url,
            _folder: folder,
        }
    }

    pub(crate) async fn machine(&self) -> Value {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches(['\t', ':', ' ']));
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes: u64 = memory.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or_default();
        let mut connection = self.options().connect().await.expect("connects");
        let version: String = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&mut connection)
            .await
            .expect("a version");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let settings = SETTINGS.map(|(name, value)| format!("{name}={value}")).join(" ");
        json!({ "machine": format!("{model}, {cores} cores, {} GiB", kilobytes >> 20), "PostgreSQL": version, "settings": settings })
    }

    fn options(&self) -> PgConnectOptions {
        self.url.parse().expect("our own URL")
    }

    /// The URL of an empty database.
    pub(crate) async fn database(&self) -> String {
        let name = format!("bench_{}", uuid::Uuid::new_v4().simple());
        let mut admin = self.options().connect().await.expect("connects");
        sqlx::raw_sql(&format!("CREATE DATABASE {name}"))
            .execute(&mut admin)
            .await
            .expect("creates a database");
        let (server, _) = self.url.rsplit_once('/').expect("our own URL");
        format!("{server}/{name}")
    }

    /// A fresh, migrated database with these templates.
    pub(crate) async fn place(&self, templates: &[String]) -> Place {
        let url = self.database().await;
        let db = Db::connect(&url, 10).await.expect("connects");
        db.migrate().await.expect("migrates");
        let pool = PgPool::connect_lazy(&url).expect("our own URL");
        sqlx::raw_sql("CREATE EXTENSION pg_stat_statements")
            .execute(&pool)
            .await
            .expect("pg_stat_statements is installed");
        for template in templates {
            register(&db, &Template::parse(template, "bench").expect("our own template"))
                .await
                .expect("registers");
        }
        Place {
            db,
            pool,
            url,
            direct: None,
        }
    }

    /// Messages a second that a script moves by itself.
    pub(crate) async fn pgbench(&self, script: &str, seconds: u32) -> f64 {
        let place = self.place(&[]).await;
        sqlx::raw_sql(raw::SET_UP).execute(&place.pool).await.expect("sets up");
        if script.contains("read") && !script.contains("send") {
            let fill = "SELECT pgmq.send_batch('raw', (SELECT bodies FROM raw_bodies)) FROM generate_series(1, 10000)";
            sqlx::raw_sql(&format!("SELECT count(*) FROM ({fill}) AS filled; ANALYZE pgmq.q_raw"))
                .execute(&place.pool)
                .await
                .expect("fills the queue");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), script).expect("writes");
        let pgbench = Command::new(self.postgres.program("pgbench"))
            .args([
                "--no-vacuum",
                "--client=2",
                "--jobs=2",
                "--protocol=prepared",
                &format!("--time={seconds}"),
                "--file",
            ])
            .arg(file.path())
            .arg(&place.url)
            .output()
            .expect("pgbench runs");
        let text = String::from_utf8_lossy(&pgbench.stdout);
        let transactions: f64 = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("pgbench: {}", String::from_utf8_lossy(&pgbench.stderr)));
        place.leave().await;
        transactions * raw::BATCH
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = self.postgres.stop() {
            eprintln!("{error}");
        }
    }
}

impl Place {
    /// An orchestrator in this process, and workers: Rust ones beside it, Ruby ones in processes of their own.
    pub(crate) async fn work(&self, language: Language, processes: usize) -> Crew {
        self.work_through(language, processes, None).await
    }

    pub(crate) fn options(&self) -> PgConnectOptions {
        self.url.parse().expect("our own URL")
    }

    /// The same database by way of a pooler at this port of this machine; its own address, too, where that is to LISTEN at.
    pub(crate) async fn by(self, port: u16, is_listening: bool) -> Place {
        self.db.close().await;
        let pooled = self.options().port(port).ssl_mode(PgSslMode::Disable).to_url_lossy().to_string();
        let mut place = Place {
            direct: is_listening.then_some(self.url),
            url: pooled,
            ..self
        };
        place.db = place.connect(10).await;
        place
    }

    /// From now on a task that has ended is kept for so many seconds.
    pub(crate) async fn keep_history(&self, seconds: u32) {
        sqlx::query("SELECT tasker.change_configuration(0, $1, 'bench', NULL)")
            .bind(json!({ "namespaces": { NAMESPACE: { "history_seconds": seconds } } }))
            .execute(&self.pool)
            .await
            .expect("sets the rule");
    }

    /// Another process's connections.
    pub(crate) async fn connect(&self, connections: u32) -> Db {
        let mut settings = Settings::default();
        settings.direct.url = self.direct.clone().map(Secret::from);
        loop {
            match Db::configured(&self.url, connections, &settings).await {
                // A pooler that was only just started.
                Err(Error::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                connected => return connected.expect("connects"),
            }
        }
    }

    /// Where PostgreSQL listens.
    pub(crate) fn address(&self) -> (String, u16) {
        let options = self.options();
        (options.get_host().to_owned(), options.get_port())
    }

    /// The same, where Ruby workers reach PostgreSQL by way of another port of this machine.
    pub(crate) async fn work_through(&self, language: Language, processes: usize, port: Option<u16>) -> Crew {
        let by = port.map(|port| {
            let url = self.url.replace(&format!(":{}/", self.address().1), &format!(":{port}/"));
            format!("{url}?sslmode=disable")
        });
        let environment: Vec<(&str, &str)> = by.iter().map(|url| ("DATABASE_URL", url.as_str())).collect();
        let mut workers = Vec::new();
        for _ in 0..processes {
            workers.push(match language {
                Language::Rust => self.rust().await,
                Language::Ruby { threads } => Hand::Ruby(self.ruby(threads, &environment)),
            });
        }
        let mut joined = 0;
        while joined < processes as i64 {
            joined = sqlx::query_scalar("SELECT count(*) FROM tasker.members WHERE kind = 'worker'")
                .fetch_one(&self.pool)
                .await
                .expect("asks");
        }
        let db = self.connect(6).await;
        let orchestrator = Orchestrator::start(&db, OrchestratorConfig::default())
            .await
            .expect("the orchestrator starts");
        Crew { orchestrator, workers }
    }

    async fn rust(&self) -> Hand {
        let config = WorkerConfig {
            namespaces: vec![NAMESPACE.into()],
            ..WorkerConfig::default()
        };
        let db = self.connect(6).await;
        let worker = Arc::new(Worker::start(&db, config).await.expect("the worker starts"));
        worker.handle_with(Handlers::default().with("Noop", |_| async { Ok(json!(now())) }));
        Hand::Rust(worker)
    }

    /// A Ruby worker in a process of its own.
    pub(crate) fn ruby(&self, threads: usize, environment: &[(&str, &str)]) -> Child {
        self.ruby_of(NAMESPACE, threads, environment)
    }

    /// The same, of these namespaces.
    pub(crate) fn ruby_of(&self, namespaces: &str, threads: usize, environment: &[(&str, &str)]) -> Child {
        let worker = [
            "-I",
            "lib",
            "exe/tasker",
            "worker",
            "-r",
            "bench/noop.rb",
            "--namespace",
            namespaces,
        ];
        let ruby = Command::new("ruby")
            .args(worker)
            .args(["--threads", &threads.to_string()])
            .env("DATABASE_URL", &self.url)
            .envs(self.direct.iter().map(|url| ("TASKER__DIRECT__URL", url)))
            .envs(environment.iter().copied())
            .stderr(Stdio::null())
            .spawn();
        ruby.expect("ruby runs")
    }

    /// What a Ruby program prints.
    pub(crate) fn run_ruby(&self, program: &str, arguments: &[&str]) -> String {
        let ruby = Command::new("ruby")
            .args(["-I", "lib", program])
            .args(arguments)
            .env("DATABASE_URL", &self.url)
            .output()
            .expect("ruby runs");
        assert!(ruby.status.success(), "{program}: {}", String::from_utf8_lossy(&ruby.stderr));
        String::from_utf8_lossy(&ruby.stdout).trim().to_owned()
    }

    /// An orchestrator in a process of its own.
    pub(crate) fn serve(&self, environment: &[(&str, &str)]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("DATABASE_URL", &self.url)
            .envs(environment.iter().copied())
            .stderr(Stdio::null())
            .spawn()
            .expect("tasker serves")
    }

    /// Nothing is left to be written of what was made for a measurement, and PostgreSQL knows how much it is.
    pub(crate) async fn settle(&self) {
        sqlx::raw_sql("CHECKPOINT; ANALYZE tasker.tasks")
            .execute(&self.pool)
            .await
            .expect("settles");
    }

    /// Waits until every task is complete. Seconds from the first admission to the last completion.
    pub(crate) async fn drained(&self) -> f64 {
        let mut open = true;
        while open {
            tokio::time::sleep(Duration::from_millis(200)).await;
            // The newest first: to look through what is done for what is not would cost as much as the work itself.
            open = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM (SELECT claim_order FROM tasker.tasks ORDER BY id DESC LIMIT 1) AS newest WHERE claim_order IS NOT NULL)
                     OR EXISTS (SELECT FROM (SELECT FROM pgmq.q_bench_queue ORDER BY msg_id DESC LIMIT 1) AS newest)
                     OR EXISTS (SELECT FROM tasker.tasks WHERE claim_order IS NOT NULL)",
            )
            .fetch_one(&self.pool)
            .await
            .expect("asks");
        }
        self.seconds().await
    }

    /// The same where steps may wait elsewhere than in a queue.
    pub(crate) async fn finished(&self) -> f64 {
        let mut open = true;
        while open {
            tokio::time::sleep(Duration::from_millis(200)).await;
            open = sqlx::query_scalar("SELECT EXISTS (SELECT FROM tasker.tasks WHERE state <> 'complete')")
                .fetch_one(&self.pool)
                .await
                .expect("asks");
        }
        self.seconds().await
    }

    /// The longest time between two steps' ends, in seconds.
    pub(crate) async fn longest_gap(&self) -> f64 {
        sqlx::query_scalar(
            "SELECT extract(epoch FROM max(g.gap))::float8
             FROM (SELECT s.finished_at - lag(s.finished_at) OVER (ORDER BY s.finished_at) AS gap FROM tasker.steps s) AS g",
        )
        .fetch_one(&self.pool)
        .await
        .expect("the times")
    }

    async fn seconds(&self) -> f64 {
        sqlx::query_scalar("SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM tasker.tasks")
            .fetch_one(&self.pool)
            .await
            .expect("the times")
    }

    /// (statements, rows written, bytes of write-ahead log) since the database was made.
    pub(crate) async fn costs(&self) -> (f64, f64, f64) {
        sqlx::query_as(
            "SELECT (SELECT sum(s.calls)::float8 FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database()),
                    (tup_inserted + tup_updated + tup_deleted)::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8
             FROM pg_stat_database WHERE datname = current_database()",
        )
        .fetch_one(&self.pool)
        .await
        .expect("the statistics")
    }

    /// How long the statements of tasker took since the database was made, in ms.
    pub(crate) async fn time(&self) -> f64 {
        sqlx::query_scalar(
            "SELECT sum(s.total_exec_time) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
             WHERE d.datname = current_database() AND s.query ~ 'tasker\\.\\w+\\('",
        )
        .fetch_one(&self.pool)
        .await
        .expect("the statistics")
    }

    pub(crate) async fn leave(self) {
        self.db.close().await;
        self.pool.close().await;
    }
}

impl Crew {
    /// Seconds of processor time that the Ruby workers have used.
    pub(crate) fn processor_time(&self) -> f64 {
        let of = |hand: &Hand| match hand {
            Hand::Rust(_) => 0.0,
            Hand::Ruby(child) => {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("the process runs");
                // After the name, which may contain anything: state is field 3, utime and stime are 14 and 15, in ticks of 10 ms (proc(5)).
                let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
                let ticks = |n: usize| fields[n - 3].parse::<f64>().expect("a number");
                (ticks(14) + ticks(15)) / 100.0
            }
        };
        self.workers.iter().map(of).sum()
    }

    pub(crate) async fn stop(self) {
        for worker in self.workers {
            match worker {
                Hand::Rust(worker) => worker.shutdown(Duration::from_secs(10)).await,
                Hand::Ruby(mut child) => stop(&mut child),
            }
        }
        self.orchestrator.shutdown().await;
    }
}

pub(crate) fn stop(process: &mut Child) {
    signal::kill(Pid::from_raw(process.id() as i32), signal::Signal::SIGTERM).ok();
    process.wait().expect("the process ends");
}

/// Seconds since 1970, as the Ruby handler says them.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
