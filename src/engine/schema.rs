//! JSON Schemas that a template has for what comes from outside.

use jsonschema::{ValidationError, Validator};
use serde_json::Value;
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::redaction::Redaction;
use crate::telemetry;

/// Errors: [`Error::Invalid`] where it is no JSON Schema.
pub(super) fn validator(schema: &Value) -> Result<Validator> {
    jsonschema::validator_for(schema).map_err(|error| Error::Invalid(format!("the template's schema is not valid: {error}")))
}

/// What is wrong with `value`, each problem with its place, without quoting what is redacted. None: nothing.
pub(super) fn problems_of(schema: &Validator, value: &Value, redaction: &Redaction) -> Option<String> {
    let problem = |error: ValidationError<'_>| match error.instance_path().as_str() {
        "" => told(&error, value, redaction),
        path => format!("{path}: {}", told(&error, value, redaction)),
    };
    let problems: Vec<String> = schema.iter_errors(value).take(10).map(problem).collect();
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// The input_schema of a version, if it has one. Errors: those of the database.
pub(super) async fn read_schema<'e>(session: impl PgExecutor<'e>, version: i32) -> Result<Option<Validator>, sqlx::Error> {
    let query = sqlx::query_scalar("SELECT tasker.input_schema($1)").bind(version);
    let schema: Option<Value> = query.fetch_one(session).await?;
    // It was checked when its template was registered.
    Ok(schema.and_then(|schema| validator(&schema).ok()))
}

/// What the inputs of these tasks must satisfy: the templates that say so, with their schemas.
async fn input_schemas(db: &Db, tasks: &[Uuid]) -> Result<Vec<(String, Value)>> {
    let query = sqlx::query_as("SELECT template, schema FROM tasker.input_schemas($1)").bind(tasks);
    Ok(query.fetch_all(db.pool()).await?)
}

/// What the input of this task must satisfy; null: anything.
pub(crate) async fn input_schema(db: &Db, task: Uuid) -> Result<Value> {
    let schemas = input_schemas(db, &[task]).await?;
    Ok(schemas.into_iter().next().map_or(Value::Null, |(_, schema)| schema))
}

/// Whether this may be the input of these tasks. Errors: [`Error::Invalid`] with what is wrong.
pub(super) async fn check_for_tasks(db: &Db, tasks: &[Uuid], input: &str) -> Result<()> {
    for (template, schema) in input_schemas(db, tasks).await? {
        if let Some(problem) = problem_of_input(&validator(&schema)?, &template, input, db.redaction()) {
            return Err(Error::Invalid(problem));
        }
    }
    Ok(())
}

/// What is wrong with the input of a task of this template, which is JSON. None: nothing.
pub(super) fn problem_of_input(schema: &Validator, template: &str, input: &str, redaction: &Redaction) -> Option<String> {
    match serde_json::from_str(input) {
        Ok(input) => problems_of(schema, &input, redaction)
            .map(|problems| format!("the input does not satisfy the input_schema of {template}: {problems}")),
        Err(error) => Some(format!("the input is not JSON: {error}")),
    }
}

/// The longest value that an error quotes, in characters.
const QUOTED: usize = 60;

/// An error quotes the value only where that is short, and neither of a name that the setting `log.redact` has nor of a place of `redact`.
fn told(error: &ValidationError<'_>, of: &Value, redaction: &Redaction) -> String {
    let is_short = match error.instance().as_ref() {
        Value::String(text) => text.chars().count() <= QUOTED,
        value => !value.is_object() && !value.is_array(),
    };
    let place = error.instance_path().as_str();
    let is_redacted = place.split('/').any(telemetry::is_redacted) || redaction.hides(of, place);
    match is_short && !is_redacted {
        true => error.to_string(),
        false => error.masked_with("the value").to_string(),
    }
}
