//! Registering a template: the version that running tasks keep.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use crate::db::Db;
use crate::error::Result;
use crate::template::{Kind, Retry, Step, Template, Undoing};

/// A version of a template, as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Registered {
    /// The version's name: the author's, or 1, 2, … where the author gave none.
    pub version: String,
    /// False when this version, with this content, was there before.
    pub created: bool,
}

/// Registers `template`, creating the namespaces and queues it needs, and makes it the version that callers get who name none.
///
/// Errors: [`crate::Error::VersionTaken`] when the version is registered with other content.
pub async fn register(db: &Db, template: &Template) -> Result<Registered> {
    registered(db, template, true).await
}

/// The same for a process that runs it, or is about to submit it by its content: a version that was there before does not take the place of a newer one.
///
/// Errors: [`crate::Error::VersionTaken`] when the version is registered with other content.
pub async fn register_if_new(db: &Db, template: &Template) -> Result<Registered> {
    registered(db, template, false).await
}

async fn registered(db: &Db, template: &Template, use_it: bool) -> Result<Registered> {
    let decided = template.decided();
    let mut steps = Vec::with_capacity(template.steps.len());
    for (position, step) in template.steps.iter().enumerate() {
        let part = register_own(db, template.part(step)).await?;
        let pages = register_own(db, template.pages(step)).await?;
        steps.push(step_row(template, &decided, position, (part.as_ref(), pages.as_ref())));
    }
    for undoing in template.undoings() {
        steps.push(undo_row(template, steps.len(), &undoing));
    }
    let registered = sqlx::query_as("SELECT version, created FROM tasker.register_template($1, $2, $3, $4, $5, $6, $7, $8)")
        .bind(&template.namespace)
        .bind(&template.name)
        .bind(&template.version)
        .bind(template.digest())
        .bind(sqlx::types::Json(template))
        .bind(template.priority as i16)
        .bind(sqlx::types::Json(steps))
        .bind(use_it)
        .fetch_one(db.pool())
        .await?;
    Ok(registered)
}

/// A template's name, with its namespace, and its version.
type Named = (String, String);

/// The template of the tasks that do a step's work.
async fn register_own(db: &Db, part: Option<Template>) -> Result<Option<Named>> {
    let Some(part) = part else {
        return Ok(None);
    };
    let Registered { version, .. } = Box::pin(registered(db, &part, true)).await?;
    Ok(Some((format!("{}/{}", part.namespace, part.name), version)))
}

fn step_row(template: &Template, decided: &[bool], position: usize, (part, pages): (Option<&Named>, Option<&Named>)) -> Value {
    let step = &template.steps[position];
    let children = template.children(position);
    let joins = children.iter().any(|&child| template.steps[child].parents.len() > 1);
    let mut row = json!({
        "step": position, "name": step.name, "kind": step.kind.name(), "handler": step.kind.handler(), "namespace": step.namespace,
        "parents": step.parents, "children": children, "joins": joins, "condition": step.condition, "decided": decided[position],
        "spawn": step.kind.spawn(part, pages), "wait": step.kind.wait(), "fan_outs": fan_outs(template, &step.parents),
        "delay_seconds": step.waits().map(|wait| wait.as_secs_f64()), "transactional": step.transactional,
    });
    add_rules(&mut row, step, &step.retry, step.timeout);
    row
}

/// The step that undoes another, at this position behind those of the template.
fn undo_row(template: &Template, position: usize, undoing: &Undoing) -> Value {
    let step = &template.steps[undoing.undoes];
    let own = template.undo(undoing.undoes);
    let children: Vec<usize> = undoing.next.iter().map(|next| template.steps.len() + next).collect();
    let mut parents = step.parents.clone();
    parents.push(undoing.undoes);
    let mut row = json!({
        "step": position, "name": format!("{}.undo", step.name), "kind": if own.is_some() { "handler" } else { "undo" },
        "handler": own.map(|undo| &undo.handler), "namespace": step.namespace, "parents": parents, "children": children, "undoes": undoing.undoes,
        "joins": false, "decided": false, "fan_outs": fan_outs(template, &parents), "transactional": own.is_some() && step.transactional,
    });
    let retry = own.map_or_else(Retry::default, |undo| undo.retry.clone());
    add_rules(&mut row, step, &retry, own.and_then(|undo| undo.timeout));
    row
}

/// Those of these steps that are each of many tasks, by name; None: none is.
fn fan_outs<'a>(template: &'a Template, parents: &[usize]) -> Option<Vec<&'a str>> {
    let each = |&parent: &usize| Some(&template.steps[parent]).filter(|before| matches!(before.kind, Kind::Each { .. }));
    let names: Vec<&str> = parents.iter().filter_map(each).map(|before| before.name.as_str()).collect();
    (!names.is_empty()).then_some(names)
}

fn add_rules(row: &mut Value, step: &Step, retry: &Retry, timeout: Option<Duration>) {
    row["max_attempts"] = json!(retry.max_attempts);
    row["backoff"] = json!(retry.backoff);
    row["multiplier"] = json!(retry.multiplier);
    row["base_seconds"] = json!(retry.base.map(|base| base.as_secs_f64()));
    row["max_seconds"] = json!(retry.max.map(|max| max.as_secs_f64()));
    row["jitter"] = json!(retry.jitter);
    row["retention_days"] = json!(step.dead_letters.retention_days);
    row["alert_threshold"] = json!(step.dead_letters.alert_threshold);
    row["timeout_ms"] = json!(timeout.map(|timeout| timeout.as_millis() as u64));
    row["config"] = step.config.clone();
}
