//! The configuration of a fleet of real processes: changed in one place, in force everywhere, without a restart; refused whole; rolled back.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use tasker::config::distributed::{change, set, Author, Configuration, ConfigurationCoordinator};
use tasker::config::{Given, Local};
use tasker::engine::configuration::DatabaseCoordinator;
use tasker::engine::namespaces;
use tasker::worker::Worker;
use tasker::Error;
use tokio_util::sync::CancellationToken;

use crate::health::Serve;
use crate::world::World;

/// How soon a change has to be in force.
const SOON: Duration = Duration::from_secs(2);

pub(crate) fn author() -> Author {
    Author {
        who: "ada".into(),
        why: Some("a test".into()),
    }
}

/// An orchestrator that tells of itself every second.
fn orchestrator(world: &World, id: &str, variables: &[(&str, &str)]) -> Serve {
    let own = [("ORCHESTRATOR_ID", id), ("TASKER__ORCHESTRATOR__LEASE", "3s")];
    Serve::start(&world.url, &[], &[&own, variables].concat())
}

impl World {
    fn tasker_here(&self, arguments: &[&str]) -> (i32, String) {
        self.tasker_with(arguments, &[])
    }

    fn tasker_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(arguments)
            .envs(variables.iter().copied())
            .env("DATABASE_URL", &self.url)
            .env("USER", "ada")
            .env_remove("NAMESPACE")
            .output()
            .expect("tasker runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).trim().to_owned())
    }

