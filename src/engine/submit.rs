//! Submitting tasks: the door, where bad input is turned away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::template::Priority;

/// A task to be created.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// A JSON object that satisfies the template's `input_schema`.
    pub input: Value,
    /// None: the template's.
    pub priority: Option<Priority>,
    /// Idempotency key, unique within the template: the same key is the same task.
    pub key: Option<String>,
}

/// What became of a [`NewTask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Submitted {
    /// UUIDv7.
    pub id: Uuid,
    /// False when the key was known: the task is an earlier one.
    pub created: bool,
}

/// Creates tasks inside the caller's own transaction, on the caller's connection, after [`Submitter::check`]: rows of id and created, in the
/// tasks' order. The parameters: template; version; inputs, keys and priorities, each as a JSON array of strings (or nulls).
pub const CREATE_WITHIN: &str = "
    SELECT id, created::text FROM tasker.create_tasks(
        $1, ARRAY(SELECT e::jsonb FROM jsonb_array_elements_text($3::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        ARRAY(SELECT e FROM jsonb_array_elements_text($4::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        ARRAY(SELECT e FROM jsonb_array_elements_text($5::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n), $2)";

/// Creates tasks and remembers the schemas it checks them with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Submitter {
    db: Db,
    schemas: Arc<Mutex<HashMap<i32, Arc<Schema>>>>,
}

#[derive(Debug)]
struct Schema(Option<jsonschema::Validator>);

#[derive(sqlx::FromRow)]
struct Version {
    id: i32,
    version: String,
}

impl Submitter {
    /// A submitter for this database.
    pub fn new(db: Db) -> Submitter {
        Submitter {
            db,
            schemas: Arc::default(),
        }
    }

    /// Checks what [`Submitter::submit`] would check, and returns the version that the tasks would run: for callers that create them by
    /// themselves, with [`CREATE_WITHIN`].
    pub async fn check(&self, template: &str, version: Option<&str>, tasks: &[NewTask]) -> Result<String> {
        let found: Version = sqlx::query_as("SELECT id, version FROM tasker.find_template($1, $2)")
            .bind(template)
            .bind(version)
            .fetch_one(self.db.pool())
            .await?;
        let schema = self.schema(found.id).await?;
        for (n, task) in tasks.iter().enumerate() {
            let text = task.input.to_string();
            super::check_payload("the input", &text)?;
            check(template, &schema, &task.input, &text).map_err(|problem| match tasks.len() {
                1 => Error::Invalid(problem),
                _ => Error::Invalid(format!("task {} of {}: {problem}", n + 1, tasks.len())),
            })?;
        }
        Ok(found.version)
    }

    /// Creates all of `tasks` or, if one of them is refused, none. The result is in the order of `tasks`.
    ///
    /// `template` is a name or `namespace/name`; `version` None means the current one.
    /// Errors: [`Error::NotFound`] for an unknown template, [`Error::Invalid`] for an input, key or priority that is not acceptable,
    /// [`Error::TooLarge`] for an input of more than [`MAX_PAYLOAD_BYTES`](super::MAX_PAYLOAD_BYTES).
    pub async fn submit(&self, template: &str, version: Option<&str>, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let version = self.check(template, version, tasks).await?;
        let inputs: Vec<Json<&Value>> = tasks.iter().map(|task| Json(&task.input)).collect();
        let keys: Option<Vec<Option<&str>>> = tasks
            .iter()
            .any(|t| t.key.is_some())
            .then(|| tasks.iter().map(|t| t.key.as_deref()).collect());
        let priorities: Vec<Option<&str>> = tasks.iter().map(|task| task.priority.map(Priority::name)).collect();
        let submitted = super::again_on_conflict(|| async {
            Ok(sqlx::query_as("SELECT id, created FROM tasker.create_tasks($1, $2, $3, $4, $5)")
                .bind(template)
                .bind(&inputs)
                .bind(&keys)
                .bind(&priorities)
                .bind(&version)
                .fetch_all(self.db.pool())
                .await?)
        });
        submitted.await
    }

    async fn schema(&self, version_id: i32) -> Result<Arc<Schema>> {
        let known =
            |schemas: &Mutex<HashMap<i32, Arc<Schema>>>| schemas.lock().unwrap_or_else(PoisonError::into_inner).get(&version_id).cloned();
        if let Some(schema) = known(&self.schemas) {
            return Ok(schema);
        }
        let source: Option<Value> = sqlx::query_scalar("SELECT definition -> 'input_schema' FROM tasker.template_versions WHERE id = $1")
            .bind(version_id)
            .fetch_one(self.db.pool())
            .await?;
        let validator = source.map(|source| jsonschema::validator_for(&source)).transpose();
        let schema =
            Arc::new(Schema(validator.map_err(|error| {
                Error::Invalid(format!("the template's input_schema is not valid: {error}"))
            })?));
        self.schemas
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(version_id, schema.clone());
        Ok(schema)
    }
}

fn check(template: &str, schema: &Schema, input: &Value, text: &str) -> std::result::Result<(), String> {
    if !input.is_object() {
        return Err(format!("the input of a {template} must be a JSON object"));
    }
    if text.contains("\\u0000") {
        return Err("the input contains the character U+0000, which PostgreSQL cannot store".into());
    }
    let Some(validator) = &schema.0 else { return Ok(()) };
    let problems: Vec<String> = validator
        .iter_errors(input)
        .take(10)
        .map(|error| match error.instance_path().to_string() {
            path if path.is_empty() => error.to_string(),
            path => format!("{path}: {error}"),
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "the input does not satisfy the input_schema of {template}: {}",
            problems.join("; ")
        ))
    }
}
