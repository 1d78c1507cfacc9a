//! What telling others what happens costs, and how fast they are told.

use std::time::Instant;

use serde_json::{json, Value};
use tasker::engine::shards::Shards;
use tasker::engine::subscriptions;
use tasker::subscription::Subscription;
use tokio::net::TcpListener;

use crate::site::{Language, Site};
use crate::throughput::{fill, Shape};

pub(crate) const COLUMNS: [&str; 2] = ["steps/s", "events/s to a webhook"];

/// (name, types; where to)
pub(crate) const CASES: [(&str, Option<&[&str]>, bool); 5] = [
    ("nobody has subscribed", None, false),
    ("to what does not happen", Some(&["task.failed"]), false),
    ("to the end of each task", Some(&["task.complete"]), false),
    ("to everything", Some(EVERYTHING), false),
    ("to everything, by a webhook", Some(EVERYTHING), true),
];

const EVERYTHING: &[&str] = &["task.created", "task.started", "step.enqueued", "step.complete", "task.complete"];

/// Linear-4: steps a second, and events a second while they are delivered.
pub(crate) async fn measure(site: &Site, language: Language, steps: usize, (types, pushed): (Option<&[&str]>, bool)) -> Vec<Value> {
    let place = site.place(&[Shape::Linear4.template()]).await;
    fill(&place, steps / 4).await;
    if let Some(types) = types {
        let definition = match pushed {
            true => json!({ "types": types, "webhook": { "url": sink().await, "at_once": 16 } }),
            false => json!({ "types": types, "pull": true }),
        };
        let subscription = Subscription::parse(&definition).expect("a subscription");
        subscriptions::put(&Shards::of(&place.db), "bench", &subscription, None)
            .await
            .expect("subscribes");
    }
    place.settle().await;
    let began = Instant::now();
    let crew = place.work(language, 1).await;
    let seconds = place.drained().await;
    let mut told = Value::Null;
    if pushed {
        // Without the creation of each, which was before: two of the task, two of each step.
        let count = (steps / 4 * 2 + steps * 2) as i64;
        let delivered = "SELECT coalesce(sum(delivered), 0)::bigint FROM tasker.deliveries";
        while sqlx::query_scalar::<_, i64>(delivered)
            .fetch_one(&place.pool)
            .await
            .expect("counts")
            < count
        {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        told = json!(count as f64 / began.elapsed().as_secs_f64());
    }
    crew.stop().await;
    place.leave().await;
    vec![json!(steps as f64 / seconds), told]
}

async fn sink() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(|| async {})).await });
    format!("http://{address}/")
}
