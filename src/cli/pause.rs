//! `tasker pause`, `tasker resume`, `tasker pauses`.

use clap::Args;
use serde_json::json;

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
        let paused = pauses::pause(&connection.open().await?, what.kind, &what.name, &by.recorded()).await?;
        say(&format!("{}: {}", what.name, if paused { "paused" } else { "was paused already" }));
        Ok(0)
    }
}

impl Resume {
    pub(super) async fn run(self) -> Result<i32> {
        let resumed = pauses::resume(&self.connection.open().await?, self.what.kind, &self.what.name).await?;
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
        let listed = pauses::list(&self.connection.open().await?).await?;
        let columns = ["kind", "name", "who", "why", "since", "held"];
        print(self.json, &json!(listed), || {
            listing(&["KIND", "NAME", "BY", "WHY", "SINCE", "STEPS HELD BACK"], &columns, &listed)
        });
        Ok(0)
    }
}
