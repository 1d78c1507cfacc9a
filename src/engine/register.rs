//! Registering a template: the version that running tasks keep.

use serde::Serialize;
use serde_json::{json, Value};

use crate::db::Db;
use crate::error::Result;
use crate::template::{Kind, Template};

/// A version of a template, as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
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
    let each = |&parent: &usize| Some(&template.steps[parent]).filter(|before| matches!(before.kind, Kind::Each { .. }));
    let fan_outs: Vec<&str> = step.parents.iter().filter_map(each).map(|before| before.name.as_str()).collect();
    json!({
        "step": position, "name": step.name, "kind": step.kind.name(), "handler": step.kind.handler(), "namespace": step.namespace,
        "parents": step.parents, "children": children, "joins": joins, "condition": step.condition, "decided": decided[position],
        "spawn": step.kind.spawn(part, pages), "wait": step.kind.wait(), "fan_outs": (!fan_outs.is_empty()).then_some(fan_outs), "delay_seconds": step.waits().map(|wait| wait.as_secs_f64()),
        "max_attempts": step.retry.max_attempts, "backoff": step.retry.backoff,
        "multiplier": step.retry.multiplier, "base_seconds": step.retry.base.map(|base| base.as_secs_f64()),
        "max_seconds": step.retry.max.map(|max| max.as_secs_f64()), "jitter": step.retry.jitter,
        "retention_days": step.dead_letters.retention_days, "alert_threshold": step.dead_letters.alert_threshold,
        "transactional": step.transactional, "timeout_ms": step.timeout.map(|t| t.as_millis() as u64), "config": step.config,
    })
}
