//! Where a database is, and how it is reached: what its URL says, and nothing in it is passed over in silence.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

use super::certificate::Certificates;
use super::servers::Server;
use crate::error::{Error, Result};

/// What the driver reads.
const READ: [&str; 13] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];

/// What this file reads.
const OWN: [&str; 2] = ["connect_timeout", "target_session_attrs"];

/// Where a server that is not reached by a host has its socket: Debian, macOS, PostgreSQL's own default.
const SOCKETS: [&str; 3] = ["/var/run/postgresql", "/private/tmp", "/tmp"];

/// What a URL says.
#[derive(Debug)]
pub(super) struct Target {
    /// Those that it names, of which one is the primary.
    pub(super) servers: Vec<Server>,
    /// How long an answer may take at first; None: as long as ever.
    pub(super) patience: Option<Duration>,
}

/// Hosts and ports, user and database, for messages.
pub(super) fn named(servers: &[Server]) -> String {
    let places = servers.iter().map(Server::to_string).collect::<Vec<_>>().join(", ");
    let of = servers.first().map(|server| {
        let user = server.options.get_username();
        format!(" (user {user}, database {})", server.options.get_database().unwrap_or(user))
    });
    places + &of.unwrap_or_default()
}

impl Target {
    /// Errors: [`Error::Config`] for what is no URL of PostgreSQL, and for parameters that nobody would read.
    pub(super) fn parse(url: &str) -> Result<Target> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(not_valid(&match url.split_once("://") {
                // A word, and no part of a secret.
                Some((scheme, _)) if scheme.len() <= 12 && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) => {
                    format!("it begins with {scheme}://, which is not PostgreSQL's")
                }
                _ => "it begins otherwise".into(),
            }));
        }
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (scheme, after) = place.split_once("://").unwrap_or_default();
        let (authority, database) = after.split_once('/').unwrap_or((after, ""));
        let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let mut patience = None;
        let mut rest = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "connect_timeout" => patience = patience_of(value)?,
                // The engine writes: it always wants such a server, and says so where it finds another.
                "target_session_attrs" if ["read-write", "primary", "any"].contains(&value) => {}
                "target_session_attrs" => {
                    return Err(not_valid(&format!(
                        "target_session_attrs is {value}: expected read-write or primary"
                    )))
                }
                _ if READ.contains(&name) || name.starts_with("options[") => rest.push(parameter),
                _ => return Err(not_valid(&unknown(name))),
            }
        }
        let certificates = certificates_of(&rest);
        let mut servers = Vec::new();
        for (host, rest) in places(host, &rest)? {
            servers.push(Server {
                options: options_of(scheme, login, &host, database, &rest)?,
                certificates: certificates.clone(),
                tunnel: OnceLock::new(),
            });
        }
        Ok(Target { servers, patience })
    }
}

/// Which parameters may be lists, as of libpq (PostgreSQL 15, 34.1.1.3).
const LISTS: [&str; 3] = ["host", "hostaddr", "port"];

/// Each server: what stands for it before the database, and the parameters, with those of [`LISTS`] that are its own.
fn places(host: &str, rest: &[&str]) -> Result<Vec<(String, Vec<String>)>> {
    let listed = |parameter: &str| parameter.split_once('=').is_some_and(|(name, _)| LISTS.contains(&name));
    let split = |parameter: &str| -> Vec<String> {
        match parameter.split_once('=').filter(|_| listed(parameter)) {
            Some((name, values)) => {
                let values = values.replace("%2C", ",").replace("%2c", ",");
                values.split(',').map(|value| format!("{name}={value}")).collect()
            }
            None => vec![parameter.to_owned()],
        }
    };
    let hosts: Vec<&str> = host.split(',').collect();
    let parameters: Vec<Vec<String>> = rest.iter().map(|parameter| split(parameter)).collect();
    let count = parameters.iter().map(Vec::len).chain([hosts.len()]).max().unwrap_or(1);
    let fits = |length: usize| length == count || length == 1;
    if !fits(hosts.len()) || !parameters.iter().all(|of| fits(of.len())) || hosts.len() > 1 && hosts.contains(&"") {
        return Err(not_valid("of hosts and ports there are not as many of each, or one for all"));
    }
    let of = |place: usize| {
        let own = parameters.iter().map(|of| of[place.min(of.len() - 1)].clone());
        (hosts[place.min(hosts.len() - 1)].to_owned(), own.collect())
    };
    Ok((0..count).map(of).collect())
}

/// How one server is reached.
fn options_of(scheme: &str, login: &str, host: &str, database: &str, rest: &[String]) -> Result<PgConnectOptions> {
    // A URL may name no host and all the rest; the driver takes that as parameters alone.
    let url = match host.split_once(':').unwrap_or((host, "")) {
        ("", port) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let of_login = [("user", user), ("password", password), ("port", port)];
            let given = of_login.into_iter().filter(|(_, value)| !value.is_empty());
            let given = given.map(|(name, value)| format!("{name}={}", value.replace('+', "%2B")));
            let all: Vec<String> = given.chain(rest.iter().cloned()).collect();
            format!("{scheme}:///{database}?{}", all.join("&"))
        }
        _ if login.is_empty() => format!("{scheme}://{host}/{database}?{}", rest.join("&")),
        _ => format!("{scheme}://{login}@{host}/{database}?{}", rest.join("&")),
    };
    let mut options = PgConnectOptions::from_str(&url).map_err(|error| not_valid(&error.to_string()))?;
    let names_host = |parameter: &String| parameter.starts_with("host=") || parameter.starts_with("hostaddr=");
    if url.contains(":///") && !rest.iter().any(names_host) && env::var_os("PGHOST").is_none() {
        if let Some(folder) = SOCKETS
            .iter()
            .find(|folder| Path::new(folder).join(format!(".s.PGSQL.{}", options.get_port())).exists())
        {
            options = options.socket(folder);
        }
    }
    if !rest.iter().any(|parameter| parameter.starts_with("application_name=")) {
        options = options.application_name("tasker");
    }
    // No float of ours is text, and PgBouncer refuses a parameter that it does not know.
    options = options.extra_float_digits(None);
    Ok(options)
}

/// As the driver finds them.
fn certificates_of(rest: &[&str]) -> Certificates {
    let file = |name: &str| {
        let given = rest.iter().find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
        let given = given.map(|file| OsString::from(percent_decode_str(file).decode_utf8_lossy().into_owned()));
        given
            .or_else(|| env::var_os(format!("PG{}", name.to_uppercase())))
            .map(PathBuf::from)
    };
    Certificates {
        root: file("sslrootcert"),
        own: file("sslcert").zip(file("sslkey")),
    }
}

/// As libpq reads it, where 0 is no bound of its own.
fn patience_of(value: &str) -> Result<Option<Duration>> {
    match value.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds.min(super::FIRST.as_secs())))),
        Err(_) => Err(not_valid(&format!("connect_timeout is {value}: expected whole seconds"))),
    }
}

fn unknown(name: &str) -> String {
    let known = READ.into_iter().chain(OWN);
    let nearest = known.clone().max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
    match nearest.filter(|nearest| strsim::jaro(nearest, name) > 0.8) {
        Some(nearest) => format!("the parameter {name} is unknown, did you mean {nearest}?"),
        None => {
            let known = known.collect::<Vec<_>>().join(", ");
            format!("the parameter {name} is unknown; known are {known}")
        }
    }
}

fn not_valid(why: &str) -> Error {
    Error::Config(format!(
        "the database URL is not valid ({why}): expected postgres://user:password@host:port/database, or several hosts with commas between them"
    ))
}
