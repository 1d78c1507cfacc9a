//! A task: where each of its steps is, why, and what can be done about it.

use axum::extract::{Query, State};
use maud::{html, Markup};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::actions;
use super::page::Page;
use super::shown::{badge, count, cut, json, list, moment, number, query, seconds, short, text, visible};
use super::viewer::Reader;
use super::{graph, timeline, Web};
use crate::api::extract::Part;
use crate::api::problem::{Outcome, Problem};
use crate::db::Db;
use crate::engine::children::{read_children, Page as Children};
use crate::engine::events::events_of;
use crate::engine::memories::read_values;
use crate::engine::read::{read_results, read_task, ENDED};
use crate::engine::reasons::{explain, Reason};
use crate::engine::schema::input_schema;
use crate::engine::tags::write_tag;

/// How many children and steps a page lists.
const MOST: usize = 200;

/// What of a task is looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Chosen {
    /// One of its steps.
    pub(super) step: Option<String>,
    /// What was just done.
    done: Option<String>,
}

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part(id): Part<Uuid>, Query(chosen): Query<Chosen>) -> Outcome<Page> {
    let db = web.api.shards.of_task(id).await?;
    let task = read_task(&db, id).await?;
    let (live, is_last) = content_of(&web, &task, chosen.step.as_deref()).await?;
    let step = chosen.step.as_deref().unwrap_or_default();
    let schema = match viewer.operates() {
        true => input_schema(&db, id).await?,
        false => Value::Null,
    };
    let stream = (!is_last).then(|| format!("{id}/live{}", query([("step", step)])));
    let title = format!("{} {}", text(&task, "template"), short(&id.to_string(), 14));
    let body = html! {
        (actions::said(chosen.done.as_deref()))
        div.head {
            h1 { (text(&task, "template")) " " small { code { (id) } } }
            @if viewer.operates() { (actions::of_task(&task, &schema, &viewer.root)) }
        }
        div id="live" hx-sse:connect=[stream] hx-sse:close="ended" hx-swap="innerMorph" hx-config=r#"{"sse":{"reconnectDelay":1500}}"# { (live) }
    };
    Ok(viewer.page(title, body))
}

/// What moves on a task's page, and whether it is to move no more.
pub(super) async fn content(web: &Web, id: Uuid, step: Option<&str>) -> Outcome<(Markup, bool)> {
    content_of(web, &read_task(&web.api.shards.of_task(id).await?, id).await?, step).await
}

/// In its place, while it cannot be read.
pub(super) fn stale(problem: &Problem) -> Markup {
    html! { p.refusal role="alert" { (problem.detail()) " The page goes on by itself." } }
}

async fn content_of(web: &Web, task: &Value, chosen: Option<&str>) -> Outcome<(Markup, bool)> {
    let id: Uuid = text(task, "id").parse().unwrap_or_default();
    let db = &web.api.shards.of_task(id).await?;
    let steps = list(task, "steps");
    let drawn: Vec<Value> = steps.iter().filter(|step| step["undoes"].is_null()).cloned().collect();
    let reasons = explain(db, task).await?;
    let values = read_values(db, id).await?;
    let picture = graph::draw(&web.layouts, &drawn, chosen, |name| query([("step", name)])).await;
    let step = match chosen.and_then(|name| steps.iter().find(|step| step["name"] == name)) {
        Some(step) => Some(of_step(db, id, step, &reasons).await?),
        None => None,
    };
    let html = html! {
        (facts(task, web.api.trace_url.as_deref()))
        (why(&reasons, steps.len()))
        h2 { "Steps" }
        (picture)
        @if let Some(step) = step { (step) }
        @else { p.note { "A step, chosen in the picture or in the table, shows its result, its errors and its attempts." } }
        (table(steps, chosen))
        h2 { "Timeline" }
        (timeline::draw(task, chrono::Utc::now()))
        (events(task))
        h2 { "Input" }
        (json(&task["input"]))
        @if values.as_object().is_some_and(|values| !values.is_empty()) {
            h2 { "What it has published" }
            (json(&values))
        }
    };
    Ok((html, ENDED.contains(&text(task, "state"))))
}

