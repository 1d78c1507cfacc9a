//! Wake, then poll: LISTEN for latency, polling as the safety net.

use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::Db;

/// What a waiting process can be told. The payload is a hint: whoever is woken looks for itself.
pub(crate) mod channel {
    /// Tasks came in; the payload is their namespace.
    pub(crate) const TASKS: &str = "tasker_tasks";
    /// Steps were enqueued; the payload is their queue.
    pub(crate) const STEPS: &str = "tasker_steps";
    /// Steps were dead-lettered; the payload is their queue.
    pub(crate) const DEAD_LETTERS: &str = "tasker_dead_letters";
    /// Tasks were cancelled.
    pub(crate) const CANCELLED: &str = "tasker_cancelled";
    /// The configuration has another version; the payload is its number.
    pub(crate) const CONFIGURATION: &str = "tasker_configuration";
    /// Steps were told to wait for a retry or a permit, or tasks for their time; or permits came back.
    pub(crate) const DUE: &str = "tasker_due";
}

/// Something may have happened.
#[derive(Debug, Clone)]
pub(crate) enum Wake {
    /// On this channel, with this payload.
    Channel(String, String),
    /// Notifications may have been missed: look everywhere.
    Everything,
}

/// Waits for a wake that `concerns` the caller, at most until `poll` has passed.
pub(crate) async fn wait(wakes: &mut broadcast::Receiver<Wake>, poll: Duration, concerns: impl Fn(&str, &str) -> bool) {
    let wake = async {
        loop {
            match wakes.recv().await {
                Ok(Wake::Channel(channel, payload)) if !concerns(&channel, &payload) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            }
        }
    };
    // Jitter keeps processes that started together from polling together.
    let poll = poll.mul_f64(0.9 + 0.2 * fastrand::f64());
    tokio::select! { () = wake => {}, () = tokio::time::sleep(poll) => {} }
}

impl Db {
    /// Spreads the notifications of `channels` inside this process until `stop`, over a connection of its own, which the pool's work
    /// can neither hold up nor wait for. A lost connection is made again; while there is none, or where LISTEN does not work (a
    /// transaction-pooling PgBouncer), everybody polls.
    pub(crate) fn listen(&self, channels: &'static [&'static str], stop: CancellationToken) -> broadcast::Sender<Wake> {
        let (sender, _) = broadcast::channel(64);
        let wakes = sender.clone();
        let pool = super::pool(&self.options, 1);
        let closing = self.closing.clone();
        tokio::spawn(async move {
            let mut delay = Duration::from_millis(100);
            loop {
                let listening = async {
                    let mut listener = PgListener::connect_with(&pool).await?;
                    listener.listen_all(channels.iter().copied()).await?;
                    // What was sent before now was not heard.
                    wakes.send(Wake::Everything).ok();
                    loop {
                        match listener.try_recv().await? {
                            Some(note) => wakes.send(Wake::Channel(note.channel().to_owned(), note.payload().to_owned())).ok(),
                            None => wakes.send(Wake::Everything).ok(),
                        };
                    }
                };
                let failed: Result<(), sqlx::Error> = tokio::select! {
                    () = stop.cancelled() => return,
                    () = closing.cancelled() => return,
                    failed = listening => failed,
                };
                if let Err(error) = failed {
                    tracing::warn!(%error, "LISTEN is not available, polling instead");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = closing.cancelled() => return,
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(30)),
                }
            }
        });
        sender
    }
}
