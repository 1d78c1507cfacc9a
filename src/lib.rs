//! tasker
mod backoff;
pub mod cli;
pub mod config;
mod db;
pub mod engine;
mod error;
pub mod health;
pub mod http;
pub mod orchestrator;
pub mod private_postgres;
pub mod telemetry;
pub mod template;
pub mod worker;
pub use db::Db;
pub use error::{Error, ErrorKind, Result};
pub use template::{Priority, Template, TemplateError};
