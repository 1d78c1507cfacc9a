//! New tasks, and what templates accept: their versions and input schemas, remembered, and inputs checked against them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Datelike, Utc};
use serde_json::Value;

use super::payload::{check_payload, has_nul};
use super::read::list_templates;
use super::schema::{problem_of_input, read_schema, validator};
use crate::db::Db;
use crate::error::{Error, Result};
use crate::redaction::Redaction;
use crate::template::{Priority, Template, Unique};

/// A task's input, as JSON text: it is looked into only where the template has an `input_schema`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input(String);

impl Input {
    /// Of text that is JSON.
    pub fn of_json(text: String) -> Input {
        Input(text)
    }

    /// The JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Value> for Input {
    fn from(value: Value) -> Input {
        Input(value.to_string())
    }
}

impl Default for Input {
    fn default() -> Input {
        Input("{}".into())
    }
}

/// A task to be created.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// A JSON object that satisfies the template's `input_schema`.
    pub input: Input,
    /// None: the template's.
    pub priority: Option<Priority>,
    /// Idempotency key, unique within the template: the same key is the same task.
    pub key: Option<String>,
    /// By which it can be found, such as `customer: 42`; above those that its template finds in the input.
    pub tags: BTreeMap<String, String>,
    /// Not before; None: at once.
    pub run_at: Option<DateTime<Utc>>,
    /// Which others are the same, in place of what its template says; None: as that says.
    pub unique: Option<Unique>,
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
    names: HashMap<(String, Option<String>), Content>,
    versions: HashMap<Content, Arc<Version>>,
}

/// The name of a version, and the digest of its content: either may come to stand beside another, where the database's past was lost.
type Content = (String, String);

/// A version of a template.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) digest: String,
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
        let content = known.names.get(&(template.to_owned(), version.map(str::to_owned)))?;
        known.versions.get(content).cloned()
    }

    /// What was meant is not there any more.
    pub(super) fn forget(&self, template: &str, version: Option<&str>) {
        self.known().names.remove(&(template.to_owned(), version.map(str::to_owned)));
    }

    /// The version that is meant now. Errors: [`Error::NotFound`], [`Error::Invalid`] for an ambiguous name.
    pub(super) async fn ask(&self, template: &str, version: Option<&str>) -> Result<Arc<Version>> {
        let found = sqlx::query_as("SELECT id, version, digest FROM tasker.find_template($1, $2)")
            .bind(template)
            .bind(version)
            .fetch_one(self.db.pool())
            .await
            .map_err(Error::from);
        let (id, name, digest): (i32, _, _) = match found {
            Err(Error::NotFound(problem)) => return Err(Error::NotFound(problem + &self.meant(template).await)),
            found => found?,
        };
        let content: Content = (name, digest);
        let known = self.known().versions.get(&content).cloned();
        let found = match known {
            Some(found) => found,
            None => {
                let schema = read_schema(self.db.pool(), id).await?;
                let (name, digest) = content.clone();
                Arc::new(Version { digest, name, schema })
            }
        };
        let mut known = self.known();
        known
            .names
            .insert((template.to_owned(), version.map(str::to_owned)), content.clone());
        known.versions.insert(content, found.clone());
        Ok(found)
    }

    /// What was probably meant, as far as the session may ask.
    async fn meant(&self, template: &str) -> String {
        let templates = list_templates(&self.db).await.unwrap_or_default();
        let text = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
        let names = templates.iter().map(|of| match template.contains('/') {
            true => format!("{}/{}", text(of, "namespace"), text(of, "name")),
            false => text(of, "name"),
        });
        let likeness = |name: &String| strsim::jaro_winkler(name, template);
        let nearest = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        nearest
            .filter(|name| name != template && likeness(name) > 0.8)
            .map_or(String::new(), |name| format!("; did you mean {name}?"))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the inputs of tasks of this template are acceptable, as they are checked when they are created. Errors: [`Error::Invalid`],
/// [`Error::TooLarge`].
pub fn check_inputs(template: &Template, tasks: &[NewTask]) -> Result<()> {
    let version = Version {
        digest: String::new(),
        name: String::new(),
        schema: template.input_schema.as_ref().map(validator).transpose()?,
    };
    version.accept(&template.name, tasks, &Redaction::default())
}

/// How many tags a task may have.
const MOST_TAGS: usize = 20;

/// The last year in which a task may be told to begin: four digits, as everybody reads them.
const LAST_YEAR: i32 = 9999;

impl Version {
    /// Errors unless all are acceptable: [`Error::Invalid`], [`Error::TooLarge`].
    pub(super) fn accept(&self, template: &str, tasks: &[NewTask], redaction: &Redaction) -> Result<()> {
        for (n, task) in tasks.iter().enumerate() {
            check_payload("the input", task.input.as_str())?;
            match self.problem(template, task, redaction) {
                None => {}
                Some(problem) if tasks.len() == 1 => return Err(Error::Invalid(problem)),
                Some(problem) => return Err(Error::Invalid(format!("task {} of {}: {problem}", n + 1, tasks.len()))),
            }
        }
        Ok(())
    }

    fn problem(&self, template: &str, task: &NewTask, redaction: &Redaction) -> Option<String> {
        let text = task.input.as_str();
        if task.key.as_ref().is_some_and(|key| key.contains('\0')) {
            return Some("the key contains the character U+0000, which PostgreSQL cannot store".into());
        }
        if task.run_at.is_some_and(|at| at.year() > LAST_YEAR) {
            return Some(format!("run_at is after the year {LAST_YEAR}"));
        }
        let is_tag = |(name, value): (&String, &String)| {
            (1..=50).contains(&name.chars().count())
                && (1..=200).contains(&value.chars().count())
                && !name.contains('\0')
                && !value.contains('\0')
        };
        if task.tags.len() > MOST_TAGS || !task.tags.iter().all(is_tag) {
            return Some(format!(
                "the tags are not acceptable: expected at most {MOST_TAGS}, with names of 1 to 50 characters and values of 1 to 200"
            ));
        }
        if !text.trim_start().starts_with('{') {
            return Some(format!("the input of a {template} must be a JSON object"));
        }
        if has_nul(text) {
            return Some("the input contains the character U+0000, which PostgreSQL cannot store".into());
        }
        problem_of_input(self.schema.as_ref()?, template, text, redaction)
    }
}
