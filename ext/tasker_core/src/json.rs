//! Ruby values to JSON: what JSON cannot hold, and has no natural form there (lib/tasker_core/conversion.rb), is an error that says where it is, or
//! null.

use magnus::r_hash::ForEach;
use magnus::rb_sys::AsRawValue;
use magnus::{prelude::*, Error, Float, Integer, RArray, RHash, RModule, RString, Ruby, Symbol, Value as RubyValue};
use serde_json::Value;

use crate::raise;

/// Deeper nesting is a cycle, or would be refused by parsers.
const MAX_DEPTH: usize = 100;

/// What becomes of an object that has no form in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It is an error.
    Refused,
    /// It is null.
    Null,
}

/// What came of a value.
pub(crate) struct Converted {
    pub(crate) json: String,
    /// What is null in its place: "path: Class".
    pub(crate) left_out: Vec<String>,
}

/// Converts nil, true, false, Integer, finite Float, String, Symbol, what has a natural form, and Array and Hash of these (with String or Symbol
/// keys). Raises TaskerCore::InvalidInput.
pub(crate) fn convert(ruby: &Ruby, value: RubyValue, unknown: Unknown) -> Result<Converted, Error> {
    let mut writer = Writer {
        ruby,
        unknown,
        conversion: None,
        json: String::new(),
        path: Vec::new(),
        left_out: Vec::new(),
    };
    writer.write(value)?;
    Ok(Converted {
        json: writer.json,
        left_out: writer.left_out,
    })
}

/// The same for what is refused where it has no form.
pub(crate) fn text(ruby: &Ruby, value: RubyValue) -> Result<String, Error> {
    convert(ruby, value, Unknown::Refused).map(|converted| converted.json)
}

/// The same for what is looked into.
pub(crate) fn from_ruby(ruby: &Ruby, value: RubyValue) -> Result<Value, Error> {
    parse(ruby, &text(ruby, value)?)
}

/// What was converted, to be looked into.
pub(crate) fn parse(ruby: &Ruby, json: &str) -> Result<Value, Error> {
    serde_json::from_str(json).map_err(|error| raise::with_class(ruby, "InvalidInput", format!("not JSON: {error}")))
}

enum Part {
    Key(String),
    Index(usize),
}

struct Writer<'r> {
    ruby: &'r Ruby,
    unknown: Unknown,
    conversion: Option<(RModule, RubyValue)>,
    json: String,
    path: Vec<Part>,
    left_out: Vec<String>,
}

