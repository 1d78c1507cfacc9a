//! Metrics: what is counted and timed. [`TABLE`] lists them all; `docs/metrics.md` is made from it.
//!
//! Labels are bounded: namespaces, templates, and words of our own; never an id. Names and units follow OpenTelemetry's conventions; Prometheus'
//! names are made from them by its own rules (dots become underscores, the unit and `total` are appended).

use std::sync::Mutex;

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// How one metric is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// As OpenTelemetry has it.
    pub name: &'static str,
    /// counter, gauge or histogram.
    pub kind: &'static str,
    /// As UCUM writes it; what is only counted is in braces.
    pub unit: &'static str,
    /// Its labels, separated by a comma and a space.
    pub labels: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// Upper bounds in seconds: from what an idle system takes to what a long handler does.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0,
];

/// Upper bounds of batches.
const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

trait Instrument {
    const KIND: &'static str;
    fn make(meter: &Meter, described: &Described) -> Self;
}

impl Instrument for Counter<u64> {
    const KIND: &'static str = "counter";
    fn make(meter: &Meter, of: &Described) -> Self {
        meter.u64_counter(of.name).with_unit(of.unit).with_description(of.meaning).build()
    }
}

impl Instrument for Counter<f64> {
    const KIND: &'static str = "counter";
    fn make(meter: &Meter, of: &Described) -> Self {
        meter.f64_counter(of.name).with_unit(of.unit).with_description(of.meaning).build()
    }
}

impl Instrument for Gauge<f64> {
    const KIND: &'static str = "gauge";
    fn make(meter: &Meter, of: &Described) -> Self {
        meter.f64_gauge(of.name).with_unit(of.unit).with_description(of.meaning).build()
    }
}

impl Instrument for Histogram<f64> {
    const KIND: &'static str = "histogram";
    fn make(meter: &Meter, of: &Described) -> Self {
        let bounds = if of.unit == "s" { SECONDS } else { SIZES };
        let histogram = meter.f64_histogram(of.name).with_unit(of.unit).with_description(of.meaning);
        histogram.with_boundaries(bounds.to_vec()).build()
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ty = $name:literal, $unit:literal, $labels:literal, $meaning:literal;)*) => {
        /// The instruments of one process.
        #[derive(Debug)]
        pub(crate) struct Metrics {
            $(pub(crate) $field: $kind,)*
            /// What was already added to `cpu_time`.
            pub(super) cpu_counted: Mutex<f64>,
        }

        /// All metrics.
        pub const TABLE: &[Described] = &[$(Described {
            name: $name,
            kind: <$kind as Instrument>::KIND,
            unit: $unit,
            labels: $labels,
            meaning: $meaning,
        },)*];

        impl Metrics {
            pub(super) fn new(meter: &Meter) -> Metrics {
                let mut described = TABLE.iter();
                let mut next = || described.next().unwrap_or(&TABLE[0]);
                Metrics {
                    $($field: <$kind as Instrument>::make(meter, next()),)*
                    cpu_counted: Mutex::default(),
                }
            }
        }
    };
}

