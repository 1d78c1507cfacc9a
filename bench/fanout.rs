//! Steps whose work is other tasks: what a child costs beside a task that somebody submitted.

use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::read::wait_for_end;
use tasker::engine::submit::{NewTask, Submitter};

use crate::latency::{megabytes, percentiles};
use crate::site::{now, stop, Language, Place, Site, NAMESPACE};
use crate::throughput::{fill, Shape};

pub(crate) const COLUMNS: [&str; 4] = ["tasks", "tasks/s", "longest statement, ms", "which"];

/// A task of another namespace, one at a time, from its submission to its end, while one of these runs; and the most that a Ruby worker and an
/// orchestrator have in memory meanwhile.
pub(crate) const BESIDE: [&str; 4] = ["p50, ms", "p99, ms", "a worker's MB", "an orchestrator's MB"];

/// A step for each of its input's items, and one that comes after all of them.
fn fan(name: &str, each: &Value) -> String {
    let steps = json!([{ "name": "all", "each": each }, { "name": "after", "handler": "Noop", "depends_on": ["all"] }]);
    json!({ "name": name, "namespace": NAMESPACE, "max_depth": 20, "steps": steps }).to_string()
}

fn items(n: usize) -> Value {
    json!({ "items": (0..n).collect::<Vec<_>>() })
}

/// (name, workers, tasks, items of each; none: it is a one-step task)
const CASES: [(&str, usize, usize, Option<usize>); 6] = [
    ("one-step tasks, submitted", 1, 100_000, None),
    ("1 → 100,000 → 1", 1, 1, Some(100_000)),
    ("100 of 1 → 1,000 → 1", 1, 100, Some(1_000)),
    ("one-step tasks, four workers", 4, 100_000, None),
    ("1 → 100,000 → 1, four workers", 4, 1, Some(100_000)),
    ("10,000 of 1 → 3 → 1", 1, 10_000, Some(3)),
];

/// Calls `row` for each, with the figures of [`COLUMNS`]: of so many runs in turns, the middle one's.
pub(crate) async fn measure(site: &Site, language: Language, runs: usize, mut row: impl FnMut(&str, &[Value])) {
    let simple = json!({ "over": "$.input.items", "handler": "Noop" });
    let mut figures = vec![Vec::new(); CASES.len()];
    for _ in 0..runs {
        for ((_, workers, tasks, each), figures) in CASES.iter().zip(&mut figures) {
            let place = site.place(&[Shape::Jobs.template(), fan("fan", &simple)]).await;
            match each {
                None => fill(&place, *tasks).await,
                Some(each) => submit(&place, *tasks, &items(*each)).await,
            }
            figures.push(drain(place, language, *workers, tasks * each.map_or(1, |each| each + 1)).await);
        }
    }
    for ((name, ..), mut figures) in CASES.iter().zip(figures) {
        figures.sort_by(|a, b| a[1].as_f64().unwrap_or_default().total_cmp(&b[1].as_f64().unwrap_or_default()));
        row(name, &figures[figures.len() / 2]);
    }
    row("linear-4", &{
        let place = site.place(&[Shape::Linear4.template()]).await;
        fill(&place, 25_000).await;
        drain(place, language, 1, 100_000).await
    });

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
    let longest =
        "SELECT max_exec_time, substring(query FROM 'tasker\\.(\\w+)\\(') FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
                   WHERE d.datname = current_database() AND query ~ 'tasker\\.\\w+\\(' ORDER BY 1 DESC LIMIT 1";
    let (longest, which): (f64, String) = sqlx::query_as(longest).fetch_one(&place.pool).await.expect("measures");
    place.leave().await;
    vec![json!(steps), json!(steps as f64 / seconds), json!(longest), json!(which)]
}

/// Calls `row` for each, with the figures of [`BESIDE`].
pub(crate) async fn beside(site: &Site, threads: usize, mut row: impl FnMut(&str, &[Value])) {
    let other = json!({ "name": "other", "namespace": "beside", "steps": [{ "name": "only", "handler": "Noop" }] }).to_string();
    let simple = fan("fan", &json!({ "over": "$.input.items", "handler": "Noop" }));
    for (name, jobs, each) in [
        ("nothing else", 0, 0),
        ("20,000 one-step tasks", 20_000, 0),
        ("100,000 one-step tasks", 100_000, 0),
        ("1 → 20,000 → 1", 0, 20_000),
        ("1 → 100,000 → 1", 0, 100_000),
    ] {
        let place = site.place(&[Shape::Jobs.template(), simple.clone(), other.clone()]).await;
        fill(&place, jobs).await;
        submit(&place, usize::from(each > 0), &items(each)).await;
        place.settle().await;
        let mut processes = [place.ruby(threads, &[]), place.ruby_of("beside", 1, &[]), place.serve(&[])];
        let (mut took, mut most) = (Vec::new(), [0.0_f64; 2]);
        while took.len() < 100 || open(&place).await {
            let (submitted, submitter) = (now(), Submitter::new(place.db.clone()));
            let task = NewTask {
                input: json!({}).into(),
                ..NewTask::default()
            };
            let id = submitter.submit("other", None, &[task]).await.expect("submits")[0].id;
            wait_for_end(&place.db, id, None).await.expect("it ends");
            took.push(now() - submitted);
            most = [most[0].max(megabytes(&processes[0])), most[1].max(megabytes(&processes[2]))];
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        processes.iter_mut().for_each(stop);
        place.leave().await;
        // Those of the first are of processes that start.
        let mut figures = percentiles(took.split_off(10));
        figures.extend(most.map(|megabytes| json!(megabytes)));
        row(name, &figures);
    }
}

/// Whether anything is left of what it is beside.
async fn open(place: &Place) -> bool {
    let open = "SELECT EXISTS (SELECT FROM tasker.tasks WHERE finished_at IS NULL)";
    sqlx::query_scalar(open).fetch_one(&place.pool).await.expect("asks")
}
