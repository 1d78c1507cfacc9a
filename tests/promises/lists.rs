//! Lists of tasks: however many tasks there are, one page looks at few of them.

use serde_json::Value;
use tasker::engine::read::{list_tasks, TaskFilter};
use uuid::Uuid;

use super::world::World;

const JOB: &str = "
name: job
namespace: here
steps:
  - { name: a, handler: H }
";

async fn submit(world: &World, tasks: i32) -> Vec<Uuid> {
    let create = "SELECT id FROM tasker.create_tasks('job', array_fill('{}'::jsonb, ARRAY[$1])) ORDER BY ordinal";
    let query = sqlx::query_scalar(create).bind(tasks);
    query.fetch_all(&world.pool).await.unwrap()
}

/// What one page without any patience has, and where it continues.
async fn page(world: &World, filter: Value) -> (Vec<Uuid>, Option<Uuid>) {
    let query = sqlx::query_as("SELECT ids, next FROM tasker.find_tasks($1, 2, false, '0')").bind(filter);
    query.fetch_one(&world.pool).await.unwrap()
}

#[tokio::test]
async fn a_page_of_rare_tasks_ends_after_two_thousand_others_and_says_where_it_goes_on() {
    World::with(async |world| {
        world.register(JOB).await;
        let rare = submit(world, 3).await;
        submit(world, 5_000).await;
        let ids = format!("ARRAY['{}', '{}', '{}']::uuid[]", rare[0], rare[1], rare[2]);
        world.count(&format!("SELECT count(*) FROM tasker.cancel_tasks({ids})")).await;

        let (mut found, mut pages) = (Vec::new(), Vec::new());
        let mut filter = serde_json::json!({ "state": "cancelled" });
        loop {
            let (ids, next) = page(world, filter.clone()).await;
            pages.push(ids.len());
            found.extend(ids);
            let Some(next) = next else { break };
            filter["before"] = serde_json::json!(next);
        }
        assert_eq!(pages, [0, 0, 2, 1], "5,000 others are three pages, and the rare ones two");
        let mut newest_first = rare;
        newest_first.sort();
        newest_first.reverse();
        assert_eq!(found, newest_first);

        let filter = TaskFilter {
            state: Some("cancelled".into()),
            ..TaskFilter::default()
        };
        let listed = list_tasks(&world.db, &filter, 2).await.unwrap();
        assert_eq!(listed.len(), 2, "who wants a list gets it whole");
        assert_eq!(listed[0]["id"], newest_first[0].to_string());
    })
    .await;
}

#[tokio::test]
async fn no_task_has_a_state_that_there_is_not() {
    World::with(async |world| {
        world.register(JOB).await;
        submit(world, 3).await;
        assert_eq!(page(world, serde_json::json!({ "state": "sad" })).await, (vec![], None));
        assert_eq!(page(world, serde_json::json!({ "template": "none" })).await, (vec![], None));
    })
    .await;
}
