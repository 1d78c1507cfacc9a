//! Two servers under Patroni, by their own addresses and through HAProxy: a switchover, and the death of the leader.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::{Pid, User};
use serde_json::{json, Value};
use tasker::engine::read::wait_for_end;
use tasker::engine::register::register;
use tasker::private_postgres::PrivatePostgres;
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Db, Template};
use tempfile::TempDir;

use crate::failover::{Load, TWO};
use crate::world::{free_port, Server};

/// Of one server.
struct Node {
    name: &'static str,
    postgres: u16,
    api: u16,
    folder: PathBuf,
    process: Option<Server>,
}

/// etcd, two nodes, and HAProxy before them.
struct Cluster {
    nodes: [Node; 2],
    by_haproxy: u16,
    _others: [Server; 2],
    _folder: TempDir,
}

/// PostgreSQL refuses root.
fn unprivileged() -> Option<User> {
    nix::unistd::Uid::effective()
        .is_root()
        .then(|| User::from_name("postgres").unwrap().expect("Debian's PostgreSQL makes the user"))
}

fn give(path: &Path) {
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

fn etcd(folder: &Path) -> (Server, u16) {
    let (port, peers) = (free_port(), free_port());
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
    let mut command = Command::new("etcd");
    command
        .args(["--name", "one", "--data-dir"])
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")]);
    (Server::start(&mut command), port)
}

impl Node {
    fn settings(&self, etcd: u16, binaries: &Path) -> Value {
        let (api, postgres) = (format!("127.0.0.1:{}", self.api), format!("127.0.0.1:{}", self.postgres));
        let login = |name: &str| json!({ "username": name, "password": "secret" });
        json!({
            "scope": "tasker", "name": self.name,
            "restapi": { "listen": api, "connect_address": api },
            "etcd3": { "host": format!("127.0.0.1:{etcd}") },
            "bootstrap": {
                "dcs": { "ttl": 20, "loop_wait": 1, "retry_timeout": 3, "synchronous_mode": true, "master_start_timeout": 0,
                         "postgresql": { "use_pg_rewind": true, "parameters": { "max_connections": 100 } } },
                "initdb": [{ "encoding": "UTF8" }, { "locale": "C.UTF-8" }, "data-checksums"],
                "pg_hba": ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"],
            },
            "postgresql": {
                "listen": postgres, "connect_address": postgres, "data_dir": self.folder.join("data"), "bin_dir": binaries,
                "pgpass": self.folder.join("pgpass"), "authentication": { "superuser": login("postgres"), "replication": login("replicator") },
                "parameters": { "unix_socket_directories": "", "password_encryption": "scram-sha-256" },
            },
        })
    }

    fn start(&mut self) {
        let mut command = Command::new("patroni");
        command
            .arg(self.folder.join("patroni.yml"))
            .current_dir(&self.folder)
            .env("HOME", &self.folder);
        if let Some(user) = unprivileged() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        self.process = Some(Server::start(&mut command));
    }

    /// The roles of all that it knows of, by name; nothing while it does not answer.
    fn roles(&self) -> Value {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let answer = agent.get(format!("http://127.0.0.1:{}/cluster", self.api)).call();
        let said: Value = answer
            .ok()
            .and_then(|mut answer| serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok())
            .unwrap_or_default();
        let members = said["members"].as_array().into_iter().flatten();
        members
            .map(|member| (member["name"].as_str().unwrap_or_default().to_owned(), member["role"].clone()))
            .collect()
    }

    /// The whole machine, so to speak.
    fn die(&mut self) {
        drop(self.process.take());
        let postmaster = fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("it runs");
        let pid = postmaster.lines().next().and_then(|pid| pid.parse().ok()).expect("a process");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("ends");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.die();
        }
    }
}

