//! What a step may cost, in counts that no slow machine can change: rows written, transactions, bytes of write-ahead log, the rows that a
//! claim reads, and what is asked when nothing is to be done. The figures behind the bounds are in bench/NOTES.md.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use sqlx::pool::PoolConnection;
use sqlx::{Acquire, Executor, Postgres};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::Db;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::world::World;

const LINEAR: &str = "
name: linear
namespace: here
steps:
  - { name: a, handler: H }
  - { name: b, handler: H, depends_on: [a] }
  - { name: c, handler: H, depends_on: [b] }
  - { name: d, handler: H, depends_on: [c] }
";

/// Leases what waits, and puts it into the session's table; [`COMPLETE`] completes what is there. Both count their steps.
const LEASE: &str = "WITH new AS (INSERT INTO leased SELECT * FROM tasker.lease_steps('here_queue', 0, 500, '1 minute') RETURNING 1)
    SELECT count(*) FROM new";
const COMPLETE: &str = "SELECT coalesce(sum(cardinality(c.counted)), 0)::bigint FROM (
    SELECT array_agg(msg_id ORDER BY msg_id) AS ids, array_agg(fence ORDER BY msg_id) AS fences, array_agg(task_id ORDER BY msg_id) AS tasks,
           array_agg(step ORDER BY msg_id) AS steps, array_agg('null'::text) AS results FROM leased) AS l,
    tasker.complete_steps('here_queue', 0, l.ids, l.fences, l.tasks, l.steps, l.results, '{}') AS c";

/// What the sessions of this test's database did, as far as they have ended.
async fn done(world: &World) -> (i64, i64) {
    let rows = "SELECT tup_inserted + tup_updated + tup_deleted FROM pg_stat_database WHERE datname = current_database()";
    let commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    (world.count(rows).await, world.count(commits).await)
}

