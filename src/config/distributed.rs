//! The coordinator: where the part of the configuration is kept that a whole fleet shares, and that changes while it runs. Every change is a
//! version, with its author and reason.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use tokio::sync::{watch, Notify};
use tokio_util::sync::CancellationToken;

use super::check::{problems, Document, Problem};
use super::{schema, Effective, Live, Local};
use crate::error::{Error, Result};

/// How often to look for a version that nobody told of.
const POLL: Duration = Duration::from_secs(10);

/// How often a process makes itself known.
const REGISTER: Duration = Duration::from_secs(10);

/// What the coordinator has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Counts up; 0: nothing was ever changed.
    pub version: i64,
    /// Since when.
    pub at: DateTime<Utc>,
    /// Who changed it.
    pub who: String,
    /// Why.
    pub why: Option<String>,
    /// Settings for all, `namespace_defaults`, `namespaces` by name, and `instances` by name.
    pub overrides: Value,
}

/// Who changes something, and why.
#[derive(Debug, Clone)]
pub struct Author {
    /// A name.
    pub who: String,
    /// A reason.
    pub why: Option<String>,
}

/// Where versions are kept. What it is given has been validated.
pub trait ConfigurationCoordinator: fmt::Debug + Send + Sync {
    /// The newest version.
    fn get(&self) -> BoxFuture<'_, Result<Version>>;

    /// Adds a version above `base`, and returns its number.
    /// Errors: [`Error::Stale`] when `base` is not the newest any more.
    fn update<'a>(&'a self, base: i64, overrides: &'a Value, author: &'a Author) -> BoxFuture<'a, Result<i64>>;

    /// The last `limit` versions, the newest first.
    fn history(&self, limit: i64) -> BoxFuture<'_, Result<Vec<Version>>>;

    /// Makes a process known to operators, with what it is and can. Members are known to the database already.
    fn register<'a>(&'a self, _instance: &'a str, _capabilities: &'a Value) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// What was in force last, for a process that starts while the coordinator is away.
    fn last_good(&self) -> BoxFuture<'_, Option<Version>> {
        Box::pin(async { None })
    }

    /// Returns when there may be another version. Where members are told otherwise, never.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Errors: [`Error::Invalid`], with everything that is wrong with these overrides.
pub fn check(overrides: &Value) -> Result<()> {
    let mut found: Vec<String> = wrong(overrides).iter().map(Problem::to_string).collect();
    if found.is_empty() {
        let instances = overrides["instances"]
            .as_object()
            .map(|all| all.keys().cloned().collect())
            .unwrap_or_default();
        for instance in [vec![String::new()], instances].concat() {
            if let Err(error) = Local::bare(instance).with(0, overrides) {
                found.push(error.to_string());
            }
        }
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(Error::Invalid(found.join("\n"))),
    }
}

/// What is not allowed there.
fn wrong(overrides: &Value) -> Vec<Problem> {
    let explained = |problem: Problem| {
        let message = match &problem.path {
            path if schema::needs_restart(path) => "needs a restart: set it in tasker.yml, or in the environment of the processes".into(),
            path if schema::is_secret(path) => {
                "is a secret, which is not kept where others read it: set it in tasker.yml, or in the environment of the processes".into()
            }
            path if schema::is_rule(path) => "is of a namespace: name it, or '*' for all that have none of their own".into(),
            _ => problem.message,
        };
        Problem { message, ..problem }
    };
    problems(&schema::overrides(), overrides).into_iter().map(explained).collect()
}

/// Overrides as a file has them, YAML or JSON.
/// Errors: everything that is wrong, with its line.
pub fn read_overrides(source: &str) -> std::result::Result<Value, Vec<Problem>> {
    let document = Document::read(source).map_err(|problem| vec![problem])?;
    let found = wrong(&document.value).into_iter().map(|problem| Problem {
        line: document.line(&problem.path),
        ..problem
    });
    match found.collect::<Vec<_>>() {
        found if found.is_empty() => Ok(document.value),
        found => Err(found),
    }
}

/// Changes the newest version by `edit`, and returns what is in force now. Nothing is kept of a change that is not valid as a whole.
/// Errors: [`Error::Invalid`] with everything that is wrong with it, [`Error::Stale`] while others change it all the time.
pub async fn change(
    coordinator: &dyn ConfigurationCoordinator,
    author: &Author,
    edit: impl Fn(&mut Value) -> Result<()>,
) -> Result<Version> {
    for _ in 0..5 {
        let newest = coordinator.get().await?;
        let mut overrides = newest.overrides.clone();
        edit(&mut overrides)?;
        prune(&mut overrides);
        check(&overrides)?;
        if overrides == newest.overrides {
            return Ok(newest);
        }
        match coordinator.update(newest.version, &overrides, author).await {
            Err(Error::Stale(_)) => {}
            updated => {
                return updated.map(|version| Version {
                    version,
                    at: Utc::now(),
                    who: author.who.clone(),
                    why: author.why.clone(),
                    overrides,
                })
            }
        }
    }
    Err(Error::Stale("the configuration is being changed by others".into()))
}

