//! Errors as clients see them: problem details (RFC 9457), and what the OpenAPI document says of them.

use std::collections::BTreeMap;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::header::{HeaderValue, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde::Serialize;
use serde_json::json;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use crate::error::{Error, ErrorKind};

/// The media type of a problem.
const MEDIA_TYPE: &str = "application/problem+json";

const AWAY: &str = "the database is away, or cannot be worked with: the server's log says why";

/// What a handler comes to.
pub(crate) type Outcome<T> = Result<T, Problem>;

/// Why a request was refused (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is
    r#type: &'static str,
    /// The status in words
    title: &'static str,
    /// The HTTP status
    status: u16,
    /// What is wrong, and what was expected
    detail: String,
    /// After how many seconds another try may help, where that is known
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
    /// The task that there is, where another one that is the same was refused
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<Uuid>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
            task: None,
        }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// Nobody that is known.
    pub(crate) fn unauthorized() -> Problem {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "expected a header Authorization: Bearer TOKEN, with a token that counts (tasker token create)",
        )
    }

    /// Nobody that counts, and why.
    pub(crate) fn unauthorized_since(why: &str) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, why)
    }

    /// Somebody who may not.
    pub(crate) fn forbidden(why: impl Into<String>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, why)
    }

    /// What is needed cannot be had for now.
    pub(crate) fn away(why: &str) -> Problem {
        Problem {
            retry_after: Some(10),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }

    /// More than a token's rate.
    pub(crate) fn too_many(token: &str) -> Problem {
        Problem {
            retry_after: Some(1),
            ..Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("the token {token} makes too many requests (api.rate)"),
            )
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let status = match error.kind() {
            _ if error.is_bad_data() => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Template | ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::NotUnique | ErrorKind::Stale => StatusCode::CONFLICT,
            ErrorKind::Backpressure => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Config | ErrorKind::Database => StatusCode::SERVICE_UNAVAILABLE,
        };
        // Where the database is, and as whom we ask it, is nobody's business.
        let detail = match status.is_server_error() {
            true => {
                tracing::warn!(%error, "a request to the API could not be answered");
                AWAY.to_owned()
            }
            false => error.to_string(),
        };
        let mut problem = Problem::new(status, detail);
        match error {
            Error::Backpressure { retry_after, .. } => problem.retry_after = Some(retry_after),
            Error::NotUnique { task, .. } => problem.task = Some(task),
            _ => {}
        }
        problem
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Problem {
        Problem::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Problem {
        let text = rejection.body_text();
        let expected = if text.contains("UUID") {
            "; an id is a UUID such as 0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b"
        } else {
            ""
        };
        Problem::not_found(format!("there is no such thing: {text}{expected}"))
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Problem {
        Problem::bad_request(rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status(), self.retry_after);
        let mut response = (status, Json(&self)).into_response();
        // Pages say the same in their way.
        response.extensions_mut().insert(self);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// How a request that reads is refused.
pub(crate) enum ReadRefused {}

/// How a request that changes something is refused.
pub(crate) enum ChangeRefused {}

/// (status, what is wrong, an example of its detail)
type Refusal = (u16, &'static str, &'static str);

const READ: [Refusal; 7] = [
    (
        400,
        "A parameter is not acceptable",
        "Failed to deserialize query string: limit: invalid digit found in string",
    ),
    (
        401,
        "No token, or none that counts",
        "expected a header Authorization: Bearer TOKEN, with a token that counts (tasker token create)",
    ),
    (
        403,
        "The token's role may not do this",
        "the token shop is of the role submitter: this takes reader",
    ),
    (404, "There is no such thing", "no task 0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b"),
    (
        422,
        "What was said is not acceptable",
        "the input does not satisfy the input_schema of shop/order: /lines: [] has less than 1 item",
    ),
    (
        429,
        "Too many requests, or no tasks are taken for now",
        "the token shop makes too many requests (api.rate)",
    ),
    (503, "The database is away", AWAY),
];

const CHANGE: [Refusal; 3] = [
    (
        409,
        "It does not go with what is there, or was changed meanwhile",
        "the configuration is being changed by others",
    ),
    (413, "Too large", "the input has 1048600 bytes, at most 1048576 are accepted"),
    (
        415,
        "The body is not said to be application/json",
        "Expected request with `Content-Type: application/json`",
    ),
];

impl IntoResponses for ReadRefused {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(READ.iter())
    }
}

impl IntoResponses for ChangeRefused {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(READ.iter().chain(&CHANGE))
    }
}

fn responses<'r>(refusals: impl Iterator<Item = &'r Refusal>) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    refusals
        .map(|(status, description, detail)| {
            let problem = Problem::new(StatusCode::from_u16(*status).unwrap_or_default(), *detail);
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("Problem")))
                .example(Some(json!(problem)))
                .build();
            let response = ResponseBuilder::new().description(*description).content(MEDIA_TYPE, content);
            (status.to_string(), response.build().into())
        })
        .collect()
}
