//! `tasker dev`: everything a developer needs, from the PostgreSQL binaries that are installed.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::serve::{self, Options};
use super::{say, Connection};
use crate::config::DEV_FOLDER;
use crate::db::Db;
use crate::engine::shards::Shards;
use crate::error::Result;
use crate::private_postgres::PrivatePostgres;

#[derive(Args)]
pub(super) struct Dev {
    /// Where the private PostgreSQL lives
    #[arg(long, default_value = DEV_FOLDER, global = true)]
    folder: PathBuf,
    #[command(subcommand)]
    only: Option<Only>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Only {
    /// Start only the private PostgreSQL, in the background, migrated, and print its URL
    StartDatabase,
    /// Stop the private PostgreSQL
    StopDatabase,
}

impl Dev {
    pub(super) async fn run(self) -> Result<i32> {
        let postgres = PrivatePostgres::in_folder(&self.folder)?;
        match self.only {
            Some(Only::StartDatabase) => {
                let url = postgres.start().await?;
                Db::connect(&url, 4).await?.migrate().await?;
                say(&url);
                Ok(0)
            }
            Some(Only::StopDatabase) => {
                postgres.stop()?;
                Ok(0)
            }
            None => {
                let local = self.options.local(&Connection::default())?;
                let settings = local.with(0, &json!({}))?.settings;
                let doors = serve::Doors::bind(&settings).await?;
                let was_running = postgres.is_running();
                let url = postgres.start().await?;
                let shards = Shards::new(url.clone(), settings.connections, settings.of_one());
                shards.home().await?.migrate().await?;
                say(&format!(
                    "PostgreSQL: {url}\nCtrl-C stops everything; the data stays in {}",
                    self.folder.display()
                ));
                let served = serve::serve(&shards, doors, local).await;
                if !was_running {
                    postgres.stop()?;
                }
                served
            }
        }
    }
}