fn facts(task: &Value, trace_url: Option<&str>) -> Markup {
    let (namespace, template) = (text(task, "namespace"), text(task, "template"));
    html! {
        dl.facts {
            div { dt { "State" } dd { (badge(text(task, "state"))) } }
            div { dt { "Namespace" } dd { a href=(query([("namespace", namespace)]).replace('?', "../tasks?")) { (namespace) } } }
            div { dt { "Template" } dd { a href=(query([("template", template), ("namespace", namespace)]).replace('?', "../tasks?")) { (template) } " version " (text(task, "version")) } }
            div { dt { "Priority" } dd { (text(task, "priority")) } }
            @if let Some(key) = task["key"].as_str() { div { dt { "Key" } dd { code { (short(key, 80)) } } } }
            div { dt { "Created" } dd { (moment(&task["created_at"])) } }
            @if !task["run_at"].is_null() { div { dt { "Not before" } dd { (moment(&task["run_at"])) } } }
            div { dt { "Began" } dd { (moment(&task["started_at"])) } }
            div { dt { "Ended" } dd { (moment(&task["finished_at"])) } }
            @if let Some(tags) = task["tags"].as_object().filter(|tags| !tags.is_empty()) {
                div { dt { "Tags" } dd {
                    @for (name, value) in tags {
                        @let value = value.as_str().unwrap_or_default();
                        a.tag href=(query([("tag", &*write_tag(name, value))]).replace('?', "../tasks?")) { (short(&format!("{name}={value}"), 60)) } " "
                    }
                } }
            }
            @if let Some(trace) = task["trace_id"].as_str() {
                div { dt { "Trace" } dd {
                    @match trace_url {
                        Some(url) => a href=(url.replace("{trace_id}", trace)) rel="noreferrer" { (short(trace, 14)) },
                        None => code { (trace) },
                    }
                } }
            }
            @if task["parent"].is_object() || list(task, "steps").iter().any(|step| !step["children"].is_null()) {
                div { dt { "Family" } dd { a href={ (text(task, "id")) "/family" } { "Above and below it" } } }
            }
            @if let Some(parent) = task["parent"]["task"].as_str() {
                div { dt { "Part of" } dd { a href={ (parent) (query([("step", text(&task["parent"], "step"))])) } { (short(parent, 14)) } " step " (text(&task["parent"], "step")) ", part " (number(&task["parent"], "item")) } }
            }
            @if let Some(of) = task["forked_from"].as_str() { div { dt { "Fork of" } dd { a href=(of) { (short(of, 14)) } } } }
            @if !list(task, "forks").is_empty() {
                div { dt { "Forks" } dd { @for fork in list(task, "forks") { a href=[fork.as_str()] { (short(fork.as_str().unwrap_or_default(), 14)) } " " } } }
            }
        }
    }
}

fn events(task: &Value) -> Markup {
    let events = events_of(task);
    html! {
        details.events {
            summary { "Events (" (events.len()) ")" }
            div.scroll tabindex="0" role="group" aria-label="Events" {
                table {
                    thead { tr { th scope="col" { "When" } th scope="col" { "What" } th scope="col" { "Step" } th scope="col" { "Attempt" } th scope="col" { "More" } } }
                    tbody {
                        @for event in events.iter().rev().take(MOST) {
                            @let data = &event["data"];
                            tr {
                                td { (moment(&event["time"])) }
                                td { (text(event, "type").trim_start_matches("tasker.")) }
                                td { (short(text(data, "step"), 60)) }
                                td { @if let Some(attempt) = data["attempt"].as_i64() { (attempt) } }
                                td { (short(text(&data["error"], "message"), 80)) (short(text(data, "worker"), 40)) (short(text(data, "who"), 40)) }
                            }
                        }
                    }
                }
            }
            @if events.len() > MOST { p.note { "The last " (MOST) "." } }
        }
    }
}

fn why(reasons: &[Reason], steps: usize) -> Markup {
    const NAMED: usize = 30;
    // What only waits for other steps says least.
    let (waiting, first): (Vec<&Reason>, Vec<&Reason>) = reasons.iter().partition(|reason| reason.why.starts_with("It waits for the step"));
    let left = reasons.len().saturating_sub(NAMED);
    html! {
        @if !reasons.is_empty() && steps > 0 {
            section.why aria-labelledby="why" {
                h2 id="why" { "Why is this not running?" }
                ul {
                    @for reason in first.iter().chain(&waiting).take(NAMED) {
                        li {
                            @if let Some(step) = &reason.step { a href=(query([("step", &**step)])) { (short(step, 60)) } ": " }
                            (visible(&reason.why))
                        }
                    }
                }
                @if left > 0 { p.note { (left) " more steps wait." } }
            }
        }
    }
}

fn table(steps: &[Value], chosen: Option<&str>) -> Markup {
    let is_whole = steps.len() <= MOST;
    let listed: Vec<&Value> = steps
        .iter()
        .filter(|step| is_whole || step["state"] != "complete")
        .take(MOST)
        .collect();
    html! {
        div.scroll tabindex="0" role="group" aria-label="The table of its steps" {
            table {
                thead { tr { th scope="col" { "Step" } th scope="col" { "State" } th scope="col" { "Attempt" } th scope="col" { "Worker" } th scope="col" { "Last error" } } }
                tbody {
                    @for step in &listed {
                        @let name = text(step, "name");
                        tr.chosen[chosen == Some(name)] {
                            th scope="row" { a href=(query([("step", name)])) { (short(name, 60)) } }
                            td { (badge(text(step, "state"))) (children(step)) }
                            td { (number(step, "attempt")) " of " (number(step, "max_attempts")) }
                            td { (short(text(step, "worker"), 40)) }
                            td { @if let Some(error) = list(step, "errors").last() { (short(&format!("{}: {}", text(error, "class"), text(error, "message")), 100)) } }
                        }
                    }
                }
            }
        }
        @if !is_whole { p.note { "Of " (count(steps.len() as i64)) " steps, the first " (listed.len()) " that are not complete." } }
    }
}

