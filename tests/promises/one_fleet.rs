//! Namespaces live in several databases, and people look at one fleet.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};
use sqlx::Executor;
use tasker::api::ApiConfig;
use tasker::config::Settings;
use tasker::engine::shards::{number_of, Shards};
use tasker::orchestrator::Orchestrator;
use uuid::Uuid;

use crate::api::Asked;
use crate::shards::Two;

/// The API over both shards, in which a template is registered each.
async fn asked(two: &Two<'_>, shards: &Shards) -> Asked {
    shards.add("eu").await.unwrap().close().await;
    let config = ApiConfig {
        trust_loopback: true,
        ..ApiConfig::default()
    };
    let asked = Asked::of_shards(&shards.for_people(&two.settings()), &config).await;
    for namespace in ["here", "there"] {
        let source = format!("name: one\nnamespace: {namespace}\nsteps:\n  - {{ name: only, handler: H }}\n");
        let registered = asked.post("/templates", json!({ "source": source }));
        assert_eq!(registered.status, 200, "{registered:?}");
    }
    asked
}

fn create(asked: &Asked, namespace: &str) -> String {
    let created = asked.post("/tasks", json!({ "template": format!("{namespace}/one"), "tasks": [{}] }));
    assert_eq!(created.status, 201, "{created:?}");
    created.body["tasks"][0]["id"].as_str().unwrap().to_owned()
}

/// All entries of a list, page by page.
fn pages(asked: &Asked, path: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let at = cursor.map_or(String::new(), |cursor| format!("&cursor={}", cursor.replace('=', "%3D")));
        let page = asked.get(&format!("{path}?limit={limit}{at}"));
        assert_eq!(page.status, 200, "{page:?}");
        let items = page.body["items"].as_array().unwrap().clone();
        assert!(items.len() <= limit);
        all.extend(items);
        cursor = page.body["next"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return all;
        }
    }
}

