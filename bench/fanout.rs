//! Steps whose work is other tasks: what a child costs beside a task that somebody submitted.

use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitter};

use crate::site::{Language, Place, Site, NAMESPACE};
use crate::throughput::{fill, Shape};

pub(crate) const COLUMNS: [&str; 3] = ["tasks", "tasks/s", "longest statement, ms"];

/// A step for each of its input's items, and one that comes after all of them.
fn fan(name: &str, each: &Value) -> String {
    let steps = json!([{ "name": "all", "each": each }, { "name": "after", "handler": "Noop", "depends_on": ["all"] }]);
    json!({ "name": name, "namespace": NAMESPACE, "max_depth": 20, "steps": steps }).to_string()
}

fn items(n: usize) -> Value {
    json!({ "items": (0..n).collect::<Vec<_>>() })
}

/// Calls `row` for each, with the figures of [`COLUMNS`].
pub(crate) async fn measure(site: &Site, language: Language, mut row: impl FnMut(&str, &[Value])) {
    let place = site.place(&[Shape::Jobs.template()]).await;
    fill(&place, 100_000).await;
    row("one-step tasks, submitted", &drain(place, language, 1, 100_000).await);
    row("linear-4", &{
        let place = site.place(&[Shape::Linear4.template()]).await;
        fill(&place, 25_000).await;
        drain(place, language, 1, 100_000).await
    });

    let simple = json!({ "over": "$.input.items", "handler": "Noop" });
    for (name, workers, tasks, each) in [
        ("1 → 100,000 → 1", 1, 1, 100_000),
        ("1 → 100,000 → 1, four workers", 4, 1, 100_000),
        ("100 of 1 → 1,000 → 1", 1, 100, 1_000),
        ("10,000 of 1 → 3 → 1", 1, 10_000, 3),
    ] {
        let place = site.place(&[fan("fan", &simple)]).await;
        submit(&place, tasks, &items(each)).await;
        row(name, &drain(place, language, workers, tasks * (each + 1)).await);
    }

    // Of the ten of each level one has ten more, ten levels deep.
    let down = json!({ "over": "$.input.items", "workflow": "fan", "input": { "items": "$item.items" } });
    let place = site.place(&[fan("fan", &down)]).await;
    let tree = (0..10).fold(json!([]), |below, _| {
        let mut level = vec![json!({ "items": [] }); 9];
        level.push(json!({ "items": below }));
        json!(level)
    });
    submit(&place, 100, &json!({ "items": tree })).await;
    row("100 of ten levels of ten", &drain(place, language, 1, 100 * 101).await);
}

async fn submit(place: &Place, tasks: usize, input: &Value) {
    let task = NewTask {
        input: input.clone().into(),
        ..NewTask::default()
    };
    let submitter = Submitter::new(place.db.clone());
    for start in (0..tasks).step_by(1_000) {
        let batch = vec![task.clone(); 1_000.min(tasks - start)];
        submitter.submit("fan", None, &batch).await.expect("submits");
    }
}

async fn drain(place: Place, language: Language, workers: usize, steps: usize) -> Vec<Value> {
    place.settle().await;
    let crew = place.work(language, workers).await;
    let seconds = place.finished().await;
    crew.stop().await;
    let longest = "SELECT max(max_exec_time) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
                   WHERE d.datname = current_database() AND query LIKE '%tasker.%'";
    let longest: f64 = sqlx::query_scalar(longest).fetch_one(&place.pool).await.expect("measures");
    place.leave().await;
    vec![json!(steps), json!(steps as f64 / seconds), json!(longest)]
}
