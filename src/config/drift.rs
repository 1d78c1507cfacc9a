//! Drift: members that should have the same settings, and do not.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long members may differ before it is drift: a rolling deployment is none.
pub const GRACE: Duration = Duration::from_secs(120);

/// A member that differs from most others of its kind and namespaces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// orchestrator or worker.
    pub kind: String,
    /// host:pid.
    pub name: String,
    /// For how many seconds it has these settings.
    pub seconds: f64,
    /// What differs: its own value, and that of most.
    pub keys: BTreeMap<String, (Value, Value)>,
    /// Why it has not taken over what there is.
    pub fallback: Option<String>,
}

/// Which of `members`, as the fleet tells of them, differ for longer than `grace`.
pub fn drift(members: &[Value], grace: Duration) -> Vec<Drift> {
    let mut alike: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for member in members {
        let group = format!("{} {}", member["kind"], member["namespaces"]);
        alike.entry(group).or_default().push(member);
    }
    alike.values().flat_map(|members| of_alike(members, grace)).collect()
}

/// Which value most have of a key; of two that as many have, the one that somebody has for longer.
#[derive(Default)]
struct Held {
    members: usize,
    /// By one of them.
    seconds: f64,
}

fn of_alike(members: &[&Value], grace: Duration) -> Vec<Drift> {
    let values = |member: &Value| member["report"]["configuration"]["values"].as_object().cloned().unwrap_or_default();
    let seconds = |member: &Value| member["report"]["configuration"]["seconds"].as_f64().unwrap_or_default();
    let mut told: BTreeMap<String, BTreeMap<String, Held>> = BTreeMap::new();
    for member in members {
        for (key, value) in values(member) {
            let held = told.entry(key).or_default().entry(value.to_string()).or_default();
            held.members += 1;
            held.seconds = held.seconds.max(seconds(member));
        }
    }
    let usual: BTreeMap<String, (Value, f64)> = told
        .into_iter()
        .filter_map(|(key, values)| {
            let order = |held: &Held| (held.members, held.seconds);
            let most = values
                .into_iter()
                .max_by(|a, b| order(&a.1).partial_cmp(&order(&b.1)).unwrap_or(Ordering::Equal))?;
            Some((key, (serde_json::from_str(&most.0).unwrap_or_default(), most.1.seconds)))
        })
        .collect();
    let differing = members.iter().map(|member| {
        let own = values(member);
        // They differ since the later of both has its value.
        let differs = usual.iter().filter_map(|(key, (usual, since))| {
            // A member of another version of the program may not know of it.
            let own = own.get(key)?;
            (own != usual && since.min(seconds(member)) >= grace.as_secs_f64()).then(|| (key.clone(), (own.clone(), usual.clone())))
        });
        let fallback = member["report"]["configuration"]["fallback"].as_str();
        Drift {
            kind: text(&member["kind"]),
            name: text(&member["name"]),
            seconds: seconds(member),
            keys: differs.collect(),
            fallback: fallback.filter(|_| seconds(member) >= grace.as_secs_f64()).map(str::to_owned),
        }
    });
    differing
        .filter(|drift| !drift.keys.is_empty() || drift.fallback.is_some())
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(name: &str, batch: i64, seconds: i64) -> Value {
        json!({ "kind": "orchestrator", "name": name, "namespaces": [],
                "report": { "configuration": { "seconds": seconds, "values": { "orchestrator.batch": batch, "connections": 6 } } } })
    }

    #[test]
    fn who_differs_from_most_is_named_with_what_differs() {
        let found = drift(&[member("a:1", 200, 500), member("b:1", 200, 500), member("c:1", 50, 300)], GRACE);
        assert_eq!(found.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["c:1"]);
        assert_eq!(found[0].keys, [("orchestrator.batch".to_owned(), (json!(50), json!(200)))].into());
    }

    #[test]
    fn a_rolling_deployment_is_no_drift() {
        assert_eq!(drift(&[member("a:1", 200, 500), member("b:1", 50, 10)], GRACE), []);
        let most_are_new = [member("a:1", 200, 500), member("b:1", 50, 30), member("c:1", 50, 10)];
        assert_eq!(drift(&most_are_new, GRACE), []);
    }

    #[test]
    fn members_of_other_namespaces_may_have_other_settings() {
        let mut other = member("c:1", 50, 300);
        other["namespaces"] = json!(["billing"]);
        assert_eq!(drift(&[member("a:1", 200, 500), other], GRACE), []);
    }
}
