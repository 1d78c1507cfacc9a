//! Subscriptions: who else is told what happens (`migrations/0042_subscriptions.sql`). In each shard, which tells of its own.

use std::future::Future;
use std::time::Duration;

use axum::http::Uri;
use chrono::{DateTime, Utc};
use serde_json::{json, Value};
use sqlx::types::Json;

use super::shards::Shards;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::standard_webhooks;
use crate::subscription::{Sink, Subscription};

/// How often it is tried to have a table's changes told, while others write to it.
const TRIES: usize = 20;

/// What has become of one.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Put {
    /// created, changed or unchanged.
    pub outcome: String,
    /// By which the requests of a webhook are signed, where it is created. It cannot be shown again.
    pub secret: Option<String>,
}

/// Creates a subscription to what happens from then on, in all shards, or changes it: what was delivered stays so. `secret`: by which the requests of a webhook are to be
/// signed that is created; None: one is made.
/// Errors: [`Error::Invalid`] where it is not acceptable, or belongs to a file of settings; [`Error::Busy`] while transactions that take long write to tasks.
pub async fn put(shards: &Shards, name: &str, subscription: &Subscription, secret: Option<&str>) -> Result<Put> {
    let mut secret = match (&subscription.sink, secret) {
        (Sink::Pull {}, _) => None,
        (Sink::Webhook(_), Some(secret)) => {
            standard_webhooks::check(secret)?;
            Some(secret.to_owned())
        }
        (Sink::Webhook(_), None) => Some(standard_webhooks::new_secret()),
    };
    let mut outcomes = Vec::new();
    for shard in shards.names() {
        // All have the secret that the first of them has.
        let put = put_in(&shards.named(shard).await?, name, subscription, secret.as_deref()).await?;
        secret = put.secret;
        outcomes.push(put.outcome);
    }
    let has = |outcome: &str| outcomes.iter().any(|of| of == outcome);
    let outcome = ["created", "changed"]
        .into_iter()
        .find(|outcome| has(outcome))
        .unwrap_or("unchanged");
    Ok(Put {
        outcome: outcome.to_owned(),
        secret: secret.filter(|_| outcome == "created"),
    })
}

async fn put_in(db: &Db, name: &str, subscription: &Subscription, secret: Option<&str>) -> Result<Put> {
    watch(db).await?;
    let query = sqlx::query_as("SELECT outcome, secret FROM tasker.put_subscription($1, $2, $3, $4, $5, $6, $7, 'operator')")
        .bind(name)
        .bind(&subscription.types)
        .bind(&subscription.namespaces)
        .bind(&subscription.templates)
        .bind(subscription.tags.as_ref().map(Json))
        .bind(Json(&subscription.sink))
        .bind(secret);
    Ok(query.fetch_one(db.pool()).await?)
}

