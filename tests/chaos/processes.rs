//! The processes under test, each behind a proxy of its own, started again whenever they are gone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::proxy::Proxy;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Orchestrator,
    RustWorker,
    RubyWorker,
}

pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) proxy: Proxy,
    kind: Kind,
    url: String,
    direct: String,
    journal: PathBuf,
    child: Child,
}

pub(crate) struct Processes(pub(crate) Vec<Process>);

impl Process {
    async fn start(name: &str, kind: Kind, url: &str, journal: &Path) -> Process {
        let (before, port_and_name) = url.rsplit_once(':').unwrap();
        let (port, database) = port_and_name.split_once('/').unwrap();
        let proxy = Proxy::start(port.parse().unwrap()).await;
        let url_by_proxy = format!("{before}:{}/{database}", proxy.port);
        let child = spawn(kind, &url_by_proxy, url, journal);
        Process {
            name: name.into(),
            proxy,
            kind,
            url: url_by_proxy,
            direct: url.into(),
            journal: journal.into(),
            child,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).ok();
    }

    /// Starts it again if it is gone; whether it was.
    pub(crate) fn revive(&mut self) -> bool {
        let gone = self.child.try_wait().unwrap().is_some();
        if gone {
            self.child = spawn(self.kind, &self.url, &self.direct, &self.journal);
        }
        gone
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

fn spawn(kind: Kind, url: &str, direct: &str, journal: &Path) -> Child {
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
