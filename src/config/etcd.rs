//! etcd as the coordinator of the configuration. Under a prefix it has the newest version (`configuration`), all of them (`history/…`), and the
//! processes that run (`instances/…`, as long as they do).

use std::time::Duration;

use chrono::Utc;
use etcd_client::{Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchStream};
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use percent_encoding::percent_decode_str;
use serde_json::{json, Value};
use tokio::sync::Mutex;

use super::distributed::{Author, ConfigurationCoordinator, Version};
use crate::error::{Error, Result};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon to look for it again.
const REST: Duration = Duration::from_secs(1);
/// How long a process is known after its last word, in seconds.
const INSTANCE: i64 = 30;

/// Keeps the configuration in etcd, which tells of changes.
pub struct EtcdCoordinator {
    client: Client,
    prefix: String,
    watch: Mutex<Option<WatchStream>>,
}

impl std::fmt::Debug for EtcdCoordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EtcdCoordinator({})", self.prefix)
    }
}

fn away(error: etcd_client::Error) -> Error {
    Error::Coordinator(format!("etcd: {error}"))
}

impl EtcdCoordinator {
    /// `address` is such as `one:2379,two:2379/tasker` or `user:password@one:2379`; without a prefix it is `tasker`. It need not be there yet.
    /// Errors: [`Error::Config`] for an address that cannot be.
    pub async fn new(address: &str) -> Result<EtcdCoordinator> {
        let (user, hosts) = address
            .rsplit_once('@')
            .map_or((None, address), |(user, hosts)| (Some(user), hosts));
        let (hosts, prefix) = hosts.split_once('/').unwrap_or((hosts, "tasker"));
        let endpoints: Vec<&str> = hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
        let mut options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_timeout(PATIENCE);
        if let Some((name, password)) = user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            options = options.with_user(decoded(name), decoded(password));
        }
        let client = Client::connect(&endpoints, Some(options)).await;
        Ok(EtcdCoordinator {
            client: client.map_err(|error| Error::Config(format!("etcd://{hosts}: {error}")))?,
            prefix: prefix.trim_matches('/').to_owned(),
            watch: Mutex::default(),
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// The newest version, and the revision of its key (0: there is none).
    async fn newest(&self) -> Result<(Version, i64)> {
        let found = self.client.clone().get(self.key("configuration"), None).await.map_err(away)?;
        match found.kvs().first() {
            Some(pair) => Ok((read(pair.value())?, pair.mod_revision())),
            None => Ok((
                Version {
                    version: 0,
                    at: Utc::now(),
                    who: "tasker".into(),
                    why: None,
                    overrides: json!({}),
                },
                0,
            )),
        }
    }
}

fn read(value: &[u8]) -> Result<Version> {
    serde_json::from_slice(value).map_err(|error| Error::Coordinator(format!("etcd has something else than a version there: {error}")))
}

impl ConfigurationCoordinator for EtcdCoordinator {
    fn get(&self) -> BoxFuture<'_, Result<Version>> {
        async { Ok(self.newest().await?.0) }.boxed()
    }

    fn update<'a>(&'a self, base: i64, overrides: &'a Value, author: &'a Author) -> BoxFuture<'a, Result<i64>> {
        async move {
            let (newest, revision) = self.newest().await?;
            let stale = || Error::Stale(format!("the configuration is at another version than {base} by now"));
            if newest.version != base {
                return Err(stale());
            }
            let next = Version {
                version: base + 1,
                at: Utc::now(),
                who: author.who.clone(),
                why: author.why.clone(),
                overrides: overrides.clone(),
            };
            let (written, key) = (json!(next).to_string(), self.key("configuration"));
            let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
            let history = self.key(&format!("history/{:020}", next.version));
            let puts = [TxnOp::put(key, written.clone(), None), TxnOp::put(history, written, None)];
            let done = self
                .client
                .clone()
                .txn(Txn::new().when([unchanged]).and_then(puts))
                .await
                .map_err(away)?;
            match done.succeeded() {
                true => Ok(next.version),
                false => Err(stale()),
            }
        }
        .boxed()
    }

    fn history(&self, limit: i64) -> BoxFuture<'_, Result<Vec<Version>>> {
        async move {
            let newest_first = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Key, SortOrder::Descend)
                .with_limit(limit.min(1_000_000));
            let found = self
                .client
                .clone()
                .get(self.key("history/"), Some(newest_first))
                .await
                .map_err(away)?;
            found.kvs().iter().map(|pair| read(pair.value())).collect()
        }
        .boxed()
    }

    fn register<'a>(&'a self, instance: &'a str, capabilities: &'a Value) -> BoxFuture<'a, Result<()>> {
        async move {
            let mut client = self.client.clone();
            let lease = client.lease_grant(INSTANCE, None).await.map_err(away)?.id();
            let options = PutOptions::new().with_lease(lease);
            let key = self.key(&format!("instances/{instance}"));
            client.put(key, capabilities.to_string(), Some(options)).await.map_err(away)?;
            Ok(())
        }
        .boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        async {
            let mut watch = self.watch.lock().await;
            if watch.is_none() {
                let begun = self.client.clone().watch(self.key("configuration"), None).await;
                match begun {
                    // What changed before is not told of.
                    Ok(stream) => *watch = Some(stream),
                    Err(_) => tokio::time::sleep(REST).await,
                }
                return;
            }
            if let Some(stream) = watch.as_mut() {
                loop {
                    match stream.message().await {
                        Ok(Some(message)) if message.canceled() => {}
                        Ok(Some(message)) if message.events().is_empty() => continue,
                        Ok(Some(_)) => return,
                        Ok(None) | Err(_) => {}
                    }
                    break;
                }
            }
            *watch = None;
            tokio::time::sleep(REST).await;
        }
        .boxed()
    }
}
