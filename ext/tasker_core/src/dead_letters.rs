//! The dead-letter verbs for Ruby: one request in, one answer out, both JSON. lib/tasker_core/dlq.rb gives them their shape.

use magnus::{method, prelude::*, Error, RClass, RModule, Ruby, Value as RubyValue};
use serde::Deserialize;
use serde_json::{json, Value};
use tasker::engine::dead_letters::{self, By, Filter, Replay, Verb};
use tasker::engine::lists;
use tasker::engine::shards::Shards;

use crate::client::Client;
use crate::waiting::block_on;
use crate::{json, raise};

#[derive(Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
enum Request {
    List { filter: Filter, limit: i32 },
    Groups { filter: Filter },
    Show { id: String },
    Matching { filter: Filter },
    Replay { ids: Vec<String>, how: Replay, by: By },
    Resolve { ids: Vec<String>, result: Value, by: By },
    Skip { ids: Vec<String>, by: By },
    Discard { ids: Vec<String>, by: By },
    Purge { by: By },
    Actions { limit: i32 },
}

/// Adds the method to Client, which is defined by then.
pub(crate) fn init(native: RModule) -> Result<(), Error> {
    native
        .const_get::<_, RClass>("Client")?
        .define_method("dead_letters", method!(call, 1))
}

fn call(ruby: &Ruby, client: &Client, request: RubyValue) -> Result<String, Error> {
    let request: Request = serde_json::from_value(json::from_ruby(ruby, request)?)
        .map_err(|error| raise::with_class(ruby, "InvalidInput", format!("dead letters: {error}")))?;
    let shards = client.shards(ruby)?;
    Ok(block_on(ruby, async move { answer(&shards, request).await })?.to_string())
}

async fn answer(shards: &Shards, request: Request) -> tasker::Result<Value> {
    Ok(match request {
        Request::List { filter, limit } => json!(lists::letters_page(shards, &filter, None, limit).await?.0),
        Request::Groups { filter } => json!(lists::letter_groups(shards, &filter).await?),
        Request::Show { id } => dead_letters::show(&shards.of_letter(&id).await?, &id).await?,
        Request::Matching { filter } => json!(lists::matching_letters(shards, &filter).await?),
        Request::Replay { ids, how, by } => json!(Verb::Replay(how).act_on_all(shards, ids, &by).await?),
        Request::Resolve { ids, result, by } => json!(Verb::Resolve(result).act_on_all(shards, ids, &by).await?),
        Request::Skip { ids, by } => json!(Verb::Skip.act_on_all(shards, ids, &by).await?),
        Request::Discard { ids, by } => json!(Verb::Discard.act_on_all(shards, ids, &by).await?),
        Request::Purge { by } => json!(dead_letters::purge_of_all(shards, &by).await?),
        Request::Actions { limit } => json!(lists::letter_actions(shards, limit).await?),
    })
}
