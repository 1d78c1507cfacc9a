//! Which database, or which API, a command is about.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{json, Value};
use uuid::Uuid;

use super::server::{Reach, Server};
use super::EMBEDDING;
use crate::config::distributed::ConfigurationCoordinator;
use crate::config::{database_url, Given, Local, Secret};
use crate::db::Db;
use crate::engine::configuration::coordinator_of;
use crate::engine::shards::Shards;
use crate::error::{Error, Result};
use crate::template::Template;

/// What a command is about, by which its shard is known.
#[derive(Clone, Copy)]
pub(super) enum About<'n> {
    /// What every shard has.
    Any,
    Task(Uuid),
    /// A name, or namespace/name.
    Template(&'n str),
    Namespace(&'n str),
    /// Namespace/number.
    Letter(&'n str),
    /// What is to be registered.
    Definition(&'n Template),
}

/// Which database.
#[derive(Args, Clone, Default)]
pub(super) struct Connection {
    /// postgres://user:password@host:port/database; default: DATABASE_URL, or tasker.yml, or the private one of `tasker dev`, if it runs
    #[arg(long, global = true)]
    pub(super) database_url: Option<String>,
    /// Works with this one of the databases that tasker.yml names under shards; default: the one of the task, the template or the namespace that the command is about
    #[arg(long, global = true, conflicts_with = "database_url")]
    pub(super) shard: Option<String>,
    /// Asks the API of a `tasker serve` there, in place of the database: http://host:port or https://host; SSL_CERT_FILE names the certificates that are trusted
    #[arg(long, global = true, env = "TASKER_SERVER")]
    pub(super) server: Option<String>,
    /// By which the API knows who asks
    #[arg(long, global = true, env = "TASKER_TOKEN", hide_env_values = true)]
    pub(super) token: Option<String>,
}

impl Connection {
    /// Where this command finds what it is about: in all shards.
    pub(super) fn reach(&self) -> Result<Reach<Shards>> {
        match self.server()? {
            Some(server) => Ok(Reach::Server(server)),
            None => Ok(Reach::Database(Box::new(self.all()?))),
        }
    }

    /// The same for a command that is about something of one shard.
    pub(super) async fn reach_of(&self, what: About<'_>) -> Result<Reach> {
        match self.server()? {
            Some(server) => Ok(Reach::Server(server)),
            None => Ok(Reach::Database(Box::new(self.open_of(what).await?))),
        }
    }

    pub(super) async fn open_of(&self, what: About<'_>) -> Result<Db> {
        self.check_no_server()?;
        let shards = self.known()?;
        let db = match what {
            About::Any => shards.home().await?,
            _ if self.database_url.is_some() || shards.settings().shard.is_some() => shards.home().await?,
            About::Task(task) => shards.of_task(task).await?,
            About::Template(template) => shards.of_template(template).await?,
            About::Namespace(namespace) => shards.of_namespace(namespace).await?,
            About::Letter(letter) => shards.of_letter(letter).await?,
            About::Definition(template) => shards.of_definition(template).await?,
        };
        Ok(db.for_people())
    }

    /// Brings the schema up to date, and has the ids of a shard's tasks say so.
    pub(super) async fn migrate(&self) -> Result<Db> {
        self.check_no_server()?;
        let shards = self.known()?;
        match &shards.settings().shard {
            Some(name) => shards.add(name).await,
            None => {
                let db = shards.home().await?;
                db.migrate().await?;
                Ok(db)
            }
        }
    }

    /// The API that it asks in place of the database.
    pub(super) fn server(&self) -> Result<Option<Server>> {
        let server = self
            .server
            .as_deref()
            .filter(|_| self.database_url.is_none() && self.shard.is_none());
        let server = server.map(|url| Server::new(url, self.token.as_deref()));
        server.transpose()
    }

    pub(super) fn check_no_server(&self) -> Result<()> {
        match self.server()? {
            None => Ok(()),
            Some(_) => Err(Error::Config(
                "this command works with the database itself, and not with --server (TASKER_SERVER)".into(),
            )),
        }
    }

    /// What this process is told where it runs, and by these flags.
    pub(super) fn local(&self, file: Option<PathBuf>, mut flags: Value) -> Result<Local> {
        if let Some(url) = &self.database_url {
            flags["database_url"] = json!(url);
        }
        if let Some(shard) = &self.shard {
            flags["shard"] = json!(shard);
        }
        let given = Given {
            settings: EMBEDDING.get().filter(|_| file.is_none()).cloned(),
            file,
            flags,
        };
        Local::read(given)
    }

    /// Where the configuration is kept that all share.
    pub(super) async fn coordinator(&self) -> Result<Arc<dyn ConfigurationCoordinator>> {
        coordinator_of(&self.known()?).await
    }

    /// All databases, or that one which is said, as people look at them.
    pub(super) fn all(&self) -> Result<Shards> {
        self.check_no_server()?;
        let shards = self.known()?;
        Ok(shards.for_people(shards.settings()))
    }

    /// The shards that it knows of.
    pub(super) fn known(&self) -> Result<Shards> {
        self.shards(&self.local(None, json!({}))?, 4)
    }

    pub(super) fn shards(&self, local: &Local, connections: u32) -> Result<Shards> {
        let mut settings = local.with(0, &json!({}))?.settings;
        if self.database_url.is_some() {
            settings = settings.of_one();
        }
        let url = database_url(settings.database_url.as_ref().map(Secret::reveal))?;
        Ok(Shards::new(url, connections, settings))
    }
}
