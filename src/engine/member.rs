//! Membership: who runs. A membership is a lease, and its id is the fence.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::error::Result;
use crate::health::Beat;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Claims tasks.
    Orchestrator,
    /// Leases steps.
    Worker,
}

/// A member whose lease ran out.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Expired {
    /// Its fence.
    pub id: i32,
    /// orchestrator or worker.
    pub kind: String,
    /// host:pid.
    pub name: String,
}

/// This process's own membership; joining again gives it another id.
#[derive(Debug)]
pub struct Membership {
    db: Db,
    kind: Kind,
    name: String,
    namespaces: Vec<String>,
    lease: Duration,
    id: AtomicI32,
}

impl Membership {
    /// Joins. `namespaces` empty means all.
    pub async fn join(db: &Db, kind: Kind, namespaces: &[String], lease: Duration) -> Result<Membership> {
        let name = format!("{}:{}", gethostname::gethostname().to_string_lossy(), std::process::id());
        let membership = Membership {
            db: db.clone(),
            kind,
            name,
            namespaces: namespaces.to_vec(),
            lease,
            id: AtomicI32::new(0),
        };
        membership.rejoin().await?;
        Ok(membership)
    }

    /// The fence under which this process acts now.
    pub fn id(&self) -> i32 {
        self.id.load(Ordering::Acquire)
    }

    /// host:pid.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a new membership, after the old one was lost.
    pub async fn rejoin(&self) -> Result<()> {
        let kind = match self.kind {
            Kind::Orchestrator => "orchestrator",
            Kind::Worker => "worker",
        };
        let id: i32 = sqlx::query_scalar("SELECT tasker.join_members($1, $2, $3, $4, make_interval(secs => $5))")
            .bind(kind)
            .bind(&self.name)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(&self.namespaces)
            .bind(self.lease.as_secs_f64())
            .fetch_one(self.db.upkeep())
            .await?;
        self.id.store(id, Ordering::Release);
        Ok(())
    }

    /// Renews the lease; takes a new membership where it was lost.
    pub async fn renew(&self) -> Result<()> {
        let held: bool = sqlx::query_scalar("SELECT tasker.renew_membership($1, make_interval(secs => $2))")
            .bind(self.id())
            .bind(self.lease.as_secs_f64())
            .fetch_one(self.db.upkeep())
            .await?;
        if !held {
            tracing::warn!(member = self.id(), name = self.name, "membership was lost, joining again");
            self.rejoin().await?;
        }
        Ok(())
    }

    /// Leaves, so that nobody waits for the lease to run out.
    pub async fn leave(&self) -> Result<()> {
        sqlx::query("SELECT tasker.leave_members($1)")
            .bind(self.id())
            .execute(self.db.upkeep())
            .await?;
        Ok(())
    }
}

/// Marks and names the members whose lease ran out.
pub async fn expire(db: &Db) -> Result<Vec<Expired>> {
    Ok(sqlx::query_as("SELECT id, kind, name FROM tasker.expire_members()")
        .fetch_all(db.upkeep())
        .await?)
}

/// Renews a membership at a third of its lease, until `stop`.
pub(crate) async fn keep(membership: Arc<Membership>, beat: Beat, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = membership.renew().await {
            tracing::error!(%error, "the membership's heartbeat failed");
        }
        beat.beat();
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(membership.lease / 3) => {} }
    }
}
