//! Lists of all shards, a page at a time.

use serde_json::{json, Value};

use super::audit::{self, ChangeFilter};
use super::bulk_actions;
use super::dead_letters::{self, Filter as Letters};
use super::everywhere::{paged, parsed, Order, Page};
use super::read::{page_of_tasks, read_minutes, TaskFilter};
use super::shards::Shards;
use super::signals::{self, SignalFilter, WaitFilter};
use crate::db::Db;
use crate::error::Result;

/// A page of the tasks of all shards, the newest first, and where the list goes on.
pub async fn tasks_page(shards: &Shards, filter: &TaskFilter, cursor: Option<&str>, limit: i32) -> Result<Page> {
    let ask = |db: Db, cursor: Option<String>| async move {
        let before = parsed(cursor)?.or(filter.before);
        let filter = TaskFilter { before, ..filter.clone() };
        let page = page_of_tasks(&db, &filter, limit).await?;
        Ok((page.tasks, page.next.map(|id| id.to_string())))
    };
    shards.page(cursor, limit, (Order::NewestId("id"), "id"), ask).await
}

/// The newest of them, at most `limit`.
pub async fn tasks(shards: &Shards, filter: &TaskFilter, limit: i32) -> Result<Vec<Value>> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let (tasks, next) = tasks_page(shards, filter, cursor.as_deref(), limit).await?;
        found.extend(tasks);
        found.truncate(usize::try_from(limit).unwrap_or_default());
        match next {
            Some(next) if (found.len() as i64) < limit.into() => cursor = Some(next),
            _ => return Ok(found),
        }
    }
}

/// What was done in each minute, in all shards together ([`read_minutes`]).
pub async fn minutes(shards: &Shards, minutes: i32, namespace: Option<&str>) -> Result<Vec<Value>> {
    let mut sums: Vec<Value> = Vec::new();
    for (_, of) in shards
        .ask_all(|db| async move { read_minutes(&db, minutes, namespace).await })
        .await?
    {
        for minute in of {
            match sums.iter_mut().find(|sum| sum["at"] == minute["at"]) {
                None => sums.push(minute),
                Some(sum) => {
                    for what in ["completed", "failed"] {
                        sum[what] = json!(sum[what].as_i64().unwrap_or_default() + minute[what].as_i64().unwrap_or_default());
                    }
                    sum["seconds"] = json!(sum["seconds"].as_f64().unwrap_or_default() + minute["seconds"].as_f64().unwrap_or_default());
                }
            }
        }
    }
    Ok(sums)
}

/// A page of the letters of all shards, the newest first, and where the list goes on.
pub async fn letters_page(shards: &Shards, filter: &Letters, cursor: Option<&str>, limit: i32) -> Result<Page> {
    let ask = |db: Db, cursor: Option<String>| async move {
        let before = cursor.or_else(|| filter.before.clone());
        let filter = Letters { before, ..filter.clone() };
        Ok(paged(dead_letters::list(&db, &filter, limit).await?, limit, "id"))
    };
    shards.page(cursor, limit, (Order::Newest("died_at"), "id"), ask).await
}

/// The groups of all shards, the largest first.
pub async fn letter_groups(shards: &Shards, filter: &Letters) -> Result<Vec<Value>> {
    let mut groups = shards.list(|db| async move { dead_letters::groups(&db, filter).await }).await?;
    groups.sort_by_key(|group| std::cmp::Reverse(group["count"].as_i64()));
    Ok(groups)
}

/// The ids of the letters in all shards that a filter lets through. Errors: those of any shard: what is left out would not be missed.
pub async fn matching_letters(shards: &Shards, filter: &Letters) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for db in shards.of_filter(filter.namespace.as_deref()).await? {
        ids.extend(dead_letters::matching(&db, filter).await?);
    }
    Ok(ids)
}

/// What was done to letters in all shards, the newest first.
pub async fn letter_actions(shards: &Shards, limit: i32) -> Result<Vec<Value>> {
    let mut all = shards.list(|db| async move { dead_letters::actions(&db, limit).await }).await?;
    Order::Newest("at").sort(&mut all);
    all.truncate(usize::try_from(limit).unwrap_or_default());
    Ok(all)
}

/// The newest signals in all shards.
pub async fn signals(shards: &Shards, filter: &SignalFilter, limit: i32) -> Result<Vec<Value>> {
    let mut signals = shards
        .list(|db| async move { signals::list_signals(&db, filter, limit).await })
        .await?;
    Order::Newest("sent_at").sort(&mut signals);
    signals.truncate(usize::try_from(limit).unwrap_or_default());
    Ok(signals)
}

/// A page of the waits in all shards, those first that have waited longest, and where the list goes on.
pub async fn waits_page(shards: &Shards, filter: &WaitFilter, cursor: Option<&str>, limit: i32) -> Result<Page> {
    let ask = |db: Db, cursor: Option<String>| async move {
        let after = parsed(cursor)?.or(filter.after);
        let filter = WaitFilter { after, ..filter.clone() };
        Ok(paged(signals::list_waits(&db, &filter, limit).await?, limit, "task"))
    };
    shards.page(cursor, limit, (Order::Oldest("since"), "task"), ask).await
}

/// A page of the changes in all shards, the newest first, and where the list goes on.
pub async fn changes_page(shards: &Shards, filter: &ChangeFilter, cursor: Option<&str>, limit: i32) -> Result<Page> {
    let ask = |db: Db, cursor: Option<String>| async move {
        let before = parsed(cursor)?.or(filter.before);
        let filter = ChangeFilter { before, ..filter.clone() };
        Ok(paged(audit::list(&db, &filter, limit).await?, limit, "id"))
    };
    shards.page(cursor, limit, (Order::Newest("at"), "id"), ask).await
}

/// A page of the bulk actions of all shards, the newest first, and where the list goes on.
pub async fn bulk_actions_page(shards: &Shards, cursor: Option<&str>, limit: i32) -> Result<Page> {
    let ask =
        |db: Db, cursor: Option<String>| async move { Ok(paged(bulk_actions::list(&db, parsed(cursor)?, limit).await?, limit, "id")) };
    shards.page(cursor, limit, (Order::Newest("created_at"), "id"), ask).await
}
