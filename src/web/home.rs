//! The first page: how everything is, and what needs a person now.

use axum::extract::State;
use maud::{html, Markup};
use serde_json::{Map, Value};

use super::dead_letters::link;
use super::page::Page;
use super::series::{chart, HOUR};
use super::shown::{badge, count, count_to, list, moment, number, query, seconds, short, text};
use super::viewer::Reader;
use super::Web;
use crate::api::problem::Outcome;
use crate::config::drift::{drift, GRACE};
use crate::engine::dead_letters;
use crate::engine::fleet::{overview_of_all, page_of_namespaces};
use crate::engine::lists;
use crate::engine::pauses;
use crate::engine::signals::WaitFilter;

/// How many namespaces a page has: each takes PostgreSQL a millisecond or two.
pub(super) const NAMESPACES: usize = 30;

/// How many of each kind are shown.
const MOST: usize = 8;

pub(super) async fn show(State(web): State<Web>, viewer: Reader) -> Outcome<Page> {
    let shards = &web.api.shards;
    let fleet = overview_of_all(shards).await?;
    let (namespaces, more) = page_of_namespaces(shards, None, NAMESPACES).await?;
    let minutes = lists::minutes(shards, 60, None).await?;
    let newest = dead_letters::Filter {
        newest: Some(dead_letters::NEWEST),
        ..dead_letters::Filter::default()
    };
    let letters = lists::letter_groups(shards, &newest).await?;
    let (waits, _) = lists::waits_page(shards, &WaitFilter::default(), None, MOST as i32).await?;
    let pauses = shards.list(|db| async move { pauses::list(&db).await }).await?;
    let body = html! {
        h1 { "What goes on" }
        div.charts { @for series in &HOUR { (chart(&minutes, series)) } }
        (needed(&fleet, &letters, &waits, &pauses))
        h2 { "Namespaces" }
        (table(&namespaces, &viewer.root))
        @if more.is_some() { p.note { "The first " (namespaces.len()) "; " a href="queues" { "Queues" } " has all." } }
        @if number(&fleet, "asleep") > 0 { p.note { (count(number(&fleet, "asleep"))) " more have nothing to do." } }
    };
    Ok(viewer.page("What goes on", body))
}

fn needed(fleet: &Value, letters: &[Value], waits: &[Value], pauses: &[Value]) -> Markup {
    let breakers: Vec<(&Value, &Value)> = list(fleet, "limits")
        .iter()
        .flat_map(|limit| list(limit, "breaker").iter().map(move |breaker| (limit, breaker)))
        .collect();
    let unhandled = list(fleet, "unhandled");
    let drifted = drift(list(fleet, "members"), GRACE);
    let broken = fleet["broken_queues"].as_object();
    let nothing = letters.is_empty()
        && waits.is_empty()
        && pauses.is_empty()
        && breakers.is_empty()
        && unhandled.is_empty()
        && drifted.is_empty()
        && broken.is_none_or(Map::is_empty);
    html! {
        section.needed aria-labelledby="needed" {
            h2 id="needed" { "What needs a person" }
            @if nothing { p.none { "Nothing." } }
            @else {
                ul {
                    @for group in letters.iter().take(MOST) {
                        li { (badge("dead")) " "
                            a href=(link(group)) {
                                (count_to(number(group, "count"), dead_letters::NEWEST.into())) " of " (text(group, "template")) ", step " (text(group, "step")) }
                            ": " (short(&format!("{}: {}", text(group, "class"), text(group, "message")), 120)) }
                    }
                    @if letters.len() > MOST { li { a href="dead-letters" { (letters.len() - MOST) " more kinds of dead letters" } } }
                    @for wait in waits {
                        li { (badge("waiting")) " "
                            a href={ "approvals/" (text(wait, "task")) (query([("step", text(wait, "step"))])) } { (text(wait, "template")) ", " (text(wait, "step")) }
                            " waits for the signal " (text(wait, "signal")) " since " (moment(&wait["since"])) }
                    }
                    @for pause in pauses.iter().take(MOST) {
                        li { (badge("paused")) " The " (text(pause, "kind")) " "
                            @if pause["kind"] == "task" { a href={ "tasks/" (text(pause, "name")) } { (short(text(pause, "name"), 14)) } } @else { (text(pause, "name")) }
                            ", by " (text(pause, "who")) " since " (moment(&pause["since"])) @if let Some(why) = pause["why"].as_str() { ": " (short(why, 120)) } }
                    }
                    @for (limit, breaker) in breakers.iter().take(MOST) {
                        li { (badge(text(breaker, "state"))) " " a href="limits" { "The breaker of " (text(limit, "name")) } @if let Some(key) = breaker["key"].as_str().filter(|key| !key.is_empty()) { " (" (short(key, 40)) ")" } }
                    }
                    @for member in drifted.iter().take(MOST) {
                        li { (badge("changed")) " " a href="configuration" { "The " (member.kind) " " (short(&member.name, 60)) " has other settings than those like it" } }
                    }
                    @for step in unhandled.iter().take(MOST) {
                        li { (badge("blocked")) " No worker of " (text(step, "namespace")) " has the handler " code { (text(step, "handler")) } " of " (text(step, "template")) ", step " (text(step, "step")) }
                    }
                    @for (queue, of) in broken.into_iter().flatten().take(MOST) {
                        li { (badge("blocked")) " The queue " code { (queue) } " cannot be worked with: " (short(text(of, "why"), 120)) }
                    }
                }
            }
        }
    }
}

/// Namespaces that are awake or have dead letters, and how they are.
pub(super) fn table(namespaces: &[Value], root: &str) -> Markup {
    html! {
        @if namespaces.is_empty() { p.none { "None is awake." } }
        @else {
            div.scroll tabindex="0" role="group" aria-label="Namespaces" {
                table {
                    thead { tr { th scope="col" { "Namespace" } th scope="col" { "State" } th.number scope="col" { "Tasks pending" } th.number scope="col" { "Steps in the queue" } th.number scope="col" { "Oldest" } th.number scope="col" { "Steps a second" } th.number scope="col" { "Workers" } th.number scope="col" { "Dead letters" } } }
                    tbody {
                        @for of in namespaces {
                            @let name = text(of, "name");
                            @let pending: i64 = of["backlog"].as_object().into_iter().flatten().map(|(_, lane)| number(lane, "pending")).sum();
                            tr {
                                th scope="row" { a href={ (root) "namespaces/" (name) } { (name) } }
                                td { (badge(text(&of["pressure"], "state"))) @if number(of, "workers") == 0 { " " span.badge.bad { "no worker" } } }
                                td.number { a href={ (root) "tasks" (query([("namespace", name)])) } { (count_to(pending, 10_000)) } }
                                td.number { (count_to(number(&of["queue"], "depth"), 10_000)) }
                                td.number { (seconds(&of["queue"]["oldest_seconds"])) }
                                td.number { (format!("{:.1}", of["rates"]["1m"]["completed"].as_f64().unwrap_or_default())) }
                                td.number { (number(of, "workers")) }
                                td.number { a href={ (root) "dead-letters" (query([("namespace", name)])) } { (count_to(number(&of["dead_letters"], "depth"), 10_000)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
