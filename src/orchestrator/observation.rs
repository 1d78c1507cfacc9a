//! Observation: measures the fleet every so often, where metrics are pushed. Where they are read, it is measured when they are.

use std::time::Duration;

use super::rounds::Round;
use crate::error::Result;
use crate::health::Health;

pub(super) struct Observation {
    health: Health,
}

impl Observation {
    pub(super) fn new(health: &Health) -> Self {
        Observation { health: health.clone() }
    }
}

impl Round for Observation {
    const NAME: &'static str = "observation";
    const EVERY: Duration = Duration::from_secs(15);

    async fn round(&mut self) -> Result<Duration> {
        self.health.observe_fleet().await;
        Ok(Self::EVERY)
    }
}
