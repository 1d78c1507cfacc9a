//! A process begins to work with each of its shards as soon as that is there: one that is away is no trouble of the others. Where its namespaces move, it goes
//! with them, and stays where their tasks are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, BoxFuture};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Loops;
use crate::backoff::Backoff;
use crate::db::Db;
use crate::engine::shards::Shards;
use crate::error::Result;

/// How often a process asks whether its namespaces have moved.
const LOOK: Duration = Duration::from_secs(2);

/// One of the databases where a process is to work.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    /// Its name, where there are several.
    pub(crate) shard: Option<String>,
    /// Which of all it is, from 0.
    pub(crate) index: usize,
    pub(crate) db: Db,
    /// Those with whose tasks it is to work there; empty: all.
    pub(crate) namespaces: Vec<String>,
    /// It has moved there, where the process may work with others already.
    pub(crate) moved: Option<String>,
    pub(crate) shards: Shards,
}

impl Joined {
    /// The only one.
    pub(crate) fn only(db: &Db, namespaces: Vec<String>) -> Joined {
        Joined {
            shard: None,
            index: 0,
            db: db.clone(),
            namespaces,
            moved: None,
            shards: Shards::of(db),
        }
    }

    /// By which its loops are told from the others of the process.
    pub(crate) fn label(&self) -> Option<String> {
        match (&self.shard, &self.moved) {
            (Some(shard), Some(namespace)) => Some(format!("{namespace} in {shard}")),
            (shard, _) => shard.clone(),
        }
    }
}

impl Loops {
    /// Begins with those shards where these namespaces live (empty: with all), as `begin` does; later, until `stop`, with those that are away, or where they
    /// have moved.
    /// Errors: why there is none to begin with.
    pub(crate) async fn join<B>(&self, shards: &Shards, namespaces: &[String], stop: &CancellationToken, begin: B) -> Result<()>
    where
        B: Fn(Joined) -> BoxFuture<'static, Result<()>> + Clone + Send + Sync + 'static,
    {
        let begin = {
            let shards = shards.clone();
            move |name: String, namespaces: Vec<String>, moved: Option<String>| {
                let (shards, begin) = (shards.clone(), begin.clone());
                async move {
                    let db = shards.named(&name).await?;
                    let joined = Joined {
                        index: shards.index_of(&name),
                        shard: shards.are_named().then_some(name),
                        db,
                        namespaces,
                        moved,
                        shards,
                    };
                    begin(joined).await
                }
            }
        };
        let homes = shards.shards_of(namespaces);
        let count = homes.len();
        let of = homes.iter().flat_map(|(name, of)| of.iter().map(|of| (name.clone(), of.clone())));
        let known: BTreeSet<(String, String)> = of.collect();
        let first = homes.into_iter().map(|(name, namespaces)| {
            let begin = begin(name.clone(), namespaces.clone(), None);
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
                        match begin(name.clone(), namespaces.clone(), None).await {
                            Ok(()) => return tracing::info!(shard = name, "a shard is there"),
                            Err(error) => health.misses(&name, error.to_string()),
                        }
                    }
                }
            });
        }
        if !known.is_empty() && shards.are_several() {
            let (shards, stop, known) = (shards.clone(), stop.clone(), Arc::new(Mutex::new(known)));
            self.run("moves", move || {
                let (shards, stop, known, begin) = (shards.clone(), stop.clone(), known.clone(), begin.clone());
                async move {
                    while !stop.is_cancelled() {
                        let mut known = known.lock().await;
                        for (name, namespace) in moved(&shards, &known).await {
                            match begin(name.clone(), vec![namespace.clone()], Some(namespace.clone())).await {
                                Ok(()) => drop(known.insert((name, namespace))),
                                Err(error) => tracing::warn!(%error, shard = name, namespace, "cannot work where the namespace has moved"),
                            }
                        }
                        drop(known);
                        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(LOOK) => {} }
                    }
                }
            });
        }
        Ok(())
    }
}

/// Where else there are tasks of namespaces with which a process works in these shards, or where they live by now.
async fn moved(shards: &Shards, known: &BTreeSet<(String, String)>) -> Vec<(String, String)> {
    let names: BTreeSet<&String> = known.iter().map(|(name, _)| name).collect();
    let all = join_all(names.into_iter().map(|name| async move {
        // One that is away says so elsewhere.
        let moves = shards.moves(name).await.unwrap_or_default();
        moves.into_iter().map(move |of| (name, of))
    }));
    let mut found = Vec::new();
    for (name, of) in all.await.into_iter().flatten() {
        let places = [of.lives_in, of.also_in].into_iter().flatten();
        let names = places.filter_map(|number| shards.name_of(number).map(str::to_owned));
        let own = known.contains(&(name.clone(), of.namespace.clone()));
        let new = names
            .map(|name| (name, of.namespace.clone()))
            .filter(|place| own && !known.contains(place));
        found.extend(new.collect::<BTreeSet<_>>());
    }
    found
}
