//! Schedules: when each begins its tasks, what became of the last ones, and what can be done about it.

use axum::extract::rejection::FormRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::Form;
use maud::{html, Markup};
use serde_json::Value;

use super::actions::{body, form, said, see, Done, Fields};
use super::page::Page;
use super::shown::{badge, json, list as entries, moment, part, short, text};
use super::table::{table, written};
use super::viewer::{Operator, Reader};
use super::Web;
use crate::api::access::As;
use crate::api::extract::{Asked, Part};
use crate::api::problem::{Outcome, Problem};
use crate::api::schedules as api;
use crate::engine::schedules;

/// How many times of a schedule its page has.
const TIMES: i32 = 50;

fn when(definition: &Value) -> String {
    let kind = ["cron", "every", "at"].iter().find(|kind| !definition[**kind].is_null());
    kind.map(|kind| format!("{kind} {}", text(definition, kind))).unwrap_or_default()
}

fn paused(schedule: &Value) -> Markup {
    let paused = &schedule["paused"];
    html! { @if !paused.is_null() { (badge("paused")) " " (short(text(paused, "who"), 40)) " " (short(text(paused, "why"), 80)) } }
}

fn begun(tick: &Value, root: &str) -> Markup {
    html! {
        @if !tick.is_null() {
            (moment(&tick["time"])) " " (badge(text(tick, "state"))) " "
            @if let Some(task) = tick["task"].as_str() { a href={ (root) "tasks/" (task) } { (short(task, 14)) } }
        }
    }
}

pub(super) async fn list(State(web): State<Web>, viewer: Reader, Query(done): Query<Done>) -> Outcome<Page> {
    let schedules = web.api.shards.list(|db| async move { schedules::list(&db).await }).await?;
    let columns = ["Schedule", "Template", "When", "Next", "Last", "Paused"];
    let body = html! {
        (said(done.done.as_deref()))
        h1 { "Schedules" }
        (table("Schedules", &columns, &schedules, |schedule| vec![
            html! { a href={ "schedules/" (part(text(schedule, "name"))) } { (short(text(schedule, "name"), 80)) } },
            written(text(schedule, "template")),
            html! { code { (when(&schedule["definition"])) } },
            moment(&schedule["next_at"]),
            begun(&schedule["last"], ""),
            paused(schedule),
        ]))
    };
    Ok(viewer.page("Schedules", body))
}

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part(name): Part<String>, Query(done): Query<Done>) -> Outcome<Page> {
    let named = name.as_str();
    let (_, schedule) = schedules::find(&web.api.shards, named, TIMES).await?;
    let ticks = entries(&schedule, "ticks");
    let body = html! {
        (said(done.done.as_deref()))
        div.head {
            h1 { "Schedule " code { (short(&name, 120)) } }
            @if viewer.operates() { (actions(&name, &schedule)) }
        }
        dl.facts {
            div { dt { "Template" } dd { (text(&schedule, "template")) } }
            div { dt { "When" } dd { code { (when(&schedule["definition"])) } } }
            div { dt { "Next" } dd { (moment(&schedule["next_at"])) } }
            @if !schedule["paused"].is_null() { div { dt { "Paused" } dd { (paused(&schedule)) } } }
            div { dt { "Belongs to" } dd { (text(&schedule, "owner")) } }
        }
        h2 { "Its last times" }
        (table("Its last times", &["When, and what became of it"], ticks, |tick| vec![begun(tick, &viewer.root)]))
        h2 { "Definition" }
        (json(&schedule["definition"]))
    };
    Ok(viewer.page(format!("Schedule {name}"), body))
}

fn actions(name: &str, schedule: &Value) -> Markup {
    let to = |verb: &str| format!("{}/{verb}", part(name));
    html! {
        div.actions role="group" aria-label="What can be done" {
            (form("Trigger", &to("trigger"), "A task begins now, beside what runs.", html! {}))
            @if schedule["paused"].is_null() { (form("Pause", &to("pause"), "It begins nothing until it is resumed.", html! {})) }
            @else { (form("Resume", &to("resume"), "It goes on; what would have been meanwhile does not begin.", html! {})) }
            (form("Catch up", &to("backfill"), "A task begins for each of its times from one moment to another, but for those that have had one.", html! {
                label { "From, in UTC" input name="from" required placeholder="2026-11-01T00:00:00Z"; }
                label { "Until" input name="until" required placeholder="2026-11-08T00:00:00Z"; }
            }))
            @if text(schedule, "owner") == "operator" { (form("Delete", &to("delete"), "It begins nothing any more; what it began goes on.", html! {})) }
        }
    }
}

pub(super) async fn act(
    State(web): State<Web>,
    viewer: Operator,
    Part((name, verb)): Part<(String, String)>,
    form: Result<Form<Fields>, FormRejection>,
) -> Outcome<Response> {
    let Form(fields) = form?;
    let here = format!("{}schedules/{}", viewer.root, part(&name));
    let (api, caller, of) = (State(web.api), As(viewer.caller), Part(name));
    match &*verb {
        "trigger" => {
            let (_, began) = api::trigger(api, caller, of, body(fields, &[])?).await?;
            let task = began.0.tasks.first().map(ToString::to_string).unwrap_or_default();
            return Ok(see(&format!("{}tasks/{task}", viewer.root), "trigger"));
        }
        "pause" => drop(api::pause(api, caller, of, body(fields, &[])?).await?),
        "resume" => drop(api::resume(api, caller, of, body(fields, &[])?).await?),
        "backfill" => drop(api::backfill(api, caller, of, body(fields, &[])?).await?),
        "delete" => {
            drop(api::delete(api, caller, of, Asked(body(fields, &[])?.0)).await?);
            return Ok(see(&format!("{}schedules", viewer.root), "delete"));
        }
        other => return Err(Problem::not_found(format!("nothing called {other} can be done to a schedule"))),
    }
    Ok(see(
        &here,
        if verb == "backfill" {
            "backfill"
        } else if verb == "pause" {
            "stopped"
        } else {
            "resume"
        },
    ))
}
