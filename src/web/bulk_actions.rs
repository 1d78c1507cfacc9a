//! Bulk actions: first how many tasks one would concern, then how far it is.

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::Form;
use maud::{html, Markup};
use serde_json::{json, Value};

use super::actions::{body, see, Fields};
use super::page::Page;
use super::shown::{badge, count, json as shown, moment, number, query, short, text};
use super::tasks::Asked;
use super::viewer::{Operator, Reader};
use super::Web;
use crate::api::access::As;
use crate::api::bulk_actions as api;
use crate::api::extract::Part;
use crate::api::problem::{Outcome, Problem};
use crate::engine::bulk_actions;
use crate::engine::lists;
use crate::engine::read::{count_tasks, TaskFilter};

const VERBS: [(&str, &str); 9] = [
    ("replay", "Replay: their dead steps start over"),
    ("skip", "Skip: their dead steps end without a result"),
    ("resolve", "Resolve: their dead steps are complete with a result"),
    ("discard", "Discard: their dead letters are deleted (a reason is expected)"),
    ("cancel", "Cancel: they end as they are"),
    ("undo", "Undo: they are cancelled, and what they did is undone"),
    ("pause", "Pause: nothing new of them begins"),
    ("resume", "Resume: they go on where they were"),
    ("prioritize", "Prioritize: they get another priority"),
];

