//! Steady load while a long transaction in another session holds back the xmin horizon, so that vacuum can take nothing: a quarter of the
//! time before, a quarter while it is held, half of it after.

use std::time::{Duration, Instant};

use serde_json::{json, Value};
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::site::{Language, Site};
use crate::throughput::{fill, Shape};

pub(crate) const COLUMNS: [&str; 6] = [
    "steps/s",
    "dead messages",
    "dead steps",
    "dead tasks",
    "queue index, MB",
    "claim index, MB",
];

/// About so many tasks are kept waiting.
const BACKLOG: i64 = 10_000;

/// Calls `row` with the minute and the figures of [`COLUMNS`], every half minute.
pub(crate) async fn measure(site: &Site, minutes: u32, mut row: impl FnMut(&str, &[Value])) {
    let place = site.place(&[Shape::Linear4.template()]).await;
    fill(&place, BACKLOG as usize).await;
    let stop = CancellationToken::new();
    let feeding = async {
        let mut submitted = BACKLOG;
        while !stop.is_cancelled() {
            if submitted - done(&place.pool).await / 4 < BACKLOG {
                fill(&place, 1_000).await;
                submitted += 1_000;
            } else {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let watching = async {
        let crew = place.work(Language::Rust, 1).await;
        let began = Instant::now();
        let mut holder: Option<PgConnection> = None;
        let (mut steps, mut at) = (0, began);
        for half_minute in 1..=2 * minutes {
            tokio::time::sleep_until((began + Duration::from_secs(30) * half_minute).into()).await;
            let (now, steps_now) = (Instant::now(), done(&place.pool).await);
            let rate = (steps_now - steps) as f64 / (now - at).as_secs_f64();
            (steps, at) = (steps_now, now);
            let held = if holder.is_some() { ", xmin held" } else { "" };
            let mut cells = vec![json!(rate)];
            cells.extend(sizes(&place.pool).await.map(|figure| json!(figure)));
            row(&format!("minute {}{held}", f64::from(half_minute) / 2.0), &cells);
            if half_minute == minutes / 2 {
                holder = Some(hold(&place.pool).await);
            } else if half_minute == minutes {
                if let Some(holder) = holder.take() {
                    holder.close().await.expect("closes");
                }
            }
        }
        stop.cancel();
        crew.stop().await;
    };
    tokio::join!(feeding, watching);
    place.leave().await;
}

/// Steps so far: each deletes its message. (Counting the tasks that are left would walk through the dead ones.)
async fn done(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'q_bench_queue'")
        .fetch_one(pool)
        .await
        .expect("asks")
}

/// A transaction that has seen something, and goes on.
async fn hold(pool: &PgPool) -> PgConnection {
    let mut session = pool.connect_options().connect().await.expect("connects");
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasker.namespaces")
        .execute(&mut session)
        .await
        .expect("begins");
    session
}

/// The figures of [`COLUMNS`] after the first.
async fn sizes(pool: &PgPool) -> [f64; 5] {
    let row: (f64, f64, f64, f64, f64) = sqlx::query_as(
        "SELECT (SELECT n_dead_tup::float8 FROM pg_stat_user_tables WHERE relname = 'q_bench_queue'),
                (SELECT n_dead_tup::float8 FROM pg_stat_user_tables WHERE relid = 'tasker.steps'::regclass),
                (SELECT n_dead_tup::float8 FROM pg_stat_user_tables WHERE relid = 'tasker.tasks'::regclass),
                pg_indexes_size('pgmq.q_bench_queue')::float8 / 1e6, pg_relation_size('tasker.tasks_claim')::float8 / 1e6",
    )
    .fetch_one(pool)
    .await
    .expect("the statistics");
    row.into()
}
