//! Who only looks is answered by a replica, as long as that is not too far behind.

use std::time::Duration;

use serde_json::{json, Value};
use sqlx::{Connection, Executor, PgConnection};
use tasker::engine::register::register;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::{Db, Template};

use crate::failover::{Pair, TWO};
use crate::health::Serve;

/// What the API answers, and how old that may be.
fn ask(serve: &Serve, path: &str) -> (u16, Value, Option<u64>) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut answer = agent.get(format!("http://{}{path}", serve.api())).call().unwrap();
    let age = answer.headers().get("age").and_then(|age| age.to_str().ok()?.parse().ok());
    let body = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), serde_json::from_str(&body).unwrap_or_default(), age)
}

/// Asks for the tasks until a replica answers, or the primary does. Those that there are.
async fn until(serve: &Serve, is_by_replica: bool) -> Vec<Value> {
    let asking = async {
        loop {
            let (status, body, age) = ask(serve, "/api/v1/tasks");
            if status == 200 && age.is_some() == is_by_replica {
                assert!(age.is_none_or(|age| age <= 4), "{age:?} s old");
                return body["items"].as_array().unwrap().iter().map(|task| task["id"].clone()).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking)
        .await
        .expect("it is answered so")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_answers_who_looks_says_how_old_that_is_and_is_left_when_it_is_too_far_behind_or_gone() {
    let pair = Pair::start().await;
    let db = Db::connect(&pair.of_primary, 6).await.unwrap();
    register(&db, &Template::parse(TWO, "two.yml").unwrap()).await.unwrap();
    let submitter = Submitter::new(db.clone());
    let submit = async || json!(submitter.submit("two", None, &[NewTask::default()]).await.unwrap()[0].id);
    let variables = [
        ("TASKER__REPLICAS__URL", pair.of_standby.as_str()),
        ("TASKER__REPLICAS__MAX_LAG", "3s"),
    ];
    let serve = Serve::start(&pair.of_primary, &[], &variables);
    let first = submit().await;
    while until(&serve, true).await != std::slice::from_ref(&first) {}

    let task = first.as_str().unwrap();
    let looks = [
        "",
        "/tasks",
        "/tasks?state=failed",
        "/dead-letters",
        "/dead-letters/groups",
        "/approvals",
        "/schedules",
        "/queues",
        "/limits",
        "/workers",
        "/templates",
        "/templates/here/two",
        "/namespaces/here",
        "/configuration",
        "/audit",
        "/bulk-actions",
        "/fleet",
        "/members",
        "/pauses",
        "/signals",
        "/waits",
        "/statistics",
        "/shards",
        "/namespaces",
        "/events",
        "/family",
        "/reasons",
        "/values",
        "/steps/first/result",
        "/steps/first/children",
    ];
    for look in looks {
        for path in [
            format!("{look}/"),
            format!("/api/v1{look}"),
            format!("/tasks/{task}{look}"),
            format!("/api/v1/tasks/{task}{look}"),
        ] {
            let path = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
            let (status, body, age) = ask(&serve, path);
            assert!(status < 500 && age.is_some(), "{path}: {status}: {body}");
        }
    }

    serve
        .until("/health/detailed", |_, body| {
            body["fleet"]["age_seconds"].as_f64().is_some_and(|age| age > 0.0)
        })
        .await;

    let mut standby = PgConnection::connect(&pair.of_standby).await.unwrap();
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    while sqlx::query_scalar::<_, String>("SELECT pg_get_wal_replay_pause_state()")
        .fetch_one(&mut standby)
        .await
        .unwrap()
        != "paused"
    {}
    let second = submit().await;
    assert_eq!(
        until(&serve, true).await,
        std::slice::from_ref(&first),
        "it does not know of the second one"
    );
    assert_eq!(
        ask(&serve, &format!("/api/v1/tasks/{}", second.as_str().unwrap())).0,
        200,
        "the primary does"
    );
    assert_eq!(until(&serve, false).await, [second.clone(), first.clone()]);
    standby.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    standby.close().await.unwrap();
    // A look that took too long leaves the replica for a moment, in which it need not be too far behind.
    while until(&serve, true).await != [second.clone(), first.clone()] {}

    let body = json!({ "template": "two", "tasks": [{}] }).to_string();
    let mut created = ureq::post(format!("http://{}/api/v1/tasks", serve.api()))
        .header("content-type", "application/json")
        .send(&body)
        .unwrap();
    let created: Value = serde_json::from_str(&created.body_mut().read_to_string().unwrap()).unwrap();
    let (_, listed, age) = ask(&serve, "/api/v1/tasks");
    assert_eq!(
        (&listed["items"][0]["id"], age),
        (&created["tasks"][0]["id"], None),
        "whoever changes something sees it"
    );
    while until(&serve, true).await.len() < 3 {}

    let mut primary = PgConnection::connect(&pair.of_primary).await.unwrap();
    primary.execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    primary.execute("SELECT pg_reload_conf()").await.unwrap();
    pair.standby.kill().unwrap();
    assert_eq!(until(&serve, false).await.len(), 3);
    db.close().await;
}