/// Has everything told that anybody can subscribe to: a table after the other, since who writes to one may wait for another.
async fn watch(db: &Db) -> Result<()> {
    let tables: Vec<String> = sqlx::query_scalar("SELECT tasker.unwatched()").fetch_all(db.pool()).await?;
    for table in tables {
        for attempt in 1.. {
            match sqlx::query("SELECT tasker.watch($1)").bind(&table).execute(db.pool()).await {
                Ok(_) => break,
                Err(error) if is_locked(&error) && attempt < TRIES => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(error) if is_locked(&error) => {
                    return Err(Error::Busy(format!(
                        "transactions that take long write to tasker.{table}: try again when they are over"
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Nothing is told any more, where nobody has subscribed; later, while transactions that take long are at it.
pub(crate) async fn unwatch(db: &Db) -> Result<()> {
    loop {
        match sqlx::query_scalar("SELECT tasker.unwatch()").fetch_one(db.pool()).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if is_locked(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// lock_not_available
fn is_locked(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| code == "55P03")
}

/// Deletes a subscription, with what it was not told. Errors: [`Error::NotFound`]; [`Error::Invalid`] when it belongs to a file of settings.
pub async fn delete(shards: &Shards, name: &str) -> Result<()> {
    in_each(shards, name, |db| async move {
        let query = sqlx::query_scalar("SELECT tasker.delete_subscription($1, 'operator')").bind(name);
        Ok(query.fetch_one(db.pool()).await?)
    })
    .await
}

/// Pauses a subscription, or lets it go on from where it was, also one that was disabled. Errors: [`Error::NotFound`].
pub async fn pause(shards: &Shards, name: &str, paused: bool, who: &str, why: Option<&str>) -> Result<()> {
    in_each(shards, name, |db| async move {
        let query = sqlx::query_scalar("SELECT tasker.pause_subscription($1, $2, $3, $4)")
            .bind(name)
            .bind(paused);
        Ok(query.bind(who).bind(why).fetch_one(db.pool()).await?)
    })
    .await
}

/// Tells once more what has happened from that time on, as far as it is kept; or leaves out what was before. Errors: [`Error::NotFound`].
pub async fn replay(shards: &Shards, name: &str, from: DateTime<Utc>) -> Result<()> {
    in_each(shards, name, |db| async move {
        let query = sqlx::query_scalar("SELECT tasker.replay_subscription($1, $2)")
            .bind(name)
            .bind(from);
        Ok(query.fetch_one(db.pool()).await?)
    })
    .await
}

/// Gives it another secret, and returns it; requests are signed with the one before, too, until the next time. Errors: [`Error::NotFound`].
pub async fn rotate(shards: &Shards, name: &str) -> Result<String> {
    let secret = standard_webhooks::new_secret();
    let new = &secret;
    in_each(shards, name, |db| async move {
        let query = sqlx::query_scalar("SELECT tasker.rotate_secret($1, $2)").bind(name).bind(new);
        Ok(query.fetch_one(db.pool()).await?)
    })
    .await?;
    Ok(secret)
}

/// Does that in each shard. Errors: [`Error::NotFound`] where none has it.
async fn in_each<F: Future<Output = Result<bool>>>(shards: &Shards, name: &str, ask: impl Fn(Db) -> F) -> Result<()> {
    let mut found = false;
    for shard in shards.names() {
        found |= ask(shards.named(shard).await?).await?;
    }
    match found {
        true => Ok(()),
        false => Err(unknown(name)),
    }
}

/// The subscriptions, by name: objects of name, types, namespaces, templates, tags, sink, owner, paused, disabled, delivered, problem, failing_since and lag (in seconds). Each shard
/// says how far it has told. Of a webhook's address, which may be a secret, the host is shown.
pub async fn list(shards: &Shards) -> Result<Vec<Value>> {
    let listed = shards.list(|db| async move {
        let query = sqlx::query_scalar("SELECT tasker.list_subscriptions()");
        Ok(query.fetch_all(db.readers()).await?)
    });
    Ok(listed.await?.into_iter().map(hidden).collect())
}

fn hidden(mut subscription: Value) -> Value {
    if let Some(url) = subscription["sink"]["webhook"].get_mut("url") {
        let address: Uri = url.as_str().and_then(|url| url.parse().ok()).unwrap_or_default();
        let port = address.port().map_or(String::new(), |port| format!(":{port}"));
        *url = json!(format!(
            "{}://{}{port}/…",
            address.scheme_str().unwrap_or_default(),
            address.host().unwrap_or_default()
        ));
    }
    subscription
}

/// One of them, as each shard has it. Errors: [`Error::NotFound`].
pub async fn show(shards: &Shards, name: &str) -> Result<Vec<Value>> {
    let shown = shards.list(|db| async move {
        let query = sqlx::query_scalar("SELECT tasker.list_subscriptions($1)").bind(name);
        Ok(query.fetch_all(db.pool()).await?)
    });
    let shown: Vec<Value> = shown.await?.into_iter().map(hidden).collect();
    match shown.is_empty() {
        true => Err(unknown(name)),
        false => Ok(shown),
    }
}

fn unknown(name: &str) -> Error {
    Error::NotFound(format!("no subscription {name}"))
}
