//! Membership: who runs. A membership is a lease, and its id is the fence.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use tokio::sync::Notify;
use uuid::Uuid;

use super::peers::Rank;
use crate::db::Db;
use crate::error::Result;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Claims tasks.
    Orchestrator,
    /// Leases steps.
    Worker,
}

impl Kind {
    /// orchestrator or worker.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Orchestrator => "orchestrator",
            Kind::Worker => "worker",
        }
    }
}

/// What a worker did in one namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Done {
    completed: u64,
    failed: u64,
    /// Of handlers' time.
    seconds: f64,
}

/// What became of a heartbeat, and what the fleet is like beside the member.
#[derive(sqlx::FromRow)]
struct Renewed {
    held: bool,
    lacks: Option<Json<Vec<Lack>>>,
    ranks: Option<Json<Ranks>>,
}

/// What is missing beside a member, in a namespace.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lack {
    Handler {
        namespace: String,
        handler: String,
        step: String,
        template: String,
        version: String,
    },
    Workers {
        namespace: String,
        waiting: i64,
    },
    Orchestrator {
        namespace: String,
    },
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

/// By namespace; "" for whoever is for all.
type Ranks = BTreeMap<String, Rank>;

/// This process's own membership; joining again gives it another id.
#[derive(Debug)]
pub struct Membership {
    db: Db,
    kind: Kind,
    name: String,
    namespaces: Vec<String>,
    lease: Mutex<Duration>,
    id: AtomicI32,
    /// Beside the id, which is another's where the database has forgotten who it was given to.
    proof: Uuid,
    /// By namespace, since the last heartbeat.
    activity: Mutex<BTreeMap<String, Done>>,
    /// Among the others.
    ranks: Mutex<Ranks>,
    /// Steps are held back that no worker is known to have a handler for; or nobody knows what this one has.
    unhandled: Notify,
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
            lease: Mutex::new(lease),
            id: AtomicI32::new(0),
            proof: Uuid::from_u128(fastrand::u128(..)),
            activity: Mutex::default(),
            ranks: Mutex::default(),
            unhandled: Notify::new(),
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
        let id: i32 = sqlx::query_scalar("SELECT tasker.join_members($1, $2, $3, $4, make_interval(secs => $5), $6)")
            .bind(self.kind.name())
            .bind(&self.name)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(&self.namespaces)
            .bind(self.lease().as_secs_f64())
            .bind(self.proof)
            .fetch_one(self.db.upkeep())
            .await?;
        self.id.store(id, Ordering::Release);
        self.unhandled.notify_one();
        Ok(())
    }

    /// Waits until somebody should ask what steps no worker has a handler for.
    pub(crate) async fn unhandled(&self) {
        self.unhandled.notified().await;
    }

    /// Notes what was done since, and how much of handlers' time it took, for the fleet's rates.
    pub(crate) fn note_activity(&self, namespace: &str, completed: u64, failed: u64, time: Duration) {
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match activity.get_mut(namespace) {
            Some(done) => done,
            None => activity.entry(namespace.to_owned()).or_default(),
        };
        done.completed += completed;
        done.failed += failed;
        done.seconds += time.as_secs_f64();
    }

    /// Renews the lease, and says how this process is; takes a new membership where it was lost. Returns what is missing beside it, in words.
    pub async fn renew(&self, report: &Value) -> Result<Vec<String>> {
        let activity = std::mem::take(&mut *self.activity.lock().unwrap_or_else(PoisonError::into_inner));
        let renewing = sqlx::query_as("SELECT held, lacks, ranks FROM tasker.renew_membership($1, make_interval(secs => $2), $3, $4, $5)");
        let Renewed { held, lacks, ranks } = renewing
            .bind(self.id())
            .bind(self.lease().as_secs_f64())
            .bind(report)
            .bind(Json(activity))
            .bind(self.proof)
            .fetch_one(self.db.upkeep())
            .await?;
        if !held {
            tracing::warn!(member = self.id(), name = self.name, "membership was lost, joining again");
            self.rejoin().await?;
        }
        *self.ranks() = ranks.map(|ranks| ranks.0).unwrap_or_default();
        let lacks = lacks.map(|lacks| lacks.0).unwrap_or_default();
        if lacks.iter().any(|lack| matches!(lack, Lack::Handler { .. })) {
            self.unhandled.notify_one();
        }
        Ok(lacks.iter().map(Lack::said).collect())
    }

    fn ranks(&self) -> MutexGuard<'_, Ranks> {
        self.ranks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is called, of those that work for a namespace; all are where nobody is.
    pub(crate) fn is_called(&self, namespace: &str, call: Option<(u32, u32)>) -> bool {
        let rank = self.ranks().get(namespace).copied();
        rank.zip(call).is_none_or(|(rank, call)| rank.is_called(call))
    }

    /// Whether it is one of those that look at what concerns all.
    pub(crate) fn leads(&self) -> bool {
        let ranks = self.ranks();
        ranks.is_empty() || ranks.values().any(|rank| rank.leads())
    }

    /// How long it is to rest where a member of a small fleet would for so long.
    pub(crate) fn rest(&self, rest: Duration) -> Duration {
        self.ranks().values().map(|rank| rank.rest(rest)).min().unwrap_or(rest)
    }

    /// The same of what it does for one of its namespaces.
    pub(crate) fn rest_of(&self, namespace: &str, rest: Duration) -> Duration {
        self.ranks().get(namespace).map_or(rest, |rank| rank.rest(rest))
    }

    fn lease(&self) -> Duration {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From its next heartbeat on, it lasts so long without one.
    pub(crate) fn hold_for(&self, lease: Duration) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// Leaves, so that nobody waits for the lease to run out.
    pub async fn leave(&self) -> Result<()> {
        sqlx::query("SELECT tasker.leave_members($1, $2)")
            .bind(self.id())
            .bind(self.proof)
            .execute(self.db.upkeep())
            .await?;
        Ok(())
    }
}

impl Lack {
    fn said(&self) -> String {
        match self {
            Lack::Orchestrator { namespace } => format!(
                "no orchestrator looks after {namespace}: what is to be tried again or to start later, and what dead workers had, waits for one \
                 (tasker serve, or the worker's setting orchestrate)"
            ),
            Lack::Workers { namespace, waiting } => {
                format!("{waiting} steps wait in {namespace}, and no worker is there for them (tasker worker --namespace {namespace})")
            }
            Lack::Handler {
                namespace,
                handler,
                step,
                template,
                version,
            } => format!(
                "no worker of {namespace} has the handler {handler}: the step {step} of {template} (version {version}) waits for one that has"
            ),
        }
    }
}

/// Marks and names the members whose lease ran out.
pub async fn expire(db: &Db) -> Result<Vec<Expired>> {
    Ok(sqlx::query_as("SELECT id, kind, name FROM tasker.expire_members()")
        .fetch_all(db.upkeep())
        .await?)
}

/// Forgets the members that left longer ago than that. Returns how many.
pub(crate) async fn forget(db: &Db, since: Duration) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT tasker.forget_members(make_interval(secs => $1))")
        .bind(since.as_secs_f64())
        .fetch_one(db.upkeep())
        .await?)
}

/// Forgets what workers did so long ago that no rate is of it.
pub(crate) async fn forget_activity(db: &Db) -> Result<()> {
    sqlx::query("SELECT tasker.forget_activity()").execute(db.upkeep()).await?;
    Ok(())
}