impl Writer<'_> {
    fn write(&mut self, value: RubyValue) -> Result<(), Error> {
        if self.path.len() > MAX_DEPTH {
            return Err(self.refuse(&format!("nested deeper than {MAX_DEPTH}, or contains itself")));
        }
        if let Some(string) = RString::from_value(value) {
            let text = self.string(string)?;
            self.quote(&text);
        } else if let Some(hash) = RHash::from_value(value) {
            self.object(hash)?;
        } else if let Some(array) = RArray::from_value(value) {
            self.array(array)?;
        } else if let Some(symbol) = Symbol::from_value(value) {
            let name = symbol.name()?.into_owned();
            self.storable(&name)?;
            self.quote(&name);
        } else if let Some(integer) = Integer::from_value(value) {
            match integer.to_i64() {
                Ok(number) => self.json.push_str(&number.to_string()),
                Err(_) => self.json.push_str(&integer.as_value().to_r_string()?.to_string()?),
            }
        } else if let Some(float) = Float::from_value(value) {
            self.float(float.to_f64())?;
        } else if value.is_nil() {
            self.json.push_str("null");
        } else if value.is_kind_of(self.ruby.class_true_class()) {
            self.json.push_str("true");
        } else if value.is_kind_of(self.ruby.class_false_class()) {
            self.json.push_str("false");
        } else {
            self.other(value)?;
        }
        Ok(())
    }

    fn object(&mut self, hash: RHash) -> Result<(), Error> {
        self.json.push('{');
        let mut first = true;
        hash.foreach(|key: RubyValue, value: RubyValue| {
            if !std::mem::take(&mut first) {
                self.json.push(',');
            }
            let name = self.key(key)?;
            self.quote(&name);
            self.json.push(':');
            self.path.push(Part::Key(name));
            self.write(value)?;
            self.path.pop();
            Ok(ForEach::Continue)
        })?;
        self.json.push('}');
        Ok(())
    }

    fn array(&mut self, array: RArray) -> Result<(), Error> {
        self.json.push('[');
        // By index: a conversion may change the array.
        let mut index = 0;
        while index < array.len() {
            if index > 0 {
                self.json.push(',');
            }
            self.path.push(Part::Index(index));
            let item: RubyValue = array.entry(index as isize)?;
            self.write(item)?;
            self.path.pop();
            index += 1;
        }
        self.json.push(']');
        Ok(())
    }

    fn key(&self, key: RubyValue) -> Result<String, Error> {
        if let Some(symbol) = Symbol::from_value(key) {
            let name = symbol.name()?.into_owned();
            self.storable(&name)?;
            return Ok(name);
        }
        match RString::from_value(key) {
            Some(string) => self.string(string),
            None => Err(self.refuse(&format!("the hash key {} is not a string or symbol", key.inspect()))),
        }
    }

    fn string(&self, string: RString) -> Result<String, Error> {
        let text = string.to_string().map_err(|_| {
            let encoding = string.as_value().funcall::<_, _, RubyValue>("encoding", ());
            let encoding = encoding.map(|encoding| encoding.to_string()).unwrap_or_default();
            self.refuse(&format!(
                "a string in the encoding {encoding} is not valid, or cannot be converted to UTF-8"
            ))
        })?;
        self.storable(&text)?;
        Ok(text)
    }

    fn storable(&self, text: &str) -> Result<(), Error> {
        match text.contains('\0') {
            true => Err(self.refuse("a string contains U+0000, which PostgreSQL cannot store")),
            false => Ok(()),
        }
    }

    fn quote(&mut self, text: &str) {
        // A str is always JSON.
        self.json.push_str(&serde_json::to_string(text).unwrap_or_default());
    }

    /// With a point, and without an exponent for what is large: PostgreSQL keeps digits, and a whole number without a point comes back as an Integer.
    fn float(&mut self, number: f64) -> Result<(), Error> {
        if !number.is_finite() {
            return match self.unknown {
                Unknown::Refused => Err(self.refuse(&format!("{number} is not a JSON number"))),
                Unknown::Null => {
                    self.leave_out("Float");
                    Ok(())
                }
            };
        }
        let written = match number != 0.0 && number.abs() < 1e-5 {
            true => format!("{number:e}"),
            false => format!("{number}"),
        };
        self.json.push_str(&written);
        if !written.contains(['.', 'e']) {
            self.json.push_str(".0");
        }
        Ok(())
    }

    fn other(&mut self, value: RubyValue) -> Result<(), Error> {
        let (module, none) = match self.conversion {
            Some(known) => known,
            None => *self.conversion.insert(conversion(self.ruby)?),
        };
        let natural: RubyValue = module.funcall("natural", (value,))?;
        // Its class, by the name that it really has: an object may say anything of itself.
        // SAFETY: the name is copied at once.
        let class = unsafe { value.class().name() }.into_owned();
        match natural.as_raw() == none.as_raw() {
            false => {
                let depth = self.path.len();
                // One that converts to another of its kind for ever must not overflow the stack.
                self.path.push(Part::Key(String::new()));
                let written = self.write(natural);
                self.path.truncate(depth);
                written
            }
            true if self.unknown == Unknown::Refused => Err(self.refuse(&format!("cannot convert {class}"))),
            true => {
                self.leave_out(&class);
                Ok(())
            }
        }
    }

    fn leave_out(&mut self, class: &str) {
        self.json.push_str("null");
        let place = self.place();
        self.left_out.push(match place.is_empty() {
            true => class.to_owned(),
            false => format!("{place}: {class}"),
        });
    }

    /// As Ruby people write it: items[3].price.
    fn place(&self) -> String {
        let mut place = String::new();
        for part in &self.path {
            match part {
                Part::Key(key) if key.is_empty() => {}
                Part::Key(key) => {
                    if !place.is_empty() {
                        place.push('.');
                    }
                    place.push_str(key);
                }
                Part::Index(index) => place.push_str(&format!("[{index}]")),
            }
        }
        place
    }

    fn refuse(&self, why: &str) -> Error {
        let mut place = self.place();
        if place.len() > 200 {
            let end = (0..=200).rev().find(|end| place.is_char_boundary(*end)).unwrap_or_default();
            place.truncate(end);
            place.push('…');
        }
        let message = match place.is_empty() {
            true => format!("not JSON: {why}"),
            false => format!("not JSON at {place}: {why}"),
        };
        raise::with_class(self.ruby, "InvalidInput", message)
    }
}

/// Ruby's side of it, and what it answers for what has no form.
fn conversion(ruby: &Ruby) -> Result<(RModule, RubyValue), Error> {
    let tasker_core: RModule = ruby.class_object().const_get("TaskerCore")?;
    let module: RModule = tasker_core.const_get("Conversion")?;
    let none: RubyValue = module.const_get("NONE")?;
    Ok((module, none))
}
