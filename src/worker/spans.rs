//! What a worker tells of a step that is part of a trace, once it is reported: that it was processed, and of that how long it waited, was handled,
//! and took to report.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind};
use opentelemetry::KeyValue;

use super::{Shared, Step};
use crate::engine::fail::Failure;
use crate::engine::trace::{messaging, span_id, Message, Part, Trace};
use crate::telemetry::{self, Span, Traces};

/// The report of one step, as it was committed.
pub(super) struct Reporting<'a> {
    pub(super) began: Instant,
    /// The function that took it, and how many at once.
    pub(super) function: &'static str,
    pub(super) batch: usize,
    pub(super) failure: Option<&'a Failure>,
}

impl Reporting<'_> {
    /// The handler's own transaction reported it.
    pub(super) fn within_the_handler() -> Reporting<'static> {
        Reporting {
            began: Instant::now(),
            function: "tasker.complete_steps",
            batch: 1,
            failure: None,
        }
    }
}

/// The span in which the handler of this step runs: where what it does belongs. None: no trace.
pub(super) fn context(step: &Step) -> Option<SpanContext> {
    let task = telemetry::span_context(&step.leased.trace.as_ref()?.context);
    if !task.is_valid() {
        return None;
    }
    Some(match telemetry::traces() {
        Some(_) => telemetry::sibling(&task, span_id(step.leased.task_id, handle(step))),
        // Nobody would ever see it.
        None => task,
    })
}

fn message(step: &Step) -> Message {
    Message {
        step: step.leased.step,
        id: step.leased.msg_id,
    }
}

fn handle(step: &Step) -> Part {
    Part::Handle(message(step), step.leased.fence)
}

/// Tells a step whose report counted; `ended` is when its handler was done.
pub(super) fn tell(shared: &Shared, step: &Step, ended: Instant, reporting: &Reporting<'_>) {
    let Some(spans) = Spans::of(step) else { return };
    let message = message(step);
    let process = spans.id(Part::Process(message));
    let flow = format!("{}.{}", step.leased.template, step.leased.name);
    let error = reporting.failure.map(|failure| (failure.class.clone(), failure.message.clone()));
    let now = SystemTime::now();
    let enqueued = telemetry::system_time(step.received) - Duration::from_secs_f64(step.leased.waited.max(0.0));
    let began = step.began.unwrap_or(step.received);

    let (parent, links) = spans.causes();
    let mut processing = spans.span(format!("process {flow}"), SpanKind::Consumer, process, parent, (enqueued, now));
    processing.attributes = spans.attributes(shared);
    processing
        .attributes
        .extend(messaging("process", shared.queues[step.queue].clone()));
    processing.attributes.extend([
        KeyValue::new("messaging.message.id", message.id.to_string()),
        KeyValue::new("messaging.consumer.group.name", shared.namespaces[step.queue].clone()),
    ]);
    processing.links = links;
    processing.error.clone_from(&error);
    spans.traces.tell(processing);

    let (wait, waited) = (spans.id(Part::Wait(message)), (enqueued, telemetry::system_time(began)));
    spans
        .traces
        .tell(spans.span("wait".into(), SpanKind::Internal, wait, process, waited));
    spans.traces.tell(spans.handled(began, ended, process, error));

    let name = if reporting.failure.is_some() { "fail" } else { "complete" };
    let (report, times) = (spans.id(Part::Report(message)), (telemetry::system_time(reporting.began), now));
    let mut reported = spans.span(format!("{name} {flow}"), SpanKind::Client, report, process, times);
    reported.attributes = vec![
        KeyValue::new("db.system.name", "postgresql"),
        KeyValue::new("db.stored_procedure.name", reporting.function),
        KeyValue::new("db.operation.batch.size", reporting.batch as i64),
    ];
    spans.traces.tell(reported);
}

/// Tells only that the handler ran: its step is another's by now, and so is all else there is to tell of it.
pub(super) fn tell_lost(shared: &Shared, step: &Step, ended: Instant) {
    let Some(spans) = Spans::of(step) else { return };
    let process = spans.id(Part::Process(message(step)));
    let error = Some(("LeaseLost".into(), "the step is another's by now".into()));
    // Nobody tells the one above it.
    spans.traces.tell(Span {
        attributes: spans.attributes(shared),
        ..spans.handled(step.began.unwrap_or(step.received), ended, process, error)
    });
}

/// What the spans of one step have in common.
struct Spans<'a> {
    traces: Arc<Traces>,
    trace: &'a Trace,
    task: SpanContext,
    step: &'a Step,
}

impl Spans<'_> {
    /// None: nobody wants them.
    fn of(step: &Step) -> Option<Spans<'_>> {
        let leased = &step.leased;
        let trace = leased.trace.as_ref()?;
        let traces = telemetry::traces()?;
        let task = telemetry::span_context(&trace.context);
        task.is_sampled().then(|| Spans { traces, trace, task, step })
    }

    /// What identifies the step, in the first of its spans only: the others are below it.
    fn attributes(&self, shared: &Shared) -> Vec<KeyValue> {
        let leased = &self.step.leased;
        vec![
            KeyValue::new("tasker.task.id", leased.task_id.to_string()),
            KeyValue::new("tasker.template", leased.template.clone()),
            KeyValue::new("tasker.step", leased.name.clone()),
            KeyValue::new("tasker.namespace", shared.namespaces[self.step.queue].clone()),
            KeyValue::new("tasker.attempt", i64::from(leased.attempt)),
            KeyValue::new("tasker.member", i64::from(shared.membership.id())),
        ]
    }

    fn id(&self, part: Part) -> SpanId {
        span_id(self.step.leased.task_id, part)
    }

    /// What enqueued the step, and what else it waited for.
    fn causes(&self) -> (SpanId, Vec<SpanContext>) {
        let report = |step, id| self.id(Part::Report(Message { step, id }));
        let mut parents = self.trace.parents.clone().unwrap_or_default();
        parents.sort_unstable();
        let mut parents = parents.into_iter().map(|(step, id)| report(step, id));
        let parent = parents.next().unwrap_or_else(|| self.id(Part::Enqueue));
        let again = self.trace.previous.map(|id| report(self.step.leased.step, id));
        let links = parents.chain(again).map(|id| telemetry::sibling(&self.task, id)).collect();
        (parent, links)
    }

    fn handled(&self, began: Instant, ended: Instant, process: SpanId, error: Option<(String, String)>) -> Span {
        let name = format!("handle {}", self.step.leased.handler);
        let times = (telemetry::system_time(began), telemetry::system_time(ended));
        let span = self.span(name, SpanKind::Internal, self.id(handle(self.step)), process, times);
        Span { error, ..span }
    }

    fn span(&self, name: String, kind: SpanKind, id: SpanId, parent: SpanId, times: (SystemTime, SystemTime)) -> Span {
        Span::new(name, kind, telemetry::sibling(&self.task, id), parent, times)
    }
}
