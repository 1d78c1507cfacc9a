//! `tasker check`: whether the database is as the engine leaves it.

use clap::Args;
use serde_json::json;

use super::{listing, print, Connection};
use crate::engine::check::{find_faults, Fault};
use crate::error::Result;

#[derive(Args)]
pub(super) struct Check {
    /// A JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Check {
    /// 1: something is not as it must be.
    pub(super) async fn run(self) -> Result<i32> {
        let shards = self.connection.all()?;
        let mut faults: Vec<Fault> = Vec::new();
        for db in shards.of_filter(None).await? {
            find_faults(&db, |found| faults.extend(found)).await?;
        }
        print(self.json, &json!(faults), || match faults.is_empty() {
            true => "all is as it must be".into(),
            false => {
                let rows: Vec<_> = faults.iter().map(|fault| json!(fault)).collect();
                let columns = ["what", "task", "step", "queue", "message"];
                listing(&["WHAT", "TASK", "STEP", "QUEUE", "MESSAGE"], &columns, &rows)
            }
        });
        Ok(i32::from(!faults.is_empty()))
    }
}
