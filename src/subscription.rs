//! Subscriptions: which events somebody wants to be told, and where to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::is_web_address;
use crate::span::Span;

/// What somebody wants to know, and where it is to go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// Types of events, such as `task.complete`.
    pub types: Vec<String>,
    /// Of tasks in these namespaces; None: in all.
    pub namespaces: Option<Vec<String>>,
    /// Of tasks of these templates (namespace/name); None: of all.
    pub templates: Option<Vec<String>>,
    /// Of tasks that have these tags; None: of all.
    pub tags: Option<BTreeMap<String, String>>,
    /// Where to.
    pub sink: Sink,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sink {
    /// Posted one by one, signed as Standard Webhooks says (<https://www.standardwebhooks.com>).
    Webhook(Webhook),
    /// Nowhere: whoever wants them asks for them (`GET /subscriptions/{name}/events`).
    Pull {},
}

/// Who takes events by HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Webhook {
    /// Where they are posted.
    pub url: String,
    /// How many at once, of different tasks, at most.
    #[serde(default = "Webhook::default_at_once")]
    pub at_once: usize,
    /// How long an answer may take.
    #[serde(default = "Webhook::default_timeout")]
    pub timeout: Duration,
    /// When nothing more is tried, since one event was not taken for so long.
    #[serde(default = "Webhook::default_patience")]
    pub patience: Duration,
}

impl Webhook {
    fn default_at_once() -> usize {
        8
    }

    fn default_timeout() -> Duration {
        Duration::from_secs(10)
    }

    fn default_patience() -> Duration {
        Duration::from_secs(5 * 86_400)
    }
}

/// As people write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    types: Vec<String>,
    namespaces: Option<Vec<String>>,
    templates: Option<Vec<String>>,
    tags: Option<BTreeMap<String, String>>,
    webhook: Option<WrittenWebhook>,
    #[serde(default)]
    pull: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWebhook {
    url: String,
    at_once: Option<usize>,
    timeout: Option<Span>,
    patience: Option<Span>,
}

impl Subscription {
    /// Reads and validates what people write: `{ types: [task.complete], webhook: { url: "https://…" } }`. Errors: what is wrong, and what was expected.
    pub fn parse(written: &Value) -> Result<Subscription, String> {
        let written: Written = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
        let sink = match (written.webhook, written.pull) {
            (Some(webhook), false) => Sink::Webhook(webhook.read()?),
            (None, true) => Sink::Pull {},
            _ => return Err("expected either a webhook, such as { url: \"https://…\" }, or pull: true".into()),
        };
        if let Some(name) = written.templates.iter().flatten().find(|name| !name.contains('/')) {
            return Err(format!("templates has {name:?}: expected namespace/name"));
        }
        Ok(Subscription {
            types: written.types,
            namespaces: written.namespaces,
            templates: written.templates,
            tags: written.tags,
            sink,
        })
    }
}

impl WrittenWebhook {
    fn read(self) -> Result<Webhook, String> {
        if !is_web_address(&self.url) {
            return Err(format!("url is {:?}: expected http:// or https:// and a host", self.url));
        }
        let at_once = self.at_once.unwrap_or_else(Webhook::default_at_once);
        if !(1..=LANES).contains(&at_once) {
            return Err(format!("at_once is {at_once}: expected 1 to {LANES}"));
        }
        let span = |name: &str, written: Option<Span>, default: Duration, most: Duration| match written {
            None => Ok(default),
            Some(written) => written
                .read()
                .filter(|read| *read >= Duration::from_secs(1) && *read <= most)
                .ok_or_else(|| {
                    format!(
                        "{name} is {}: expected 1s to {}",
                        written.written(),
                        humantime::format_duration(most)
                    )
                }),
        };
        Ok(Webhook {
            at_once,
            timeout: span("timeout", self.timeout, Webhook::default_timeout(), Duration::from_secs(60))?,
            patience: span(
                "patience",
                self.patience,
                Webhook::default_patience(),
                Duration::from_secs(30 * 86_400),
            )?,
            url: self.url,
        })
    }
}

/// The events of a task are in one of so many lanes, in each of which one comes after the other (`tasker.lane_of`).
pub(crate) const LANES: usize = 16;
