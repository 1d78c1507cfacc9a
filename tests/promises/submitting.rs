//! The door: tasks come in whole or not at all, once for every key, and bad input is told what was expected.

use serde_json::{json, Value};
use tasker::config::LogConfig;
use tasker::engine::payload::MAX_PAYLOAD_BYTES;
use tasker::engine::submit::{NewTask, Submitter};
use tasker::{Error, Priority};

use crate::world::World;

const ORDER: &str = "
name: order
namespace: here
input_schema: { type: object, required: [id], properties: { id: { type: integer } } }
steps:
  - { name: only, handler: H }
";

fn new(input: Value) -> NewTask {
    NewTask {
        input: input.into(),
        ..NewTask::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_from_twenty_callers_is_one_task() {
    World::with(async |world| {
        world.register(ORDER).await;
        let submitter = Submitter::new(world.db.clone());
        let submits = (0..20).map(|n| {
            let submitter = submitter.clone();
            tokio::spawn(async move {
                let task = NewTask {
                    key: Some("order-1".into()),
                    ..new(json!({ "id": n }))
                };
                submitter.submit("order", None, &[task]).await.unwrap().remove(0)
            })
        });
        let mut seen = Vec::new();
        for submit in submits.collect::<Vec<_>>() {
            seen.push(submit.await.unwrap());
        }
        assert!(seen.iter().all(|task| task.id == seen[0].id));
        assert_eq!(seen.iter().filter(|task| task.created).count(), 1);
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_quotes_of_an_input_what_is_short_and_may_be_told() {
    World::with(async |world| {
        world
            .register(
                "name: payment\nnamespace: here\ninput_schema: { type: object, properties: { note: { type: integer }, order: { type: integer }, \
                 card_number: { type: integer }, list: { type: integer } } }\nsteps: [{ name: only, handler: H }]\n",
            )
            .await;
        tasker::telemetry::log_as(&LogConfig {
            redact: vec!["card_number".into()],
            ..LogConfig::default()
        });
        let input = json!({ "note": "x".repeat(5_000), "order": "one", "card_number": "4111", "list": ["4111"] });
        let refused = Submitter::new(world.db.clone()).submit("payment", None, &[new(input)]).await;
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("/order: \"one\" is not of type"), "{told}");
        for path in ["/note", "/card_number", "/list"] {
            assert!(told.contains(&format!("{path}: the value is not of type")), "{told}");
        }
        assert!(!told.contains("4111") && told.len() < 500, "{told}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_character_u0000_is_refused_and_a_text_that_only_looks_like_it_is_not() {
    World::with(async |world| {
        world.register(ORDER).await;
        let submitter = Submitter::new(world.db.clone());
        let refused = submitter.submit("order", None, &[new(json!({ "id": 1, "text": "a\0" }))]).await;
        assert!(refused.unwrap_err().to_string().contains("U+0000"));
        submitter
            .submit("order", None, &[new(json!({ "id": 1, "text": "a\\u0000" }))])
            .await
            .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_within_one_batch_are_honoured_and_the_order_is_kept() {
    World::with(async |world| {
        world.register(ORDER).await;
        let task = |id: i32, key: Option<&str>| NewTask {
            key: key.map(str::to_owned),
            ..new(json!({ "id": id }))
        };
        let batch = [task(1, Some("b")), task(2, None), task(3, Some("a")), task(4, Some("b"))];
        let seen = Submitter::new(world.db.clone()).submit("here/order", None, &batch).await.unwrap();
        assert_eq!(seen.iter().map(|t| t.created).collect::<Vec<_>>(), [true, true, true, false]);
        assert_eq!(seen[3].id, seen[0].id);
        for (n, task) in seen[..3].iter().enumerate() {
            assert_eq!(world.task(task.id).await["input"]["id"], n + 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_what_was_expected_and_leaves_no_trace() {
    World::with(async |world| {
        world.register(ORDER).await;
        let submitter = Submitter::new(world.db.clone());
        let cases = [
            (vec![new(json!([1]))], "the input of a order must be a JSON object"),
            (vec![new(json!({}))], r#""id" is a required property"#),
            (
                vec![new(json!({ "id": 1 })), new(json!({ "id": "one" }))],
                r#"task 2 of 2: the input does not satisfy the input_schema of order: /id: "one" is not of type "integer""#,
            ),
            (vec![new(json!({ "id": 1, "note": "a\0b" }))], "U+0000"),
            (
                vec![NewTask {
                    key: Some(String::new()),
                    ..new(json!({ "id": 1 }))
                }],
                "key 1 must have 1 to 255 characters",
            ),
        ];
        for (tasks, expected) in cases {
            match submitter.submit("order", None, &tasks).await {
                Err(Error::Invalid(message)) => assert!(message.contains(expected), "{message:?} does not say {expected:?}"),
                other => panic!("{expected}: {other:?}"),
            }
        }
        let unknown = submitter.submit("orders", None, &[new(json!({}))]).await.unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "no template orders; register it first: tasker template register FILE, or start a worker that defines it; did you mean order?"
        );
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 0);
        assert_eq!(
            "huge".parse::<Priority>().unwrap_err(),
            r#"unknown priority "huge": expected low, normal, high or urgent"#
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_sql_client_enqueues_in_its_own_transaction() {
    World::with(async |world| {
        world.register(ORDER).await;
        let mut rolled_back = world.pool.begin().await.unwrap();
        sqlx::query("SELECT tasker.create_task('order', '{\"id\": 1}')")
            .execute(&mut *rolled_back)
            .await
            .unwrap();
        rolled_back.rollback().await.unwrap();
        assert_eq!(world.claim().await, 0);

        let create = "SELECT tasker.create_task('order', '{\"id\": 2}', p_priority => 'high', p_key => 'order-2')";
        let id: uuid::Uuid = sqlx::query_scalar(create).fetch_one(&world.pool).await.unwrap();
        assert_eq!(id.get_version_num(), 7);
        let again: uuid::Uuid = sqlx::query_scalar(create).fetch_one(&world.pool).await.unwrap();
        assert_eq!(again, id);
        assert_eq!(world.claim().await, 1);
        assert_eq!(world.task(id).await["priority"], "high");

        for (call, expected) in [
            ("tasker.create_task('order', '[]')", "input 1 is not a JSON object"),
            (
                "tasker.create_task('order', '{}', 'huge')",
                "unknown priority 'huge': use low, normal, high or urgent",
            ),
            ("tasker.create_task('nothing', '{}')", "no template nothing"),
        ] {
            let refused = sqlx::query(&format!("SELECT {call}")).execute(&world.pool).await.unwrap_err();
            assert_eq!(refused.as_database_error().unwrap().message(), expected);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_of_more_than_a_mebibyte_is_refused_by_the_library_and_by_sql() {
    World::with(async |world| {
        world.register(ORDER).await;
        let input = json!({ "id": 1, "note": "x".repeat(MAX_PAYLOAD_BYTES) });
        let by_library = Submitter::new(world.db.clone()).submit("order", None, &[new(input.clone())]).await;
        assert!(matches!(by_library, Err(Error::TooLarge(message)) if message.contains("at most 1048576 are accepted")));
        let by_sql = sqlx::query("SELECT tasker.create_task('order', $1)")
            .bind(input)
            .execute(&world.pool)
            .await;
        assert!(matches!(Error::from(by_sql.unwrap_err()), Error::TooLarge(message) if message.contains("keep it elsewhere")));
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_come_together_share_nothing_but_the_transaction() {
    World::with(async |world| {
        world.register(ORDER).await;
        world
            .register("name: other\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let submitter = Submitter::new(world.db.clone());
        submitter.submit("order", None, &[new(json!({ "id": 0 }))]).await.unwrap();
        let callers = (0..60).map(|n| {
            let submitter = submitter.clone();
            tokio::spawn(async move {
                let (template, key) = match n % 3 {
                    0 => ("order", None),
                    1 => ("other", None),
                    // Refused by PostgreSQL, not by us.
                    _ => ("order", Some("k".repeat(300))),
                };
                let task = NewTask {
                    key,
                    ..new(json!({ "id": n }))
                };
                (n, submitter.submit(template, None, &[task]).await)
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            let (n, submitted) = caller.await.unwrap();
            match (n % 3, submitted) {
                (2, Err(Error::Invalid(problem))) => assert!(problem.contains("must have 1 to 255 characters"), "{problem}"),
                (0 | 1, Ok(tasks)) => assert_eq!(world.task(tasks[0].id).await["input"], json!({ "id": n })),
                (_, unexpected) => panic!("{unexpected:?}"),
            }
        }
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 41);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitter_that_remembers_a_version_learns_of_the_next_one() {
    World::with(async |world| {
        world.register(ORDER).await;
        let submitter = Submitter::new(world.db.clone());
        let submit = async |input: Value| submitter.submit("order", None, &[new(input)]).await;
        submit(json!({ "id": 1 })).await.unwrap();
        world.register(&ORDER.replace("integer", "string")).await;
        let problem = submit(json!({ "id": 2 })).await.unwrap_err().to_string();
        assert!(problem.contains("/id"), "{problem}");
        let task = submit(json!({ "id": "three" })).await.unwrap()[0].id;
        assert_eq!(world.task(task).await["version"], "2");
        assert_eq!(
            submitter
                .submit("order", Some("1"), &[new(json!({ "id": 4 }))])
                .await
                .unwrap()
                .len(),
            1
        );
    })
    .await;
}
