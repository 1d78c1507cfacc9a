//! What an operator does from a page: forms, and what they ask of the API's own handlers, which check it and record it.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::Form;
use maud::{html, Markup};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::{json, Value};
use uuid::Uuid;

use super::schema_help;
use super::shown::{list, query, text};
use super::viewer::Operator;
use super::Web;
use crate::api::access::As;
use crate::api::extract::{Body, Part};
use crate::api::problem::{Outcome, Problem};
use crate::api::{dead_letters, steering};
use crate::engine::payload::has_nul;
use crate::engine::read::ENDED;

/// What a form says, by the names of its fields; what is empty is not said.
pub(super) type Fields = BTreeMap<String, String>;

/// What was done, as the page after it says it, by how it is called in a URL.
const DONE: [(&str, &str); 19] = [
    ("cancel", "It is being cancelled."),
    ("undo", "It is being undone."),
    ("pause", "It is paused: what runs ends, and nothing new begins."),
    ("resume", "It goes on."),
    ("replay", "Its dead steps start over."),
    ("prioritize", "It has another priority."),
    ("fork", "This is the fork."),
    ("created", "This is the new task."),
    (
        "known",
        "There was this task with that key, or one that is the same: it is not a new one.",
    ),
    ("checked", "It could be replayed so; nothing was done."),
    ("resolve", "The step is complete with the result that was given."),
    ("skip", "The step was skipped."),
    ("discard", "The dead letter was discarded."),
    ("trigger", "This task has begun by hand."),
    ("stopped", "It is paused, and begins nothing."),
    ("backfill", "The tasks of the times that had none have begun."),
    ("delete", "It is deleted; what it began goes on."),
    ("reset", "The breakers are closed."),
    ("set", "It is set, and taken over at once."),
];

/// The part of a query that says what was just done.
#[derive(Debug, Deserialize)]
pub(super) struct Done {
    pub(super) done: Option<String>,
}

pub(super) fn said(done: Option<&str>) -> Markup {
    let known = DONE.iter().find(|(name, _)| Some(*name) == done);
    html! {
        @if let Some((_, said)) = known { p.done role="status" { (said) } }
        @else if done == Some("nothing") { p.done role="status" { "There was nothing to do: it had ended, or was so already." } }
    }
}

/// A body of the API out of a form: those of `json` are JSON themselves, as numbers are.
pub(super) fn body<T: DeserializeOwned>(fields: Fields, json: &[&str]) -> Outcome<Body<T>> {
    let mut body = serde_json::Map::new();
    for (name, said) in fields.into_iter().filter(|(_, said)| !said.trim().is_empty()) {
        if has_nul(&said) {
            return Err(Problem::invalid(format!(
                "{name} contains the character U+0000, which PostgreSQL cannot store"
            )));
        }
        let value = if json.contains(&&*name) {
            serde_json::from_str(&said).map_err(|error| Problem::invalid(format!("{name}: this is no JSON: {error}")))?
        } else {
            Value::String(said)
        };
        body.insert(name, value);
    }
    serde_json::from_value(Value::Object(body))
        .map(Body)
        .map_err(|error| Problem::invalid(error.to_string()))
}

/// To the page that shows what became of it.
pub(super) fn see(place: &str, done: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, format!("{place}{}", query([("done", done)])))]).into_response()
}

