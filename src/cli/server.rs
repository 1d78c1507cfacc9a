//! A command where the database is out of reach: it asks the API of a `tasker serve`.

use std::time::Duration;

use percent_encoding::{utf8_percent_encode, NON_ALPHANUMERIC};
use serde::de::DeserializeOwned;
use serde_json::{json, Value};
use ureq::http::{Request, StatusCode};

use crate::config::Secret;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::http::client;

/// How many entries a page of a list has at most.
const PAGE: usize = 1_000;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a command finds what it is about.
pub(super) enum Reach<D = Db> {
    /// In the database, or in those of all shards.
    Database(Box<D>),
    /// Behind an API.
    Server(Server),
}

/// An API, and who asks.
#[derive(Clone)]
pub(super) struct Server {
    url: String,
    token: Option<Secret>,
    agent: ureq::Agent,
}

/// A part of a path.
pub(super) fn part(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// What is to be asked for by these names; null: not by that.
pub(super) type Query<'q> = &'q [(&'q str, Value)];

impl Server {
    /// Errors: [`Error::Config`] for a URL that is none.
    pub(super) fn new(url: &str, token: Option<&str>) -> Result<Server> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(Error::Config(format!(
                "--server is {url:?}: expected http:// or https:// and a host"
            )));
        }
        Ok(Server {
            url: format!("{}/api/v1", url.trim_end_matches('/')),
            token: token.map(|token| Secret::from(token.to_owned())),
            agent: client::agent(PATIENCE)?,
        })
    }

    /// What is there. Errors: as the API says, or [`Error::Unreachable`].
    pub(super) fn get(&self, path: &str, query: Query) -> Result<Value> {
        let said = |(name, value): &(&str, Value)| match value {
            Value::Null => None,
            Value::String(text) => Some(format!("{name}={}", part(text))),
            other => Some(format!("{name}={}", part(&other.to_string()))),
        };
        let query: Vec<String> = query.iter().filter_map(said).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        self.send("GET", &format!("{path}{mark}{}", query.join("&")), None)
    }

    /// As many of a list as are wanted.
    pub(super) fn list(&self, path: &str, query: Query, limit: usize) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        let mut cursor = query
            .iter()
            .find(|(name, _)| *name == "cursor")
            .map_or(Value::Null, |(_, cursor)| cursor.clone());
        loop {
            let mut query: Vec<(&str, Value)> = query.iter().filter(|(name, _)| *name != "cursor").cloned().collect();
            query.push(("limit", json!((limit - found.len()).min(PAGE))));
            query.push(("cursor", cursor));
            let mut page = self.get(path, &query)?;
            found.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            cursor = page["next"].take();
            if cursor.is_null() || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    /// A list that the API gives whole.
    pub(super) fn whole(&self, path: &str, query: Query) -> Result<Vec<Value>> {
        let mut list = self.get(path, query)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// All of a list, however many there are.
    pub(super) fn all(&self, path: &str, query: Query) -> Result<Vec<Value>> {
        self.list(path, query, usize::MAX)
    }

    pub(super) fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.send("POST", path, Some(body))
    }

    pub(super) fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.send("PUT", path, Some(body))
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value> {
        self.send("DELETE", path, None)
    }

    fn send(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        for name in ["traceparent", "tracestate"] {
            if let Ok(value) = std::env::var(name.to_uppercase()) {
                request = request.header(name, value);
            }
        }
        let request = request.header("content-type", "application/json");
        let request = request.body(body.map_or_else(String::new, |mut body| {
            if let Some(fields) = body.as_object_mut() {
                // What is null is not said, but for values that are to be null.
                fields.retain(|name, value| !value.is_null() || matches!(&**name, "value" | "result" | "payload"));
            }
            body.to_string()
        }));
        let request = request.map_err(|error| Error::Config(format!("--server, or --token: {error}")))?;
        let away = |error: &dyn std::fmt::Display| Error::Server(format!("{} does not answer: {error}", self.url));
        // The command has nothing else to do.
        let mut answer = tokio::task::block_in_place(|| self.agent.run(request)).map_err(|error| away(&error))?;
        let text = answer
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .read_to_string()
            .map_err(|error| away(&error))?;
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        match answer.status().is_success() {
            true => Ok(said),
            false => Err(refusal(answer.status(), &said)),
        }
    }
}

fn refusal(status: StatusCode, said: &Value) -> Error {
    let detail = said["detail"]
        .as_str()
        .map_or_else(|| format!("the server answered {status}"), str::to_owned);
    match status.as_u16() {
        404 => Error::NotFound(detail),
        401 | 403 => Error::Forbidden(detail),
        413 => Error::TooLarge(detail),
        500.. => Error::Server(detail),
        429 if !said["retry_after"].is_null() => Error::Backpressure {
            message: detail,
            retry_after: said["retry_after"]
                .as_u64()
                .and_then(|seconds| seconds.try_into().ok())
                .unwrap_or(1),
        },
        _ => Error::Invalid(detail),
    }
}

/// As the library has it. Errors: [`Error::Server`] where the server is of another version.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::Server(format!("the server's answer is not what this version expects: {error}")))
}
