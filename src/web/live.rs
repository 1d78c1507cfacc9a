//! What moves while one looks: the content of a task's page as server-sent events. However many look, one reader reads each task once a second.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::watch;
use uuid::Uuid;

use super::task::{self, Chosen};
use super::viewer::Reader;
use super::Web;
use crate::api::etag::digest;
use crate::api::extract::Part;
use crate::api::problem::Outcome;

/// How often a task is read while somebody looks.
const EVERY: Duration = Duration::from_secs(1);

/// How long a stream without news is left silent: proxies close those that are for a minute.
const SILENCE: Duration = Duration::from_secs(20);

/// An extension of a request whose taker cannot hold it: it gets what is new, and asks again.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneAtATime;

/// Of which task, with which of its steps chosen.
type Look = (Uuid, Option<String>);

/// What a page shows, and whether it will move no more.
#[derive(Debug, Clone, Default, PartialEq)]
struct Content {
    html: Arc<str>,
    is_last: bool,
}

/// Who looks at which tasks.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    looks: Arc<Mutex<HashMap<Look, watch::Sender<Content>>>>,
    /// Of many who begin to look at once, one reads.
    first: Arc<tokio::sync::Mutex<()>>,
}

impl Live {
    fn follow(&self, web: &Web, look: Look, content: Content) -> watch::Receiver<Content> {
        let mut looks = self.lock();
        if looks.is_empty() {
            tokio::spawn(self.clone().read(web.clone()));
        }
        let shown = looks.entry(look).or_default();
        shown.send_replace(content);
        shown.subscribe()
    }

    /// What somebody else sees already.
    fn known(&self, look: &Look) -> Option<Content> {
        let looks = self.lock();
        let known = looks.get(look)?.borrow().clone();
        Some(known)
    }

    /// Until nobody looks any more.
    async fn read(self, web: Web) {
        loop {
            tokio::time::sleep(EVERY).await;
            let looks: Vec<Look> = {
                let mut looks = self.lock();
                looks.retain(|_, shown| shown.receiver_count() > 0);
                looks.keys().cloned().collect()
            };
            if looks.is_empty() {
                return;
            }
            for look in looks {
                let content = content(&web, &look).await.unwrap_or_else(|problem| Content {
                    html: task::stale(&problem).into_string().into(),
                    is_last: false,
                });
                if let Some(shown) = self.lock().get(&look) {
                    shown.send_if_modified(|before| {
                        let is_new = *before != content;
                        *before = content;
                        is_new
                    });
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Look, watch::Sender<Content>>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn content(web: &Web, (id, step): &Look) -> Outcome<Content> {
    let (html, is_last) = task::content(web, *id, step.as_deref()).await?;
    Ok(Content {
        html: html.into_string().into(),
        is_last,
    })
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
    let reading = web.live.first.lock().await;
    let first = match web.live.known(&look) {
        Some(known) => known,
        None => content(&web, &look).await?,
    };
    let shown = web.live.follow(&web, look, first.clone());
    drop(reading);
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let body = match one {
        Some(_) => {
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
    Ok(([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], body).into_response())
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
    let mut event = format!("id: {}\n", digest(&*content.html));
    for line in content.html.split(['\n', '\r']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    if content.is_last {
        event.push_str("event: ended\ndata: \n\n");
    }
    event
}
