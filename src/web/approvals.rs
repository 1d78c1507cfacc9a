//! What waits for somebody's answer, and a form for it out of its JSON Schema.

use axum::extract::{Query, State};
use axum::response::Response;
use axum::Form;
use maud::{html, Markup};
use serde::Deserialize;
use serde_json::{json, Map, Value};
use uuid::Uuid;

use super::actions::{see, Fields};
use super::page::Page;
use super::shown::{filled, json as shown, moment, query, short, text};
use super::viewer::{Reader, Submitter};
use super::Web;
use crate::api::access::As;
use crate::api::extract::{Body, Part};
use crate::api::problem::{Outcome, Problem};
use crate::api::signals::send;
use crate::engine::lists;
use crate::engine::read::read_task;
use crate::engine::signals::{list_waits, WaitFilter};

/// How many of them a page has.
const MOST: i32 = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    namespace: String,
    assignee: String,
    step: String,
    done: Option<String>,
}

pub(super) async fn list(State(web): State<Web>, viewer: Reader, Query(asked): Query<Asked>) -> Outcome<Page> {
    let filter = WaitFilter {
        namespace: filled(&asked.namespace),
        assignee: filled(&asked.assignee),
        ..WaitFilter::default()
    };
    let (waits, _) = lists::waits_page(&web.api.shards, &filter, None, MOST).await?;
    let body = html! {
        @if asked.done.is_some() { p.done role="status" { "The answer was sent." } }
        h1 { "Approvals" }
        form.filter method="get" action="approvals" {
            label { "Namespace" input name="namespace" value=(asked.namespace); }
            label { "Who is asked" input name="assignee" value=(asked.assignee); }
            button { "Find" }
        }
        @if waits.is_empty() { p.none { "Nothing waits for an answer." } }
        @else {
            div.scroll tabindex="0" role="group" aria-label="What waits" {
                table {
                    thead { tr { th scope="col" { "What" } th scope="col" { "Signal" } th scope="col" { "Who is asked" } th scope="col" { "Since" } th scope="col" { "Due" } th scope="col" { "Task" } } }
                    tbody {
                        @for wait in &waits {
                            tr {
                                th scope="row" { a href={ "approvals/" (text(wait, "task")) (query([("step", text(wait, "step"))])) } { (text(wait, "template")) ", " (short(text(wait, "step"), 40)) } }
                                td { (text(wait, "signal")) }
                                td { @for who in wait["assignees"].as_array().into_iter().flatten() { (short(who.as_str().unwrap_or_default(), 40)) " " } }
                                td { (moment(&wait["since"])) }
                                td { (moment(&wait["due_at"])) }
                                td { a href={ "tasks/" (text(wait, "task")) } { (short(text(wait, "task"), 14)) } }
                            }
                        }
                    }
                }
            }
            @if waits.len() == MOST as usize { p.note { "Those that have waited longest." } }
        }
    };
    Ok(viewer.page("Approvals", body))
}

/// The wait of a step of a task. Errors: it waits for nothing (any more).
async fn wait(web: &Web, id: Uuid, step: &str) -> Outcome<(Value, Value)> {
    let db = web.api.shards.of_task(id).await?;
    let task = read_task(&db, id).await?;
    let filter = WaitFilter {
        namespace: Some(text(&task, "namespace").to_owned()),
        ..WaitFilter::default()
    };
    let waits = list_waits(&db, &filter, 1_000).await?;
    let is_it = |wait: &&Value| wait["task"] == json!(id) && (step.is_empty() || wait["step"] == step);
    let found = waits.iter().find(is_it).cloned();
    let wait = found.ok_or_else(|| Problem::not_found("It waits for no answer any more: somebody has answered, or its time was over."))?;
    Ok((task, wait))
}

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part(id): Part<Uuid>, Query(asked): Query<Asked>) -> Outcome<Page> {
    let (task, wait) = wait(&web, id, &asked.step).await?;
    let title = format!("{}, {}", text(&wait, "template"), text(&wait, "step"));
    let body = html! {
        h1 { (title) }
        dl.facts {
            div { dt { "Signal" } dd { (text(&wait, "signal")) } }
            div { dt { "Since" } dd { (moment(&wait["since"])) } }
            @if !wait["due_at"].is_null() { div { dt { "Due" } dd { (moment(&wait["due_at"])) } } }
            div { dt { "Task" } dd { a href={ "../tasks/" (id) } { (id) } } }
        }
        form.stack method="post" action={ (id) (query([("step", text(&wait, "step"))])) } {
            (fields(&wait["form"]))
            label { "Why, for those who read the record" input name="_why" maxlength="1000"; }
            button { "Answer" }
        }
        h2 { "Input of the task" }
        (shown(&task["input"]))
    };
    Ok(viewer.page(title, body))
}

