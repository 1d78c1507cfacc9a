//! A queue that is dropped, damaged or locked is its namespace's trouble alone: it is left out and named, and repaired without a loss.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use sqlx::{Connection, Executor, PgConnection};
use tasker::config::Rules;
use tasker::engine::read::wait_for_end;
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use uuid::Uuid;

use crate::health::Serve;
use crate::world::World;

const HERE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";
const THERE: &str = "name: other\nnamespace: there\nsteps:\n  - { name: only, handler: H }\n";
/// Begins in one namespace, and ends in the other.
const ACROSS: &str = "name: across\nnamespace: there\nsteps:\n  - { name: first, handler: H }\n  \
                      - { name: second, handler: H, namespace: here, depends_on: [first] }\n";

async fn worker(world: &World, namespaces: &[&str]) -> Arc<Worker> {
    let config = WorkerConfig {
        namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        poll: Duration::from_millis(100),
        ..WorkerConfig::default()
    };
    let worker = Arc::new(Worker::start(&world.db, config).await.unwrap());
    worker.handle_with(Handlers::default().with("H", |_: Arc<Step>| async { Ok(json!("done")) }));
    worker
}

impl World {
    async fn ends(&self, task: Uuid) -> String {
        wait_for_end(&self.db, task, Some(Duration::from_secs(60))).await.unwrap()
    }

    /// Waits until a query says true.
    async fn becomes_true(&self, sql: &str) {
        let asking = async {
            while !sqlx::query_scalar::<_, bool>(sql).fetch_one(&self.pool).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asking)
            .await
            .unwrap_or_else(|_| panic!("{sql}"));
    }

