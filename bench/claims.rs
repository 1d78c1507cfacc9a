//! What a claim of 100 tasks costs while few or very many wait, in 20 namespaces and at four priorities.

use std::time::Instant;

use serde_json::{json, Value};
use sqlx::Executor;

use crate::latency::percentiles;
use crate::site::{Place, Site};

const NAMESPACES: usize = 20;
const ROUNDS: usize = 1_000;
/// Not measured.
const WARM_UP: usize = 20;

/// [p50, p99] in milliseconds, with so many tasks pending before each claim.
pub(crate) async fn measure(site: &Site, pending: usize) -> Vec<Value> {
    let template =
        |n| json!({ "name": format!("flow{n}"), "namespace": format!("bench{n}"), "steps": [{ "name": "s0", "handler": "Noop" }] });
    let templates: Vec<String> = (0..NAMESPACES).map(|n| template(n).to_string()).collect();
    let place = site.place(&templates).await;
    add(&place, pending / NAMESPACES).await;
    place.settle().await;
    let member: i32 = sqlx::query_scalar("SELECT tasker.join_members('orchestrator', 'bench', 'bench', '{}', interval '1 hour')")
        .fetch_one(&place.pool)
        .await
        .expect("joins");
    let mut connection = place.pool.acquire().await.expect("connects");
    connection.execute(tasker::PLANS).await.expect("sets");
    let mut seconds = Vec::new();
    for round in 0..WARM_UP + ROUNDS {
        let began = Instant::now();
        let claimed: i64 = sqlx::query_scalar("SELECT sum(claimed) FROM tasker.claim_tasks($1, NULL, 1000, 5)")
            .bind(member)
            .fetch_one(&mut *connection)
            .await
            .expect("claims");
        if round >= WARM_UP {
            seconds.push(began.elapsed().as_secs_f64());
        }
        assert_eq!(claimed, 100);
        add(&place, 100 / NAMESPACES).await;
        // What an orchestrator does ten times a second.
        sqlx::raw_sql("SELECT tasker.move_marks()")
            .execute(&place.pool)
            .await
            .expect("moves");
        // The queues stay shallow.
        for n in 0..NAMESPACES {
            sqlx::raw_sql(&format!("DELETE FROM pgmq.q_bench{n}_queue"))
                .execute(&place.pool)
                .await
                .expect("empties");
        }
    }
    drop(connection);
    place.leave().await;
    percentiles(seconds)
}

/// So many tasks more in each namespace.
async fn add(place: &Place, tasks: usize) {
    for n in 0..NAMESPACES {
        for start in (0..tasks).step_by(10_000) {
            sqlx::query(
                "SELECT count(*) FROM tasker.create_tasks($1, array_fill('{\"order\": 1}'::jsonb, ARRAY[$2]), NULL,
                     (SELECT array_agg((ARRAY['low', 'normal', 'high', 'urgent'])[1 + i % 4]) FROM generate_series(1, $2) AS i))",
            )
            .bind(format!("flow{n}"))
            .bind(10_000.min(tasks - start) as i32)
            .execute(&place.pool)
            .await
            .expect("creates tasks");
        }
    }
}
