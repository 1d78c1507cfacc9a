//! The family of a task: those whose work it is, up to the first, and those that are its work, as a tree.

use std::collections::HashMap;

use axum::extract::State;
use maud::{html, Markup};
use serde_json::Value;
use uuid::Uuid;

use super::page::Page;
use super::shown::{badge, number, query, short, text};
use super::viewer::Reader;
use super::Web;
use crate::api::extract::Part;
use crate::api::problem::Outcome;
use crate::engine::children::read_family;
use crate::engine::read::read_outline;

/// How many generations up are shown.
const ABOVE: usize = 20;

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part(id): Part<Uuid>) -> Outcome<Page> {
    let db = &web.api.shards.of_task(id).await?;
    let mut above = vec![read_outline(db, id).await?];
    while let Some(parent) = above.last().and_then(|task| task["parent"]["task"].as_str()?.parse().ok()) {
        if above.len() > ABOVE {
            break;
        }
        above.push(read_outline(db, parent).await?);
    }
    let family = read_family(db, id).await?;
    let mut children: HashMap<&str, Vec<&Value>> = HashMap::new();
    for member in family.iter().filter(|member| !member["parent"].is_null()) {
        children.entry(text(member, "parent")).or_default().push(member);
    }
    let body = html! {
        h1 { "Family of " (text(&above[0], "template")) " " small { code { (id) } } }
        @if above.len() > 1 {
            h2 { "Whose work it is" }
            ol.above { @for task in above[1..].iter().rev() { li { (line(task, "")) } } }
        }
        h2 { "Its work" }
        @if family.len() > 1 { ul.tree { @for member in family.iter().filter(|member| member["parent"].is_null()) { (branch(member, &children)) } } }
        @else { p.none { "No step of it has tasks of its own." } }
        @if family.len() >= 500 { p.note { "The first " (family.len()) "; of each parent the first 50. A step's own list has all." } }
    };
    Ok(viewer.page("Family", body))
}

fn line(of: &Value, step: &str) -> Markup {
    html! {
        a href={ "../" (text(of, "id")) (query([("step", step)])) } { (short(text(of, "template"), 60)) } " "
        code { (short(text(of, "id"), 14)) } " " (badge(text(of, "state")))
    }
}

fn branch(member: &Value, children: &HashMap<&str, Vec<&Value>>) -> Markup {
    let below = children.get(text(member, "id")).map(Vec::as_slice).unwrap_or_default();
    html! {
        li {
            @if !member["step"].is_null() { span.note { (short(text(member, "step"), 40)) " " (number(member, "item")) ": " } }
            (line(member, ""))
            @if !below.is_empty() { ul { @for child in below { (branch(child, children)) } } }
        }
    }
}
