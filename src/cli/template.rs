//! `tasker template`: check, register, list, versions, diff, show.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{json, Value};

use super::server::{part, read as read_as, Reach};
use super::{listing, print, say, About, Connection};
use crate::engine::{read, register};
use crate::error::{Error, Result};
use crate::template::difference::{difference, Difference};
use crate::template::Template as Definition;

#[derive(Subcommand)]
pub(super) enum Template {
    /// Validate template files without a database
    Check {
        /// YAML or JSON
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Validate template files and register them as the current versions, also such as were there before: all or, if one is refused by validation, none
    Register {
        /// YAML or JSON
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// One JSON object per file
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the templates in their current versions
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the versions of a template, the newest first
    Versions {
        /// name, or namespace/name
        template: String,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Compare two versions of a template: which steps came, went and changed; exits with 1 if they differ
    Diff {
        /// name, or namespace/name
        template: String,
        /// The earlier one
        from: String,
        /// The later one; default: the current one
        to: Option<String>,
        /// One line instead of many
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show a template's definition
    Show {
        /// name, or namespace/name
        template: String,
        /// Default: the current one
        #[arg(long)]
        version: Option<String>,
        /// One line instead of many
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

impl Template {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Template::Check { files } => {
                for (_, template) in parse_all(&files)? {
                    say(&format!("{}/{}: {} steps", template.namespace, template.name, template.steps.len()));
                }
            }
            Template::Register { files, json, connection } => {
                let templates = parse_all(&files)?;
                for ((source, template), file) in templates.iter().zip(&files) {
                    let registered = match connection.reach_of(About::Definition(template)).await? {
                        Reach::Database(db) => register::register(&db, template).await?,
                        Reach::Server(server) => read_as(server.post("/templates", json!({ "source": source, "origin": file }))?)?,
                    };
                    let value = json!({ "namespace": template.namespace, "name": template.name, "version": registered.version, "created": registered.created });
                    print(json, &value, || {
                        let new = if registered.created { "registered" } else { "unchanged" };
                        format!("{}/{} version {}: {new}", template.namespace, template.name, registered.version)
                    });
                }
            }
            Template::List { json, connection } => {
                let templates = match connection.reach()? {
                    Reach::Database(shards) => shards.list(|db| async move { read::list_templates(&db).await }).await?,
                    Reach::Server(server) => server.all("/templates", &[])?,
                };
                print(json, &json!(templates), || {
                    listing(
                        &["NAMESPACE", "NAME", "VERSION", "STEPS", "VERSIONS"],
                        &["namespace", "name", "version", "steps", "versions"],
                        &templates,
                    )
                });
            }
            Template::Versions {
                template,
                json,
                connection,
            } => {
                let versions = match connection.reach_of(About::Template(&template)).await? {
                    Reach::Database(db) => read::list_template_versions(&db, &template).await?,
                    Reach::Server(server) => server.whole(&format!("{}/versions", path(&template)?), &[])?,
                };
                print(json, &json!(versions), || {
                    listing(
                        &["VERSION", "REGISTERED", "CURRENT", "STEPS"],
                        &["version", "registered_at", "current", "steps"],
                        &versions,
                    )
                });
            }
            Template::Diff {
                template,
                from,
                to,
                json,
                connection,
            } => {
                let reach = connection.reach_of(About::Template(&template)).await?;
                let from = definition(&reach, &template, Some(&from)).await?;
                let to = definition(&reach, &template, to.as_deref()).await?;
                let found = difference(&from, &to);
                print(json, &json!(found), || format!("{:#}", json!(found)));
                return Ok(i32::from(found != Difference::default()));
            }
            Template::Show {
                template,
                version,
                json,
                connection,
            } => {
                let definition = definition(
                    &connection.reach_of(About::Template(&template)).await?,
                    &template,
                    version.as_deref(),
                )
                .await?;
                print(json, &definition, || format!("{definition:#}"));
            }
        }
        Ok(0)
    }
}

async fn definition(reach: &Reach, template: &str, version: Option<&str>) -> Result<Value> {
    match reach {
        Reach::Database(db) => read::read_template(db, template, version).await,
        Reach::Server(server) => server.get(&path(template)?, &[("version", json!(version))]),
    }
}

/// Of a template in the API. Errors: [`Error::Invalid`] for a name without its namespace.
fn path(template: &str) -> Result<String> {
    let whole = || Error::Invalid(format!("{template}: expected namespace/name, with --server"));
    let (namespace, name) = template.split_once('/').ok_or_else(whole)?;
    Ok(format!("/templates/{}/{}", part(namespace), part(name)))
}

/// The text of each, and what it says.
fn parse_all(files: &[PathBuf]) -> Result<Vec<(String, Definition)>> {
    let parse = |file: &PathBuf| {
        let source = std::fs::read_to_string(file).map_err(|source| Error::System {
            what: file.display().to_string(),
            source,
        })?;
        let template = Definition::parse(&source, &file.display().to_string())?;
        Ok((source, template))
    };
    files.iter().map(parse).collect()
}