pub(super) async fn list(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let (all, _) = lists::bulk_actions_page(&web.api.shards, None, 100).await?;
    let body = html! {
        h1 { "Bulk actions" }
        p { "What is done in the background to all tasks of a search: it begins at " a href="tasks" { "Tasks" } "." }
        @if all.is_empty() { p.none { "There was none." } }
        @else {
            div.scroll tabindex="0" role="group" aria-label="Bulk actions" {
                table {
                    thead { tr { th scope="col" { "Number" } th scope="col" { "What" } th scope="col" { "State" } th.number scope="col" { "Found" } th.number scope="col" { "Done" } th scope="col" { "Who" } th scope="col" { "Began" } th scope="col" { "Ended" } } }
                    tbody {
                        @for of in &all {
                            tr {
                                th scope="row" { a href={ "bulk-actions/" (number(of, "id")) } { (number(of, "id")) } }
                                td { (text(&of["action"], "verb")) " " code { (short(&of["filter"].to_string(), 80)) } }
                                td { (badge(text(of, "state"))) }
                                td.number { (count(number(of, "found"))) }
                                td.number { (count(number(of, "done"))) }
                                td { (short(text(of, "who"), 40)) }
                                td { (moment(&of["created_at"])) }
                                td { (moment(&of["finished_at"])) }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(viewer.page("Bulk actions", body))
}

/// Asks what is to be done, and says to how many.
pub(super) async fn ask(State(web): State<Web>, viewer: Operator, asked: Result<Query<Asked>, QueryRejection>) -> Outcome<Page> {
    let Query(asked) = asked?;
    let filter = asked.filter()?;
    if filter == TaskFilter::default() {
        return Err(Problem::bad_request(
            "A bulk action is done to the tasks of a search: search for some first.",
        ));
    }
    let filtered = &filter;
    let counted = web.api.shards.ask_all(|db| async move { count_tasks(&db, filtered).await }).await?;
    let (found, is_all) = counted
        .iter()
        .fold((0, true), |(sum, all), (_, (found, is_all))| (sum + found, all && *is_all));
    let how_many = if is_all {
        count(found)
    } else {
        format!("{} or more", count(found))
    };
    let body = html! {
        h1 { "Act on " (how_many) " tasks" }
        p { "Those of this search that are there now; which of them it concerns is seen one by one. " a href={ "../tasks" (asked.query("")) } { "Look at them" } }
        (shown(&json!(filter)))
        form.stack method="post" action="../bulk-actions" {
            input type="hidden" name="filter" value=(json!(filter).to_string());
            label { "What" select name="verb" required {
                @for (verb, said) in VERBS { option value=(verb) selected[asked.verb == verb] { (said) } }
            } }
            label { "Priority, to prioritize" select name="priority" {
                option value="" { "–" }
                @for priority in ["low", "normal", "high", "urgent"] { option { (priority) } }
            } }
            label { "Result, to resolve, as JSON" textarea name="result" rows="2" spellcheck="false" {} }
            label { "How many a second; empty: as fast as it goes" input name="per_second" type="number" min="0.1" step="0.1"; }
            label { "Why, for those who read the record" input name="why" maxlength="1000"; }
            button { "Do it to " (how_many) " tasks" }
        }
    };
    Ok(viewer.page("Act on many tasks", body))
}

pub(super) async fn begin(State(web): State<Web>, viewer: Operator, form: Result<Form<Fields>, FormRejection>) -> Outcome<Response> {
    let Form(fields) = form?;
    let new = body(fields, &["filter", "per_second", "result"])?;
    let (_, begun) = api::begin(State(web.api), As(viewer.caller), new).await?;
    Ok(see(&format!("{}bulk-actions/{}", viewer.root, begun.0.id), "begun"))
}

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part(id): Part<i64>) -> Outcome<Page> {
    let of = bulk_actions::show(&web.api.shards.of_number(id).await?, id).await?;
    let body = html! {
        h1 { "Bulk action " (id) }
        div id="progress" { (progress_of(&of)) }
        @if viewer.operates() && text(&of, "state") == "running" {
            form method="post" action={ (id) "/stop" } { button.quiet { "Stop it" } }
        }
        dl.facts {
            div { dt { "What" } dd { (text(&of["action"], "verb")) } }
            div { dt { "Who" } dd { (short(text(&of, "who"), 60)) } }
            @if let Some(why) = of["why"].as_str() { div { dt { "Why" } dd { (short(why, 200)) } } }
            div { dt { "Began" } dd { (moment(&of["created_at"])) } }
            @if let Some(rate) = of["per_second"].as_f64() { div { dt { "A second" } dd { (rate) } } }
        }
        h2 { "Tasks" }
        (shown(&of["filter"]))
    };
    Ok(viewer.page(format!("Bulk action {id}"), body))
}

pub(super) async fn progress(State(web): State<Web>, _: Reader, Part(id): Part<i64>) -> Outcome<Response> {
    let of = bulk_actions::show(&web.api.shards.of_number(id).await?, id).await?;
    Ok(axum::response::Html(progress_of(&of).into_string()).into_response())
}

/// While it runs, it is asked for again.
fn progress_of(of: &Value) -> Markup {
    let is_running = text(of, "state") == "running";
    let again = is_running.then(|| format!("{}/progress", number(of, "id")));
    html! {
        p hx-get=[again] hx-trigger=[is_running.then_some("every 1s")] hx-target="#progress" hx-swap="innerMorph" aria-live="polite" {
            (badge(text(of, "state"))) " done to " strong { (count(number(of, "done"))) } " of " (count(number(of, "found"))) " tasks that were found"
            @if !is_running { ", at " (moment(&of["finished_at"])) }
            @if let Some(who) = of["stopped_by"].as_str() { ", stopped by " (short(who, 60)) }
        }
        @if let Some(error) = of["error"].as_str() { p.refusal role="alert" { (short(error, 500)) } }
    }
}

pub(super) async fn stop(
    State(web): State<Web>,
    viewer: Operator,
    Part(id): Part<i64>,
    form: Result<Form<Fields>, FormRejection>,
) -> Outcome<Response> {
    let Form(fields) = form?;
    let _done = api::stop(State(web.api), As(viewer.caller), Part(id), body(fields, &[])?).await?;
    Ok(see(&format!("{}bulk-actions/{id}", viewer.root), "stop"))
}

/// Where such a one is asked for.
pub(super) fn link(of: &Value) -> String {
    let fields = [
        ("namespace", text(of, "namespace")),
        ("template", text(of, "template")),
        ("error", text(of, "class")),
        ("verb", "replay"),
    ];
    format!("bulk-actions/new{}", query(fields))
}
