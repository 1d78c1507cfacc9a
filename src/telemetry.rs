//! Telemetry: what operators see of a process from afar. Logs go to standard error; metrics are read at `GET /metrics`, and pushed to a collector
//! where OpenTelemetry's standard variables name one.

mod logging;
mod metrics;
mod observed;
mod otlp;

pub use logging::{init_logging, log, log_to, log_to_standard_error, About};
pub(crate) use metrics::Metrics;
pub use metrics::{Described, TABLE};

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry::Key;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::Resource;
use prometheus::{Registry, TextEncoder};

/// How long the end of a process waits for its telemetry.
const FLUSH: Duration = Duration::from_secs(3);

struct Telemetry {
    metrics: Arc<Metrics>,
    registry: Registry,
    meters: SdkMeterProvider,
    pushes_metrics: bool,
}

/// Of which process, since a forked child has its own.
static CURRENT: RwLock<Option<(u32, Arc<Telemetry>)>> = RwLock::new(None);

impl Telemetry {
    fn start() -> Telemetry {
        let registry = Registry::new();
        let mut meters = SdkMeterProvider::builder().with_resource(resource());
        match opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
        {
            Ok(reader) => meters = meters.with_reader(reader),
            Err(error) => tracing::warn!(%error, "no metrics for Prometheus"),
        }
        let mut pushes_metrics = false;
        match otlp::metrics() {
            Some(Ok(exporter)) => {
                meters = meters.with_periodic_exporter(exporter);
                pushes_metrics = true;
            }
            Some(Err(error)) => tracing::warn!(%error, "metrics are not pushed"),
            None => {}
        }
        let meters = meters.build();
        Telemetry {
            metrics: Arc::new(Metrics::new(&meters.meter("tasker"))),
            registry,
            meters,
            pushes_metrics,
        }
    }

    /// This process's, started on first use.
    fn current() -> Arc<Telemetry> {
        let pid = std::process::id();
        let of_this = |current: &Option<(u32, Arc<Telemetry>)>| current.as_ref().filter(|(owner, _)| *owner == pid).map(|(_, t)| t.clone());
        if let Some(telemetry) = of_this(&CURRENT.read().unwrap_or_else(PoisonError::into_inner)) {
            return telemetry;
        }
        let mut current = CURRENT.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(telemetry) = of_this(&current) {
            return telemetry;
        }
        let telemetry = Arc::new(Telemetry::start());
        if let Some(parents) = current.replace((pid, telemetry.clone())) {
            // Its threads are not in this process: leaked, not dropped.
            std::mem::forget(parents);
        }
        telemetry
    }
}

/// Who we are, as OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say; `tasker` where they do not.
fn resource() -> Resource {
    let named = Resource::builder().build();
    match named.get(&Key::new("service.name")) {
        Some(name) if !name.as_str().starts_with("unknown_service") => named,
        _ => Resource::builder().with_service_name("tasker").build(),
    }
}

/// The instruments of this process.
pub(crate) fn metrics() -> Arc<Metrics> {
    Telemetry::current().metrics.clone()
}

/// Whether metrics are pushed, so that what is only looked at when somebody asks has to be looked at every so often.
pub(crate) fn pushes_metrics() -> bool {
    Telemetry::current().pushes_metrics
}

/// Pushes what has not been pushed yet: the process, or a part of it, ends.
pub(crate) async fn flush() {
    let telemetry = Telemetry::current();
    if telemetry.pushes_metrics {
        let flushing = tokio::task::spawn_blocking(move || telemetry.meters.force_flush());
        if !matches!(tokio::time::timeout(FLUSH, flushing).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last metrics could not be pushed");
        }
    }
}

/// All metrics, in Prometheus' text format.
pub(crate) fn prometheus_text() -> String {
    TextEncoder::new()
        .encode_to_string(&Telemetry::current().registry.gather())
        .unwrap_or_default()
}
