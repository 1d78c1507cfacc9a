//! The checker: plain SQL on the tables, and the workers' own journals. It calls nothing of the engine.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sqlx::{PgPool, Row};

use crate::load::{ACCOUNTS, CENTS};
use crate::processes::Processes;
use crate::worker::monotonic;

/// Waits until every task has ended or is blocked, or nothing has moved for `patience`. How many are left.
pub(crate) async fn settle(pool: &PgPool, processes: &mut Processes, patience: Duration) -> i64 {
    let (mut last, mut moved) = (String::new(), Instant::now());
    loop {
        processes.revive();
        let (left, state): (i64, String) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM tasker.tasks WHERE state IN ('waiting', 'pending', 'running', 'cancelling', 'undoing')),
                    (SELECT jsonb_object_agg(state, n)::text FROM (SELECT state, count(*) AS n FROM tasker.steps GROUP BY 1) AS s)",
        )
        .fetch_one(pool)
        .await
        .unwrap_or((1, "PostgreSQL is starting".into()));
        if state != last {
            (last, moved) = (state, Instant::now());
        }
        if left == 0 || moved.elapsed() > patience {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Everything that is not as it must be.
pub(crate) async fn check(pool: &PgPool, accepted: &HashMap<String, &'static str>, journal: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (what, sql) in QUERIES {
        let rows: Vec<String> = sqlx::query_scalar(sql)
            .fetch_all(pool)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        if !rows.is_empty() {
            found.push(format!("{what}: {} ({})", rows.len(), rows[..rows.len().min(3)].join(", ")));
        }
    }
    let tasks: Vec<String> = sqlx::query_scalar(
        "SELECT tp.name || '/' || t.key FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id WHERE t.parent_id IS NULL
         AND t.key NOT LIKE 'schedule/%'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    if tasks.len() != accepted.len() || !tasks.iter().all(|key| accepted.contains_key(key)) {
        found.push(format!("{} tasks were accepted, {} are there", accepted.len(), tasks.len()));
    }
    let money: i64 = sqlx::query_scalar("SELECT sum(cents)::bigint FROM accounts")
        .fetch_one(pool)
        .await
        .unwrap();
    if money != ACCOUNTS * CENTS {
        found.push(format!("{money} cents are in the accounts, not {}", ACCOUNTS * CENTS));
    }
    found.extend(check_runs(pool, &runs(journal)).await);
    let reconciled: i64 = sqlx::query_scalar("SELECT coalesce(sum(value), 0)::bigint FROM tasker.counters WHERE name = 'reconciled'")
        .fetch_one(pool)
        .await
        .unwrap();
    if reconciled > 0 {
        found.push(format!("{reconciled} things had to be mended by the reconciler"));
    }
    for (name, value) in sqlx::query_as::<_, (String, i64)>("SELECT name, value FROM tasker.counters ORDER BY name")
        .fetch_all(pool)
        .await
        .unwrap()
    {
        println!("{name}: {value}");
    }
    found
}

/// Each returns what must not be.
const QUERIES: [(&str, &str); 17] = [
    (
        "tasks that ended otherwise than they must",
        "SELECT t.id || ' ' || tp.name || ' ' || t.state FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id
         WHERE t.state::text <> CASE WHEN tp.name IN ('refused', 'poison') THEN 'blocked' WHEN tp.name = 'returned' THEN 'failed'
                                    WHEN tp.name = 'returned.parts' THEN 'cancelled' ELSE 'complete' END",
    ),
    (
        "complete tasks with steps that are not",
        "SELECT t.id || ' ' || ts.name FROM tasker.tasks t JOIN tasker.template_steps ts ON ts.version_id = t.version_id
         LEFT JOIN tasker.steps s ON s.task_id = t.id AND s.step = ts.step
         WHERE t.state = 'complete' AND ts.undoes IS NULL AND s.state IS DISTINCT FROM 'complete'",
    ),
    (
        "steps of refused tasks that are not as they must be",
        "SELECT t.id || ' ' || ts.name || ' ' || coalesce(s.state::text, 'nothing')
         FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id AND tp.name = 'refused'
         JOIN tasker.template_steps ts ON ts.version_id = t.version_id
         LEFT JOIN tasker.steps s ON s.task_id = t.id AND s.step = ts.step
         WHERE coalesce(s.state::text, 'nothing') <> CASE ts.name WHEN 'b' THEN 'dead' WHEN 'c' THEN 'nothing' ELSE 'complete' END",
    ),
    (
        "steps that began before their parents were complete",
        "SELECT s.task_id || ' ' || ts.name FROM tasker.steps s JOIN tasker.tasks t ON t.id = s.task_id
         JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
         JOIN tasker.steps p ON p.task_id = s.task_id AND p.step = ANY (ts.parents)
         WHERE p.state <> 'complete' OR s.started_at < p.finished_at",
    ),
    (
        "steps that did not wait for their time",
        "SELECT t.id::text FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id AND tp.name = 'sleepy'
         JOIN tasker.steps a ON a.task_id = t.id AND a.step = 0 JOIN tasker.steps nap ON nap.task_id = t.id AND nap.step = 1
         JOIN tasker.steps b ON b.task_id = t.id AND b.step = 2
         WHERE nap.finished_at < a.finished_at + interval '500 ms' OR b.started_at < nap.finished_at + interval '300 ms'",
    ),
    (
        "tasks that began before another was complete, of which there may be one at a time",
        "SELECT a.id || ' ' || b.id FROM tasker.tasks a JOIN tasker.templates tp ON tp.id = a.template_id AND tp.name = 'single'
         JOIN tasker.tasks b ON b.template_id = a.template_id AND b.input -> 'from' = a.input -> 'from' AND b.id <> a.id AND b.created_at >= a.created_at
         JOIN tasker.steps s ON s.task_id = b.id WHERE s.started_at < a.finished_at",
    ),
    (
        "families of which a child is missing, or there twice, or counted otherwise than once",
        "SELECT t.id::text FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id AND tp.name = 'family'
         JOIN tasker.steps s ON s.task_id = t.id AND s.step = 1
         CROSS JOIN LATERAL (SELECT count(*) AS n, count(DISTINCT c.item) AS items, count(*) FILTER (WHERE c.state = 'complete') AS complete
                             FROM tasker.tasks c WHERE c.parent_id = t.id AND c.parent_step = 1) AS c
         CROSS JOIN LATERAL (SELECT jsonb_array_length(t.input -> 'parts')::bigint AS n) AS p
         WHERE (c.n, c.items, c.complete, (s.result ->> 'size')::bigint) IS DISTINCT FROM (p.n, p.n, p.n, p.n)
            OR (SELECT count(*) FROM tasker.tasks c WHERE c.parent_id = t.id AND c.parent_step = 2) <> 1",
    ),
    (
        "signals that were not received exactly once, by the step that they were for",
        "SELECT g.id || ' ' || g.name FROM tasker.signals g
         LEFT JOIN tasker.tasks t ON t.id = g.task_id OR t.input ->> 'order' = g.key
         LEFT JOIN tasker.steps s ON s.task_id = t.id AND s.step = CASE g.name WHEN 'go' THEN 1 ELSE 2 END
         GROUP BY g.id HAVING g.received <> 1 OR count(s.step) <> 1 OR bool_or(s.result IS DISTINCT FROM g.payload)
         UNION ALL SELECT t.id::text FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id AND tp.name = 'signalled'
         WHERE (SELECT count(*) FROM tasker.signals g WHERE g.task_id = t.id OR g.key = t.input ->> 'order') <> 2",
    ),
    (
        "times of the schedule that did not begin exactly one task, or were left out",
        "SELECT k.time::text || ' ' || k.state FROM (SELECT *, time - lag(time) OVER (ORDER BY time) AS gap FROM tasker.ticks) AS k
         LEFT JOIN tasker.tasks t ON t.key LIKE 'schedule/%/' || extract(epoch FROM k.time)
         GROUP BY k.time, k.state, k.gap, k.task_id
         HAVING k.state <> 'started' OR k.gap <> interval '1 second' OR array_agg(t.id) <> ARRAY[k.task_id]
         UNION ALL SELECT t.key FROM tasker.tasks t WHERE t.key LIKE 'schedule/%' AND NOT EXISTS (SELECT FROM tasker.ticks k WHERE k.task_id = t.id)",
    ),
    ("messages without a step", "SELECT msg_id::text FROM pgmq.q_work_queue UNION ALL SELECT msg_id::text FROM pgmq.q_bank_queue"),
    ("permits that did not come back", "SELECT task_id || ' ' || step FROM tasker.permits"),
    ("steps that are still to run", "SELECT task_id || ' ' || step FROM tasker.steps WHERE state NOT IN ('complete', 'dead')"),
    (
        "dead steps without a letter, or letters without a reason",
        "SELECT coalesce(s.task_id::text, q.message ->> 'task') FROM tasker.steps s
         FULL JOIN (SELECT * FROM pgmq.q_work_queue_dlq UNION ALL SELECT * FROM pgmq.q_bank_queue_dlq) AS q ON (q.message ->> 'task')::uuid = s.task_id
         WHERE (s.state = 'dead' AND q.msg_id IS NULL) OR (s.state IS NULL) OR (q.msg_id IS NOT NULL AND q.message ->> 'reason' IS NULL)",
    ),
    (
        "letters with another reason than they must have",
        "SELECT message ->> 'template' || ' ' || (message ->> 'reason') FROM pgmq.q_work_queue_dlq
         WHERE message ->> 'reason' <> CASE message ->> 'template' WHEN 'poison' THEN 'poison' ELSE 'permanent_error' END",
    ),
    (
        "transfers that were not booked exactly once, by the run that counted",
        "SELECT t.id::text FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id AND tp.name = 'transfer'
         JOIN tasker.steps s ON s.task_id = t.id AND s.step = 0
         WHERE (SELECT array_agg(l.run) FROM ledger l WHERE l.task = t.id) IS DISTINCT FROM
               CASE WHEN s.state = 'complete' THEN ARRAY[s.result ->> 'run'] END",
    ),
    (
        "transfers that were not booked and taken back exactly once each, or whose parts were not",
        "SELECT t.id::text FROM tasker.tasks t JOIN tasker.templates tp ON tp.id = t.template_id AND tp.name = 'returned'
         CROSS JOIN LATERAL (SELECT array_agg(s.result ->> 'run' ORDER BY s.result ->> 'run') AS runs, count(*) AS n FROM tasker.steps s
                             JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
                             WHERE s.task_id = t.id AND s.state = 'complete' AND ts.handler = 'Transfer') AS s
         WHERE s.n <> 2 OR (SELECT (array_agg(l.run ORDER BY l.run), sum(l.cents)) FROM ledger l WHERE l.task = t.id) IS DISTINCT FROM (s.runs, 0::bigint)
            OR EXISTS (SELECT FROM tasker.tasks c WHERE c.parent_id = t.id
                       AND (SELECT count(*) FROM tasker.steps s WHERE s.task_id = c.id AND s.state = 'complete') <> 2)",
    ),
    (
        "accounts that do not have what the ledger says, to the cent",
        "SELECT a.id::text FROM accounts a CROSS JOIN LATERAL (
             SELECT coalesce(sum(CASE WHEN (t.input ->> 'to')::int = a.id THEN l.cents ELSE -l.cents END), 0) AS moved
             FROM ledger l JOIN tasker.tasks t ON t.id = l.task WHERE a.id IN ((t.input ->> 'to')::int, (t.input ->> 'from')::int)) AS m
         WHERE a.cents <> 100000 + m.moved",
    ),
];

