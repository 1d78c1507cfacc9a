//! Dead letters: by error, one by one, and what is done about them.

use axum::extract::{Query, State};
use maud::{html, Markup};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::actions::{form, said};
use super::bulk_actions;
use super::page::Page;
use super::schema_help;
use super::shown::{count, filled, json, list as entries, moment, number, query, short, text};
use super::task::error;
use super::viewer::Reader;
use super::Web;
use crate::api::extract::Part;
use crate::api::problem::Outcome;
use crate::engine::dead_letters::{self, Filter, NEWEST};
use crate::engine::lists;
use crate::engine::schema::input_schema;

/// How many letters a page has.
const MOST: i32 = 50;

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    namespace: String,
    template: String,
    reason: String,
    class: String,
    cursor: String,
    done: Option<String>,
}

impl Asked {
    fn filter(&self) -> Filter {
        Filter {
            namespace: filled(&self.namespace),
            template: filled(&self.template),
            reason: filled(&self.reason),
            class: filled(&self.class),
            before: filled(&self.cursor),
            newest: Some(NEWEST),
            ..Filter::default()
        }
    }
}

/// Those of a group.
pub(super) fn link(group: &Value) -> String {
    let fields = ["namespace", "template", "reason", "class"].map(|name| (name, text(group, name)));
    format!("dead-letters{}", query(fields))
}

