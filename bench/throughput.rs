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
}

pub(crate) const COLUMNS: [&str; 4] = ["steps/s", "statements/step", "rows/step", "WAL bytes/step"];

impl Shape {
    pub(crate) const ALL: [Shape; 3] = [Shape::Jobs, Shape::Linear4, Shape::Diamond4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::Jobs => "jobs (1 step)",
            Shape::Linear4 => "linear-4",
            Shape::Diamond4 => "diamond-4",
        }
    }

    fn parents(self) -> &'static [&'static [usize]] {
        match self {
            Shape::Jobs => &[&[]],
            Shape::Linear4 => &[&[], &[0], &[1], &[2]],
            Shape::Diamond4 => &[&[], &[0], &[0], &[1, 2]],
        }
    }

    pub(crate) fn steps(self) -> usize {
        self.parents().len()
    }

    pub(crate) fn template(self) -> String {
        let step = |(n, parents): (usize, &&[usize])| {
            let parents: Vec<String> = parents.iter().map(|parent| format!("s{parent}")).collect();
            json!({ "name": format!("s{n}"), "handler": "Noop", "depends_on": parents })
        };
        json!({ "name": "flow", "namespace": NAMESPACE, "steps": self.parents().iter().enumerate().map(step).collect::<Vec<_>>() })
            .to_string()
    }
}

fn task(n: usize) -> NewTask {
    NewTask {
        input: json!({ "order": n, "customer": "someone@customers.example" }),
        ..NewTask::default()
    }
}

async fn fill(place: &Place, tasks: usize) {
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
    let submitter = Submitter::new(place.db.clone());
    let began = Instant::now();
    let callers = (0..8).map(|caller| {
        let submitter = submitter.clone();
        tokio::spawn(async move {
            for n in (caller..tasks).step_by(8) {
                submitter.submit("flow", None, &[task(n)]).await.expect("submits");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("no caller panics");
    }
    let rate = tasks as f64 / began.elapsed().as_secs_f64();
    place.leave().await;
    rate
}

/// Drains a backlog; the clock runs from the first admission to the last completion. The figures of [`COLUMNS`].
pub(crate) async fn drain(site: &Site, shape: Shape, language: Language, tasks: usize) -> Vec<Value> {
    let place = site.place(&[shape.template()]).await;
    fill(&place, tasks).await;
    sqlx::raw_sql("CHECKPOINT; ANALYZE tasker.tasks")
        .execute(&place.pool)
        .await
        .expect("prepares");
    let before = place.costs().await;
    let crew = place.work(language).await;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let open: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tasker.tasks WHERE state <> 'complete')")
            .fetch_one(&place.pool)
            .await
            .expect("asks");
        if !open {
            break;
        }
    }
    let seconds: f64 = sqlx::query_scalar("SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM tasker.tasks")
        .fetch_one(&place.pool)
        .await
        .expect("the times");
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
