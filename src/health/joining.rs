//! A process begins to work with each of its shards as soon as that is there: one that is away is no trouble of the others.

use futures_util::future::{join_all, BoxFuture};
use tokio_util::sync::CancellationToken;

use super::Loops;
use crate::backoff::Backoff;
use crate::db::Db;
use crate::engine::shards::Shards;
use crate::error::Result;

/// One of the databases where a process is to work.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    /// Its name, where there are several.
    pub(crate) shard: Option<String>,
    pub(crate) db: Db,
    /// Those with whose tasks it is to work there; empty: all.
    pub(crate) namespaces: Vec<String>,
}

impl Loops {
    /// Begins with those shards where these namespaces live (empty: with all), as `begin` does; later, until `stop`, with those that are away.
    /// Errors: why there is none to begin with.
    pub(crate) async fn join<B>(&self, shards: &Shards, namespaces: &[String], stop: &CancellationToken, begin: B) -> Result<()>
    where
        B: Fn(Joined) -> BoxFuture<'static, Result<()>> + Clone + Send + Sync + 'static,
    {
        let begin = {
            let shards = shards.clone();
            move |name: String, namespaces: Vec<String>| {
                let (shards, begin) = (shards.clone(), begin.clone());
                async move {
                    let db = shards.named(&name).await?;
                    let shard = shards.are_named().then_some(name);
                    begin(Joined { shard, db, namespaces }).await
                }
            }
        };
        let homes = shards.of_namespaces(namespaces);
        let count = homes.len();
        let first = homes.into_iter().map(|(name, namespaces)| {
            let begin = begin(name.clone(), namespaces.clone());
            async { (begin.await, name, namespaces) }
        });
        let mut away = Vec::new();
        for (begun, name, namespaces) in join_all(first).await {
            if let Err(error) = begun {
                tracing::warn!(%error, shard = name, "a shard is away, and is waited for");
                self.health().misses(&name, error.to_string());
                away.push((error, name, namespaces));
            }
        }
        if away.len() == count {
            if let Some((error, ..)) = away.pop() {
                return Err(error);
            }
        }
        for (_, name, namespaces) in away {
            let (begin, health, stop) = (begin.clone(), self.health().clone(), stop.clone());
            self.run(format!("joining {name}"), move || {
                let (begin, health, stop, name, namespaces) =
                    (begin.clone(), health.clone(), stop.clone(), name.clone(), namespaces.clone());
                async move {
                    let mut backoff = Backoff::default();
                    loop {
                        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(backoff.next_delay()) => {} }
                        // What has begun must end in order: it is not dropped by `stop`.
                        match begin(name.clone(), namespaces.clone()).await {
                            Ok(()) => return tracing::info!(shard = name, "a shard is there"),
                            Err(error) => health.misses(&name, error.to_string()),
                        }
                    }
                }
            });
        }
        Ok(())
    }
}
