//! What has happened to a task, out of what is known of it: nothing is written for it. In the form of CloudEvents 1.0
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>).

use chrono::{DateTime, Utc};
use serde_json::{json, Value};

/// What has happened to a task, as it was read, and to its steps, the oldest first. Of a step's attempts, those that failed and the last are known. An event keeps
/// its `id`.
pub(crate) fn events_of(task: &Value) -> Vec<Value> {
    let mut events = Vec::new();
    let mut add = |of: &Value, kind: &str, at: &Value, more: Value| {
        let Some(time) = at.as_str().and_then(|at| at.parse::<DateTime<Utc>>().ok()) else {
            return;
        };
        let step = of["step"].as_str();
        let id = format!(
            "{}-{kind}{}",
            time.timestamp_micros(),
            step.map_or(String::new(), |step| format!("-{step}"))
        );
        let mut data = more;
        data["step"] = json!(step);
        for name in ["template", "namespace"] {
            data[name] = task[name].clone();
        }
        let event = json!({
            "specversion": "1.0", "id": id, "source": format!("/tasks/{}", task["id"].as_str().unwrap_or_default()), "type": format!("tasker.{kind}"),
            "time": at, "data": data,
        });
        events.push((time, event));
    };
    let whole = json!({});
    add(&whole, "task.created", &task["created_at"], json!({}));
    add(&whole, "task.started", &task["started_at"], json!({}));
    add(
        &whole,
        "task.paused",
        &task["pause"]["since"],
        json!({ "who": task["pause"]["who"], "why": task["pause"]["why"] }),
    );
    for step in task["steps"].as_array().into_iter().flatten() {
        let of = json!({ "step": step["name"] });
        let attempt = json!({ "attempt": step["attempt"], "worker": step["worker"] });
        add(&of, "step.enqueued", &step["enqueued_at"], json!({}));
        if step["state"] != "waiting_retry" {
            add(&of, "step.started", &step["started_at"], attempt.clone());
        }
        for error in step["errors"].as_array().into_iter().flatten() {
            let failed = json!({ "attempt": error["attempt"], "error": { "class": error["class"], "message": error["message"] } });
            add(&of, "step.failed", &error["at"], failed);
        }
        let state = step["state"].as_str().unwrap_or_default();
        add(&of, &format!("step.{state}"), &step["finished_at"], attempt);
    }
    let state = task["state"].as_str().unwrap_or_default();
    add(&whole, &format!("task.{state}"), &task["finished_at"], json!({}));
    events.sort_by_key(|(time, _)| *time);
    events.into_iter().map(|(_, event)| event).collect()
}

/// When an event was, by its id; None: it is no event's.
pub(crate) fn time_of(id: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(id.split_once('-')?.0.parse().ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_a_task_are_in_the_order_in_which_they_happened_and_keep_their_ids() {
        let at = |second: u32| format!("2026-11-29T12:00:{second:02}.5Z");
        let mut task = json!({
            "id": "t", "template": "order", "namespace": "shop", "state": "running", "created_at": at(0), "started_at": at(1), "finished_at": null, "pause": null,
            "steps": [
                { "name": "charge", "state": "in_progress", "attempt": 2, "worker": "w", "enqueued_at": at(3), "started_at": at(9), "finished_at": null,
                  "errors": [{ "attempt": 1, "class": "Timeout", "message": "no answer", "at": at(5) }] },
                { "name": "check", "state": "complete", "attempt": 1, "worker": "w", "enqueued_at": at(1), "started_at": at(2), "finished_at": at(3), "errors": [] },
            ],
        });
        let before = events_of(&task);
        let kinds: Vec<&str> = before.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let expected = [
            "task.created",
            "task.started",
            "step.enqueued",
            "step.started",
            "step.enqueued",
            "step.complete",
            "step.failed",
            "step.started",
        ];
        assert_eq!(kinds, expected.map(|kind| format!("tasker.{kind}")));
        let id = before[6]["id"].as_str().unwrap();
        assert!(id.ends_with("-step.failed-charge"), "{id}");
        assert_eq!(time_of(id).unwrap(), at(5).parse::<DateTime<Utc>>().unwrap());

        task["state"] = json!("complete");
        task["finished_at"] = json!(at(20));
        task["steps"][0]["state"] = json!("complete");
        task["steps"][0]["finished_at"] = json!(at(20));
        let after = events_of(&task);
        assert!(before.iter().all(|event| after.contains(event)));
        assert_eq!(after.last().unwrap()["type"], "tasker.task.complete");
        assert_eq!(time_of("no-event"), None);
    }
}
