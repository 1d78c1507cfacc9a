//! The shards that tasks are in: each is one PostgreSQL, with its primary and those that may become it, and has whole namespaces. The id of a task says which.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::namespaces;
use super::submit::Submitter;
use crate::config::{DirectConfig, ReplicaConfig, Settings, ShardConfig, DEFAULT_SHARD, DEFAULT_SHARD_NUMBER};
use crate::db::Db;
use crate::error::{Error, Result};

/// Where the tasks of whole namespaces are. Each database is connected to when it is first asked for, so that one that is away troubles nobody else. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shards {
    pub(super) all: Arc<All>,
    /// The one in which this process works, where that is said.
    own: Option<String>,
}

#[derive(Debug)]
pub(super) struct All {
    /// Of the default one.
    url: String,
    /// To each of them at most.
    connections: u32,
    settings: Settings,
    open: BTreeMap<String, OnceCell<Open>>,
    /// Those whose databases these are through other connections.
    beside: Option<Shards>,
    /// Those that did not answer when all were asked: when, and why.
    away: Mutex<BTreeMap<String, (Instant, String)>>,
    /// Where namespaces live that tasker.yml has elsewhere.
    pub(super) moved: Arc<Mutex<Moved>>,
}

/// What the databases have said of namespaces that move: see homes.rs.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Of a namespace, or of a template's bare name behind a slash.
    pub(super) homes: BTreeMap<String, i32>,
    /// Of a namespace, as each shard has it.
    pub(super) others: BTreeMap<(String, String), i32>,
    /// When each shard was asked.
    pub(super) asked: BTreeMap<String, Instant>,
}

#[derive(Debug)]
pub(super) struct Open {
    db: Db,
    pub(super) submitter: Submitter,
}

/// The shard whose tasks have ids like this one: its bits 52 to 63, which are `rand_a` of UUIDv7 (`tasker.uuidv7`).
pub fn number_of(task: Uuid) -> u16 {
    let bytes = task.as_bytes();
    u16::from_be_bytes([bytes[6], bytes[7]]) & 0x0fff
}

/// Those of each shard together.
pub fn by_shard(tasks: Vec<Uuid>) -> Vec<Vec<Uuid>> {
    let mut shards = BTreeMap::<u16, Vec<Uuid>>::new();
    for task in tasks {
        shards.entry(number_of(task)).or_default().push(task);
    }
    shards.into_values().collect()
}

impl Shards {
    /// Those of the settings, beside the default one at `url`.
    pub fn new(url: String, connections: u32, settings: Settings) -> Shards {
        Shards::beside(None, url, connections, settings)
    }

    fn beside(others: Option<Shards>, url: String, connections: u32, settings: Settings) -> Shards {
        let names = settings.shards.keys().map(String::as_str).chain([DEFAULT_SHARD]);
        let open = names.map(|name| (name.to_owned(), OnceCell::new())).collect();
        Shards {
            own: settings.shard.clone(),
            all: Arc::new(All {
                url,
                connections,
                open,
                settings,
                moved: others.as_ref().map(|others| others.all.moved.clone()).unwrap_or_default(),
                beside: others,
                away: Mutex::default(),
            }),
        }
    }

    /// The same as a process with these settings works with them.
    pub fn of_process(&self, settings: &Settings) -> Shards {
        Shards {
            own: settings.shard.clone(),
            ..self.clone()
        }
    }

    /// The shards in which this process is to work ([`Settings::shards_of`]).
    pub(crate) fn shards_of(&self, namespaces: &[String]) -> BTreeMap<String, Vec<String>> {
        let settings = Settings {
            shard: self.own.clone(),
            ..self.all.settings.clone()
        };
        settings.shards_of(namespaces)
    }

    /// The only one, which is this.
    pub fn of(db: &Db) -> Shards {
        let shards = Shards::new(String::new(), 0, Settings::default());
        let open = Open {
            db: db.clone(),
            submitter: Submitter::new(db.clone()),
        };
        if let Some(cell) = shards.all.open.get(DEFAULT_SHARD) {
            cell.set(open).ok();
        }
        shards
    }