/// When each run of a handler began, in seconds since 1970. The journals have the monotonic clock: the processes' wall clocks jump.
fn runs(journal: &Path) -> HashMap<String, f64> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - monotonic();
    let mut runs = HashMap::new();
    for entry in std::fs::read_dir(journal).unwrap() {
        for line in std::fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            // The last line of a killed process may be half of one.
            if let Ok(line) = serde_json::from_str::<Value>(line) {
                runs.insert(line["run"].as_str().unwrap().to_owned(), since_1970 + line["at"].as_f64().unwrap());
            }
        }
    }
    runs
}

/// The result that counts comes from a run that really was, that began under the lease it was counted under, and that saw the results of its
/// parents that counted.
async fn check_runs(pool: &PgPool, runs: &HashMap<String, f64>) -> Vec<String> {
    let mut found = Vec::new();
    let rows = sqlx::query(
        "SELECT s.task_id::text || ' ' || ts.name AS step, s.result, extract(epoch FROM s.started_at)::float8 AS leased,
                (SELECT coalesce(jsonb_object_agg(pts.name, p.result -> 'run'), '{}') FROM tasker.steps p
                 JOIN tasker.template_steps pts ON pts.version_id = t.version_id AND pts.step = p.step
                 WHERE p.task_id = s.task_id AND p.step = ANY (ts.parents)) AS parents
         FROM tasker.steps s JOIN tasker.tasks t ON t.id = s.task_id
         JOIN tasker.template_steps ts ON ts.version_id = t.version_id AND ts.step = s.step
         WHERE s.state = 'complete' AND ts.kind = 'handler'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for row in &rows {
        let (step, result, leased, parents): (String, Value, f64, Value) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let run = result["run"].as_str().unwrap_or_default();
        match runs.get(run) {
            None => found.push(format!("{step}: its result is of no run that was: {result}")),
            // Both clocks are this machine's; they are compared by way of a third.
            Some(began) if *began < leased - 0.005 => found.push(format!(
                "{step}: the run that counted began {:.3} s before the lease",
                leased - began
            )),
            Some(_) if result["seen"] != parents => found.push(format!("{step}: it saw {}, its parents have {parents}", result["seen"])),
            Some(_) => {}
        }
    }
    println!("{} steps counted, of {} runs", rows.len(), runs.len());
    found.truncate(10);
    found
}

/// Where nothing failed and nobody was killed, every step ran once; how long the longest of them waited is printed.
pub(crate) async fn check_undisturbed(pool: &PgPool, journal: &Path) -> Option<String> {
    let (steps, p99, longest): (i64, f64, f64) = sqlx::query_as(
        "SELECT count(*), percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - enqueued_at))::float8,
                max(extract(epoch FROM started_at - enqueued_at))::float8
         FROM tasker.steps WHERE state = 'complete'",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let runs = runs(journal).len() as i64;
    println!("from enqueued to begun: p99 {p99:.3} s, longest {longest:.3} s");
    (runs != steps).then(|| format!("{steps} steps took {runs} runs"))
}