fn children(step: &Value) -> Markup {
    let of = &step["children"];
    html! {
        @if !of.is_null() {
            " " span.note {
                (count(number(of, "ended"))) " of " (of["total"].as_i64().map_or_else(|| "?".into(), count)) " tasks"
                @if number(of, "dead") > 0 { ", " (count(number(of, "dead"))) " dead" }
            }
        }
    }
}

async fn of_step(db: &Db, id: Uuid, step: &Value, reasons: &[Reason]) -> Outcome<Markup> {
    let name = text(step, "name");
    let result = match step["result_bytes"].as_i64() {
        // Read by itself where the task's results were too many to come along.
        Some(_) if step["result"].is_null() => {
            let mut found = read_results(db, id, None, &[name.to_owned()], None).await?;
            found.pop().map(|(_, json)| cut(&json))
        }
        Some(_) => Some(json(&step["result"])),
        None => None,
    };
    let children = match step["children"].is_null() {
        true => vec![],
        false => {
            let page = Children {
                limit: 50,
                ..Children::default()
            };
            let dead = Children {
                dead: true,
                ..page.clone()
            };
            let mut children = read_children(db, id, None, name, &dead).await?;
            for child in read_children(db, id, None, name, &page).await? {
                if !children.iter().any(|known| known.id == child.id) {
                    children.push(child);
                }
            }
            children
        }
    };
    let reason = reasons.iter().find(|reason| reason.step.as_deref() == Some(name));
    Ok(html! {
        section.step aria-labelledby="step" {
            h3 id="step" { (short(name, 80)) " " (badge(text(step, "state"))) }
            @if let Some(reason) = reason {
                p {
                    (visible(&reason.why))
                    @if text(step, "waits_for").starts_with("the signal ") { " " a href={ "../approvals/" (id) (query([("step", name)])) } { "Answer it" } }
                }
            }
            dl.facts {
                div { dt { "Kind" } dd { (text(step, "kind")) } }
                @if let Some(handler) = step["handler"].as_str() { div { dt { "Handler" } dd { code { (handler) } } } }
                div { dt { "Namespace" } dd { (text(step, "namespace")) } }
                div { dt { "Attempt" } dd { (number(step, "attempt")) " of " (number(step, "max_attempts")) } }
                @if let Some(worker) = step["worker"].as_str() { div { dt { "Worker" } dd { (worker) } } }
                div { dt { "Enqueued" } dd { (moment(&step["enqueued_at"])) } }
                div { dt { "Began" } dd { (moment(&step["started_at"])) } }
                div { dt { "Ended" } dd { (moment(&step["finished_at"])) } }
                @if !step["progress"].is_null() { div { dt { "Progress" } dd { (short(&step["progress"].to_string(), 200)) } } }
            }
            @if let Some(result) = result { h4 { "Result" } (result) }
            @if !list(step, "errors").is_empty() {
                h4 { "Errors" }
                @for error in list(step, "errors").iter().rev() { (self::error(error)) }
            }
            @if !children.is_empty() {
                h4 { "Its tasks" }
                div.scroll tabindex="0" role="group" aria-label="Its tasks" {
                    table {
                        thead { tr { th scope="col" { "Part" } th scope="col" { "Task" } th scope="col" { "State" } th scope="col" { "Error" } } }
                        tbody {
                            @for child in &children {
                                tr {
                                    td { (child.item) }
                                    th scope="row" { a href=(child.id) { (short(&child.id.to_string(), 14)) } }
                                    td { (badge(&child.state)) }
                                    td { @if let Some(error) = &child.error { (short(&format!("{}: {}", text(error, "class"), text(error, "message")), 100)) } }
                                }
                            }
                        }
                    }
                }
                @if number(&step["children"], "created") > children.len() as i64 {
                    p.note { "The first of " (count(number(&step["children"], "created"))) ", and those that are dead." }
                }
            }
        }
    })
}

pub(super) fn error(error: &Value) -> Markup {
    let backtrace: Vec<&str> = list(error, "backtrace").iter().filter_map(Value::as_str).collect();
    html! {
        article.error {
            p { strong { (short(text(error, "class"), 200)) } " attempt " (number(error, "attempt")) ", " (moment(&error["at"]))
                @if number(error, "times") > 1 { ", " (number(error, "times")) " times" }
                @if error["seconds"].is_number() { ", after " (seconds(&error["seconds"])) } }
            (cut(text(error, "message")))
            @if !backtrace.is_empty() { pre.backtrace tabindex="0" { (visible(&backtrace.join("\n"))) } }
        }
    }
}
