//! Layers: defaults, the file, the environment, what is kept for all in the coordinator, and there for this instance. The nearest wins, and every
//! value knows where it comes from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use figment::value::{Dict, Map as Profiles};
use figment::{Figment, Metadata, Profile, Provider};
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};

use super::check::{join, problems, Problem};
use super::sources::{read_environment, read_file};
use super::{schema, Settings};
use crate::error::{Error, Result};

/// Variables that say which environment this is; the first that is set does.
const ENVIRONMENTS: [&str; 4] = ["TASKER_ENV", "RAILS_ENV", "RACK_ENV", "APP_ENV"];

/// What one place says.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) origin: String,
    pub(super) value: Value,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> std::result::Result<Profiles<Profile, Dict>, figment::Error> {
        let dict = figment::value::Value::serialize(&self.value)?.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

/// What this process is told where it runs: by defaults, file, environment and flags.
#[derive(Debug, Clone)]
pub struct Local {
    layers: Vec<Layer>,
    environment: String,
    instance: String,
}

/// Where a process's settings come from beside the environment.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// A file to read in place of config/tasker.yml, or tasker.yml, which need not be there.
    pub file: Option<PathBuf>,
    /// A file that somebody else has read: its name, and its section of this environment.
    pub settings: Option<(String, Value)>,
    /// What the command line says, which is nearer than the environment.
    pub flags: Value,
}

impl Local {
    /// With these above what it has.
    pub(super) fn and(mut self, layers: Vec<Layer>) -> Local {
        self.layers.extend(layers);
        self
    }

    /// Of defaults alone.
    pub(super) fn bare(instance: String) -> Local {
        let value = serde_json::to_value(Settings::default()).unwrap_or_default();
        let origin = "default".to_owned();
        Local {
            layers: vec![Layer { origin, value }],
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
        let Local { mut layers, .. } = Local::bare(String::new());
        let mut found = Vec::new();
        match given.settings {
            Some((origin, value)) => {
                found.extend(problems(&schema::settings(), &value).into_iter().map(|p| format!("{origin}: {p}")));
                layers.push(Layer { origin, value });
            }
            None => layers.extend(read_file(given.file, &variables, &environment, &mut found)?),
        }
        layers.extend(read_environment(&variables, &mut found));
        if given.flags.is_object() {
            found.extend(problems(&schema::settings(), &given.flags).iter().map(Problem::to_string));
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
        let figment = self.layers.iter().cloned().chain(above).fold(Figment::new(), Figment::merge);
        let settings: Settings = figment.extract().map_err(|error| Error::Config(error.to_string()))?;
        settings.check()?;
        Ok(Effective {
            settings,
            version,
            instance: self.instance.clone(),
            fallback: None,
            since: Instant::now(),
            figment,
        })
    }
}

/// The settings that are in force, and how they came about.
#[derive(Debug, Clone)]
pub struct Effective {
    /// Themselves.
    pub settings: Settings,
    /// Of what the coordinator has; 0: nothing was ever changed there.
    pub version: i64,
    /// By which name the coordinator knows this process.
    pub instance: String,
    /// Why these are the last good ones, though there may be others.
    pub fallback: Option<String>,
    since: Instant,
    figment: Figment,
}

impl Effective {
    /// Of a program that has made up its mind.
    pub(super) fn fixed(settings: Settings) -> Effective {
        let origin = "program".into();
        let value = serde_json::to_value(&settings).unwrap_or_default();
        Effective {
            settings,
            version: 0,
            instance: String::new(),
            fallback: None,
            since: Instant::now(),
            figment: Figment::new().merge(Layer { origin, value }),
        }
    }

    /// The same, though there may be others.
    pub(crate) fn for_want_of_better(self, why: String) -> Effective {
        Effective {
            fallback: Some(why),
            ..self
        }
    }

    /// Every setting by its path, with its value and where that comes from; secrets are hidden.
    pub fn values(&self) -> BTreeMap<String, (Value, String)> {
        let mut values = BTreeMap::new();
        let settings = serde_json::to_value(&self.settings).unwrap_or_default();
        flatten(&schema::settings(), &settings, "", &mut values);
        let origin = |path: &str| {
            self.figment
                .find_metadata(path)
                .map_or_else(|| "default".to_owned(), |found| found.name.to_string())
        };
        values
            .into_iter()
            .map(|(path, value)| (path.clone(), (value, origin(&path))))
            .collect()
    }

    /// What this process has in common with others of its kind: everything but what is its own by intention.
    pub fn common(&self) -> BTreeMap<String, Value> {
        let own = format!("version {}, for {}", self.version, self.instance);
        let is_common = |path: &str, origin: &str| origin != own && !path.ends_with(".listen");
        let values = self.values().into_iter().filter(|(path, (_, origin))| is_common(path, origin));
        values.map(|(path, (value, _))| (path, value)).collect()
    }

    /// What the member says of it.
    pub(crate) fn report(&self) -> Value {
        json!({
            "version": self.version, "hash": self.hash(), "instance": self.instance, "fallback": self.fallback,
            "seconds": self.since.elapsed().as_secs_f64(), "values": self.common(),
        })
    }

    /// Two processes with the same settings have the same.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(json!(self.common()).to_string());
        digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn flatten(schema: &Value, value: &Value, path: &str, values: &mut BTreeMap<String, Value>) {
    for (name, setting) in schema["properties"].as_object().unwrap_or(&Map::new()) {
        let path = join(path, name);
        match (&setting["properties"], setting["x-secret"] == true && !value[name].is_null()) {
            (Value::Object(_), _) => flatten(setting, &value[name], &path, values),
            (_, true) => drop(values.insert(path, json!(hidden(&value[name])))),
            _ => drop(values.insert(path, value[name].clone())),
        }
    }
}

/// A secret can be compared, and not read.
fn hidden(secret: &Value) -> String {
    let digest = Sha256::digest(secret.to_string());
    format!("(secret {:02x}{:02x})", digest[0], digest[1])
}
