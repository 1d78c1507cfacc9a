//! Telemetry: what operators see of a process from afar. Logs go to standard error; metrics are read at `GET /metrics`, and pushed to a collector
//! where OpenTelemetry's standard variables name one, as traces are.

mod logging;
mod metrics;
mod observed;
mod otlp;
mod traces;

pub(crate) use logging::is_redacted;
pub use logging::{init_logging, log, log_as, log_to, About, Logging};
pub(crate) use metrics::Metrics;
pub use metrics::{Described, TABLE};
pub use traces::{extract, inject, sample, Carrier};
pub(crate) use traces::{sibling, span_context, system_time, Span, Traces};

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry::Key;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::Resource;
use prometheus::{Registry, TextEncoder};

use crate::config::Effective;

/// How long the end of a process waits for its telemetry.
const FLUSH: Duration = Duration::from_secs(3);

/// Logs and samples as these settings say, from now on.
pub fn take_over(effective: &Effective) {
    log_as(&effective.settings.log);
    sample(effective.settings.traces.sample);
}

struct Telemetry {
    metrics: Arc<Metrics>,
    registry: Registry,
    meters: SdkMeterProvider,
    pushes_metrics: bool,
    /// None: nobody wants them.
    traces: Option<Arc<Traces>>,
}

/// Of which process, since a forked child has its own.
type Current = Option<(u32, Arc<Telemetry>)>;

static CURRENT: RwLock<Current> = RwLock::new(None);

impl Telemetry {
    fn start() -> Telemetry {
        let registry = Registry::new();
        let resource = resource();
        let mut meters = SdkMeterProvider::builder().with_resource(resource.clone());
        // Without anybody who reads them, instruments do nothing.
        if !otlp::is_disabled() {
            match opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .scope_info_enabled(false)
                .build()
            {
                Ok(reader) => meters = meters.with_reader(reader),
                Err(error) => tracing::warn!(%error, "no metrics for Prometheus"),
            }
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
        let traces = match otlp::traces() {
            Some(Ok(exporter)) => Some(Arc::new(Traces::new(exporter, &resource))),
            Some(Err(error)) => {
                tracing::warn!(%error, "traces are not pushed");
                None
            }
            None => None,
        };
        let meters = meters.build();
        Telemetry {
            metrics: Arc::new(Metrics::new(&meters.meter("tasker"))),
            registry,
            meters,
            pushes_metrics,
            traces,
        }
    }

    /// This process's, started on first use: on the runtime, which will carry what is pushed.
    fn current() -> Arc<Telemetry> {
        if let Some(telemetry) = started() {
            return telemetry;
        }
        let mut current = CURRENT.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(telemetry) = Telemetry::of_this_process(&current) {
            return telemetry;
        }
        let telemetry = Arc::new(Telemetry::start());
        if let Some(parents) = current.replace((std::process::id(), telemetry.clone())) {
            // Its threads are not in this process: leaked, not dropped.
            std::mem::forget(parents);
        }
        telemetry
    }

    fn of_this_process(current: &Current) -> Option<Arc<Telemetry>> {
        let (_, telemetry) = current.as_ref().filter(|(owner, _)| *owner == std::process::id())?;
        Some(telemetry.clone())
    }
}

fn started() -> Option<Arc<Telemetry>> {
    Telemetry::of_this_process(&CURRENT.read().unwrap_or_else(PoisonError::into_inner))
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

/// What is done with the spans of this process; None: nobody wants them.
pub(crate) fn traces() -> Option<Arc<Traces>> {
    Telemetry::current().traces.clone()
}

fn pushing() -> Option<Arc<Telemetry>> {
    started().filter(|telemetry| telemetry.pushes_metrics || telemetry.traces.is_some())
}

/// Whether this process has begun to push metrics or traces.
pub fn is_pushing() -> bool {
    pushing().is_some()
}

/// Pushes what has not been pushed yet: the process, or a part of it, ends.
pub async fn flush() {
    let Some(telemetry) = pushing() else { return };
    let flushing = tokio::task::spawn_blocking(move || {
        let traces = telemetry.traces.as_ref().map_or(Ok(()), |traces| traces.flush());
        match telemetry.pushes_metrics {
            true => traces.and(telemetry.meters.force_flush()),
            false => traces,
        }
    });
    if !matches!(tokio::time::timeout(FLUSH, flushing).await, Ok(Ok(Ok(())))) {
        tracing::warn!("the last metrics or traces could not be pushed");
    }
}

/// All metrics, in Prometheus' text format.
pub(crate) fn prometheus_text() -> String {
    TextEncoder::new()
        .encode_to_string(&Telemetry::current().registry.gather())
        .unwrap_or_default()
}