fn field(list: &[Value], name: &str) -> Vec<String> {
    list.iter()
        .map(|entry| entry[name].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_what_is_in_all_shards_each_once_whatever_the_size_of_a_page() {
    Two::with(async |two| {
        let shards = two.shards();
        let asked = asked(two, &shards).await;
        let created: Vec<String> = ["here", "there", "there", "here", "there", "here", "here"]
            .map(|namespace| create(&asked, namespace))
            .to_vec();
        for limit in [1, 2, 3, 100] {
            let listed = field(&pages(&asked, "/tasks", limit), "id");
            let newest: Vec<String> = created.iter().rev().cloned().collect();
            assert_eq!(listed, newest, "{limit} at a time");
        }
        for task in &created {
            assert_eq!(asked.get(&format!("/tasks/{task}")).status, 200);
        }
        for (path, name, expected) in [
            ("/templates", "namespace", vec!["here", "there"]),
            ("/namespaces", "name", vec!["here", "there"]),
            ("/queues", "namespace", vec!["here", "there"]),
            ("/shards", "name", vec!["default", "eu"]),
        ] {
            let found = asked.get(path);
            let mut found = field(found.body["items"].as_array().unwrap(), name);
            found.retain(|name| expected.contains(&&**name));
            assert_eq!(found, expected, "{path}");
        }
        let changes = pages(&asked, "/audit", 3);
        assert_eq!(changes.len(), 9);
        let of_shard = |shard: &str| changes.iter().filter(|change| change["shard"] == shard).count();
        assert_eq!((of_shard("default"), of_shard("eu")), (5, 4));
        for wrong in ["x", "eu", "nowhere=1", "eu=x~default=y"] {
            let refused = asked.get(&format!("/tasks?cursor={}", wrong.replace('=', "%3D")));
            assert_eq!(refused.status, 422, "{wrong}: {refused:?}");
        }
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_done_in_the_shard_that_it_concerns_or_in_all() {
    Two::with(async |two| {
        let shards = two.shards();
        let asked = asked(two, &shards).await;
        let (here, there) = (create(&asked, "here"), create(&asked, "there"));
        for (task, namespace) in [(&here, "here"), (&there, "there")] {
            let done = |path: &str, body: Value| {
                let answer = asked.post(path, body);
                assert!(answer.status < 300, "{path}: {answer:?}");
                answer.body
            };
            assert_eq!(done(&format!("/tasks/{task}/pause"), json!({ "why": "test" }))["done"], true);
            assert_eq!(
                done("/pauses", json!({ "kind": "namespace", "name": namespace, "why": "test" }))["done"],
                true
            );
            assert_eq!(
                done("/pauses/resume", json!({ "kind": "namespace", "name": namespace }))["done"],
                true
            );
            done(&format!("/namespaces/{namespace}/rules"), json!({ "rules": { "max_attempts": 9 } }));
            let put = asked.put(
                &format!("/schedules/of_{namespace}"),
                json!({ "template": format!("{namespace}/one"), "definition": { "every": 3600 } }),
            );
            assert_eq!(put.body["outcome"], "created", "{put:?}");
            let began = done(&format!("/schedules/of_{namespace}/trigger"), json!({}));
            let began: Uuid = began["tasks"][0].as_str().unwrap().parse().unwrap();
            assert_eq!(number_of(began), number_of(task.parse().unwrap()));
        }
        let rules = asked.get("/namespaces");
        let attempts: Vec<_> = rules.body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| of["max_attempts"].clone())
            .collect();
        assert_eq!(attempts.iter().filter(|attempts| **attempts == 9).count(), 2, "{rules:?}");
        let taken = asked.put(
            "/schedules/of_here",
            json!({ "template": "there/one", "definition": { "every": 60 } }),
        );
        assert_eq!(taken.status, 422, "{taken:?}");

        // Those of the file of settings, each where its template lives.
        let settings = Settings {
            schedules: Some(
                [("a", "here/one"), ("b", "there/one")]
                    .map(|(name, workflow)| (name.to_owned(), json!({ "workflow": workflow, "every": 3600 })))
                    .into(),
            ),
            ..two.settings()
        };
        let orchestrator = Orchestrator::start_in(&shards, settings).await.unwrap();
        let of_file = "SELECT count(*) FROM tasker.schedules WHERE owner = 'file'";
        while (two.world.count(of_file).await, two.count_there(of_file).await) != (1, 1) {}
        orchestrator.shutdown().await;

        let sent = asked.post("/signals", json!({ "name": "go", "key": "all", "id": "once", "payload": 1 }));
        assert_eq!(sent.status, 202, "{sent:?}");
        let kept = "SELECT count(*) FROM tasker.signals WHERE key = 'all'";
        assert_eq!((two.world.count(kept).await, two.count_there(kept).await), (1, 1));

        let begun = asked.post("/bulk-actions", json!({ "filter": { "state": "paused" }, "verb": "resume" }));
        let ids: Vec<i64> = begun.body["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_i64().unwrap())
            .collect();
        assert_eq!(ids, [1, 7_000_000_000_001], "{begun:?}");
        for id in &ids {
            assert_eq!(asked.get(&format!("/bulk-actions/{id}")).body["id"], *id);
            assert_eq!(asked.post(&format!("/bulk-actions/{id}/stop"), json!({})).body["done"], true);
        }
        assert_eq!(field(&pages(&asked, "/bulk-actions", 1), "state"), ["stopped", "stopped"]);
        for unknown in ["7000000000002", "3000000000001", "-1"] {
            assert_eq!(asked.get(&format!("/bulk-actions/{unknown}")).status, 404, "{unknown}");
        }
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_away_is_missing_from_lists_and_the_page_says_so() {
    Two::with(async |two| {
        let shards = two.shards();
        let asked = asked(two, &shards).await;
        let (here, there) = (create(&asked, "here"), create(&asked, "there"));
        two.rename_eu(true).await;
        assert_eq!(field(&pages(&asked, "/tasks", 1), "id"), [&*here]);
        assert_eq!(asked.get(&format!("/tasks/{there}")).status, 503);
        assert_eq!(asked.get("/fleet").body["shards"]["eu"]["error"], "it does not answer");
        let page = asked.page("/tasks");
        assert!(page.contains("What is in eu cannot be shown for now"), "{page}");
        two.rename_eu(false).await;
        while pages(&asked, "/tasks", 10).len() < 2 {}
        assert!(!asked.page("/tasks").contains("cannot be shown for now"));
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_serve_tells_of_all_shards_and_its_metrics_name_them() {
    Two::with(async |two| {
        let shards = two.shards();
        shards.add("eu").await.unwrap().close().await;
        let mut serve = two
            .command(&["serve", "--listen", "127.0.0.1:0"])
            .env("TASKER__API__ENABLED", "false")
            .env_remove("NAMESPACE")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(serve.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = log.find(|line| line.contains("answering GET /health")).unwrap();
        let address = line.split(['=', '"', ' ']).find(|word| word.starts_with("127.0.0.1:")).unwrap();
        let ask = |path: &str| {
            let mut answer = ureq::get(format!("http://{address}{path}")).call().unwrap();
            answer.body_mut().read_to_string().unwrap()
        };
        let metrics = ask("/metrics");
        for shard in ["default", "eu"] {
            assert!(
                metrics.contains(&format!("tasker_members{{kind=\"orchestrator\",shard=\"{shard}\"}} ")),
                "{metrics}"
            );
        }
        let detailed: Value = serde_json::from_str(&ask("/health/detailed")).unwrap();
        let members: HashSet<&str> = detailed["fleet"]["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| of["shard"].as_str().unwrap())
            .collect();
        assert_eq!(members, HashSet::from(["default", "eu"]));
        assert_eq!(
            (&detailed["ready"]["ready"], &detailed["ready"]["warnings"]),
            (&json!(true), &json!([]))
        );
        kill(Pid::from_raw(serve.id() as i32), Signal::SIGTERM).unwrap();
        assert!(serve.wait().unwrap().success());
        shards.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_a_shard_that_is_away_another_database_an_old_configuration_and_tasks_that_live_elsewhere() {
    Two::with(async |two| {
        let checked = || -> Vec<(String, String)> {
            let output = two.tasker(&["shard", "check", "--json"]);
            let faults: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(output.status.success(), faults == json!([]), "{output:?}");
            let fault = |fault: &Value| {
                (
                    fault["shard"].as_str().unwrap().to_owned(),
                    fault["what"].as_str().unwrap().to_owned(),
                )
            };
            faults.as_array().unwrap().iter().map(fault).collect()
        };
        let never_made = checked();
        assert_eq!(never_made.len(), 1);
        assert!(
            never_made[0].0 == "eu" && never_made[0].1.contains("run `tasker migrate`"),
            "{never_made:?}"
        );
        let shards = two.shards();
        let asked = asked(two, &shards).await;
        let _task = create(&asked, "there");
        assert_eq!(checked(), []);

        two.says(&["config", "set", "orchestrator.batch", "77"]);
        assert_eq!(checked(), []);
        two.world
            .pool
            .execute("SELECT tasker.change_configuration(1, '{}', 'test', NULL)")
            .await
            .unwrap();
        let (shard, old) = checked().remove(0);
        assert!(shard == "eu" && old.contains("copy of the configuration"), "{old}");
        two.says(&["config", "set", "orchestrator.batch", "78"]);

        let elsewhere = json!({ "shared": { "shards": { "eu": { "number": 7, "url": two.eu_url() } } } });
        std::fs::write(two.file(), elsewhere.to_string()).unwrap();
        let (shard, tasks) = checked().remove(0);
        assert!(shard == "eu" && tasks.contains("tasks of there, which lives in default"), "{tasks}");
        two.rename_eu(true).await;
        let (shard, away) = checked().remove(0);
        assert!(shard == "eu" && away.contains("cannot connect"), "{away}");
        two.rename_eu(false).await;
        shards.close().await;
    })
    .await;
}
