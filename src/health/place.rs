//! One database that a process works with, and what it said last.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{json, Value};

use super::database::{Away, Database, NO_ANSWER};
use super::fresh::Fresh;
use super::{Joined, PATIENCE};
use crate::config::DEFAULT_SHARD;
use crate::db::{aged, Db};
use crate::engine::fleet;
use crate::engine::repair::Broken;
use crate::engine::shards::Shards;
use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Place {
    /// Its name, where there are several.
    pub(super) shard: Option<String>,
    /// By which its loops are told from the others of the process.
    label: Option<String>,
    pub(super) db: Db,
    /// Those whose queues it works with there; empty: all.
    namespaces: Vec<String>,
    /// What is missing beside this process.
    lacks: Mutex<Vec<String>>,
    database: Arc<Database>,
    ready: Fresh<(Vec<String>, Vec<String>)>,
    schema: Fresh<Option<String>>,
    fleet: Fresh<Result<Value, String>>,
}

impl Place {
    pub(crate) fn new(joined: &Joined) -> Place {
        Place {
            shard: joined.shard.clone(),
            label: joined.label(),
            db: joined.db.clone(),
            namespaces: joined.namespaces.clone(),
            lacks: Mutex::default(),
            database: Arc::default(),
            ready: Fresh::default(),
            schema: Fresh::default(),
            fleet: Fresh::default(),
        }
    }

    /// What is said of it, where it is one of several.
    pub(super) fn said(&self, what: String) -> String {
        match &self.shard {
            Some(shard) => format!("shard {shard}: {what}"),
            None => what,
        }
    }

    /// Its name, where there are several.
    pub(crate) fn shard(&self) -> Option<&str> {
        self.shard.as_deref()
    }

    /// The name of a loop that works with it.
    pub(crate) fn named(&self, name: &str) -> String {
        match &self.label {
            Some(label) => format!("{name} of {label}"),
            None => name.to_owned(),
        }
    }

    /// None: it answers, as far as is known.
    pub(super) async fn away(&self) -> Option<Away> {
        self.database.away(&self.db).await
    }

    /// Why its schema is not what this program needs.
    pub(super) async fn unmigrated(&self) -> Option<String> {
        let ask = || async {
            match self.db.check_schema().await {
                Err(why @ Error::NotMigrated(_)) => Some(why.to_string()),
                _ => None,
            }
        };
        self.schema.get(ask).await
    }

    /// (what is wrong with the database, the queues that cannot be worked with and why)
    pub(super) async fn ready(&self) -> (Vec<String>, Vec<String>) {
        let ask = || async {
            let asking = async {
                self.db.check_writable().await?;
                self.db.check_schema().await?;
                fleet::unreachable_queues(&self.db, &self.namespaces).await
            };
            let wrong = |why: String| (vec![self.said(self.db.refusal().unwrap_or(why))], Vec::new());
            match tokio::time::timeout(PATIENCE, asking).await {
                Ok(Ok(unreachable)) => {
                    let said = |Broken { queue, why }| format!("the queue {queue} cannot be worked with: {why}");
                    (Vec::new(), unreachable.into_iter().map(said).collect())
                }
                Ok(Err(error)) => wrong(error.to_string()),
                Err(_) => wrong(NO_ANSWER.to_owned()),
            }
        };
        self.ready.get(ask).await
    }

    /// The fleet there, as it was within the last second; read where people look, if these are said to be for them.
    pub(super) async fn fleet(&self, for_people: Option<&Shards>) -> Result<Value, String> {
        let ask = || async {
            let asking = async {
                let db = match for_people {
                    Some(shards) => shards.named(self.shard.as_deref().unwrap_or(DEFAULT_SHARD)).await?,
                    None => self.db.clone(),
                };
                fleet::fleet(&db).await
            };
            match aged(tokio::time::timeout(PATIENCE, asking)).await {
                (Ok(Ok(mut fleet)), age) => {
                    fleet["age_seconds"] = json!(age.unwrap_or_default().as_secs_f64());
                    Ok(fleet)
                }
                (Ok(Err(error)), _) => Err(error.to_string()),
                (Err(_), _) => Err(NO_ANSWER.to_owned()),
            }
        };
        self.fleet.get(ask).await
    }

    /// What is missing beside this process; told where it was missing before, too, so that a deployment is not.
    pub(super) fn note_lacks(&self, lacks: Vec<String>, told: &mut bool) {
        let mut known = self.lacks.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = !lacks.is_empty() && !known.is_empty();
        if stays && !*told {
            lacks.iter().for_each(|lack| tracing::warn!("{lack}"));
        }
        if lacks.is_empty() && *told {
            tracing::info!("nothing is missing beside this process any more");
        }
        *told = stays;
        *known = lacks;
    }

    pub(super) fn lacks(&self) -> Vec<String> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
