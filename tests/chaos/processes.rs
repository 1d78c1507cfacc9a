//! The processes under test, each behind a proxy of its own, started again whenever they are gone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use sqlx::PgPool;

use crate::proxy::Proxy;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Orchestrator,
    RustWorker,
    RubyWorker,
}

pub(crate) struct Process {
    pub(crate) name: String,
    /// One for each server of its URL, in its order.
    pub(crate) proxies: Vec<Proxy>,
    kind: Kind,
    url: String,
    direct: String,
    journal: PathBuf,
    /// What its clock is off by.
    clock: PathBuf,
    child: Child,
}

pub(crate) struct Processes(pub(crate) Vec<Process>);

impl Process {
    async fn start(name: &str, kind: Kind, url: &str, journal: &Path) -> Process {
        let (before, after) = url.rsplit_once('@').unwrap();
        let (servers, database) = after.split_once('/').unwrap();
        let mut proxies = Vec::new();
        for server in servers.split(',') {
            proxies.push(Proxy::start(server.rsplit_once(':').unwrap().1.parse().unwrap()).await);
        }
        let servers: Vec<String> = proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port)).collect();
        let url_by_proxy = format!("{before}@{}/{database}", servers.join(","));
        let clock = journal.with_file_name(format!("clock of {name}"));
        std::fs::write(&clock, "+0").unwrap();
        let child = spawn(kind, &url_by_proxy, url, journal, &clock);
        Process {
            name: name.into(),
            proxies,
            kind,
            url: url_by_proxy,
            direct: url.into(),
            journal: journal.into(),
            clock,
            child,
        }
    }

    /// What happens to all that it says to PostgreSQL, and hears.
    pub(crate) fn set_network(&self, mode: u8) {
        self.proxies.iter().for_each(|proxy| proxy.set(mode));
    }

    /// Ends every connection of it.
    pub(crate) fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).ok();
    }

    /// Sets its wall clock off by that many seconds, while it runs.
    pub(crate) fn set_clock(&self, seconds: i32) {
        std::fs::write(&self.clock, format!("{seconds:+}")).unwrap();
    }

    /// Starts it again if it is gone; whether it was.
    pub(crate) fn revive(&mut self) -> bool {
        let gone = self.child.try_wait().unwrap().is_some();
        if gone {
            self.child = spawn(self.kind, &self.url, &self.direct, &self.journal, &self.clock);
        }
        gone
    }

    async fn restart(&mut self) {
        self.signal(Signal::SIGTERM);
        self.wait(Duration::from_secs(15)).await;
        self.revive();
    }

    /// Waits for its end, a while.
    pub(crate) async fn wait(&mut self, patience: Duration) -> Option<i32> {
        let began = std::time::Instant::now();
        while began.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code().unwrap_or(-1));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

/// What makes a process see another time; without it no clock jumps.
fn libfaketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
}

fn spawn(kind: Kind, url: &str, direct: &str, journal: &Path, clock: &Path) -> Child {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = match kind {
        Kind::Orchestrator => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
            command.args(["serve", "--listen", "127.0.0.1:0"]);
            command
        }
        Kind::RustWorker => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "worker_process", "--nocapture"]).env("CHAOS_WORKER", url);
            command
        }
        Kind::RubyWorker => {
            let mut command = Command::new("ruby");
            command
                .arg("-I")
                .arg(root.join("lib"))
                .arg(root.join("exe/tasker"))
                .args(["worker", "-r"])
                .arg(root.join("tests/chaos/handlers.rb"));
            command.args(["--namespace", "work,bank", "--threads", "4", "--lease", "3", "--grace", "5"]);
            command
        }
    };
    command
        .env("DATABASE_URL", url)
        .env("CHAOS_DIRECT", direct)
        .env("CHAOS_JOURNAL", journal)
        .env_remove("NAMESPACE");
    if let Some(library) = libfaketime() {
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", clock)
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(journal.with_extension("log"))
        .unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Processes {
    /// What memory each has.
    pub(crate) fn megabytes(&self) -> Vec<(String, f64)> {
        let of = |process: &Process| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap_or_default();
            let resident = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
            (process.name.clone(), resident.unwrap_or_default() / 1024.0)
        };
        self.0.iter().map(of).collect()
    }

    pub(crate) async fn start(url: &str, journal: &Path) -> Processes {
        let mut all = Vec::new();
        for (name, kind) in [
            ("orchestrator 1", Kind::Orchestrator),
            ("orchestrator 2", Kind::Orchestrator),
            ("Rust worker 1", Kind::RustWorker),
            ("Rust worker 2", Kind::RustWorker),
            ("Ruby worker 1", Kind::RubyWorker),
            ("Ruby worker 2", Kind::RubyWorker),
        ] {
            all.push(Process::start(name, kind, url, journal).await);
        }
        Processes(all)
    }

    /// Starts again what is gone; how many.
    pub(crate) fn revive(&mut self) -> usize {
        self.0.iter_mut().map(|process| usize::from(process.revive())).sum()
    }

    /// Stops each cleanly and starts it again, one after the other.
    pub(crate) async fn restart_one_by_one(&mut self) {
        for process in &mut self.0 {
            process.restart().await;
        }
    }

    /// The same, each when the ones before have begun their work.
    pub(crate) async fn roll(&mut self, pool: &PgPool) {
        for n in 0..self.0.len() {
            self.have_joined(pool).await;
            self.0[n].restart().await;
        }
        self.have_joined(pool).await;
    }

    async fn have_joined(&self, pool: &PgPool) {
        let joined = "SELECT count(*) FROM tasker.members WHERE left_at IS NULL";
        while sqlx::query_scalar::<_, i64>(joined).fetch_one(pool).await.unwrap() < self.0.len() as i64 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops all of them cleanly; what did not stop so.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        for process in &self.0 {
            process.signal(Signal::SIGTERM);
        }
        let mut unclean = Vec::new();
        for process in &mut self.0 {
            let code = process.wait(Duration::from_secs(30)).await;
            if code != Some(0) {
                unclean.push(format!("{} stopped with {code:?}", process.name));
            }
        }
        unclean
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
