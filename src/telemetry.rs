//! Telemetry: what operators see of a process from afar. Logs go to standard error; metrics are read at `GET /metrics`.

mod logging;
mod metrics;
mod observed;

pub use logging::init_logging;
pub(crate) use metrics::Metrics;
pub use metrics::{Described, TABLE};

use std::sync::{Arc, PoisonError, RwLock};

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::Resource;
use prometheus::{Registry, TextEncoder};

struct Telemetry {
    metrics: Arc<Metrics>,
    registry: Registry,
    // Kept for its readers.
    _meters: SdkMeterProvider,
}

/// Of which process, since a forked child has its own.
static CURRENT: RwLock<Option<(u32, Arc<Telemetry>)>> = RwLock::new(None);

impl Telemetry {
    fn start() -> Telemetry {
        let registry = Registry::new();
        let resource = Resource::builder().with_service_name("tasker").build();
        let mut meters = SdkMeterProvider::builder().with_resource(resource);
        match opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
        {
            Ok(reader) => meters = meters.with_reader(reader),
            Err(error) => tracing::warn!(%error, "no metrics for Prometheus"),
        }
        let meters = meters.build();
        Telemetry {
            metrics: Arc::new(Metrics::new(&meters.meter("tasker"))),
            registry,
            _meters: meters,
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

/// The instruments of this process.
pub(crate) fn metrics() -> Arc<Metrics> {
    Telemetry::current().metrics.clone()
}

/// All metrics, in Prometheus' text format.
pub(crate) fn prometheus_text() -> String {
    TextEncoder::new()
        .encode_to_string(&Telemetry::current().registry.gather())
        .unwrap_or_default()
}
