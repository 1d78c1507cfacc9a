//! `tasker queue`: what waits, by namespace.

use clap::Subcommand;
use serde_json::{json, Value};

use super::{listing, print, Connection};
use crate::engine::fleet;
use crate::error::Result;

#[derive(Subcommand)]
pub(super) enum Queue {
    /// List each namespace with what waits (pending tasks, messages in its queue, dead letters), its workers, and its state: normal, warning or critical
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

const COLUMNS: [&str; 8] = [
    "namespace",
    "state",
    "pending",
    "oldest",
    "queued",
    "workers",
    "completed/s",
    "dead",
];

impl Queue {
    pub(super) async fn run(self) -> Result<i32> {
        let Queue::List { json, connection } = self;
        let fleet = fleet::fleet(&connection.open().await?).await?;
        let rows: Vec<Value> = fleet["namespaces"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, of)| row(name, of))
            .collect();
        print(json, &json!(rows), || {
            let headings = COLUMNS.map(str::to_uppercase);
            let listed = listing(&headings.each_ref().map(String::as_str), &COLUMNS, &rows);
            match fleet["asleep"].as_i64() {
                None | Some(0) => listed,
                Some(asleep) => format!("{listed}\n{asleep} more are asleep: nothing waits there, and no worker is theirs"),
            }
        });
        Ok(0)
    }
}

fn row(name: &str, of: &Value) -> Value {
    let lanes = || of["backlog"].as_object().into_iter().flatten().map(|(_, lane)| lane);
    let pending: i64 = lanes().filter_map(|lane| lane["pending"].as_i64()).sum();
    let oldest = lanes().filter_map(|lane| lane["oldest_seconds"].as_f64()).fold(0.0, f64::max);
    let state = of["pressure"]["state"].as_str().unwrap_or_default();
    let parked = if of["pressure"]["parked"] == true { ", low parked" } else { "" };
    json!({
        "namespace": name, "state": format!("{state}{parked}"), "pending": pending, "oldest": format!("{oldest:.0} s"),
        "queued": of["queue"]["depth"], "workers": of["workers"],
        "completed/s": (of["rates"]["1m"]["completed"].as_f64().unwrap_or_default() * 10.0).round() / 10.0,
        "dead": of["dead_letters"]["depth"],
    })
}
