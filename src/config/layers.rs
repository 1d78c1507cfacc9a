//! Layers: what one place says, and how several become the settings, of which the nearest wins and every value knows where it comes from.

use figment::value::{Dict, Map as Profiles};
use figment::{Figment, Metadata, Profile, Provider};
use serde_json::Value;

use super::Settings;
use crate::error::{Error, Result};

/// What one place says.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) origin: String,
    pub(super) value: Value,
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
        let dict = figment::value::Value::serialize(&self.value)?.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
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
