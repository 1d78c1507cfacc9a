//! The connections to one server. The one that was used last is used next: what is rarely needed is closed, and what is needed stays warm.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection, PgPool};

/// One that nobody has used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// One that nobody has used for so long may have been cut off.
const UNCERTAIN: Duration = Duration::from_secs(5);

/// A session of PostgreSQL keeps what it has come to know: after so long it is given up.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
pub(super) struct Connections {
    /// Makes them, and keeps none: one of its own could not be dropped where no runtime is.
    pub(super) pool: PgPool,
    /// Each has one, too: so many are open.
    open: Arc<()>,
    /// Those that nobody uses, the one that was used last at the end; None: they are closed.
    idle: Mutex<Option<Vec<Connection>>>,
}

#[derive(Debug)]
pub(super) struct Connection {
    connection: PgConnection,
    made: Instant,
    used: Instant,
    _open: Arc<()>,
}

impl Connections {
    pub(super) fn new(pool: PgPool) -> Arc<Connections> {
        let connections = Arc::new(Connections {
            pool,
            open: Arc::default(),
            idle: Mutex::new(Some(Vec::new())),
        });
        tokio::spawn(close_idle(Arc::downgrade(&connections)));
        connections
    }

    fn idle(&self) -> MutexGuard<'_, Option<Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that nobody uses, or a new one.
    pub(super) async fn take(&self) -> Result<Connection, sqlx::Error> {
        loop {
            let last = self.idle().as_mut().and_then(Vec::pop);
            let Some(mut last) = last else { break };
            // A round trip for every call would be too much.
            if last.used.elapsed() < UNCERTAIN || last.connection.ping().await.is_ok() {
                return Ok(last);
            }
        }
        let connection = self.pool.acquire().await?.detach();
        let now = Instant::now();
        Ok(Connection {
            connection,
            made: now,
            used: now,
            _open: self.open.clone(),
        })
    }

    /// It may be used again.
    pub(super) fn give_back(&self, mut connection: Connection) {
        connection.used = Instant::now();
        if let Some(idle) = self.idle().as_mut().filter(|_| connection.made.elapsed() < LIFETIME) {
            idle.push(connection);
        }
    }

    /// How many there are, and how many of them nobody uses.
    pub(super) fn count(&self) -> (u32, u32) {
        let idle = self.idle().as_ref().map_or(0, Vec::len);
        (Arc::strong_count(&self.open) as u32 - 1, idle as u32)
    }

    /// Those in use are closed when they come back.
    pub(super) async fn close(&self) {
        self.pool.close().await;
        let idle = self.idle().take();
        for idle in idle.into_iter().flatten() {
            idle.connection.close().await.ok();
        }
    }
}

impl Connection {
    pub(super) fn get(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Closes those that nobody uses, for as long as there are any connections.
async fn close_idle(connections: Weak<Connections>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(connections) = connections.upgrade() else { return };
        let mut idle = connections.idle();
        let Some(all) = idle.as_mut() else { return };
        let unused = all.iter().take_while(|connection| connection.used.elapsed() > IDLE).count();
        all.drain(..unused);
    }
}
