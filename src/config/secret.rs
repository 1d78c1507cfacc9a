//! What is told to nobody: neither printed nor logged, whoever prints or serializes the settings.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A text of which nothing is told.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Itself, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// How processes that know the same key compare a secret: whoever does not know it cannot try what the secret may be.
pub(super) fn compared(secret: &str, key: &str) -> String {
    let digest = Sha256::new().chain_update(key).chain_update([0]).chain_update(secret).finalize();
    let told: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("(secret {told})")
}

/// An address of which user and password are not told.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// All of it, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Address {
        Address(text.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_user(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", without_user(&self.0))
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&without_user(&self.0))
    }
}

/// Of an address what is before its hosts, and not more.
fn without_user(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, hosts))) => format!("{scheme}://…@{hosts}"),
        (None, Some((_, hosts))) => format!("…@{hosts}"),
        (_, None) => address.to_owned(),
    }
}

/// A value as an error may quote it: none that may be, or hold, a secret.
pub(super) fn quoted(value: &Value, is_secret: bool) -> String {
    match value {
        Value::Object(_) => "a section".into(),
        Value::Array(_) => "a list".into(),
        _ if is_secret => "something else".into(),
        Value::String(text) if text.contains("://") || text.chars().count() > 60 => "another text".into(),
        scalar => scalar.to_string(),
    }
}
