//! What many follow and one reads for all of them, for as long as anybody does.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Values by their keys.
pub(crate) struct Followed<K, V> {
    values: Arc<Mutex<HashMap<K, watch::Sender<V>>>>,
    /// Of many who begin to follow at once, one reads.
    first: Arc<tokio::sync::Mutex<()>>,
}

impl<K, V> Clone for Followed<K, V> {
    fn clone(&self) -> Self {
        Followed {
            values: self.values.clone(),
            first: self.first.clone(),
        }
    }
}

impl<K, V> Default for Followed<K, V> {
    fn default() -> Self {
        Followed {
            values: Arc::default(),
            first: Arc::default(),
        }
    }
}

impl<K, V> fmt::Debug for Followed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Followed")
    }
}

impl<K, V> Followed<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    /// Follows a value that was just read. Each `every`, `read` is to read those that anybody follows then; what it leaves out stays as it was.
    pub(crate) fn follow<R>(
        &self,
        key: K,
        value: V,
        every: Duration,
        read: impl Fn(Vec<K>) -> R + Send + Sync + 'static,
    ) -> watch::Receiver<V>
    where
        R: Future<Output = Vec<(K, V)>> + Send + 'static,
    {
        let mut values = self.lock();
        if values.is_empty() {
            tokio::spawn(self.clone().read_on(every, read));
        }
        let followed = values.entry(key).or_insert_with(|| watch::Sender::new(value.clone()));
        followed.send_if_modified(|before| set(before, value));
        followed.subscribe()
    }

    /// The same for a value that `first` reads, unless somebody follows it already.
    pub(crate) async fn follow_from<R, E>(
        &self,
        key: K,
        first: impl Future<Output = Result<V, E>>,
        every: Duration,
        read: impl Fn(Vec<K>) -> R + Send + Sync + 'static,
    ) -> Result<watch::Receiver<V>, E>
    where
        R: Future<Output = Vec<(K, V)>> + Send + 'static,
    {
        let _reading = self.first.lock().await;
        let known = self
            .lock()
            .get(&key)
            .filter(|followed| followed.receiver_count() > 0)
            .map(|followed| followed.borrow().clone());
        let value = match known {
            Some(known) => known,
            None => first.await?,
        };
        Ok(self.follow(key, value, every, read))
    }

    /// Until nobody follows any more.
    async fn read_on<R>(self, every: Duration, read: impl Fn(Vec<K>) -> R + Send + Sync)
    where
        R: Future<Output = Vec<(K, V)>> + Send + 'static,
    {
        loop {
            tokio::time::sleep(every).await;
            let keys: Vec<K> = {
                let mut values = self.lock();
                values.retain(|_, followed| followed.receiver_count() > 0);
                values.keys().cloned().collect()
            };
            if keys.is_empty() {
                return;
            }
            for (key, value) in read(keys).await {
                if let Some(followed) = self.lock().get(&key) {
                    followed.send_if_modified(|before| set(before, value));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, watch::Sender<V>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether that is anything new.
fn set<V: PartialEq>(before: &mut V, value: V) -> bool {
    let is_new = *before != value;
    *before = value;
    is_new
}
