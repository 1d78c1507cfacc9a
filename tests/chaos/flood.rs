//! A flood: far more tasks than the workers can take soon. The namespace becomes critical, parks what has low priority, turns away what comes then,
//! and is well again in the end; no process grows with what waits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;
use tasker::config::distributed::Author;
use tasker::config::Rules;
use tasker::engine::configuration::DatabaseCoordinator;
use tasker::engine::namespaces;
use tasker::engine::register::register;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::{Db, Error, Template};

use crate::processes::Processes;

/// By how much a process may grow meanwhile, in MB. A task that waits in a process takes a kilobyte at least.
const GROWTH: f64 = 48.0;

/// How many come together.
const BATCH: usize = 5_000;

/// The templates of all accepted tasks, by their keys; and what was not as it must be.
pub(crate) async fn flood(db: &Db, pool: &PgPool, processes: &Processes, count: usize) -> (HashMap<String, &'static str>, Vec<String>) {
    let template = "{ name: flood, namespace: work, steps: [{ name: a, handler: Work, config: { ms: 0 } }] }";
    register(db, &Template::parse(template, "flood").unwrap()).await.unwrap();
    let throttle = async |throttle: &str| {
        let rules = json!({ "depth_critical": 2000, "shed_low_priority": true, "throttle_new_tasks": throttle });
        let rules: Rules = serde_json::from_value(rules).unwrap();
        let by = Author {
            who: "flood".into(),
            why: None,
        };
        namespaces::set(db, &DatabaseCoordinator::new(db), "work", &rules, &by)
            .await
            .unwrap();
    };
    throttle("hold").await;
    // What a process needs to begin is no growth.
    let joined = "SELECT count(*) >= $1 FROM tasker.members WHERE report IS NOT NULL AND left_at IS NULL";
    while !sqlx::query_scalar::<_, bool>(joined)
        .bind(processes.0.len() as i64)
        .fetch_one(pool)
        .await
        .unwrap()
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = processes.megabytes();

    let submitter = Submitter::new(db.clone());
    let mut accepted = HashMap::new();
    for start in (0..count).step_by(BATCH) {
        let keys: Vec<String> = (start..start + BATCH).map(|n| n.to_string()).collect();
        let priority = if (start / BATCH).is_multiple_of(10) { "low" } else { "normal" };
        let create = "SELECT count(*) FROM tasker.create_tasks(
            'flood', array_fill('{}'::jsonb, ARRAY[cardinality($1)]), $1, array_fill($2, ARRAY[cardinality($1)]))";
        sqlx::query(create).bind(&keys).bind(priority).execute(pool).await.unwrap();
        accepted.extend(keys.into_iter().map(|key| (format!("flood/{key}"), "flood")));
    }
    let mut found = Vec::new();
    until(pool, "pressure = 'critical' AND parked = 1").await;
    throttle("refuse").await;
    match submitter
        .submit(
            "flood",
            None,
            &[NewTask {
                input: json!({}).into(),
                ..NewTask::default()
            }],
        )
        .await
    {
        Err(Error::Backpressure { retry_after, .. }) if (1..=60).contains(&retry_after) => {}
        other => found.push(format!("at critical a task was not turned away: {other:?}")),
    }

    let mut most = before.clone();
    let (began, mut told) = (Instant::now(), 0);
    loop {
        let (waiting, well): (i64, bool) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM tasker.tasks WHERE claim_order IS NOT NULL), n.pressure = 'normal' AND m.parked = 0
             FROM tasker.namespaces n JOIN tasker.marks m ON m.namespace_id = n.id WHERE n.name = 'work'",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        let now = processes.megabytes();
        for (most, now) in most.iter_mut().zip(&now) {
            most.1 = most.1.max(now.1);
        }
        if began.elapsed().as_secs() / 10 >= told {
            told += 1;
            let curve: Vec<String> = now.iter().map(|(name, megabytes)| format!("{name} {megabytes:.0}")).collect();
            println!("{:3} s: {waiting:6} wait; MB: {}", began.elapsed().as_secs(), curve.join(", "));
        }
        if waiting == 0 && well {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(600), "{waiting} still wait");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for ((name, before), (_, most)) in before.iter().zip(&most) {
        if most - before > GROWTH {
            found.push(format!("{name} grew from {before:.0} to {most:.0} MB"));
        }
    }
    let last = NewTask {
        input: json!({}).into(),
        key: Some("last".into()),
        ..NewTask::default()
    };
    match submitter.submit("flood", None, &[last]).await {
        Ok(_) => drop(accepted.insert("flood/last".into(), "flood")),
        Err(error) => found.push(format!("it is well again, and takes no task: {error}")),
    }
    (accepted, found)
}

async fn until(pool: &PgPool, how: &str) {
    let sql = format!("SELECT {how} FROM tasker.namespaces n JOIN tasker.marks m ON m.namespace_id = n.id WHERE n.name = 'work'");
    let began = Instant::now();
    while !sqlx::query_scalar::<_, bool>(&sql).fetch_one(pool).await.unwrap() {
        assert!(began.elapsed() < Duration::from_secs(30), "never: {how}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