/// A field for each property of an object whose types are simple, or one for JSON.
fn fields(schema: &Value) -> Markup {
    match properties(schema) {
        Some(properties) => html! {
            @for (name, of) in properties {
                @let is_needed = schema["required"].as_array().is_some_and(|required| required.iter().any(|needed| needed == name));
                label {
                    (of["title"].as_str().unwrap_or(name)) @if is_needed { " (needed)" }
                    @if let Some(said) = of["description"].as_str() { small { (said) } }
                    (field(name, of, is_needed))
                }
            }
        },
        None => html! {
            label { "The answer, as JSON" textarea name="_payload" rows="6" spellcheck="false" required { "{}" } }
        },
    }
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    let is_simple = |of: &Value| of["enum"].is_array() || matches!(of["type"].as_str(), Some("string" | "number" | "integer" | "boolean"));
    let properties = schema["properties"].as_object()?;
    properties.values().all(is_simple).then_some(properties)
}

fn field(name: &str, of: &Value, is_needed: bool) -> Markup {
    let choice = |options: Vec<(String, String)>| {
        html! {
            select name=(name) required[is_needed] {
                option value="" { "–" }
                @for (value, shown) in options { option value=(value) { (shown) } }
            }
        }
    };
    match (of["enum"].as_array(), of["type"].as_str()) {
        (Some(values), _) => choice(
            values
                .iter()
                .map(|value| (value.to_string(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
                .collect(),
        ),
        (None, Some("boolean")) => choice(vec![("true".into(), "yes".into()), ("false".into(), "no".into())]),
        (None, Some("integer")) => html! { input type="number" step="1" name=(name) required[is_needed]; },
        (None, Some("number")) => html! { input type="number" step="any" name=(name) required[is_needed]; },
        _ => html! { textarea rows="2" name=(name) required[is_needed] {} },
    }
}

/// What the form says, as its schema has it.
fn payload(schema: &Value, mut fields: Fields) -> Outcome<Value> {
    let parse = |name: &str, said: &str| {
        serde_json::from_str::<Value>(said).map_err(|error| Problem::invalid(format!("{name}: this is no JSON: {error}")))
    };
    let Some(properties) = properties(schema) else {
        return parse("the answer", &fields.remove("_payload").unwrap_or_default());
    };
    let mut payload = Map::new();
    for (name, of) in properties {
        let said = fields.remove(name).unwrap_or_default();
        if said.is_empty() {
            continue;
        }
        let is_text = of["enum"].is_null() && of["type"] == "string";
        payload.insert(name.clone(), if is_text { Value::String(said) } else { parse(name, &said)? });
    }
    Ok(Value::Object(payload))
}

pub(super) async fn answer(
    State(web): State<Web>,
    viewer: Submitter,
    Part(id): Part<Uuid>,
    Query(asked): Query<Asked>,
    form: Result<Form<Fields>, axum::extract::rejection::FormRejection>,
) -> Outcome<Response> {
    let Form(mut fields) = form?;
    let (_, wait) = wait(&web, id, &asked.step).await?;
    let why = fields.remove("_why").filter(|why| !why.trim().is_empty());
    let signal = json!({ "name": wait["signal"], "task": id, "payload": payload(&wait["form"], fields)?, "why": why });
    let signal = serde_json::from_value(signal).map_err(|error| Problem::invalid(error.to_string()))?;
    let place = format!("{}approvals", viewer.root);
    let _sent = send(State(web.api), As(viewer.caller), Body(signal)).await?;
    Ok(see(&place, "answered"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_form_says_what_its_schema_asks_for() {
        let schema = json!({ "type": "object", "required": ["ok"], "properties": {
            "ok": { "type": "boolean" }, "limit": { "type": "number" }, "level": { "enum": ["low", 7] }, "note": { "type": "string" } } });
        let said = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, said)| ((*name).to_owned(), (*said).to_owned())).collect();
        let found = payload(
            &schema,
            said(&[("ok", "true"), ("limit", "1.50"), ("level", "\"low\""), ("note", "7")]),
        )
        .unwrap();
        assert_eq!(found.to_string(), r#"{"level":"low","limit":1.50,"note":"7","ok":true}"#);
        assert_eq!(
            payload(&schema, said(&[("ok", "")])).unwrap(),
            json!({}),
            "what is not said is not there"
        );
        assert!(payload(&schema, said(&[("ok", "maybe")])).is_err());
        let free = json!({ "type": "object", "properties": { "lines": { "type": "array" } } });
        assert!(fields(&free).into_string().contains("_payload"));
        assert_eq!(
            payload(&free, said(&[("_payload", "{\"lines\": []}")])).unwrap(),
            json!({ "lines": [] })
        );
    }
}
