//! Webhooks: each event is posted as a CloudEvent, signed as Standard Webhooks says. A status of 2xx has taken it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::Semaphore;
use ureq::http::{header::RETRY_AFTER, Response, StatusCode};
use ureq::{Agent, Body};

use super::Refused;
use crate::error::Result;
use crate::http::client;
use crate::standard_webhooks::signature;
use crate::subscription::Webhook;

/// The longest that a sink is left alone because it says so.
const LONGEST: Duration = Duration::from_secs(3_600);

pub(super) struct Outlet {
    to: Webhook,
    secrets: Vec<String>,
    agent: Agent,
    at_once: Arc<Semaphore>,
}

impl Outlet {
    pub(super) fn new(to: &Webhook, secrets: Vec<String>) -> Result<Outlet> {
        Ok(Outlet {
            agent: client::agent(to.timeout)?,
            at_once: Arc::new(Semaphore::new(to.at_once)),
            secrets,
            to: to.clone(),
        })
    }

    pub(super) fn patience(&self) -> Duration {
        self.to.patience
    }

    pub(super) async fn send(&self, events: &[(i64, Value)]) -> (usize, Option<Refused>) {
        for (n, (position, event)) in events.iter().enumerate() {
            if let Err(refused) = self.post(*position, event).await {
                return (n, Some(refused));
            }
        }
        (events.len(), None)
    }

    async fn post(&self, position: i64, event: &Value) -> std::result::Result<(), Refused> {
        let refused = |why: String| Refused {
            why,
            retry_after: None,
            gone: false,
        };
        let permit = self
            .at_once
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| refused(error.to_string()))?;
        // The same whenever it is sent.
        let id = format!("evt_{position}");
        let timestamp = Utc::now().timestamp();
        let body = event.to_string();
        let signed = signature(&self.secrets, &id, timestamp, &body).map_err(|error| refused(error.to_string()))?;
        let request = self
            .agent
            .post(&self.to.url)
            .header("content-type", "application/cloudevents+json")
            .header("user-agent", concat!("tasker/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", &signed)
            .config()
            // It would take the event elsewhere.
            .max_redirects(0)
            .build();
        let sending = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            request.send(body)
        });
        match sending.await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
            Ok(Ok(answer)) => Err(Refused {
                why: format!("it answered {}", answer.status()),
                retry_after: retry_after(&answer),
                gone: answer.status() == StatusCode::GONE,
            }),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(panic) => Err(refused(panic.to_string())),
        }
    }
}

/// RFC 9110, section 10.2.3: seconds, or a time.
fn retry_after(answer: &Response<Body>) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(text).ok()?.to_utc() - Utc::now()).to_std().ok()?,
    };
    Some(after.min(LONGEST))
}
