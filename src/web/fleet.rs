//! What works, what holds it back, and what there is to work by: tables.

use axum::extract::{Query, State};
use maud::{html, Markup};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::home;
use super::page::Page;
use super::shown::{badge, count, count_to, filled, list, moment, number, query, seconds, short, text};
use super::viewer::Reader;
use super::Web;
use crate::api::problem::{Outcome, Problem};
use crate::engine::audit::ChangeFilter;
use crate::engine::fleet::fleet;
use crate::engine::read::list_templates;
use crate::engine::{limits as engine_limits, schedules as engine_schedules};

/// How many rows a table has.
const MOST: usize = 500;

/// A table of these columns, with a row for each entry.
fn table(label: &str, columns: &[&str], rows: &[Value], cells: impl Fn(&Value) -> Vec<Markup>) -> Markup {
    html! {
        @if rows.is_empty() { p.none { "There is none." } }
        @else {
            div.scroll tabindex="0" role="group" aria-label=(label) {
                table {
                    thead { tr { @for column in columns { th scope="col" { (column) } } } }
                    tbody {
                        @for row in rows.iter().take(MOST) {
                            tr { @for (place, cell) in cells(row).into_iter().enumerate() { @if place == 0 { th scope="row" { (cell) } } @else { td { (cell) } } } }
                        }
                    }
                }
            }
            @if rows.len() > MOST { p.note { "The first " (MOST) " of " (count(rows.len() as i64)) "; the API has all." } }
        }
    }
}

fn written(text: impl Into<String>) -> Markup {
    let text = text.into();
    html! { (text) }
}

pub(super) async fn queues(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let fleet = fleet(&web.api.db).await?;
    let none = Map::new();
    let body = html! {
        h1 { "Queues" }
        (home::table(fleet["namespaces"].as_object().unwrap_or(&none)))
        @if number(&fleet, "asleep") > 0 { p.note { (count(number(&fleet, "asleep"))) " more namespaces have nothing to do." } }
    };
    Ok(viewer.page("Queues", body))
}

pub(super) async fn limits(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let limits = engine_limits::list(&web.api.db).await?;
    let columns = ["Limit", "Concerns", "At once", "Granted", "Wait", "Rate", "Breakers"];
    let body = html! {
        h1 { "Limits" }
        (table("Limits", &columns, &limits, |limit| vec![
            written(format!("{}/{}", text(limit, "namespace"), text(limit, "name"))),
            written(["handler", "template", "key"].iter().filter_map(|name| Some(format!("{name} {}", limit[*name].as_str()?))).collect::<Vec<_>>().join(", ")),
            written(limit["concurrency"].as_i64().map(count).unwrap_or_default()),
            written(count_to(number(limit, "granted"), 1_000_000)),
            written(count_to(number(limit, "waiting"), 1_000_000)),
            html! { @if let Some(rate) = limit["rate"].as_i64() { (count(rate)) " in " (seconds(&limit["per_seconds"])) } },
            html! { @for breaker in list(limit, "breaker") { (badge(text(breaker, "state"))) " " (short(text(breaker, "key"), 40)) " until " (moment(&breaker["until"])) " " } },
        ]))
    };
    Ok(viewer.page("Limits", body))
}

