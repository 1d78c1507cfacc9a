//! Bugs that other systems shipped: for each of them a test that would have caught it here.
//!
//! | theirs | ours |
//! | --- | --- |
//! | Solid Queue #589: finished and failed | [`a_step_is_finished_once_however_reports_and_expiring_leases_race`] |
//! | Solid Queue #422, #591: a crash is a failure | [`a_crash_is_no_failed_attempt`] |
//! | Solid Queue #748: an error while finishing | [`a_report_that_the_database_could_not_take_is_made_again`] |
//! | Solid Queue #778: heartbeat errors leave a zombie | `leases::a_worker_that_cannot_renew_gives_up_its_steps_and_stops_their_handlers` |
//! | Sidekiq #4635, #5540, #5719: orphans by the thousand | [`orphans_come_back_no_faster_than_a_worker_can_take_them`] |
//! | Sidekiq #4710: orphaned batches | [`what_no_transaction_of_ours_leaves_behind_is_found_mended_and_counted`] |
//! | Gush #46: a fan-in ran twice | [`a_fan_in_is_enqueued_once_though_all_its_parents_complete_at_the_same_time`] |
//! | River #1059: deadlocks | `crowds::siblings_completed_by_many_workers_in_any_order_do_not_deadlock` |
//! | River #695, #1077: maintenance starved by a full pool | [`leases_are_renewed_while_the_pool_is_exhausted`] |
//! | River #995: rescued while its completion waited | [`a_step_whose_completion_waits_is_not_rescued`] |
//! | Que #395: the queue of notifications fills | [`work_goes_on_without_notifications_while_they_are_stuck`] |
//! | Hatchet #2604, #4930: heartbeats and depth that cost more and more | [`a_claim_reads_no_more_of_a_deep_queue_than_its_target`] |
//! | awa #388: a bad row wedged its batch | [`a_bad_row_does_not_hold_up_its_batch`] |
//! | absurd, procrastinate and others: dead after a restart of PostgreSQL | [`every_loop_reconnects`] |
//! | payloads that stop a queue, fill the memory, or hide what is beside them | the file `large` |
//! | loops that walk through thousands of idle queues | the file `many_namespaces` |
//! | standbys, copies, encodings, settings and rights that are not as expected | the file `other_servers` |
//! | errors that cannot be described | spec/worker_spec.rb |

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker::engine::fail::Failure;
use tasker::engine::read::wait_for_end;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Worker, WorkerConfig};
use uuid::Uuid;

use crate::world::World;

const ONE: &str = "name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n";

async fn submit_many(world: &World, count: usize) -> Vec<Uuid> {
    let tasks: Vec<NewTask> = (0..count)
        .map(|n| NewTask {
            input: json!({ "n": n }).into(),
            ..NewTask::default()
        })
        .collect();
    let submitted = Submitter::new(world.db.clone()).submit("one", None, &tasks).await.unwrap();
    submitted.into_iter().map(|task| task.id).collect()
}

async fn worker(db: &tasker::Db, lease: Duration) -> Arc<Worker> {
    let config = WorkerConfig {
        namespaces: vec!["here".into()],
        lease,
        concurrency: 4,
        poll: Duration::from_millis(100),
        ..WorkerConfig::default()
    };
    Arc::new(Worker::start(db, config).await.unwrap())
}

