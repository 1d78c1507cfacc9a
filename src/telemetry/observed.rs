//! Metrics that are not counted where something happens, but looked at when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use opentelemetry::metrics::Gauge;
use opentelemetry::KeyValue;
use serde_json::Value;

use super::Metrics;
use crate::config::drift::{drift, GRACE};

impl Metrics {
    /// This process: bytes and seconds.
    pub(crate) fn observe_process(&self, memory: u64, memory_limit: Option<u64>, cpu_seconds: f64) {
        self.memory.record(memory as f64, &[]);
        if let Some(limit) = memory_limit {
            self.memory_limit.record(limit as f64, &[]);
        }
        let mut counted = self.cpu_counted.lock().unwrap_or_else(PoisonError::into_inner);
        if cpu_seconds > *counted {
            self.cpu_time.add(cpu_seconds - *counted, &[]);
            *counted = cpu_seconds;
        }
    }

    /// Whether its configuration is only the last good one.
    pub(crate) fn observe_configuration(&self, fallback: bool) {
        self.fallback.record(f64::from(u8::from(fallback)), &[]);
    }

    /// Its connections.
    pub(crate) fn observe_pool(&self, used: u32, idle: u32, max: u32) {
        self.connections.record(used.into(), &[KeyValue::new("state", "used")]);
        self.connections.record(idle.into(), &[KeyValue::new("state", "idle")]);
        self.connections_max.record(max.into(), &[]);
    }

    /// The fleet, as `tasker.fleet()` describes it.
    pub(crate) fn observe_fleet(&self, fleet: &Value, shard: Option<&str>) {
        let shard = shard.map(|shard| KeyValue::new("shard", shard.to_owned()));
        let tell = |gauge: &Gauge<f64>, value: f64, labels: &[KeyValue]| match &shard {
            Some(shard) => gauge.record(value, &[labels, std::slice::from_ref(shard)].concat()),
            None => gauge.record(value, labels),
        };
        // What is not there (no oldest message of an empty queue) is none.
        let record = |gauge: &Gauge<f64>, value: &Value, labels: &[KeyValue]| tell(gauge, value.as_f64().unwrap_or_default(), labels);
        for (namespace, of) in fleet["namespaces"].as_object().into_iter().flatten() {
            let label = || KeyValue::new("namespace", namespace.clone());
            record(&self.queue_depth, &of["queue"]["depth"], &[label()]);
            record(&self.queue_age, &of["queue"]["oldest_seconds"], &[label()]);
            record(&self.dead_letters, &of["dead_letters"]["depth"], &[label()]);
            record(&self.workers, &of["workers"], &[label()]);
            let unhandled = fleet["unhandled"].as_array().into_iter().flatten();
            tell(
                &self.unhandled,
                unhandled.filter(|kind| kind["namespace"] == **namespace).count() as f64,
                &[label()],
            );
            let state = match of["pressure"]["state"].as_str() {
                Some("critical") => 2.0,
                Some("warning") => 1.0,
                _ => 0.0,
            };
            tell(&self.pressure, state, &[label()]);
            for (priority, lane) in of["backlog"].as_object().into_iter().flatten() {
                let labels = [label(), KeyValue::new("priority", priority.clone())];
                record(&self.backlog, &lane["pending"], &labels);
                record(&self.backlog_age, &lane["oldest_seconds"], &labels);
                record(&self.priority_escalation, &lane["escalation"], &labels);
            }
            record(&self.arrival_rate, &of["capacity"]["arrival_rate"], &[label()]);
            record(&self.desired_workers, &of["capacity"]["desired_workers"], &[label()]);
            record(&self.forecast_workers, &of["capacity"]["forecast"]["desired_workers"], &[label()]);
            let (slots, running) = capacity(fleet, namespace);
            tell(&self.capacity, slots, &[label()]);
            tell(&self.capacity_used, running, &[label()]);
        }
        for limit in fleet["limits"].as_array().into_iter().flatten() {
            let label = |label: &'static str, of: &str| KeyValue::new(label, limit[of].as_str().unwrap_or_default().to_owned());
            let labels = [label("namespace", "namespace"), label("limit", "name")];
            record(&self.limit_granted, &limit["granted"], &labels);
            record(&self.limit_waiting, &limit["waiting"], &labels);
            tell(&self.breakers_open, limit["breaker"].as_array().map_or(0, Vec::len) as f64, &labels);
        }
        for subscription in fleet["subscriptions"].as_array().into_iter().flatten() {
            let label = [KeyValue::new(
                "subscription",
                subscription["name"].as_str().unwrap_or_default().to_owned(),
            )];
            record(&self.subscription_lag, &subscription["lag"], &label);
            tell(
                &self.subscription_disabled,
                f64::from(u8::from(subscription["disabled"] == true)),
                &label,
            );
        }
        let drift = drift(fleet["members"].as_array().map_or(&[][..], Vec::as_slice), GRACE);
        for (kind, (count, configurations)) in members(fleet) {
            let drifting = drift.iter().filter(|member| member.kind == kind).count();
            let label = [KeyValue::new("kind", kind)];
            tell(&self.drift, drifting as f64, &label);
            tell(&self.members, count as f64, &label);
            tell(&self.configurations, configurations as f64, &label);
        }
        record(&self.oldest_transaction, &fleet["database"]["oldest_transaction_seconds"], &[]);
        for replica in fleet["database"]["replicas"].as_array().into_iter().flatten() {
            let name = replica["name"].as_str().unwrap_or_default().to_owned();
            record(&self.replication_lag, &replica["lag_seconds"], &[KeyValue::new("replica", name)]);
        }
    }
}

/// (handlers, steps) of the workers of a namespace together.
fn capacity(fleet: &Value, namespace: &str) -> (f64, f64) {
    let workers = fleet["members"].as_array().into_iter().flatten().filter(|member| {
        let namespaces = member["namespaces"].as_array().into_iter().flatten();
        member["kind"] == "worker" && namespaces.into_iter().any(|name| name == namespace)
    });
    workers.fold((0.0, 0.0), |(slots, running), worker| {
        let busy = |what: &str| worker["report"]["busy"][what].as_f64().unwrap_or_default();
        (slots + busy("slots"), running + busy("running"))
    })
}

/// By kind: how many there are, and how many different versions and configurations those have that do the same work.
fn members(fleet: &Value) -> BTreeMap<String, (usize, usize)> {
    let mut members: BTreeMap<String, (usize, BTreeMap<String, BTreeSet<String>>)> = BTreeMap::new();
    for member in fleet["members"].as_array().into_iter().flatten() {
        let kind = member["kind"].as_str().unwrap_or_default().to_owned();
        let (count, configurations) = members.entry(kind).or_default();
        *count += 1;
        let work = member["namespaces"].to_string();
        let configuration = format!("{} {}", member["version"], member["report"]["configuration"]["hash"]);
        configurations.entry(work).or_default().insert(configuration);
    }
    let most = |by_work: BTreeMap<String, BTreeSet<String>>| by_work.values().map(BTreeSet::len).max().unwrap_or_default();
    members
        .into_iter()
        .map(|(kind, (count, by_work))| (kind, (count, most(by_work))))
        .collect()
}
