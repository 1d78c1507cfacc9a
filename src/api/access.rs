//! Who asks, and what they may do.
//!
//! A program says who it is in each request, by its token. A browser, the host itself and an application that has signed somebody in say so in all requests,
//! also in those that a page of another site has made: of these, one that changes something must come from a page of our own.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header::{self, AUTHORIZATION, FORWARDED, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri};

use super::problem::{Outcome, Problem};
use super::Api;
use crate::config::distributed::Author;
use crate::config::DEFAULT_SHARD;
use crate::db::Db;
use crate::engine::audit::{self, Change};
use crate::engine::dead_letters::By;
use crate::engine::tokens::{find_holder, Holder, Role, PREFIX};

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    holder: Holder,
    address: Option<IpAddr>,
    via: &'static str,
    has_cookie: bool,
}

/// Who asks, as an application says that has taken the request and signed them in: an extension of the request.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// As the record of changes has them.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// The cookie in which a browser keeps its token.
pub(crate) const COOKIE: &str = "tasker_token";

/// An extractor: who asks, refused where they may do less than the role that is [`Role::ALL`]'s with this number.
pub(crate) struct As<const ROLE: usize>(pub(crate) Caller);

pub(crate) type Submitter = As<{ Role::Submitter as usize }>;
pub(crate) type Reader = As<{ Role::Reader as usize }>;
pub(crate) type Operator = As<{ Role::Operator as usize }>;
pub(crate) type Admin = As<{ Role::Admin as usize }>;

impl<const ROLE: usize> FromRequestParts<Api> for As<ROLE> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Outcome<Self> {
        let caller = Caller::of(parts, api).await?;
        caller.has_role(Role::ALL[ROLE])?;
        Ok(As(caller))
    }
}

