//! Unique tasks: of those that are the same there is one at a time.

use chrono::{TimeDelta, Utc};
use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitted, Submitter};
use tasker::template::Unique;
use tasker::{Error, Template};
use uuid::Uuid;

use super::world::World;

fn task(input: Value, rule: Option<Value>) -> NewTask {
    NewTask {
        input: input.into(),
        unique: rule.map(|rule| Unique::parse(&rule).unwrap()),
        ..NewTask::default()
    }
}

async fn create(world: &World, tasks: Vec<NewTask>) -> tasker::Result<Vec<Submitted>> {
    Submitter::new(world.db.clone()).submit("sync", None, &tasks).await
}

/// Whether it is a new one, and which.
async fn submit(world: &World, input: Value) -> (bool, Uuid) {
    let submitted = create(world, vec![task(input, None)]).await.unwrap().remove(0);
    (submitted.created, submitted.id)
}

async fn register(world: &World, unique: &str) {
    let template =
        format!("name: sync\nnamespace: here\nunique: {unique}\nsteps: [{{ name: s, handler: h, retry: {{ max_attempts: 1 }} }}]");
    world.register(&template).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_task_is_live_another_that_is_the_same_is_that_one() {
    World::with(async |world| {
        register(world, "{ by: [customer.id, kind] }").await;
        let same = json!({ "customer": { "id": 7 }, "kind": "full", "more": 1 });
        let first = submit(world, same.clone()).await;
        assert!(first.0);
        assert_eq!(
            submit(world, json!({ "customer": { "id": 7 }, "kind": "full" })).await,
            (false, first.1)
        );
        assert!(submit(world, json!({ "customer": { "id": 8 }, "kind": "full" })).await.0);
        assert!(
            submit(world, json!({ "customer": { "id": 7 } })).await.0,
            "what is not there is different, too"
        );
        world.claim().await;
        assert_eq!(submit(world, same.clone()).await, (false, first.1), "it runs");
        for (n, leased) in world.lease("here_queue", 9).await.into_iter().enumerate() {
            match n {
                0 => drop(world.complete(&[leased], "{}").await),
                _ => drop(world.fail(&leased, "no", true, None).await),
            }
        }
        assert!(submit(world, same.clone()).await.0, "it is complete");
        let (new, blocked) = submit(world, json!({ "customer": { "id": 8 }, "kind": "full" })).await;
        assert!(new, "the one before is blocked, and waits for somebody");
        tasker::engine::cancel::cancel_tasks(&world.db, &[blocked]).await.unwrap();
        assert!(submit(world, json!({ "customer": { "id": 8 }, "kind": "full" })).await.0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_to_begin_stands_for_those_that_come_and_cannot_begin_before_they_are_there() {
    World::with(async |world| {
        register(world, "{ while: queued }").await;
        let same = json!({ "customer": 7 });
        let (_, first) = submit(world, same.clone()).await;
        let mut writes = world.pool.begin().await.unwrap();
        let (id, created): (Uuid, bool) =
            sqlx::query_as("SELECT id, created FROM tasker.create_tasks('sync', ARRAY['{\"customer\": 7}'::jsonb])")
                .fetch_one(&mut *writes)
                .await
                .unwrap();
        assert_eq!((id, created), (first, false));
        assert_eq!(world.claim().await, 0, "what it is to see is not committed yet");
        writes.commit().await.unwrap();
        assert_eq!(world.claim().await, 1);
        let (new, second) = submit(world, same.clone()).await;
        assert!(new, "the first may have read before this one came");
        assert_eq!(submit(world, same).await, (false, second));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_come_at_once_one_is_created() {
    World::with(async |world| {
        register(world, "{ by: customer }").await;
        let submitter = Submitter::new(world.db.clone());
        let submissions = (0..20).map(|n| {
            let submitter = submitter.clone();
            let tasks: Vec<_> = (0..10)
                .map(|customer| task(json!({ "customer": (customer * 7 + n) % 10 }), None))
                .collect();
            tokio::spawn(async move { submitter.submit("sync", None, &tasks).await.unwrap() })
        });
        let mut created = 0;
        for submission in submissions.collect::<Vec<_>>() {
            created += submission.await.unwrap().iter().filter(|task| task.created).count();
        }
        assert_eq!((created, world.count("SELECT count(*) FROM tasker.tasks").await), (10, 10));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_the_new_one_and_of_the_other_is_for_the_rule_to_say() {
    World::with(async |world| {
        register(world, "{ by: customer, on_conflict: reject }").await;
        let (_, first) = submit(world, json!({ "customer": 1 })).await;
        let refused = create(
            world,
            vec![task(json!({ "customer": 2 }), None), task(json!({ "customer": 1 }), None)],
        )
        .await;
        assert!(
            matches!(&refused, Err(Error::NotUnique { task, message }) if *task == first && message.contains("unique")),
            "{refused:?}"
        );
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 1, "all, or none");
        let twice = create(
            world,
            vec![task(json!({ "customer": 3 }), None), task(json!({ "customer": 3 }), None)],
        )
        .await;
        assert!(matches!(twice, Err(Error::NotUnique { .. })));

        let replace = json!({ "by": "customer", "on_conflict": "replace" });
        let second = create(world, vec![task(json!({ "customer": 1, "n": 2 }), Some(replace))])
            .await
            .unwrap()
            .remove(0);
        assert!(second.created);
        assert_eq!(world.task(first).await["state"], "cancelled");

        let reschedule = |n: i32, wait: i64| NewTask {
            run_at: Some(Utc::now() + TimeDelta::hours(wait)),
            ..task(
                json!({ "customer": 9, "n": n }),
                Some(json!({ "by": "customer", "on_conflict": "reschedule" })),
            )
        };
        let (calm, later) = (
            create(world, vec![reschedule(1, 1)]).await.unwrap(),
            create(world, vec![reschedule(2, 5)]).await.unwrap(),
        );
        assert_eq!((calm[0].id, calm[0].created, later[0].created), (later[0].id, true, false));
        let seen = world.task(calm[0].id).await;
        assert_eq!((&seen["input"]["n"], &seen["state"]), (&json!(2), &json!("waiting")));
        assert_eq!(
            world
                .count("SELECT count(*) FROM tasker.tasks WHERE due_at > now() + interval '4 hours'")
                .await,
            1
        );
        let now = create(
            world,
            vec![NewTask {
                run_at: None,
                ..reschedule(3, 0)
            }],
        )
        .await
        .unwrap();
        assert_eq!((now[0].id, &world.task(calm[0].id).await["state"]), (calm[0].id, &json!("pending")));
        world.claim().await;
        assert!(
            create(world, vec![reschedule(4, 1)]).await.unwrap()[0].created,
            "what has begun cannot begin later"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_time_one_counts_that_is_complete_and_then_none_that_runs() {
    World::with(async |world| {
        register(world, "{ by: customer, within: 1h }").await;
        let same = json!({ "customer": 1 });
        let (_, first) = submit(world, same.clone()).await;
        world.claim().await;
        let leased = world.lease("here_queue", 1).await;
        world.complete(&leased, "{}").await;
        assert_eq!(submit(world, same.clone()).await, (false, first));
        world
            .run("UPDATE tasker.tasks SET created_at = created_at - interval '61 minutes'")
            .await;
        let (new, second) = submit(world, same.clone()).await;
        assert!(new);
        world
            .run("UPDATE tasker.tasks SET created_at = created_at - interval '61 minutes'")
            .await;
        let live = || Some(json!({ "by": "customer", "while": "live" }));
        let both = || Some(json!({ "by": "customer", "while": "live", "within": "1h" }));
        assert_eq!(create(world, vec![task(same.clone(), live())]).await.unwrap()[0].id, second);
        assert!(
            create(world, vec![task(same.clone(), both())]).await.unwrap()[0].created,
            "it is live, but not new"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_call_the_first_counts_or_the_last_where_that_is_newer_and_a_known_key_is_no_new_task() {
    World::with(async |world| {
        register(world, "{ by: customer, on_conflict: reschedule }").await;
        let numbered = |n: i32, rule: Option<Value>| task(json!({ "customer": 1, "n": n }), rule);
        let made = create(world, vec![numbered(1, None), numbered(2, None)]).await.unwrap();
        assert_eq!((made[0].id, made[0].created, made[1].created), (made[1].id, false, true));
        assert_eq!(world.task(made[0].id).await["input"]["n"], 2);
        let first = |n: i32| numbered(n, Some(json!({ "by": "n" })));
        let made = create(world, vec![first(7), first(7), first(8)]).await.unwrap();
        assert_eq!(made.iter().map(|task| task.created).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(made[0].id, made[1].id);

        let keyed = |key: &str, n: i32| NewTask {
            key: Some(key.into()),
            ..numbered(n, Some(json!({ "by": "n", "on_conflict": "replace" })))
        };
        let one = create(world, vec![keyed("a", 20)]).await.unwrap().remove(0);
        let again = create(world, vec![keyed("a", 20)]).await.unwrap().remove(0);
        assert_eq!((again.id, again.created), (one.id, false));
        assert_eq!(world.task(one.id).await["state"], "pending");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_stand_in_nobodys_way_is_forgotten() {
    World::with(async |world| {
        register(world, "{ by: customer }").await;
        submit(world, json!({ "customer": 1 })).await;
        world.claim().await;
        let leased = world.lease("here_queue", 1).await;
        world.complete(&leased, "{}").await;
        submit(world, json!({ "customer": 2 })).await;
        let forget = "SELECT tasker.forget_uniques(10)::bigint";
        assert_eq!(world.count(forget).await, 0, "it is too early to look");
        world.run("UPDATE tasker.uniques SET look_at = now() - interval '1 second'").await;
        assert_eq!(
            (world.count(forget).await, world.count("SELECT count(*) FROM tasker.uniques").await),
            (2, 1)
        );
        assert!(!submit(world, json!({ "customer": 2 })).await.0, "that one is live");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_none_says_so_where_it_is_written_and_where_it_is_sent() {
    let refused = |rule: &str| {
        let template = format!("name: t\nnamespace: here\nunique: {rule}\nsteps: [{{ name: s, handler: h }}]");
        Template::parse(&template, "t.yml").unwrap_err().to_string()
    };
    assert!(refused("{ by: '$.input[' }").starts_with("t.yml:3: unique: by has \"$.input[\", which is no SQL/JSON path"));
    assert!(refused("{ by: $.results.s }").contains("asks for the result of s"));
    assert!(refused("{ while: done }").contains("while is \"done\": expected queued, running or live"));
    assert!(refused("{ within: soon }").contains("within is \"soon\": expected a duration such as \"1h\""));
    assert!(refused("{ on_conflict: ignore }").contains("expected return, reject, replace or reschedule"));
    assert!(refused("{ while: live, on_conflict: reschedule }").contains("expected while: queued"));
    assert!(refused("{ per: customer }").contains("unknown field `per`"));
    World::with(async |world| {
        world.register("name: sync\nnamespace: here\nsteps: [{ name: s, handler: h }]").await;
        for rule in [r#"{"by": "a"}"#, r#"{"while": "x"}"#, r#"{"within": "1h"}"#, r#"{"on_conflict": 1}"#, r#"{"on_conflict": "reschedule"}"#, "[]", r#"{"x": 1}"#] {
            let create = format!("SELECT tasker.create_task('sync', '{{}}', p_unique => '{rule}')");
            let refused = sqlx::query(&create).execute(&world.pool).await.unwrap_err();
            assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "TK004", "{rule}");
        }
        world.count(r#"SELECT count(tasker.create_task('sync', '{}', p_unique => '{"within": {"secs": 60, "nanos": 0}}')) FROM generate_series(1, 3)"#).await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 1);
        let own = create(world, vec![task(json!({}), None)]).await.unwrap();
        assert!(own[0].created, "without a rule each is one of its own");
    })
    .await;
}
