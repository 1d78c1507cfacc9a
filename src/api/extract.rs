//! What requests say: bodies, parts of the path, queries. What cannot be read is a problem that says why.

use axum::body::Body as Stream;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::StatusCode;
use axum::Json;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::{Outcome, Problem};
use crate::engine::payload::has_nul;

/// The largest body: a thousand tasks of four kilobytes, or one with an input of a mebibyte.
const MAX_BODY_BYTES: usize = 4 << 20;

/// A client that still sends hears no answer: so much of what is too large is taken in before it is refused.
const MAX_TAKEN_BYTES: usize = 16 * MAX_BODY_BYTES;

/// The body: JSON. None at all is `{}`.
pub(crate) struct Body<T>(pub(crate) T);

/// A part of the path.
#[derive(FromRequestParts)]
#[from_request(via(Path), rejection(Problem))]
pub(crate) struct Part<T>(pub(crate) T);

/// The query.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Problem))]
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Outcome<Body<T>> {
        let media_type = request.headers().get(CONTENT_TYPE).cloned();
        let bytes = take_in(request.into_body()).await?;
        if bytes.is_empty() {
            return Ok(Body(Json::from_bytes(b"{}")?.0));
        }
        // Which no page of another site can send without being asked for its permission.
        if !media_type.is_some_and(|found| is_json(found.to_str().unwrap_or_default())) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "expected a body of Content-Type: application/json",
            ));
        }
        if std::str::from_utf8(&bytes).is_ok_and(has_nul) {
            return Err(Problem::invalid(
                "the body contains the character U+0000, which PostgreSQL cannot store",
            ));
        }
        Ok(Body(Json::from_bytes(&bytes)?.0))
    }
}

async fn take_in(body: Stream) -> Outcome<Vec<u8>> {
    let (mut body, mut bytes, mut taken) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")))?;
        taken += part.len();
        if taken > MAX_TAKEN_BYTES {
            break;
        }
        if taken <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&part);
        }
    }
    match taken > MAX_BODY_BYTES {
        true => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {MAX_BODY_BYTES} bytes"),
        )),
        false => Ok(bytes),
    }
}

fn is_json(media_type: &str) -> bool {
    media_type
        .split(';')
        .next()
        .is_some_and(|of| of.trim().eq_ignore_ascii_case("application/json"))
}
