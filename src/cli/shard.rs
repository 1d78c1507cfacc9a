//! `tasker shard`: the databases that tasks are in.

use clap::Subcommand;
use serde_json::{json, Value};

use super::server::read;
use super::{listing, print, say, Connection};
use crate::engine::shard_check::check_shards;
use crate::engine::shard_move::{self, Moved, Stage};
use crate::engine::shards::{self, Shard as Found};
use crate::error::Result;

#[derive(Subcommand)]
pub(super) enum Shard {
    /// Make the database of a shard of tasker.yml ready: its schema, and ids of tasks that say that they are there. The same as `tasker migrate --shard NAME`
    Add {
        /// As tasker.yml has it under shards
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Look whether each shard is there, is the one that tasker.yml says, and has the tasks of those namespaces alone that live there. It changes nothing
    Check {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Have namespaces live in another shard, while they work: new tasks are created there, and those that are under way end where they are. It may be cut off, and
    /// run again; tasker.yml is changed afterwards (docs/shards.md)
    Move {
        /// Those that live in one shard, and are to live in another; with those that their templates have steps of
        #[arg(required = true)]
        namespaces: Vec<String>,
        /// The shard where they are to live
        #[arg(long)]
        to: String,
        /// Only says what there is to move
        #[arg(long)]
        dry_run: bool,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
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
        match self {
            Shard::Add { name, connection } => {
                let added = Connection {
                    shard: Some(name.clone()),
                    ..connection
                };
                let db = added.migrate().await?;
                say(&format!("{} is the shard {name}", db.target()));
                Ok(0)
            }
            Shard::Check { json, connection } => {
                connection.check_no_server()?;
                let faults = check_shards(&connection.known()?).await;
                print(json, &json!(faults), || match faults.is_empty() {
                    true => "all is as it must be".into(),
                    false => {
                        let rows: Vec<_> = faults.iter().map(|fault| json!(fault)).collect();
                        listing(&["SHARD", "WHAT"], &["shard", "what"], &rows)
                    }
                });
                Ok(i32::from(!faults.is_empty()))
            }
            Shard::Move {
                namespaces,
                to,
                dry_run,
                json,
                connection,
            } => {
                connection.check_no_server()?;
                let shards = connection.known()?;
                let plan = shard_move::plan(&shards, namespaces, &to).await?;
                let moved = match dry_run {
                    true => plan.look().await?,
                    false => plan.run(|part| tracing::info!("{part}")).await?,
                };
                print(json, &json!(moved), || told(&moved, dry_run));
                Ok(0)
            }
            Shard::List { json, connection } => {
                let shards: Vec<Found> = match connection.server()? {
                    None => shards::list(&connection.known()?).await,
                    Some(server) => read(server.whole("/shards", &[])?.into())?,
                };
                print(json, &json!(shards), || table(&shards));
                // Whoever asks is told by the exit code that one of them is away.
                Ok(i32::from(shards.iter().any(|shard| shard.error.is_some())))
            }
        }
    }
}

fn told(moved: &Moved, dry_run: bool) -> String {
    let Moved {
        namespaces,
        from,
        to,
        tasks,
        unfinished,
        versions,
        schedules,
        keys,
        ..
    } = moved;
    let names = namespaces.join(", ");
    let left = format!("{tasks} tasks are in {from}, {unfinished} of which have not ended");
    match moved.stage {
        _ if dry_run => format!("{names}: {versions} versions of templates, {schedules} schedules and {keys} keys would be copied from {from} to {to}; {left}, and would stay"),
        Stage::Ended => format!("{names} lives in {to}: nothing is left in {from}"),
        _ => format!("{names} lives in {to}: {left}, and stay there; let tasker.yml say where it lives, and run this again when they are gone"),
    }
}

fn table(shards: &[Found]) -> String {
    let row = |shard: &Found| {
        let primary = shard.primary.as_ref().or(shard.error.as_ref());
        json!({ "name": shard.name, "number": shard.number, "region": shard.region, "primary": primary, "servers": shard.servers.join(" "),
                "namespaces": shard.namespaces })
    };
    let rows: Vec<Value> = shards.iter().map(row).collect();
    listing(
        &["NAME", "NUMBER", "REGION", "PRIMARY", "SERVERS", "NAMESPACES"],
        &["name", "number", "region", "primary", "servers", "namespaces"],
        &rows,
    )
}
