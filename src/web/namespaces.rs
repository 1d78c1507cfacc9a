//! A namespace: how it is, by which rules it goes, and pausing it.

use axum::extract::rejection::FormRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::Form;
use maud::{html, Markup};
use serde_json::{json, Value};

use super::actions::{body, form, said, see, Done, Fields};
use super::home;
use super::page::Page;
use super::series::{chart, HOUR};
use super::shown::{badge, list, moment, query, short, text};
use super::table::{table, value};
use super::viewer::{Operator, Reader};
use super::Web;
use crate::api::access::As;
use crate::api::extract::Part;
use crate::api::fleet as api;
use crate::api::problem::{Outcome, Problem};
use crate::config::schema;
use crate::engine::fleet::{namespace, overview};
use crate::engine::read::read_minutes;
use crate::engine::{namespaces, pauses};

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Part(name): Part<String>, Query(done): Query<Done>) -> Outcome<Page> {
    let db = &web.api.shards.of_namespace(&name).await?;
    let all = namespaces::list(db).await?;
    let rules = all.iter().find(|of| of["name"] == *name);
    let rules = rules.ok_or_else(|| Problem::not_found(format!("no namespace {name}")))?;
    let fleet = overview(db).await?;
    let now = namespace(db, &name).await?;
    let own: Option<Value> = Some(now).filter(|now| !now.is_null()).map(|mut now| {
        now["name"] = json!(*name);
        now
    });
    let minutes = read_minutes(db, 60, Some(&name)).await?;
    let pauses = pauses::list(db).await?;
    let pause = pauses.iter().find(|pause| pause["kind"] == "namespace" && pause["name"] == *name);
    let members: Vec<&Value> = list(&fleet, "members")
        .iter()
        .filter(|member| list(member, "namespaces").iter().any(|of| *of == *name))
        .collect();
    let rules: Vec<(&String, &Value)> = rules
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(rule, of)| schema::is_rule(rule) && !of.is_null())
        .collect();
    let body = html! {
        (said(done.done.as_deref()))
        div.head {
            h1 { "Namespace " code { (name) } }
            @if viewer.operates() { (actions(&name, pause)) }
        }
        @if let Some(pause) = pause {
            p { (badge("paused")) " by " (short(text(pause, "who"), 40)) " since " (moment(&pause["since"])) ": " (short(text(pause, "why"), 200)) }
        }
        div.charts { @for series in &HOUR { (chart(&minutes, series)) } }
        h2 { "Now" }
        (home::table(own.as_slice(), &viewer.root))
        p {
            a href={ "../tasks" (query([("namespace", &*name)])) } { "Its tasks" } ", "
            a href={ "../dead-letters" (query([("namespace", &*name)])) } { "its dead letters" } ", "
            a href={ "../audit" (query([("object", &*name)])) } { "what was changed" }
        }
        h2 { "Who works there" }
        (table("Members", &["Name", "Kind", "Version"], &members, |member| vec![
            html! { (short(text(member, "name"), 60)) }, html! { (text(member, "kind")) }, html! { (text(member, "version")) },
        ]))
        h2 { "Rules" }
        (table("Rules", &["Rule", "Value"], &rules, |(rule, of)| vec![html! { (rule) }, value(of)]))
        p.note { "What is not here is as for all. " a href={ "../configuration" (query([("namespace", &*name)])) } { "Change a rule" } }
    };
    Ok(viewer.page(format!("Namespace {name}"), body))
}

fn actions(name: &str, pause: Option<&Value>) -> Markup {
    html! {
        div.actions role="group" aria-label="What can be done" {
            @if pause.is_none() { (form("Pause", &format!("{name}/pause"), "Nothing new begins of its tasks; what runs ends.", html! {})) }
            @else { (form("Resume", &format!("{name}/resume"), "What was paused goes on where it was.", html! {})) }
        }
    }
}

pub(super) async fn act(
    State(web): State<Web>,
    viewer: Operator,
    Part((name, verb)): Part<(String, String)>,
    form: Result<Form<Fields>, FormRejection>,
) -> Outcome<Response> {
    let Form(mut fields) = form?;
    let here = format!("{}namespaces/{name}", viewer.root);
    fields.extend([("kind".to_owned(), "namespace".to_owned()), ("name".to_owned(), name)]);
    let (api, caller) = (State(web.api), As(viewer.caller));
    let verb = match &*verb {
        "pause" => api::pause(api, caller, body(fields, &[])?).await.map(|_| "pause")?,
        "resume" => api::resume(api, caller, body(fields, &[])?).await.map(|_| "resume")?,
        other => return Err(Problem::not_found(format!("nothing called {other} can be done to a namespace"))),
    };
    Ok(see(&here, verb))
}
