//! Tokens: by which the API knows who asks (`migrations/0036_access.sql`).

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::db::Db;
use crate::error::{Error, Result};

/// With what each token begins, so that people and scanners of secrets know one when they see it.
pub(crate) const PREFIX: &str = "tasker_";

/// What whoever has a token may do; each may do what those before it may, but for a submitter, who reads nothing but what became of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Creates tasks and sends signals, of some namespaces or of all.
    Submitter,
    /// Reads everything but tokens.
    Reader,
    /// Changes tasks, dead letters, pauses, schedules.
    Operator,
    /// Changes configuration and tokens, too.
    Admin,
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Role::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("unknown role {text:?}: expected reader, submitter, operator or admin"))
    }
}

impl Role {
    /// From the one that may do least.
    pub const ALL: [Role; 4] = [Role::Submitter, Role::Reader, Role::Operator, Role::Admin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Role::Submitter => "submitter",
            Role::Reader => "reader",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// Who has a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Holder {
    /// The token's name.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Of a submitter: the namespaces whose tasks it may create. None: all.
    pub namespaces: Option<Vec<String>>,
}

impl Holder {
    /// Somebody who is not of some namespaces only.
    pub(crate) fn new(name: &str, role: Role) -> Holder {
        Holder {
            name: name.into(),
            role,
            namespaces: None,
        }
    }
}

/// A token to be created.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// By which it is listed and revoked, and which the record of changes has.
    pub holder: Holder,
    /// When it ends; None: when it is revoked.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Creates a token, and returns it: it is kept nowhere, and cannot be shown again.
/// Errors: [`Error::Invalid`] where there is one of that name, or one of its parts is not acceptable.
pub async fn create_token(db: &Db, new: &NewToken, who: &str) -> Result<String> {
    // 244 random bits.
    let token = format!("{PREFIX}{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    sqlx::query("SELECT tasker.create_token($1, $2, $3, $4, $5, $6)")
        .bind(&new.holder.name)
        .bind(digest(&token))
        .bind(new.holder.role.name())
        .bind(&new.holder.namespaces)
        .bind(new.expires_at)
        .bind(who)
        .execute(db.pool())
        .await?;
    Ok(token)
}

/// It counts no more. Errors: [`Error::NotFound`].
pub async fn revoke_token(db: &Db, name: &str, who: &str) -> Result<()> {
    let query = sqlx::query_scalar("SELECT tasker.revoke_token($1, $2)").bind(name).bind(who);
    match query.fetch_one(db.pool()).await? {
        true => Ok(()),
        false => Err(Error::NotFound(format!("no token {name}"))),
    }
}

/// The newest 1,000 tokens, with when they were last used, as of some minute; `all`: those that count no more, too.
pub async fn list_tokens(db: &Db, all: bool) -> Result<Vec<Value>> {
    Ok(sqlx::query_scalar("SELECT tasker.list_tokens($1)")
        .bind(all)
        .fetch_all(db.pool())
        .await?)
}

/// Whose token this is. None: nobody's, or it counts no more.
pub async fn find_holder(db: &Db, token: &str) -> Result<Option<Holder>> {
    if !token.starts_with(PREFIX) {
        return Ok(None);
    }
    let query = sqlx::query_scalar("SELECT tasker.find_token($1)").bind(digest(token));
    let found: Option<Value> = query.fetch_one(db.pool()).await?;
    Ok(found.and_then(|found| serde_json::from_value(found).ok()))
}

fn digest(token: &str) -> Vec<u8> {
    Sha256::digest(token).to_vec()
}
