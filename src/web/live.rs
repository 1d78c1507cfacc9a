//! What moves while one looks: the content of a task's page as server-sent events. However many look, one reader reads each task once a second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::stream::{iter, unfold};
use futures_util::StreamExt;
use tokio::sync::watch;
use uuid::Uuid;

use super::task::{self, Chosen};
use super::viewer::Reader;
use super::Web;
use crate::api::etag::digest;
use crate::api::extract::Part;
use crate::api::followed::Followed;
use crate::api::problem::{Outcome, Problem};
use crate::api::streamed::{self, last_seen, OneAtATime, SILENCE};

/// How often a task is read while somebody looks.
const EVERY: Duration = Duration::from_secs(1);

/// Of which task, with which of its steps chosen.
pub(super) type Look = (Uuid, Option<String>);

/// What a page shows, and whether it will move no more.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Content {
    html: Arc<str>,
    is_last: bool,
}

/// Who looks at which tasks.
pub(super) type Live = Followed<Look, Content>;

/// How many tasks are read at once.
const AT_ONCE: usize = 4;

async fn content(web: &Web, (id, step): &Look) -> Outcome<Content> {
    let (html, is_last) = task::content(web, *id, step.as_deref()).await?;
    Ok(Content {
        html: html.into_string().into(),
        is_last,
    })
}

/// In its place, while it cannot be read.
fn stale(problem: &Problem) -> Content {
    Content {
        html: task::stale(problem).into_string().into(),
        is_last: false,
    }
}

pub(super) async fn follow(
    State(web): State<Web>,
    _: Reader,
    Part(id): Part<Uuid>,
    Query(chosen): Query<Chosen>,
    headers: HeaderMap,
    one: Option<axum::Extension<OneAtATime>>,
) -> Outcome<Response> {
    let look = (id, chosen.step);
    let reading = web.clone();
    let read = move |looks: Vec<Look>| {
        let web = reading.clone();
        let read = move |look: Look| {
            let web = web.clone();
            async move {
                let content = content(&web, &look).await.unwrap_or_else(|problem| stale(&problem));
                (look, content)
            }
        };
        iter(looks).map(read).buffer_unordered(AT_ONCE).collect()
    };
    // A page that begins while PostgreSQL is away goes on by itself, too: a browser asks for no stream a second time that was refused.
    let first = async {
        match content(&web, &look).await {
            Err(problem) if problem.status().is_server_error() => Ok(stale(&problem)),
            first => first,
        }
    };
    let shown = web.live.follow_from(look.clone(), first, EVERY, read).await?;
    let seen = last_seen(&headers);
    let body = match one {
        Some(_) => {
            let first = shown.borrow().clone();
            // Until it asks again, so that many of them cost one reader, too.
            tokio::spawn(async move {
                tokio::time::sleep(3 * EVERY).await;
                drop(shown);
            });
            let has_seen_it = seen.is_some_and(|seen| seen == digest(&*first.html));
            let news = if has_seen_it && !first.is_last {
                String::new()
            } else {
                event(&first)
            };
            Body::from(format!(": one at a time\n\n{news}"))
        }
        None => Body::from_stream(stream(shown, seen)),
    };
    Ok(streamed::stream(body))
}

fn stream(shown: watch::Receiver<Content>, seen: Option<String>) -> impl futures_util::Stream<Item = Result<String, Infallible>> {
    // The first is there already.
    let mut shown = shown;
    shown.mark_changed();
    unfold((shown, seen, false), |(mut shown, seen, is_over)| async move {
        if is_over {
            return None;
        }
        match tokio::time::timeout(SILENCE, shown.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some((Ok(": still here\n\n".to_owned()), (shown, seen, false))),
        }
        let content = shown.borrow_and_update().clone();
        let id = digest(&*content.html);
        let news = match seen.as_deref() == Some(&*id) && !content.is_last {
            true => ": nothing new\n\n".to_owned(),
            false => event(&content),
        };
        Some((Ok(news), (shown, Some(id), content.is_last)))
    })
}

/// The content as an event; behind the last, one that says so.
fn event(content: &Content) -> String {
    let mut event = streamed::event(&digest(&*content.html), &content.html);
    if content.is_last {
        event.push_str("event: ended\ndata: \n\n");
    }
    event
}
