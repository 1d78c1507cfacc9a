//! `tasker token`: who may use the API.

use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::{json, Value};

use super::server::{part, read, Reach};
use super::{listing, print, say, About, Connection};
use crate::engine::tokens::{self, Holder, NewToken, Role};
use crate::error::{Error, Result};

#[derive(Subcommand)]
pub(super) enum Token {
    /// Create a token, and print it: it cannot be shown again
    Create(Create),
    /// List the tokens that count, with when they were last used
    List {
        /// Those that are revoked, or have expired, too
        #[arg(long)]
        all: bool,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// End a token
    Revoke {
        /// The token's name
        name: String,
        #[command(flatten)]
        by: super::By,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Args)]
pub(super) struct Create {
    /// By which it is listed and revoked, and which the record of changes has
    name: String,
    /// reader (reads everything), submitter (creates tasks and sends signals), operator (changes tasks, too), admin (everything)
    #[arg(long)]
    role: Role,
    /// Whose tasks a submitter may create; default: all
    #[arg(long = "namespace", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// After how long it ends, such as 90d; default: when it is revoked
    #[arg(long, value_parser = humantime::parse_duration)]
    expires_in: Option<std::time::Duration>,
    #[command(flatten)]
    by: super::By,
    #[command(flatten)]
    connection: Connection,
}

const COLUMNS: [&str; 7] = [
    "name",
    "role",
    "namespaces",
    "created_by",
    "expires_at",
    "last_used_at",
    "revoked_at",
];

impl Token {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Token::Create(create) => create.run().await?,
            Token::List { all, json, connection } => {
                let listed = match connection.reach_of(About::Any).await? {
                    Reach::Database(db) => tokens::list_tokens(&db, all).await?,
                    Reach::Server(server) => server.whole("/tokens", &[("all", json!(all))])?,
                };
                let rows: Vec<Value> = listed.iter().map(row).collect();
                print(json, &json!(listed), || {
                    listing(
                        &["NAME", "ROLE", "NAMESPACES", "CREATED BY", "EXPIRES", "LAST USED", "REVOKED"],
                        &COLUMNS,
                        &rows,
                    )
                });
            }
            Token::Revoke { name, by, connection } => {
                match connection.reach_of(About::Any).await? {
                    Reach::Database(db) => tokens::revoke_token(&db, &name, &by.recorded().who).await?,
                    Reach::Server(server) => drop(server.post(&format!("/tokens/{}/revoke", part(&name)), json!({ "why": by.why }))?),
                }
                say(&format!("{name}: revoked"));
            }
        }
        Ok(0)
    }
}

impl Create {
    async fn run(self) -> Result<()> {
        let too_far = || Error::Invalid("expires_in is too far away".into());
        let expires_in = self.expires_in.map(chrono::Duration::from_std).transpose().map_err(|_| too_far())?;
        let expires_at = expires_in
            .map(|after| Utc::now().checked_add_signed(after).ok_or_else(too_far))
            .transpose()?;
        let holder = Holder {
            name: self.name,
            role: self.role,
            namespaces: Some(self.namespaces).filter(|names| !names.is_empty()),
        };
        let new = NewToken { holder, expires_at };
        let token = match self.connection.reach_of(About::Any).await? {
            Reach::Database(db) => tokens::create_token(&db, &new, &self.by.recorded().who).await?,
            Reach::Server(server) => {
                let NewToken { holder, expires_at } = new;
                let body = json!({ "name": holder.name, "role": holder.role, "namespaces": holder.namespaces, "expires_at": expires_at, "why": self.by.why });
                read(server.post("/tokens", body)?["token"].take())?
            }
        };
        say(&token);
        Ok(())
    }
}

fn row(token: &Value) -> Value {
    let mut row = token.clone();
    let names = token["namespaces"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
    row["namespaces"] = json!(names);
    row
}
