//! Streams: tells others what has happened, in order for each task, and at least once ([`crate::engine::deliveries`] says of what, and remembers how far each was told).
//!
//! Each subscription is a [`delivery`] of its own, so that a sink that is slow, or away, holds up nobody else.

pub(crate) mod delivery;
mod webhook;

use std::time::Duration;

use serde_json::Value;

use crate::engine::deliveries::Held;
use crate::error::Result;
use crate::subscription::Sink;

/// The sinks that this program knows, as their subscriptions have them.
pub(crate) const SINKS: &[&str] = &["webhook"];

/// What takes the events of one subscription.
enum Outlet {
    Webhook(webhook::Outlet),
}

/// Why an event was not taken.
#[derive(Debug)]
struct Refused {
    why: String,
    /// When it wants to be asked again.
    retry_after: Option<Duration>,
    /// It never wants to be asked again.
    gone: bool,
}

impl Outlet {
    /// Errors: those of its settings.
    fn new(held: &Held) -> Result<Option<Outlet>> {
        Ok(match &held.sink {
            Sink::Webhook(to) => Some(Outlet::Webhook(webhook::Outlet::new(to, held.secrets.clone().unwrap_or_default())?)),
            Sink::Pull {} => None,
        })
    }

    /// How long it may fail.
    fn patience(&self) -> Duration {
        match self {
            Outlet::Webhook(outlet) => outlet.patience(),
        }
    }

    /// Sends events of one lane, one after the other. Returns how many it has taken, and why not the next.
    async fn send(&self, events: &[(i64, Value)]) -> (usize, Option<Refused>) {
        match self {
            Outlet::Webhook(outlet) => outlet.send(events).await,
        }
    }
}
