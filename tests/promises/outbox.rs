//! What has happened is written down where somebody wants to know it, put in an order in which nothing is missing, and kept for a while.

use std::collections::BTreeSet;

use serde_json::{json, Value};
use sqlx::{Connection, Executor, PgConnection};
use tasker::engine::shards::Shards;
use tasker::engine::subscriptions;

use crate::api::Asked;
use crate::sink::Sink;
use crate::subscriptions::{handlers, orchestrator, subscribe, CHAIN, TYPES};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_has_subscribed_nothing_is_written_and_nothing_is_looked_at() {
    World::with(async |world| {
        world.register(CHAIN).await;
        let written = "(SELECT count(*) FROM tasker.outbox) + (SELECT count(*) FROM tasker.events)
                       + coalesce(pg_sequence_last_value(pg_get_serial_sequence('tasker.outbox', 'id')::regclass), 0)";
        let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tell%'";
        let worker = world.worker(handlers()).await;
        let orchestrator = orchestrator(world).await;
        let task = world.submit("chain", json!({})).await;
        tasker::engine::read::wait_for_end(&world.db, task, None).await.unwrap();
        assert_eq!(world.count(&format!("SELECT {written}")).await, 0);
        assert_eq!(world.count(triggers).await, 0);

        subscribe(world, "all", json!({ "types": TYPES, "pull": true })).await;
        assert!(world.count(triggers).await > 0);
        let task = world.submit("chain", json!({})).await;
        tasker::engine::read::wait_for_end(&world.db, task, None).await.unwrap();
        world.until_true("count(*) = 7 FROM tasker.events").await;

        subscriptions::delete(&Shards::of(&world.db), "all").await.unwrap();
        // As retention does, by and by.
        while world.count(triggers).await > 0 {
            sqlx::query("SELECT tasker.unwatch()").execute(&world.pool).await.ok();
        }
        let task = world.submit("chain", json!({})).await;
        tasker::engine::read::wait_for_end(&world.db, task, None).await.unwrap();
        assert_eq!(world.count("SELECT count(*) FROM tasker.outbox").await, 0);
        assert_eq!(world.count("SELECT count(*) FROM tasker.events").await, 7);
        orchestrator.shutdown().await;
        worker.shutdown(std::time::Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ids_are_those_that_the_events_of_a_task_have_when_they_are_listed() {
    World::with(async |world| {
        world.register(CHAIN).await;
        subscribe(world, "all", json!({ "types": TYPES, "pull": true })).await;
        let worker = world.worker(handlers()).await;
        let orchestrator = orchestrator(world).await;
        let task = world.submit("chain", json!({})).await;
        tasker::engine::read::wait_for_end(&world.db, task, None).await.unwrap();
        world.until_true("count(*) = 7 FROM tasker.events").await;
        let api = Asked::open(world, true).await;
        let ids = |listed: Value| -> BTreeSet<String> {
            let items = listed["items"].as_array().unwrap().iter();
            items.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
        };
        let told = ids(api.get("/subscriptions/all/events?cursor=default=0").body);
        let listed = ids(api.get(&format!("/tasks/{task}/events")).body);
        assert_eq!(told.len(), 7);
        assert!(told.is_subset(&listed), "{told:#?} {listed:#?}");
        orchestrator.shutdown().await;
        worker.shutdown(std::time::Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_late_is_told_late_and_holds_up_nobody() {
    World::with(async |world| {
        world.register(CHAIN).await;
        subscribe(world, "all", json!({ "types": ["task.created"], "pull": true })).await;
        let mut late = PgConnection::connect(&world.url).await.unwrap();
        let mut transaction = late.begin().await.unwrap();
        transaction
            .execute("SELECT tasker.create_task('chain', '{}', p_key => 'late')")
            .await
            .unwrap();
        let order = async || world.count("SELECT tasker.order_events(100)::bigint").await;
        for round in 0..5 {
            world.submit("chain", json!({})).await;
            assert_eq!(order().await, 1, "round {round}");
        }
        transaction.commit().await.unwrap();
        assert_eq!(order().await, 1);
        let told = world
            .text("SELECT data ->> 'key' FROM tasker.events ORDER BY position DESC LIMIT 1")
            .await;
        assert_eq!(told, "late");
        for _ in 0..3 {
            assert_eq!(order().await, 0);
        }
        let settled = "mark > (SELECT last_value FROM tasker.outbox_id_seq) FROM tasker.event_order";
        assert_eq!(
            world.count(&format!("SELECT (SELECT {settled})::int::bigint")).await,
            1,
            "nothing is read again"
        );
    })
    .await;
}

#[test]
fn however_transactions_commit_and_events_are_put_in_order_none_is_missing_twice_there_or_before_what_led_to_it() {
    use proptest::prelude::*;
    // Of three sessions: one step of a task each, a commit or a rollback; and how many events are put in order in between.
    let turns = proptest::collection::vec(
        (0..3_usize, prop_oneof![4 => Just('w'), 2 => Just('c'), 1 => Just('r')], 0..4_i32),
        1..40,
    );
    World::for_any(12, turns, async |world, turns| {
        world.run("SELECT tasker.watch(t) FROM tasker.unwatched() AS t").await;
        world
            .run("DROP TABLE IF EXISTS public.written; CREATE TABLE public.written (n bigint, id bigint)")
            .await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let mut session = PgConnection::connect(&world.url).await.unwrap();
            session.execute("BEGIN").await.unwrap();
            sessions.push(session);
        }
        for (n, (session, what, order)) in turns.iter().enumerate() {
            let sql = match what {
                'w' => format!(
                    "WITH told AS (INSERT INTO tasker.outbox (type, at) VALUES ('{n}', clock_timestamp()) RETURNING id)
                     INSERT INTO public.written SELECT {n}, id FROM told"
                ),
                'c' => "COMMIT; BEGIN".into(),
                _ => "ROLLBACK; BEGIN".into(),
            };
            sqlx::raw_sql(&sql).execute(&mut sessions[*session]).await.unwrap();
            if *order > 0 {
                world.run(&format!("SELECT tasker.order_events({order})")).await;
            }
        }
        for session in &mut sessions {
            session.execute("COMMIT").await.unwrap();
        }
        while world.count("SELECT tasker.order_events(2)::bigint").await > 0 {}
        let told = world
            .text("SELECT coalesce(string_agg(type, ' ' ORDER BY type::int), '') FROM tasker.events")
            .await;
        let written = world
            .text("SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM public.written")
            .await;
        assert_eq!(told, written);
        // What a session had committed before another wrote is before that.
        assert_eq!(
            world.count("SELECT count(DISTINCT position) - count(*) FROM tasker.events").await,
            0
        );
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_failures_and_what_operators_do_about_them_are_told() {
    World::with(async |world| {
        world.register("{ name: once, namespace: here, steps: [{ name: a, handler: H, retry: { max_attempts: 2 } }] }").await;
        subscribe(
            world,
            "letters",
            json!({ "types": ["step.failed", "step.dead", "dead_letter.created", "dead_letter.replayed", "task.blocked", "task.paused", "task.resumed"], "pull": true }),
        )
        .await;
        let task = world.submit("once", json!({})).await;
        world.run(&format!("SELECT tasker.pause_tasks('{{{task}}}', 'ann', NULL); SELECT tasker.resume_tasks('{{{task}}}')")).await;
        world.claim().await;
        let leased = world.lease("here_queue", 1).await;
        assert!(world.fail(&leased[0], "no answer", false, Some(0.0)).await);
        assert_eq!(world.enqueue_due_retries().await, 1);
        let leased = world.lease("here_queue", 1).await;
        assert!(world.fail(&leased[0], "no answer", false, None).await);
        world.replay_all("here").await;
        world.run("SELECT tasker.order_events(100)").await;
        let api = Asked::open(world, true).await;
        let told = api.get("/subscriptions/letters/events?cursor=default=0").body;
        let told: Vec<Value> = told["items"].as_array().unwrap().clone();
        let of = |event: &Value| format!("{} {}", event["type"].as_str().unwrap(), event["data"]["error"]["message"].as_str().unwrap_or("-"));
        assert_eq!(
            told.iter().map(of).collect::<Vec<_>>(),
            [
                "tasker.task.paused -",
                "tasker.task.resumed -",
                "tasker.step.failed no answer",
                "tasker.step.dead no answer",
                "tasker.dead_letter.created no answer",
                "tasker.task.blocked -",
                "tasker.dead_letter.replayed -",
                "tasker.task.resumed -",
            ]
        );
        assert_eq!((&told[2]["data"]["attempt"], &told[3]["data"]["attempt"]), (&json!(1), &json!(2)));
        assert_eq!(told[4]["data"]["reason"], "attempts_exhausted");
        assert_eq!((&told[0]["data"]["who"], &told[6]["data"]["who"]), (&json!("ann"), &json!("test")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_events_gets_them_page_by_page_or_as_they_happen_and_goes_on_where_it_was() {
    use std::io::{BufRead, BufReader};
    World::with(async |world| {
        world.register(CHAIN).await;
        let api = Asked::open(world, true).await;
        assert_eq!(api.get("/subscriptions/mine/events").status, 404);
        subscribe(world, "mine", json!({ "types": ["task.created"], "pull": true })).await;
        let begin = api.get("/subscriptions/mine/events").body;
        assert_eq!(begin["items"], json!([]));
        for n in 0..5 {
            world.submit("chain", json!({ "n": n })).await;
        }
        world.run("SELECT tasker.order_events(100)").await;
        let (mut cursor, mut seen) = (begin["next"].as_str().unwrap().to_owned(), Vec::new());
        for _ in 0..4 {
            let page = api.get(&format!("/subscriptions/mine/events?limit=2&cursor={cursor}")).body;
            seen.extend(page["items"].as_array().unwrap().clone());
            cursor = page["next"].as_str().unwrap().to_owned();
        }
        let sequences: Vec<&str> = seen.iter().map(|event| event["sequence"].as_str().unwrap()).collect();
        assert!(sequences.len() == 5 && sequences.is_sorted(), "{sequences:?}");
        assert_eq!(api.get("/subscriptions/mine/events?cursor=wrong").status, 400);

        let url = format!("http://{}/api/v1/subscriptions/mine/events", api.address());
        let third = begin["next"].as_str().unwrap().split_once('=').unwrap().0.to_owned() + "=" + sequences[2].trim_start_matches('0');
        let follow = move |count: usize| {
            let answer = ureq::get(&url)
                .header("accept", "text/event-stream")
                .header("last-event-id", &third)
                .call()
                .unwrap();
            let lines = BufReader::new(answer.into_body().into_reader()).lines().map(Result::unwrap);
            let events = lines.filter_map(|line| Some(serde_json::from_str::<Value>(line.strip_prefix("data: ")?).unwrap()));
            events.take(count).collect::<Vec<_>>()
        };
        let following = tokio::task::spawn_blocking(move || follow(3));
        world
            .until_true("EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pull_events%' AND datname = current_database())")
            .await;
        world.submit("chain", json!({ "n": 5 })).await;
        world.run("SELECT tasker.order_events(100)").await;
        let heard = following.await.unwrap();
        assert_eq!(heard[..2], seen[3..], "those that it has not had");
        assert_eq!(heard[2]["type"], "tasker.task.created");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_forgotten_when_they_are_old_and_everybody_has_had_them() {
    World::with(async |world| {
        world.register(CHAIN).await;
        let sink = Sink::open().await;
        subscribe(world, "hooks", json!({ "types": ["task.created"], "webhook": { "url": sink.url } })).await;
        for _ in 0..10 {
            world.submit("chain", json!({})).await;
        }
        world.run("SELECT tasker.order_events(100)").await;
        let forget = async || world.count("SELECT tasker.forget_events(interval '0', 100)::bigint").await;
        assert_eq!(forget().await, 0, "one has not had them");
        let orchestrator = orchestrator(world).await;
        sink.until_taken(10).await;
        world.until_true("delivered = 10 FROM tasker.deliveries").await;
        orchestrator.shutdown().await;
        assert_eq!(
            world.count("SELECT tasker.forget_events(interval '1 hour', 100)::bigint").await,
            0,
            "they are young"
        );
        assert_eq!(forget().await, 10);
    })
    .await;
}