pub(super) async fn list(
    State(web): State<Web>,
    viewer: Reader,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Outcome<Page> {
    let Query(asked) = asked?;
    let filter = asked.filter();
    let shards = &web.api.shards;
    let (letters, cursor) = lists::letters_page(shards, &filter, filled(&asked.cursor).as_deref(), MOST).await?;
    let groups = lists::letter_groups(shards, &filter).await?;
    let body = html! {
        (said(asked.done.as_deref()))
        h1 { "Dead letters" }
        p { "Steps that have failed for good: their tasks wait for a person, and nothing of them is lost." }
        @if groups.is_empty() { p.none { "There is none." } }
        @else {
            h2 { "By error" }
            (by_error(&groups, viewer.operates()))
            p.note { "Of the newest " (count(NEWEST.into())) " letters of each namespace." }
            h2 { "The newest" }
            form method="post" action="dead-letters/replay" {
                (table(&letters, viewer.operates()))
                @if viewer.operates() { (bulk(letters.len())) }
            }
            @if let Some(cursor) = cursor {
                nav.pages aria-label="Pages" {
                    a rel="next" href={ "dead-letters" (query([("namespace", &*asked.namespace), ("template", &asked.template), ("reason", &asked.reason), ("class", &asked.class), ("cursor", &cursor)])) } { "Older letters" }
                }
            }
        }
    };
    Ok(viewer.page("Dead letters", body))
}

fn by_error(groups: &[Value], operates: bool) -> Markup {
    html! {
        div.scroll tabindex="0" role="group" aria-label="By error" {
            table {
                thead { tr { th.number scope="col" { "How many" } th scope="col" { "Error" } th scope="col" { "Of" } th scope="col" { "Reason" } th scope="col" { "First" } th scope="col" { "Last" } @if operates { th scope="col" { "All" } } } }
                tbody {
                    @for group in groups.iter().take(100) {
                        tr {
                            td.number { (count(number(group, "count"))) }
                            th scope="row" { a href=(link(group)) { (short(text(group, "class"), 60)) } ": " (short(text(group, "message"), 100)) }
                            td { (text(group, "namespace")) "/" (text(group, "template")) ", step " (short(text(group, "step"), 40)) }
                            td { (text(group, "reason").replace('_', " ")) }
                            td { (moment(&group["first"])) }
                            td { (moment(&group["last"])) }
                            @if operates { td { @if group["template"].is_string() { a href=(bulk_actions::link(group)) { "Act on all…" } } } }
                        }
                    }
                }
            }
        }
    }
}

fn table(letters: &[Value], operates: bool) -> Markup {
    html! {
        div.scroll tabindex="0" role="group" aria-label="The newest" {
            table {
                thead { tr { @if operates { th scope="col" { span.hidden { "Chosen" } } } th scope="col" { "Letter" } th scope="col" { "Died" } th scope="col" { "Step" } th scope="col" { "Task" } th scope="col" { "Error" } } }
                tbody {
                    @for letter in letters {
                        @let id = text(letter, "id");
                        tr {
                            @if operates { td { input type="checkbox" name="ids" value=(id) checked aria-label={ "Letter " (id) }; } }
                            th scope="row" { a href={ "dead-letters/" (id) } { (id) } }
                            td { (moment(&letter["died_at"])) }
                            td { (text(letter, "template")) ", " (short(text(letter, "step"), 40)) }
                            td { @if let Some(task) = letter["task"].as_str() { a href={ "tasks/" (task) } { (short(task, 14)) } } }
                            td { @if let Some(error) = entries(letter, "errors").last() { (short(&format!("{}: {}", text(error, "class"), text(error, "message")), 100)) } }
                        }
                    }
                }
            }
        }
    }
}

/// What is done to those that are chosen.
fn bulk(letters: usize) -> Markup {
    html! {
        details.action {
            summary { "Act on the chosen of these " (letters) "…" }
            div.stack {
                label { "How many a second begin again; empty: all at once" input name="per_second" type="number" min="0.1" step="0.1"; }
                label { "Why, for those who read the record" input name="why" maxlength="1000"; }
                div.buttons {
                    button formaction="dead-letters/replay" { "Replay" }
                    button.quiet formaction="dead-letters/replay" name="dry_run" value="true" { "Check, without doing it" }
                    button.quiet formaction="dead-letters/skip" { "Skip the steps" }
                    button.quiet formaction="dead-letters/discard" { "Discard (a reason is expected)" }
                }
            }
        }
    }
}

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part((namespace, number)): Part<(String, i64)>) -> Outcome<Page> {
    let id = format!("{namespace}/{number}");
    let db = web.api.shards.of_letter(&id).await?;
    let letter = dead_letters::show(&db, &id).await?;
    let task = letter["task"].as_str();
    let schema = match task.and_then(|task| task.parse().ok()) {
        Some(task) => input_schema(&db, task).await?,
        None => Value::Null,
    };
    let body = html! {
        h1 { "Dead letter " code { (id) } }
        dl.facts {
            div { dt { "Died" } dd { (moment(&letter["died_at"])) } }
            div { dt { "Reason" } dd { (text(&letter, "reason").replace('_', " ")) } }
            div { dt { "Template" } dd { (text(&letter, "template")) " version " (text(&letter, "version")) } }
            div { dt { "Step" } dd { (text(&letter, "step")) } }
            @if let Some(handler) = letter["handler"].as_str() { div { dt { "Handler" } dd { code { (handler) } } } }
            @if let Some(task) = task { div { dt { "Task" } dd { a href={ "../../tasks/" (task) (query([("step", text(&letter, "step"))])) } { (task) } } } }
        }
        @if viewer.operates() && task.is_some() { (actions(&id, &letter, &schema)) }
        h2 { "Errors" }
        @for of in entries(&letter, "errors").iter().rev() { (error(of)) }
        h2 { "Input" }
        (json(&letter["input"]))
        @if letter["results"].as_object().is_some_and(|results| !results.is_empty()) {
            h2 { "Results of the steps before" }
            (json(&letter["results"]))
        }
    };
    Ok(viewer.page(format!("Dead letter {id}"), body))
}

fn actions(id: &str, letter: &Value, schema: &Value) -> Markup {
    let input = serde_json::to_string_pretty(&letter["input"]).unwrap_or_default();
    let chosen = html! { input type="hidden" name="ids" value=(id); };
    html! {
        div.actions role="group" aria-label="What can be done" {
            (form("Replay", "../replay", "The step starts over, with all its attempts.", html! {
                (chosen)
                label { "The task's input" textarea name="input" rows="8" spellcheck="false" { (input) } }
                (schema_help::of(schema))
                label { "Attempts, in place of the step's own" input name="max_attempts" type="number" min="1" max="1000"; }
                button.quiet name="dry_run" value="true" { "Check, without doing it" }
            }))
            (form("Resolve", "../resolve", "The step is complete with a result that you give; the task goes on.", html! {
                (chosen)
                label { "The result, as JSON" textarea name="result" rows="4" spellcheck="false" required { "{}" } }
            }))
            (form("Skip", "../skip", "The step ends without a result; the task goes on.", chosen.clone()))
            (form("Discard", "../discard", "The letter is deleted, after being recorded whole; a task that it blocked has failed. A reason is expected.", chosen.clone()))
        }
    }
}
