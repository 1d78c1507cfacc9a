//! Whoever may create functions in `public` does not run them as somebody else: neither in sessions of ours, nor in those of people who call ours.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tasker::engine::dead_letters::{self, Filter};
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};

use crate::world::World;

const TWO: &str = "name: two
namespace: here
steps:
  - { name: works, handler: H }
  - { name: fails, handler: Fails, depends_on: [works], retry: { max_attempts: 2, base: 10ms } }
";

/// Overloads of what PostgreSQL has for any type, which fit the types of a call better. Each says who has called it, in a way that no rollback undoes.
const TRAPS: &str = r#"
    CREATE SEQUENCE public.caught;
    GRANT ALL ON SEQUENCE public.caught TO PUBLIC;
    DO $$
    DECLARE
        v_name  text;
        v_types text;
    BEGIN
        FOREACH v_name IN ARRAY ARRAY['format', 'concat_ws', 'jsonb_build_object', 'jsonb_build_array', 'to_jsonb', 'num_nulls', 'pg_column_size'] LOOP
            FOREACH v_types IN ARRAY ARRAY[
                'text', 'text, text', 'text, text, text', 'text, text, text, text', 'text, bigint', 'text, int', 'text, jsonb', 'text, uuid', 'jsonb',
                'uuid', 'timestamptz', 'text, uuid, text, smallint, text, int', 'text, text, text, jsonb', 'text, boolean'] LOOP
                EXECUTE pg_catalog.format('CREATE FUNCTION public.%I(%s) RETURNS text LANGUAGE plpgsql AS '
                    '''BEGIN PERFORM pg_catalog.nextval(''''public.caught''''); RETURN NULL; END''', v_name, v_types);
            END LOOP;
        END LOOP;
        FOREACH v_types IN ARRAY ARRAY['text, name', 'name, text', 'text, varchar', 'smallint, bigint', 'jsonb, text[]'] LOOP
            EXECUTE pg_catalog.format('CREATE FUNCTION public.sprung(%s) RETURNS boolean LANGUAGE plpgsql AS '
                '''BEGIN PERFORM pg_catalog.nextval(''''public.caught''''); RETURN false; END''', v_types);
            EXECUTE pg_catalog.format('CREATE OPERATOR public.= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.sprung)',
                pg_catalog.split_part(v_types, ', ', 1), pg_catalog.split_part(v_types, ', ', 2));
        END LOOP;
    END
    $$;
"#;

async fn caught(world: &World) -> i64 {
    world
        .count("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.caught")
        .await
}

#[tokio::test]
async fn every_function_finds_only_what_is_postgresqls_or_named_with_its_schema() {
    World::with(async |world| {
        world.register(TWO).await;
        // Either its names were looked up when it was made (BEGIN ATOMIC), or it says where they are.
        let open = world
            .text(
                "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p
                 WHERE p.pronamespace = 'tasker'::regnamespace AND p.prosqlbody IS NULL
                   AND array_position(p.proconfig, 'search_path=pg_catalog, pg_temp') IS NULL",
            )
            .await;
        assert_eq!(open, "");
        assert!(
            world
                .count("SELECT count(*) FROM pg_proc WHERE pronamespace = 'tasker'::regnamespace")
                .await
                > 100
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_somebody_puts_into_public_are_called_by_nobody() {
    World::with(async |world| {
        let role = format!("attacker_{}", std::process::id());
        world
            .run(&format!(
                "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role}; {TRAPS} RESET ROLE"
            ))
            .await;
        let mut careless = PgConnection::connect(&world.url).await.unwrap();
        careless
            .execute("SELECT pg_catalog.count(*) FROM (SELECT format('a'::text, 'b'::text)) AS f")
            .await
            .unwrap();
        assert_eq!(caught(world).await, 1, "the traps work");

        // Our own sessions, through a task that completes and one that dies and is replayed.
        world.register(TWO).await;
        let config = WorkerConfig {
            namespaces: vec!["here".into()],
            ..WorkerConfig::default()
        };
        let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        worker.handle_with(
            Handlers::default()
                .with("H", |_| async { Ok(json!(1)) })
                .with("Fails", |_| async { Err(Failure::retryable("TestError", "no")) }),
        );
        let task = world.submit("two", json!({})).await;
        wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap();
        world.task(task).await;
        let filter = Filter::default();
        assert_eq!(dead_letters::list(&world.db, &filter, 10).await.unwrap().len(), 1);
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;

        // Everybody's: each function with nothing, and those that people call with something.
        let calls: Vec<String> = sqlx::query_scalar(
            "SELECT pg_catalog.format('SELECT * FROM %s(%s)', p.oid::regproc, (
                 SELECT string_agg(pg_catalog.format('NULL::%s', format_type(t.type, NULL)), ', ' ORDER BY t.n)
                 FROM unnest(p.proargtypes) WITH ORDINALITY AS t(type, n)))
             FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace ORDER BY 1",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        for call in calls.iter().map(String::as_str).chain([
            "SELECT tasker.create_task('two', '{}', p_key => 'a')",
            "SELECT tasker.cancel_task(id) FROM tasker.tasks",
            "SELECT tasker.read_task(id) FROM tasker.tasks",
        ]) {
            // Not all of them take nothing.
            let mut transaction = careless.begin().await.unwrap();
            transaction.execute(call).await.ok();
            transaction.rollback().await.unwrap();
        }
        assert_eq!(caught(world).await, 1, "somebody's function was called");
        world.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    })
    .await;
}
