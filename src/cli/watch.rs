//! A task as a person reads it, and as it moves.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{json, Value};
use uuid::Uuid;

use super::server::Reach;
use super::{field, print, say, table};
use crate::engine::read::{self, ENDED};
use crate::error::Result;

pub(super) async fn whole(reach: &Reach, id: Uuid) -> Result<Value> {
    match reach {
        Reach::Database(db) => read::read_task(db, id).await,
        Reach::Server(server) => server.get(&format!("/tasks/{id}"), &[]),
    }
}

pub(super) fn describe(task: &Value) -> String {
    let head = [
        "id",
        "namespace",
        "template",
        "version",
        "state",
        "priority",
        "key",
        "created_at",
        "started_at",
        "finished_at",
    ]
    .map(|name| format!("{:<12}{}", name, field(task, name)))
    .join("\n");
    let any_why = task["steps"].as_array().into_iter().flatten().any(|step| why(step).is_some());
    let headings = ["STEP", "STATE", "ATTEMPT", "WORKER", "LAST ERROR", "WHY"];
    let row = |step: &Value| {
        let attempts = format!("{}/{}", field(step, "attempt"), field(step, "max_attempts"));
        let last_error = step["errors"]
            .as_array()
            .and_then(|e| e.last())
            .map_or_else(|| "-".into(), |e| format!("{}: {}", field(e, "class"), field(e, "message")));
        let why = any_why.then(|| why(step).unwrap_or_else(|| "-".into()));
        let row = [
            field(step, "name"),
            field(step, "state"),
            attempts,
            field(step, "worker"),
            last_error,
        ];
        row.into_iter().chain(why).collect()
    };
    let rows: Vec<Vec<String>> = task["steps"].as_array().into_iter().flatten().map(row).collect();
    let parent = match &task["parent"] {
        Value::Null => String::new(),
        parent => format!(
            "\nparent      {}, step {}, item {}",
            field(parent, "task"),
            field(parent, "step"),
            field(parent, "item")
        ),
    };
    let lineage = match (&task["forked_from"], task["forks"].as_array().filter(|forks| !forks.is_empty())) {
        (Value::Null, None) => String::new(),
        (of, forks) => format!(
            "{}{}",
            of.as_str().map_or_else(String::new, |of| format!("\nfork of     {of}")),
            forks.map_or_else(String::new, |forks| format!(
                "\nforks       {}",
                forks.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
            ))
        ),
    };
    let pause = match &task["pause"] {
        Value::Null => String::new(),
        pause => format!(
            "\npause       {} {}, by {} at {}: {}",
            field(pause, "kind"),
            field(pause, "name"),
            field(pause, "who"),
            field(pause, "since"),
            field(pause, "why")
        ),
    };
    let values = match &task["values"] {
        Value::Object(values) if !values.is_empty() => format!("\nvalues      {}", task["values"]),
        _ => String::new(),
    };
    format!(
        "{head}{parent}{lineage}{pause}\ninput       {}{values}\n\n{}",
        task["input"],
        table(&headings[..headings.len() - usize::from(!any_why)], &rows)
    )
}

/// Why a step is where it is, unless that goes without saying.
fn why(step: &Value) -> Option<String> {
    let said = |name: &str| step[name].as_str();
    said("waits_for")
        .map(|what| format!("waits for {what}"))
        .or_else(|| said("skipped_because").map(str::to_owned))
        .or_else(|| said("after_cancel").map(|outcome| format!("it ran when the task was cancelled: {outcome}")))
}

/// Draws a bar (or prints a line for every change, where there is no terminal) until the task ends or is blocked.
pub(super) async fn follow(reach: &Reach, id: Uuid, json: bool) -> Result<i32> {
    let bar = if json || !std::io::stderr().is_terminal() {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(0)
    };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{bar:40}] {pos}/{len} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let mut last = Value::Null;
    loop {
        let task = whole(reach, id).await?;
        let steps: Vec<&Value> = task["steps"].as_array().into_iter().flatten().collect();
        let with_state = |state: &str| {
            steps
                .iter()
                .filter(|s| s["state"] == state)
                .map(|s| field(s, "name"))
                .collect::<Vec<_>>()
        };
        let (done, running) = ([with_state("complete"), with_state("skipped")].concat(), with_state("in_progress"));
        let state = field(&task, "state");

        let seen = json!({ "id": id, "state": state, "steps": steps.len(), "complete": done.len(), "in_progress": running, "dead": with_state("dead") });
        bar.set_length(steps.len() as u64);
        bar.set_position(done.len() as u64);
        bar.set_prefix(state.clone());
        bar.set_message(running.join(", "));
        if seen != last && bar.is_hidden() {
            print(json, &seen, || {
                format!(
                    "{state}: {}/{} steps complete; in progress: {}",
                    done.len(),
                    steps.len(),
                    running.join(", ")
                )
            });
        }
        last = seen;

        if ENDED.contains(&state.as_str()) || state == "blocked" {
            bar.finish_and_clear();
            if !json {
                say(&describe(&task));
            }
            return Ok(if state == "complete" { 0 } else { 1 });
        }
        tokio::time::sleep(match reach {
            Reach::Database(_) => Duration::from_millis(100),
            Reach::Server(_) => Duration::from_millis(500),
        })
        .await;
    }
}