    /// What the members that live say of their configuration.
    async fn configurations(&self) -> Vec<Value> {
        sqlx::query_scalar("SELECT report -> 'configuration' FROM tasker.members WHERE left_at IS NULL AND report IS NOT NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .expect("asks")
    }

    /// Waits until so many members have told, and what they told satisfies the caller.
    async fn until(&self, members: usize, satisfied: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let began = Instant::now();
        loop {
            let told = self.configurations().await;
            if told.len() == members && satisfied(&told) {
                return told;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "never: {told:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_one_place_is_in_force_in_every_process_and_a_rollback_too() {
    World::with(async |world| {
        let _fleet = ["one", "two"].map(|id| orchestrator(world, id, &[]));
        world.until(2, |_| true).await;
        let batch = |expected: i64| move |told: &[Value]| told.iter().all(|c| c["values"]["orchestrator.batch"] == expected);

        let changed = world.tasker_here(&["config", "set", "orchestrator.batch", "50", "--why", "big tasks"]);
        assert_eq!(changed, (0, r#"version 1: {"orchestrator":{"batch":50}}"#.into()));
        world.until(2, batch(50)).await;
        let own = ["config", "set", "orchestrator.poll", "250ms", "--instance", "two"];
        assert_eq!(world.tasker_here(&own).0, 0);
        world.until(2, |told| told.iter().all(|c| c["version"] == 2)).await;
        assert_eq!(world.tasker_here(&["config", "drift", "--grace", "0"]), (0, "none".into()));

        assert_eq!(world.tasker_here(&["config", "rollback", "0"]).0, 0);
        world.until(2, batch(200)).await;
        let (_, history) = world.tasker_here(&["config", "history", "--json"]);
        let history: Value = serde_json::from_str(&history).unwrap();
        assert_eq!(history[2]["why"], "big tasks");
        assert_eq!((&history[0]["version"], &history[0]["overrides"]), (&json!(3), &json!({})));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_change_is_refused_whole() {
    World::with(async |world| {
        let refused = |arguments: &[&str], expected: &str| {
            let (code, said) = world.tasker_here(arguments);
            assert_eq!(code, 1, "{said}");
            assert!(said.contains(expected), "{said}");
        };
        refused(
            &["config", "set", "orchestrator.btach", "5"],
            "orchestrator.btach is not known: did you mean batch?",
        );
        refused(
            &["config", "set", "worker.lease", "10ms"],
            "worker.lease is 10ms: expected at least 1s",
        );
        refused(
            &["config", "set", "connections", "20"],
            "connections needs a restart: set it in tasker.yml",
        );
        refused(
            &["config", "set", "worker.listen", "0.0.0.0:1", "--instance", "worker-7.example.com"],
            "instances.worker-7.example.com.worker.listen needs a restart",
        );
        refused(
            &["config", "set", "orchestrator.alert_webhook", "https://hooks.example.com/token"],
            "orchestrator.alert_webhook is a secret",
        );
        refused(&["config", "set", "max_attempts", "8"], "max_attempts is of a namespace: name it");
        refused(
            &["config", "set", "max_attempts", "0", "--namespace", "billing"],
            "namespaces.billing.max_attempts is 0: expected",
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "orchestrator:\n  batch: 5\nnamespaces:\n  billing:\n    backof: fixed\n",
        )
        .unwrap();
        let (code, said) = world.tasker_here(&["config", "apply", file.path().to_str().unwrap()]);
        assert_eq!(code, 3, "{said}");
        assert!(
            said.contains(":5: namespaces.billing.backof is not known: did you mean backoff?"),
            "{said}"
        );
        let newest = DatabaseCoordinator::new(&world.db).get().await.unwrap();
        assert_eq!((newest.version, newest.overrides), (0, json!({})));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_change_the_same_version_none_undoes_the_other() {
    World::with(async |world| {
        let coordinator = DatabaseCoordinator::new(&world.db);
        let changes = (0..8).map(|n| {
            let coordinator = coordinator.clone();
            tokio::spawn(async move {
                let path = format!("n{n}");
                loop {
                    let by = author();
                    let changed = change(&coordinator, &by, |overrides| {
                        set(overrides, &["namespaces", &path, "max_attempts"], json!(n + 1));
                        Ok(())
                    });
                    match changed.await {
                        Err(Error::Stale(_)) => {}
                        done => return done.unwrap(),
                    }
                }
            })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.unwrap();
        }
        let newest = coordinator.get().await.unwrap();
        assert_eq!(newest.version, 8);
        assert_eq!(newest.overrides["namespaces"].as_object().unwrap().len(), 8);
        assert!(matches!(coordinator.update(3, &json!({}), &author()).await, Err(Error::Stale(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespaces_rules_come_from_its_own_then_from_those_of_all_and_go_back_with_them() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let set = |arguments: &[&str]| assert_eq!(world.tasker_here(arguments).0, 0);
        set(&["config", "set", "max_attempts", "7", "--namespace", "*"]);
        set(&["namespace", "set", "here", "--base-seconds", "3", "--backoff", "linear"]);
        world
            .register("name: two\nnamespace: there\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let rules = async |namespace: &str| {
            let all = namespaces::list(&world.db).await.unwrap();
            let found = all.into_iter().find(|found| found["name"] == namespace).unwrap();
            json!([found["max_attempts"], found["base_seconds"], found["backoff"]])
        };
        assert_eq!(rules("here").await, json!([7, 3, "linear"]));
        assert_eq!(
            rules("there").await,
            json!([7, 1, "exponential"]),
            "a namespace that comes later has them, too"
        );
        set(&["config", "unset", "base_seconds", "--namespace", "here"]);
        set(&["config", "set", "max_attempts", "2", "--namespace", "here"]);
        assert_eq!(rules("here").await, json!([2, 1, "linear"]));
        set(&["config", "rollback", "0"]);
        assert_eq!(rules("here").await, json!([5, 1, "exponential"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_differs_is_named_with_what_differs_and_heals() {
    World::with(async |world| {
        let drift = |grace: &str| world.tasker_here(&["config", "drift", "--grace", grace]);
        let _fleet = ["one", "two"].map(|id| orchestrator(world, id, &[]));
        let other = orchestrator(world, "three", &[("TASKER__ORCHESTRATOR__BATCH", "77")]);
        world.until(3, |_| true).await;
        let (code, said) = drift("0");
        assert_eq!(code, 1, "{said}");
        let line = said.lines().find(|line| line.contains("orchestrator.batch")).unwrap();
        assert!(
            line.contains("77") && line.contains("200") && line.contains(&format!(":{}", other.id())),
            "{said}"
        );
        assert_eq!(drift("3600"), (0, "none".into()), "a rolling deployment is no drift");
        drop(other);
        world.until(2, |_| true).await;
        assert_eq!(drift("0"), (0, "none".into()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_configuration_stays_in_force_when_there_is_no_other() {
    World::with(async |world| {
        let coordinator = DatabaseCoordinator::new(&world.db);
        let flags = json!({ "worker": { "namespaces": ["here"] } });
        let local = Local::read(Given { flags, ..Given::default() });
        let (configuration, live) = Configuration::start(local.unwrap(), std::sync::Arc::new(coordinator.clone()))
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let mut following = live.clone();
        let running = tokio::spawn(configuration.run(stop.clone(), |_| {}));
        // It passes on that there is another version.
        let worker = Worker::start(&world.db, live.clone()).await.unwrap();

        // What another program of a later version may have written.
        let newer = json!({ "worker": { "batch": 3 }, "teleport": { "range": 7 } });
        coordinator.update(0, &newer, &author()).await.unwrap();
        let told = async |live: &mut tasker::config::Live| tokio::time::timeout(SOON * 10, live.changed()).await.expect("a change");
        told(&mut following).await;
        let effective = live.effective();
        assert_eq!((effective.version, effective.settings.worker.batch), (0, 500));
        assert!(effective
            .fallback
            .as_ref()
            .unwrap()
            .contains("version 1 does not go with this process"));

        coordinator
            .update(1, &json!({ "worker": { "batch": 4 } }), &author())
            .await
            .unwrap();
        told(&mut following).await;
        let effective = live.effective();
        assert_eq!(
            (effective.version, effective.settings.worker.batch, &effective.fallback),
            (2, 4, &None)
        );
        stop.cancel();
        running.await.unwrap();
        worker.shutdown(Duration::ZERO).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_followed_and_a_bad_one_changes_nothing() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| {
            // As an editor does it: another file takes its place.
            let new = folder.path().join(format!("{file}.new"));
            std::fs::write(&new, content).unwrap();
            std::fs::rename(new, folder.path().join(file)).unwrap();
        };
        write(
            "10-all.yml",
            "orchestrator: { batch: 50 }\nnamespaces: { here: { max_attempts: 3 } }\n",
        );
        write("20-more.yml", "orchestrator: { queue_target: 40 }\n");
        let coordinator = format!("file:{}", folder.path().display());
        let variables = [("TASKER__COORDINATOR", coordinator.as_str())];
        let _fleet = ["one", "two"].map(|id| orchestrator(world, id, &variables));
        let has = |key: &'static str, value: i64| move |told: &[Value]| told.iter().all(|c| c["values"][key] == value);
        world.until(2, has("orchestrator.batch", 50)).await;
        assert_eq!(namespaces::list(&world.db).await.unwrap()[0]["max_attempts"], 3);

        write("20-more.yml", "orchestrator: { queue_taget: 30 }\n");
        let told = world.until(2, |told| told.iter().all(|c| c["fallback"].is_string())).await;
        let why = told[0]["fallback"].as_str().unwrap();
        assert!(
            why.contains("20-more.yml:1: orchestrator.queue_taget is not known: did you mean queue_target?"),
            "{why}"
        );
        assert!(has("orchestrator.queue_target", 40)(&told));

        write(
            "20-more.yml",
            "orchestrator: { queue_target: 30 }\nnamespaces: { here: { max_attempts: 4 } }\n",
        );
        let told = world.until(2, has("orchestrator.queue_target", 30)).await;
        assert!(told.iter().all(|c| c["fallback"].is_null()));
        assert_eq!(namespaces::list(&world.db).await.unwrap()[0]["max_attempts"], 4);
        let (code, said) = world.tasker_with(&["config", "set", "orchestrator.batch", "5"], &variables);
        assert_eq!(code, 1);
        assert!(said.contains("change it there"), "{said}");
    })
    .await;
}

#[cfg(feature = "etcd")]
mod etcd {
    use std::path::Path;

    use super::*;
    use crate::world::{free_port, Server};

    fn etcd(folder: &Path, ports: [u16; 2]) -> Server {
        let [client, peer] = ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "one", "--data-dir"])
            .arg(folder)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")]);
        Server::start(&mut command)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn etcd_can_keep_the_configuration_and_may_stop_in_the_middle() {
        World::with(async |world| {
            let (folder, ports) = (tempfile::tempdir().unwrap(), [free_port(), free_port()]);
            let first = etcd(folder.path(), ports);
            let coordinator = format!("etcd://127.0.0.1:{}/test", ports[0]);
            let variables = [("TASKER__COORDINATOR", coordinator.as_str())];
            let set = async |batch: &str| {
                let began = Instant::now();
                loop {
                    let (code, said) = world.tasker_with(&["config", "set", "orchestrator.batch", batch], &variables);
                    if code == 0 {
                        return;
                    }
                    assert!(began.elapsed() < Duration::from_secs(30), "{said}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let batch = |expected: i64| move |told: &[Value]| told.iter().all(|c| c["values"]["orchestrator.batch"] == expected);
            set("50").await;
            let _fleet = ["one", "two"].map(|id| orchestrator(world, id, &variables));
            world.until(2, batch(50)).await;
            set("60").await;
            world.until(2, batch(60)).await;
            let (code, said) = world.tasker_with(&["config", "set", "orchestrator.batch", "0"], &variables);
            assert_eq!(code, 1, "{said}");

            drop(first);
            world.until(2, |told| told.iter().all(|c| c["fallback"].is_string())).await;
            let _third = orchestrator(world, "three", &variables);
            let told = world.until(3, |told| told.iter().all(|c| c["fallback"].is_string())).await;
            assert!(batch(60)(&told), "one that starts meanwhile has what was in force last: {told:#?}");

            let _second = etcd(folder.path(), ports);
            world.until(3, |told| told.iter().all(|c| c["fallback"].is_null())).await;
            set("70").await;
            world.until(3, batch(70)).await;
            assert_eq!(world.tasker_with(&["config", "rollback", "1"], &variables).0, 0);
            world.until(3, batch(50)).await;
        })
        .await;
    }
}