async fn crew(world: &World) -> (Db, Orchestrator, Arc<Worker>) {
    let db = Db::connect(&world.url, 8).await.unwrap();
    let orchestrator = Orchestrator::start(&db, OrchestratorConfig::default()).await.unwrap();
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&db, config).await.unwrap());
    worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(null)) }));
    (db, orchestrator, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_has_nothing_more_to_do_closes_all_connections_but_one_and_those_to_listen() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let ours = "FROM pg_stat_activity WHERE datname = current_database()";
        let before = world.text(&format!("SELECT array_agg(pid)::text {ours}")).await;
        let (db, orchestrator, worker) = crew(world).await;
        let of_crew = format!("SELECT count(*) {ours} AND application_name = 'tasker' AND pid <> ALL ('{before}')");
        // Nobody gets what they ask for while this lock is held, so each needs a connection of its own.
        let mut lock = world.pool.begin().await.unwrap();
        lock.execute("LOCK TABLE tasker.tasks").await.unwrap();
        let submissions: Vec<_> = (0..4)
            .map(|_| {
                let submitter = Submitter::new(db.clone());
                tokio::spawn(async move { submitter.submit("linear", None, &[NewTask::default()]).await })
            })
            .collect();
        // The orchestrator and the worker each LISTEN.
        world.until_true(&format!("({of_crew}) >= 4 + 2")).await;
        lock.rollback().await.unwrap();
        for submission in submissions {
            submission.await.unwrap().unwrap();
        }
        world.until_true(&format!("({of_crew}) <= 1 + 2")).await;
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        db.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_backlog_costs_less_than_six_row_writes_and_a_small_part_of_a_transaction() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let db = Db::connect(&world.url, 4).await.unwrap();
        let tasks = vec![
            NewTask {
                input: json!({}).into(),
                ..NewTask::default()
            };
            1_000
        ];
        Submitter::new(db.clone()).submit("linear", None, &tasks).await.unwrap();
        db.close().await;
        let before = done(world).await;
        let (db, orchestrator, worker) = crew(world).await;
        let mut asked = 1;
        while world.count("SELECT count(*) FROM tasker.tasks WHERE state <> 'complete'").await > 0 {
            asked += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        db.close().await;
        // A session reports what it did when it ends, which is a moment after its client has gone.
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tasker'";
        let ended = async {
            while world.count(open).await > i64::from(world.db.pool_use().open) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .expect("every session ends");
        let after = done(world).await;
        let steps = 4_000.0;
        let (rows, commits) = ((after.0 - before.0) as f64 / steps, (after.1 - before.1 - asked) as f64 / steps);
        assert!(rows < 6.0, "{rows} row writes a step");
        assert!(commits < 0.5, "{commits} transactions a step");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_reads_no_more_rows_when_a_hundred_thousand_tasks_wait() {
    World::with(async |world| {
        for n in 0..4 {
            world.register(&LINEAR.replace("here", &format!("n{n}"))).await;
        }
        let mut connection = session(world).await;
        let add = async |connection: &mut sqlx::PgConnection, tasks: i32| {
            for n in 0..4 {
                let priorities = "SELECT array_agg((ARRAY['low', 'normal', 'high', 'urgent'])[1 + i % 4]) FROM generate_series(1, $2) AS i";
                let create =
                    format!("SELECT count(*) FROM tasker.create_tasks($1, array_fill('{{}}'::jsonb, ARRAY[$2]), NULL, ({priorities}))");
                sqlx::query(&create)
                    .bind(format!("n{n}/linear"))
                    .bind(tasks)
                    .execute(&mut *connection)
                    .await
                    .unwrap();
            }
        };
        let mut read = Vec::new();
        for more in [250, 24_750] {
            add(&mut connection, more).await;
            let claim = format!(
                "SELECT sum(claimed) FROM tasker.claim_tasks({}, NULL, 1000, 25)",
                world.orchestrator
            );
            let (claimed, rows) = rows_read(&mut connection, "relname IN ('tasks', 'steps')", &claim).await;
            assert_eq!(claimed, 100);
            read.push(rows);
        }
        assert!(read[0] >= 100 && read[1] <= read[0] * 3 / 2, "rows read: {read:?}");
    })
    .await;
}

#[tokio::test]
async fn a_submission_reads_no_more_rows_where_there_are_many_templates() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let mut connection = session(world).await;
        // Planned while there is one.
        let create = |named: &str| format!("SELECT count(*) FROM tasker.create_tasks('{named}', ARRAY['{{}}'::jsonb])");
        connection.execute(&*create("linear")).await.unwrap();
        let more = "INSERT INTO tasker.templates (namespace_id, name) SELECT n.id, 'more' || i FROM tasker.namespaces n, generate_series(1, 1000) AS i";
        connection.execute(more).await.unwrap();
        for named in ["linear", "here/linear"] {
            let (created, rows) = rows_read(&mut connection, "relname IN ('templates', 'template_versions', 'namespaces')", &create(named)).await;
            assert_eq!(created, 1);
            assert!(rows < 20, "{rows} rows read to submit {named}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_step_of_a_wide_workflow_reads_no_more_rows_than_its_own() {
    World::with(async |world| {
        let roots: Vec<String> = (0..300).map(|n| format!("s{n}")).collect();
        let mut steps: Vec<Value> = roots.iter().map(|name| json!({ "name": name, "handler": "H" })).collect();
        steps.push(json!({ "name": "last", "handler": "H", "depends_on": roots }));
        world
            .register(&json!({ "name": "wide", "namespace": "here", "steps": steps }).to_string())
            .await;
        let mut connection = session(world).await;
        emptied(&mut connection).await;
        connection.execute("SELECT tasker.create_task('wide', '{}')").await.unwrap();
        let claim = format!("SELECT * FROM tasker.claim_tasks({}, NULL, 1000, 1)", world.orchestrator);
        connection.execute(&*claim).await.unwrap();
        for steps in [300, 1] {
            let (leased, by_lease) = rows_read(&mut connection, OURS, LEASE).await;
            assert_eq!(leased, steps);
            let (completed, by_completion) = rows_read(&mut connection, OURS, COMPLETE).await;
            assert_eq!(completed, steps);
            connection.execute("TRUNCATE leased").await.unwrap();
            // The last one reads what the 300 before it returned.
            assert!(by_lease < 2_500, "{by_lease} rows read to lease {steps} steps");
            assert!(by_completion < 2_500, "{by_completion} rows read to complete {steps} steps");
        }
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'complete'").await, 1);
    })
    .await;
}

#[tokio::test]
async fn what_is_done_to_ten_of_many_steps_reads_no_others() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let mut connection = session(world).await;
        emptied(&mut connection).await;
        let create = "SELECT count(*) FROM tasker.create_tasks('linear', array_fill('{}'::jsonb, ARRAY[500]))";
        connection.execute(create).await.unwrap();
        let claim = format!("SELECT * FROM tasker.claim_tasks({}, NULL, 1000, 500)", world.orchestrator);
        connection.execute(&*claim).await.unwrap();
        let (leased, _) = rows_read(&mut connection, OURS, LEASE).await;
        assert_eq!(leased, 500);
        connection.execute("ALTER TABLE leased RENAME TO all_leased").await.unwrap();
        for (function, arguments, counted) in [
            ("extend_leases", "l.ids, l.fences, l.tasks, l.steps, '1 minute'", 0),
            ("record_progress", "l.ids, l.fences, l.tasks, l.steps, l.progress, l.progress", 0),
            ("release_steps", "l.ids, l.fences, l.tasks, l.steps", 1),
            ("complete_steps", "0, l.ids, l.fences, l.tasks, l.steps, l.results, '{}'", 1),
            ("fail_steps", "0, l.ids, l.fences, l.tasks, l.steps, l.progress, l.permanent, l.retry_after", 10),
        ] {
            let statement = format!(
                "WITH ten AS (DELETE FROM all_leased WHERE msg_id IN (SELECT msg_id FROM all_leased ORDER BY msg_id DESC LIMIT 10) RETURNING *),
                      l AS (SELECT array_agg(msg_id) AS ids, array_agg(fence) AS fences, array_agg(task_id) AS tasks, array_agg(step) AS steps,
                                   array_agg('null'::text) AS results, array_agg('{{}}'::jsonb) AS progress, array_agg(false) AS permanent,
                                   array_agg(1::float8) AS retry_after FROM (SELECT * FROM ten ORDER BY msg_id) AS t)
                 SELECT count(*) FROM l, tasker.{function}('here_queue', {arguments})"
            );
            let (count, rows) = rows_read(&mut connection, OURS, &statement).await;
            assert_eq!(count, counted, "{function}");
            assert!((10..250).contains(&rows), "{rows} rows read by {function}");
        }
    })
    .await;
}

#[tokio::test]
async fn who_looks_for_what_is_due_reads_none_of_the_many_that_are_not() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let mut connection = session(world).await;
        emptied(&mut connection).await;
        let looks = [
            "begin_due_tasks",
            "end_sleeps",
            "enqueue_due_retries",
            "grant_permits",
            "tally_children",
            "move_fan_outs",
            "match_signals",
            "expire_tasks",
        ]
        .map(|function| (function, format!("SELECT count(*) FROM tasker.{function}(1000)")));
        // Plans are made while there is nothing.
        for (_, look) in &looks {
            connection.execute(&**look).await.unwrap();
        }
        let create = "SELECT count(*) FROM tasker.create_tasks('linear', array_fill('{}'::jsonb, ARRAY[500]))";
        connection.execute(create).await.unwrap();
        let claim = format!("SELECT * FROM tasker.claim_tasks({}, NULL, 1000, 500)", world.orchestrator);
        connection.execute(&*claim).await.unwrap();
        for later in [
            "UPDATE tasker.tasks SET due_at = now() + interval '1 day', look_at = now() + interval '1 day'",
            "UPDATE tasker.steps SET retry_at = now() + interval '1 day', wakes_at = now() + interval '1 day'",
        ] {
            connection.execute(later).await.unwrap();
        }
        for (function, look) in &looks {
            let (_, rows) = rows_read(&mut connection, OURS, look).await;
            assert!(rows < 20, "{rows} rows read by {function}");
        }
    })
    .await;
}

