//! Steady load while tasks that have ended are deleted: whether throughput and disk stay as they are.

use std::time::{Duration, Instant};

use serde_json::{json, Value};
use sqlx::PgPool;
use tokio::time::{interval, sleep_until, MissedTickBehavior};

use crate::site::{Language, Site};
use crate::throughput::{fill, Shape};

pub(crate) const COLUMNS: [&str; 4] = ["tasks/s", "tasks kept", "of them waiting", "MB"];

/// Tasks a second that come in.
const RATE: usize = 5_000;

/// So many minutes, of which a sixth is kept, a minute at least; calls `row` with the minute and the figures of [`COLUMNS`].
pub(crate) async fn measure(site: &Site, minutes: u32, mut row: impl FnMut(&str, &[Value])) {
    let place = site.place(&[Shape::Jobs.template()]).await;
    place.keep_history((minutes * 10).max(60)).await;
    let feeding = async {
        let mut ticks = interval(Duration::from_millis(200));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            ticks.tick().await;
            fill(&place, RATE / 5).await;
        }
    };
    let watching = async {
        let crew = place.work(Language::Rust, 1).await;
        let began = Instant::now();
        let (mut ended, mut at) = (0.0, began);
        for minute in 1..=minutes {
            sleep_until((began + Duration::from_secs(60) * minute).into()).await;
            let (now, figures) = (Instant::now(), figures(&place.pool).await);
            let rate = (figures[0] - ended) / (now - at).as_secs_f64();
            (ended, at) = (figures[0], now);
            let mut cells = vec![json!(rate)];
            cells.extend(figures[1..].iter().map(|figure| json!(figure)));
            row(&format!("minute {minute}"), &cells);
        }
        crew.stop().await;
    };
    tokio::select! { () = feeding => {}, () = watching => {} }
    place.leave().await;
}

/// Tasks that have ended so far, how many there are, how many wait, and the database's megabytes.
async fn figures(pool: &PgPool) -> [f64; 4] {
    let row: (f64, f64, f64, f64) = sqlx::query_as(
        "SELECT (SELECT n_tup_del::float8 FROM pg_stat_user_tables WHERE relname = 'q_bench_queue'), count(*)::float8,
                count(*) FILTER (WHERE finished_at IS NULL)::float8, pg_database_size(current_database())::float8 / 1e6 FROM tasker.tasks",
    )
    .fetch_one(pool)
    .await
    .expect("the statistics");
    row.into()
}
