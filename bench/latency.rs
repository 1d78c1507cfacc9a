//! How long one task takes when nothing else is going on.

use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::read::{read_task, task_states};
use tasker::engine::submit::{NewTask, Submitter};

use crate::site::{now, Language, Place, Site};
use crate::throughput::Shape;

const ROUNDS: usize = 300;
/// Not measured: connections are made, statements prepared.
const WARM_UP: usize = 20;

/// (name, [p50, p99]) in milliseconds.
pub(crate) async fn measure(site: &Site, language: Language) -> Vec<(&'static str, Vec<Value>)> {
    let (began, _) = rounds(site, Shape::Jobs, language).await;
    let (_, ended) = rounds(site, Shape::Linear4, language).await;
    vec![
        ("submit → handler begins", percentiles(began)),
        ("submit → linear-4 complete", percentiles(ended)),
    ]
}

fn percentiles(mut seconds: Vec<f64>) -> Vec<Value> {
    seconds.sort_by(f64::total_cmp);
    [0.50, 0.99]
        .map(|share| json!(1_000.0 * seconds[((seconds.len() - 1) as f64 * share) as usize]))
        .to_vec()
}

/// Seconds from the call that submits to the first handler's beginning, and to the moment at which a client sees the task complete.
async fn rounds(site: &Site, shape: Shape, language: Language) -> (Vec<f64>, Vec<f64>) {
    let place = site.place(&[shape.template()]).await;
    let crew = place.work(language).await;
    let submitter = Submitter::new(place.db.clone());
    let (mut began, mut ended) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let submitted = now();
        let task = submitter
            .submit(
                "flow",
                None,
                &[NewTask {
                    input: json!({}),
                    ..NewTask::default()
                }],
            )
            .await
            .expect("submits")[0]
            .id;
        while task_states(&place.db, &[task]).await.expect("asks")[0].1 != "complete" {
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        let seen = now();
        let first = read_task(&place.db, task).await.expect("reads")["steps"][0]["result"]
            .as_f64()
            .expect("when it began");
        if round >= WARM_UP {
            began.push(first - submitted);
            ended.push(seen - submitted);
        }
        // Idle means idle: every loop waits again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    crew.stop().await;
    place.leave().await;
    (began, ended)
}

/// Statements a second and process while nothing happens.
pub(crate) async fn idle_queries(site: &Site) -> f64 {
    const SECONDS: u64 = 20;
    let place: Place = site.place(&[Shape::Jobs.template()]).await;
    let crew = place.work(Language::Rust).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = place.costs().await.0;
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let queries = place.costs().await.0 - before - 1.0;
    crew.stop().await;
    place.leave().await;
    queries / SECONDS as f64 / 2.0
}
