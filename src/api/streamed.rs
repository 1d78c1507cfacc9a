//! Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), as the dashboard and the API send them.

use std::time::Duration;

use axum::http::header::{HeaderValue, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

/// How long a stream without news is left silent: proxies close those that are for a minute.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);

/// An extension of a request whose taker cannot hold it: it gets what is new, and asks again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneAtATime;

/// The id of the last event that whoever asks has had.
pub(crate) fn last_seen(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("last-event-id")?.to_str().ok()?.to_owned())
}

/// One event.
pub(crate) fn event(id: &str, data: &str) -> String {
    let mut event = format!("id: {id}\n");
    for line in data.split(['\n', '\r']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

/// A stream of them, or what there is of it.
pub(crate) fn stream(body: axum::body::Body) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body).into_response()
}
