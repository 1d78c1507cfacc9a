//! Pauses for Ruby: one request in, one answer out. lib/tasker_core/pauses.rb gives them their shape.

use magnus::{method, prelude::*, Error, RClass, RModule, Ruby, Value as RubyValue};
use serde::Deserialize;
use serde_json::{json, Value};
use tasker::engine::dead_letters::By;
use tasker::engine::pauses::{self, Pausable};
use tasker::engine::shards::Shards;

use crate::client::Client;
use crate::waiting::block_on;
use crate::{json, raise};

#[derive(Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
enum Request {
    Pause {
        kind: Pausable,
        name: String,
        #[serde(flatten)]
        by: By,
    },
    Resume {
        kind: Pausable,
        name: String,
    },
    List,
}

/// Adds the method to Client, which is defined by then.
pub(crate) fn init(native: RModule) -> Result<(), Error> {
    native.const_get::<_, RClass>("Client")?.define_method("pauses", method!(call, 1))
}

fn call(ruby: &Ruby, client: &Client, request: RubyValue) -> Result<String, Error> {
    let request: Request = serde_json::from_value(json::from_ruby(ruby, request)?)
        .map_err(|error| raise::with_class(ruby, "InvalidInput", format!("pauses: {error}")))?;
    let shards = client.shards(ruby)?;
    Ok(block_on(ruby, async move { answer(&shards, request).await })?.to_string())
}

async fn answer(shards: &Shards, request: Request) -> tasker::Result<Value> {
    Ok(match request {
        Request::Pause { kind, name, by } => json!(pauses::pause(&pauses::home_of(shards, kind, &name).await?, kind, &name, &by).await?),
        Request::Resume { kind, name } => json!(pauses::resume(&pauses::home_of(shards, kind, &name).await?, kind, &name).await?),
        Request::List => json!(shards.list(|db| async move { pauses::list(&db).await }).await?),
    })
}
