//! `tasker migrate`: the schema, and the roles that may do parts of what its owner may.

use clap::Args;

use super::{say, Connection};
use crate::error::Result;

#[derive(Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    connection: Connection,
    /// Make the roles tasker_submit, tasker_worker, tasker_read and tasker_operate, to be granted to those that log in
    #[arg(long)]
    roles: bool,
    /// Make a role for the workers of this namespace, too: tasker_worker_of_<NAMESPACE>
    #[arg(long = "worker", value_name = "NAMESPACE", value_delimiter = ',', requires = "roles")]
    workers: Vec<String>,
}

impl Migrate {
    pub(super) async fn run(self) -> Result<i32> {
        let db = self.connection.migrate().await?;
        say(&format!("migrated {}", db.target()));
        if self.roles {
            for role in db.make_roles(&self.workers).await? {
                say(&format!("role {role}"));
            }
        }
        Ok(0)
    }
}