    fn repair(&self, namespaces: &[&str]) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_tasker"))
            .args(["queue", "repair", "--json"])
            .args(namespaces)
            .env("DATABASE_URL", &self.url)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_queue_stops_nobody_else_and_is_repaired_without_a_loss() {
    World::with(async |world| {
        for template in [HERE, THERE, ACROSS] {
            world.register(template).await;
        }
        let lost = world.submit("one", json!({})).await;
        world.claim().await;
        world.run("DROP TABLE pgmq.q_here_queue").await;

        let serve = Serve::start(&world.url, &[], &[]);
        let there = worker(world, &["there"]).await;
        let waiting = world.submit("one", json!({})).await;
        world
            .becomes_true("SELECT EXISTS (SELECT FROM tasker.broken_queues WHERE queue = 'here_queue')")
            .await;
        for _ in 0..3 {
            let task = world.submit("other", json!({})).await;
            assert_eq!(world.ends(task).await, "complete");
        }
        // What goes on there waits for the queue alone.
        let across = world.submit("across", json!({})).await;
        world
            .becomes_true(&format!(
                "SELECT EXISTS (SELECT FROM tasker.steps WHERE task_id = '{across}' AND step = 1)"
            ))
            .await;
        assert_eq!(world.step_states(across).await, ["complete", "waiting"]);
        let shown = world.task(across).await;
        assert!(
            shown["steps"][1]["waits_for"].as_str().unwrap().starts_with("the queue here_queue"),
            "{shown}"
        );
        // Nor is what concerns it stopped: a task of it can be cancelled.
        let cancelled = world.submit("across", json!({})).await;
        world.text(&format!("SELECT tasker.cancel_tasks('{{{cancelled}}}')::text")).await;

        let ready = serve
            .until("/ready", |status, body| status == 200 && body["warnings"] != json!([]))
            .await;
        let warned = ready["warnings"][0].as_str().unwrap();
        assert!(warned.contains("here_queue cannot be worked with"), "{warned}");
        let detailed = serve.get("/health/detailed").1;
        assert!(detailed["fleet"]["broken_queues"]["here_queue"]["why"].is_string(), "{detailed}");
        assert!(detailed["fleet"]["namespaces"]["there"].is_object(), "{detailed}");

        let repaired = world.repair(&[]);
        assert_eq!(
            (&repaired[0]["namespace"], &repaired[0]["messages"]),
            (&json!("here"), &json!(1)),
            "{repaired}"
        );
        let here = worker(world, &["here"]).await;
        for task in [lost, waiting, across] {
            assert_eq!(world.ends(task).await, "complete");
        }
        assert_eq!(world.repair(&[]), json!([]));
        serve.until("/ready", |_, body| body["warnings"] == json!([])).await;
        here.shutdown(Duration::from_secs(5)).await;
        there.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_held_back_too_late_is_freed_all_the_same() {
    World::with(async |world| {
        world.register(HERE).await;
        let serve = Serve::start(&world.url, &[], &[]);
        serve.until("/ready", |_, body| body["warnings"] == json!([])).await;
        let task = world.submit("one", json!({})).await;
        world.becomes_true("SELECT EXISTS (SELECT FROM pgmq.q_here_queue)").await;
        // As a transaction leaves it that saw the queue broken, and ended after it was healed and looked at.
        world
            .run("DELETE FROM pgmq.q_here_queue; UPDATE tasker.steps SET state = 'waiting_retry', retry_at = 'infinity', msg_id = NULL")
            .await;
        let here = worker(world, &["here"]).await;
        assert_eq!(world.ends(task).await, "complete");
        here.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_locked_stops_nobody_else_and_goes_on_by_itself() {
    World::with(async |world| {
        for template in [HERE, THERE, ACROSS] {
            world.register(template).await;
        }
        let serve = Serve::start(&world.url, &[], &[]);
        let both = worker(world, &["here", "there"]).await;
        let mut locking = PgConnection::connect(&world.url).await.unwrap();
        locking.execute("BEGIN; LOCK TABLE pgmq.q_here_queue").await.unwrap();
        let waiting = world.submit("one", json!({})).await;
        world.becomes_true("SELECT EXISTS (SELECT FROM tasker.broken_queues)").await;
        let across = world.submit("across", json!({})).await;
        let task = world.submit("other", json!({})).await;
        assert_eq!(world.ends(task).await, "complete");
        let refused = world.db.repair_queue("here").await.unwrap_err().to_string();
        assert!(refused.contains("is locked by process"), "{refused}");
        locking.execute("COMMIT").await.unwrap();
        for task in [waiting, across] {
            assert_eq!(world.ends(task).await, "complete");
        }
        world.becomes_true("SELECT NOT EXISTS (SELECT FROM tasker.broken_queues)").await;
        serve.until("/ready", |_, body| body["warnings"] == json!([])).await;
        both.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_damaged_of_a_queue_is_made_anew() {
    World::with(async |world| {
        world.register(HERE).await;
        for damage in [
            "DROP TABLE pgmq.q_here_queue",
            "DROP TABLE pgmq.q_here_queue, pgmq.q_here_queue_dlq",
            "ALTER TABLE pgmq.q_here_queue DROP COLUMN vt",
            "ALTER TABLE pgmq.q_here_queue ALTER COLUMN message TYPE text",
            "ALTER TABLE pgmq.q_here_queue ALTER COLUMN msg_id DROP IDENTITY",
            "ALTER TABLE pgmq.q_here_queue ADD CHECK (read_ct < 1) NOT VALID",
            "CREATE RULE nothing AS ON INSERT TO pgmq.q_here_queue DO INSTEAD NOTHING",
            "DROP FUNCTION tasker.here_queue_lease",
            "CREATE OR REPLACE FUNCTION tasker.here_queue_delete(INOUT ids bigint[], p_fences int[], INOUT tasks uuid[], INOUT steps smallint[], \
             INOUT results text[], OUT started timestamptz[]) LANGUAGE plpgsql AS 'BEGIN RAISE division_by_zero; END'",
        ] {
            let task = world.submit("one", json!({})).await;
            world.claim().await;
            let held = world.lease("here_queue", 1).await;
            world.run(damage).await;
            let repaired = world.repair(&["here"]);
            assert!(repaired[0]["found"].is_string(), "{damage}: {repaired}");
            assert_eq!(world.text("SELECT coalesce((SELECT why FROM tasker.try_queue('here_queue')), 'works')").await, "works");
            let again = world.lease("here_queue", 1).await;
            // Where the queue was made anew, the report of whoever had the step is stale.
            let counted = match again.as_slice() {
                [again] => {
                    assert_ne!(again.msg_id, held[0].msg_id, "{damage}");
                    assert!(world.complete(&held, "null").await.is_empty(), "{damage}");
                    world.complete(std::slice::from_ref(again), "null").await
                }
                _ => world.complete(&held, "null").await,
            };
            assert_eq!(counted.len(), 1, "{damage}");
            assert_eq!(world.task(task).await["state"], "complete", "{damage}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_were_lost_come_back_but_for_those_that_somebody_discarded() {
    World::with(async |world| {
        world.register(HERE).await;
        world.set_rules("here", json!(Rules::default())).await.unwrap();
        for n in 0..3 {
            world.submit("one", json!({ "n": n })).await;
        }
        world.claim().await;
        for step in world.lease("here_queue", 3).await {
            assert!(world.fail(&step, "no", true, None).await);
        }
        let letters = world.dead_letters("here").await;
        world
            .text("SELECT tasker.delete_dead_letters('{here/2}', 'discard', 'me', NULL)")
            .await;
        world.run("DROP TABLE pgmq.q_here_queue_dlq").await;
        world.db.migrate().await.unwrap();
        let restored = world.dead_letters("here").await;
        let told = |letters: &[Value]| -> Vec<(Value, Value, Value)> {
            let of = |letter: &Value| (letter["task"].clone(), letter["errors"].clone(), letter["input"].clone());
            letters.iter().map(of).collect()
        };
        assert_eq!(told(&restored), told(&[letters[0].clone(), letters[2].clone()]));
    })
    .await;
}