impl Caller {
    /// Who has made a request. Errors: nobody that is known, or one that changes something and may be another site's.
    pub(crate) async fn of(parts: &Parts, api: &Api) -> Outcome<Caller> {
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|client| client.0.ip());
        let proxy = api.proxy.as_ref().filter(|proxy| proxy.is_at(address));
        check_url(&parts.uri)?;
        let somebody = proxy.map_or(Ok(None), |proxy| proxy.holder(&parts.headers))?;
        let holder = match (bearer(&parts.headers), somebody) {
            (Some(token), _) => api.holder(token).await?,
            (None, Some(holder)) => {
                check_origin(&parts.method, &parts.headers)?;
                holder
            }
            (None, None) => {
                let holder = Caller::signed_in(parts, api, address).await?;
                check_origin(&parts.method, &parts.headers)?;
                holder
            }
        };
        Ok(Caller {
            holder,
            address: proxy.map_or(address, |proxy| proxy.client(&parts.headers).or(address)),
            via: "api",
            has_cookie: cookie(&parts.headers).is_some() && parts.extensions.get::<SignedIn>().is_none(),
        })
    }

    /// Who asks without saying so in this very request.
    async fn signed_in(parts: &Parts, api: &Api, address: Option<IpAddr>) -> Outcome<Holder> {
        if let Some(somebody) = parts.extensions.get::<SignedIn>() {
            return Ok(Holder::new(&somebody.name, somebody.role));
        }
        if let Some(token) = cookie(&parts.headers) {
            return api.holder(token).await;
        }
        let says_otherwise = parts.headers.contains_key(AUTHORIZATION);
        match api.trusts_loopback && !says_otherwise && is_of_this_host(&parts.headers, address) {
            true => Ok(Holder::new("local", Role::Admin)),
            false => Err(Problem::unauthorized()),
        }
    }

    /// The same, on a page.
    pub(crate) fn on_a_page(self) -> Caller {
        Caller { via: "web", ..self }
    }

    /// Whether it is a browser that has signed in with a token.
    pub(crate) fn has_cookie(&self) -> bool {
        self.has_cookie
    }

    pub(crate) fn name(&self) -> &str {
        &self.holder.name
    }

    pub(crate) fn may(&self, role: Role) -> bool {
        self.holder.role >= role
    }

    pub(crate) fn has_role(&self, role: Role) -> Outcome<()> {
        match self.may(role) {
            true => Ok(()),
            false => Err(self.forbidden(&format!("is of the role {}: this takes {}", self.holder.role.name(), role.name()))),
        }
    }

    fn forbidden(&self, why: &str) -> Problem {
        Problem::forbidden(format!("the token {} {why}", self.holder.name))
    }

    /// Whether it is one of some namespaces only.
    pub(super) fn is_bounded(&self) -> bool {
        self.holder.namespaces.is_some()
    }

    /// Refuses a submitter of other namespaces.
    pub(super) fn may_submit_to(&self, namespace: Option<&str>) -> Outcome<()> {
        match &self.holder.namespaces {
            Some(names) if !namespace.is_some_and(|namespace| names.iter().any(|name| name == namespace)) => {
                Err(self.forbidden(&format!("is for {}, and for nothing else", names.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// As it is recorded with what is done to tasks.
    pub(super) fn by(&self, why: Option<&str>) -> By {
        By {
            who: self.holder.name.clone(),
            why: why.map(str::to_owned),
        }
    }

    /// As it is recorded with a version of the configuration.
    pub(super) fn author(&self, why: Option<&str>) -> Author {
        Author {
            who: self.holder.name.clone(),
            why: why.map(str::to_owned),
        }
    }

    /// Does what is recorded before in the same database, and then what became of it; `object` is what came of it, where that was not known.
    pub(super) async fn change<T>(
        &self,
        db: &Db,
        change: Change<'_>,
        doing: impl Future<Output = Outcome<T>>,
        object: impl FnOnce(&T) -> Option<String>,
    ) -> Outcome<T> {
        let change = Change {
            who: &self.holder.name,
            via: self.via,
            address: self.address,
            ..change
        };
        let number = audit::begin(db, &change).await?;
        let done = doing.await;
        db.note_change();
        let (error, object) = match &done {
            Ok(done) => (None, object(done)),
            Err(problem) => (Some(problem.detail()), None),
        };
        audit::end(db, number, error, object.as_deref()).await?;
        done
    }
}

impl Api {
    /// The database that knows the tokens, and has the record of what is of no shard.
    pub(super) async fn registry(&self) -> Outcome<Db> {
        Ok(self.shards.named(DEFAULT_SHARD).await?)
    }

    /// Whose token this is. Errors: nobody's that counts, or one that asks too often.
    pub(crate) async fn holder(&self, token: &str) -> Outcome<Holder> {
        let token = token.trim();
        let found = match &self.jwt {
            Some(jwt) if !token.starts_with(PREFIX) => jwt.holder(token).await?,
            _ => find_holder(&self.registry().await?, token).await?,
        };
        let holder = found.ok_or_else(Problem::unauthorized)?;
        self.rates.check_key(&holder.name).map_err(|_| Problem::too_many(&holder.name))?;
        Ok(holder)
    }
}

/// The token that says who asks. Other ways to say it are for those in front of us.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let (_, token) = cookies
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)?;
    Some(token)
}

/// Refuses what a page of another site may have made a browser ask (<https://developer.mozilla.org/docs/Web/HTTP/Headers/Sec-Fetch-Site>; browsers that do
/// not say it name the site).
pub(crate) fn check_origin(method: &Method, headers: &HeaderMap) -> Outcome<()> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_own = match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").is_some_and(|(_, host)| Some(host) == text("host")),
        (None, None) => true,
    };
    match is_own || method.is_safe() {
        true => Ok(()),
        false => Err(Problem::forbidden("this was asked by a page of another site")),
    }
}

fn check_url(url: &Uri) -> Outcome<()> {
    if url
        .query()
        .is_some_and(|query| query.contains(PREFIX) || query.contains("access_token="))
    {
        return Err(Problem::bad_request(
            "a token does not belong in a URL, which logs keep: revoke it, and send another in the header Authorization",
        ));
    }
    match url.to_string().contains("%00") {
        true => Err(Problem::bad_request(
            "the URL contains the character U+0000, which PostgreSQL cannot store",
        )),
        false => Ok(()),
    }
}

/// Whether it is a program of this host that asks, for itself: not a proxy for others, not a page of another site in a browser of this host, and not one
/// whose site's name leads here.
fn is_of_this_host(headers: &HeaderMap, address: Option<IpAddr>) -> bool {
    let is_loopback = address.is_some_and(|address| address.to_canonical().is_loopback());
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let origin = text(ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    is_loopback && !is_forwarded(headers) && is_local_name(text(HOST).unwrap_or_default()) && origin.is_none_or(is_local_name)
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    let is_a_proxys = |name: &str| name.starts_with("x-forwarded-") || matches!(name, "x-real-ip" | "via");
    headers.contains_key(FORWARDED) || headers.keys().any(|name| is_a_proxys(name.as_str()))
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_request_by_another_name_or_for_somebody_else_is_not_one_of_this_host() {
        let here = "127.0.0.1".parse().ok();
        for host in ["localhost", "localhost:8471", "127.0.0.1:8471", "[::1]:8471", "[::1]"] {
            assert!(is_of_this_host(&headers(&[("host", host)]), here), "{host}");
            assert!(!is_of_this_host(&headers(&[("host", host)]), "10.0.0.1".parse().ok()), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:8471", "10.0.0.1:8471"] {
            assert!(!is_of_this_host(&headers(&[("host", host)]), here), "{host}");
        }
        for header in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"] {
            assert!(
                !is_of_this_host(&headers(&[("host", "localhost"), (header, "1.2.3.4")]), here),
                "{header}"
            );
        }
        let from = |origin| is_of_this_host(&headers(&[("host", "localhost:8471"), ("origin", origin)]), here);
        assert!(from("http://localhost:8471"));
        assert!(!from("https://evil.example") && !from("null"));
    }
}
