//! `tasker queue`: what waits, by namespace; and queues that cannot be worked with.

use clap::Subcommand;
use serde_json::{json, Value};

use super::server::{read, Reach};
use super::{listing, print, Connection};
use crate::db::Repaired;
use crate::engine::repair::RepairedQueue;
use crate::engine::shards::Shards;
use crate::engine::{fleet, repair};
use crate::error::Result;

#[derive(Subcommand)]
pub(super) enum Queue {
    /// List each namespace with what waits (pending tasks, messages in its queue, dead letters), its orchestrators and workers, and its state: no workers, no orchestrator, no handler, broken, normal, warning or critical
    List {
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Make what the queues of these namespaces lack, or the queues anew, and send again what their steps have lost
    Repair {
        /// Without any: those that are broken
        namespaces: Vec<String>,
        /// A JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

const COLUMNS: [&str; 9] = [
    "namespace",
    "state",
    "pending",
    "oldest",
    "queued",
    "orchestrators",
    "workers",
    "completed/s",
    "dead",
];

impl Queue {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Queue::List { json, connection } => list(&connection.reach()?, json).await?,
            Queue::Repair {
                namespaces,
                json,
                connection,
            } => repair(&connection.reach()?, namespaces, json).await?,
        }
        Ok(0)
    }
}

async fn list(reach: &Reach<Shards>, json: bool) -> Result<()> {
    let fleet = match reach {
        Reach::Database(shards) => fleet::of_all(shards).await?,
        Reach::Server(server) => server.get("/fleet", &[])?,
    };
    let of = |name: &str| fleet[name].as_object().into_iter().flatten();
    let unhandled: Vec<&str> = fleet["unhandled"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|kind| kind["namespace"].as_str())
        .collect();
    let mut rows: Vec<Value> = of("namespaces")
        .map(|(name, of)| row(name, of, unhandled.contains(&name.as_str())))
        .collect();
    rows.extend(
        of("broken_queues")
            .map(|(queue, of)| json!({ "namespace": queue.trim_end_matches("_queue"), "state": "broken", "why": of["why"] })),
    );
    print(json, &json!(rows), || {
        let headings = COLUMNS.map(str::to_uppercase);
        let mut said = listing(&headings.each_ref().map(String::as_str), &COLUMNS, &rows);
        if let Some(asleep @ 1..) = fleet["asleep"].as_i64() {
            said += &format!("\n{asleep} more are asleep: nothing waits there, and no worker is theirs");
        }
        for (queue, of) in of("broken_queues") {
            said += &format!(
                "\n{queue} cannot be worked with: {}; see tasker queue repair",
                of["why"].as_str().unwrap_or_default()
            );
        }
        for kind in fleet["unhandled"].as_array().into_iter().flatten() {
            let [namespace, handler, step, template] =
                ["namespace", "handler", "step", "template"].map(|of| kind[of].as_str().unwrap_or_default());
            said += &format!("\nno worker of {namespace} has the handler {handler}: the step {step} of {template} waits for one that has");
        }
        said
    });
    Ok(())
}

async fn repair(reach: &Reach<Shards>, namespaces: Vec<String>, json: bool) -> Result<()> {
    let repaired: Vec<RepairedQueue> = match reach {
        Reach::Database(shards) => {
            let mut all = Vec::new();
            for (db, namespaces) in shards.of_namespaces_or_all(namespaces).await? {
                all.extend(repair::repair(&db, namespaces).await?);
            }
            all
        }
        Reach::Server(server) => read(server.post("/queues/repair", json!({ "namespaces": namespaces }))?["items"].take())?,
    };
    print(json, &json!(repaired), || match repaired.as_slice() {
        [] => "no queue is broken".to_owned(),
        repaired => repaired.iter().map(said).collect::<Vec<_>>().join("\n"),
    });
    Ok(())
}

fn said(of: &RepairedQueue) -> String {
    let Repaired { found, messages, letters } = &of.repaired;
    let found = found.as_deref().unwrap_or("nothing was wrong");
    format!("{}: {found}; sent again: {messages} messages, {letters} dead letters", of.namespace)
}

fn row(name: &str, of: &Value, unhandled: bool) -> Value {
    let lanes = || of["backlog"].as_object().into_iter().flatten().map(|(_, lane)| lane);
    let pending: i64 = lanes().filter_map(|lane| lane["pending"].as_i64()).sum();
    let oldest = lanes().filter_map(|lane| lane["oldest_seconds"].as_f64()).fold(0.0, f64::max);
    let waits = pending + of["queue"]["depth"].as_i64().unwrap_or_default() > 0;
    let state = match (of["orchestrators"].as_i64(), of["workers"].as_i64()) {
        (_, Some(0)) if waits => "no workers",
        (Some(0), Some(workers)) if waits || workers > 0 => "no orchestrator",
        _ if unhandled => "no handler",
        _ => of["pressure"]["state"].as_str().unwrap_or_default(),
    };
    let parked = if of["pressure"]["parked"] == true { ", low parked" } else { "" };
    json!({
        "namespace": name, "state": format!("{state}{parked}"), "pending": pending, "oldest": format!("{oldest:.0} s"),
        "queued": of["queue"]["depth"], "orchestrators": of["orchestrators"], "workers": of["workers"],
        "completed/s": (of["rates"]["1m"]["completed"].as_f64().unwrap_or_default() * 10.0).round() / 10.0,
        "dead": of["dead_letters"]["depth"],
    })
}
