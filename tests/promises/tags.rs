//! Tags: how tasks are found again.

use std::collections::BTreeMap;

use serde_json::{json, Value};
use tasker::engine::read::{list_tasks, TaskFilter};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::Template;
use uuid::Uuid;

use super::command_line::{json_of, tasker};
use super::world::World;

const ORDER: &str = "
name: order
namespace: here
tags: { customer: $.input.customer, paid: $.input.paid }
steps:
  - { name: lines, each: { over: '$.input.lines', handler: h } }
";

fn tags(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn submit(world: &World, input: Value, own: &[(&str, &str)]) -> tasker::Result<Uuid> {
    let task = NewTask {
        input: input.into(),
        tags: tags(own),
        ..NewTask::default()
    };
    Ok(Submitter::new(world.db.clone()).submit("order", None, &[task]).await?[0].id)
}

async fn found(world: &World, by: &[(&str, &str)]) -> Vec<Value> {
    let filter = TaskFilter {
        tags: tags(by),
        ..TaskFilter::default()
    };
    let tasks = list_tasks(&world.db, &filter, 100).await.unwrap();
    tasks.into_iter().map(|task| task["id"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_found_by_what_its_caller_and_its_template_say_and_so_are_its_children() {
    World::with(async |world| {
        world.register(ORDER).await;
        let one = submit(world, json!({ "customer": 42, "lines": [1, 2] }), &[("region", "eu")])
            .await
            .unwrap();
        let other = submit(world, json!({ "customer": 43, "paid": true, "lines": [] }), &[("customer", "acme")])
            .await
            .unwrap();
        assert_eq!(world.task(one).await["tags"], json!({ "customer": "42", "region": "eu" }));
        assert_eq!(world.task(other).await["tags"], json!({ "customer": "acme", "paid": "true" }));
        assert_eq!(found(world, &[("customer", "42")]).await, [json!(one)]);
        assert_eq!(found(world, &[("paid", "true"), ("customer", "acme")]).await, [json!(other)]);
        assert!(found(world, &[("paid", "true"), ("customer", "42")]).await.is_empty());
        world.claim().await;
        world.move_children(100).await;
        assert_eq!(found(world, &[("customer", "42")]).await.len(), 3);
        world
            .register("name: plain\nnamespace: here\nsteps:\n  - { name: a, handler: h }\n")
            .await;
        let plain = world.submit("plain", json!({})).await;
        assert_eq!(
            world
                .count(&format!("SELECT count(*) FROM tasker.tasks WHERE id = '{plain}' AND tags IS NULL"))
                .await,
            1
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_are_none_are_refused() {
    World::with(async |world| {
        world.register(ORDER).await;
        let long = "x".repeat(201);
        let many: Vec<String> = (0..21).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
        for wrong in [&[("", "1")][..], &[("a", "")], &[("a", &long)], &[("a", "\0")], &many] {
            let refused = submit(world, json!({}), wrong).await.unwrap_err().to_string();
            assert!(refused.contains("the tags are not acceptable: expected at most 20"), "{refused}");
        }
        for wrong in ["[1]", "{\"a\": {}}", "{\"a\": null}", "{\"\": 1}"] {
            let sql = format!("SELECT tasker.create_task('order', '{{}}', p_tags => '{wrong}')");
            let refused = sqlx::query(&sql).execute(&world.pool).await.unwrap_err().to_string();
            assert!(refused.contains("the tags of task 1 are no flat object"), "{refused}");
        }
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, 0);
        let problem = Template::parse(&ORDER.replace("$.input.paid", "$.results.lines"), "t.yml")
            .unwrap_err()
            .to_string();
        assert!(
            problem.starts_with("t.yml:4: tag \"paid\": \"$.results.lines\" asks for the result of lines"),
            "{problem}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_tasks_by_their_tags_through_an_index() {
    World::with(async |world| {
        world.register(ORDER).await;
        let url = world.url.as_str();
        let created = json_of(
            url,
            &[
                "task",
                "create",
                "order",
                "-i",
                "{\"lines\": []}",
                "--tag",
                "customer=42",
                "--tag",
                "region=eu",
                "--json",
            ],
        );
        json_of(
            url,
            &["task", "create", "order", "-i", "{\"lines\": []}", "--tag", "customer=43", "--json"],
        );
        let listed = json_of(url, &["task", "list", "--tag", "customer=42", "--tag", "region=eu", "--json"]);
        assert_eq!(listed.as_array().unwrap().len(), 1);
        assert_eq!((&listed[0]["id"], &listed[0]["tags"]["region"]), (&created["id"], &json!("eu")));
        assert_eq!(tasker(url, &["task", "list", "--tag", "customer"]).status.code(), Some(2));
        let mut transaction = world.pool.begin().await.unwrap();
        sqlx::raw_sql("SET LOCAL enable_seqscan = off")
            .execute(&mut *transaction)
            .await
            .unwrap();
        let plan = "EXPLAIN SELECT id FROM tasker.tasks t WHERE t.tags @> '{\"customer\": \"42\"}'";
        let lines: Vec<String> = sqlx::query_scalar(plan).fetch_all(&mut *transaction).await.unwrap();
        assert!(lines.join("\n").contains("tasks_tags"), "{lines:?}");
    })
    .await;
}
