//! Why what does not run does not, in sentences: of a task, and of each of its steps.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::db::Db;
use crate::error::Result;

/// Why a task, or a step of it, does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// None: the task itself.
    pub step: Option<String>,
    /// One sentence.
    pub why: String,
}

/// Why a task (as [`super::read::read_task`] has it), and each step of it that neither runs nor is complete, is where it is; in the order of the steps.
pub async fn explain(db: &Db, task: &Value) -> Result<Vec<Reason>> {
    let id: Option<Uuid> = task["id"].as_str().and_then(|id| id.parse().ok());
    let facts: Option<Value> = sqlx::query_scalar("SELECT tasker.read_facts($1)")
        .bind(id)
        .fetch_one(db.readers())
        .await?;
    Ok(reasons(task, &facts.unwrap_or_default(), Utc::now()))
}

fn reasons(task: &Value, facts: &Value, now: DateTime<Utc>) -> Vec<Reason> {
    let own = of_task(task, facts, now).map(|why| Reason { step: None, why });
    let steps = task["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_step = |step| {
        Some(Reason {
            step: Some(text(step, "name").to_owned()),
            why: of_step(step, steps, facts, now)?,
        })
    };
    own.into_iter().chain(steps.iter().filter_map(of_step)).collect()
}

fn of_task(task: &Value, facts: &Value, now: DateTime<Utc>) -> Option<String> {
    let namespace = text(task, "namespace");
    let here = &facts["namespaces"][namespace];
    if let Some(kind) = task["pause"]["kind"].as_str() {
        let what = match kind {
            "task" => "It".into(),
            kind => format!("The {kind} {}", text(&task["pause"], "name")),
        };
        let why = task["pause"]["why"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
        let (who, since) = (text(&task["pause"], "who"), ago(&task["pause"]["since"], now));
        return Some(format!("{what} was paused by {who} {since}{why}."));
    }
    if text(task, "state") != "pending" && text(task, "state") != "waiting" || !task["started_at"].is_null() {
        return None;
    }
    if let Some(at) = time(&task["run_at"]).filter(|at| *at > now) {
        return Some(format!("It begins {}, at {}.", ahead(at, now), moment(at)));
    }
    if here["orchestrators"] == 0 {
        return Some(format!(
            "No orchestrator looks after the namespace {namespace}: start one (tasker serve)."
        ));
    }
    let priority = text(task, "priority");
    if here["parked"].as_i64().is_some_and(|parked| parked > 0) && priority == "low" {
        return Some(format!(
            "Tasks of low priority are parked by backpressure: the namespace {namespace} is {}.",
            text(here, "pressure")
        ));
    }
    let before = match facts["before"].as_i64().unwrap_or_default() {
        0 => "It is the next of its priority to begin".to_owned(),
        before => format!("{} before it, of the priority {priority}", count(before, "task is", "tasks are")),
    };
    Some(format!("{before}: {}.", workforce(here, namespace, now)))
}

fn of_step(step: &Value, steps: &[Value], facts: &Value, now: DateTime<Utc>) -> Option<String> {
    let (name, namespace) = (text(step, "name"), text(step, "namespace"));
    let (of_it, here) = (&facts["steps"][name], &facts["namespaces"][namespace]);
    let waits_for = step["waits_for"].as_str();
    let first_permit = of_it["permits"].as_array().and_then(|permits| permits.first());
    match (text(step, "state"), waits_for) {
        ("pending", _) => parents(step, steps),
        ("waiting_retry" | "waiting", _) if first_permit.is_some() => first_permit.map(permit),
        ("enqueued" | "waiting_retry" | "waiting", Some(what)) => Some(format!("It waits for {what}.")),
        ("enqueued", None) => Some(match of_it["before"].as_i64().unwrap_or_default() {
            0 => format!("It is the next in {}: {}.", text(here, "queue"), workforce(here, namespace, now)),
            before => format!(
                "{} before it in {}: {}.",
                count(before, "step is", "steps are"),
                text(here, "queue"),
                workforce(here, namespace, now)
            ),
        }),
        ("waiting_retry", None) => Some(match time(&step["retry_at"]) {
            Some(at) => format!(
                "Attempt {} of {} begins {}, at {}{}.",
                step["attempt"].as_i64().unwrap_or_default() + 1,
                step["max_attempts"],
                ahead(at, now),
                moment(at),
                last_error(step).map(|error| format!(", after {error}")).unwrap_or_default()
            ),
            None => "It waits for its next attempt.".into(),
        }),
        ("waiting", None) => Some(match time(&step["retry_at"]) {
            Some(at) => format!("It sleeps until {} ({}).", moment(at), ahead(at, now)),
            None => "It waits for its tasks.".into(),
        }),
        ("dead", _) => Some(format!(
            "It is dead after {} of {} attempts{}: replay it, give it a result, skip or discard it.",
            step["attempt"],
            step["max_attempts"],
            last_error(step).map(|error| format!(" ({error})")).unwrap_or_default()
        )),
        ("skipped", _) => Some(format!(
            "It was skipped: {}.",
            step["skipped_because"].as_str().unwrap_or("a person decided so")
        )),
        ("cancelling", _) => Some("Its handler runs on until it learns that the task was cancelled.".into()),
        ("cancelled", _) => Some("Its task was cancelled before it was done.".into()),
        ("discarded", _) => Some("Its handler discarded the task.".into()),
        _ => None,
    }
}

/// Those that a step depends on and that are not done, with their states: whoever follows them comes to where it hangs.
fn parents(step: &Value, steps: &[Value]) -> Option<String> {
    const NAMED: usize = 3;
    let names = step["depends_on"].as_array()?;
    let is_parent = |other: &&Value| names.contains(&other["name"]);
    let is_done = |other: &&Value| matches!(text(other, "state"), "complete" | "skipped");
    let left: Vec<&Value> = steps.iter().filter(is_parent).filter(|other| !is_done(other)).collect();
    let mut named: Vec<String> = left
        .iter()
        .take(NAMED)
        .map(|other| format!("{} ({})", text(other, "name"), text(other, "state").replace('_', " ")))
        .collect();
    if left.len() > NAMED {
        named.push(format!("{} others", left.len() - NAMED));
    }
    match named.split_last() {
        None => Some("It waits for its task to begin.".into()),
        Some((only, [])) => Some(format!("It waits for the step {only}.")),
        Some((last, before)) => Some(format!("It waits for the steps {} and {last}.", before.join(", "))),
    }
}

fn permit(permit: &Value) -> String {
    let number = |name: &str| permit[name].as_i64().unwrap_or_default();
    let key = permit["key"].as_str().map(|key| format!(" of {key}")).unwrap_or_default();
    let taken = match permit["concurrency"].as_i64() {
        Some(most) => format!("; {} of {most} are taken", number("granted")),
        None => String::new(),
    };
    format!(
        "It waits for a permit of the limit {}{key}, {} in line{taken}.",
        text(permit, "limit"),
        ordinal(number("before") + 1)
    )
}

fn workforce(here: &Value, namespace: &str, now: DateTime<Utc>) -> String {
    match here["workers"].as_i64().unwrap_or_default() {
        0 => match here["last_worker"]["name"].as_str() {
            Some(last) => format!(
                "the namespace {namespace} has no worker since {last} left {}",
                ago(&here["last_worker"]["left_at"], now)
            ),
            None => format!("the namespace {namespace} has no worker, and never had one"),
        },
        workers => format!("{} for {namespace}", count(workers, "worker is there", "workers are there")),
    }
}

fn last_error(step: &Value) -> Option<String> {
    let error = step["errors"].as_array()?.last()?;
    let message: String = text(error, "message")
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect();
    Some(format!("{}: {message}", text(error, "class")))
}

fn count(n: i64, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        1_000.. => format!("1,000 or more {many}"),
        n => format!("{n} {many}"),
    }
}

