//! `tasker api`: what the API can do.

use clap::Subcommand;

use super::say;
use crate::api::document;
use crate::error::Result;

#[derive(Subcommand)]
pub(super) enum Api {
    /// Print the API's OpenAPI 3.1 document
    Schema,
}

impl Api {
    pub(super) fn run(self) -> Result<i32> {
        let Api::Schema = self;
        say(&document().to_pretty_json().unwrap_or_default());
        Ok(0)
    }
}
