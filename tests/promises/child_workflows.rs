//! Workflows as steps of others.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{json, Value};
use tasker::worker::{Handlers, Step};
use tasker::Template;
use uuid::Uuid;

use super::children::{end_of, Crew};
use super::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_is_a_step_of_another_and_its_output_is_the_result() {
    World::with(async |world| {
        let shipping = "
name: shipping
namespace: here
output: $.results.send.tracking
steps:
  - { name: pack, handler: pack }
  - { name: send, handler: send, depends_on: [pack] }
";
        let order = "
name: parcel
namespace: here
steps:
  - { name: check, handler: check }
  - { name: ship, workflow: shipping, input: { to: $.results.check.address, order: $.input.id }, depends_on: [check] }
  - { name: tell, handler: tell, depends_on: [ship] }
";
        world.register(order).await;
        let handlers = Handlers::default()
            .with("check", |_| async { Ok(json!({ "address": "Kiel" })) })
            .with("pack", |step: Arc<Step>| async move {
                Ok(serde_json::from_str::<Value>(&step.input().await?).unwrap())
            })
            .with("send", |step: Arc<Step>| async move {
                let results = step.results(&["pack".into()]).await?;
                Ok(json!({ "tracking": serde_json::from_str::<Value>(&results[0].1).unwrap() }))
            })
            .with("tell", |step: Arc<Step>| async move {
                let results: BTreeMap<String, String> = step.results(&["ship".into()]).await?.into_iter().collect();
                Ok(serde_json::from_str::<Value>(&results["ship"]).unwrap())
            });
        let crew = Crew::start(world, handlers).await;
        let early = world.submit("parcel", json!({ "id": 6 })).await;
        assert_eq!(end_of(world, early).await, "blocked");
        let letters = world.dead_letters("here").await;
        assert_eq!(letters[0]["reason"], "unknown_template");
        assert_eq!(letters[0]["errors"][0]["message"], "no template here/shipping");

        world.register(shipping).await;
        world.replay_all("here").await;
        world
            .until_true(&format!("state = 'complete' FROM tasker.tasks WHERE id = '{early}'"))
            .await;
        let task = world.submit("parcel", json!({ "id": 7 })).await;
        assert_eq!(end_of(world, task).await, "complete");
        assert_eq!(world.task(task).await["steps"][2]["result"], json!({ "to": "Kiel", "order": 7 }));
        let child: Uuid = world
            .text(&format!("SELECT id::text FROM tasker.tasks WHERE parent_id = '{task}'"))
            .await
            .parse()
            .unwrap();
        assert_eq!(
            world.task(child).await["parent"],
            json!({ "task": task, "step": "ship", "item": 0 })
        );
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_the_childs_workflow_does_not_accept_is_a_dead_letter_that_says_which() {
    let line = |least: i32| {
        format!(
            "
name: line
namespace: here
input_schema: {{ type: object, required: [units], properties: {{ units: {{ type: integer, minimum: {least} }} }} }}
steps: [{{ name: reserve, handler: squared }}]
"
        )
    };
    let order = "
name: order
namespace: here
steps: [{ name: lines, each: { over: $.input.lines, workflow: line } }]
";
    let single = "
name: single
namespace: here
steps: [{ name: line, workflow: line, input: { units: $.input.count } }]
";
    World::with(async |world| {
        for template in [&line(1), order, single] {
            world.register(template).await;
        }
        let crew = Crew::start(world, Handlers::default().with("squared", |_| async { Ok(json!(null)) })).await;
        let mut lines = vec![json!({ "units": 1 }); 120];
        lines[107] = json!({ "units": 0 });
        let task = world.submit("order", json!({ "lines": lines })).await;
        let lone = world.submit("single", json!({})).await;
        assert_eq!(
            (end_of(world, task).await, end_of(world, lone).await),
            ("blocked".into(), "blocked".into())
        );
        let mut said: Vec<(Value, Value)> = world
            .dead_letters("here")
            .await
            .into_iter()
            .map(|letter| (letter["reason"].clone(), letter["errors"][0]["message"].clone()))
            .collect();
        said.sort_by_key(|(_, message)| message.to_string());
        let problem = |text: &str| (json!("bad_input"), json!(text));
        assert_eq!(
            said,
            [
                problem("task 0: the input does not satisfy the input_schema of here/line: /units: null is not of type \"integer\""),
                problem("task 107: the input does not satisfy the input_schema of here/line: /units: 0 is less than the minimum of 1"),
            ]
        );
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.tasks WHERE parent_id IS NOT NULL").await,
            0
        );

        world.register(&line(0)).await;
        world.replay_all("here").await;
        world
            .until_true(&format!("state = 'complete' FROM tasker.tasks WHERE id = '{task}'"))
            .await;
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_would_contain_itself_says_how_deep() {
    World::with(async |world| {
        let itself = |name: &str, below: &str, more: &str| {
            format!("name: {name}\nnamespace: here\n{more}steps:\n  - {{ name: down, workflow: {below}, if: $.input.n > 0, input: {{ n: $.input.n - 1 }} }}\n")
        };
        let refused = Template::parse(&itself("a", "a", ""), "t.yml").unwrap_err().to_string();
        assert!(refused.starts_with("t.yml:4: step \"down\": its tasks would contain tasks of the same template"), "{refused}");
        world.register(&itself("a", "b", "")).await;
        let b = Template::parse(&itself("b", "a", ""), "t.yml").unwrap();
        let refused = tasker::engine::register::register(&world.db, &b).await.unwrap_err().to_string();
        assert!(refused.contains("here/b → here/a → here/b"), "{refused}");

        world.register(&itself("b", "a", "max_depth: 3\n")).await;
        let crew = Crew::start(world, Handlers::default()).await;
        let shallow = world.submit("b", json!({ "n": 4 })).await;
        assert_eq!(end_of(world, shallow).await, "complete");
        let deep = world.submit("b", json!({ "n": 50 })).await;
        assert_eq!(end_of(world, deep).await, "blocked");
        let letters = world.dead_letters("here").await;
        assert_eq!(letters[0]["reason"], "max_depth");
        assert_eq!(letters[0]["errors"][0]["message"], "here/b is 3 deep already, and its max_depth is 3");
        crew.end().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_is_told_by_generations_with_what_became_of_each() {
    World::with(async |world| {
        let line = "name: line\nnamespace: here\nsteps:\n  - { name: pack, each: { over: $.input.units, handler: pack } }\n";
        let order = "name: order\nnamespace: here\nsteps:\n  - { name: lines, each: { over: $.input.lines, workflow: line } }\n";
        world.register(line).await;
        world.register(order).await;
        let crew = Crew::start(world, Handlers::default().with("pack", |_| async { Ok(json!({})) })).await;
        let id = world
            .submit("order", json!({ "lines": [{ "units": [1, 2] }, { "units": [3] }] }))
            .await;
        assert_eq!(end_of(world, id).await, "complete");
        crew.end().await;
        let family = tasker::engine::children::read_family(&world.db, id).await.unwrap();
        let told: Vec<(i64, String)> = family
            .iter()
            .map(|member| {
                (
                    member["depth"].as_i64().unwrap(),
                    format!("{} {} {}", member["template"], member["step"], member["state"]).replace('"', ""),
                )
            })
            .collect();
        let expected = [(0, "order null complete"), (1, "line lines complete"), (1, "line lines complete")];
        assert_eq!(told[..3], expected.map(|(depth, said)| (depth, said.to_owned())));
        assert_eq!(told.iter().filter(|(depth, _)| *depth == 2).count(), 3);
        let is_of = |child: &Value, depth: i64| {
            family
                .iter()
                .any(|member| member["id"] == child["parent"] && member["depth"] == depth - 1)
        };
        assert!(family[1..].iter().all(|child| is_of(child, child["depth"].as_i64().unwrap())));
    })
    .await;
}
