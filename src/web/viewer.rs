//! Who looks at a page, and where it is.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use maud::Markup;

use super::page::{root, Page};
use super::Web;
use crate::api::access::Caller;
use crate::api::problem::{Outcome, Problem};
use crate::engine::tokens::Role;

/// Who looks at a page, refused where they may do less than the role that is [`Role::ALL`]'s with this number.
pub(super) struct Viewer<const ROLE: usize> {
    pub(super) caller: Caller,
    /// From this page to the first.
    pub(super) root: String,
}

pub(super) type Reader = Viewer<{ Role::Reader as usize }>;
pub(super) type Operator = Viewer<{ Role::Operator as usize }>;
pub(super) type Admin = Viewer<{ Role::Admin as usize }>;
pub(super) type Submitter = Viewer<{ Role::Submitter as usize }>;

impl<const ROLE: usize> FromRequestParts<Web> for Viewer<ROLE> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, web: &Web) -> Outcome<Self> {
        let caller = Caller::of(parts, &web.api).await?.on_a_page();
        caller.has_role(Role::ALL[ROLE])?;
        Ok(Viewer {
            caller,
            root: root(parts.uri.path()),
        })
    }
}

impl<const ROLE: usize> Viewer<ROLE> {
    pub(super) fn page(&self, title: impl Into<String>, body: Markup) -> Page {
        Page {
            title: title.into(),
            body,
            viewer: Some(self.caller.clone()),
        }
    }

    /// Whether they may change what they see.
    pub(super) fn operates(&self) -> bool {
        self.caller.may(Role::Operator)
    }
}
