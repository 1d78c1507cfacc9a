//! What a process is told where it runs: defaults, the file, the environment, flags; and above them what the coordinator has, for all and for this one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{json, Value};

use super::check::{problems, Problem};
use super::layers::{merge, Layer};
use super::schema;
use super::sources::{read_environment, read_file};
use super::Effective;
use crate::error::{Error, Result};

/// Variables that say which environment this is; the first that is set does.
const ENVIRONMENTS: [&str; 4] = ["TASKER_ENV", "RAILS_ENV", "RACK_ENV", "APP_ENV"];

/// What this process is told where it runs: by defaults, file, environment and flags.
#[derive(Debug, Clone)]
pub struct Local {
    layers: Vec<Layer>,
    environment: String,
    instance: String,
}

/// Where a process's settings come from beside the environment.
#[derive(Clone, Default)]
pub struct Given {
    /// A file to read in place of config/tasker.yml, or tasker.yml, which need not be there.
    pub file: Option<PathBuf>,
    /// A file that somebody else has read: its name, and its section of this environment.
    pub settings: Option<(String, Value)>,
    /// What the command line says, which is nearer than the environment.
    pub flags: Value,
}

/// The others may hold secrets.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Given({:?})", self.file)
    }
}

impl Local {
    /// Of defaults alone.
    pub(super) fn bare(instance: String) -> Local {
        Local {
            layers: vec![Layer::defaults()],
            environment: String::new(),
            instance,
        }
    }

    /// Reads all of them.
    /// Errors: [`Error::Config`] with everything that is wrong in them, each with its place.
    pub fn read(given: Given) -> Result<Local> {
        Local::of(given, std::env::vars().collect())
    }

    pub(super) fn of(given: Given, variables: BTreeMap<String, String>) -> Result<Local> {
        let named = ENVIRONMENTS
            .iter()
            .find_map(|name| variables.get(*name).filter(|value| !value.is_empty()));
        let environment = named.map_or("development", String::as_str).to_owned();
        let own_host = || gethostname::gethostname().to_string_lossy().into_owned();
        let instance = variables.get("ORCHESTRATOR_ID").filter(|id| !id.is_empty()).cloned();
        let instance = instance.unwrap_or_else(own_host);
        let mut layers = vec![Layer::defaults()];
        let mut found = Vec::new();
        match given.settings {
            Some((origin, value)) => {
                found.extend(problems(schema::settings(), &value).into_iter().map(|p| format!("{origin}: {p}")));
                layers.push(Layer { origin, value });
            }
            None => layers.extend(read_file(given.file, &variables, &environment, &mut found)?),
        }
        layers.extend(read_environment(&variables, &mut found));
        if given.flags.is_object() {
            found.extend(problems(schema::settings(), &given.flags).iter().map(Problem::to_string));
            layers.push(Layer {
                origin: "command line".into(),
                value: given.flags,
            });
        }
        let local = Local {
            layers,
            environment,
            instance,
        };
        if found.is_empty() {
            // What no layer has wrong by itself may still not do.
            if let Err(Error::Config(problem)) = local.with(0, &json!({})) {
                found.push(problem);
            }
        }
        match found.is_empty() {
            true => Ok(local),
            false => Err(Error::Config(found.join("\n"))),
        }
    }

    /// Which section of the file counts beside `shared`: TASKER_ENV, RAILS_ENV, RACK_ENV, APP_ENV, or development.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// By which name the coordinator knows this process: ORCHESTRATOR_ID, or the host's.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// With `overrides`, which the coordinator has as version `version`, above them.
    /// Errors: [`Error::Config`] when they do not go together.
    pub fn with(&self, version: i64, overrides: &Value) -> Result<Effective> {
        let mut shared = overrides.clone();
        if let Some(shared) = shared.as_object_mut() {
            for fleet in ["namespaces", "namespace_defaults", "instances"] {
                shared.remove(fleet);
            }
        }
        let own = overrides["instances"].get(&self.instance).cloned().unwrap_or_else(|| json!({}));
        let above = [
            (format!("version {version}"), shared),
            (format!("version {version}, for {}", self.instance), own),
        ];
        let above = above.into_iter().map(|(origin, value)| Layer { origin, value });
        let merged = merge(self.layers.iter().cloned().chain(above))?;
        Ok(Effective::new(merged, (version, overrides), &self.instance))
    }
}
