//! New tasks, and what templates accept: their versions and input schemas, remembered, and inputs checked against them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::template::{Priority, Template};

/// A task to be created.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// A JSON object that satisfies the template's `input_schema`.
    pub input: Value,
    /// None: the template's.
    pub priority: Option<Priority>,
    /// Idempotency key, unique within the template: the same key is the same task.
    pub key: Option<String>,
    /// Not before; None: at once.
    pub run_at: Option<DateTime<Utc>>,
}

/// The templates that this process has asked for.
#[derive(Debug)]
pub(super) struct Templates {
    db: Db,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By template and version, where None is the current one: a memory that may be outdated.
    names: HashMap<(String, Option<String>), i32>,
    /// By id; they never change.
    versions: HashMap<i32, Arc<Version>>,
}

/// A version of a template.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) id: i32,
    pub(super) name: String,
    schema: Option<jsonschema::Validator>,
}

impl Templates {
    pub(super) fn new(db: Db) -> Templates {
        Templates {
            db,
            known: Mutex::default(),
        }
    }

    /// The version that was meant when it was last asked for.
    pub(super) fn remembered(&self, template: &str, version: Option<&str>) -> Option<Arc<Version>> {
        let known = self.known();
        let id = known.names.get(&(template.to_owned(), version.map(str::to_owned)))?;
        known.versions.get(id).cloned()
    }

    /// The version that is meant now. Errors: [`Error::NotFound`], [`Error::Invalid`] for an ambiguous name.
    pub(super) async fn ask(&self, template: &str, version: Option<&str>) -> Result<Arc<Version>> {
        let (id, name): (i32, String) = sqlx::query_as("SELECT id, version FROM tasker.find_template($1, $2)")
            .bind(template)
            .bind(version)
            .fetch_one(self.db.pool())
            .await?;
        let known = self.known().versions.get(&id).cloned();
        let found = match known {
            Some(found) => found,
            None => Arc::new(self.read(id, name).await?),
        };
        let mut known = self.known();
        known.names.insert((template.to_owned(), version.map(str::to_owned)), id);
        known.versions.insert(id, found.clone());
        Ok(found)
    }

    async fn read(&self, id: i32, name: String) -> Result<Version> {
        let schema: Option<Value> = sqlx::query_scalar("SELECT definition -> 'input_schema' FROM tasker.template_versions WHERE id = $1")
            .bind(id)
            .fetch_one(self.db.pool())
            .await?;
        Ok(Version {
            id,
            name,
            schema: schema.as_ref().map(validator).transpose()?,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inputs of tasks of this template as JSON, if all of them are acceptable: as they are checked when they are created. Errors:
/// [`Error::Invalid`], [`Error::TooLarge`].
pub fn check_inputs(template: &Template, tasks: &[NewTask]) -> Result<Vec<String>> {
    let version = Version {
        id: 0,
        name: String::new(),
        schema: template.input_schema.as_ref().map(validator).transpose()?,
    };
    version.accept(&template.name, tasks)
}

fn validator(schema: &Value) -> Result<jsonschema::Validator> {
    jsonschema::validator_for(schema).map_err(|error| Error::Invalid(format!("the template's input_schema is not valid: {error}")))
}

impl Version {
    /// The inputs as JSON, if all of them are acceptable. Errors: [`Error::Invalid`], [`Error::TooLarge`].
    pub(super) fn accept(&self, template: &str, tasks: &[NewTask]) -> Result<Vec<String>> {
        let accept = |(n, task): (usize, &NewTask)| {
            let text = task.input.to_string();
            super::check_payload("the input", &text)?;
            match self.problem(template, &task.input, &text) {
                None => Ok(text),
                Some(problem) if tasks.len() == 1 => Err(Error::Invalid(problem)),
                Some(problem) => Err(Error::Invalid(format!("task {} of {}: {problem}", n + 1, tasks.len()))),
            }
        };
        tasks.iter().enumerate().map(accept).collect()
    }

    fn problem(&self, template: &str, input: &Value, text: &str) -> Option<String> {
        if !input.is_object() {
            return Some(format!("the input of a {template} must be a JSON object"));
        }
        if text.contains("\\u0000") {
            return Some("the input contains the character U+0000, which PostgreSQL cannot store".into());
        }
        let problems = self
            .schema
            .as_ref()?
            .iter_errors(input)
            .take(10)
            .map(|error| match error.instance_path().to_string() {
                path if path.is_empty() => error.to_string(),
                path => format!("{path}: {error}"),
            });
        let problems = problems.collect::<Vec<_>>().join("; ");
        (!problems.is_empty()).then(|| format!("the input does not satisfy the input_schema of {template}: {problems}"))
    }
}
