//! Alerts: a log line, a count and, where there is one, a webhook, each time that dead letters reach their threshold.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::Live;
use crate::db::{self, channel, Db, Wake};
use crate::engine::alerts;
use crate::engine::member::Membership;
use crate::error::Result;
use crate::health::{Beat, Beats};

/// How often to look when no letter was announced; it is also how late a webhook is tried again.
const POLL: Duration = Duration::from_secs(30);
/// Counting letters is not cheap: however many die, it is done this often at most.
const REST: Duration = Duration::from_secs(2);

pub(super) struct Alerts {
    db: Db,
    live: Live,
    membership: Arc<Membership>,
    wakes: broadcast::Receiver<Wake>,
    beat: Beat,
}

impl Alerts {
    pub(super) fn new(db: &Db, live: &Live, membership: &Arc<Membership>, beats: &Beats, wakes: broadcast::Receiver<Wake>) -> Self {
        Alerts {
            db: db.clone(),
            live: live.clone(),
            membership: membership.clone(),
            wakes,
            beat: beats.register("alerts", Duration::from_secs(120)),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let cycle = self.cycle().await;
            self.beat.note(&cycle);
            let wait = async {
                match cycle {
                    Ok(()) => {
                        backoff.reset();
                        tokio::time::sleep(REST).await;
                        db::wait(&mut self.wakes, POLL, |told| {
                            told.channel == channel::DEAD_LETTERS && self.membership.leads()
                        })
                        .await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "alerting failed");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = wait => {} }
        }
    }

    async fn cycle(&self) -> Result<()> {
        for alert in alerts::check(&self.db).await? {
            let text = |field: &str| alert[field].as_str().unwrap_or_default().to_owned();
            tracing::error!(
                namespace = text("namespace"),
                template = text("template"),
                step = text("step"),
                letters = alert["letters"].as_i64(),
                threshold = alert["threshold"].as_i64(),
                "dead letters reached their alert threshold"
            );
        }
        let Some(webhook) = self.live.orchestrator().alert_webhook else {
            return Ok(());
        };
        while let Some(alert) = alerts::take(&self.db).await? {
            match post(webhook.reveal().to_owned(), alert.clone()).await {
                Ok(()) => alerts::delivered(&self.db, &alert).await?,
                Err(error) => {
                    tracing::warn!(
                        error,
                        alert = alert["id"].as_i64(),
                        "the webhook did not take an alert, it will be tried again"
                    );
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Posts the alert as JSON; anything but a 2xx answer within 10 s is an error, and so is a redirect: it would take the alert elsewhere.
async fn post(webhook: String, alert: Value) -> std::result::Result<(), String> {
    let posted = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .max_redirects(0)
            .build()
            .into();
        let sent = agent.post(&webhook).content_type("application/json").send(alert.to_string());
        sent.map(|answer| answer.status())
    });
    match posted.await {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("it answered {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(panic.to_string()),
    }
}
