//! Who asks, as a proxy in front says that has signed them in: only where the request comes from the proxy's own address.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::groups::Groups;
use super::problem::{Outcome, Problem};
use crate::config::ProxyConfig;
use crate::engine::tokens::Holder;
use crate::error::{Error, Result};

/// The proxies that are believed.
#[derive(Debug)]
pub(super) struct Proxy {
    networks: Vec<IpNet>,
    user: HeaderName,
    groups: HeaderName,
    roles: Groups,
}

impl Proxy {
    /// None: there are none. Errors: [`Error::Config`].
    pub(super) fn new(config: &ProxyConfig) -> Result<Option<Proxy>> {
        let networks = config
            .networks()
            .map_err(|problem| Error::Config(format!("api.proxy.addresses {problem}")))?;
        let header = |name: &str| {
            name.parse()
                .map_err(|_| Error::Config(format!("api.proxy has {name:?}, which is no header")))
        };
        let proxy = Proxy {
            user: header(&config.user)?,
            groups: header(&config.groups)?,
            roles: Groups::new(&config.roles)?,
            networks,
        };
        Ok(Some(proxy).filter(|proxy| !proxy.networks.is_empty()))
    }

    /// Whether a request from this address comes from one of them.
    pub(super) fn is_at(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|address| self.networks.iter().any(|network| network.contains(&address.to_canonical())))
    }

    /// Whom it has signed in. None: nobody. Errors: somebody who has no role.
    pub(super) fn holder(&self, headers: &HeaderMap) -> Outcome<Option<Holder>> {
        let Some(user) = text(headers, &self.user).filter(|user| !user.is_empty()) else {
            return Ok(None);
        };
        let groups = headers.get_all(&self.groups).iter().filter_map(|groups| groups.to_str().ok());
        let role = self.roles.role(groups.flat_map(|groups| groups.split(',')).map(str::trim));
        let none = || Problem::forbidden(format!("{user} is in no group that has a role here (api.proxy.roles)"));
        Ok(Some(Holder::new(user, role.ok_or_else(none)?)))
    }

    /// The address of the client for which it asks: the last one, in the order of the proxies on the way, that is none of theirs.
    pub(super) fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let on_the_way = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|addresses| addresses.to_str().ok());
        let addresses: Vec<IpAddr> = on_the_way
            .flat_map(|addresses| addresses.split(','))
            .filter_map(|address| address.trim().parse().ok())
            .collect();
        addresses.into_iter().rev().find(|address| !self.is_at(Some(*address)))
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}
