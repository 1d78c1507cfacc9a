//! Where a database is, and how it is reached: what its URL says, and nothing in it is passed over in silence.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

use super::certificate::Certificates;
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
    pub(super) options: PgConnectOptions,
    /// How long an answer may take at first; None: as long as ever.
    pub(super) patience: Option<Duration>,
    /// What the driver keeps to itself.
    pub(super) certificates: Certificates,
}

impl Target {
    /// Errors: [`Error::Config`] for what is no URL of one PostgreSQL, and for parameters that nobody would read.
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
                "host" | "hostaddr" | "port" if value.contains(',') || value.contains("%2C") => return Err(several_hosts()),
                _ if READ.contains(&name) || name.starts_with("options[") => rest.push(parameter),
                _ => return Err(not_valid(&unknown(name))),
            }
        }
        if host.contains(',') {
            return Err(several_hosts());
        }
        // A URL may name no host and all the rest; the driver takes that as parameters alone.
        let url = match host.split_once(':').unwrap_or((host, "")) {
            ("", port) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                let of_login = [("user", user), ("password", password), ("port", port)];
                let given = of_login.into_iter().filter(|(_, value)| !value.is_empty());
                let given = given.map(|(name, value)| format!("{name}={}", value.replace('+', "%2B")));
                let all: Vec<String> = given.chain(rest.iter().map(|&parameter| parameter.to_owned())).collect();
                format!("{scheme}:///{database}?{}", all.join("&"))
            }
            _ => format!("{place}?{}", rest.join("&")),
        };
        let mut options = PgConnectOptions::from_str(&url).map_err(|error| not_valid(&error.to_string()))?;
        let names_host = |parameter: &&str| parameter.starts_with("host=") || parameter.starts_with("hostaddr=");
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
        // As the driver finds them.
        let file = |name: &str| {
            let given = rest.iter().find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
            let given = given.map(|file| OsString::from(percent_decode_str(file).decode_utf8_lossy().into_owned()));
            given
                .or_else(|| env::var_os(format!("PG{}", name.to_uppercase())))
                .map(PathBuf::from)
        };
        let certificates = Certificates {
            root: file("sslrootcert"),
            own: file("sslcert").zip(file("sslkey")),
        };
        Ok(Target {
            options,
            patience,
            certificates,
        })
    }
}

/// As libpq reads it, where 0 is no bound of its own.
fn patience_of(value: &str) -> Result<Option<Duration>> {
    match value.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds.min(super::ACQUIRE.as_secs())))),
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

fn several_hosts() -> Error {
    Error::Config("the database URL names several hosts, of which only one can be used so far: name the primary, or an address that always leads to it".into())
}

fn not_valid(why: &str) -> Error {
    Error::Config(format!(
        "the database URL is not valid ({why}): expected postgres://user:password@host:port/database"
    ))
}
