//! The trace of a task: how it is handed on from process to process.
//!
//! Stored is only what the submitter's span left (`tasks.trace`). The ids of all other spans are made from what every process knows (the task,
//! the step, and the message that it travels as), so that each can name those before it without having been told.
//!
//! submit → claim → enqueue → process (wait, handle, report) → process of the next steps. What enqueued a step is its parent: `enqueue` for
//! the first ones, the `report` of the step before for the others, with links to those of the other steps that it waited for, and to that of its
//! last failed attempt.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::Error;
use crate::telemetry::{self, Carrier, Span};

/// What a step's spans belong to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Trace {
    /// The task's.
    pub context: Carrier,
    /// The steps that this one waited for, and the messages that they travelled as; none where the trace is not sampled.
    #[serde(default)]
    pub(crate) parents: Option<Vec<(i16, i64)>>,
    /// The message of the last failed attempt.
    #[serde(default)]
    pub(crate) previous: Option<i64>,
}

impl Trace {
    /// The trace's id, in hex; None when the carrier has none.
    pub fn id(&self) -> Option<&str> {
        self.context.get("traceparent")?.split('-').nth(1)
    }
}

/// The spans of a task. All of one message, but for its handler's: somebody else may have run that, and lost the step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Claim,
    Enqueue,
    Process(Message),
    Wait(Message),
    /// Under this fence.
    Handle(Message, i32),
    Report(Message),
}

/// What a step travels as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message {
    pub(crate) step: i16,
    pub(crate) id: i64,
}

/// The id of a span of this task.
pub(crate) fn span_id(task: Uuid, part: Part) -> SpanId {
    let (kind, message, fence) = match part {
        Part::Claim => (0, None, 0),
        Part::Enqueue => (1, None, 0),
        Part::Process(message) => (2, Some(message), 0),
        Part::Wait(message) => (3, Some(message), 0),
        Part::Handle(message, fence) => (4, Some(message), fence),
        Part::Report(message) => (5, Some(message), 0),
    };
    let (step, message) = message.map_or((0, 0), |message| (message.step, message.id));
    let mut hash = Sha256::new_with_prefix(task);
    hash.update([kind]);
    hash.update(step.to_be_bytes());
    hash.update(message.to_be_bytes());
    hash.update(fence.to_be_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&hash.finalize()[..8]);
    SpanId::from_bytes(id)
}

/// A call that submits tasks.
#[derive(Debug)]
pub(crate) struct Submission {
    /// None: it is part of no trace.
    span: Option<SpanContext>,
    parent: SpanId,
    start: SystemTime,
}

impl Submission {
    /// Begins below the current context ([`Context::current`]).
    pub(crate) fn begin() -> Submission {
        let current = Context::current();
        let above = current.span().span_context().clone();
        let span = match telemetry::traces() {
            Some(traces) => Some(traces.begin(&current, "submit", &SpanKind::Producer)),
            // It goes through, for those who come after.
            None => above.is_valid().then(|| above.clone()),
        };
        Submission {
            span,
            parent: above.span_id(),
            start: SystemTime::now(),
        }
    }

    /// What the tasks take with them.
    pub(crate) fn carrier(&self) -> Option<Carrier> {
        self.span.as_ref().map(telemetry::inject)
    }

    pub(crate) fn end(self, template: &str, tasks: impl ExactSizeIterator<Item = Uuid>, error: Option<&Error>) {
        let (Some(context), Some(traces)) = (self.span, telemetry::traces()) else {
            return;
        };
        let mut attributes = messaging("send", template.to_owned());
        attributes.push(KeyValue::new("tasker.template", template.to_owned()));
        attributes.push(KeyValue::new("messaging.batch.message_count", tasks.len() as i64));
        let mut tasks = tasks;
        if let (1, Some(task)) = (tasks.len(), tasks.next()) {
            attributes.push(KeyValue::new("tasker.task.id", task.to_string()));
        }
        let (name, times) = (format!("submit {template}"), (self.start, SystemTime::now()));
        traces.tell(Span {
            attributes,
            error: error.map(|error| (format!("{:?}", error.kind()), error.to_string())),
            ..Span::new(name, SpanKind::Producer, context, self.parent, times)
        });
    }
}

/// A traced task that was claimed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct TracedTask {
    namespace: String,
    template: String,
    task: Uuid,
    trace: Carrier,
    /// Seconds since the epoch, by the database's clock.
    created: f64,
    claimed: f64,
}

/// Tells the claims of these tasks, and that their first steps are enqueued.
pub(crate) fn tell_claims(tasks: &[TracedTask], member: i32) {
    let Some(traces) = telemetry::traces() else {
        return;
    };
    let now = SystemTime::now();
    for of in tasks {
        let above = telemetry::span_context(&of.trace);
        let claim = telemetry::sibling(&above, span_id(of.task, Part::Claim));
        let [created, claimed] = [of.created, of.claimed].map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds.max(0.0)));
        let attributes = vec![
            KeyValue::new("tasker.task.id", of.task.to_string()),
            KeyValue::new("tasker.template", of.template.clone()),
            KeyValue::new("tasker.namespace", of.namespace.clone()),
            KeyValue::new("tasker.member", i64::from(member)),
        ];
        let enqueue = telemetry::sibling(&above, span_id(of.task, Part::Enqueue));
        let mut sending = messaging("send", format!("{}_queue", of.namespace));
        sending.extend(attributes.iter().cloned());
        let (name, below) = (format!("enqueue {}", of.template), claim.span_id());
        traces.tell(Span {
            attributes: sending,
            ..Span::new(name, SpanKind::Producer, enqueue, below, (claimed, now))
        });
        let (name, below) = (format!("claim {}", of.template), above.span_id());
        traces.tell(Span {
            attributes,
            ..Span::new(name, SpanKind::Internal, claim, below, (created, claimed))
        });
    }
}

/// What every message's span says (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>).
pub(crate) fn messaging(operation: &'static str, destination: String) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "pgmq"),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", destination),
    ]
}
