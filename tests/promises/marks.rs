//! Marks skip what is dead, and never what is alive.

use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};

use crate::world::World;

const SINGLE: &str = "
name: single
namespace: here
steps: [{ name: a, handler: H }]
";

async fn move_marks(world: &World) {
    sqlx::query("SELECT tasker.move_marks()").execute(&world.pool).await.unwrap();
}

async fn another_session(world: &World) -> PgConnection {
    PgConnection::connect(&world.url).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_and_a_message_that_were_committed_late_are_not_skipped() {
    World::with(async |world| {
        world.register(SINGLE).await;
        let mut late = another_session(world).await;
        let mut transaction = late.begin().await.unwrap();
        transaction
            .execute("SELECT tasker.create_task('single', '{\"late\": true}'); SELECT pgmq.send('here_queue', '\"foreign\"')")
            .await
            .unwrap();
        // Everybody else goes on meanwhile.
        for _ in 0..4 {
            world.submit("single", json!({})).await;
            assert_eq!(world.claim().await, 1);
            let leased = world.lease("here_queue", 10).await;
            assert_eq!(leased.len(), 1);
            world.complete(&leased, "1").await;
            move_marks(world).await;
        }
        transaction.commit().await.unwrap();
        move_marks(world).await;
        assert_eq!(world.claim().await, 1);
        assert_eq!(world.lease("here_queue", 10).await.len(), 1);
        assert_eq!(world.count("SELECT count(*) FROM pgmq.q_here_queue_dlq").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_is_not_read_again_while_a_long_transaction_keeps_it() {
    World::with(async |world| {
        world.register(SINGLE).await;
        let mut report = another_session(world).await;
        report
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasker.namespaces")
            .await
            .unwrap();
        let mut connection = world.pool.acquire().await.unwrap();
        connection.execute(tasker::PLANS).await.unwrap();
        let turn = async |connection: &mut PgConnection| {
            let create = "SELECT count(*) FROM tasker.create_tasks('single', array_fill('{}'::jsonb, ARRAY[500]))";
            connection.execute(create).await.unwrap();
            let buffers = |plan: serde_json::Value| {
                let of = |name: &str| plan[0]["Plan"][name].as_i64().unwrap();
                of("Shared Hit Blocks") + of("Shared Read Blocks")
            };
            let mut read = 0;
            let claim = format!("tasker.claim_tasks({}, NULL, 500, 500)", world.orchestrator);
            for call in [claim.as_str(), "tasker.lease_steps('here_queue', 7, 500, '1 hour')"] {
                let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT count(*) FROM {call}");
                read += buffers(sqlx::query_scalar(&explain).fetch_one(&mut *connection).await.unwrap());
            }
            connection
                .execute(
                    "SELECT count(*) FROM (SELECT array_agg(q.msg_id ORDER BY q.msg_id) AS ids, array_agg(q.read_ct ORDER BY q.msg_id) AS fences,
                         array_agg((q.message ->> 'task')::uuid ORDER BY q.msg_id) AS tasks FROM pgmq.q_here_queue q) AS l,
                     tasker.complete_steps('here_queue', 7, l.ids, l.fences, l.tasks, array_fill(0::smallint, ARRAY[500]),
                                           array_fill('1'::text, ARRAY[500]), '{}')",
                )
                .await
                .unwrap();
            read
        };
        let mut read = Vec::new();
        for _ in 0..10 {
            read.push(turn(&mut connection).await);
            move_marks(world).await;
        }
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'complete'").await, 5_000);
        // The first turns are those in which the marks have not moved yet.
        assert!(read[9] < read[2] * 5 / 4, "blocks read: {read:?}");
        report.execute("ROLLBACK").await.unwrap();
    })
    .await;
}
