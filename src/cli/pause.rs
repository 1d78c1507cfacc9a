//! `tasker pause`, `tasker resume`, `tasker pauses`.

use clap::Args;
use serde_json::json;

use super::server::Reach;
use super::{listing, print, say, By, Connection};
use crate::engine::pauses::{self, Pausable};
use crate::error::Result;

#[derive(Args)]
pub(super) struct Pause {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub(super) struct Resume {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
struct What {
    /// task, template, namespace or handler
    kind: Pausable,
    /// The task's id, a template (namespace/name), a namespace, or a handler (namespace/handler)
    name: String,
}

#[derive(Args)]
pub(super) struct Pauses {
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Pause {
    pub(super) async fn run(self) -> Result<i32> {
        let Pause { what, by, connection } = self;
        let paused = match connection.reach()? {
            Reach::Database(shards) => {
                pauses::pause(
                    &pauses::home_of(&shards, what.kind, &what.name).await?,
                    what.kind,
                    &what.name,
                    &by.recorded(),
                )
                .await?
            }
            Reach::Server(server) => {
                server.post("/pauses", json!({ "kind": what.kind, "name": what.name, "why": by.why }))?["done"] == true
            }
        };
        say(&format!("{}: {}", what.name, if paused { "paused" } else { "was paused already" }));
        Ok(0)
    }
}

impl Resume {
    pub(super) async fn run(self) -> Result<i32> {
        let What { kind, name } = &self.what;
        let resumed = match self.connection.reach()? {
            Reach::Database(shards) => pauses::resume(&pauses::home_of(&shards, *kind, name).await?, *kind, name).await?,
            Reach::Server(server) => server.post("/pauses/resume", json!({ "kind": kind, "name": name }))?["done"] == true,
        };
        say(&format!(
            "{}: {}",
            self.what.name,
            if resumed { "goes on" } else { "was not paused" }
        ));
        Ok(0)
    }
}

impl Pauses {
    pub(super) async fn run(self) -> Result<i32> {
        let listed = match self.connection.reach()? {
            Reach::Database(shards) => shards.list(|db| async move { pauses::list(&db).await }).await?,
            Reach::Server(server) => server.all("/pauses", &[])?,
        };
        let columns = ["kind", "name", "who", "why", "since", "held"];
        print(self.json, &json!(listed), || {
            listing(&["KIND", "NAME", "BY", "WHY", "SINCE", "STEPS HELD BACK"], &columns, &listed)
        });
        Ok(0)
    }
}
