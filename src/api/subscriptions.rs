//! Subscriptions: who is told what happens, and those who ask for it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body as Answer;
use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::ToSchema;

use super::access::{As, Caller, Operator, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{limit, Listed, Paged};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::schedules::Why;
use super::steering::{Done, Reason};
use super::streamed::{self, last_seen, OneAtATime, SILENCE};
use super::Api;
use crate::engine::audit::Change;
use crate::engine::deliveries::pull;
use crate::engine::everywhere;
use crate::engine::subscriptions;
use crate::subscription::Subscription;

/// How often it is looked for what is new, while somebody follows it.
const EVERY: Duration = Duration::from_secs(1);

/// List subscriptions
///
/// By name, and for each shard how far it has told: how many events were delivered, for how many seconds the next one waits, and since when its sink takes nothing, and why. It takes the role reader.
#[utoipa::path(get, path = "/subscriptions", tag = "subscriptions", params(Paged), responses(
    (status = 200, description = "A page of subscriptions", body = Listed, example = json!({ "items": [{
        "name": "billing", "types": ["task.complete"], "sink": { "webhook": { "url": "https://billing.example.com/…" } }, "delivered": 1042, "lag": 0.0 }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<Paged>) -> Outcome<Json<Listed>> {
    let all = subscriptions::list(&api.shards).await?;
    Ok(Json(Listed::of_all(all, &asked, &["name", "shard"])?))
}

/// Show a subscription
///
/// As each shard has it. It takes the role reader.
#[utoipa::path(get, path = "/subscriptions/{name}", tag = "subscriptions", params(("name" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The subscription", body = Listed, example = json!({ "items": [{
        "name": "billing", "types": ["task.complete"], "sink": { "webhook": { "url": "https://billing.example.com/…" } }, "delivered": 1042, "lag": 0.0 }], "next": null })),
    ReadRefused))]
pub(super) async fn show(State(api): State<Api>, _: Reader, Part(name): Part<String>) -> Outcome<Json<Listed>> {
    Ok(Json(Listed::whole(subscriptions::show(&api.shards, &name).await?)))
}

/// A subscription to be created, or changed
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "definition": { "types": ["task.complete", "task.failed"], "namespaces": ["shop"], "webhook": { "url": "https://billing.example.com/hooks" } } }))]
pub(super) struct PutSubscription {
    /// types; namespaces, templates and tags; webhook, or pull (docs/events.md)
    #[schema(value_type = Object)]
    definition: Value,
    /// By which the requests of a webhook are signed that is created (whsec_…); none: one is made
    secret: Option<String>,
    /// For those who read the record
    why: Option<String>,
}

/// What became of it
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SubscriptionPut {
    /// created, changed or unchanged
    outcome: String,
    /// By which the requests of a webhook are signed that was created. It cannot be shown again
    secret: Option<String>,
}

/// Create or change a subscription
///
/// To what happens from then on; of one that is changed, what it has had stays delivered. It takes the role operator.
#[utoipa::path(put, path = "/subscriptions/{name}", tag = "subscriptions", params(("name" = String, Path, description = "Its name")), request_body = PutSubscription,
    responses((status = 200, description = "What became of it", body = SubscriptionPut, example = json!({ "outcome": "created", "secret": "whsec_…" })), ChangeRefused))]
pub(super) async fn put(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(given): Body<PutSubscription>,
) -> Outcome<Json<SubscriptionPut>> {
    let subscription = Subscription::parse(&given.definition).map_err(|problem| Problem::invalid(format!("definition: {problem}")))?;
    let change = Change {
        details: Some(given.definition.clone()),
        ..Change::of("subscription.put", &name, given.why.as_deref())
    };
    let put = async { Ok(subscriptions::put(&api.shards, &name, &subscription, given.secret.as_deref()).await?) };
    let put = caller.change(&api.registry().await?, change, put, |_| None).await?;
    Ok(Json(SubscriptionPut {
        outcome: put.outcome,
        secret: put.secret,
    }))
}

