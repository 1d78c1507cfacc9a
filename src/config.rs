//! Where settings come from: a flag, else the environment, else what `tasker dev` left in this folder.

use std::path::Path;

use crate::error::{Error, Result};

/// Where `tasker dev` keeps its database, relative to the working folder.
pub const DEV_FOLDER: &str = ".tasker";

/// The database to use: `given` (a flag or DATABASE_URL, which may be empty), or the private one of `tasker dev`.
///
/// Errors: [`Error::Config`] when there is neither.
pub fn database_url(given: Option<&str>) -> Result<String> {
    if let Some(url) = given.map(str::trim).filter(|url| !url.is_empty()) {
        return Ok(url.to_owned());
    }
    match std::fs::read_to_string(Path::new(DEV_FOLDER).join("database_url")) {
        Ok(url) => Ok(url.trim().to_owned()),
        Err(_) => Err(Error::Config(
            "no database is configured: set DATABASE_URL, or start a private one with `tasker dev`".into(),
        )),
    }
}
