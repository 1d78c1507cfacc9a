//! What works, what holds it back, and what there is to work by: tables.

use axum::extract::rejection::FormRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::Form;
use maud::html;
use serde::Deserialize;
use serde_json::Value;

use super::actions::{body, said, see, Done, Fields};
use super::home;
use super::page::Page;
use super::shown::{badge, count, count_to, filled, list, moment, number, part, query, seconds, short, text};
use super::table::{table, written};
use super::viewer::{Operator, Reader};
use super::Web;
use crate::api;
use crate::api::access::As;
use crate::api::extract::Part;
use crate::api::problem::Outcome;
use crate::engine::audit::ChangeFilter;
use crate::engine::fleet::{overview_of_all, page_of_namespaces};
use crate::engine::limits as engine_limits;
use crate::engine::lists;
use crate::engine::read::list_templates;

/// Which part of the queues, or which namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Position {
    after: String,
    namespace: String,
}

pub(super) async fn queues(State(web): State<Web>, viewer: Reader, Query(asked): Query<Position>) -> Outcome<Response> {
    if let Some(name) = filled(&asked.namespace) {
        return Ok(Redirect::to(&format!("{}namespaces/{}", viewer.root, part(&name))).into_response());
    }
    let after = filled(&asked.after);
    let (namespaces, next) = page_of_namespaces(&web.api.shards, after.as_deref(), home::NAMESPACES).await?;
    let fleet = overview_of_all(&web.api.shards).await?;
    let body = html! {
        h1 { "Queues" }
        form.filter method="get" action="queues" {
            label { "Namespace" input name="namespace" required; }
            button { "Open" }
        }
        (home::table(&namespaces, &viewer.root))
        @if let Some(next) = next {
            nav.pages aria-label="Pages" { a rel="next" href={ "queues" (query([("after", next.as_str())])) } { "More namespaces" } }
        }
        @if number(&fleet, "asleep") > 0 { p.note { (count(number(&fleet, "asleep"))) " more namespaces have nothing to do." } }
    };
    Ok(viewer.page("Queues", body).into_response())
}

pub(super) async fn limits(State(web): State<Web>, viewer: Reader, Query(done): Query<Done>) -> Outcome<Page> {
    let limits = web.api.shards.list(|db| async move { engine_limits::list(&db).await }).await?;
    let columns = ["Limit", "Concerns", "At once", "Granted", "Wait", "Rate", "Breakers"];
    let body = html! {
        (said(done.done.as_deref()))
        h1 { "Limits" }
        (table("Limits", &columns, &limits, |limit| vec![
            written(format!("{}/{}", text(limit, "namespace"), text(limit, "name"))),
            written(["handler", "template", "key"].iter().filter_map(|name| Some(format!("{name} {}", limit[*name].as_str()?))).collect::<Vec<_>>().join(", ")),
            written(limit["concurrency"].as_i64().map(count).unwrap_or_default()),
            written(count_to(number(limit, "granted"), 1_000_000)),
            written(count_to(number(limit, "waiting"), 1_000_000)),
            html! { @if let Some(rate) = limit["rate"].as_i64() { (count(rate)) " in " (seconds(&limit["per_seconds"])) } },
            html! { @for breaker in list(limit, "breaker") { (badge(text(breaker, "state"))) " " (short(text(breaker, "key"), 40)) " until " (moment(&breaker["until"])) " " }
                @if viewer.operates() && !list(limit, "breaker").is_empty() {
                    form method="post" action={ "limits/" (text(limit, "namespace")) "/" (text(limit, "name")) "/reset" } {
                        button.quiet aria-label={ "Close the breakers of " (text(limit, "name")) } { "Close" }
                    }
                } },
        ]))
    };
    Ok(viewer.page("Limits", body))
}

pub(super) async fn reset(
    State(web): State<Web>,
    viewer: Operator,
    limit: Part<(String, String)>,
    form: Result<Form<Fields>, FormRejection>,
) -> Outcome<Response> {
    let Form(fields) = form?;
    let here = format!("{}limits", viewer.root);
    drop(api::fleet::reset(State(web.api), As(viewer.caller), limit, body(fields, &[])?).await?);
    Ok(see(&here, "reset"))
}

pub(super) async fn workers(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let fleet = overview_of_all(&web.api.shards).await?;
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

pub(super) async fn templates(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let templates = web.api.shards.list(|db| async move { list_templates(&db).await }).await?;
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
    let filter = ChangeFilter {
        who: filled(&asked.who),
        object: filled(&asked.object),
        before: None,
    };
    let cursor = filled(&asked.cursor);
    let (changes, next) = lists::changes_page(&web.api.shards, &filter, cursor.as_deref(), CHANGES).await?;
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
