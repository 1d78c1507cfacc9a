//! The benchmark: what one machine does, with everything on it. `bench/run` runs it; every figure comes from this one run, so that ratios
//! between them mean something. What was learned from it is in NOTES.md.

// A benchmark that cannot go on has nothing better to do than to say why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod claims;
mod compare;
mod events;
mod fanout;
mod fleet;
mod flood;
mod horizon;
mod latency;
mod limits;
mod memory;
mod network;
mod pooler;
mod raw;
mod report;
mod retention;
mod scaling;
mod shards;
mod site;
mod stalls;
mod telemetry;
mod throughput;

use clap::Parser;
use serde_json::{json, Value};

use report::Report;
use site::{Language, Site};
use throughput::Shape;

#[derive(Parser)]
struct Options {
    /// How many tasks, or steps, a throughput run takes through
    #[arg(long, default_value_t = 80_000)]
    steps: usize,
    /// How often each measurement is made; the report has the median
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Threads of the Ruby worker
    #[arg(long, default_value_t = 2)]
    ruby_threads: usize,
    /// Seconds of each raw pgmq measurement
    #[arg(long, default_value_t = 5)]
    raw_seconds: u32,
    /// Measure what others do, too (bench/compare/setup installs them)
    #[arg(long)]
    compare: bool,
    /// Minutes of steady load, with the xmin horizon held back for a quarter of them; 0: leave it out
    #[arg(long, default_value_t = 0)]
    horizon: u32,
    /// Minutes of 5,000 tasks a second, of which a sixth is kept; 0: leave it out
    #[arg(long, default_value_t = 0)]
    retention: u32,
    /// Only this: raw, submit, rust, ruby, latency, claims, history, profile, scale, telemetry, limits, events, fanout, scaling, flood, idle, pooler, network, shards, fleet, compare, horizon, retention;
    /// and memory and stalls, which are measured only so
    #[arg(long)]
    only: Option<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| name == only);
    let site = Site::open().await;
    let mut report = Report::new(site.machine().await);

    let languages = [
        Language::Rust,
        Language::Ruby {
            threads: options.ruby_threads,
        },
    ];

    if wanted("raw") {
        report.section("Raw pgmq, by pgbench, 2 clients, batches of 100", &["messages/s"]);
        for (name, script) in raw::SCRIPTS {
            report.row(name, &[json!(site.pgbench(script, options.raw_seconds).await)]);
        }
    }
    if wanted("submit") {
        report.section("Submitting", &["tasks/s"]);
        report.row(
            "in bulk, by 1,000",
            &[median(options.runs, async || throughput::submit_in_bulk(&site, options.steps).await).await],
        );
        report.row(
            "one by one, 8 Ruby threads",
            &[median(options.runs, async || throughput::submit_singly(&site, options.steps / 10).await).await],
        );
    }
    for language in languages {
        if wanted(language.name()) {
            report.section(
                &format!("Throughput, no-op handlers in {}, one process", language.name()),
                &throughput::COLUMNS,
            );
            for shape in Shape::ALL {
                let mut runs = Vec::new();
                for _ in 0..options.runs {
                    runs.push(throughput::drain(&site, shape, language, options.steps).await);
                }
                runs.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
                report.row(shape.name(), &runs[runs.len() / 2]);
            }
        }
    }
    for language in languages {
        if wanted("latency") {
            report.section(
                &format!("Latency on an idle system, handlers in {}, ms", language.name()),
                &["p50", "p99"],
            );
            for (name, figures) in latency::measure(&site, language).await {
                report.row(name, &figures);
            }
        }
    }
    if wanted("claims") {
        report.section("Claiming 100 tasks of 20 namespaces, ms", &["p50", "p99"]);
        for pending in [1_000, 1_000_000] {
            report.row(&format!("{pending} pending"), &claims::measure(&site, pending).await);
        }
    }
    if wanted("history") {
        report.section(
            "One-step tasks, handlers in rust, by the finished tasks that are kept",
            &["steps/s"],
        );
        // In turns, since a machine's speed drifts.
        let (mut none, mut million, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.runs {
            none.push(rate(&throughput::drain(&site, Shape::Jobs, languages[0], options.steps).await));
            million.push(throughput::with_history(&site, languages[0], options.steps, false).await);
            deleted.push(throughput::with_history(&site, languages[0], options.steps, true).await);
        }
        report.row("none", &[json!(middle(none))]);
        report.row("a million", &[json!(middle(million))]);
        report.row("a million, which are deleted meanwhile", &[json!(middle(deleted))]);
    }
    if wanted("profile") {
        report.section(
            "A step in the Ruby worker, all its threads, with an empty handler",
            &["µs of processor"],
        );
        let time = median(options.runs, async || {
            throughput::processor_time(&site, languages[1], options.steps).await
        });
        report.row("linear-4", &[time.await]);
    }
    if wanted("scale") {
        report.section("linear-4, Ruby handlers that wait 5 ms, ten threads a process", &["steps/s"]);
        for processes in [1, 2, 4, 8] {
            report.row(
                &format!("{processes} processes"),
                &[json!(throughput::scale(&site, processes).await)],
            );
        }
    }
    if wanted("telemetry") {
        report.section(
            "linear-4, handlers in ruby, by what telemetry is pushed",
            &["steps/s", "spans that came"],
        );
        // In turns, as above.
        let mut figures = vec![Vec::new(); telemetry::CASES.len()];
        for _ in 0..options.runs {
            for ((_, case), figures) in telemetry::CASES.iter().zip(&mut figures) {
                figures.push(telemetry::measure(&site, options.ruby_threads, options.steps, case).await);
            }
        }
        for ((name, _), mut figures) in telemetry::CASES.iter().zip(figures) {
            figures.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (rate, came) = figures[figures.len() / 2];
            report.row(name, &[json!(rate), json!(came)]);
        }
    }
    if wanted("limits") {
        report.section("One-step tasks, handlers in rust, by the limit on them", &["steps/s"]);
        let cases = limits::cases();
        let mut figures = vec![Vec::new(); cases.len()];
        for _ in 0..options.runs {
            for ((_, limits), figures) in cases.iter().zip(&mut figures) {
                figures.push(limits::measure(&site, languages[0], options.steps / 4, limits).await);
            }
        }
        for ((name, _), figures) in cases.iter().zip(figures) {
            report.row(name, &[json!(middle(figures))]);
        }
    }
    if wanted("events") {
        report.section("Linear-4, handlers in rust, by what others are told", &events::COLUMNS);
        for (name, types, pushed) in events::CASES {
            let steps = if pushed { options.steps / 4 } else { options.steps };
            report.row(name, &events::measure(&site, languages[0], steps, (types, pushed)).await);
        }
    }
    if wanted("fanout") {
        report.section("Steps whose work is other tasks, handlers in rust", &fanout::COLUMNS);
        fanout::measure(&site, languages[0], options.runs, |name, figures| report.row(name, figures)).await;
        report.section("A task of another namespace beside these, handlers in ruby", &fanout::BESIDE);
        fanout::beside(&site, options.ruby_threads, |name, figures| report.row(name, figures)).await;
    }
    if wanted("scaling") {
        report.section("A simulated day of an autoscaler", &scaling::COLUMNS);
        for (name, figures) in scaling::measure(&site).await {
            report.row(name, &figures);
        }
    }
    if wanted("flood") {
        report.section("A task beside a million of another namespace, handlers in ruby", &flood::COLUMNS);
        flood::measure(&site, |name, figures| report.row(name, figures)).await;
    }
    if options.only.as_deref() == Some("stalls") {
        report.section(
            "Whether work waits while nobody works, linear-4, handlers in ruby, two threads",
            &stalls::COLUMNS,
        );
        for (name, notifications) in stalls::CASES {
            let figures = stalls::measure(&site, notifications, options.runs, options.steps / 4).await;
            report.row(name, &figures);
        }
    }
    if wanted("idle") {
        report.section("Idle, after 10 s", &["nothing there", "a million asleep"]);
        let empty = latency::idle(&site, options.ruby_threads, 0).await;
        let asleep = latency::idle(&site, options.ruby_threads, 1_000_000).await;
        for ((name, figure), (_, beside)) in empty.into_iter().zip(asleep) {
            report.row(name, &[figure, beside]);
        }
    }
    if wanted("pooler") {
        report.section("linear-4, handlers in rust, by the way to PostgreSQL", &pooler::COLUMNS);
        // In turns, as above.
        let mut rates = vec![Vec::new(); pooler::WAYS.len()];
        for _ in 0..options.runs {
            for ((_, way), rates) in pooler::WAYS.iter().zip(&mut rates) {
                rates.push(pooler::rate(&site, languages[0], options.steps, *way).await);
            }
        }
        for ((name, way), rates) in pooler::WAYS.iter().zip(rates) {
            let latency = pooler::latency(&site, languages[0], *way).await;
            report.row(name, &[vec![json!(middle(rates))], latency].concat());
        }
        report.section("Submitting one by one, by how many clients", &pooler::CROWD);
        report.row("20, direct", &pooler::crowd(&site, 20, pooler::Way::Direct).await);
        report.row("500, by PgBouncer alone", &pooler::crowd(&site, 500, pooler::Way::Polling).await);
    }
    if wanted("network") {
        for language in languages {
            report.section(
                &format!(
                    "linear-4 by the round trip between all processes and PostgreSQL, handlers in {}, one worker",
                    language.name()
                ),
                &network::COLUMNS,
            );
            let mut rates = vec![Vec::new(); network::ROUND_TRIPS.len()];
            for _ in 0..options.runs {
                for (round_trip, rates) in network::ROUND_TRIPS.iter().zip(&mut rates) {
                    rates.push(network::rate(&site, language, options.steps, *round_trip).await);
                }
            }
            let mut nearest = None;
            for (round_trip, rates) in network::ROUND_TRIPS.iter().zip(rates) {
                let (latency, figures) = network::latency(&site, language, *round_trip, nearest).await;
                nearest = nearest.or(Some(latency));
                report.row(&format!("{round_trip} ms"), &[vec![json!(middle(rates))], figures].concat());
            }
        }
    }
    if wanted("shards") {
        report.section("Several shards, handlers in rust, one worker each", &shards::COLUMNS);
        for count in [1, 2, 4] {
            let mut sites = Vec::new();
            for _ in 0..count {
                sites.push(Site::open().await);
            }
            report.row(&count.to_string(), &shards::measure(&sites, options.steps).await);
        }
        report.section("submit → begins in one shard, one worker for both", &shards::BESIDE);
        let [there, stopped] = shards::beside(&site, Site::open().await).await;
        report.row("the other one is there", &there);
        report.row("the other one was stopped", &stopped);
    }
    if wanted("fleet") {
        report.section("linear-4, handlers in rust, one worker of many queues", &fleet::QUEUES);
        for (queues, connections) in [(1, 6), (3, 6), (3, 12), (20, 6), (20, 12), (20, 63)] {
            let figures = fleet::queues(&site, queues, connections, options.steps).await;
            report.row(&format!("{queues} queues, {connections} connections"), &figures);
        }
        report.section("Nothing to do", &fleet::IDLE);
        for (orchestrators, workers) in [(1, 1), (50, 100)] {
            let figures = fleet::idle(&site, orchestrators, workers).await;
            report.row(&format!("{orchestrators} orchestrators, {workers} workers"), &figures);
        }
    }
    if options.only.as_deref() == Some("memory") {
        report.section("A Ruby worker, by the steps of linear-4 that it has run", &["MB"]);
        memory::measure(&site, options.ruby_threads, |name, figures| report.row(name, figures)).await;
    }
    if options.horizon > 0 && wanted("horizon") {
        report.section("linear-4 with the xmin horizon held back, handlers in rust", &horizon::COLUMNS);
        horizon::measure(&site, options.horizon, |name, figures| report.row(name, figures)).await;
    }
    if options.retention > 0 && wanted("retention") {
        report.section(
            "5,000 one-step tasks a second, a sixth of the time kept, handlers in rust",
            &retention::COLUMNS,
        );
        retention::measure(&site, options.retention, |name, figures| report.row(name, figures)).await;
    }
    if options.compare && wanted("compare") {
        report.section(
            "Beside others, one process each: steps a second, and ms on an idle system",
            &compare::COLUMNS,
        );
        for language in languages {
            let mut figures = Vec::new();
            for shape in [Shape::Jobs, Shape::Linear4] {
                figures.push(
                    median(options.runs, async || {
                        rate(&throughput::drain(&site, shape, language, options.steps).await)
                    })
                    .await,
                );
            }
            figures.extend(latency::measure(&site, language).await.into_iter().flat_map(|(_, figures)| figures));
            report.row(&format!("tasker, {} handlers", language.name()), &figures);
        }
        for peer in &compare::PEERS {
            report.row(peer.name, &compare::measure(&site, peer, options.runs).await);
        }
    }
    report.ratio(
        "linear-4 (rust) to the raw cycle",
        ("rust, one", "linear-4"),
        ("Raw", "send_batch + read + delete"),
    );
    report.ratio("linear-4, ruby to rust", ("ruby, one", "linear-4"), ("rust, one", "linear-4"));
    for shape in ["diamond-4", "fan-in-1000"] {
        report.ratio(
            &format!("{shape} to linear-4 (rust)"),
            ("rust, one", shape),
            ("rust, one", "linear-4"),
        );
    }
    for (name, _) in &pooler::WAYS[1..] {
        report.ratio(
            &format!("linear-4 {name} to direct"),
            ("by the way", name),
            ("by the way", "direct"),
        );
    }
    report.ratio(
        "jobs with a million finished tasks kept",
        ("that are kept", "a million"),
        ("that are kept", "none"),
    );
    report.finish();
}

fn rate(figures: &[Value]) -> f64 {
    figures[0].as_f64().expect("a rate")
}

async fn median(runs: usize, measure: impl AsyncFn() -> f64) -> Value {
    let mut figures = Vec::new();
    for _ in 0..runs {
        figures.push(measure().await);
    }
    json!(middle(figures))
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
