//! Backpressure: how the namespaces are, and what waits in them, measured by one orchestrator for all.

use std::time::{Duration, Instant};

use super::rounds::Round;
use crate::db::Db;
use crate::engine::backpressure::{measure, note_traffic};
use crate::error::Result;

/// How often while a namespace is not normal.
const WATCHFUL: Duration = Duration::from_secs(1);

/// How often what waits is taken down, roughly.
const TRAFFIC: Duration = Duration::from_secs(9);

pub(super) struct Backpressure {
    db: Db,
    every: Duration,
    noted: Option<Instant>,
}

impl Backpressure {
    pub(super) fn new(db: &Db) -> Self {
        Backpressure {
            db: db.clone(),
            every: Self::EVERY,
            noted: None,
        }
    }
}

impl Round for Backpressure {
    const NAME: &'static str = "backpressure";
    const EVERY: Duration = Duration::from_secs(5);

    async fn round(&mut self) -> Result<Duration> {
        if self.noted.is_none_or(|at| at.elapsed() >= TRAFFIC) {
            note_traffic(&self.db).await?;
            self.noted = Some(Instant::now());
        }
        let measured = measure(&self.db, self.every.mul_f64(0.75)).await?;
        for of in measured.iter().filter(|of| of.was != of.pressure) {
            let (namespace, was, depth, age) = (&of.namespace, &of.was, of.depth, of.age);
            match of.pressure.as_str() {
                "normal" => tracing::info!(namespace, was, depth, age, "the backlog is as it should be again"),
                now => tracing::warn!(namespace, was, now, depth, age, "the backlog is too long, or too old"),
            }
        }
        self.every = if measured.is_empty() { Self::EVERY } else { WATCHFUL };
        Ok(self.every)
    }
}
