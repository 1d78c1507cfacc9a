//! A simulated day under two autoscalers: one that looks at what comes in now, and one that looks at the forecast as well. Arrivals have the shape of an
//! office's day, with noise; what each autoscaler wants is asked of the engine's own functions, which have seen a fortnight of such days.

use chrono::{DateTime, Duration, NaiveDate, Utc};
use serde_json::{json, Value};
use sqlx::PgPool;

use crate::site::{Site, NAMESPACE};
use crate::throughput::Shape;

pub(crate) const COLUMNS: [&str; 4] = ["mean workers", "p90 wait, s", "p99 wait, s", "longest, s"];

/// Steps a second at each full hour; between them it is a straight line, but people come to work at nine.
const DAY: [f64; 24] = [
    20., 15., 12., 10., 10., 12., 20., 60., 120., 320., 360., 340., 220., 300., 350., 330., 290., 220., 130., 90., 70., 50., 40., 30.,
];
const HISTORY: i64 = 14;
const SERVICE_SECONDS: f64 = 0.5;
const HANDLERS: f64 = 8.0;
/// From the wish for a worker to its first step: a machine, an image, a boot.
const START_MINUTES: usize = 5;
/// Nobody is sent home before nobody was wanted for so long (as the HPA's stabilization window).
const STAY_MINUTES: usize = 5;

fn usual(minute: i64) -> f64 {
    let (hour, part) = ((minute / 60) as usize % 24, (minute % 60) as f64 / 60.0);
    let (here, next) = (DAY[hour], DAY[(hour + 1) % 24]);
    // The first quarter of an hour is when most of a change happens.
    here + (next - here) * if hour == 8 { (part * 4.0 - 3.0).max(0.0) } else { part }
}

struct Namespace<'a> {
    pool: &'a PgPool,
    id: i16,
}

impl Namespace<'_> {
    async fn note(&self, at: DateTime<Utc>, steps: f64) {
        sqlx::query(
            "INSERT INTO tasker.arrivals AS a VALUES (date_bin('5 minutes', $1, 'epoch'), $2, $3)
             ON CONFLICT (namespace_id, at) DO UPDATE SET steps = a.steps + excluded.steps",
        )
        .bind(at)
        .bind(self.id)
        .bind(steps)
        .execute(self.pool)
        .await
        .expect("notes");
    }

    /// How many workers are wanted (now, in ten minutes).
    async fn wanted(&self, at: DateTime<Utc>, rate: f64, waiting: f64) -> (f64, f64) {
        sqlx::query_as(
            "SELECT (SELECT workers FROM tasker.wanted_workers($3, $4, $5, 1, $6)),
                    (SELECT workers FROM tasker.wanted_workers(f.rate, $4, $5, 1, $6))
             FROM tasker.forecast_rate($1, $3, $2, interval '10 minutes') AS f",
        )
        .bind(self.id)
        .bind(at)
        .bind(rate)
        .bind(SERVICE_SECONDS)
        .bind(waiting as i64)
        .bind(HANDLERS)
        .fetch_one(self.pool)
        .await
        .expect("asks")
    }
}

/// (name, the figures of [`COLUMNS`])
pub(crate) async fn measure(site: &Site) -> Vec<(&'static str, Vec<Value>)> {
    let place = site.place(&[Shape::Jobs.template()]).await;
    let id = sqlx::query_scalar("SELECT id FROM tasker.namespaces WHERE name = $1")
        .bind(NAMESPACE)
        .fetch_one(&place.pool)
        .await
        .expect("the namespace is there");
    let namespace = Namespace { pool: &place.pool, id };
    let mut figures = Vec::new();
    for (name, foresees) in [("by what comes in now", false), ("by the forecast, too", true)] {
        sqlx::query("TRUNCATE tasker.arrivals").execute(&place.pool).await.expect("forgets");
        figures.push((name, day(&namespace, foresees).await));
    }
    place.leave().await;
    figures
}

async fn day(namespace: &Namespace<'_>, foresees: bool) -> Vec<Value> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut noisy = |minute: i64| usual(minute) * (0.9 + 0.2 * random.f64());
    let today = NaiveDate::from_ymd_opt(2026, 3, 16)
        .and_then(|day| day.and_hms_opt(0, 0, 0))
        .expect("a day")
        .and_utc();
    for minute in (-HISTORY * 1440..0).step_by(5) {
        let steps: f64 = (minute..minute + 5).map(|of| 60.0 * noisy(of.rem_euclid(1440))).sum();
        namespace.note(today + Duration::minutes(minute), steps).await;
    }

    let (mut waiting, mut wishes, mut workers_were) = (0.0_f64, vec![3.0_f64], Vec::new());
    // (seconds that it waited, how many steps)
    let mut waits: Vec<(f64, f64)> = Vec::new();
    for minute in 0..1440 {
        let at = today + Duration::minutes(minute);
        // Those who were wanted long enough ago are there, and stay as long as anybody was wanted lately.
        let lately = &wishes[wishes.len().saturating_sub(START_MINUTES + STAY_MINUTES)..];
        let there = &lately[..lately.len().saturating_sub(START_MINUTES).max(1)];
        let workers = there.iter().copied().fold(1.0, f64::max);
        let rate = noisy(minute);
        let capacity = 60.0 * workers * HANDLERS / SERVICE_SECONDS;
        waits.push((waiting / capacity * 60.0, 60.0 * rate));
        waiting = (waiting + 60.0 * rate - capacity).max(0.0);
        workers_were.push(workers);
        namespace.note(at, 60.0 * rate).await;
        let (now, soon) = namespace.wanted(at + Duration::minutes(1), rate, waiting).await;
        wishes.push(if foresees { now.max(soon) } else { now });
    }
    let all: f64 = waits.iter().map(|(_, steps)| steps).sum();
    waits.sort_by(|a, b| a.0.total_cmp(&b.0));
    let percentile = |share: f64| {
        let mut sum = 0.0;
        let reached = |(_, steps): &&(f64, f64)| {
            sum += steps;
            sum >= share * all
        };
        waits.iter().find(reached).map_or(0.0, |(wait, _)| *wait)
    };
    vec![
        json!(workers_were.iter().sum::<f64>() / workers_were.len() as f64),
        json!(percentile(0.9)),
        json!(percentile(0.99)),
        json!(waits.last().map(|(wait, _)| wait)),
    ]
}
