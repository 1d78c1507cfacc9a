//! A flood of a million tasks in one namespace, with handlers that wait: how long a task of another namespace takes meanwhile, and what memory the processes
//! have.

use serde_json::{json, Value};

use crate::latency::{megabytes, percentiles, rounds_at};
use crate::site::{stop, Site, NAMESPACE};
use crate::throughput::Shape;

pub(crate) const COLUMNS: [&str; 5] = ["waiting", "p50, ms", "p99, ms", "orchestrator, MB", "worker, MB"];

const FLOOD: i32 = 1_000_000;

/// Calls `row` for each, with the figures of [`COLUMNS`]: from submitting a task to its end, with workers of its own, and with those of the flood.
pub(crate) async fn measure(site: &Site, mut row: impl FnMut(&str, &[Value])) {
    for (whose, of_flood) in [
        ("a worker of its own", "noisy".to_owned()),
        ("a worker of both", format!("noisy,{NAMESPACE}")),
    ] {
        let noisy = json!({ "name": "noisy", "namespace": "noisy", "steps": [{ "name": "s0", "handler": "Pause" }] });
        let place = site.place(&[Shape::Jobs.template(), noisy.to_string()]).await;
        let mut processes = vec![place.serve(&[]), place.ruby_of(&of_flood, 5, &[])];
        if !of_flood.contains(NAMESPACE) {
            processes.push(place.ruby_of(NAMESPACE, 5, &[]));
        }
        for (when, flood) in [("idle", 0), ("flooded", FLOOD)] {
            sqlx::query("SELECT count(*) FROM tasker.create_tasks('noisy', array_fill('{}'::jsonb, ARRAY[$1])) WHERE $1 > 0")
                .bind(flood)
                .execute(&place.pool)
                .await
                .expect("floods");
            let (_, ended) = rounds_at(&place).await;
            let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM tasker.tasks WHERE claim_order IS NOT NULL")
                .fetch_one(&place.pool)
                .await
                .expect("counts");
            let mut figures = vec![json!(waiting)];
            figures.extend(percentiles(ended));
            figures.extend(processes[..2].iter().map(|process| json!(megabytes(process))));
            row(&format!("{whose}, {when}"), &figures);
        }
        processes.iter_mut().for_each(stop);
        place.leave().await;
    }
}
