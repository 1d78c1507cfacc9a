//! How long one task takes when nothing else is going on.

use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitter};

use crate::site::{now, stop, Language, Place, Site, NAMESPACE};
use crate::throughput::{fill, Shape};

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

pub(crate) fn percentiles(mut seconds: Vec<f64>) -> Vec<Value> {
    seconds.sort_by(f64::total_cmp);
    [0.50, 0.99]
        .map(|share| json!(1_000.0 * seconds[((seconds.len() - 1) as f64 * share) as usize]))
        .to_vec()
}

/// Seconds from the call that submits to the first handler's beginning, and to the task's end as PostgreSQL records it (which is committed
/// a fraction of a millisecond later; asking all the time would slow down what is measured).
async fn rounds(site: &Site, shape: Shape, language: Language) -> (Vec<f64>, Vec<f64>) {
    let place = site.place(&[shape.template()]).await;
    let crew = place.work(language, 1).await;
    let times = rounds_at(&place).await;
    crew.stop().await;
    place.leave().await;
    times
}

/// The same where others work already.
pub(crate) async fn rounds_at(place: &Place) -> (Vec<f64>, Vec<f64>) {
    let submitter = Submitter::new(place.db.clone());
    let (mut began, mut ended) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let task = NewTask {
            input: json!({}).into(),
            ..NewTask::default()
        };
        let submitted = now();
        let task = submitter.submit("flow", None, &[task]).await.expect("submits")[0].id;
        let mut times = None;
        while times.is_none() {
            // Idle means idle: every loop waits again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (first, end) = sqlx::query_as::<_, (Option<f64>, Option<f64>)>(
                "SELECT (SELECT result::float8 FROM tasker.steps WHERE task_id = id AND step = 0), extract(epoch FROM finished_at)::float8
                 FROM tasker.tasks WHERE id = $1",
            )
            .bind(task)
            .fetch_one(&place.pool)
            .await
            .expect("reads");
            times = first.zip(end);
        }
        let (first, end) = times.expect("it ended");
        if round >= WARM_UP {
            began.push(first - submitted);
            ended.push(end - submitted);
        }
    }
    (began, ended)
}

/// (name, figure) of an orchestrator and a Ruby worker that have nothing to do, while so many tasks sleep: statements a second and process, and megabytes.
pub(crate) async fn idle(site: &Site, threads: usize, asleep: usize) -> Vec<(&'static str, Value)> {
    const SECONDS: u64 = 20;
    let nap = json!({ "name": "flow", "namespace": NAMESPACE, "steps": [{ "name": "nap", "sleep": "14d" }] });
    let place: Place = site.place(&[nap.to_string()]).await;
    fill(&place, asleep).await;
    let (mut orchestrator, mut worker) = (place.serve(&[]), place.ruby(threads, &[]));
    let awake = "SELECT EXISTS (SELECT FROM tasker.tasks WHERE started_at IS NULL)";
    while sqlx::query_scalar(awake).fetch_one(&place.pool).await.expect("asks") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    place.settle().await;
    let mut bare = Command::new("ruby").args(["-e", "sleep"]).spawn().expect("ruby runs");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (statements, time) = (place.costs().await.0, place.time().await);
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let time = place.time().await - time;
    let statements = place.costs().await.0 - statements - 3.0;
    let figures = vec![
        ("statements a second, each process", json!(statements / SECONDS as f64 / 2.0)),
        ("their time in a second, ms", json!(time / SECONDS as f64)),
        ("orchestrator, MB", json!(megabytes(&orchestrator))),
        ("Ruby worker above bare Ruby, MB", json!(megabytes(&worker) - megabytes(&bare))),
    ];
    for process in [&mut orchestrator, &mut worker, &mut bare] {
        stop(process);
    }
    place.leave().await;
    figures
}

/// Resident.
pub(crate) fn megabytes(process: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process runs");
    let kilobytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .expect("a size");
    kilobytes / 1024.0
}
