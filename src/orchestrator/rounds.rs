//! Rounds: what an orchestrator does every so often, whether or not something happened.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::Result;
use crate::health::Beats;

pub(super) trait Round: Send {
    const NAME: &'static str;
    /// How long it rests at most.
    const EVERY: Duration;

    /// Does what there is to do; returns how long to rest. It is waited for at shutdown, so it must not be long.
    fn round(&mut self) -> impl Future<Output = Result<Duration>> + Send;
}

/// `rests`: how long it rests where it would for so long, if there were no others.
pub(super) async fn run<R: Round>(mut of: R, rests: impl Fn(Duration) -> Duration + Send, beats: Beats, stop: CancellationToken) {
    let beat = beats.register(R::NAME, R::EVERY * 2 + Duration::from_secs(60));
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() {
        let done = of.round().await;
        beat.note(&done);
        let delay = match done {
            Ok(rest) => {
                backoff.reset();
                rests(rest).mul_f64(0.9 + 0.2 * fastrand::f64())
            }
            Err(error) => {
                tracing::error!(%error, "{} failed", R::NAME);
                backoff.next_delay()
            }
        };
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(delay) => {} }
    }
}
