//! Wake, then poll: LISTEN for latency, polling as the safety net.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::servers::Servers;
use super::Db;
use crate::backoff::Backoff;

/// What a waiting process can be told. The payload is a hint: whoever is woken looks for itself.
pub(crate) mod channel {
    /// Tasks came in; the payload is their namespace.
    pub(crate) const TASKS: &str = "tasker_tasks";
    /// Steps were enqueued; the payload is their queue.
    pub(crate) const STEPS: &str = "tasker_steps";
    /// Steps were dead-lettered; the payload is their queue.
    pub(crate) const DEAD_LETTERS: &str = "tasker_dead_letters";
    /// Steps whose work is other tasks are ready, or such tasks have ended.
    pub(crate) const CHILDREN: &str = "tasker_children";
    /// A bulk action has begun.
    pub(crate) const BULK_ACTIONS: &str = "tasker_bulk_actions";
    /// Events were told, which are to be put in order.
    pub(crate) const EVENTS: &str = "tasker_events";
    /// Events are in order, for subscriptions to be told.
    pub(crate) const DELIVERIES: &str = "tasker_deliveries";
    /// There is another subscription, or one that is to be told in another way.
    pub(crate) const SUBSCRIPTIONS: &str = "tasker_subscriptions";
    /// Tasks were cancelled.
    pub(crate) const CANCELLED: &str = "tasker_cancelled";
    /// The configuration has another version; the payload is its number.
    pub(crate) const CONFIGURATION: &str = "tasker_configuration";
    /// Steps were told to wait for a retry or a permit, or tasks for their time; permits came back; or signals were sent.
    pub(crate) const DUE: &str = "tasker_due";
}

/// What a notification says.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) channel: String,
    /// What it concerns.
    pub(crate) payload: String,
    /// Which of those who hear it are called; None: all.
    pub(crate) call: Option<(u32, u32)>,
}

impl Told {
    /// As `tasker.notify`, or `tasker.call`, has written it.
    fn read(channel: &str, payload: &str) -> Told {
        let called = || {
            let (payload, call) = payload.split_once(' ')?;
            let (ticket, count) = call.split_once(' ')?;
            Some((payload, (ticket.parse().ok()?, count.parse().ok()?)))
        };
        let (payload, call) = called().map_or((payload, None), |(payload, call)| (payload, Some(call)));
        Told {
            channel: channel.to_owned(),
            payload: payload.to_owned(),
            call,
        }
    }
}

/// Something may have happened.
#[derive(Debug, Clone)]
pub(crate) enum Wake {
    /// That something has come in, where it has.
    Told(Told),
    /// Notifications may have been missed: look everywhere.
    Everything,
}

/// Waits for a wake that `concerns` the caller, at most until `poll` has passed.
pub(crate) async fn wait(wakes: &mut broadcast::Receiver<Wake>, poll: Duration, concerns: impl Fn(&Told) -> bool) {
    let wake = async {
        loop {
            match wakes.recv().await {
                Ok(Wake::Told(told)) if !concerns(&told) => {}
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
    /// can neither hold up nor wait for. A lost connection is made again; while nothing is heard, everybody polls.
    pub(crate) fn listen(&self, channels: &'static [&'static str], stop: CancellationToken) -> broadcast::Sender<Wake> {
        let (wakes, _) = broadcast::channel(64);
        let listener = Listener {
            servers: self.direct.clone(),
            db: self.clone(),
            channels,
            wakes: wakes.clone(),
            hears: AtomicBool::new(false),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = listener.db.closing.cancelled() => {}
                () = listener.listen() => {}
                () = listener.make_up() => {}
            }
        });
        wakes
    }
}

/// How soon a change of the configuration is noticed where notifications are not heard.
const DEAF_POLL: Duration = Duration::from_millis(1_500);

/// A notification that takes longer than this does not arrive.
const ARRIVES: Duration = Duration::from_secs(5);

struct Listener {
    db: Db,
    /// None: there is nowhere to listen.
    servers: Option<Arc<Servers>>,
    channels: &'static [&'static str],
    wakes: broadcast::Sender<Wake>,
    /// Notifications arrive: one that it sent to itself has.
    hears: AtomicBool,
}

impl Listener {
    async fn listen(&self) {
        let Some(servers) = &self.servers else {
            tracing::warn!("a pooler stands in front of PostgreSQL and there is no direct.url to LISTEN at, polling instead");
            return std::future::pending().await;
        };
        let mut backoff = Backoff::default();
        loop {
            let ended = self.hear(servers).await;
            if self.hears.swap(false, Ordering::Relaxed) {
                backoff.reset();
            }
            if let Err(error) = ended {
                tracing::warn!(%error, "LISTEN is not available, polling instead");
                self.db.servers.doubt.raise();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Until the connection is lost, or the primary is another.
    async fn hear(&self, servers: &Servers) -> Result<(), sqlx::Error> {
        let own = format!("tasker_listener_{:016x}", fastrand::u64(..));
        let is_left = servers.left();
        let mut listener = PgListener::connect_with(&servers.sessions(1)).await?;
        listener.eager_reconnect(false);
        listener.listen_all(self.channels.iter().copied().chain([own.as_str()])).await?;
        // What was sent before now was not heard.
        self.wakes.send(Wake::Everything).ok();
        let listening = async {
            while let Some(note) = listener.try_recv().await? {
                match note.channel() == own {
                    true => self.hears.store(true, Ordering::Relaxed),
                    false => drop(self.wakes.send(Wake::Told(Told::read(note.channel(), note.payload())))),
                }
            }
            Ok(())
        };
        tokio::select! { ended = listening => ended, () = is_left => Ok(()), never = self.check(&own) => match never {} }
    }

    /// LISTEN succeeds behind a pooler that gives each transaction another session, too, but then nothing arrives.
    async fn check(&self, own: &str) -> Infallible {
        let mut told = false;
        loop {
            let sent = sqlx::query("SELECT pg_notify($1, '')").bind(own).execute(self.db.pool()).await;
            tokio::time::sleep(ARRIVES).await;
            if self.hears.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            if sent.is_ok() && !told {
                tracing::warn!("notifications do not arrive, polling instead: something between here and PostgreSQL keeps them (direct.url may be PostgreSQL's own address)");
                told = true;
            }
        }
    }

    /// While nothing is heard, the configuration is looked at often; all else is polled.
    async fn make_up(&self) {
        loop {
            tokio::time::sleep(DEAF_POLL).await;
            if !self.hears.load(Ordering::Relaxed) {
                self.wakes.send(Wake::Told(Told::read(channel::CONFIGURATION, ""))).ok();
            }
        }
    }
}
