//! `tasker shard`: the databases that tasks are in.

use clap::Subcommand;
use serde_json::{json, Value};

use super::server::{read, Reach};
use super::{listing, print, Connection};
use crate::engine::shards;
use crate::error::Result;

#[derive(Subcommand)]
pub(super) enum Shard {
    /// List the shards: the servers that each may be on, and which of them is the primary now
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

impl Shard {
    pub(super) async fn run(self) -> Result<i32> {
        let Shard::List { json, connection } = self;
        let shards: Vec<shards::Shard> = match connection.reach().await? {
            Reach::Database(db) => shards::list(&db).await?,
            Reach::Server(server) => read(server.whole("/shards", &[])?.into())?,
        };
        print(json, &json!(shards), || {
            let row = |shard: &shards::Shard| json!({ "name": shard.name, "primary": shard.primary, "servers": shard.servers.join(" "), "namespaces": shard.namespaces });
            let rows: Vec<Value> = shards.iter().map(row).collect();
            listing(
                &["NAME", "PRIMARY", "SERVERS", "NAMESPACES"],
                &["name", "primary", "servers", "namespaces"],
                &rows,
            )
        });
        Ok(0)
    }
}
