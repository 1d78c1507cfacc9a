//! The configuration that running processes share: what is set, by whom and since when, who differs, and changing it.

use axum::extract::rejection::FormRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::Form;
use maud::{html, Markup};
use serde::Deserialize;
use serde_json::{json, Value};

use super::actions::{body, said, see, Fields};
use super::page::Page;
use super::shown::{filled, list, moment, short};
use super::table::{table, value};
use super::viewer::{Admin, Reader};
use super::Web;
use crate::api::access::As;
use crate::api::configuration as api;
use crate::api::problem::Outcome;
use crate::config::distributed::Version;
use crate::config::{drift, overrides, schema};
use crate::engine::fleet::overview_of_all;
use crate::engine::tokens::Role;

/// How many versions the page has.
const VERSIONS: i64 = 30;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// Whose rule is to be changed.
    namespace: String,
    done: Option<String>,
}

pub(super) async fn show(State(web): State<Web>, viewer: Reader, Query(asked): Query<Asked>) -> Outcome<Page> {
    let versions = web.api.coordinator.history(VERSIONS + 1).await?;
    let newest = web.api.coordinator.get().await?;
    let fleet = overview_of_all(&web.api.shards).await?;
    let drifted = drift::drift(list(&fleet, "members"), drift::GRACE);
    let set = overrides::settings(&newest.overrides);
    let changes = viewer.caller.may(Role::Admin);
    let body = html! {
        (said(asked.done.as_deref()))
        h1 { "Configuration" }
        p { "What is set for running processes, above their files and environments: they take it over at once." }
        h2 { "Set now" }
        (table("Set now", &["For", "Setting", "Value", ""], &set, |(place, setting, of)| vec![
            html! { (place_of(place)) },
            html! { code { (setting) } },
            value(of),
            html! { @if changes { (take_back(place, setting)) } },
        ]))
        @if changes { h2 { "Change a setting" } (form(&asked.namespace)) }
        h2 { "Who differs" }
        (table("Who differs", &["Member", "Kind", "Setting", "Its own", "That of most"], &differences(&drifted), |(member, setting, own, usual)| vec![
            html! { (short(&member.name, 60)) },
            html! { (member.kind) },
            html! { @match setting { Some(setting) => code { (setting) }, None => { "It has not taken over what there is: " (short(member.fallback.as_deref().unwrap_or_default(), 200)) } } },
            value(own),
            value(usual),
        ]))
        h2 { "Versions" }
        (history(&versions, changes))
    };
    Ok(viewer.page("Configuration", body))
}

fn place_of(place: &[String]) -> String {
    match place {
        [] => "all".into(),
        [defaults] if defaults == "namespace_defaults" => "all namespaces".into(),
        [kind, name] if kind == "namespaces" => format!("namespace {name}"),
        [_, name] => format!("instance {name}"),
        other => other.join("."),
    }
}

/// Whose setting it is, as a form says it.
fn of_place(place: &[String]) -> Option<(&'static str, &str)> {
    match place {
        [defaults] if defaults == "namespace_defaults" => Some(("namespace", "*")),
        [kind, name] if kind == "namespaces" => Some(("namespace", name)),
        [_, name] => Some(("instance", name)),
        _ => None,
    }
}

fn take_back(place: &[String], setting: &str) -> Markup {
    html! {
        form method="post" action="configuration/set" {
            input type="hidden" name="setting" value=(setting);
            @if let Some((of, name)) = of_place(place) { input type="hidden" name=(of) value=(name); }
            button.quiet aria-label={ "Take back " (setting) } { "Take back" }
        }
    }
}

fn form(namespace: &str) -> Markup {
    html! {
        form.stack method="post" action="configuration/set" {
            label { "Setting" input name="setting" list="settings" required autocomplete="off"; }
            datalist id="settings" { @for (path, said) in schema::changeable() { option value=(path) { (short(&said, 120)) } } }
            label { "Value, as tasker.yml would have it; empty: take it back" input name="value" autocomplete="off"; }
            label { "Only for this namespace (its rules); * for all namespaces" input name="namespace" value=(namespace); }
            label { "Only for this instance" input name="instance"; }
            label { "Why, for those who read the record" input name="why" maxlength="1000"; }
            button { "Set" }
        }
    }
}

type Difference<'d> = (&'d drift::Drift, Option<&'d str>, &'d Value, &'d Value);

fn differences(drifted: &[drift::Drift]) -> Vec<Difference<'_>> {
    let mut found: Vec<Difference<'_>> = Vec::new();
    for member in drifted {
        found.extend(member.keys.iter().map(|(key, (own, usual))| (member, Some(&**key), own, usual)));
        if member.fallback.is_some() {
            found.push((member, None, &Value::Null, &Value::Null));
        }
    }
    found
}

/// Each with what it changed.
fn history(versions: &[Version], changes: bool) -> Markup {
    let nothing = json!({});
    let pairs: Vec<(&Version, &Value)> = versions
        .iter()
        .enumerate()
        .map(|(at, version)| (version, versions.get(at + 1).map_or(&nothing, |before| &before.overrides)))
        .take(VERSIONS as usize)
        .collect();
    let newest = versions.first().map(|version| version.version);
    table(
        "Versions",
        &["Version", "When", "Who", "Why", "What it changed", ""],
        &pairs,
        |(version, before)| {
            vec![
                html! { (version.version) },
                moment(&json!(version.at)),
                html! { (short(&version.who, 60)) },
                html! { (short(version.why.as_deref().unwrap_or_default(), 120)) },
                html! { @for (place, setting, was, is) in overrides::changes(before, &version.overrides).iter().take(20) {
                    div { (place_of(place)) ": " code { (setting) } " " (value(was)) " → " (value(is)) }
                } },
                html! { @if changes && Some(version.version) != newest {
                    form method="post" action="configuration/rollback" {
                        input type="hidden" name="version" value=(version.version);
                        button.quiet aria-label={ "Roll back to version " (version.version) } { "Roll back to it" }
                    }
                } },
            ]
        },
    )
}

pub(super) async fn set(State(web): State<Web>, viewer: Admin, form: Result<Form<Fields>, FormRejection>) -> Outcome<Response> {
    let Form(mut fields) = form?;
    let said = filled(&fields.remove("value").unwrap_or_default());
    let value = said.map_or(Value::Null, |said| overrides::value(&said));
    fields.insert("value".into(), value.to_string());
    let given = body(fields, &["value"])?;
    let here = format!("{}configuration", viewer.root);
    drop(api::set(State(web.api), As(viewer.caller), given).await?);
    Ok(see(&here, "set"))
}

pub(super) async fn roll_back(State(web): State<Web>, viewer: Admin, form: Result<Form<Fields>, FormRejection>) -> Outcome<Response> {
    let Form(fields) = form?;
    let given = body(fields, &["version"])?;
    let here = format!("{}configuration", viewer.root);
    drop(api::rollback(State(web.api), As(viewer.caller), given).await?);
    Ok(see(&here, "set"))
}