/// Delete a subscription
///
/// What it was not told yet is not told any more. It takes the role operator.
#[utoipa::path(delete, path = "/subscriptions/{name}", tag = "subscriptions", params(("name" = String, Path, description = "Its name"), Why), responses(
    (status = 200, description = "It is deleted", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(super) async fn delete(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Asked(Why { why }): Asked<Why>,
) -> Outcome<Json<Done>> {
    let delete = async { Ok(subscriptions::delete(&api.shards, &name).await?) };
    let change = Change::of("subscription.delete", &name, why.as_deref());
    caller.change(&api.registry().await?, change, delete, |()| None).await?;
    Ok(Json(Done { done: true }))
}

async fn pausing(api: &Api, caller: &Caller, name: &str, paused: bool, why: Option<&str>) -> Outcome<Json<Done>> {
    let action = if paused { "subscription.pause" } else { "subscription.resume" };
    let by = caller.by(why);
    let pause = async { Ok(subscriptions::pause(&api.shards, name, paused, &by.who, why).await?) };
    let change = Change::of(action, name, why);
    caller.change(&api.registry().await?, change, pause, |()| None).await?;
    Ok(Json(Done { done: true }))
}

/// Pause a subscription
///
/// Nothing is delivered, and everything kept. It takes the role operator.
#[utoipa::path(post, path = "/subscriptions/{name}/pause", tag = "subscriptions", params(("name" = String, Path, description = "Its name")),
    request_body = Reason, responses((status = 200, description = "It is paused", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(super) async fn pause(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    pausing(&api, &caller, &name, true, why.as_deref()).await
}

/// Resume a subscription
///
/// It goes on from where it was; also one that was disabled, since its sink had taken nothing for days. It takes the role operator.
#[utoipa::path(post, path = "/subscriptions/{name}/resume", tag = "subscriptions", params(("name" = String, Path, description = "Its name")),
    request_body = Reason, responses((status = 200, description = "It goes on", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(super) async fn resume(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Done>> {
    pausing(&api, &caller, &name, false, why.as_deref()).await
}

/// From when on
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "from": "2026-11-29T00:00:00Z" }))]
pub(super) struct Replay {
    from: DateTime<Utc>,
    /// For those who read the record
    why: Option<String>,
}

/// Replay a subscription
///
/// What has happened from then on is delivered once more, as far as it is kept; with a later time than that of the last delivery, what is before is left out. It takes the role operator.
#[utoipa::path(post, path = "/subscriptions/{name}/replay", tag = "subscriptions", params(("name" = String, Path, description = "Its name")),
    request_body = Replay, responses((status = 200, description = "It begins there", body = Done, example = json!({ "done": true })), ChangeRefused))]
pub(super) async fn replay(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(given): Body<Replay>,
) -> Outcome<Json<Done>> {
    let change = Change {
        details: Some(json!({ "from": given.from })),
        ..Change::of("subscription.replay", &name, given.why.as_deref())
    };
    let replay = async { Ok(subscriptions::replay(&api.shards, &name, given.from).await?) };
    caller.change(&api.registry().await?, change, replay, |()| None).await?;
    Ok(Json(Done { done: true }))
}

/// The secret
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rotated {
    /// It cannot be shown again
    secret: String,
}

/// Give a subscription another secret
///
/// Requests are signed with the one before, too, until the next time. It takes the role operator.
#[utoipa::path(post, path = "/subscriptions/{name}/rotate-secret", tag = "subscriptions", params(("name" = String, Path, description = "Its name")),
    request_body = Reason, responses((status = 200, description = "The secret", body = Rotated, example = json!({ "secret": "whsec_…" })), ChangeRefused))]
pub(super) async fn rotate(
    State(api): State<Api>,
    As(caller): Operator,
    Part(name): Part<String>,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<Rotated>> {
    let rotate = async { Ok(subscriptions::rotate(&api.shards, &name).await?) };
    let change = Change::of("subscription.rotate_secret", &name, why.as_deref());
    let secret = caller.change(&api.registry().await?, change, rotate, |_| None).await?;
    Ok(Json(Rotated { secret }))
}

/// List or follow the events of a subscription
///
/// Those that it wants, in their order, as CloudEvents 1.0; without a cursor, those that happen from now on. Asked with `Accept: text/event-stream`, they are server-sent events, while they happen; with the
/// header `Last-Event-ID`, those after that one. It takes the role reader.
#[utoipa::path(get, path = "/subscriptions/{name}/events", tag = "subscriptions",
    params(("name" = String, Path, description = "Its name"), ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was received"), Paged),
    responses((status = 200, description = "A page of events; `next` is there also where there are no more for now", body = Listed, example = json!({ "items": [{
        "specversion": "1.0", "id": "1764417600500000-task.complete", "source": "/tasks/0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b",
        "type": "tasker.task.complete", "time": "2026-11-29T12:00:00.5Z", "data": { "namespace": "shop", "template": "order" } }], "next": "default=1764417600612001" })),
    ReadRefused))]
