//! What telemetry costs: linear-4 with an orchestrator and a Ruby worker, both pushing to a collector in this process that reads what came only afterwards.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use crate::site::{stop, Site};
use crate::throughput::Shape;

pub(crate) enum Telemetry {
    Off,
    Metrics,
    /// And of so many of a hundred tasks a trace.
    Traces(usize),
}

pub(crate) const CASES: [(&str, Telemetry); 4] = [
    ("off", Telemetry::Off),
    ("metrics", Telemetry::Metrics),
    ("metrics, and traces of 1 %", Telemetry::Traces(1)),
    ("metrics, and traces of all", Telemetry::Traces(100)),
];

/// (steps a second, the share of the spans that came)
pub(crate) async fn measure(site: &Site, threads: usize, steps: usize, telemetry: &Telemetry) -> (f64, Option<f64>) {
    let place = site.place(&[Shape::Linear4.template()]).await;
    let tasks = steps / 4;
    let sampled = match telemetry {
        Telemetry::Traces(percent) => *percent,
        _ => 0,
    };
    let create = "
        SELECT count(*) FROM tasker.create_tasks(
            'flow', array_fill('{\"order\": 1, \"customer\": \"someone@customers.example\"}'::jsonb, ARRAY[$1]),
            p_traces => CASE WHEN $3 THEN ARRAY(
                SELECT jsonb_build_object('traceparent', format(
                    '00-%s-b7ad6b7169203331-0%s', replace(gen_random_uuid()::text, '-', ''), (n % 100 < $2)::int))
                FROM generate_series(1, $1) AS n) END)";
    let traced = matches!(telemetry, Telemetry::Traces(_));
    for _ in 0..tasks / 1_000 {
        let query = sqlx::query(create).bind(1_000).bind(sampled as i32).bind(traced);
        query.execute(&place.pool).await.expect("submits");
    }
    place.settle().await;

    let (address, pushed) = collector().await;
    let endpoint = format!("http://{address}");
    let environment: &[(&str, &str)] = match telemetry {
        Telemetry::Off => &[("OTEL_SDK_DISABLED", "true")],
        Telemetry::Metrics => &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_TRACES_EXPORTER", "none")],
        Telemetry::Traces(_) => &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)],
    };
    let mut worker = place.ruby(threads, environment);
    let mut orchestrator = place.serve(environment);
    let seconds = place.drained().await;
    stop(&mut worker);
    stop(&mut orchestrator);
    place.leave().await;
    // Four for each step; the claim and the enqueuing of each task.
    let expected = tasks * sampled / 100 * (4 * 4 + 2);
    let came = spans(&pushed.lock().unwrap_or_else(PoisonError::into_inner)) as f64;
    (steps as f64 / seconds, (expected > 0).then(|| came / expected as f64))
}

/// What was pushed to it.
async fn collector() -> (SocketAddr, Arc<Mutex<Vec<Bytes>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("an address");
    let pushed = Arc::new(Mutex::new(Vec::new()));
    let kept = pushed.clone();
    let take = move |body: Bytes| async move { kept.lock().unwrap_or_else(PoisonError::into_inner).push(body) };
    let router = axum::Router::new()
        .route("/v1/traces", post(take))
        .route("/v1/metrics", post(|| async {}));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, pushed)
}

/// How many there are in these requests.
fn spans(pushed: &[Bytes]) -> usize {
    let count = |body: &Bytes| {
        let request = ExportTraceServiceRequest::decode(body.clone()).expect("spans");
        let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        scopes.map(|scope| scope.spans.len()).sum::<usize>()
    };
    pushed.iter().map(count).sum()
}