#[tokio::test]
async fn reconciliation_reads_the_tasks_it_looks_at_and_no_others() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let mut connection = session(world).await;
        let create = "SELECT count(*) FROM tasker.create_tasks('linear', array_fill('{}'::jsonb, ARRAY[1000]))";
        connection.execute(create).await.unwrap();
        let reconcile = "SELECT mended::bigint FROM tasker.reconcile('00000000-0000-0000-0000-000000000000', 10)";
        let (mended, rows) = rows_read(&mut connection, OURS, reconcile).await;
        assert_eq!(mended, 0);
        assert!((10..50).contains(&rows), "{rows} rows read");
    })
    .await;
}

/// A session as the engine's own are, with a table for what [`LEASE`] leases.
async fn session(world: &World) -> PoolConnection<Postgres> {
    let mut connection = world.pool.acquire().await.unwrap();
    connection.execute(tasker::PLANS).await.unwrap();
    connection.execute("CREATE TEMP TABLE leased OF tasker.leased_step").await.unwrap();
    connection
}

/// PostgreSQL believes that the queue is empty, as it does now and then of one that is emptied as fast as it is filled.
async fn emptied(connection: &mut sqlx::PgConnection) {
    let fill = "SELECT pgmq.send_batch('here_queue', array_fill('{}'::jsonb, ARRAY[500]))";
    let analyze = "ANALYZE pgmq.q_here_queue, tasker.tasks, tasker.steps";
    for statement in [fill, "DELETE FROM pgmq.q_here_queue", analyze] {
        connection.execute(statement).await.unwrap();
    }
}

/// The tables of tasker and its queues.
const OURS: &str = "schemaname IN ('tasker', 'pgmq')";