    /// The same through connections of their own, as these settings have it for what people look at: from replicas, where there are some that are not
    /// too far behind.
    pub fn for_people(&self, settings: &Settings) -> Shards {
        let settings = Settings {
            shards: self.all.settings.shards.clone(),
            ..settings.clone()
        };
        Shards::beside(Some(self.clone()), String::new(), settings.api.connections, settings)
    }

    pub(super) fn lock_away(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, String)>> {
        self.all.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of all of them, the default one first; or of the one in which this process works.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let others = self.all.settings.shards.keys().map(String::as_str);
        let all = [DEFAULT_SHARD].into_iter().chain(others);
        all.filter(|name| self.own.as_deref().is_none_or(|own| own == *name))
    }

    /// What the ids of a shard's tasks say. Errors: [`Error::Config`] for an unknown one.
    pub(crate) fn number_of(&self, name: &str) -> Result<u16> {
        self.cell(name)?;
        Ok(self
            .all
            .settings
            .shards
            .get(name)
            .map_or(DEFAULT_SHARD_NUMBER, |shard| shard.number))
    }

    /// Which of all it is, from 0.
    pub(crate) fn index_of(&self, name: &str) -> usize {
        self.all.open.keys().position(|of| of == name).unwrap_or_default()
    }

    /// How many there are, wherever this process works.
    pub(crate) fn count(&self) -> usize {
        self.all.open.len()
    }

    /// Whether they are more than one.
    pub fn are_several(&self) -> bool {
        self.names().count() > 1
    }

    /// Whether there are others beside the default one, wherever this process works.
    pub(crate) fn are_named(&self) -> bool {
        !self.all.settings.shards.is_empty()
    }

    /// Those that are connected to, with their names.
    pub(crate) fn opened(&self) -> impl Iterator<Item = (&str, &Db)> {
        self.all
            .open
            .iter()
            .filter_map(|(name, open)| Some((name.as_str(), &open.get()?.db)))
    }

    /// Their settings.
    pub fn settings(&self) -> &Settings {
        &self.all.settings
    }

    /// The one of this name. Errors: [`Error::Config`] for an unknown one, and for a database that is not that shard; those of [`Db::connect`].
    pub async fn named(&self, name: &str) -> Result<Db> {
        Ok(self.open(name).await?.db.clone())
    }

    /// The one that this process is to work with: that of the setting `shard`, or the default one.
    pub async fn home(&self) -> Result<Db> {
        self.named(self.own.as_deref().unwrap_or(DEFAULT_SHARD)).await
    }

    /// The one that has a task. Errors: those of [`Shards::named`], [`Error::NotFound`] where none has its number.
    pub async fn of_task(&self, task: Uuid) -> Result<Db> {
        let number = number_of(task);
        match self.name_of(i32::from(number)) {
            Some(name) => self.named(name).await,
            // Where there is but one, also of an id that is none of ours, or of a time before ids said so.
            None if !self.are_named() => self.named(DEFAULT_SHARD).await,
            None => Err(Error::NotFound(format!(
                "no task {task}: it would be in shard {number}, which shards in tasker.yml does not have"
            ))),
        }
    }

    /// Makes the database of a shard that one, and returns it: migrated, with ids that say so. Again, nothing happens.
    /// Errors: those of [`Shards::named`] and [`Db::migrate`]; [`Error::Invalid`] where it has tasks of another shard.
    pub async fn add(&self, name: &str) -> Result<Db> {
        self.cell(name)?;
        let (db, number) = self.connect(name).await?;
        db.migrate().await?;
        sqlx::query("SELECT tasker.become_shard($1)")
            .bind(i32::from(number))
            .execute(db.pool())
            .await?;
        Ok(db)
    }

    pub(super) async fn open(&self, name: &str) -> Result<&Open> {
        self.cell(name)?
            .get_or_try_init(|| async {
                let db = match &self.all.beside {
                    Some(others) => {
                        let apart = Box::pin(others.named(name)).await?.apart(self.all.connections);
                        let apart = apart.redacting(self.all.settings.redaction()?).for_people();
                        apart.with_replicas(&self.replicas(name), self.all.connections)?
                    }
                    None => {
                        let (db, number) = self.connect(name).await?;
                        if name != DEFAULT_SHARD {
                            check_number(&db, name, number).await?;
                        }
                        db
                    }
                };
                Ok(Open {
                    submitter: Submitter::new(db.clone()),
                    db,
                })
            })
            .await
    }

