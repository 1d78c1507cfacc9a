//! Unique tasks: of which there is one at a time (`migrations/0033_unique.sql`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use sql_json_path::JsonPath;

use super::condition::path_problem;
use crate::span::{self, Span};

/// Which tasks of a template are the same, and what becomes of one when there is another that is the same. None of this counts a task that is blocked,
/// has failed, or was cancelled or discarded; nor are tasks that are steps of others asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unique {
    /// SQL/JSON paths over `{input}`: tasks that have the same there are the same. Empty: those with the same input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// In which state another one stands in the way. None: [`While::Live`], or with `within` any.
    #[serde(rename = "while", skip_serializing_if = "Option::is_none")]
    pub state: Option<While>,
    /// And how long after it was created. None: as long as it is in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Duration>,
    /// What becomes of the new one.
    #[serde(skip_serializing_if = "super::is_default")]
    pub on_conflict: OnConflict,
}

/// A state in which a task stands in the way of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum While {
    /// It has not begun.
    Queued,
    /// It has begun, and has not ended.
    Running,
    /// It has not ended.
    Live,
}

/// What becomes of a new task when there is another that is the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// It is the other one.
    #[default]
    Return,
    /// It is refused ([`crate::Error::NotUnique`]).
    Reject,
    /// It is created, and the other one is cancelled.
    Replace,
    /// It is the other one, which gets the new one's input, tags, priority and time: of many in a short time, the last one counts. Only for
    /// [`While::Queued`].
    Reschedule,
}

/// As people write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    by: Option<Paths>,
    #[serde(rename = "while")]
    state: Option<String>,
    within: Option<Span>,
    on_conflict: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

impl Unique {
    /// Reads and validates what people write: `{ by: customer_id, while: queued }`. A path that does not begin with `$` is one of names in the input,
    /// such as `customer.id`. Errors: what is wrong, and what was expected.
    pub fn parse(written: &Value) -> Result<Unique, String> {
        let written: Written = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
        let by = match written.by {
            None => Vec::new(),
            Some(Paths::One(path)) => vec![path],
            Some(Paths::Many(paths)) => paths,
        };
        let state = written.state.map(|word| read_word("while", &word, "queued, running or live"));
        let within = written.within.map(|within| {
            let read = within.read().filter(|within| *within >= Duration::from_millis(1));
            read.ok_or_else(|| {
                format!(
                    "within is {}: expected a duration such as \"1h\", of at most {:?}",
                    within.written(),
                    span::LONGEST
                )
            })
        });
        let on_conflict = written
            .on_conflict
            .map(|word| read_word("on_conflict", &word, "return, reject, replace or reschedule"));
        let unique = Unique {
            by: by.iter().map(|path| read_path(path)).collect::<Result<_, _>>()?,
            state: state.transpose()?,
            within: within.transpose()?,
            on_conflict: on_conflict.transpose()?.unwrap_or_default(),
        };
        match (unique.on_conflict, unique.state) {
            (OnConflict::Reschedule, None) => Ok(Unique {
                state: Some(While::Queued),
                ..unique
            }),
            (OnConflict::Reschedule, Some(While::Running | While::Live)) => {
                Err("on_conflict is reschedule: expected while: queued, since what has begun cannot begin later".into())
            }
            _ => Ok(unique),
        }
    }

    /// What makes tasks with this input the same, as `tasker.sameness` finds it: for tasks in memory.
    pub fn sameness(&self, input: &Value) -> Value {
        let of = json!({ "input": input });
        let find = |path: &String| {
            let path = JsonPath::new(path).ok()?;
            path.query_first(&of).ok()?.map(|found| found.into_owned())
        };
        match self.by.is_empty() {
            true => input.clone(),
            false => self.by.iter().map(|path| json!([path, find(path)])).collect(),
        }
    }
}

fn read_path(path: &str) -> Result<String, String> {
    if path.is_empty() || path.contains('\0') {
        return Err(format!("by has {path:?}: expected a name in the input, or a SQL/JSON path"));
    }
    if path.starts_with('$') {
        return match path_problem(path, &[]) {
            Some(problem) => Err(format!("by has {path:?}, which {problem}")),
            None => Ok(path.into()),
        };
    }
    let names = path.split('.').map(|name| Value::from(name).to_string());
    Ok(format!("$.input.{}", names.collect::<Vec<_>>().join(".")))
}

fn read_word<T: for<'a> Deserialize<'a>>(name: &str, word: &str, words: &str) -> Result<T, String> {
    serde_json::from_value(word.into()).map_err(|_| format!("{name} is {word:?}: expected {words}"))
}