pub(super) async fn workers(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let fleet = fleet(&web.api.db).await?;
    let columns = ["Name", "Kind", "Version", "Namespaces", "Up", "Last heartbeat", "Busy"];
    let body = html! {
        h1 { "Workers and orchestrators" }
        (table("Members", &columns, list(&fleet, "members"), |member| vec![
            written(short(text(member, "name"), 60)),
            written(text(member, "kind")),
            written(text(member, "version")),
            written(short(&list(member, "namespaces").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "), 80)),
            seconds(&member["up_seconds"]),
            html! { (seconds(&member["heartbeat_seconds"])) " ago" },
            html! { @let busy = &member["report"]["busy"]; @if !busy.is_null() { (number(busy, "running")) " of " (number(busy, "slots")) } },
        ]))
    };
    Ok(viewer.page("Workers and orchestrators", body))
}

pub(super) async fn schedules(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let schedules = engine_schedules::list(&web.api.db).await?;
    let columns = ["Schedule", "Template", "When", "Next", "Last", "Paused"];
    let body = html! {
        h1 { "Schedules" }
        (table("Schedules", &columns, &schedules, |schedule| vec![
            written(text(schedule, "name")),
            written(text(schedule, "template")),
            html! { code { (["cron", "every", "at"].iter().find_map(|kind| Some(format!("{kind} {}", schedule["definition"][*kind].as_str()?))).unwrap_or_default()) } },
            moment(&schedule["next_at"]),
            html! { @let last = &schedule["last"]; @if !last.is_null() { (moment(&last["time"])) " " (badge(text(last, "state"))) " "
                @if let Some(task) = last["task"].as_str() { a href={ "tasks/" (task) } { (short(task, 14)) } } } },
            html! { @let paused = &schedule["paused"]; @if !paused.is_null() { (badge("paused")) " " (short(paused["who"].as_str().unwrap_or_default(), 40)) " " (short(paused["why"].as_str().unwrap_or_default(), 80)) } },
        ]))
    };
    Ok(viewer.page("Schedules", body))
}

pub(super) async fn templates(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let templates = list_templates(&web.api.db).await?;
    let body = html! {
        h1 { "Templates" }
        (table("Templates", &["Template", "Version", "Steps", "Versions", "Registered", "Tasks"], &templates, |template| vec![
            html! { @let name = format!("{}/{}", text(template, "namespace"), text(template, "name")); a href={ "templates/" (name) } { (name) } },
            written(text(template, "version")),
            written(count(number(template, "steps"))),
            written(count(number(template, "versions"))),
            moment(&template["registered_at"]),
            html! { a href={ "tasks" (query([("namespace", text(template, "namespace")), ("template", text(template, "name"))])) } { "Tasks" } },
        ]))
    };
    Ok(viewer.page("Templates", body))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    who: String,
    object: String,
    cursor: String,
}

pub(super) async fn audit(State(web): State<Web>, viewer: Reader, Query(asked): Query<Asked>) -> Outcome<Page> {
    const CHANGES: i32 = 100;
    let before = filled(&asked.cursor).map(|cursor| cursor.parse()).transpose();
    let filter = ChangeFilter {
        who: filled(&asked.who),
        object: filled(&asked.object),
        before: before.map_err(|_| Problem::bad_request("cursor: expected the number of a change"))?,
    };
    let changes = crate::engine::audit::list(&web.api.db, &filter, CHANGES).await?;
    let next = changes
        .last()
        .filter(|_| changes.len() == CHANGES as usize)
        .map(|last| last["id"].to_string());
    let body = html! {
        h1 { "Audit" }
        form.filter method="get" action="audit" {
            label { "Who" input name="who" value=(asked.who); }
            label { "What it was done to" input name="object" value=(asked.object); }
            button { "Find" }
        }
        (table("Changes", &["When", "Who", "What", "To what", "Why", "What became of it"], &changes, |change| vec![
            moment(&change["at"]),
            html! { (short(text(change, "who"), 60)) " " small { (text(change, "via")) " " (text(change, "address")) } },
            written(text(change, "action")),
            html! { (short(text(change, "object"), 60)) },
            html! { (short(text(change, "why"), 120)) },
            html! { @match change["done"].as_bool() { Some(true) => "done", Some(false) => { span.bad { (short(text(change, "error"), 120)) } } None => "not known" } },
        ]))
        @if let Some(next) = next {
            nav.pages aria-label="Pages" { a rel="next" href={ "audit" (query([("who", &*asked.who), ("object", &asked.object), ("cursor", &next)])) } { "Older changes" } }
        }
    };
    Ok(viewer.page("Audit", body))
}