fn ordinal(n: i64) -> String {
    match n {
        1_001.. => "behind a thousand others".into(),
        11..=13 => format!("{n}th"),
        n => match n % 10 {
            1 => format!("{n}st"),
            2 => format!("{n}nd"),
            3 => format!("{n}rd"),
            _ => format!("{n}th"),
        },
    }
}

fn text<'v>(of: &'v Value, name: &str) -> &'v str {
    of[name].as_str().unwrap_or_default()
}

fn time(value: &Value) -> Option<DateTime<Utc>> {
    value.as_str()?.parse().ok()
}

/// As people read it: `2026-11-29 18:02:11 UTC`.
fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn ahead(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (at - now).num_seconds() {
        ..=0 => "at once".into(),
        seconds => format!("in {}", rough(seconds)),
    }
}

fn ago(at: &Value, now: DateTime<Utc>) -> String {
    time(at).map_or_else(
        || "some time ago".into(),
        |at| format!("{} ago", rough((now - at).num_seconds().max(0))),
    )
}

/// A length of time, in its largest unit.
fn rough(seconds: i64) -> String {
    match seconds {
        ..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} m", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-29T12:00:00Z".parse().unwrap()
    }

    fn why(step: Value, facts: Value) -> String {
        let task = json!({ "state": "running", "namespace": "shop", "started_at": "2026-11-29T11:00:00Z", "steps": [
            { "name": "a", "state": "complete" }, { "name": "b", "state": "dead", "attempt": 5, "max_attempts": 5 }, step] });
        let name = task["steps"][2]["name"].as_str().map(str::to_owned);
        let found = reasons(&task, &facts, now()).into_iter().find(|reason| reason.step == name);
        found.unwrap().why
    }

    #[test]
    fn each_state_has_its_sentence() {
        let shop = |workers: i64| json!({ "queue": "shop_queue", "workers": workers, "last_worker": { "name": "w-1", "left_at": "2026-11-29T11:30:00Z" } });
        let of = |state: &str| json!({ "name": "c", "namespace": "shop", "state": state, "depends_on": ["a", "b"], "attempt": 1, "max_attempts": 5 });
        let with = |state: &str, name: &str, value: Value| {
            let mut step = of(state);
            step[name] = value;
            step
        };
        assert_eq!(why(of("pending"), json!({})), "It waits for the step b (dead).");
        assert_eq!(
            why(
                of("enqueued"),
                json!({ "namespaces": { "shop": shop(0) }, "steps": { "c": { "before": 1 } } })
            ),
            "1 step is before it in shop_queue: the namespace shop has no worker since w-1 left 30 m ago."
        );
        assert_eq!(
            why(
                of("enqueued"),
                json!({ "namespaces": { "shop": shop(2) }, "steps": { "c": { "before": 0 } } })
            ),
            "It is the next in shop_queue: 2 workers are there for shop."
        );
        assert_eq!(
            why(with("waiting_retry", "retry_at", json!("2026-11-29T12:04:05Z")), json!({})),
            "Attempt 2 of 5 begins in 4 m, at 2026-11-29 12:04:05 UTC."
        );
        let bank =
            json!({ "steps": { "c": { "permits": [{ "limit": "bank", "key": "eu", "before": 2, "granted": 5, "concurrency": 5 }] } } });
        assert_eq!(
            why(of("waiting_retry"), bank),
            "It waits for a permit of the limit bank of eu, 3rd in line; 5 of 5 are taken."
        );
        assert_eq!(
            why(with("waiting", "waits_for", json!("the signal approval")), json!({})),
            "It waits for the signal approval."
        );
        assert_eq!(
            why(with("skipped", "skipped_because", json!("its condition was false")), json!({})),
            "It was skipped: its condition was false."
        );
    }

    #[test]
    fn a_task_that_has_not_begun_says_why() {
        let own = |task: Value, facts: Value| of_task(&task, &facts, now());
        let task = |more: Value| {
            let mut task = json!({ "state": "pending", "namespace": "shop", "priority": "low", "started_at": null });
            task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            task
        };
        let facts = |orchestrators: i64, parked: i64| json!({ "before": 12, "namespaces": { "shop": { "orchestrators": orchestrators, "parked": parked, "workers": 1, "pressure": "critical" } } });
        let found = |task, facts| own(task, facts).unwrap();
        assert!(found(task(json!({ "run_at": "2026-11-30T12:00:00Z" })), facts(1, 0)).starts_with("It begins in 24 h"));
        assert!(found(task(json!({})), facts(0, 0)).starts_with("No orchestrator"));
        assert!(found(task(json!({})), facts(1, 1)).contains("parked by backpressure"));
        assert_eq!(
            found(task(json!({})), facts(1, 0)),
            "12 tasks are before it, of the priority low: 1 worker is there for shop."
        );
        let pause = json!({ "pause": { "kind": "namespace", "name": "shop", "who": "ada", "why": "stocktaking", "since": "2026-11-29T11:00:00Z" } });
        assert_eq!(
            found(task(pause), facts(1, 0)),
            "The namespace shop was paused by ada 60 m ago: stocktaking."
        );
        assert_eq!(own(json!({ "state": "complete", "namespace": "shop" }), facts(1, 0)), None);
    }
}
