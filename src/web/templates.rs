//! A template: the graph of each version, and how two versions differ.

use axum::extract::rejection::FormRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::Form;
use maud::{html, Markup};
use serde::Deserialize;
use serde_json::{json, Value};

use super::actions::{body, form, see, Fields as Said};
use super::graph;
use super::page::Page;
use super::schema_help;
use super::shown::{badge, json as shown, list, moment, query, short, text};
use super::viewer::{Operator, Reader};
use super::Web;
use crate::api::access::As;
use crate::api::extract::{Body, Part};
use crate::api::problem::{Outcome, Problem};
use crate::api::tasks;
use crate::engine::read::{list_template_versions, read_template};
use crate::template::difference::{difference, Difference, Fields};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    version: String,
    /// The earlier version with which to compare it.
    from: String,
}

pub(super) async fn show(
    State(web): State<Web>,
    viewer: Reader,
    Part((namespace, name)): Part<(String, String)>,
    Query(asked): Query<Asked>,
) -> Outcome<Page> {
    let (db, template) = (&web.api.shards.of_namespace(&namespace).await?, format!("{namespace}/{name}"));
    let said = |version: &str| (!version.is_empty()).then(|| version.to_owned());
    let definition = read_template(db, &template, said(&asked.version).as_deref()).await?;
    let versions = list_template_versions(db, &template).await?;
    let compared = match said(&asked.from) {
        Some(from) => {
            let from = read_template(db, &template, Some(&from)).await?;
            Some((difference(&from, &definition), from))
        }
        None => None,
    };
    let steps = drawn(&definition, compared.as_ref());
    let is_current = asked.version.is_empty();
    let picture = graph::draw(&web.layouts, &steps, None, |step| format!("#step-{step}")).await;
    let version = text(&definition, "version");
    let body = html! {
        h1 { (template) " " small { "version " (version) } }
        @if let Some(said) = definition["description"].as_str() { p { (short(said, 400)) } }
        form.filter method="get" {
            (choice("version", "Version", &versions, version, false))
            (choice("from", "Compared with", &versions, &asked.from, true))
            button { "Show" }
            a href={ "../../tasks" (query([("namespace", &*namespace), ("template", &*name)])) } { "Its tasks" }
        }
        @if viewer.operates() && is_current { (new_task(&name, &definition)) }
        (picture)
        @if let Some((difference, from)) = &compared { (differs(difference, text(from, "version"), version)) }
        h2 { "Steps" }
        (table(&steps))
        h2 { "Versions" }
        ul { @for of in versions.iter().take(50) { li { a href=(query([("version", text(of, "version"))])) { (text(of, "version")) } " registered " (moment(&of["registered_at"])) @if of["current"] == true { " " (badge("current")) } } } }
        h2 { "Definition" }
        (shown(&definition))
    };
    Ok(viewer.page(template, body))
}

fn new_task(name: &str, definition: &Value) -> Markup {
    form(
        "New task",
        name,
        "A task of the current version, which begins at once.",
        html! {
            label { "Its input" textarea name="input" rows="6" spellcheck="false" required { "{}" } }
            (schema_help::of(&definition["input_schema"]))
            label { "Its key: the same key is the same task" input name="key" maxlength="200"; }
            label { "Priority" select name="priority" {
                option value="" { "the template's" }
                @for priority in ["low", "normal", "high", "urgent"] { option { (priority) } }
            } }
        },
    )
}

pub(super) async fn create(
    State(web): State<Web>,
    viewer: Operator,
    Part((namespace, name)): Part<(String, String)>,
    form: Result<Form<Said>, FormRejection>,
) -> Outcome<Response> {
    let Form(mut fields) = form?;
    let why = fields.remove("why");
    let Body(task) = body::<Value>(fields, &["input"])?;
    let new = json!({ "template": format!("{namespace}/{name}"), "tasks": [task], "why": why });
    let new = serde_json::from_value(new).map_err(|error| Problem::invalid(error.to_string()))?;
    let (_, created) = tasks::create(State(web.api), As(viewer.caller), HeaderMap::new(), Body(new)).await?;
    let created = json!(created.0)["tasks"][0].take();
    let said = if created["created"] == true { "created" } else { "known" };
    Ok(see(&format!("{}tasks/{}", viewer.root, text(&created, "id")), said))
}

/// The steps of a version, and of the one that it is compared with, each with what became of it as its state.
fn drawn(definition: &Value, compared: Option<&(Difference, Value)>) -> Vec<Value> {
    let of = |steps: &[Value]| steps.iter().filter(|step| step["undoes"].is_null()).cloned().collect::<Vec<_>>();
    let mut steps = of(list(definition, "steps"));
    if let Some((difference, from)) = compared {
        for step in &mut steps {
            let name = text(step, "name").to_owned();
            if difference.added.contains(&name) {
                step["state"] = json!("added");
            } else if difference.changed.contains_key(&name) {
                step["state"] = json!("changed");
            }
        }
        let is_gone = |step: &Value| difference.removed.iter().any(|name| step["name"] == **name);
        steps.extend(of(list(from, "steps")).into_iter().filter(is_gone).map(|mut step| {
            step["state"] = json!("removed");
            step
        }));
    }
    steps
}

fn choice(name: &str, label: &str, versions: &[Value], chosen: &str, may_be_none: bool) -> Markup {
    html! {
        label { (label) select name=(name) {
            @if may_be_none { option value="" { "none" } }
            @for version in versions.iter().map(|of| text(of, "version")) { option selected[version == chosen] { (version) } }
        } }
    }
}

fn table(steps: &[Value]) -> Markup {
    html! {
        div.scroll tabindex="0" role="group" aria-label="Steps" {
            table {
                thead { tr { th scope="col" { "Step" } th scope="col" { "Does" } th scope="col" { "Behind" } th scope="col" { "Only if" } th scope="col" { "Undone by" } } }
                tbody {
                    @for step in steps.iter().take(1_000) {
                        tr id={ "step-" (text(step, "name")) } {
                            th scope="row" { (short(text(step, "name"), 60)) @if step["state"].is_string() { " " (badge(text(step, "state"))) } }
                            td { code { (graph::does(step)) } }
                            td { (list(step, "depends_on").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")) }
                            td { @if let Some(condition) = step["if"].as_str() { code { (short(condition, 120)) } } }
                            td { @if let Some(undo) = step["undo"].as_str() { code { (undo) } } }
                        }
                    }
                }
            }
        }
    }
}

fn differs(difference: &Difference, from: &str, to: &str) -> Markup {
    let is_same = *difference == Difference::default();
    html! {
        h2 { "From " (from) " to " (to) }
        @if is_same { p.none { "They do not differ." } }
        @else {
            ul {
                @for step in &difference.added { li { (badge("added")) " " (short(step, 60)) } }
                @for step in &difference.removed { li { (badge("removed")) " " (short(step, 60)) } }
                @for (step, changes) in &difference.changed { li { (badge("changed")) " " (short(step, 60)) ": " (fields(changes)) } }
                @if !difference.template.is_empty() { li { (badge("changed")) " the template: " (fields(&difference.template)) } }
            }
        }
    }
}

fn fields(changes: &Fields) -> Markup {
    let said = |value: &Value| match value {
        Value::Null => "nothing".into(),
        other => short(&other.to_string(), 120),
    };
    html! {
        @for (place, (name, (before, after))) in changes.iter().enumerate() {
            @if place > 0 { "; " }
            (name) " was " code { (said(before)) } ", is " code { (said(after)) }
        }
    }
}