    fn replicas(&self, name: &str) -> ReplicaConfig {
        let settings = &self.all.settings;
        match settings.shards.get(name) {
            None => settings.replicas.clone(),
            Some(shard) => ReplicaConfig {
                url: shard.replica_url.clone(),
                ..settings.replicas.clone()
            },
        }
    }

    fn cell(&self, name: &str) -> Result<&OnceCell<Open>> {
        self.all.open.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.all.open.keys().map(String::as_str).collect();
            Error::Config(format!("there is no shard {name}: expected one of {}", known.join(", ")))
        })
    }

    async fn connect(&self, name: &str) -> Result<(Db, u16)> {
        let All {
            url,
            connections,
            settings,
            ..
        } = &*self.all;
        let Some(shard) = settings.shards.get(name) else {
            return Ok((Db::configured(url, *connections, settings).await?, DEFAULT_SHARD_NUMBER));
        };
        let ShardConfig {
            number,
            url,
            direct_url,
            failover,
            ..
        } = shard;
        let settings = Settings {
            direct: DirectConfig { url: direct_url.clone() },
            replicas: ReplicaConfig::default(),
            failover: failover.clone().unwrap_or_else(|| settings.failover.clone()),
            ..settings.clone()
        };
        let lacks = |what: &str| Error::Config(format!("the shard {name} has no {what}"));
        let url = url.as_ref().ok_or_else(|| lacks("url"))?;
        if *number == DEFAULT_SHARD_NUMBER {
            return Err(lacks("number"));
        }
        Ok((Db::configured(url.reveal(), *connections, &settings).await?, *number))
    }

    /// Closes the connections to all of them.
    pub async fn close(&self) {
        for open in self.all.open.values().filter_map(OnceCell::get) {
            open.db.close().await;
        }
    }
}

/// The ids of its tasks must lead to it.
async fn check_number(db: &Db, name: &str, expected: u16) -> Result<()> {
    db.check_schema().await?;
    let number: i32 = sqlx::query_scalar("SELECT tasker.shard()").fetch_one(db.pool()).await?;
    match number == i32::from(expected) {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "the database of shard {name} at {} is shard {number}, expected {expected}: `tasker shard add {name}` makes an empty one that shard",
            db.target()
        ))),
    }
}

/// One of them, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    /// Its name.
    pub(crate) name: String,
    /// What the ids of its tasks say.
    pub(crate) number: u16,
    /// Where it stands, for people.
    pub(crate) region: Option<String>,
    /// host:port of each server that the process knows of, the primary among them.
    pub(crate) servers: Vec<String>,
    /// The one that takes writes, as this process found it.
    pub(crate) primary: Option<String>,
    /// How many namespaces it has.
    pub(crate) namespaces: Option<usize>,
    /// Why it cannot be worked with; None: it can.
    pub(crate) error: Option<String>,
}

impl Shard {
    /// Before its database is asked.
    fn named(name: &str, config: Option<&ShardConfig>) -> Shard {
        Shard {
            name: name.into(),
            number: config.map_or(DEFAULT_SHARD_NUMBER, |config| config.number),
            region: config.and_then(|config| config.region.clone()),
            servers: Vec::new(),
            primary: None,
            namespaces: None,
            error: None,
        }
    }

    async fn asked(self, db: &Db) -> Result<Shard> {
        let (servers, primary) = db.servers();
        Ok(Shard {
            servers,
            primary: Some(primary),
            namespaces: Some(namespaces::list(db).await?.len()),
            ..self
        })
    }
}

/// Every shard, whether it is there or not.
pub(crate) async fn list(shards: &Shards) -> Vec<Shard> {
    let mut found = Vec::new();
    for name in shards.names() {
        let shard = Shard::named(name, shards.settings().shards.get(name));
        let asked = async { shard.clone().asked(&shards.named(name).await?).await };
        found.push(asked.await.unwrap_or_else(|error| Shard {
            error: Some(error.to_string()),
            ..shard
        }));
    }
    found
}
