//! A page: what a handler makes, before it has its frame.

use axum::response::{IntoResponse, Response};
use maud::Markup;

use crate::api::access::Caller;

/// A page without its frame.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) body: Markup,
    /// Who looks. None: nobody that is known.
    pub(super) viewer: Option<Caller>,
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = ().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// From a page to the first: `../` for each folder that it is in.
pub(super) fn root(path: &str) -> String {
    match path.matches('/').count() {
        0 | 1 => "./".into(),
        folders => "../".repeat(folders - 1),
    }
}
