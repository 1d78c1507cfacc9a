//! Layers: what one place says, and how several become the settings, of which the nearest wins and every value knows where it comes from.

use std::fmt;

use figment::value::{Dict, Map as Profiles};
use figment::{Figment, Metadata, Profile, Provider};
use serde_json::Value;

use super::Settings;
use crate::error::{Error, Result};

/// What one place says.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) origin: String,
    pub(super) value: Value,
}

/// Its value may hold secrets.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({})", self.origin)
    }
}

impl Layer {
    pub(super) fn defaults() -> Layer {
        Layer {
            origin: "default".into(),
            value: serde_json::to_value(Settings::default()).unwrap_or_default(),
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> std::result::Result<Profiles<Profile, Dict>, figment::Error> {
        let dict = figments(&self.value).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

/// The same value as figment has it, whose own way through serde does not know what a JSON number of any size is.
fn figments(value: &Value) -> figment::value::Value {
    match value {
        Value::Null => figment::value::Value::from(figment::value::Empty::None),
        Value::Bool(yes) => (*yes).into(),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => number.into(),
            (_, Some(number), _) => number.into(),
            (.., number) => number.unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(figments).collect::<Vec<_>>().into(),
        Value::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| (key.clone(), figments(value)));
            entries.collect::<Dict>().into()
        }
    }
}

/// The settings that these make, the nearest last, and where each comes from.
/// Errors: [`Error::Config`] when they do not go together.
pub(super) fn merge(layers: impl IntoIterator<Item = Layer>) -> Result<(Settings, Figment)> {
    let figment = layers.into_iter().fold(Figment::new(), Figment::merge);
    let settings: Settings = figment.extract().map_err(|error| Error::Config(error.to_string()))?;
    settings.check()?;
    Ok((settings, figment))
}
