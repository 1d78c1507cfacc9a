//! Signals for Ruby: one request in, one answer out, both JSON. lib/tasker_core/signals.rb gives them their shape.

use std::time::Duration;

use magnus::{method, prelude::*, Error, RClass, RModule, Ruby, Value as RubyValue};
use serde::Deserialize;
use serde_json::{json, Value};
use tasker::engine::lists;
use tasker::engine::shards::Shards;
use tasker::engine::signals::{self, Addressee, Signal, WaitFilter, SEND_WITHIN};
use tasker::Db;

use crate::client::{parse_id, Client};
use crate::waiting::block_on;
use crate::{json, raise};

#[derive(Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
enum Request {
    Send { signal: Given },
    Check { signal: Given },
    Waiting { filter: WaitFilter, limit: i32 },
}

/// The payload is JSON as text.
#[derive(Deserialize)]
struct Given {
    task: Option<String>,
    key: Option<String>,
    name: String,
    payload: String,
    id: Option<String>,
    keep: Option<f64>,
}

/// Adds the method to Client, which is defined by then.
pub(crate) fn init(native: RModule) -> Result<(), Error> {
    let client = native.const_get::<_, RClass>("Client")?;
    // For statements on the application's own connections.
    client.const_set("SEND_WITHIN", SEND_WITHIN)?;
    client.define_method("signals", method!(call, 1))
}

fn call(ruby: &Ruby, client: &Client, request: RubyValue) -> Result<String, Error> {
    let request: Request = serde_json::from_value(json::from_ruby(ruby, request)?)
        .map_err(|error| raise::with_class(ruby, "InvalidInput", format!("signals: {error}")))?;
    let shards = client.shards(ruby)?;
    let answer = match request {
        Request::Send { signal } => {
            let signal = signal.read(ruby)?;
            block_on(ruby, async move {
                Ok(json!(signals::send(&of(&shards, &signal).await?, &signal).await?))
            })?
        }
        Request::Check { signal } => {
            let signal = signal.read(ruby)?;
            block_on(ruby, async move {
                Ok(json!(signals::check(&of(&shards, &signal).await?, &signal).await?))
            })?
        }
        Request::Waiting { filter, limit } => {
            block_on(
                ruby,
                async move { Ok(json!(lists::waits_page(&shards, &filter, None, limit).await?.0)) },
            )?
        }
    };
    Ok(answer.to_string())
}

/// Where it is to arrive: a key is looked for at home.
async fn of(shards: &Shards, signal: &Signal) -> tasker::Result<Db> {
    match signal.to {
        Addressee::Task(task) => shards.of_task(task).await,
        Addressee::Key(_) => shards.home().await,
    }
}

impl Given {
    fn read(self, ruby: &Ruby) -> Result<Signal, Error> {
        Ok(Signal {
            to: match self.task {
                Some(task) => Addressee::Task(parse_id(ruby, &task)?),
                None => Addressee::Key(self.key.unwrap_or_default()),
            },
            name: self.name,
            payload: self.payload,
            id: self.id,
            keep: self.keep.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        })
    }
}

/// For tests without a database: raises unless the payload (JSON) satisfies all of these schemas (a JSON array).
pub(crate) fn check_payload(ruby: &Ruby, name: String, payload: String, schemas: String) -> Result<(), Error> {
    let schemas: Vec<Value> =
        serde_json::from_str(&schemas).map_err(|error| raise::with_class(ruby, "InvalidInput", format!("schemas: {error}")))?;
    signals::check_payload_by(&name, &payload, &schemas).map_err(|error| raise::error(ruby, &error))
}
