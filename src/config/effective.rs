//! What is in force in a process, and what it tells of that.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use figment::Figment;
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};

use super::check::join;
use super::distributed::Version;
use super::layers::Layer;
use super::secret::compared;
use super::{schema, Settings};

/// The settings that are in force, and how they came about.
#[derive(Clone)]
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
    /// What was set there.
    overrides: Value,
}

impl fmt::Debug for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Effective({:?}, version {})", self.settings, self.version)
    }
}

impl Effective {
    pub(super) fn new((settings, figment): (Settings, Figment), (version, overrides): (i64, &Value), instance: &str) -> Effective {
        Effective {
            settings,
            version,
            instance: instance.to_owned(),
            fallback: None,
            since: Instant::now(),
            figment,
            overrides: overrides.clone(),
        }
    }

    /// Whether it is what the coordinator has there. Where its past was lost, the same number may stand for something else.
    pub(super) fn is_of(&self, newest: &Version) -> bool {
        self.fallback.is_none() && self.version == newest.version && self.overrides == newest.overrides
    }

    /// Of a program that has made up its mind.
    pub(super) fn fixed(settings: Settings) -> Effective {
        let value = serde_json::to_value(&settings).unwrap_or_default();
        let origin = "program".into();
        Effective::new((settings, Figment::new().merge(Layer { origin, value })), (0, &Value::Null), "")
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
        flatten(schema::settings(), &settings, "", &mut values);
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

    /// What the member says of it. Secrets can be compared by those who know the same `key`; without one, nothing is said of them.
    pub(crate) fn report(&self, key: Option<&str>) -> Value {
        let mut values = self.common();
        for (path, value) in &mut values {
            if let (Some(key), Some(secret)) = (key, self.secret(path)) {
                *value = json!(compared(&secret, key));
            }
        }
        let digest = Sha256::digest(json!(values).to_string());
        let hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        json!({
            "version": self.version, "hash": hash, "instance": self.instance, "fallback": self.fallback,
            "seconds": self.since.elapsed().as_secs_f64(), "values": values,
        })
    }

    /// What is at `path`, if it is a secret.
    fn secret(&self, path: &str) -> Option<String> {
        schema::is_secret(path)
            .then(|| self.figment.find_value(path).ok()?.into_string())
            .flatten()
    }
}

fn flatten(schema: &Value, value: &Value, path: &str, values: &mut BTreeMap<String, Value>) {
    for (name, setting) in schema["properties"].as_object().unwrap_or(&Map::new()) {
        let path = join(path, name);
        match &setting["properties"] {
            Value::Object(_) => flatten(setting, &value[name], &path, values),
            _ if value[name].is_null() => drop(values.insert(path, setting["x-default"].clone())),
            _ => drop(values.insert(path, value[name].clone())),
        }
    }
}
