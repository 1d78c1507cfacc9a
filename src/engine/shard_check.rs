//! What is not as tasker.yml says of the shards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::configuration::DatabaseCoordinator;
use super::namespaces;
use super::read::{self, TaskFilter};
use super::shards::Shards;
use crate::config::distributed::ConfigurationCoordinator;
use crate::config::DEFAULT_SHARD;
use crate::db::Db;
use crate::error::{Error, Result};

/// What is not as it must be with a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardFault {
    /// Its name.
    pub(crate) shard: String,
    /// In words.
    pub(crate) what: String,
}

/// Looks whether each shard is there, is the one that tasker.yml says, has the configuration that all share, and tasks of those namespaces alone that live
/// there. Nothing is changed.
pub(crate) async fn check_shards(shards: &Shards) -> Vec<ShardFault> {
    let (mut faults, mut installed) = (Vec::new(), BTreeMap::<String, &str>::new());
    let shared = match shards.named(DEFAULT_SHARD).await {
        Ok(db) => configuration(&db).await.ok(),
        Err(_) => None,
    };
    for name in shards.names() {
        // One that is away says so below.
        shards.moves(name).await.ok();
    }
    for name in shards.names() {
        let mut wrong = |what: String| {
            faults.push(ShardFault {
                shard: name.to_owned(),
                what,
            });
        };
        let looking = async {
            let db = shards.named(name).await?;
            db.check_schema().await?;
            let installation = read::installation(&db).await?;
            if let Some(other) = installed.insert(installation, name) {
                wrong(format!("it is the same database as {other}"));
            }
            if shared.is_some() && configuration(&db).await.ok() != shared {
                wrong("its copy of the configuration is an old one: nobody works with it, or the default shard was away".into());
            }
            for namespace in namespaces::list(&db).await? {
                let namespace = namespace["name"].as_str().unwrap_or_default();
                let home = shards.home_of(namespace);
                let of = TaskFilter {
                    namespace: Some(namespace.to_owned()),
                    ..TaskFilter::default()
                };
                let listed = shards.settings().home_of(namespace);
                if home == name && listed != name {
                    wrong(format!(
                        "{namespace} has moved here, and tasker.yml has it live in {listed}: let it say so under shards"
                    ));
                }
                let knows = home == name || shards.others_of(namespace).contains(name);
                if !knows && !read::page_of_tasks(&db, &of, 1).await?.tasks.is_empty() {
                    wrong(format!(
                        "it has tasks of {namespace}, which lives in {home}: nobody works on them, but for processes with --shard {name}"
                    ));
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = looking.await {
            wrong(error.to_string());
        }
    }
    faults
}

async fn configuration(db: &Db) -> Result<Value> {
    Ok(DatabaseCoordinator::new(db).get().await?.overrides)
}
