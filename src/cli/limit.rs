//! `tasker limit`: how many steps may be under way or start, and the circuit breakers that make them wait.

use clap::Subcommand;
use serde_json::{json, Value};

use super::server::{part, Reach};
use super::{listing, print, About, Connection};
use crate::engine::limits;
use crate::error::{Error, Result};

#[derive(Subcommand)]
pub(super) enum Limit {
    /// List the limits with how many permits are granted, how many steps wait, and their circuit breakers
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Close the circuit breakers of a limit, so that its steps run again at once
    Reset {
        /// NAMESPACE/LIMIT
        name: String,
        /// Only that of this key
        #[arg(long)]
        key: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
}

const COLUMNS: [&str; 7] = ["limit", "of", "concurrency", "rate", "granted", "waiting", "breaker"];

impl Limit {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Limit::List { json, connection } => {
                let limits = match connection.reach()? {
                    Reach::Database(shards) => shards.list(|db| async move { limits::list(&db).await }).await?,
                    Reach::Server(server) => server.all("/limits", &[])?,
                };
                let rows: Vec<Value> = limits.iter().map(row).collect();
                print(json, &json!(limits), || {
                    let headings = COLUMNS.map(str::to_uppercase);
                    listing(&headings.each_ref().map(String::as_str), &COLUMNS, &rows)
                });
            }
            Limit::Reset { name, key, connection } => {
                let wanted = || Error::Invalid(format!("{name}: expected NAMESPACE/LIMIT"));
                let (namespace, limit) = name.split_once('/').ok_or_else(wanted)?;
                let reset = match connection.reach_of(About::Namespace(namespace)).await? {
                    Reach::Database(db) => json!(limits::reset(&db, namespace, limit, key.as_deref()).await?),
                    Reach::Server(server) => {
                        server.post(&format!("/limits/{}/{}/reset", part(namespace), part(limit)), json!({ "key": key }))?["closed"].take()
                    }
                };
                println!("{reset} closed");
            }
        }
        Ok(0)
    }
}

fn row(limit: &Value) -> Value {
    let text = |name: &str| limit[name].as_str().unwrap_or_default();
    let of = [("handler", ""), ("template", "template "), ("key", "by ")]
        .into_iter()
        .filter(|(name, _)| limit[*name].is_string());
    let of: Vec<String> = of.map(|(name, word)| format!("{word}{}", text(name))).collect();
    let rate = limit["rate"].as_i64().map(|rate| format!("{rate} in {} s", limit["per_seconds"]));
    let breaker = limit["breaker"].as_array().map(|not_closed| match not_closed.as_slice() {
        [] => "closed".to_owned(),
        [one] => one["state"].as_str().unwrap_or_default().replace('_', " "),
        many => format!("{} are not closed", many.len()),
    });
    let of = if of.is_empty() { vec!["all".to_owned()] } else { of };
    let doubt = match (&limit["concerns"], &limit["key_is_missing"]) {
        (Value::Number(none), _) if none.as_i64() == Some(0) => " (of no template so far)",
        (_, Value::Bool(true)) => " (which no input has so far)",
        _ => "",
    };
    json!({
        "limit": format!("{}/{}", text("namespace"), text("name")), "of": of.join(", ") + doubt,
        "concurrency": limit["concurrency"], "rate": rate, "granted": limit["granted"], "waiting": limit["waiting"], "breaker": breaker,
    })
}
