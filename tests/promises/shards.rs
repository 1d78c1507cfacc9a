//! Namespaces may live in databases of their own. The id of a task says in which it is.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor};
use tasker::config::{Secret, Settings, ShardConfig};
use tasker::engine::read;
use tasker::engine::register::register;
use tasker::engine::shards::{number_of, Shards};
use tasker::engine::submit::NewTask;
use tasker::orchestrator::Orchestrator;
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Error, Template};
use tempfile::TempDir;
use uuid::{Uuid, Variant};

use crate::world::{free_port, World};

const HERE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";
const THERE: &str = "name: one\nnamespace: there\nsteps:\n  - { name: only, handler: H }\n";

/// A second database, and a tasker.yml by which it is the shard `eu`, number 7, where the namespace `there` lives.
pub(crate) struct Two<'w> {
    pub(crate) world: &'w World,
    eu: PgConnectOptions,
    folder: TempDir,
}

impl Two<'_> {
    pub(crate) async fn with(test: impl AsyncFnOnce(&Two<'_>)) {
        World::with(async |world| {
            let options: PgConnectOptions = world.url.parse().unwrap();
            let name = format!("{}_eu", options.get_database().unwrap());
            world.pool.execute(&*format!("CREATE DATABASE {name}")).await.unwrap();
            let two = Two {
                world,
                eu: options.database(&name),
                folder: tempfile::tempdir().unwrap(),
            };
            two.configure(two.eu.to_url_lossy().as_str());
            test(&two).await;
            world.pool.execute(&*format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        })
        .await;
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("tasker.yml")
    }

    pub(crate) fn eu_url(&self) -> String {
        self.eu.to_url_lossy().to_string()
    }

    fn configure(&self, url: &str) {
        let shards = json!({ "eu": { "number": 7, "url": url, "namespaces": ["there"], "region": "eu-central" } });
        fs::write(self.file(), json!({ "shared": { "shards": shards } }).to_string()).unwrap();
    }

    pub(crate) fn settings(&self) -> Settings {
        let eu = ShardConfig {
            number: 7,
            url: Some(Secret::from(self.eu.to_url_lossy().to_string())),
            namespaces: vec!["there".into()],
            ..ShardConfig::default()
        };
        Settings {
            shards: [("eu".to_owned(), eu)].into(),
            ..Settings::default()
        }
    }

    pub(crate) fn shards(&self) -> Shards {
        Shards::new(self.world.url.clone(), 8, self.settings())
    }

    pub(crate) fn tasker(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tasker"));
        command
            .args(arguments)
            .env("DATABASE_URL", &self.world.url)
            .env("TASKER_CONFIG", self.file());
        command
    }

    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        let output = self.tasker(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn told(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Away it has another name, and nobody is in it any more.
    pub(crate) async fn rename_eu(&self, away: bool) {
        let name = self.eu.get_database().unwrap();
        let (from, to) = if away {
            (name.to_owned(), format!("{name}_away"))
        } else {
            (format!("{name}_away"), name.to_owned())
        };
        self.world
            .pool
            .execute(&*format!("ALTER DATABASE {from} ALLOW_CONNECTIONS {}", !away))
            .await
            .unwrap();
        let end = format!("SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{from}'");
        self.world.pool.execute(&*end).await.unwrap();
        self.world
            .pool
            .execute(&*format!("ALTER DATABASE {from} RENAME TO {to}"))
            .await
            .unwrap();
    }

    /// A task of this namespace is created and runs to its end, in its own shard.
    pub(crate) async fn complete(&self, shards: &Shards, namespace: &str) {
        let source = if namespace == "here" { HERE } else { THERE };
        let template = Template::parse(source, "test.yml").unwrap();
        register(&shards.of_definition(&template).await.unwrap(), &template).await.unwrap();
        let name = format!("{namespace}/one");
        let submitter = shards.submitter(&name).await.unwrap();
        let task = submitter.submit(&name, None, &[NewTask::default()]).await.unwrap()[0].id;
        assert_eq!(number_of(task), if namespace == "here" { 0 } else { 7 });
        let db = shards.of_task(task).await.unwrap();
        let ended = read::wait_for_end(&db, task, Some(Duration::from_secs(60))).await.unwrap();
        assert_eq!(ended, "complete");
    }

    pub(crate) async fn count_there(&self, sql: &str) -> i64 {
        let mut connection = self.eu.connect().await.unwrap();
        let count = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count
    }
}

#[tokio::test]
async fn the_id_of_a_task_says_its_shard_and_its_time_and_is_a_uuid_of_version_7() {
    World::with(async |world| {
        for number in [0, 1, 7, 2_048, 4_095] {
            sqlx::query("SELECT tasker.become_shard($1)")
                .bind(number)
                .execute(&world.pool)
                .await
                .unwrap();
            let sql = "SELECT tasker.uuidv7() FROM generate_series(1, 1000)";
            let ids: Vec<Uuid> = sqlx::query_scalar(sql).fetch_all(&world.pool).await.unwrap();
            let now = chrono::Utc::now().timestamp_millis();
            for id in &ids {
                assert_eq!(
                    (i32::from(number_of(*id)), id.get_version_num(), id.get_variant()),
                    (number, 7, Variant::RFC4122)
                );
                assert!((id.as_u128() >> 80) as i64 - now < 60_000);
            }
            assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
        }
        for number in [-1, 4_096] {
            let refused = sqlx::query("SELECT tasker.become_shard($1)")
                .bind(number)
                .execute(&world.pool)
                .await;
            assert!(refused.unwrap_err().to_string().contains("from 0 to 4095"));
        }
        world.register(HERE).await;
        assert_eq!(number_of(world.submit("one", json!({})).await), 4_095);
        let refused = sqlx::query("SELECT tasker.become_shard(3)").execute(&world.pool).await;
        assert!(refused.unwrap_err().to_string().contains("whose ids say that it is shard 4095"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_find_the_shard_of_a_task_a_template_and_a_namespace_by_themselves() {
    Two::with(async |two| {
        two.says(&["shard", "add", "eu"]);
        two.says(&["shard", "add", "eu"]);
        let unknown = two.tasker(&["migrate", "--shard", "us"]);
        assert_eq!(unknown.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no shard us: expected one of default, eu"));
        for (file, template) in [("here.yml", HERE), ("there.yml", THERE)] {
            let file = two.folder.path().join(file);
            fs::write(&file, template).unwrap();
            two.says(&["template", "register", file.to_str().unwrap()]);
        }
        let create = |template: &str| two.told(&["task", "create", template])["id"].as_str().unwrap().to_owned();
        let (here, there) = (create("here/one"), create("there/one"));
        assert_eq!(two.count_there("SELECT count(*) FROM tasker.tasks").await, 1);
        assert_eq!(two.world.count("SELECT count(*) FROM tasker.tasks").await, 1);
        for (task, namespace) in [(&here, "here"), (&there, "there")] {
            assert_eq!(two.told(&["task", "show", task])["namespace"], namespace);
            assert!(!two.told(&["task", "why", task]).as_array().unwrap().is_empty());
        }
        assert_eq!(two.told(&["template", "versions", "there/one"]).as_array().unwrap().len(), 1);
        assert_eq!(two.told(&["task", "list", "--shard", "eu"])[0]["id"], *there);
        assert_eq!(two.told(&["task", "list", "--shard", "default"])[0]["id"], *here);
        let all = two.told(&["task", "list"]);
        assert_eq!((&all[0]["id"], &all[1]["id"]), (&json!(there), &json!(here)));
        assert_eq!((&all[0]["shard"], &all[1]["shard"]), (&json!("eu"), &json!("default")));
        two.says(&["namespace", "set", "there", "--max-attempts", "9"]);
        let rules = two.told(&["namespace", "list", "--shard", "eu"]);
        assert!(rules
            .as_array()
            .unwrap()
            .iter()
            .any(|of| of["name"] == "there" && of["max_attempts"] == 9));
        assert_eq!(two.says(&["task", "cancel", &here, &there]), "cancelled 2 of 2");
        assert_eq!(two.told(&["task", "show", &there])["state"], "cancelled");
        let unknown = two.tasker(&["task", "show", "0190163d-8694-7003-8000-000000000000"]);
        assert_eq!(unknown.status.code(), Some(4));
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("it would be in shard 3"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_orchestrator_and_one_worker_work_in_all_shards_also_in_one_that_was_away_when_they_began() {
    Two::with(async |two| {
        let shards = two.shards();
        shards.add("eu").await.unwrap().close().await;
        shards.named("default").await.unwrap();
        two.rename_eu(true).await;
        let config = WorkerConfig {
            namespaces: vec!["here".into(), "there".into()],
            ..WorkerConfig::default()
        };
        let orchestrator = Orchestrator::start_in(&shards, two.settings()).await.unwrap();
        let settings = Settings {
            worker: config,
            ..two.settings()
        };
        let worker = Arc::new(Worker::start_in(&shards, settings).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!("done")) }));
        two.complete(&shards, "here").await;
        for health in [orchestrator.health(), worker.health()] {
            let (live, ready) = (health.live().await, health.ready().await);
            assert!(live.healthy && ready.ready, "{live:?} {ready:?}");
            assert!(ready.warnings.iter().any(|warning| warning.starts_with("shard eu: ")), "{ready:?}");
        }
        two.rename_eu(false).await;
        two.complete(&shards, "there").await;
        two.complete(&shards, "here").await;
        while !worker.health().ready().await.warnings.is_empty() {}
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        let left = "SELECT count(*) FROM tasker.members WHERE left_at IS NULL AND name <> 'test'";
        assert_eq!((two.world.count(left).await, two.count_there(left).await), (0, 0));
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_goes_away_under_a_fleet_holds_up_none_but_its_own_tasks() {
    Two::with(async |two| {
        let shards = two.shards();
        shards.add("eu").await.unwrap().close().await;
        let settings = Settings {
            worker: WorkerConfig {
                namespaces: vec!["here".into(), "there".into()],
                ..WorkerConfig::default()
            },
            ..two.settings()
        };
        let orchestrator = Orchestrator::start_in(&shards, settings.clone()).await.unwrap();
        let worker = Arc::new(Worker::start_in(&shards, settings).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!("done")) }));
        for namespace in ["here", "there"] {
            two.complete(&shards, namespace).await;
        }
        two.rename_eu(true).await;
        while worker.health().ready().await.warnings.is_empty() {}
        for _ in 0..20 {
            two.complete(&shards, "here").await;
        }
        assert!(worker.health().live().await.healthy && orchestrator.health().ready().await.ready);
        two.rename_eu(false).await;
        two.complete(&shards, "there").await;
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_away_or_is_none_troubles_only_its_own_namespaces() {
    Two::with(async |two| {
        two.world.register(HERE).await;
        let known = || two.shards();
        // It was never made one.
        let refused = known().of_namespace("there").await.unwrap_err();
        assert!(matches!(refused, Error::NotMigrated(_)), "{refused}");
        let other = Shards::new(two.eu.to_url_lossy().to_string(), 4, Settings::default());
        other.home().await.unwrap().migrate().await.unwrap();
        other.close().await;
        let refused = known().of_namespace("there").await.unwrap_err().to_string();
        assert!(refused.contains("is shard 0, expected 7: `tasker shard add eu`"), "{refused}");

        two.configure(two.eu.clone().port(free_port()).to_url_lossy().as_str());
        let task = two.told(&["task", "create", "here/one"])["id"].clone();
        assert_eq!(two.told(&["task", "show", task.as_str().unwrap()])["state"], "pending");
        let away = two.tasker(&["task", "create", "there/one"]);
        assert_eq!(away.status.code(), Some(3));
        let listed = two.tasker(&["shard", "list", "--json"]);
        assert_eq!(listed.status.code(), Some(1));
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(
            (&listed[0]["error"], &listed[1]["name"], &listed[1]["region"]),
            (&json!(null), &json!("eu"), &json!("eu-central"))
        );
        assert!(listed[1]["error"].as_str().unwrap().contains("refused"), "{listed}");
        fs::write(
            two.file(),
            json!({ "shared": { "shards": { "eu": { "number": 7, "namespaces": ["there"] } } } }).to_string(),
        )
        .unwrap();
        let listed = two.tasker(&["shard", "list"]);
        assert!(String::from_utf8_lossy(&listed.stdout).contains("the shard eu has no url"));
        let mut command = two.command(&["config", "show"]);
        let output = command
            .env("TASKER__SHARDS__EU__URL", two.eu.to_url_lossy().as_str())
            .output()
            .unwrap();
        let shown = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(shown.contains("\"url\":\"(secret)\""), "{shown}");
        assert!(!shown.contains(two.eu.to_url_lossy().password().unwrap()), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn a_step_or_a_child_of_a_namespace_that_lives_elsewhere_is_refused_at_registration() {
    Two::with(async |two| {
        for step in ["{ name: far, handler: H, namespace: there }", "{ name: far, workflow: there/one }"] {
            let template = format!("name: wide\nnamespace: here\nsteps:\n  - {{ name: near, handler: H }}\n  - {step}\n");
            let file = two.folder.path().join("wide.yml");
            fs::write(&file, template).unwrap();
            let refused = two.tasker(&["template", "register", file.to_str().unwrap()]);
            let said = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(refused.status.code(), Some(1), "{said}");
            assert!(said.contains("its step far wants the namespace there, which lives in eu"), "{said}");
        }
        assert_eq!(two.world.count("SELECT count(*) FROM tasker.templates").await, 0);
    })
    .await;
}

#[test]
fn shards_that_contradict_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasker.yml");
    let check = |settings: Value| {
        fs::write(&file, json!({ "shared": settings }).to_string()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(["config", "check"])
            .arg(&file)
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        )
    };
    let shard = |number: i32, namespace: &str| json!({ "number": number, "url": "postgres://somewhere/app", "namespaces": [namespace] });
    assert!(check(json!({ "shards": { "eu": shard(1, "a"), "us": shard(2, "b") }, "shard": "us" })).0);
    for (wrong, what) in [
        (json!({ "shards": { "eu": shard(1, "a"), "us": shard(1, "b") } }), "the number 1"),
        (
            json!({ "shards": { "eu": shard(1, "a"), "us": shard(2, "a") } }),
            "has a live in eu and in us",
        ),
        (json!({ "shards": { "eu": shard(0, "a") } }), "number"),
        (
            json!({ "shards": { "default": shard(1, "a") } }),
            "as the one at database_url is called",
        ),
        (json!({ "shards": { "eu": { "numbers": 1 } } }), "number"),
        (
            json!({ "shards": { "eu": { "number": 1, "failover": { "timeout": "10m" } } } }),
            "gives eu a failover.timeout that is 10m: expected 1s to 5m",
        ),
    ] {
        let (accepted, said) = check(wrong);
        assert!(!accepted && said.contains(what), "{what}: {said}");
    }
}
