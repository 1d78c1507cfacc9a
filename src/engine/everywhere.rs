//! Asking all shards: what those say that are there. One that is away is left out, and noted ([`Shards::away`]).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::str::FromStr;
use std::time::{Duration, Instant};

use chrono::DateTime;
use futures_util::future::join_all;
use serde_json::{json, Value};
use uuid::Uuid;

use super::shards::Shards;
use crate::db::Db;
use crate::error::{Error, ErrorKind, Result};

/// How long one of several may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long one that was away is not asked again.
const REST: Duration = Duration::from_secs(3);

/// By what a list is ordered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// The newest first, by a field that is the id of a task.
    NewestId(&'static str),
    /// The newest first, by a field that is a time.
    Newest(&'static str),
    /// The oldest first.
    Oldest(&'static str),
    /// One shard after the other.
    AsFound,
}

impl Order {
    /// Microseconds, smaller for what is earlier in the list.
    fn key(self, entry: &Value) -> i64 {
        let time = |field: &str| {
            let time = entry[field].as_str().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
            time.map_or(0, |time| time.timestamp_micros())
        };
        match self {
            Order::NewestId(field) => {
                let id = entry[field].as_str().and_then(|id| Uuid::parse_str(id).ok()).unwrap_or_default();
                -i64::try_from(id.as_u128() >> 80).unwrap_or_default()
            }
            Order::Newest(field) => -time(field),
            Order::Oldest(field) => time(field),
            Order::AsFound => 0,
        }
    }

    /// Puts the entries of several lists into this order.
    pub(crate) fn sort(self, entries: &mut [Value]) {
        entries.sort_by_key(|entry| self.key(entry));
    }
}

/// A part of a list, and where it goes on; None: this was the end.
pub(crate) type Page = (Vec<Value>, Option<String>);

impl Shards {
    /// What all of them answer, by their names. Errors: what is not acceptable to them; why none answers.
    pub async fn ask_all<T, F>(&self, ask: impl Fn(Db) -> F) -> Result<Vec<(String, T)>>
    where
        F: Future<Output = Result<T>>,
    {
        self.ask_each(|db, _| ask(db)).await
    }

    async fn ask_each<T, F>(&self, ask: impl Fn(Db, &str) -> F) -> Result<Vec<(String, T)>>
    where
        F: Future<Output = Result<T>>,
    {
        let (mut answers, mut failure) = (Vec::new(), None);
        let ask = &ask;
        let all = self.names().map(|name| async move {
            let asking = async { ask(self.named(name).await?, name).await };
            match self.are_several() {
                false => (name, asking.await),
                true => (name, self.within(name, asking).await),
            }
        });
        for (name, answer) in join_all(all).await {
            match answer {
                Ok(answer) => answers.push((name.to_owned(), answer)),
                Err(error) if self.are_several() && is_away(&error) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(answers),
        }
    }

    /// Of one of several, which is not to hold up the others.
    async fn within<T>(&self, name: &str, asking: impl Future<Output = Result<T>>) -> Result<T> {
        if let Some((since, why)) = self.lock_away().get(name) {
            if since.elapsed() < REST {
                return Err(Error::Unreachable {
                    target: format!("shard {name}"),
                    reason: why.clone(),
                });
            }
        }
        let answer = tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| {
            Err(Error::Unreachable {
                target: format!("shard {name}"),
                reason: format!("no answer within {} s", PATIENCE.as_secs()),
            })
        });
        match &answer {
            Err(error) if is_away(error) => self.lock_away().insert(name.to_owned(), (Instant::now(), error.to_string())),
            _ => self.lock_away().remove(name),
        };
        answer
    }

    /// The names of those that did not answer last.
    pub(crate) fn away(&self) -> Vec<String> {
        self.lock_away().keys().cloned().collect()
    }

    /// The lists of all of them one after the other; each entry says of which shard it is, where there are several.
    pub async fn list<F>(&self, ask: impl Fn(Db) -> F) -> Result<Vec<Value>>
    where
        F: Future<Output = Result<Vec<Value>>>,
    {
        let lists = self.ask_all(ask).await?;
        Ok(lists.into_iter().flat_map(|(shard, list)| self.labelled(&shard, list)).collect())
    }

    fn labelled(&self, shard: &str, mut list: Vec<Value>) -> Vec<Value> {
        if self.are_several() {
            for entry in list.iter_mut().filter(|entry| entry.is_object()) {
                entry["shard"] = json!(shard);
            }
        }
        list
    }

    /// A page of at most `limit` of a list of all of them, in this order; `ask` reads a page of one, from where a `field` of an entry says that the page
    /// before ended. Where there are several, the cursor has one of each.
    pub(crate) async fn page<F>(
        &self,
        cursor: Option<&str>,
        limit: i32,
        (order, field): (Order, &str),
        ask: impl Fn(Db, Option<String>) -> F,
    ) -> Result<Page>
    where
        F: Future<Output = Result<Page>>,
    {
        if !self.are_several() {
            return ask(self.home().await?, cursor.map(str::to_owned)).await;
        }
        let mut cursors = self.cursors(cursor)?;
        let before = &cursors;
        let pages = self.ask_each(|db, name| {
            let at = before.get(name).cloned();
            let asking = match &at {
                Some(None) => None,
                Some(Some(at)) => Some(ask(db, Some(at.clone()))),
                None => Some(ask(db, None)),
            };
            async {
                match asking {
                    Some(asking) => asking.await,
                    None => Ok((Vec::new(), None)),
                }
            }
        });
        let mut entries = Vec::new();
        let mut left: BTreeMap<String, (usize, Option<String>)> = BTreeMap::new();
        for (shard, (list, next)) in pages.await? {
            left.insert(shard.clone(), (list.len(), next));
            entries.extend(self.labelled(&shard, list));
        }
        order.sort(&mut entries);
        entries.truncate(usize::try_from(limit).unwrap_or_default());
        for entry in &entries {
            let shard = entry["shard"].as_str().unwrap_or_default();
            cursors.insert(shard.to_owned(), Some(text(&entry[field])));
            if let Some((left, _)) = left.get_mut(shard) {
                *left -= 1;
            }
        }
        let mut goes_on = false;
        for (shard, (left, next)) in left {
            goes_on |= left > 0 || next.is_some();
            if left == 0 {
                cursors.insert(shard, next);
            }
        }
        let next = goes_on.then(|| cursor_of(cursors.iter().map(|(shard, at)| (shard, at.as_deref().unwrap_or_default()))));
        Ok((entries, next))
    }

    /// Where each goes on: None: it does not. One that is not in it begins.
    fn cursors(&self, cursor: Option<&str>) -> Result<BTreeMap<String, Option<String>>> {
        let wrong = || Error::Invalid("cursor: expected `next` of the page before".into());
        let Some(cursor) = cursor else { return Ok(BTreeMap::new()) };
        let read = |(name, at): (&str, &str)| {
            let name = self.names().find(|known| *known == name).ok_or_else(wrong)?;
            Ok((name.to_owned(), Some(at).filter(|at| !at.is_empty()).map(str::to_owned)))
        };
        cursor_parts(cursor).ok_or_else(wrong)?.into_iter().map(read).collect()
    }

    /// What the first of them has that has it. Errors: that of the last which has not; why one does not answer that may have it.
    pub async fn find<T, F>(&self, ask: impl Fn(Db) -> F) -> Result<(Db, T)>
    where
        F: Future<Output = Result<T>>,
    {
        let (mut missing, mut away) = (None, None);
        for name in self.names() {
            let asking = async {
                let db = self.named(name).await?;
                let found = ask(db.clone()).await?;
                Ok((db, found))
            };
            let found = match self.are_several() {
                false => asking.await,
                true => self.within(name, asking).await,
            };
            match found {
                Err(error) if error.kind() == ErrorKind::NotFound => missing = Some(error),
                Err(error) if self.are_several() && is_away(&error) => away = Some(error),
                found => return found,
            }
        }
        Err(away.or(missing).unwrap_or_else(|| Error::Config("there is no shard".into())))
    }
}

/// The cursor that says how far a list of several shards is, by their names.
pub(crate) fn cursor_of(parts: impl IntoIterator<Item = (impl Display, impl Display)>) -> String {
    let part = |(shard, at)| format!("{shard}={at}");
    parts.into_iter().map(part).collect::<Vec<_>>().join("~")
}

/// What such a cursor says. None: it is none.
pub(crate) fn cursor_parts(cursor: &str) -> Option<Vec<(&str, &str)>> {
    cursor.split('~').map(|part| part.split_once('=')).collect()
}

/// A page of at most `limit`; `field` of its last entry is where the next one begins.
pub(super) fn paged(entries: Vec<Value>, limit: i32, field: &str) -> Page {
    let is_last = i32::try_from(entries.len()).is_ok_and(|found| found < limit);
    let next = entries.last().filter(|_| !is_last).map(|last| text(&last[field]));
    (entries, next)
}

/// Where a page begins. Errors: it says something else.
pub(super) fn parsed<T: FromStr>(cursor: Option<String>) -> Result<Option<T>> {
    let wrong = |_| Error::Invalid("cursor: expected `next` of the page before".into());
    cursor.map(|cursor| cursor.parse().map_err(wrong)).transpose()
}

/// A text as it is, anything else as JSON.
pub(crate) fn text(of: &Value) -> String {
    of.as_str().map_or_else(|| of.to_string(), str::to_owned)
}

/// Whether that says something of the shard, and nothing of the question.
fn is_away(error: &Error) -> bool {
    !error.is_bad_data() && matches!(error.kind(), ErrorKind::Database | ErrorKind::Config)
}