pub(super) async fn events(
    State(api): State<Api>,
    _: Reader,
    Part(name): Part<String>,
    headers: HeaderMap,
    Asked(asked): Asked<Paged>,
    one: Option<Extension<OneAtATime>>,
) -> Outcome<Response> {
    let limit = limit(asked.limit)?;
    let cursor = last_seen(&headers).or(asked.cursor);
    let (events, cursor) = read(&api, &name, Cursor::parse(cursor.as_deref())?, limit).await?;
    let accepts = headers.get(ACCEPT).and_then(|accepts| accepts.to_str().ok()).unwrap_or_default();
    if !accepts.contains("text/event-stream") {
        let events = events.into_iter().map(|(_, event)| event).collect();
        return Ok(Json(Listed::continued(events, Some(cursor.written()))).into_response());
    }
    // An id that has no data is kept by who asks, and is no event.
    let first = format!("id: {}\n\n{}", cursor.written(), written(events));
    Ok(streamed::stream(match one {
        Some(_) => Answer::from(format!("retry: 1500\n\n{first}")),
        None => Answer::from_stream(follow(api, name, first, cursor, limit)),
    }))
}

/// How far somebody has read, in each shard.
#[derive(Debug, Clone, Default)]
struct Cursor(BTreeMap<String, i64>);

impl Cursor {
    fn parse(text: Option<&str>) -> Outcome<Cursor> {
        let wrong = || Problem::bad_request("cursor: expected `next` of the page before");
        let read = |(shard, position): (&str, &str)| Ok((shard.to_owned(), position.parse().map_err(|_| wrong())?));
        let parts = match text {
            Some(text) => everywhere::cursor_parts(text).ok_or_else(wrong)?,
            None => Vec::new(),
        };
        Ok(Cursor(parts.into_iter().map(read).collect::<Outcome<_>>()?))
    }

    fn written(&self) -> String {
        everywhere::cursor_of(&self.0)
    }
}

/// What is next in each shard, with how far somebody has read who has had it.
async fn read(api: &Api, name: &str, mut cursor: Cursor, limit: i32) -> Outcome<(Vec<(Cursor, Value)>, Cursor)> {
    let mut events = Vec::new();
    for shard in api.shards.names() {
        let after = cursor.0.get(shard).copied();
        let (found, last) = pull(&api.shards.named(shard).await?, name, after, limit).await?;
        for (position, event) in found {
            cursor.0.insert(shard.to_owned(), position);
            events.push((cursor.clone(), event));
        }
        if let Some(last) = last {
            cursor.0.insert(shard.to_owned(), last);
        }
    }
    Ok((events, cursor))
}

fn written(events: Vec<(Cursor, Value)>) -> String {
    let event = |(cursor, event): (Cursor, Value)| streamed::event(&cursor.written(), &event.to_string());
    events.into_iter().map(event).collect()
}

fn follow(
    api: Api,
    name: String,
    first: String,
    cursor: Cursor,
    limit: i32,
) -> impl futures_util::Stream<Item = Result<String, Infallible>> {
    unfold((Some(first), cursor), move |(first, mut cursor)| {
        let (api, name) = (api.clone(), name.clone());
        async move {
            if let Some(first) = first {
                return Some((Ok(first), (None, cursor)));
            }
            let begun = tokio::time::Instant::now();
            while begun.elapsed() < SILENCE {
                tokio::time::sleep(EVERY).await;
                // Where PostgreSQL is away, they hear nothing for now; where the subscription is gone, nothing any more.
                match read(&api, &name, cursor.clone(), limit).await {
                    Ok((events, reached)) => {
                        cursor = reached;
                        if !events.is_empty() {
                            return Some((Ok(written(events)), (None, cursor)));
                        }
                    }
                    Err(problem) if problem.status() == StatusCode::NOT_FOUND => return None,
                    Err(_) => {}
                }
            }
            Some((Ok(": still here\n\n".to_owned()), (None, cursor)))
        }
    })
}
