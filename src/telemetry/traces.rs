//! Traces: spans are told when they are over, with the times that they had, and pushed to a collector.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Config, Sampler, SamplingDecision, ShouldSample, SpanData, SpanEvents, SpanExporter, SpanLinks,
    SpanProcessor,
};
use opentelemetry_sdk::Resource;

use super::otlp;

/// Where in a trace something happens, as it travels: `traceparent` and `tracestate` of W3C Trace Context (<https://www.w3.org/TR/trace-context/>).
pub type Carrier = HashMap<String, String>;

/// The context that a carrier brings; without a span when it brings none.
pub fn extract(carrier: &Carrier) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), carrier)
}

/// The span that a carrier brings; [`SpanContext::NONE`] when it brings none.
pub(crate) fn span_context(carrier: &Carrier) -> SpanContext {
    extract(carrier).span().span_context().clone()
}

/// The carrier of a context; empty when it has no span.
pub fn inject(context: &SpanContext) -> Carrier {
    let mut carrier = Carrier::new();
    TraceContextPropagator::new().inject_context(&Context::new().with_remote_span_context(context.clone()), &mut carrier);
    carrier.retain(|_, value| !value.is_empty());
    carrier
}

/// Another span of the same trace.
pub(crate) fn sibling(of: &SpanContext, id: SpanId) -> SpanContext {
    SpanContext::new(of.trace_id(), id, of.trace_flags(), true, of.trace_state().clone())
}

/// When that was, on the clock that spans have.
pub(crate) fn system_time(at: Instant) -> SystemTime {
    SystemTime::now() - at.elapsed()
}

/// A span that is over.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) context: SpanContext,
    /// [`SpanId::INVALID`] for the first of a trace.
    pub(crate) parent: SpanId,
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) links: Vec<SpanContext>,
    /// The class and the message of what went wrong.
    pub(crate) error: Option<(String, String)>,
}

impl Span {
    pub(crate) fn new(name: String, kind: SpanKind, context: SpanContext, parent: SpanId, (start, end): (SystemTime, SystemTime)) -> Span {
        Span {
            name,
            kind,
            context,
            parent,
            start,
            end,
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        }
    }
}

/// What is done with spans.
#[derive(Debug)]
pub(crate) struct Traces {
    processor: BatchSpanProcessor,
    config: Config,
    scope: InstrumentationScope,
}

/// In place of the one that OTEL_TRACES_SAMPLER names.
static SAMPLE: RwLock<Option<Sampler>> = RwLock::new(None);

/// Keeps this part of the traces that begin here, from now on. None: what OTEL_TRACES_SAMPLER says.
pub fn sample(part: Option<f64>) {
    let sampler = part.map(|part| Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(part))));
    *SAMPLE.write().unwrap_or_else(PoisonError::into_inner) = sampler;
}

/// How many spans may wait to be pushed, and go in one push, where OTEL_BSP_* do not say: with the standard's 2,048 and 512 a busy worker drops some.
const QUEUE: usize = 16_384;
const BATCH: usize = 2_048;

impl Traces {
    pub(super) fn new(exporter: impl SpanExporter + 'static, resource: &Resource) -> Traces {
        let mut batches = BatchConfigBuilder::default();
        if otlp::variable("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
            batches = batches.with_max_queue_size(QUEUE);
        }
        if otlp::variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_none() {
            batches = batches.with_max_export_batch_size(BATCH);
        }
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build();
        processor.set_resource(resource);
        Traces {
            processor,
            config: Config::default(),
            scope: InstrumentationScope::builder("tasker")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }

    /// The context of a new span below `parent`, or of a new trace; the sampler (OTEL_TRACES_SAMPLER) says whether anybody will see it.
    pub(crate) fn begin(&self, parent: &Context, name: &str, kind: &SpanKind) -> SpanContext {
        let above = parent.span().span_context().clone();
        let ids = &self.config.id_generator;
        let trace_id = if above.is_valid() { above.trace_id() } else { ids.new_trace_id() };
        let given = above.is_valid().then_some(parent);
        let sample = SAMPLE.read().unwrap_or_else(PoisonError::into_inner);
        let sampler = sample.as_ref().map_or(&*self.config.sampler, |own| own as &dyn ShouldSample);
        let sampled = sampler.should_sample(given, trace_id, name, kind, &[], &[]);
        let flags = match sampled.decision {
            SamplingDecision::RecordAndSample => TraceFlags::SAMPLED,
            SamplingDecision::Drop | SamplingDecision::RecordOnly => TraceFlags::default(),
        };
        SpanContext::new(trace_id, ids.new_span_id(), flags, false, sampled.trace_state)
    }

    /// Tells a span, if its trace is sampled.
    pub(crate) fn tell(&self, span: Span) {
        if !span.context.is_sampled() {
            return;
        }
        let most = self.config.span_limits.max_links_per_span as usize;
        let mut links = SpanLinks::default();
        links.dropped_count = span.links.len().saturating_sub(most) as u32;
        links.links = span.links.into_iter().take(most).map(Link::with_context).collect();
        let mut attributes = span.attributes;
        let mut events = SpanEvents::default();
        let mut status = Status::Unset;
        if let Some((class, message)) = span.error {
            attributes.push(KeyValue::new("error.type", class.clone()));
            let exception = vec![
                KeyValue::new("exception.type", class.clone()),
                KeyValue::new("exception.message", message),
            ];
            events.events.push(Event::new("exception", span.end, exception, 0));
            status = Status::error(class);
        }
        self.processor.on_end(SpanData {
            parent_span_is_remote: span.parent != SpanId::INVALID,
            span_context: span.context,
            parent_span_id: span.parent,
            span_kind: span.kind,
            name: span.name.into(),
            start_time: span.start,
            end_time: span.end.max(span.start),
            attributes,
            dropped_attributes_count: 0,
            events,
            links,
            status,
            instrumentation_scope: self.scope.clone(),
        });
    }

    pub(super) fn flush(&self) -> opentelemetry_sdk::error::OTelSdkResult {
        self.processor.force_flush()
    }
}