/// What was set in an earlier version. Errors: [`Error::NotFound`].
pub async fn earlier(coordinator: &dyn ConfigurationCoordinator, version: i64) -> Result<Value> {
    let history = coordinator.history(i64::MAX).await?;
    let found = history.into_iter().find(|found| found.version == version);
    found
        .map(|found| found.overrides)
        .ok_or_else(|| Error::NotFound(format!("no version {version} of the configuration")))
}

/// For whom something is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'p> {
    /// All processes.
    Everywhere,
    /// The rules of a namespace; `*`: of all that have none of their own.
    Namespace(&'p str),
    /// The processes with this ORCHESTRATOR_ID, or on this host.
    Instance(&'p str),
}

impl<'p> Place<'p> {
    /// Where the overrides have a setting, such as `orchestrator.batch`.
    pub fn path(self, setting: &'p str) -> Vec<&'p str> {
        let place = match self {
            Place::Everywhere => Vec::new(),
            Place::Namespace("*") => vec!["namespace_defaults"],
            Place::Namespace(namespace) => vec!["namespaces", namespace],
            Place::Instance(instance) => vec!["instances", instance],
        };
        place.into_iter().chain(setting.split('.')).collect()
    }
}

/// Sets what is at `path` (null: unsets it).
pub fn set(overrides: &mut Value, path: &[&str], value: Value) {
    let mut at = overrides;
    for name in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*name];
    }
    *at = value;
}

/// What is null, or empty, says nothing.
fn prune(value: &mut Value) {
    if let Value::Object(object) = value {
        object.values_mut().for_each(prune);
        object.retain(|_, below| !below.is_null() && !below.as_object().is_some_and(Map::is_empty));
    }
}

/// The configuration of one process: follows the coordinator, and keeps the last good settings while that is away.
#[derive(Debug)]
pub struct Configuration {
    local: Local,
    coordinator: Arc<dyn ConfigurationCoordinator>,
    effective: watch::Sender<Arc<Effective>>,
    refresh: Arc<Notify>,
}

impl Configuration {
    /// Reads what the coordinator has. Where it is away, or has what this program does not understand, the local layers are in force until it is there.
    pub async fn start(local: Local, coordinator: Arc<dyn ConfigurationCoordinator>) -> Result<(Configuration, Live)> {
        let effective = local.with(0, &json!({}))?;
        let (sender, receiver) = watch::channel(Arc::new(effective));
        let refresh = Arc::new(Notify::new());
        let live = Live::new(receiver, refresh.clone());
        let configuration = Configuration {
            local,
            coordinator,
            effective: sender,
            refresh,
        };
        configuration.refresh().await;
        configuration.fall_back().await?;
        Ok((configuration, live))
    }

    /// Follows until `stop`. `taken_over` is called with what is in force, now and after every change.
    pub async fn run(self, stop: CancellationToken, taken_over: impl Fn(&Effective) + Send) {
        taken_over(&self.effective.borrow());
        let (mut poll, mut register) = (tokio::time::interval(POLL), tokio::time::interval(REGISTER));
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refresh.notified() => {}
                () = self.coordinator.changed() => {}
                _ = poll.tick() => {}
                _ = register.tick() => {
                    let capabilities = self.effective.borrow().report(None);
                    let name = format!("{}:{}", self.local.instance(), std::process::id());
                    if let Err(error) = self.coordinator.register(&name, &capabilities).await {
                        tracing::debug!(%error, "the coordinator was not told of this process");
                    }
                    continue;
                }
            }
            if self.refresh().await {
                taken_over(&self.effective.borrow());
            }
        }
    }

    /// Where there is nothing to start with, what was in force last counts.
    async fn fall_back(&self) -> Result<()> {
        let Some(why) = self.effective.borrow().fallback.clone() else {
            return Ok(());
        };
        if let Some(last) = self.coordinator.last_good().await {
            if let Ok(effective) = self.local.with(last.version, &last.overrides) {
                self.effective.send_replace(Arc::new(effective.for_want_of_better(why)));
            }
        }
        Ok(())
    }

    /// Whether there is something new.
    async fn refresh(&self) -> bool {
        let now = self.effective.borrow().clone();
        let found = match self.coordinator.get().await {
            Ok(newest) if now.is_of(&newest) => return false,
            Ok(newest) => self
                .local
                .with(newest.version, &newest.overrides)
                .map_err(|error| format!("version {} does not go with this process: {error}", newest.version)),
            Err(error) => Err(format!("the coordinator is away: {error}")),
        };
        let next = match found {
            Ok(next) => {
                let changed = difference(&now, &next);
                if !changed.is_empty() {
                    tracing::info!(
                        version = next.version,
                        changed = changed.join(", "),
                        "the configuration has changed"
                    );
                }
                next
            }
            Err(why) if now.fallback.as_ref() == Some(&why) => return false,
            Err(why) => {
                tracing::warn!(why, version = now.version, "the last good configuration stays in force");
                (*now).clone().for_want_of_better(why)
            }
        };
        self.effective.send_replace(Arc::new(next));
        true
    }
}

/// The paths whose values differ.
fn difference(before: &Effective, after: &Effective) -> Vec<String> {
    let (before, after) = (before.values(), after.values());
    let differs = |path: &&String| before.get(*path).map(|b| &b.0) != after.get(*path).map(|a| &a.0);
    after.keys().filter(differs).cloned().collect()
}