/// What a statement counts, and how many rows of these tables it read for that.
async fn rows_read(connection: &mut sqlx::PgConnection, tables: &str, statement: &str) -> (i64, i64) {
    let rows = &format!("SELECT (sum(seq_tup_read) + sum(idx_tup_fetch))::bigint FROM pg_stat_xact_user_tables WHERE {tables}");
    let mut transaction = connection.begin().await.unwrap();
    let before: i64 = sqlx::query_scalar(rows).fetch_one(&mut *transaction).await.unwrap();
    let counted = sqlx::query_scalar(statement).fetch_one(&mut *transaction).await.unwrap();
    let after: i64 = sqlx::query_scalar(rows).fetch_one(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    (counted, after - before)
}

/// One statement as the benchmark's sessions run it; the records, and bytes without full pages, that it wrote to the write-ahead log.
async fn logged(connection: &mut sqlx::PgConnection, statement: &str) -> (f64, f64) {
    let plan: Value = sqlx::query_scalar(&format!("EXPLAIN (ANALYZE, WAL, FORMAT JSON) {statement}"))
        .fetch_one(connection)
        .await
        .unwrap();
    let figure = |name: &str| plan[0]["Plan"][name].as_f64().unwrap();
    (figure("WAL Records"), figure("WAL Bytes") - 8192.0 * figure("WAL FPI"))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_at_a_task_or_at_a_list_of_them_reads_few_of_the_others() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let mut connection = session(world).await;
        for tags in ["{\"often\": \"1\"}", "{}"] {
            let create = format!("SELECT count(*) FROM tasker.create_tasks('linear', array_fill('{{}}'::jsonb, ARRAY[15000]), p_tags => array_fill('{tags}'::jsonb, ARRAY[15000]))");
            connection.execute(&*create).await.unwrap();
        }
        connection.execute("ANALYZE tasker.tasks").await.unwrap();
        let first = "(SELECT id FROM tasker.tasks ORDER BY id LIMIT 1)";
        let tag = format!("UPDATE tasker.tasks SET tags = '{{\"rare\": \"1\"}}', key = 'k' WHERE id = {first}");
        connection.execute(&*tag).await.unwrap();
        let find = |filter: &str| format!("SELECT cardinality(ids)::bigint FROM tasker.find_tasks('{filter}', 50, false, '0')");
        let looks = [
            (format!("SELECT count(*) FROM tasker.read_task({first}) AS t WHERE t ->> 'key' = 'k'"), 1, 100),
            (find("{\"key\": \"k\"}"), 1, 100),
            (find("{\"tags\": {\"rare\": \"1\"}}"), 1, 100),
            (find("{}"), 50, 7_000),
            (find("{\"state\": \"failed\"}"), 0, 7_000),
            (find("{\"tags\": {\"often\": \"2\"}, \"state\": \"failed\"}"), 0, 7_000),
        ];
        for (look, found, most) in looks {
            let (counted, rows) = rows_read(&mut connection, "relname = 'tasks'", &look).await;
            assert_eq!(counted, found, "{look}");
            assert!(rows <= most, "{look} read {rows} rows");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_writes_no_more_to_the_write_ahead_log_than_its_rows_need() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let mut connection = session(world).await;
        let create = "SELECT count(*) FROM tasker.create_tasks('linear', array_fill('{}'::jsonb, ARRAY[200]))";
        connection.execute(create).await.unwrap();
        let claim = format!("SELECT * FROM tasker.claim_tasks({}, NULL, 1000, 200)", world.orchestrator);
        let (mut records, mut bytes) = logged(&mut connection, &claim).await;
        for _ in 0..4 {
            for statement in [LEASE, COMPLETE] {
                let (more_records, more_bytes) = logged(&mut connection, statement).await;
                (records, bytes) = (records + more_records, bytes + more_bytes);
            }
            assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue WHERE read_ct > 0").await, 0);
            connection.execute("TRUNCATE leased").await.unwrap();
        }
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'complete'").await, 200);
        let steps = 800.0;
        assert!(records / steps < 11.0, "{} records a step", records / steps);
        assert!(bytes / steps < 1_300.0, "{} bytes a step", bytes / steps);
    })
    .await;
}

/// Counts the statements that are sent on this thread.
struct Statements(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0
            .fetch_add(usize::from(event.metadata().target() == "sqlx::query"), Ordering::Relaxed);
    }
}

// On one thread, so that nobody else's statements are counted.
#[tokio::test]
async fn an_idle_process_asks_less_than_two_queries_a_second() {
    World::with(async |world| {
        world.register(LINEAR).await;
        let count = Arc::new(AtomicUsize::new(0));
        let _counting = tracing_subscriber::registry().with(Statements(count.clone())).set_default();
        let (db, orchestrator, worker) = crew(world).await;
        // Polls begin short.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = count.load(Ordering::Relaxed);
        assert!(before > 0, "statements are counted");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let asked = count.load(Ordering::Relaxed) - before;
        assert!((1..80).contains(&asked), "{asked} queries of two processes in 20 s");
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        db.close().await;
    })
    .await;
}
