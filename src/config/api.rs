//! The settings of the dashboard and the API: where they answer, and whom they know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::is_web_address;

/// How the API answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Whether `tasker serve` has the dashboard and the REST API.
    #[schemars(extend("x-restart" = true))]
    pub enabled: bool,
    /// Where the dashboard and the API answer.
    #[schemars(with = "Option<String>", extend("x-restart" = true, "x-default" = "127.0.0.1:8480, or the next that is free"))]
    pub listen: Option<SocketAddr>,
    /// The file (PEM) of the certificate, with those between it and its root, by which they answer over TLS; read again when it has changed.
    #[schemars(with = "Option<String>", extend("x-restart" = true))]
    pub tls_certificate: Option<PathBuf>,
    /// The file (PEM) of that certificate's private key.
    #[schemars(with = "Option<String>", extend("x-restart" = true))]
    pub tls_key: Option<PathBuf>,
    /// Whether programs of the same host need no token for the dashboard and the API.
    #[schemars(extend("x-restart" = true))]
    pub trust_loopback: bool,
    /// How many requests a second whoever has a token may make, by that token.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-restart" = true))]
    pub rate: u32,
    /// The API's database connections at most, beside those of the orchestrator: made when they are needed.
    #[schemars(range(min = 1, max = 1000), extend("x-restart" = true))]
    pub connections: u32,
    /// The sites whose pages may use the API from a browser, with tokens of their own, such as `https://console.example.com` (CORS).
    #[schemars(extend("x-restart" = true))]
    pub allowed_origins: Vec<String>,
    /// Where the dashboard's links to traces lead, with `{trace_id}` in it, such as `https://jaeger.example.com/trace/{trace_id}`.
    #[schemars(extend("x-restart" = true))]
    pub trace_url: Option<String>,
    /// Who may by a JSON Web Token of another system (OpenID Connect).
    pub jwt: JwtConfig,
    /// Who may as a proxy says that has signed them in.
    pub proxy: ProxyConfig,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            enabled: true,
            listen: None,
            tls_certificate: None,
            tls_key: None,
            trust_loopback: true,
            rate: 200,
            connections: 4,
            allowed_origins: Vec::new(),
            trace_url: None,
            jwt: JwtConfig::default(),
            proxy: ProxyConfig::default(),
        }
    }
}

/// Who may by a JSON Web Token of another system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    /// Where the keys are that sign them, as a JSON Web Key Set: `https://…`, or `file:/path`. Without it, none counts.
    #[schemars(extend("x-restart" = true))]
    pub jwks_url: Option<String>,
    /// Who issues them: the claim `iss`.
    #[schemars(extend("x-restart" = true))]
    pub issuer: Option<String>,
    /// For whom they are: the claim `aud`, or one of it.
    #[schemars(extend("x-restart" = true))]
    pub audience: Option<String>,
    /// The claim that has the name by which changes are recorded.
    #[schemars(extend("x-restart" = true))]
    pub name: String,
    /// The claim that has the role, or a list of groups; one within others with dots, such as `realm_access.roles`.
    #[schemars(extend("x-restart" = true))]
    pub role: String,
    /// Which role a group has, such as `{ platform: admin, support: operator }`; without any, groups are roles by their names.
    #[schemars(schema_with = "roles")]
    pub roles: BTreeMap<String, String>,
    /// The claim that has the list of namespaces whose tasks a submitter may create; without the claim, all.
    #[schemars(extend("x-restart" = true))]
    pub namespaces: String,
}

impl Default for JwtConfig {
    fn default() -> Self {
        JwtConfig {
            jwks_url: None,
            issuer: None,
            audience: None,
            name: "sub".into(),
            role: "tasker_role".into(),
            roles: BTreeMap::new(),
            namespaces: "tasker_namespaces".into(),
        }
    }
}

/// Who may as a proxy says that has signed them in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// The addresses, or networks such as `10.0.0.0/8`, of proxies that are believed; none: none is.
    #[schemars(extend("x-restart" = true))]
    pub addresses: Vec<String>,
    /// The header in which they say who has signed in.
    #[schemars(extend("x-restart" = true))]
    pub user: String,
    /// The header that has the role, or groups with commas between them.
    #[schemars(extend("x-restart" = true))]
    pub groups: String,
    /// Which role a group has; without any, groups are roles by their names.
    #[schemars(schema_with = "roles")]
    pub roles: BTreeMap<String, String>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        ProxyConfig {
            addresses: Vec::new(),
            user: "X-Forwarded-User".into(),
            groups: "X-Forwarded-Groups".into(),
            roles: BTreeMap::new(),
        }
    }
}

impl ProxyConfig {
    /// Of the proxies that are believed. Errors: what is none.
    pub(crate) fn networks(&self) -> Result<Vec<IpNet>, String> {
        let parse = |text: &String| text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into()));
        let other = |text: &String| format!("has {text:?}: expected an address, or a network such as 10.0.0.0/8");
        self.addresses.iter().map(|text| parse(text).map_err(|_| other(text))).collect()
    }
}

fn roles(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object", "additionalProperties": { "enum": ["submitter", "reader", "operator", "admin"] }, "x-restart": true,
    })
}

impl ApiConfig {
    /// What no type can say: where it is, and what was expected.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => found.push(("api.tls_key", "is missing: expected the key of api.tls_certificate".into())),
            (None, Some(_)) => found.push(("api.tls_certificate", "is missing: expected the certificate of api.tls_key".into())),
            _ => {}
        }
        let is_site = |origin: &String| is_web_address(origin) && origin.matches('/').count() == 2;
        if let Some(other) = self.allowed_origins.iter().find(|origin| !is_site(origin)) {
            found.push((
                "api.allowed_origins",
                format!("has {other:?}: expected http:// or https:// and a host, and nothing behind it"),
            ));
        }
        if self
            .trace_url
            .as_ref()
            .is_some_and(|url| !is_web_address(&url.replace("{trace_id}", "0")) || !url.contains("{trace_id}"))
        {
            found.push(("api.trace_url", "is no address with {trace_id} in it".into()));
        }
        if let Err(problem) = self.proxy.networks() {
            found.push(("api.proxy.addresses", problem));
        }
        if let Some(url) = &self.jwt.jwks_url {
            if !is_web_address(url) && !url.starts_with("file:/") {
                found.push((
                    "api.jwt.jwks_url",
                    "is no address: expected https:// and a host, or file:/ and a path".into(),
                ));
            }
            for (path, is_missing) in [
                ("api.jwt.issuer", self.jwt.issuer.is_none()),
                ("api.jwt.audience", self.jwt.audience.is_none()),
            ] {
                if is_missing {
                    found.push((path, "is missing: expected the only one whose tokens count".into()));
                }
            }
        }
        found
    }
}
