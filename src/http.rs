//! The HTTP face: liveness and readiness.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{json, Value};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::health::Beats;

/// How long a probe waits for the database.
const PROBE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Probed {
    db: Db,
    beats: Beats,
    draining: Arc<AtomicBool>,
}

/// The health endpoints of one process.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    draining: Arc<AtomicBool>,
}

impl Server {
    /// Takes the address. Errors: [`Error::Listen`].
    pub async fn bind(address: SocketAddr) -> Result<Server> {
        let listener = TcpListener::bind(address).await.map_err(|e| Error::Listen {
            address: address.to_string(),
            reason: e.to_string(),
        })?;
        Ok(Server {
            listener,
            draining: Arc::default(),
        })
    }

    /// Tells `GET /ready` to answer 503 from now on.
    pub fn draining(&self) -> Arc<AtomicBool> {
        self.draining.clone()
    }

    /// Serves until `stop`.
    pub async fn serve(self, db: Db, beats: Beats, stop: CancellationToken) {
        let state = Probed {
            db,
            beats,
            draining: self.draining,
        };
        let router = Router::new()
            .route("/health", get(health))
            .route("/ready", get(ready))
            .with_state(state);
        if let Err(error) = axum::serve(self.listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
        {
            tracing::error!(%error, "the health endpoints ended");
        }
    }
}

/// Whether the process works: its loops beat and the database answers.
async fn health(State(probed): State<Probed>) -> (StatusCode, Json<Value>) {
    let late = probed.beats.late();
    let database = probed.db.answers(PROBE).await;
    let status = if late.is_empty() && database {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({ "healthy": status == StatusCode::OK, "database": database, "late_loops": late, "pool": probed.db.pool_use() })),
    )
}

/// Whether the process should be given work: it is not shutting down and the database has the schema it needs.
async fn ready(State(probed): State<Probed>) -> (StatusCode, Json<Value>) {
    let draining = probed.draining.load(Ordering::Relaxed);
    let schema = match tokio::time::timeout(PROBE, probed.db.check_schema()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the database does not answer".to_owned()),
    };
    let status = if !draining && schema.is_none() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(json!({ "ready": status == StatusCode::OK, "draining": draining, "database": schema.unwrap_or_else(|| "ok".into()) })),
    )
}
