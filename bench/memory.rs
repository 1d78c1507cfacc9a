//! The memory of a Ruby worker over a million steps: flat, or it leaks.

use serde_json::{json, Value};

use crate::latency::megabytes;
use crate::site::{stop, Site};
use crate::throughput::{fill, Shape};

/// Calls `row` after each tenth of them, with the worker's megabytes.
pub(crate) async fn measure(site: &Site, threads: usize, mut row: impl FnMut(&str, &[Value])) {
    const STEPS: usize = 1_000_000;
    let place = site.place(&[Shape::Linear4.template()]).await;
    let (mut orchestrator, mut worker) = (place.serve(&[]), place.ruby(threads, &[]));
    for tenth in 1..=10 {
        fill(&place, STEPS / 10 / Shape::Linear4.steps()).await;
        place.drained().await;
        row(&format!("{} steps", STEPS / 10 * tenth), &[json!(megabytes(&worker))]);
    }
    stop(&mut worker);
    stop(&mut orchestrator);
    place.leave().await;
}
