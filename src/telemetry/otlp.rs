//! OTLP: what is pushed to a collector, where to and how, as OpenTelemetry's standard variables say
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>). Without them nothing is.

use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithHttpConfig};

/// What is pushed.
#[derive(Debug, Clone, Copy)]
enum Signal {
    Metrics,
    Traces,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Metrics => "METRICS",
            Signal::Traces => "TRACES",
        }
    }

    /// Pushed when a collector is named, or "otlp" is; not when "none" is, or all of OpenTelemetry is off.
    fn is_wanted(self) -> bool {
        if is_disabled() {
            return false;
        }
        match variable(&format!("OTEL_{}_EXPORTER", self.name())).as_deref() {
            Some("none") => false,
            Some("otlp") => true,
            _ => self.setting("ENDPOINT").is_some(),
        }
    }

    fn is_grpc(self) -> bool {
        self.setting("PROTOCOL").is_some_and(|protocol| protocol == "grpc")
    }

    /// The signal's own setting, else the one for all signals.
    fn setting(self, name: &str) -> Option<String> {
        variable(&format!("OTEL_EXPORTER_OTLP_{}_{name}", self.name())).or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{name}")))
    }
}

/// Whether there is to be no telemetry at all.
pub(super) fn is_disabled() -> bool {
    variable("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true"))
}

/// Empty is as good as unset.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// None: metrics are not pushed. For gRPC, to be called on the runtime that will carry it.
pub(super) fn metrics() -> Option<Result<MetricExporter, ExporterBuildError>> {
    let signal = Signal::Metrics;
    signal.is_wanted().then(|| match signal.is_grpc() {
        true => MetricExporter::builder().with_tonic().build(),
        false => MetricExporter::builder().with_http().with_http_client(Http::new()).build(),
    })
}

/// None: traces are not pushed. For gRPC, as with metrics.
pub(super) fn traces() -> Option<Result<SpanExporter, ExporterBuildError>> {
    let signal = Signal::Traces;
    signal.is_wanted().then(|| match signal.is_grpc() {
        true => SpanExporter::builder().with_tonic().build(),
        false => SpanExporter::builder().with_http().with_http_client(Http::new()).build(),
    })
}

/// HTTP by the client that is there already. It blocks: the exporters have threads of their own.
#[derive(Debug)]
struct Http(ureq::Agent);

/// How long an answer of a collector may be.
const ANSWER_BYTES: u64 = 1 << 20;

impl Http {
    fn new() -> Http {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(10)));
        Http(config.build().new_agent())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let (parts, body) = self.0.run(Request::from_parts(parts, body.to_vec()))?.into_parts();
        let mut answer = Vec::new();
        body.into_reader().take(ANSWER_BYTES).read_to_end(&mut answer)?;
        Ok(Response::from_parts(parts, answer.into()))
    }
}

impl HttpClient for Http {
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.send(request) })
    }
}
