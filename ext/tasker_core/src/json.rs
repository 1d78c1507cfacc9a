//! Ruby values to JSON, strictly: what JSON (or PostgreSQL's jsonb) cannot hold is an error, never a guess.

use magnus::{Error, Ruby, Value as RubyValue};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::raise;

/// Deeper nesting is a cycle, or would be refused by parsers.
const MAX_DEPTH: u8 = 100;

/// Converts nil, true, false, Integer, finite Float, UTF-8 String, Symbol, and Array and Hash of these (with String or Symbol keys).
/// Raises TaskerCore::InvalidInput.
pub(crate) fn from_ruby(ruby: &Ruby, value: RubyValue) -> Result<Value, Error> {
    let converted: Result<Strict, Error> = serde_magnus::deserialize(ruby, value);
    converted
        .map(|strict| strict.0)
        .map_err(|error| raise::with_class(ruby, "InvalidInput", format!("not JSON: {}", message(&error))))
}

fn message(error: &Error) -> String {
    let text = error.to_string();
    // "TypeError: can't deserialize Proc" → what a caller can act on.
    text.split_once(": ")
        .map_or(text.clone(), |(_, rest)| rest.replace("can't deserialize", "cannot convert"))
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Depth(0).deserialize(deserializer).map(Strict)
    }
}

#[derive(Clone, Copy)]
struct Depth(u8);

impl Depth {
    fn deeper<E: serde::de::Error>(self) -> Result<Depth, E> {
        if self.0 < MAX_DEPTH {
            Ok(Depth(self.0 + 1))
        } else {
            Err(E::custom(format!("nested deeper than {MAX_DEPTH}, or contains itself")))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Depth {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nil, true, false, a number, a string, an array or a hash")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is not a JSON number")))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        if value.contains('\0') {
            return Err(E::custom("a string contains U+0000, which PostgreSQL cannot store"));
        }
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::with_capacity(items.size_hint().unwrap_or_default());
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key_seed(inner)? {
            let Value::String(key) = key else {
                return Err(A::Error::custom(format!("the hash key {key} is not a string or symbol")));
            };
            object.insert(key, entries.next_value_seed(inner)?);
        }
        Ok(Value::Object(object))
    }
}
