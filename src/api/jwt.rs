//! Who asks, by a JSON Web Token of another system (RFC 7519), as OpenID Connect's providers give them: signed by a key of its JSON Web Key Set (RFC 7517),
//! of its issuer, for us, and in its time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{decode, decode_header, AlgorithmFamily, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::groups::Groups;
use super::problem::{Outcome, Problem};
use super::signatures;
use crate::config::JwtConfig;
use crate::engine::tokens::Holder;
use crate::error::{Error, Result};
use crate::http::client;

/// For how long keys are not asked for again.
const FRESH: Duration = Duration::from_secs(600);

/// For how long they count where they cannot be asked for.
const KEPT: Duration = Duration::from_secs(24 * 3_600);

/// How often keys are asked for, whoever comes with an unknown one.
const AT_MOST_EVERY: Duration = Duration::from_secs(5);

/// How long asking may take, and how large an answer is.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 1 << 20;

/// What makes a token of another system count.
#[derive(Debug)]
pub(super) struct Jwt {
    keys: Arc<Keys>,
    issuer: String,
    audience: String,
    name: String,
    role: String,
    roles: Groups,
    namespaces: String,
}

impl Jwt {
    /// None: none counts. Errors: [`Error::Config`].
    pub(super) fn new(config: &JwtConfig) -> Result<Option<Jwt>> {
        let Some(url) = &config.jwks_url else { return Ok(None) };
        signatures::install();
        let needed = |value: &Option<String>, path: &str| value.clone().ok_or_else(|| Error::Config(format!("{path} is missing")));
        Ok(Some(Jwt {
            keys: Arc::new(Keys::at(url)),
            issuer: needed(&config.issuer, "api.jwt.issuer")?,
            audience: needed(&config.audience, "api.jwt.audience")?,
            name: config.name.clone(),
            role: config.role.clone(),
            roles: Groups::new(&config.roles)?,
            namespaces: config.namespaces.clone(),
        }))
    }

    /// Whose token this is. None: it does not count. Errors: it does, but of somebody who has no role, or the keys cannot be had.
    pub(super) async fn holder(&self, token: &str) -> Outcome<Option<Holder>> {
        let Ok(header) = decode_header(token) else { return Ok(None) };
        let Some(key) = self.keys.find(header.kid.as_deref()).await? else {
            return Ok(None);
        };
        let mut validation = Validation::new_for_family(key.family());
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        let claims = match decode::<Map<String, Value>>(token, &key, &validation) {
            Ok(decoded) => decoded.claims,
            Err(error) => {
                tracing::debug!(%error, "a JSON Web Token does not count");
                return match error.kind() {
                    ErrorKind::ExpiredSignature => Err(Problem::unauthorized_since("the token's time is over")),
                    _ => Ok(None),
                };
            }
        };
        let name = claim(&claims, &self.name).and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Problem::unauthorized_since(&format!("the token has no claim {} (api.jwt.name)", self.name)))?;
        let role = self.roles.role(texts(claim(&claims, &self.role)));
        let none = || {
            Problem::forbidden(format!(
                "{name} has no role here: the claim {} has none that api.jwt.roles knows",
                self.role
            ))
        };
        Ok(Some(Holder {
            namespaces: claim(&claims, &self.namespaces).map(|names| texts(Some(names)).map(str::to_owned).collect()),
            ..Holder::new(name, role.ok_or_else(none)?)
        }))
    }
}

/// By its whole name or, as some providers have them, within others.
fn claim<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| {
        let mut names = name.split('.');
        let first = claims.get(names.next()?)?;
        names.try_fold(first, |within, name| within.get(name))
    })
}

/// A text, or those of a list.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    value
        .filter(|value| value.is_string())
        .into_iter()
        .chain(list)
        .filter_map(Value::as_str)
}

type Known = Vec<(Option<String>, Arc<DecodingKey>)>;

/// The keys of another system, asked for when they are needed: new ones are known at once, and those that it has no more soon count no more.
#[derive(Debug)]
struct Keys {
    url: String,
    known: Mutex<(Known, Option<Instant>)>,
    /// One asks at a time; when the last did.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl Keys {
    fn at(url: &str) -> Keys {
        Keys {
            url: url.into(),
            known: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        }
    }

    /// The key of this id or, where a token says none, the only one there is. Errors: they cannot be had.
    async fn find(self: &Arc<Self>, id: Option<&str>) -> Outcome<Option<Arc<DecodingKey>>> {
        let (found, age) = self.known_by(id);
        match age {
            Some(age) if found.is_some() && age < FRESH => return Ok(found),
            Some(age) if found.is_some() && age < KEPT => {
                let keys = self.clone();
                tokio::spawn(async move { keys.ask().await });
                return Ok(found);
            }
            _ => {}
        }
        let is_answered = self.ask().await;
        match self.known_by(id) {
            (found, Some(age)) if age < KEPT => Ok(found),
            _ if is_answered => Ok(None),
            _ => Err(Problem::away(
                "the keys of the tokens' issuer cannot be had (api.jwt.jwks_url): try again in some seconds",
            )),
        }
    }

    fn known_by(&self, id: Option<&str>) -> (Option<Arc<DecodingKey>>, Option<Duration>) {
        let known = self.lock();
        let found = match id {
            Some(id) => known.0.iter().find(|(known, _)| known.as_deref() == Some(id)),
            None => known.0.first().filter(|_| known.0.len() == 1),
        };
        (found.map(|(_, key)| key.clone()), known.1.map(|at| at.elapsed()))
    }

    /// Whether there is an answer, unless somebody has just asked.
    async fn ask(self: &Arc<Self>) -> bool {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < AT_MOST_EVERY) {
            return false;
        }
        let url = self.url.clone();
        let fetched = tokio::task::spawn_blocking(move || fetch(&url)).await;
        *asked = Some(Instant::now());
        match fetched.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(keys) => {
                *self.lock() = (keys, Some(Instant::now()));
                true
            }
            Err(error) => {
                tracing::warn!(error, url = self.url, "the keys of JSON Web Tokens cannot be had");
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Known, Option<Instant>)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of all keys those that verify: one that both sides know would let us sign, too.
fn fetch(url: &str) -> std::result::Result<Known, String> {
    let text = match url.strip_prefix("file:") {
        Some(path) => std::fs::read_to_string(path).map_err(|error| error.to_string())?,
        None => {
            let agent = client::agent(PATIENCE).map_err(|error| error.to_string())?;
            let mut answer = agent.get(url).call().map_err(|error| error.to_string())?;
            if !answer.status().is_success() {
                return Err(format!("it answered {}", answer.status()));
            }
            let body = answer.body_mut().with_config().limit(MAX_BYTES);
            body.read_to_string().map_err(|error| error.to_string())?
        }
    };
    let set: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let keys = set["keys"].as_array().ok_or("it is no JSON Web Key Set")?;
    let parse = |key: &Value| {
        let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
        let verifies = DecodingKey::from_jwk(&jwk)
            .ok()
            .filter(|key| key.family() != AlgorithmFamily::Hmac)?;
        Some((jwk.common.key_id, Arc::new(verifies)))
    };
    Ok(keys.iter().filter_map(parse).collect())
}