async fn all_complete(world: &World, tasks: &[Uuid]) {
    for task in tasks {
        let state = wait_for_end(&world.db, *task, Some(Duration::from_secs(60))).await.unwrap();
        assert_eq!(state, "complete");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_finished_once_however_reports_and_expiring_leases_race() {
    World::with(async |world| {
        world.register(ONE).await;
        let tasks = submit_many(world, 200).await;
        world.claim().await;
        let first = world.lease("here_queue", 200).await;
        let completing = async {
            let mut counted = 0;
            for steps in first.chunks(10) {
                counted += world.complete(steps, "{}").await.len();
            }
            counted
        };
        let pruning = async {
            let mut counted = 0;
            for step in first.iter().rev() {
                world.expire(step).await;
                for step in world.lease("here_queue", 5).await {
                    counted += usize::from(world.fail(&step, "pruned", true, None).await);
                }
            }
            counted
        };
        let (completed, failed) = tokio::join!(completing, pruning);
        assert_eq!((completed + failed, completed > 0, failed > 0), (200, true, true));
        let mut dead = 0;
        for task in tasks {
            let step = world.task(task).await["steps"][0].clone();
            let errors = step["errors"].as_array().unwrap().len();
            let both = (step["state"].as_str().unwrap(), errors, step["result"].is_null());
            assert!([("complete", 0, false), ("dead", 1, true)].contains(&both), "{both:?}");
            dead += errors;
        }
        assert_eq!((dead, world.dead_letters("here").await.len()), (failed, failed));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_no_failed_attempt() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nretry: { max_attempts: 1 }\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let task = submit_many(world, 1).await[0];
        world.claim().await;
        for crashes in 0..3 {
            let step = world.lease("here_queue", 1).await.remove(0);
            assert_eq!((step.attempt, step.crashes), (1, crashes));
            world.expire(&step).await;
        }
        let step = world.lease("here_queue", 1).await.remove(0);
        assert_eq!(world.complete(&[step], "{}").await.len(), 1);
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_the_database_could_not_take_is_made_again() {
    World::with(async |world| {
        world.register(ONE).await;
        // A sequence is not rolled back: the first three reports find the disk full.
        let full = "
            CREATE SEQUENCE reports;
            CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('public.reports') <= 3 THEN RAISE 'no space left on device' USING ERRCODE = '53100'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER disk_full BEFORE UPDATE ON tasker.steps FOR EACH ROW EXECUTE FUNCTION disk_full()";
        sqlx::raw_sql(full).execute(&world.pool).await.unwrap();
        let tasks = submit_many(world, 1).await;
        world.claim().await;
        let worker = worker(&world.db, Duration::from_secs(30)).await;
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(1)) }));
        all_complete(world, &tasks).await;
        assert_eq!(world.count("SELECT last_value FROM reports").await, 4);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_come_back_no_faster_than_a_worker_can_take_them() {
    World::with(async |world| {
        world.register(ONE).await;
        submit_many(world, 3_000).await;
        world.claim().await;
        assert_eq!(world.lease("here_queue", 3_000).await.len(), 3_000);
        sqlx::query("UPDATE pgmq.q_here_queue SET vt = clock_timestamp()")
            .execute(&world.pool)
            .await
            .unwrap();
        let worker = worker(&world.db, Duration::from_secs(30)).await;
        let (begin, mut begun) = tokio::sync::mpsc::channel(100);
        worker.handle_with(Handlers::default().with("H", move |_| {
            let begin = begin.clone();
            async move {
                begin.send(()).await.ok();
                std::future::pending().await
            }
        }));
        for _ in 0..4 {
            begun.recv().await.unwrap();
        }
        // All four handlers are busy; whatever else it would take, it takes in its next polls.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let held = world
            .count("SELECT count(*) FROM pgmq.q_here_queue WHERE vt > clock_timestamp()")
            .await;
        assert!((4..=8).contains(&held), "{held} of 3,000 are held by a worker of 4 handlers");
        worker.shutdown(Duration::ZERO).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_transaction_of_ours_leaves_behind_is_found_mended_and_counted() {
    World::with(async |world| {
        let flow = "name: flow\nnamespace: here\nsteps:\n  - { name: a, handler: H }\n  - { name: b, handler: H }\n  - { name: c, handler: H, depends_on: [a, b] }\n";
        world.register(flow).await;
        let (purged, stopped, unfinished) = (
            world.submit("flow", json!({})).await,
            world.submit("flow", json!({})).await,
            world.submit("flow", json!({})).await,
        );
        world.claim().await;
        let held = world.lease("here_queue", 10).await;
        let sql = format!(
            "DELETE FROM pgmq.q_here_queue;
             UPDATE tasker.steps SET state = 'complete', msg_id = NULL WHERE task_id IN ('{stopped}', '{unfinished}');
             INSERT INTO tasker.steps (task_id, step, state, enqueued_at) VALUES ('{unfinished}', 2, 'complete', now())"
        );
        sqlx::raw_sql(&sql).execute(&world.pool).await.unwrap();
        // Two messages, a fan-in, and an end.
        assert_eq!((world.reconcile().await, world.reconcile().await, world.counter("reconciled").await), (4, 0, 4));
        assert_eq!(world.task(unfinished).await["state"], "complete");
        assert_eq!(world.step_states(stopped).await, ["complete", "complete", "enqueued"]);
        let of_purged: Vec<_> = held.iter().filter(|step| step.task_id == purged).cloned().collect();
        assert!(world.complete(&of_purged, "{}").await.is_empty(), "the old lease is stale");
        while let again @ [_, ..] = &world.lease("here_queue", 10).await[..] {
            world.complete(again, "{}").await;
        }
        for task in [purged, stopped] {
            assert_eq!(world.task(task).await["state"], "complete");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fan_in_is_enqueued_once_though_all_its_parents_complete_at_the_same_time() {
    World::with(async |world| {
        let leaves: Vec<String> = (0..12).map(|n| format!("  - {{ name: l{n}, handler: H }}\n")).collect();
        let names: Vec<String> = (0..12).map(|n| format!("l{n}")).collect();
        let join = format!("  - {{ name: join, handler: H, depends_on: [{}] }}\n", names.join(", "));
        world
            .register(&format!("name: fan\nnamespace: here\nsteps:\n{}{join}", leaves.concat()))
            .await;
        for _ in 0..10 {
            world.submit("fan", json!({})).await;
            world.claim().await;
            let parents = world.lease("here_queue", 12).await;
            let counted = futures_util::future::join_all(parents.iter().map(|step| world.complete(std::slice::from_ref(step), "{}"))).await;
            assert_eq!(counted.concat().len(), 12);
            let joins = world.lease("here_queue", 12).await;
            assert_eq!(joins.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["join"]);
            world.complete(&joins, "{}").await;
        }
    })
    .await;
}

/// Holds a table so that nobody else gets at it, until it is dropped.
async fn lock<'a>(world: &'a World, table: &str) -> sqlx::Transaction<'a, sqlx::Postgres> {
    let mut transaction = world.pool.begin().await.unwrap();
    sqlx::raw_sql(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_while_the_pool_is_exhausted() {
    World::with(async |world| {
        world.register(ONE).await;
        let tasks = submit_many(world, 1).await;
        world.claim().await;
        let db = tasker::Db::connect(&world.url, 4).await.unwrap();
        let lease = Duration::from_secs(1);
        let worker = worker(&db, lease).await;
        let (begin, mut begun) = tokio::sync::mpsc::channel(1);
        let (finish, finished) = tokio::sync::watch::channel(false);
        worker.handle_with(Handlers::default().with("H", move |_| {
            let (begin, mut finished) = (begin.clone(), finished.clone());
            async move {
                begin.send(()).await.ok();
                finished.wait_for(|done| *done).await.ok();
                Ok(json!(1))
            }
        }));
        begun.recv().await.unwrap();
        let locked = lock(world, "tasker.tasks").await;
        let submitter = Submitter::new(db.clone());
        let submitting: Vec<_> = (0..10)
            .map(|_| {
                let submitter = submitter.clone();
                tokio::spawn(async move {
                    submitter
                        .submit(
                            "one",
                            None,
                            &[NewTask {
                                input: json!({}).into(),
                                ..NewTask::default()
                            }],
                        )
                        .await
                })
            })
            .collect();
        tokio::time::sleep(3 * lease).await;
        locked.rollback().await.unwrap();
        finish.send(true).unwrap();
        all_complete(world, &tasks).await;
        for task in submitting {
            task.await.unwrap().unwrap();
        }
        assert_eq!(world.counter("stale_reports").await, 0);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_completion_waits_is_not_rescued() {
    World::with(async |world| {
        world.register(ONE).await;
        let tasks = submit_many(world, 1).await;
        world.claim().await;
        let lease = Duration::from_secs(1);
        let worker = worker(&world.db, lease).await;
        let (begin, mut begun) = tokio::sync::mpsc::channel(1);
        let (finish, finished) = tokio::sync::watch::channel(false);
        worker.handle_with(Handlers::default().with("H", move |_| {
            let (begin, mut finished) = (begin.clone(), finished.clone());
            async move {
                begin.send(()).await.ok();
                finished.wait_for(|done| *done).await.ok();
                Ok(json!(1))
            }
        }));
        begun.recv().await.unwrap();
        let locked = lock(world, "tasker.steps").await;
        finish.send(true).unwrap();
        let began = tokio::time::Instant::now();
        while began.elapsed() < 3 * lease {
            // A lease that finds the step would wait for the table.
            let rescued = tokio::time::timeout(Duration::from_secs(10), world.lease("here_queue", 1)).await;
            let rescued = rescued.map_or(1, |steps| steps.len());
            assert_eq!(rescued, 0, "another worker got the step while its completion waited");
            tokio::time::sleep(lease / 10).await;
        }
        locked.rollback().await.unwrap();
        all_complete(world, &tasks).await;
        assert_eq!(world.counter("stale_reports").await, 0);
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_without_notifications_while_they_are_stuck() {
    World::with(async |world| {
        let chain = "name: one\nnamespace: here\nsteps:\n  - { name: a, handler: H }\n  - { name: b, handler: H, depends_on: [a] }\n";
        world.register(chain).await;
        // Filling the real queue takes 8 GB.
        let stuck = "CREATE OR REPLACE FUNCTION tasker.notifications_are_stuck() RETURNS boolean LANGUAGE sql AS 'SELECT true'";
        sqlx::raw_sql(stuck).execute(&world.pool).await.unwrap();
        let mut listener = sqlx::postgres::PgListener::connect(&world.url).await.unwrap();
        listener.listen_all(["tasker_tasks", "tasker_steps"]).await.unwrap();
        let config = OrchestratorConfig {
            poll: Duration::from_millis(100),
            ..OrchestratorConfig::default()
        };
        let orchestrator = Orchestrator::start(&world.db, config).await.unwrap();
        let worker = worker(&world.db, Duration::from_secs(30)).await;
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(1)) }));
        let tasks = submit_many(world, 20).await;
        all_complete(world, &tasks).await;
        // Notifications come in order: were there any of ours, they would come before this one.
        sqlx::raw_sql("SELECT pg_notify('tasker_steps', 'the last')")
            .execute(&world.pool)
            .await
            .unwrap();
        assert_eq!(listener.recv().await.unwrap().payload(), "the last");
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_reads_no_more_of_a_deep_queue_than_its_target() {
    World::with(async |world| {
        world.register(ONE).await;
        submit_many(world, 1).await;
        let deep = "INSERT INTO pgmq.q_here_queue (vt, message) SELECT now(), '{}' FROM generate_series(1, 50000);
                    ANALYZE pgmq.q_here_queue";
        sqlx::raw_sql(deep).execute(&world.pool).await.unwrap();
        let mut transaction = world.pool.begin().await.unwrap();
        let read =
            "SELECT (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables WHERE relname = 'q_here_queue'";
        let member: i32 = sqlx::query_scalar("SELECT tasker.join_members('orchestrator', 'deep', 'test', '{}', interval '1 hour')")
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        let claimed: i32 = sqlx::query_scalar("SELECT claimed FROM tasker.claim_tasks($1, NULL, 1000, 200)")
            .bind(member)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
        let rows: i64 = sqlx::query_scalar(read).fetch_one(&mut *transaction).await.unwrap();
        assert_eq!(claimed, 0, "the queue is full");
        assert!(rows <= 1_001, "{rows} rows were read to see it");
        transaction.rollback().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_does_not_hold_up_its_batch() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nretry: { max_attempts: 1 }\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        // What PostgreSQL refuses for ever: an error that says so, and the same of a result.
        let refuse = "
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.result::text LIKE '%bad row%' OR NEW.errors::text LIKE '%bad row%' THEN RAISE 'no' USING ERRCODE = '22000'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON tasker.steps FOR EACH ROW EXECUTE FUNCTION refuse()";
        sqlx::raw_sql(refuse).execute(&world.pool).await.unwrap();
        let tasks = submit_many(world, 40).await;
        world.claim().await;
        let worker = worker(&world.db, Duration::from_secs(30)).await;
        worker.handle_with(Handlers::default().with("H", |step: Arc<tasker::worker::Step>| async move {
            let input: serde_json::Value = serde_json::from_str(&step.input().await.unwrap()).unwrap();
            match input["n"].as_i64().unwrap() {
                7 => Ok(json!("a bad row")),
                21 => Err(Failure::permanent("Oops", "a bad row")),
                n if n % 2 == 1 => Err(Failure::permanent("Oops", "a good one")),
                _ => Ok(json!("good")),
            }
        }));
        let mut classes = std::collections::BTreeMap::new();
        for task in &tasks {
            wait_for_end(&world.db, *task, Some(Duration::from_secs(60))).await.unwrap();
            let class = world.task(*task).await["steps"][0]["errors"][0]["class"].clone();
            *classes.entry(class.as_str().unwrap_or("none").to_owned()).or_insert(0) += 1;
        }
        let expected = [("ErrorRefused", 1), ("Oops", 18), ("ResultRefused", 1), ("none", 20)];
        assert_eq!(
            classes.into_iter().collect::<Vec<_>>(),
            expected.map(|(class, count)| (class.to_owned(), count))
        );
        worker.shutdown(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_loop_reconnects() {
    World::with(async |world| {
        world.register(ONE).await;
        let orchestrator = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        let worker = worker(&world.db, Duration::from_secs(2)).await;
        worker.handle_with(Handlers::default().with("H", |_| async { Ok(json!(1)) }));
        for _ in 0..3 {
            let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name = 'tasker'";
            assert!(world.count(all).await > 0);
            let submitter = Submitter::new(world.db.clone());
            let task = NewTask {
                input: json!({}).into(),
                ..NewTask::default()
            };
            let task = loop {
                match submitter.submit("one", None, std::slice::from_ref(&task)).await {
                    Ok(submitted) => break submitted[0].id,
                    Err(error) => assert!(error.to_string().contains("PostgreSQL"), "{error}"),
                }
            };
            all_complete(world, &[task]).await;
        }
        assert!(worker.health().beats().late().is_empty() && orchestrator.health().beats().late().is_empty());
        worker.shutdown(Duration::from_secs(5)).await;
        orchestrator.shutdown().await;
    })
    .await;
}
