//! How many tasks a second come in, and how many steps a second go through.

use std::time::{Duration, Instant};

use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitter};

use crate::site::{Language, Place, Site, NAMESPACE};

/// What the tasks look like.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Jobs,
    Linear4,
    Diamond4,
    /// A thousand steps side by side, and one that depends on all of them.
    FanIn1000,
}

pub(crate) const COLUMNS: [&str; 4] = ["steps/s", "statements/step", "rows/step", "WAL bytes/step"];

impl Shape {
    pub(crate) const ALL: [Shape; 4] = [Shape::Jobs, Shape::Linear4, Shape::Diamond4, Shape::FanIn1000];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::Jobs => "jobs (1 step)",
            Shape::Linear4 => "linear-4",
            Shape::Diamond4 => "diamond-4",
            Shape::FanIn1000 => "fan-in-1000",
        }
    }

    fn parents(self) -> Vec<Vec<usize>> {
        match self {
            Shape::Jobs => vec![vec![]],
            Shape::Linear4 => vec![vec![], vec![0], vec![1], vec![2]],
            Shape::Diamond4 => vec![vec![], vec![0], vec![0], vec![1, 2]],
            Shape::FanIn1000 => (0..1_000).map(|_| vec![]).chain([(0..1_000).collect()]).collect(),
        }
    }

    pub(crate) fn steps(self) -> usize {
        self.parents().len()
    }

    pub(crate) fn template(self) -> String {
        self.template_with("Noop")
    }

    pub(crate) fn template_with(self, handler: &str) -> String {
        let step = |(n, parents): (usize, &Vec<usize>)| {
            let parents: Vec<String> = parents.iter().map(|parent| format!("s{parent}")).collect();
            json!({ "name": format!("s{n}"), "handler": handler, "depends_on": parents })
        };
        json!({ "name": "flow", "namespace": NAMESPACE, "steps": self.parents().iter().enumerate().map(step).collect::<Vec<_>>() })
            .to_string()
    }
}

fn task(n: usize) -> NewTask {
    NewTask {
        input: json!({ "order": n, "customer": "someone@customers.example" }).into(),
        ..NewTask::default()
    }
}

pub(crate) async fn fill(place: &Place, tasks: usize) {
    let submitter = Submitter::new(place.db.clone());
    for start in (0..tasks).step_by(1_000) {
        let batch: Vec<NewTask> = (start..(start + 1_000).min(tasks)).map(task).collect();
        submitter.submit("flow", None, &batch).await.expect("submits");
    }
}

pub(crate) async fn submit_in_bulk(site: &Site, tasks: usize) -> f64 {
    let place = site.place(&[Shape::Linear4.template()]).await;
    let began = Instant::now();
    fill(&place, tasks).await;
    let rate = tasks as f64 / began.elapsed().as_secs_f64();
    place.leave().await;
    rate
}

pub(crate) async fn submit_singly(site: &Site, tasks: usize) -> f64 {
    let place = site.place(&[Shape::Linear4.template()]).await;
    let rate = place.run_ruby("bench/submit.rb", &[&tasks.to_string()]);
    place.leave().await;
    rate.parse().expect("a rate")
}

/// Drains as many tasks as make `steps` steps. The figures of [`COLUMNS`].
pub(crate) async fn drain(site: &Site, shape: Shape, language: Language, steps: usize) -> Vec<Value> {
    let place = site.place(&[shape.template()]).await;
    let tasks = steps.div_ceil(shape.steps());
    fill(&place, tasks).await;
    place.settle().await;
    let before = place.costs().await;
    let crew = place.work(language, 1).await;
    let seconds = place.drained().await;
    crew.stop().await;
    // The sessions' own counts are reported when they end.
    let after = place.costs().await;
    place.leave().await;
    let steps = (tasks * shape.steps()) as f64;
    vec![
        json!(steps / seconds),
        json!((after.0 - before.0) / steps),
        json!((after.1 - before.1) / steps),
        json!((after.2 - before.2) / steps),
    ]
}

/// Microseconds of processor time a step in a Ruby worker: its Ruby and its native threads, the empty handler included.
pub(crate) async fn processor_time(site: &Site, language: Language, steps: usize) -> f64 {
    let place = site.place(&[Shape::Linear4.template()]).await;
    fill(&place, steps / 4).await;
    let crew = place.work(language, 1).await;
    let before = crew.processor_time();
    place.drained().await;
    let seconds = crew.processor_time() - before;
    crew.stop().await;
    place.leave().await;
    1e6 * seconds / steps as f64
}

/// Steps a second of waiting handlers (5 ms each, ten threads a process), by the number of Ruby worker processes.
pub(crate) async fn scale(site: &Site, processes: usize) -> f64 {
    let place = site.place(&[Shape::Linear4.template_with("Pause")]).await;
    let tasks = 2_500 * processes;
    fill(&place, tasks).await;
    let crew = place.work(Language::Ruby { threads: 10 }, processes).await;
    let seconds = place.drained().await;
    crew.stop().await;
    place.leave().await;
    (4 * tasks) as f64 / seconds
}

/// One-step tasks a second while a million finished tasks are kept, or are deleted.
pub(crate) async fn with_history(site: &Site, language: Language, tasks: usize, deleting: bool) -> f64 {
    let place = site.place(&[Shape::Jobs.template()]).await;
    let history = "
        INSERT INTO tasker.tasks (id, template_id, version_id, namespace_id, priority, state, input, created_at, finished_at)
        SELECT tasker.uuidv7(), v.template_id, v.id, t.namespace_id, 2, 'complete', '{\"order\": 1}', now(), now()
        FROM tasker.template_versions v JOIN tasker.templates t ON t.id = v.template_id, generate_series(1, 1000000);
        INSERT INTO tasker.steps (task_id, step, state, msg_id, enqueued_at, started_at, finished_at, result)
        SELECT id, 0, 'complete', 0, now(), now(), now(), '1' FROM tasker.tasks;
        VACUUM ANALYZE tasker.tasks; VACUUM ANALYZE tasker.steps";
    for statement in history.split(';') {
        sqlx::raw_sql(statement).execute(&place.pool).await.expect("makes a history");
    }
    if deleting {
        place.keep_history(60).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
    }
    drain_once(place, language, tasks).await
}

/// Tasks a second, as they come in there and are drained by one worker.
pub(crate) async fn drain_once(place: Place, language: Language, tasks: usize) -> f64 {
    fill(&place, tasks).await;
    place.settle().await;
    let crew = place.work(language, 1).await;
    let seconds = place.drained().await;
    crew.stop().await;
    place.leave().await;
    tasks as f64 / seconds
}
