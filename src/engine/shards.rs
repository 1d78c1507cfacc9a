//! The shards that tasks are in: each is one PostgreSQL, with its primary and those that may become it.

use serde::{Deserialize, Serialize};

use super::namespaces;
use crate::db::Db;
use crate::error::Result;

/// The shard of whoever has configured none.
const DEFAULT: &str = "default";

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    /// Its name.
    pub(crate) name: String,
    /// host:port of each server that the process knows of, the primary among them.
    pub(crate) servers: Vec<String>,
    /// The one that takes writes, as this process found it.
    pub(crate) primary: String,
    /// How many namespaces it has.
    pub(crate) namespaces: usize,
}

/// Every shard.
pub(crate) async fn list(db: &Db) -> Result<Vec<Shard>> {
    let (servers, primary) = db.servers();
    Ok(vec![Shard {
        name: DEFAULT.into(),
        servers,
        primary,
        namespaces: namespaces::list(db).await?.len(),
    }])
}