fn done_or_not(done: &Value, verb: &'static str) -> &'static str {
    match done["done"] == true {
        true => verb,
        false => "nothing",
    }
}

pub(super) async fn act(
    State(web): State<Web>,
    viewer: Operator,
    Part((id, verb)): Part<(Uuid, String)>,
    form: Result<Form<Fields>, axum::extract::rejection::FormRejection>,
) -> Outcome<Response> {
    let Form(fields) = form?;
    let (api, caller, task) = (State(web.api), As(viewer.caller), Part(id));
    let here = format!("{}tasks/{id}", viewer.root);
    let (answer, verb) = match &*verb {
        "cancel" => (steering::cancel(api, caller, task, body(fields, &[])?).await?, "cancel"),
        "undo" => {
            let fields = fields.into_iter().chain([("undo".to_owned(), "true".to_owned())]).collect();
            (steering::cancel(api, caller, task, body(fields, &["undo"])?).await?, "undo")
        }
        "pause" => (steering::pause(api, caller, task, body(fields, &[])?).await?, "pause"),
        "resume" => (steering::resume(api, caller, task, body(fields, &[])?).await?, "resume"),
        "replay" => (
            steering::replay(api, caller, task, body(fields, &["input", "max_attempts"])?).await?,
            "replay",
        ),
        "prioritize" => (steering::prioritize(api, caller, task, body(fields, &[])?).await?, "prioritize"),
        "fork" => {
            let (_, forked) = steering::fork(api, caller, task, body(fields, &["input"])?).await?;
            let fork = json!(forked.0);
            return Ok(see(&format!("{}tasks/{}", viewer.root, text(&fork, "id")), "fork"));
        }
        other => return Err(Problem::not_found(format!("nothing called {other} can be done to a task"))),
    };
    Ok(see(&here, done_or_not(&json!(answer.0), verb)))
}

pub(super) async fn act_on_letters(
    State(web): State<Web>,
    viewer: Operator,
    Part(verb): Part<String>,
    form: Result<Form<Vec<(String, String)>>, axum::extract::rejection::FormRejection>,
) -> Outcome<Response> {
    let Form(pairs) = form?;
    let (ids, rest): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(name, _)| name == "ids");
    let ids: Vec<String> = ids.into_iter().map(|(_, id)| id).collect();
    let mut fields: Fields = rest.into_iter().collect();
    fields.insert("ids".into(), json!(ids).to_string());
    let (api, caller) = (State(web.api), As(viewer.caller));
    let (answer, verb) = match &*verb {
        "replay" => (
            dead_letters::replay(
                api,
                caller,
                body(fields.clone(), &["ids", "input", "max_attempts", "per_second", "dry_run"])?,
            )
            .await?,
            if fields.contains_key("dry_run") { "checked" } else { "replay" },
        ),
        "resolve" => (
            dead_letters::resolve(api, caller, body(fields, &["ids", "result"])?).await?,
            "resolve",
        ),
        "skip" => (dead_letters::skip(api, caller, body(fields, &["ids"])?).await?, "skip"),
        "discard" => (dead_letters::discard(api, caller, body(fields, &["ids"])?).await?, "discard"),
        other => return Err(Problem::not_found(format!("nothing called {other} can be done to dead letters"))),
    };
    let any = list(&json!(answer.0), "ids").is_empty();
    Ok(see(&format!("{}dead-letters", viewer.root), if any { "nothing" } else { verb }))
}

/// A form that opens where it is asked for, and says what it will do.
pub(super) fn form(name: &str, action: &str, what: &str, fields: Markup) -> Markup {
    html! {
        details.action {
            summary { (name) "…" }
            form.stack method="post" action=(action) {
                p { (what) }
                (fields)
                label { "Why, for those who read the record" input name="why" maxlength="1000"; }
                button { (name) }
            }
        }
    }
}

/// What can be done to a task in its state.
pub(super) fn of_task(task: &Value, schema: &Value, root: &str) -> Markup {
    let to = |verb: &str| format!("{root}tasks/{}/{verb}", text(task, "id"));
    let state = text(task, "state");
    let has_ended = ENDED.contains(&state);
    let steps = list(task, "steps");
    let is_dead = steps.iter().any(|step| step["state"] == "dead");
    let input = serde_json::to_string_pretty(&task["input"]).unwrap_or_default();
    html! {
        div.actions role="group" aria-label="What can be done" {
            @if !has_ended {
                @if state == "paused" { (form("Resume", &to("resume"), "It goes on where it was.", html! {})) }
                @else { (form("Pause", &to("pause"), "What runs ends, and nothing new of it begins.", html! {})) }
            }
            @if is_dead {
                (form("Replay", &to("replay"), "Its dead steps start over, with all their attempts.", html! {
                    label { "Its input" textarea name="input" rows="6" spellcheck="false" { (input) } }
                    (schema_help::of(schema))
                    label { "Attempts, in place of the steps' own" input name="max_attempts" type="number" min="1" max="1000"; }
                }))
            }
            @if !has_ended {
                (form("Prioritize", &to("prioritize"), "Of those that wait, the more urgent ones go first.", html! {
                    label { "Priority" select name="priority" {
                        @for priority in ["low", "normal", "high", "urgent"] { option selected[text(task, "priority") == priority] { (priority) } }
                    } }
                }))
            }
            @if has_ended || state == "blocked" {
                (form("Fork", &to("fork"), "Another task that has the results of the steps before one, and runs from that on.", html! {
                    label { "From the step" select name="from" {
                        option value="" { "the first" }
                        @for step in steps.iter().filter(|step| step["undoes"].is_null()).take(1000) { option { (text(step, "name")) } }
                    } }
                    label { "Its input" textarea name="input" rows="6" spellcheck="false" { (input) } }
                    (schema_help::of(schema))
                }))
            }
            @if !has_ended { (form("Cancel", &to("cancel"), "It ends as it is; a handler that runs learns of it.", html! {})) }
            @if state != "undoing" && steps.iter().any(|step| step["state"] == "complete") {
                (form("Undo", &to("undo"), "What its steps did is undone, as its template says; a task that has not ended is cancelled.", html! {}))
            }
        }
    }
}
