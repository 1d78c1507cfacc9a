//! Schedules for Ruby: one request in, one answer out, both JSON. lib/tasker_core/schedules.rb gives them their shape.

use std::str::FromStr;

use magnus::{method, prelude::*, Error, RClass, RModule, Ruby, Value as RubyValue};
use serde::Deserialize;
use serde_json::{json, Value};
use tasker::engine::schedules;
use tasker::engine::shards::Shards;
use tasker::schedule::Schedule;

use crate::client::Client;
use crate::waiting::block_on;
use crate::{json, raise};

#[derive(Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
enum Request {
    Put {
        name: String,
        template: String,
        schedule: Value,
    },
    List,
    Show {
        name: String,
        count: i32,
    },
    Pause {
        name: String,
        paused: bool,
        who: String,
        why: Option<String>,
    },
    Trigger {
        name: String,
    },
    Backfill {
        name: String,
        from: String,
        until: String,
    },
    Delete {
        name: String,
    },
}

/// Adds the method to Client, which is defined by then.
pub(crate) fn init(native: RModule) -> Result<(), Error> {
    native
        .const_get::<_, RClass>("Client")?
        .define_method("schedules", method!(call, 1))
}

fn call(ruby: &Ruby, client: &Client, request: RubyValue) -> Result<String, Error> {
    let request: Request = serde_json::from_value(json::from_ruby(ruby, request)?)
        .map_err(|error| raise::with_class(ruby, "InvalidInput", format!("schedules: {error}")))?;
    let shards = client.shards(ruby)?;
    Ok(block_on(ruby, async move { answer(&shards, request).await })?.to_string())
}

async fn answer(shards: &Shards, request: Request) -> tasker::Result<Value> {
    let home = async |name: &str| Ok::<_, tasker::Error>(schedules::find(shards, name, 0).await?.0);
    Ok(match request {
        Request::Put { name, template, schedule } => {
            json!(
                schedules::put(
                    &schedules::home_for(shards, &name, &template).await?,
                    &name,
                    &template,
                    &read(&schedule)?
                )
                .await?
            )
        }
        Request::List => json!(shards.list(|db| async move { schedules::list(&db).await }).await?),
        Request::Show { name, count } => schedules::find(shards, &name, count).await?.1,
        Request::Pause { name, paused, who, why } => {
            json!(schedules::pause(&home(&name).await?, &name, paused, &who, why.as_deref()).await?)
        }
        Request::Trigger { name } => json!(schedules::trigger(&home(&name).await?, &name).await?),
        Request::Backfill { name, from, until } => {
            json!(schedules::backfill(&home(&name).await?, &name, time(&from)?, time(&until)?).await?)
        }
        Request::Delete { name } => json!(schedules::delete(&home(&name).await?, &name).await?),
    })
}

fn read(written: &Value) -> tasker::Result<Schedule> {
    Schedule::parse(written).map_err(|problem| tasker::Error::Invalid(format!("the schedule is not valid: {problem}")))
}

/// A schedule as people write it, as templates have it; both JSON. Raises TaskerCore::InvalidInput.
pub(crate) fn parse(ruby: &Ruby, written: String) -> Result<String, Error> {
    let schedule = read(&json::parse(ruby, &written)?).map_err(|error| raise::error(ruby, &error))?;
    Ok(json!(schedule).to_string())
}

/// What is due of a schedule (JSON, as templates have it) at a time, of those from a time on (nil: it has none yet), and its next one; or, without a time
/// that it is, the first after that; all RFC 3339.
pub(crate) fn due(ruby: &Ruby, schedule: String, from: String, now: Option<String>) -> Result<(Vec<String>, Option<String>), Error> {
    let invalid = |problem: String| raise::with_class(ruby, "InvalidInput", problem);
    let schedule: Schedule = serde_json::from_str(&schedule).map_err(|error| invalid(error.to_string()))?;
    let times = schedule.times().map_err(invalid)?;
    let moment = |text: &str| time(text).map_err(|error| raise::error(ruby, &error));
    let from = moment(&from)?;
    Ok(match now {
        None => (Vec::new(), times.after(from).map(|next| next.to_rfc3339())),
        Some(now) => {
            let due = times.due(from, moment(&now)?, 10_000);
            (
                due.times.iter().map(|time| time.to_rfc3339()).collect(),
                due.next.map(|next| next.to_rfc3339()),
            )
        }
    })
}

fn time<T: FromStr>(text: &str) -> tasker::Result<T> {
    text.parse()
        .map_err(|_| tasker::Error::Invalid(format!("{text:?} is no time: expected one such as 2030-01-31T08:00:00Z")))
}
