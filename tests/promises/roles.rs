//! What each role may do, and nothing else: with real logins, on functions, on rows, and on what a worker of one namespace could do to another.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tasker::config::distributed::{Author, ConfigurationCoordinator};
use tasker::engine::configuration::DatabaseCoordinator;
use tasker::engine::dead_letters::{self, Filter};
use tasker::engine::fail::Failure;
use tasker::engine::read::{list_tasks, read_task, wait_for_end};
use tasker::engine::register::register;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};
use tasker::{Db, Error, Template};
use tokio::sync::Mutex;

use crate::world::World;

const HERE: &str = "name: here
namespace: here
input_schema: { type: object, required: [card] }
steps:
  - { name: first, handler: H }
  - { name: last, handler: H, depends_on: [first] }
";
const THERE: &str = "name: there\nnamespace: there\nsteps:\n  - { name: only, handler: H }\n";

/// Roles are the server's: whoever makes them is alone.
static MAKING: Mutex<()> = Mutex::const_new(());

/// A login that is granted `roles`, and the URL with it.
async fn login(world: &World, roles: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("tasker_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let _alone = MAKING.lock().await;
    world.db.make_roles(&["here".to_owned()]).await.unwrap();
    world.run(&format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await;
    if !roles.is_empty() {
        world.run(&format!("GRANT {roles} TO {name}")).await;
    }
    let options: PgConnectOptions = world.url.parse().unwrap();
    options.username(&name).password("secret").to_url_lossy().to_string()
}

async fn forget(world: &World, url: &str) {
    let options: PgConnectOptions = url.parse().unwrap();
    let _alone = MAKING.lock().await;
    world
        .run(&format!("DROP OWNED BY {0}; DROP ROLE {0}", options.get_username()))
        .await;
}

/// What these statements come to, each by itself: their SQLSTATE, or how many rows they have.
async fn answers(url: &str, statements: &[&str]) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut answers = Vec::new();
    for statement in statements {
        answers.push(match connection.fetch_all(*statement).await {
            Ok(rows) => format!("{} rows", rows.len()),
            Err(error) => error.as_database_error().unwrap().code().unwrap().into_owned(),
        });
    }
    connection.close().await.unwrap();
    answers
}

fn task(input: serde_json::Value) -> NewTask {
    NewTask {
        input: input.into(),
        ..NewTask::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_call_what_is_its_right_and_no_other_function_and_touch_no_row() {
    World::with(async |world| {
        let nobody = login(world, "").await;
        let roles = [
            "tasker_submit",
            "tasker_read",
            "tasker_worker",
            "tasker_worker_of_here",
            "tasker_operate",
        ];
        for role in roles {
            let (may, should): (Vec<String>, Vec<String>) = sqlx::query_as(
                "SELECT array_agg(p.oid::regprocedure::text ORDER BY 1) FILTER (WHERE has_function_privilege($1, p.oid, 'EXECUTE')),
                        array_agg(p.oid::regprocedure::text ORDER BY 1) FILTER (WHERE p.proname = ANY (ARRAY(
                            SELECT r.function FROM tasker.rights() AS r
                            WHERE r.role = regexp_replace($1, '_of_here$', '') OR $1 = 'tasker_operate')))
                 FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace",
            )
            .bind(role)
            .fetch_one(&world.pool)
            .await
            .unwrap();
            assert_eq!(may, should, "{role}");
            let rows: Vec<String> = sqlx::query_scalar(
                "SELECT c.oid::regclass::text FROM pg_class c
                 WHERE c.relnamespace IN ('tasker'::regnamespace, 'pgmq'::regnamespace) AND c.relkind IN ('r', 'v', 'S', 'p')
                   AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege($1, c.oid, 'USAGE, SELECT, UPDATE')
                       ELSE has_table_privilege($1, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') END ORDER BY 1",
            )
            .bind(role)
            .fetch_all(&world.pool)
            .await
            .unwrap();
            let of_no_task = ["tasker._sqlx_migrations", "tasker.configurations", "tasker.counters"];
            assert!(rows.iter().all(|row| of_no_task.contains(&row.as_str())), "{role}: {rows:?}");
        }
        // Whatever is a right is a function, and runs as the owner.
        let wrong = world
            .text(
                "SELECT coalesce(string_agg(DISTINCT r.function, ', '), '') FROM tasker.rights() AS r WHERE NOT EXISTS (
                     SELECT FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace AND p.proname = r.function AND p.prosecdef)",
            )
            .await;
        assert_eq!(wrong, "notifications_are_stuck, shard", "which look at no row");
        let refused = answers(&nobody, &["SELECT tasker.create_task('here', '{}')", "SELECT * FROM tasker.tasks"]).await;
        assert_eq!(refused, ["42501", "42501"]);
        forget(world, &nobody).await;
    })
    .await;
}

/// How many of these statements, each in a transaction that is taken back, are refused for want of rights.
async fn refused(connection: &mut PgConnection, statements: &[String]) -> usize {
    let mut refused = 0;
    for statement in statements {
        let mut transaction = connection.begin().await.unwrap();
        if let Err(error) = transaction.execute(statement.as_str()).await {
            let code = error.as_database_error().and_then(|error| error.code().map(Cow::into_owned));
            refused += usize::from(matches!(code.as_deref(), Some("42501" | "TK008")));
        }
        transaction.rollback().await.unwrap();
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_on_security_says_how_much_of_all_that_there_is_was_tried_as_each_role() {
    World::with(async |world| {
        world.register(HERE).await;
        let calls: Vec<String> = sqlx::query_scalar(
            "SELECT format('SELECT * FROM %s(%s)', p.oid::regproc, (
                 SELECT string_agg(format('NULL::%s', format_type(t.type, NULL)), ', ' ORDER BY t.n)
                 FROM unnest(p.proargtypes) WITH ORDINALITY AS t(type, n)))
             FROM pg_proc p WHERE p.pronamespace IN ('tasker'::regnamespace, 'pgmq'::regnamespace) AND p.prokind = 'f' ORDER BY 1",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        let on_rows: Vec<String> = sqlx::query_scalar(
            "SELECT format(s.statement, c.oid::regclass) FROM pg_class c, unnest(ARRAY[
                 'SELECT * FROM %s LIMIT 1', 'INSERT INTO %s DEFAULT VALUES', 'DELETE FROM %s', 'TRUNCATE %s', 'LOCK TABLE %s IN ACCESS SHARE MODE',
                 'DROP TABLE %s']) AS s(statement)
             WHERE c.relnamespace IN ('tasker'::regnamespace, 'pgmq'::regnamespace) AND c.relkind IN ('r', 'p') ORDER BY 1",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        let (functions, statements) = (calls.len(), on_rows.len());
        let mut table = format!("| as | of {functions} functions refused | of {statements} statements on tables refused |\n| --- | --- | --- |\n");
        for role in ["", "tasker_submit", "tasker_read", "tasker_worker", "tasker_worker_of_here", "tasker_operate"] {
            let url = login(world, role).await;
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let named = if role.is_empty() { "a login without a role".to_owned() } else { format!("`{role}`") };
            let (of_calls, of_rows) = (refused(&mut connection, &calls).await, refused(&mut connection, &on_rows).await);
            table += &format!("| {named} | {of_calls} | {of_rows} |\n");
            connection.close().await.unwrap();
            forget(world, &url).await;
        }
        let page = include_str!("../../docs/security.md").replace("_of_<namespace>", "_of_here");
        assert!(page.contains(&table), "docs/security.md should have:\n{table}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitter_learns_what_becomes_of_its_tasks_and_reads_no_payload_and_forges_no_row() {
    World::with(async |world| {
        world.register(HERE).await;
        let url = login(world, "tasker_submit").await;
        let db = Db::connect(&url, 4).await.unwrap();
        let submitter = Submitter::new(db.clone());
        let created = submitter.submit("here", None, &[task(json!({ "card": "4242" }))]).await.unwrap();
        let refused = submitter.submit("here", None, &[task(json!({}))]).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{refused}");
        assert_eq!(
            wait_for_end(&db, created[0].id, Some(Duration::from_millis(100))).await.unwrap(),
            "pending"
        );
        let refused = read_task(&db, created[0].id).await.unwrap_err();
        assert!(matches!(refused, Error::Forbidden(_)), "{refused}");
        db.close().await;
        let statements = [
            "SELECT tasker.create_task('here', '{\"card\": 1}')",
            "SELECT input FROM tasker.tasks",
            "INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, claim_order, input, created_at)
             VALUES (gen_random_uuid(), 1, 9999, 1, 4, 'pending', '-infinity', '{}', now())",
            "UPDATE tasker.tasks SET priority = 4",
            "SELECT tasker.read_task(gen_random_uuid())",
            "SELECT tasker.cancel_tasks(ARRAY[gen_random_uuid()])",
            "SELECT tasker.lease_steps('here_queue', 1, 1, '1 hour')",
            "SELECT tasker.here_queue_depth(0, 1)",
            "SELECT * FROM pgmq.q_here_queue",
            "SELECT pgmq.send('here_queue', '{}')",
            "SELECT tasker.make_roles()",
            "CREATE FUNCTION tasker.mine() RETURNS int LANGUAGE sql RETURN 1",
        ];
        let mut expected = vec!["42501"; statements.len()];
        expected[0] = "1 rows";
        assert_eq!(answers(&url, &statements).await, expected);
        forget(world, &url).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_one_namespace_runs_its_steps_and_cannot_touch_anothers() {
    World::with(async |world| {
        world.register(THERE).await;
        let url = login(world, "tasker_worker_of_here").await;
        let db = Db::connect(&url, 8).await.unwrap();
        let parse = |yaml: &str| Template::parse(yaml, "test.yml").unwrap();
        register(&db, &parse(HERE)).await.unwrap();
        for others in [
            THERE.replace("H", "I"),
            HERE.replace("handler: H }", "handler: H, namespace: there }"),
        ] {
            let refused = register(&db, &parse(&others)).await.unwrap_err();
            assert!(matches!(refused, Error::Forbidden(_)), "{refused}");
        }
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let config = |namespace: &str| WorkerConfig {
            namespaces: vec![namespace.into()],
            ..WorkerConfig::default()
        };
        let refused = Worker::start(&db, config("there")).await.unwrap_err();
        assert!(matches!(refused, Error::Forbidden(_)), "{refused}");
        let refused = Orchestrator::start(&db, OrchestratorConfig::default()).await.unwrap_err();
        assert!(matches!(refused, Error::Forbidden(_)), "{refused}");

        let worker = Arc::new(Worker::start(&db, config("here")).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!({ "of": "here" })) }));
        // Large enough to be read by itself.
        let run = world.submit("here", json!({ "card": "4".repeat(100_000) })).await;
        assert_eq!(
            wait_for_end(&world.db, run, Some(Duration::from_secs(60))).await.unwrap(),
            "complete"
        );
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;

        // A message of each namespace, with the same id and the same fence.
        world
            .run("SELECT setval('pgmq.q_there_queue_msg_id_seq', (SELECT last_value FROM pgmq.q_here_queue_msg_id_seq))")
            .await;
        let (mine, theirs) = (
            world.submit("here", json!({ "card": 1 })).await,
            world.submit("there", json!({})).await,
        );
        world.claim().await;
        let leased = world.lease("here_queue", 1).await.remove(0);
        assert_eq!(world.lease("there_queue", 1).await[0].msg_id, leased.msg_id);
        let arguments = |task| {
            format!(
                "ARRAY[{}::bigint], ARRAY[1], ARRAY['{task}'::uuid], ARRAY[0::smallint]",
                leased.msg_id
            )
        };
        let one = |task| format!("{}, 1, '{task}', 0::smallint", leased.msg_id);
        let statements = [
            "SELECT * FROM tasker.lease_steps('there_queue', 1, 1, '1 hour')".to_owned(),
            "SELECT * FROM tasker.give_up_unreadable('there_queue', 1, 1)".to_owned(),
            format!("SELECT * FROM tasker.extend_leases('there_queue', {}, '1 hour')", arguments(theirs)),
            format!("SELECT * FROM tasker.release_steps('there_queue', {})", arguments(theirs)),
            format!(
                "SELECT * FROM tasker.complete_steps('there_queue', 1, {}, ARRAY['1'], '{{}}')",
                arguments(theirs)
            ),
            format!(
                "SELECT * FROM tasker.complete_steps('here_queue', 1, {}, ARRAY['1'], '{{}}')",
                arguments(theirs)
            ),
            format!(
                "SELECT * FROM tasker.complete_steps('here_queue', 1, {}, ARRAY['1'], ARRAY['{theirs}'::uuid])",
                arguments(mine)
            ),
            format!(
                "SELECT * FROM tasker.fail_steps('here_queue', 1, {}, ARRAY['{{}}'::jsonb], ARRAY[true], ARRAY[NULL::float8])",
                arguments(theirs)
            ),
            format!("SELECT tasker.fail_barely('here_queue', {}, 'a', 'b')", one(theirs)),
            format!("SELECT tasker.begin_suspect('here_queue', {})", one(theirs)),
            format!(
                "SELECT tasker.record_progress('here_queue', {}, ARRAY['1'::jsonb], ARRAY['1'::jsonb])",
                arguments(theirs)
            ),
            "SELECT tasker.ensure_namespaces('{elsewhere}')".to_owned(),
            "SELECT tasker.join_members('worker', 'a', 'b', '{here,there}', '1 hour')".to_owned(),
        ];
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        assert_eq!(answers(&url, &statements).await, vec!["TK008"; statements.len()]);
        let read = format!("SELECT * FROM tasker.read_leased('{theirs}', 0::smallint)");
        let names = format!("SELECT * FROM tasker.read_results('{run}', NULL, '{{first}}')");
        let before = format!("SELECT * FROM tasker.read_results('{run}', 1::smallint, '{{first}}')");
        let leave = format!("SELECT tasker.leave_members({})", world.orchestrator);
        assert_eq!(
            answers(&url, &[&read, &names, &before, &leave]).await,
            ["1 rows", "0 rows", "1 rows", "1 rows"]
        );
        let input = format!("SELECT coalesce((SELECT input FROM tasker.read_leased('{theirs}', 0::smallint)), 'nothing')");
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let seen: String = sqlx::query_scalar(&input).fetch_one(&mut connection).await.unwrap();
        assert_eq!(seen, "nothing");
        connection.close().await.unwrap();
        assert_eq!(world.step_states(theirs).await, ["in_progress"]);
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.members WHERE kind = 'orchestrator' AND left_at IS NULL")
                .await,
            1
        );
        // What is its own it may report.
        let own = format!(
            "SELECT * FROM tasker.complete_steps('here_queue', 1, {}, ARRAY['1'], ARRAY['{mine}'::uuid])",
            arguments(mine)
        );
        answers(&url, &[&own]).await;
        assert_eq!(world.step_states(mine).await[0], "complete");
        db.close().await;
        forget(world, &url).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_and_its_operator_need_no_more_than_tasker_operate_and_a_reader_changes_nothing() {
    World::with(async |world| {
        let (operate, read) = (login(world, "tasker_operate").await, login(world, "tasker_read").await);
        let db = Db::connect(&operate, 8).await.unwrap();
        register(&db, &Template::parse(THERE, "there.yml").unwrap()).await.unwrap();
        let orchestrator = Orchestrator::start(&db, OrchestratorConfig::default()).await.unwrap();
        let config = WorkerConfig {
            namespaces: vec!["there".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&db, config).await.unwrap());
        worker.handle_with(Handlers::default().with("H", |_| async { Err(Failure::permanent("TestError", "no")) }));
        let created = Submitter::new(db.clone())
            .submit("there", None, &[task(json!({ "a": 1 }))])
            .await
            .unwrap();
        assert_eq!(
            wait_for_end(&db, created[0].id, Some(Duration::from_secs(60))).await.unwrap(),
            "blocked"
        );
        let detailed = orchestrator.health().detailed().await;
        assert_eq!(
            (&detailed["ready"]["ready"], &detailed["fleet"]["error"]),
            (&json!(true), &json!(null)),
            "{detailed}"
        );
        let author = Author {
            who: "operator".into(),
            why: None,
        };
        let coordinator = DatabaseCoordinator::new(&db);
        coordinator.update(0, &json!({}), &author).await.unwrap();

        let reader = Db::connect(&read, 4).await.unwrap();
        let letters = dead_letters::list(&reader, &Filter::default(), 10).await.unwrap();
        assert_eq!(letters.len(), 1);
        assert_eq!(read_task(&reader, created[0].id).await.unwrap()["input"]["a"], 1);
        assert_eq!(
            list_tasks(&reader, &tasker::engine::read::TaskFilter::default(), 10)
                .await
                .unwrap()
                .len(),
            1
        );
        let refused = Submitter::new(reader.clone())
            .submit("there", None, &[task(json!({}))])
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::Forbidden(_)), "{refused}");
        reader.close().await;
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
        db.close().await;
        forget(world, &operate).await;
        forget(world, &read).await;
    })
    .await;
}