impl Cluster {
    async fn start() -> Cluster {
        // Where the server's user gets at it.
        let folder = TempDir::new_in("/var/tmp").unwrap();
        give(folder.path());
        let binaries = PrivatePostgres::in_folder(&folder.path().join("none")).unwrap().program("");
        let (etcd, port) = etcd(folder.path());
        let nodes = ["one", "two"].map(|name| {
            let mut node = Node {
                name,
                postgres: free_port(),
                api: free_port(),
                folder: folder.path().join(name),
                process: None,
            };
            fs::create_dir(&node.folder).unwrap();
            give(&node.folder);
            let settings = node.folder.join("patroni.yml");
            fs::write(&settings, node.settings(port, &binaries).to_string()).unwrap();
            give(&settings);
            node.start();
            node
        });
        let by_haproxy = free_port();
        let servers = nodes
            .iter()
            .map(|node| format!("  server {} 127.0.0.1:{} check port {}\n", node.name, node.postgres, node.api));
        let settings = format!(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n\
             listen primary\n  bind 127.0.0.1:{by_haproxy}\n  option httpchk OPTIONS /primary\n  http-check expect status 200\n  \
             default-server inter 500 fall 2 rise 1 on-marked-down shutdown-sessions\n{}",
            servers.collect::<String>()
        );
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, settings).unwrap();
        let haproxy = Server::start(Command::new("haproxy").arg("-db").arg("-f").arg(&file));
        let cluster = Cluster {
            nodes,
            by_haproxy,
            _others: [etcd, haproxy],
            _folder: folder,
        };
        cluster.leader().await;
        cluster
    }

    /// The place of the node that leads, once Patroni knows that the other one may take its place without a loss.
    async fn leader(&self) -> usize {
        let leading = async {
            loop {
                let roles = self.nodes[0].roles();
                let is = |place: usize, role: &str| roles[self.nodes[place].name] == role;
                if let Some(place) = (0..2).find(|&place| is(place, "leader") && is(1 - place, "sync_standby")) {
                    return place;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), leading).await.expect("one leads")
    }

    fn url(&self, places: &str) -> String {
        format!("postgres://postgres:secret@{places}/tasker")
    }

    fn urls(&self) -> [String; 2] {
        let [one, two] = [&self.nodes[0], &self.nodes[1]].map(|node| format!("127.0.0.1:{}", node.postgres));
        [
            self.url(&format!("{one},{two}")),
            self.url(&format!("127.0.0.1:{}", self.by_haproxy)),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_and_the_death_of_the_leader_are_followed_by_addresses_and_through_haproxy() {
    let mut cluster = Cluster::start().await;
    let urls = cluster.urls();
    let postgres = urls[0].replace("/tasker", "/postgres");
    let first = Db::connect(&postgres, 4).await.unwrap();
    first.close().await;
    let leader = cluster.leader().await;
    let admin = format!("postgres://postgres:secret@127.0.0.1:{}/postgres", cluster.nodes[leader].postgres);
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&admin).await.unwrap();
    sqlx::Executor::execute(&mut connection, "CREATE DATABASE tasker").await.unwrap();

    let (mut dbs, mut workers, mut load) = (Vec::new(), Vec::new(), Vec::new());
    for url in &urls {
        let db = loop {
            // HAProxy finds out by and by.
            if let Ok(db) = Db::connect(url, 8).await {
                break db;
            }
        };
        db.migrate().await.unwrap();
        register(&db, &Template::parse(TWO, "two.yml").unwrap()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(1)) }));
        load.push(Load::start(&db, 1));
        dbs.push(db);
        workers.push(worker);
    }
    let both_go_on = async |when: &str| {
        load[0].goes_on(100, &format!("{when}, by addresses")).await;
        load[1].goes_on(100, &format!("{when}, through HAProxy")).await;
    };
    both_go_on("at first").await;

    let (old, new) = (&cluster.nodes[leader], &cluster.nodes[1 - leader]);
    let switchover = json!({ "leader": old.name, "candidate": new.name }).to_string();
    // Until Patroni knows that the other one may lead.
    while ureq::post(format!("http://127.0.0.1:{}/switchover", old.api))
        .send(&switchover)
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    while cluster.leader().await == leader {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    both_go_on("after the switchover").await;

    cluster.nodes[1 - leader].die();
    both_go_on("after the death").await;
    for load in load {
        for task in load.stop().await {
            assert_eq!(
                wait_for_end(&dbs[0], task, Some(Duration::from_secs(60))).await.unwrap(),
                "complete"
            );
        }
    }
    for worker in workers {
        worker.shutdown(Duration::from_secs(5)).await;
    }
    for db in dbs {
        db.close().await;
    }
}
