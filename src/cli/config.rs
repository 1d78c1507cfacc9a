//! `tasker config`: what is in force and where it comes from; what is wrong in a file; what a fleet shares, with its history.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{json, Value};

use super::server::{read, Reach, Server};
use super::{listing, print, say, table, By, Connection};
use crate::config::distributed::{self, Place, Version};
use crate::config::{self, drift, overrides, schema, Effective, Problem};
use crate::engine::configuration::coordinator_of;
use crate::engine::{fleet, limits};
use crate::error::{Error, Result};

#[derive(Subcommand)]
pub(super) enum Config {
    /// Show the settings that a process has, started here; with --server by what is set there for running processes
    Show {
        /// And where each comes from
        #[arg(long)]
        origin: bool,
        /// Settings; default: TASKER_CONFIG, or config/tasker.yml, or tasker.yml, if there is one
        #[arg(long)]
        config: Option<PathBuf>,
        /// A JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Say everything that is wrong in a tasker.yml; exits with 1 if anything is
    Check {
        /// The file
        file: PathBuf,
    },
    /// Print the JSON Schema of tasker.yml, for editors
    Schema,
    /// Print the table of all settings, in Markdown
    Reference,
    /// Change a setting of all processes, or of those of --namespace or --instance, while they run
    Set {
        /// Such as orchestrator.batch; of a namespace such as max_attempts
        setting: String,
        /// Such as 100, 30s, or { concurrency: 5 }: YAML
        value: String,
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        connection: Connection,
    },
    /// Take a setting back, so that what is farther counts again
    Unset {
        /// Such as orchestrator.batch
        setting: String,
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        connection: Connection,
    },
    /// Put a file (YAML or JSON) in place of all that was set for running processes
    Apply {
        /// The file: settings, namespace_defaults, namespaces, instances
        file: PathBuf,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        connection: Connection,
    },
    /// Put an earlier version in place of the newest
    Rollback {
        /// Its number
        version: i64,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show who changed what, and why, the newest first
    History {
        /// How many versions
        #[arg(long, default_value_t = 20)]
        limit: i64,
        /// A JSON array, with all of each version
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Name the members whose settings differ from those of others like them; exits with 1 if there are any
    Drift {
        /// How many seconds they may differ, as in a rolling deployment
        #[arg(long, default_value_t = drift::GRACE.as_secs())]
        grace: u64,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Whose setting; without either, everybody's.
#[derive(Args)]
pub(super) struct Of {
    /// This namespace's rules; * for all that have none of their own
    #[arg(long, conflicts_with = "instance")]
    namespace: Option<String>,
    /// The process with this ORCHESTRATOR_ID, or on this host
    #[arg(long)]
    instance: Option<String>,
}

impl Of {
    fn place(&self) -> Place<'_> {
        match (self.namespace.as_deref(), self.instance.as_deref()) {
            (Some(namespace), _) => Place::Namespace(namespace),
            (_, Some(instance)) => Place::Instance(instance),
            _ => Place::Everywhere,
        }
    }

    async fn set(&self, setting: &str, value: &Value, by: By, connection: &Connection) -> Result<i32> {
        if let Some(server) = connection.server()? {
            let of = json!({ "setting": setting, "namespace": self.namespace, "instance": self.instance, "why": by.why });
            return of_server(&server, "set", of, ("value", value));
        }
        change(connection, by, |overrides| {
            distributed::set(overrides, &self.place().path(setting), value.clone());
            Ok(())
        })
        .await
    }
}

impl Config {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Config::Show {
                origin,
                config,
                json,
                connection,
            } => {
                let effective = effective(config, &connection).await?;
                if let Some(why) = &effective.fallback {
                    eprintln!("tasker: {why}");
                }
                show(&effective, origin, json);
                Ok(0)
            }
            Config::Check { file } => {
                let found = config::check_file(&config::read_source(&file)?);
                found.iter().for_each(|problem| say(&placed(&file, problem)));
                Ok(i32::from(!found.is_empty()))
            }
            Config::Schema => {
                say(&serde_json::to_string_pretty(&schema::file()).unwrap_or_default());
                Ok(0)
            }
            Config::Reference => {
                say(schema::reference().trim_end());
                Ok(0)
            }
            Config::Set {
                setting,
                value,
                of,
                by,
                connection,
            } => of.set(&setting, &overrides::value(&value), by, &connection).await,
            Config::Unset {
                setting,
                of,
                by,
                connection,
            } => of.set(&setting, &Value::Null, by, &connection).await,
            Config::Apply { file, by, connection } => {
                let applied = distributed::read_overrides(&config::read_source(&file)?).map_err(|found| {
                    let found: Vec<String> = found.iter().map(|problem| placed(&file, problem)).collect();
                    Error::Config(found.join("\n"))
                })?;
                if let Some(server) = connection.server()? {
                    return of_server(&server, "apply", json!({ "why": by.why }), ("overrides", &applied));
                }
                change(&connection, by, |overrides| {
                    *overrides = applied.clone();
                    Ok(())
                })
                .await
            }
            Config::Rollback { version, by, connection } => {
                if let Some(server) = connection.server()? {
                    return of_server(&server, "rollback", json!({ "why": by.why }), ("version", &json!(version)));
                }
                let coordinator = connection.coordinator().await?;
                let earlier = distributed::earlier(&*coordinator, version).await?;
                change(&connection, by, |overrides| {
                    *overrides = earlier.clone();
                    Ok(())
                })
                .await
            }
            Config::History { limit, json, connection } => {
                let history: Vec<Version> = match connection.server()? {
                    Some(server) => {
                        read(server.get("/configuration/versions", &[("limit", json!(limit.clamp(1, 1_000)))])?["items"].take())?
                    }
                    None => connection.coordinator().await?.history(limit).await?,
                };
                let rows: Vec<Value> = history.iter().map(|version| json!(version)).collect();
                print(json, &json!(rows), || {
                    listing(&["VERSION", "AT", "WHO", "WHY"], &["version", "at", "who", "why"], &rows)
                });
                Ok(0)
            }
            Config::Drift { grace, json, connection } => {
                let found = match connection.reach()? {
                    Reach::Database(shards) => {
                        let fleet = fleet::overview_of_all(&shards).await?;
                        let members = fleet["members"].as_array().map_or(&[][..], Vec::as_slice);
                        drift::drift(members, std::time::Duration::from_secs(grace))
                    }
                    Reach::Server(server) => read(server.get("/configuration/drift", &[("grace", json!(grace))])?["items"].take())?,
                };
                print(json, &json!(found), || differences(&found));
                Ok(i32::from(!found.is_empty()))
            }
        }
    }
}

/// What a process has that is started here: with what the coordinator has, if that can be asked.
async fn effective(file: Option<PathBuf>, connection: &Connection) -> Result<Effective> {
    let local = connection.local(file, json!({}))?;
    let newest = async {
        match connection.server()? {
            Some(server) => read(server.get("/configuration", &[])?),
            None => coordinator_of(&connection.shards(&local, 4)?).await?.get().await,
        }
    };
    match newest.await {
        Ok(newest) => local.with(newest.version, &newest.overrides),
        Err(error) => Ok(local
            .with(0, &json!({}))?
            .for_want_of_better(format!("without what is set for running processes: {error}"))),
    }
}

fn show(effective: &Effective, origin: bool, json: bool) {
    let values = effective.values();
    let told: serde_json::Map<String, Value> = values
        .iter()
        .map(|(path, (value, from))| {
            let told = if origin {
                json!({ "value": value, "origin": from })
            } else {
                value.clone()
            };
            (path.clone(), told)
        })
        .collect();
    print(json, &json!(told), || {
        let rows: Vec<Vec<String>> = values
            .into_iter()
            .map(|(path, (value, from))| {
                let row = [path, text(&value)].into_iter();
                row.chain(origin.then_some(from)).collect()
            })
            .collect();
        match origin {
            true => table(&["SETTING", "VALUE", "FROM"], &rows),
            false => table(&["SETTING", "VALUE"], &rows),
        }
    });
}

/// The same by an API: a field of the body may be null.
fn of_server(server: &Server, verb: &str, mut body: Value, (name, value): (&str, &Value)) -> Result<i32> {
    body[name] = value.clone();
    let version = server.post(&format!("/configuration/{verb}"), body)?;
    say(&format!("version {}: {}", version["version"], version["overrides"]));
    Ok(0)
}

/// Changes what all share, and says what is in force now.
async fn change(connection: &Connection, by: By, edit: impl Fn(&mut Value) -> Result<()>) -> Result<i32> {
    let coordinator = connection.coordinator().await?;
    let Version { version, overrides, .. } = distributed::change(&*coordinator, &by.author(), edit).await?;
    say(&format!("version {version}: {overrides}"));
    let shards = connection.all()?;
    let limits = shards.list(|db| async move { limits::list(&db).await }).await?;
    for limit in limits.iter().filter(|limit| limit["concerns"] == 0) {
        let name = |of: &str| limit[of].as_str().unwrap_or_default();
        eprintln!(
            "tasker: the limit {} of {} concerns no step of a template that is registered there",
            name("name"),
            name("namespace")
        );
    }
    Ok(0)
}

fn differences(found: &[drift::Drift]) -> String {
    if found.is_empty() {
        return "none".into();
    }
    let mut rows = Vec::new();
    for member in found {
        let mut row = |key: &str, own: String, usual: String| {
            let since = format!("{:.0} s", member.seconds);
            rows.push(vec![member.kind.clone(), member.name.clone(), since, key.to_owned(), own, usual]);
        };
        if let Some(why) = &member.fallback {
            row("-", why.clone(), "-".into());
        }
        for (key, (own, usual)) in &member.keys {
            row(key, text(own), text(usual));
        }
    }
    table(&["KIND", "NAME", "FOR", "SETTING", "ITS OWN", "OTHERS\'"], &rows)
}

fn placed(file: &Path, problem: &Problem) -> String {
    format!("{}:{}: {problem}", file.display(), problem.line)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
