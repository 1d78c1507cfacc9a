//! Files as the coordinator of the configuration: one, or all of a folder, such as what a Kubernetes ConfigMap becomes. They are changed where they come
//! from, and not by us.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::Utc;
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::distributed::{read_overrides, Author, ConfigurationCoordinator, Version};
use crate::error::{Error, Result};

/// Reads what is there whenever it changes.
#[derive(Debug)]
pub struct FolderCoordinator {
    path: PathBuf,
    changed: Arc<Notify>,
    /// Ends with it.
    _watcher: RecommendedWatcher,
}

impl FolderCoordinator {
    /// Of this file, or of this folder's files with the ending yml, yaml or json, of which the later in the order of their names win.
    /// Errors: [`Error::Config`] when it is not there.
    pub fn new(path: &Path) -> Result<FolderCoordinator> {
        let changed = Arc::new(Notify::new());
        let tell = changed.clone();
        let unusable = |error: notify::Error| Error::Config(format!("{}: {error}", path.display()));
        // That we read it is told as well.
        let told = move |event: notify::Result<Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                tell.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(told).map_err(unusable)?;
        // Editors and Kubernetes put another file in its place: its folder is told of it.
        let folder = match path.is_dir() {
            true => path,
            false => path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
        };
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(unusable)?;
        Ok(FolderCoordinator {
            path: path.to_owned(),
            changed,
            _watcher: watcher,
        })
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        if !self.path.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let unreadable = |error: std::io::Error| Error::Config(format!("{}: {error}", self.path.display()));
        let entries = std::fs::read_dir(&self.path).map_err(unreadable)?;
        let mut files = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(unreadable)?;
        files.retain(|file| {
            let ending = file.extension().and_then(|ending| ending.to_str());
            file.is_file() && matches!(ending, Some("yml" | "yaml" | "json"))
        });
        files.sort();
        Ok(files)
    }

    fn read(&self) -> Result<Version> {
        let mut overrides = Value::Object(Map::new());
        for file in self.files()? {
            let read = read_overrides(&super::read_source(&file)?).map_err(|found| {
                let told = found
                    .iter()
                    .map(|problem| format!("{}:{}: {problem}", file.display(), problem.line));
                Error::Config(told.collect::<Vec<_>>().join("\n"))
            })?;
            merge(&mut overrides, read);
        }
        let digest = Sha256::digest(overrides.to_string());
        let number = digest.iter().take(6).fold(0, |number, byte| number << 8 | i64::from(*byte));
        Ok(Version {
            version: number,
            at: Utc::now(),
            who: self.path.display().to_string(),
            why: None,
            overrides,
        })
    }
}

/// `above` wins where both say something.
fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (name, value) in above {
                merge(below.entry(name).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

impl ConfigurationCoordinator for FolderCoordinator {
    fn get(&self) -> BoxFuture<'_, Result<Version>> {
        async { self.read() }.boxed()
    }

    fn update<'a>(&'a self, _: i64, _: &'a Value, _: &'a Author) -> BoxFuture<'a, Result<i64>> {
        let refused = format!("the configuration is in {}: change it there", self.path.display());
        async { Err(Error::Invalid(refused)) }.boxed()
    }

    fn history(&self, _: i64) -> BoxFuture<'_, Result<Vec<Version>>> {
        async { Ok(vec![self.read()?]) }.boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.changed.notified().boxed()
    }
}
