//! Many namespaces, most of them idle: no loop looks at those that are asleep, and none stays asleep that has something to do.

use serde_json::{json, Value};
use sqlx::{Acquire, Executor};
use tasker::engine::namespaces;
use tasker::Error;

use crate::world::World;

const IDLE: i64 = 120;

/// Makes some namespaces, which had something to do long ago.
async fn idle(world: &World) {
    for from in (0..IDLE).step_by(40) {
        let sql = format!(
            "SELECT tasker.ensure_namespaces(array_agg('idle' || n)) FROM generate_series({from}, {}) AS n",
            from + 39
        );
        world.run(&sql).await;
    }
    long_ago(world).await;
}

async fn long_ago(world: &World) {
    world.run("UPDATE tasker.marks SET busy_at = now() - interval '1 hour'").await;
}

/// All slices of one round.
async fn move_marks(world: &World) {
    let mut after = Some(0);
    while let Some(last) = after {
        after = sqlx::query_scalar("SELECT last FROM tasker.move_marks($1)")
            .bind(last)
            .fetch_one(&world.pool)
            .await
            .unwrap();
    }
}

async fn asleep(world: &World) -> i64 {
    world.count("SELECT count(*) FROM tasker.marks WHERE sleep = 4").await
}

async fn fall_asleep(world: &World) {
    for _ in 0..5 {
        move_marks(world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_that_are_asleep_cost_nothing_and_those_that_are_not_are_looked_at_in_slices() {
    World::with(async |world| {
        idle(world).await;
        let locks = async |sql: &str| -> i64 {
            let mut connection = world.pool.acquire().await.unwrap();
            let mut transaction = connection.begin().await.unwrap();
            transaction.execute(sql).await.unwrap();
            let held = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation IS NOT NULL";
            sqlx::query_scalar(held).fetch_one(&mut *transaction).await.unwrap()
        };
        let claim = format!("SELECT tasker.claim_tasks({}, NULL, 100, 100)", world.orchestrator);
        let rounds = [
            "SELECT tasker.move_marks()",
            "SELECT tasker.wake_expired_leases()",
            "SELECT tasker.note_traffic()",
            "SELECT tasker.fleet_namespaces(0, 50)",
            "SELECT tasker.unreachable_queues(NULL)",
            claim.as_str(),
        ];
        for round in rounds {
            let held = locks(round).await;
            assert!(held < 600, "{round} holds {held} locks while {IDLE} are awake");
        }
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, IDLE);
        for round in rounds {
            let held = locks(round).await;
            assert!(held < 60, "{round} holds {held} locks while all are asleep");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_wakes_its_namespace_and_waits_for_nobody() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        long_ago(world).await;
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, 1);
        // Two transactions of callers, which are open at the same time.
        let (mut one, mut other) = (world.pool.acquire().await.unwrap(), world.pool.acquire().await.unwrap());
        let (mut one, mut other) = (one.begin().await.unwrap(), other.begin().await.unwrap());
        one.execute("SELECT tasker.create_task('one', '{}')").await.unwrap();
        other.execute("SELECT tasker.create_task('one', '{}')").await.unwrap();
        move_marks(world).await;
        assert_eq!(world.claim().await, 0);
        one.commit().await.unwrap();
        assert_eq!(world.claim().await, 1, "before anybody moved a mark");
        other.commit().await.unwrap();
        move_marks(world).await;
        assert_eq!((world.claim().await, asleep(world).await), (1, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_falls_asleep_over_a_task_that_is_not_committed_yet() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let mut connection = world.pool.acquire().await.unwrap();
        let mut caller = connection.begin().await.unwrap();
        // It was awake when the caller looked.
        caller.execute("SELECT tasker.create_task('one', '{}')").await.unwrap();
        assert_eq!(world.count("SELECT count(*) FROM tasker.wakes").await, 0);
        long_ago(world).await;
        fall_asleep(world).await;
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, 0);
        caller.commit().await.unwrap();
        fall_asleep(world).await;
        assert_eq!((world.claim().await, asleep(world).await), (1, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_and_a_task_whose_time_has_come_wake_their_namespaces() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        world
            .run("SELECT tasker.create_task('one', '{}', p_run_at => now() + interval '0.2 s')")
            .await;
        move_marks(world).await;
        long_ago(world).await;
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, 1);
        while world.count("SELECT begun::bigint FROM tasker.begin_due_tasks(10)").await == 0 {}
        assert_eq!(world.claim().await, 1);
        let step = world.lease("here_queue", 1).await.remove(0);
        world.complete(&[step], "1").await;
        move_marks(world).await;
        long_ago(world).await;
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, 1);
        let worker = world
            .count("SELECT tasker.join_members('worker', 'w', '1', '{here}', interval '1 hour')::bigint")
            .await;
        move_marks(world).await;
        long_ago(world).await;
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, 0, "its worker is there");
        world.run(&format!("SELECT tasker.leave_members({worker})")).await;
        fall_asleep(world).await;
        assert_eq!(asleep(world).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_in_whose_queue_something_waits_is_awake() {
    World::with(async |world| {
        let flow = "
            name: flow
            namespace: here
            steps:
              - { name: near, handler: H }
              - { name: far, handler: H, namespace: there, depends_on: [near] }
        ";
        world.register(flow).await;
        world.submit("flow", json!({})).await;
        world.claim().await;
        move_marks(world).await;
        long_ago(world).await;
        fall_asleep(world).await;
        let awake = async || {
            world
                .text("SELECT string_agg(name, ' ' ORDER BY name) FROM tasker.awake_namespaces(0, NULL)")
                .await
        };
        assert_eq!(awake().await, "here");
        let step = world.lease("here_queue", 1).await.remove(0);
        world.complete(&[step], "1").await;
        assert_eq!(awake().await, "here there", "a step of another namespace's task was sent");
        move_marks(world).await;
        long_ago(world).await;
        fall_asleep(world).await;
        assert_eq!(awake().await, "there");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_letters_is_not_asked_for_any() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H, retry: { max_attempts: 1 } }\n")
            .await;
        world.run("SELECT tasker.ensure_namespaces('{elsewhere}')").await;
        let lettered = async || -> Value {
            json!(sqlx::query_scalar::<_, String>("SELECT tasker.lettered_namespaces()")
                .fetch_all(&world.pool)
                .await
                .unwrap())
        };
        assert_eq!(lettered().await, json!([]));
        world.submit("one", json!({})).await;
        world.claim().await;
        let step = world.lease("here_queue", 1).await.remove(0);
        world.fail(&step, "no", true, None).await;
        assert_eq!(lettered().await, json!(["here"]));
        assert!(!forget(world).await, "there is one");
        world.run("SELECT pgmq.purge_queue('here_queue_dlq')").await;
        let mut connection = world.pool.acquire().await.unwrap();
        let mut sender = connection.begin().await.unwrap();
        sender.execute("SELECT pgmq.send('here_queue_dlq', '{}')").await.unwrap();
        assert!(!forget(world).await, "somebody is sending one");
        sender.rollback().await.unwrap();
        assert!(forget(world).await);
        assert_eq!(lettered().await, json!([]));
    })
    .await;
}

async fn forget(world: &World) -> bool {
    let query = sqlx::query_scalar("SELECT tasker.forget_letterless('here')");
    query.fetch_one(&world.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_or_is_there_already_uses_up_no_ids() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let given_out = "SELECT sum(coalesce(pg_sequence_last_value(pg_get_serial_sequence(t, 'id')::regclass), 0))::bigint
                         FROM unnest('{tasker.namespaces, tasker.templates, tasker.template_versions}'::text[]) AS t";
        let before = world.count(given_out).await;
        for bad in ["", "Has Capitals", "1st", "a-b", "n123456789012345678901234567890123456789"] {
            let made: Result<(), sqlx::Error> = sqlx::query("SELECT tasker.ensure_namespaces(ARRAY['good', $1])")
                .bind(bad)
                .execute(&world.pool)
                .await
                .map(drop);
            let error = Error::from(made.unwrap_err());
            assert!(matches!(error, Error::Invalid(_)), "{bad:?}: {error}");
        }
        for _ in 0..5 {
            world
                .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
                .await;
        }
        assert_eq!(world.count(given_out).await, before);
        assert_eq!(namespaces::list(&world.db).await.unwrap().len(), 1);
    })
    .await;
}
