//! What a network costs that lies between the processes and PostgreSQL: all of them behind a proxy that delays what it carries.

use std::time::Duration;

use serde_json::{json, Value};

use crate::latency::{percentiles, rounds_at};
use crate::site::{Language, Place, Site};
use crate::stalls::{proxy, Notifications};
use crate::throughput::{drain_once, Shape};

pub(crate) const COLUMNS: [&str; 3] = ["steps/s", "submit → begins, p50 ms", "round trips in it"];

/// Round trips, the shortest first, in ms.
pub(crate) const ROUND_TRIPS: [u64; 3] = [0, 1, 5];

async fn place(site: &Site, shape: Shape, round_trip: u64) -> Place {
    let place = site.place(&[shape.template()]).await;
    let port = proxy(place.address(), Notifications::Pass, Duration::from_micros(round_trip * 500)).await;
    place.by(port, false).await
}

/// Steps a second of linear-4.
pub(crate) async fn rate(site: &Site, language: Language, steps: usize, round_trip: u64) -> f64 {
    let place = place(site, Shape::Linear4, round_trip).await;
    4.0 * drain_once(place, language, steps / 4).await
}

/// How many ms an idle system takes until the handler begins, and how many of the round trips lie in that; `nearest` is the same with the shortest.
pub(crate) async fn latency(site: &Site, language: Language, round_trip: u64, nearest: Option<f64>) -> (f64, Vec<Value>) {
    let place = place(site, Shape::Jobs, round_trip).await;
    let crew = place.work(language, 1).await;
    let (began, _) = rounds_at(&place).await;
    crew.stop().await;
    place.leave().await;
    let middle = percentiles(began)[0].as_f64().unwrap_or_default();
    let trips = nearest.map(|nearest| (middle - nearest) / round_trip as f64);
    (middle, vec![json!(middle), json!(trips)])
}
