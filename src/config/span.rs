//! A length of time as people write it: 30, 1.5, "30s", "1h 30m".

use std::borrow::Cow;
use std::time::Duration;

use schemars::{json_schema, JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serializer};

/// The bound keeps every sum in range.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// What is written, for serde and for the schema.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Span {
    Seconds(f64),
    Text(String),
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["number", "string"],
            "minimum": 0,
            "maximum": LONGEST.as_secs(),
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*[a-zA-Zµ]+\s*)+$",
            "x-kind": "duration",
        })
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let (written, parsed) = match Span::deserialize(deserializer)? {
        Span::Seconds(seconds) => (seconds.to_string(), Duration::try_from_secs_f64(seconds).ok()),
        Span::Text(text) => {
            let parsed = humantime::parse_duration(&text).ok();
            (text, parsed)
        }
    };
    parsed
        .filter(|span| *span <= LONGEST)
        .ok_or_else(|| serde::de::Error::custom(format!("{written:?} is no duration such as 30, \"30s\" or \"1h 30m\"")))
}

pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*span))
}
