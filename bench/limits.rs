//! What limits cost those steps that they concern: every one waits for its permits, and is sent when it has them.

use serde_json::{json, Value};

use crate::site::{Language, Site, NAMESPACE};
use crate::throughput::{fill, Shape};

/// (name, limits)
pub(crate) fn cases() -> [(&'static str, Value); 4] {
    [
        ("none", json!({})),
        ("200 at once", json!({ "all": { "concurrency": 200 } })),
        (
            "ten at once of each of 100 customers",
            json!({ "customers": { "key": "customer", "concurrency": 10 } }),
        ),
        ("a circuit breaker", json!({ "all": { "breaker": {} } })),
    ]
}

/// One-step tasks a second.
pub(crate) async fn measure(site: &Site, language: Language, tasks: usize, limits: &Value) -> f64 {
    let place = site.place(&[Shape::Jobs.template()]).await;
    fill(&place, tasks).await;
    sqlx::query("UPDATE tasker.tasks SET input = input || jsonb_build_object('customer', abs(hashtext(id::text)) % 100)")
        .execute(&place.pool)
        .await
        .expect("spreads them over customers");
    sqlx::query("SELECT tasker.change_configuration(0, $1, 'bench', NULL)")
        .bind(json!({ "namespaces": { NAMESPACE: { "limits": limits } } }))
        .execute(&place.pool)
        .await
        .expect("sets the limits");
    place.settle().await;
    let crew = place.work(language, 1).await;
    let seconds = place.finished().await;
    crew.stop().await;
    place.leave().await;
    tasks as f64 / seconds
}
