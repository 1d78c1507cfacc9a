//! The list of tasks, by what is asked for in the URL.

use std::time::Duration;

use axum::extract::{Query, State};
use chrono::Utc;
use maud::{html, Markup};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::page::Page;
use super::shown::{badge, filled, moment, query, short, text};
use super::viewer::Reader;
use super::Web;
use crate::api::problem::{Outcome, Problem};
use crate::engine::lists;
use crate::engine::read::TaskFilter;
use crate::engine::tags::read_tags;

/// How many tasks a page has.
const MOST: i32 = 50;

const STATES: [&str; 11] = [
    "pending",
    "waiting",
    "running",
    "blocked",
    "paused",
    "cancelling",
    "undoing",
    "complete",
    "failed",
    "cancelled",
    "discarded",
];

/// What a list of tasks was asked for; what is empty filters nothing.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    namespace: String,
    template: String,
    state: String,
    error: String,
    key: String,
    tag: String,
    /// Such as `1h`: those that were created within it.
    within: String,
    cursor: String,
    /// What is to be done to them.
    pub(super) verb: String,
}

impl Asked {
    pub(super) fn filter(&self) -> Outcome<TaskFilter> {
        let within = filled(&self.within).map(|within| humantime::parse_duration(&within)).transpose();
        let within: Option<Duration> = within.map_err(|_| Problem::bad_request("within: expected a length of time such as 1h"))?;
        Ok(TaskFilter {
            namespace: filled(&self.namespace),
            template: filled(&self.template),
            state: filled(&self.state),
            error: filled(&self.error),
            key: filled(&self.key),
            since: within.and_then(|within| Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(within).ok()?)),
            before: None,
            tags: read_tags(&self.tag).map_err(Problem::bad_request)?,
        })
    }

    pub(super) fn query(&self, cursor: &str) -> String {
        query([
            ("namespace", &*self.namespace),
            ("template", &self.template),
            ("state", &self.state),
            ("error", &self.error),
            ("key", &self.key),
            ("tag", &self.tag),
            ("within", &self.within),
            ("cursor", cursor),
        ])
    }
}

pub(super) async fn list(
    State(web): State<Web>,
    viewer: Reader,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Outcome<Page> {
    let Query(asked) = asked?;
    let filter = asked.filter()?;
    let (tasks, next) = lists::tasks_page(&web.api.shards, &filter, filled(&asked.cursor).as_deref(), MOST).await?;
    let body = html! {
        h1 { "Tasks" }
        (form(&asked))
        @if viewer.operates() && filter != TaskFilter::default() {
            p { a href={ "bulk-actions/new" (asked.query("")) } { "Act on all of this search…" } }
        }
        (table(&tasks))
        @if tasks.is_empty() && next.is_none() { p.none { "There is no such task." } }
        @if let Some(next) = next {
            @if tasks.len() < MOST as usize { p.note { "There may be more: only the newest tasks were looked at so far." } }
            nav.pages aria-label="Pages" {
                a href={ "tasks" (asked.query(&next)) } rel="next" { @if tasks.is_empty() { "Look at older tasks" } @else { "Older tasks" } }
            }
        }
    };
    Ok(viewer.page("Tasks", body))
}

fn form(asked: &Asked) -> Markup {
    let field = |name: &str, label: &str, value: &str| html! { label { (label) input name=(name) value=(value); } };
    html! {
        form.filter method="get" action="tasks" role="search" {
            label { "State" select name="state" {
                option value="" { "any" }
                @for state in STATES { option selected[asked.state == state] { (state) } }
            } }
            (field("namespace", "Namespace", &asked.namespace))
            (field("template", "Template", &asked.template))
            (field("tag", "Tag (name=value)", &asked.tag))
            (field("error", "Error class", &asked.error))
            (field("key", "Key", &asked.key))
            label { "Created within" select name="within" {
                @for (value, name) in [("", "any time"), ("15m", "15 minutes"), ("1h", "an hour"), ("1d", "a day"), ("7d", "a week")] {
                    option value=(value) selected[asked.within == value] { (name) }
                }
            } }
            button { "Find" }
        }
    }
}

fn table(tasks: &[Value]) -> Markup {
    html! {
        @if !tasks.is_empty() {
            div.scroll tabindex="0" role="group" aria-label="Tasks" {
                table {
                    thead { tr { th scope="col" { "Task" } th scope="col" { "State" } th scope="col" { "Namespace" } th scope="col" { "Created" } th scope="col" { "Ended" } th scope="col" { "Key and tags" } } }
                    tbody {
                        @for task in tasks {
                            tr {
                                th scope="row" { a href={ "tasks/" (text(task, "id")) } { (text(task, "template")) " " small { (short(text(task, "id"), 14)) } } }
                                td { (badge(text(task, "state"))) }
                                td { (text(task, "namespace")) }
                                td { (moment(&task["created_at"])) }
                                td { (moment(&task["finished_at"])) }
                                td {
                                    @if let Some(key) = task["key"].as_str() { code { (short(key, 40)) } " " }
                                    @for (name, value) in task["tags"].as_object().into_iter().flatten() { span.tag { (short(&format!("{name}={}", value.as_str().unwrap_or_default()), 40)) } " " }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