metrics! {
    tasks_submitted: Counter<u64> = "tasker.tasks.submitted", "{task}", "template",
        "Tasks created by this process";
    tasks_claimed: Counter<u64> = "tasker.tasks.claimed", "{task}", "namespace",
        "Pending tasks that this orchestrator admitted; idle workers admit others";
    tasks_begun: Counter<u64> = "tasker.tasks.begun", "{task}", "",
        "Tasks whose time has come, found by this orchestrator";
    task_duration: Histogram<f64> = "tasker.task.duration", "s", "namespace, template",
        "From a task's creation, or its time, to its completion by this worker";
    claim_duration: Histogram<f64> = "tasker.claim.duration", "s", "",
        "One claim of pending tasks, in all namespaces";
    claim_conflicts: Counter<u64> = "tasker.claim.conflicts", "{conflict}", "kind",
        "What was refused because somebody else has it by now: reports of steps (report), claims of orchestrators (claim)";
    step_duration: Histogram<f64> = "tasker.step.duration", "s", "namespace, template, outcome",
        "How long a handler ran; outcome is complete or failed";
    step_wait: Histogram<f64> = "tasker.step.wait", "s", "namespace",
        "From a step's enqueuing to its handler's beginning";
    step_retries: Counter<u64> = "tasker.step.retries", "{step}", "namespace",
        "Failed steps that will be tried again";
    dead_letters_sent: Counter<u64> = "tasker.dead_letters.sent", "{step}", "namespace",
        "Failed steps that became dead letters";
    report_size: Histogram<f64> = "tasker.report.size", "{step}", "namespace",
        "Steps whose reports were committed together";
    lease_losses: Counter<u64> = "tasker.lease.losses", "{lease}", "",
        "Leases that this worker could not keep";
    loop_panics: Counter<u64> = "tasker.loop.panics", "{panic}", "loop",
        "Loops of this process that panicked and were begun anew";
    worker_slots: Gauge<f64> = "tasker.worker.slots", "{handler}", "",
        "How many handlers this worker runs at once";
    worker_running: Gauge<f64> = "tasker.worker.running", "{step}", "",
        "Steps that this worker has leased and not reported";
    retries_enqueued: Counter<u64> = "tasker.retries.enqueued", "{step}", "",
        "Steps whose retry was due";
    members_lost: Counter<u64> = "tasker.members.lost", "{process}", "kind",
        "Orchestrators and workers that this orchestrator found dead: each was started again, or should be";
    errors: Counter<u64> = "tasker.errors", "{error}", "component",
        "Errors in the log, by the part of the program";
    connections: Gauge<f64> = "db.client.connection.count", "{connection}", "state",
        "Connections of this process's pool that are used or idle";
    connections_max: Gauge<f64> = "db.client.connection.max", "{connection}", "",
        "Connections that it makes at most";
    memory: Gauge<f64> = "process.memory.usage", "By", "",
        "Memory of this process, or of its cgroup where that is limited";
    fallback: Gauge<f64> = "tasker.configuration.fallback", "{configuration}", "",
        "1 while the last good configuration stays in force: the coordinator is away, or has what this process does not understand";
    memory_limit: Gauge<f64> = "tasker.memory.limit", "By", "",
        "Memory that it may use, where there is a limit";
    cpu_time: Counter<f64> = "process.cpu.time", "s", "",
        "Processor time of this process";
    queue_depth: Gauge<f64> = "tasker.queue.depth", "{message}", "namespace",
        "Messages in a namespace's queue, counted no further than 10,000; this and what follows is told by orchestrators";
    queue_age: Gauge<f64> = "tasker.queue.age", "s", "namespace",
        "How long the first of them is there";
    dead_letters: Gauge<f64> = "tasker.dead_letters", "{message}", "namespace",
        "Dead letters that wait for somebody, counted no further than 10,000";
    backlog: Gauge<f64> = "tasker.backlog", "{task}", "namespace, priority",
        "Pending tasks, counted no further than 10,000";
    backlog_age: Gauge<f64> = "tasker.backlog.age", "s", "namespace, priority",
        "How long the first of them waits";
    priority_escalation: Gauge<f64> = "tasker.priority.escalation", "{priority}", "namespace, priority",
        "How many priorities its age is worth by now";
    pressure: Gauge<f64> = "tasker.pressure", "{state}", "namespace",
        "How it is: 0 normal, 1 warning, 2 critical";
    limit_granted: Gauge<f64> = "tasker.limit.granted", "{step}", "namespace, limit",
        "Steps that have a limit's permit, counted no further than 10,000";
    limit_waiting: Gauge<f64> = "tasker.limit.waiting", "{step}", "namespace, limit",
        "Steps that wait for one, counted no further than 10,000";
    breakers_open: Gauge<f64> = "tasker.breakers.open", "{breaker}", "namespace, limit",
        "Its circuit breakers that are open or half open";
    subscription_lag: Gauge<f64> = "tasker.subscription.lag", "s", "subscription",
        "For how long the oldest event waits that it was not told yet";
    subscription_disabled: Gauge<f64> = "tasker.subscription.disabled", "{subscription}", "subscription",
        "1 where its sink has taken nothing for so long that nothing more is tried";
    unhandled: Gauge<f64> = "tasker.unhandled", "{step}", "namespace",
        "Kinds of step that wait because no worker has their handler";
    workers: Gauge<f64> = "tasker.workers", "{process}", "namespace",
        "Workers that live";
    capacity: Gauge<f64> = "tasker.capacity", "{handler}", "namespace",
        "Handlers that they can run at once";
    capacity_used: Gauge<f64> = "tasker.capacity.used", "{step}", "namespace",
        "Steps that they have leased and not reported";
    arrival_rate: Gauge<f64> = "tasker.arrival.rate", "{step}", "namespace",
        "Steps that came in a second, over the last minute";
    desired_workers: Gauge<f64> = "tasker.workers.desired", "{process}", "namespace",
        "Workers that it wants, by what comes in, how long that takes, and what waits";
    forecast_workers: Gauge<f64> = "tasker.workers.forecast", "{process}", "namespace",
        "A guess at how many it will want in ten minutes, by the trend and the time of day";
    members: Gauge<f64> = "tasker.members", "{process}", "kind",
        "Orchestrators and workers that live";
    configurations: Gauge<f64> = "tasker.configurations", "{configuration}", "kind",
        "Different versions and configurations among those of the same namespaces, at most; more than one for long is drift";
    drift: Gauge<f64> = "tasker.configuration.drift", "{process}", "kind",
        "Those whose settings differ from those of others like them for more than two minutes";
    replication_lag: Gauge<f64> = "tasker.replication.lag", "s", "replica",
        "How far a replica is behind";
    oldest_transaction: Gauge<f64> = "tasker.database.oldest_transaction", "s", "",
        "The age of the transaction that holds back vacuum";
}
