//! What has happened to a task: as a list, or as server-sent events while it happens.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::TimeDelta;
use futures_util::stream::{iter, unfold};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use super::access::Reader;
use super::extract::Part;
use super::followed::Followed;
use super::listed::Listed;
use super::problem::{Outcome, Problem, ReadRefused};
use super::streamed::{self, last_seen, OneAtATime, SILENCE};
use super::Api;
use crate::engine::events::{events_of, time_of};
use crate::engine::read::{read_outline, ENDED};

/// How often a task is read while somebody follows it, and how many are at once.
const EVERY: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 4;

/// An event may be seen this much later than one that happened after it: a transaction that takes long is seen when it ends.
const LATE: TimeDelta = TimeDelta::seconds(60);

/// The events of tasks that somebody follows, and whether there will be more.
pub(super) type Events = Followed<Uuid, (Arc<[Value]>, bool)>;

/// List or follow what has happened to a task
///
/// The oldest first, as CloudEvents 1.0: that the task was created, began, was paused, ended; that a step was enqueued, began, failed, ended. Asked with
/// `Accept: text/event-stream`, they are server-sent events, while they happen; with the header `Last-Event-ID`, those after that one. Some may come again,
/// with the ids that they had. Once the task has ended and there is nothing new, the answer is 204. It takes the role reader.
#[utoipa::path(get, path = "/tasks/{id}/events", tag = "tasks",
    params(("id" = Uuid, Path, description = "The task's id"), ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was received")),
    responses((status = 200, description = "The events", body = Listed, example = json!({ "items": [{
        "specversion": "1.0", "id": "1764417600500000-step.complete-charge", "source": "/tasks/0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b",
        "type": "tasker.step.complete", "time": "2026-11-29T12:00:00.5Z",
        "data": { "step": "charge", "template": "order", "namespace": "shop", "attempt": 1, "worker": "host:7" } }], "next": null })),
    (status = 204, description = "The task has ended, and there is nothing after that event"), ReadRefused))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Reader,
    Part(id): Part<Uuid>,
    headers: HeaderMap,
    one: Option<Extension<OneAtATime>>,
) -> Outcome<Response> {
    let accepts = headers.get(ACCEPT).and_then(|accepts| accepts.to_str().ok()).unwrap_or_default();
    let wants_stream = accepts.contains("text/event-stream");
    if !wants_stream {
        let (events, _) = read(&api, id).await?;
        return Ok(Json(Listed::whole(events.to_vec())).into_response());
    }
    let reading = api.clone();
    let all = move |tasks: Vec<Uuid>| {
        let api = reading.clone();
        let read = move |task: Uuid| {
            let api = api.clone();
            // Where PostgreSQL is away, those who follow hear nothing for now.
            async move { Some((task, read(&api, task).await.ok()?)) }
        };
        iter(tasks)
            .map(read)
            .buffer_unordered(AT_ONCE)
            .filter_map(|read| async { read })
            .collect()
    };
    let followed = api.events.follow_from(id, read(&api, id), EVERY, all).await?;
    let mut sent = Sent::after(last_seen(&headers).as_deref());
    let (events, is_over) = followed.borrow().clone();
    let first = sent.what_is_new(&events);
    // Which tells a browser to ask no more.
    if first.is_empty() && is_over {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(streamed::stream(match one {
        Some(_) => Body::from(format!("retry: 1500\n\n{first}")),
        None => Body::from_stream(stream(followed, sent, first, is_over)),
    }))
}

async fn read(api: &Api, task: Uuid) -> Outcome<(Arc<[Value]>, bool)> {
    let task = read_outline(&api.shards.of_task(task).await?, task).await.map_err(Problem::from)?;
    let is_over = ENDED.iter().any(|state| task["state"] == *state);
    Ok((events_of(&task).into(), is_over))
}

/// What somebody has had.
struct Sent {
    ids: HashSet<String>,
    after: Option<String>,
}

impl Sent {
    /// Up to this event.
    fn after(id: Option<&str>) -> Sent {
        Sent {
            ids: id.map(str::to_owned).into_iter().collect(),
            after: id.map(str::to_owned),
        }
    }

    /// The others, which they have from now on.
    fn what_is_new(&mut self, events: &[Value]) -> String {
        let since = self.after.as_deref().and_then(time_of).map(|time| time - LATE);
        let mut new = String::new();
        for event in events {
            let id = event["id"].as_str().unwrap_or_default();
            if since.is_some_and(|since| time_of(id).is_some_and(|time| time < since)) || !self.ids.insert(id.to_owned()) {
                continue;
            }
            new.push_str(&streamed::event(id, &event.to_string()));
        }
        new
    }
}

fn stream(
    followed: watch::Receiver<(Arc<[Value]>, bool)>,
    sent: Sent,
    first: String,
    is_over: bool,
) -> impl futures_util::Stream<Item = Result<String, Infallible>> {
    unfold(
        (followed, sent, Some(first), is_over),
        |(mut followed, mut sent, first, is_over)| async move {
            if let Some(first) = first {
                return Some((Ok(format!(": events\n\n{first}")), (followed, sent, None, is_over)));
            }
            if is_over {
                return None;
            }
            match tokio::time::timeout(SILENCE, followed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((Ok(": still here\n\n".to_owned()), (followed, sent, None, false))),
            }
            let (events, is_over) = followed.borrow_and_update().clone();
            let new = sent.what_is_new(&events);
            Some((Ok(new), (followed, sent, None, is_over)))
        },
    )
}
