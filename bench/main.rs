//! The benchmark: what one machine does, with everything on it. `bench/run` runs it; every figure comes from this one run, so that ratios
//! between them mean something. What was learned from it is in NOTES.md.

// A benchmark that cannot go on has nothing better to do than to say why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod latency;
mod raw;
mod report;
mod site;
mod throughput;

use clap::Parser;
use serde_json::{json, Value};

use report::Report;
use site::{Language, Site};
use throughput::Shape;

#[derive(Parser)]
struct Options {
    /// How many tasks a throughput run takes through their steps
    #[arg(long, default_value_t = 20_000)]
    tasks: usize,
    /// How often each measurement is made; the report has the median
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Threads of the Ruby worker
    #[arg(long, default_value_t = 2)]
    ruby_threads: usize,
    /// Seconds of each raw pgmq measurement
    #[arg(long, default_value_t = 5)]
    raw_seconds: u32,
    /// Only what has this in its name: raw, submit, rust, ruby, latency, idle
    #[arg(long)]
    only: Option<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| name.contains(only));
    let site = Site::open().await;
    let mut report = Report::new(site.machine().await);

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
            &[median(options.runs, async || throughput::submit_in_bulk(&site, options.tasks).await).await],
        );
        report.row(
            "one by one, 8 callers",
            &[median(options.runs, async || throughput::submit_singly(&site, options.tasks / 10).await).await],
        );
    }
    for language in [
        Language::Rust,
        Language::Ruby {
            threads: options.ruby_threads,
        },
    ] {
        if wanted(language.name()) {
            report.section(
                &format!("Throughput, no-op handlers in {}, one process", language.name()),
                &throughput::COLUMNS,
            );
            for shape in Shape::ALL {
                let mut runs = Vec::new();
                for _ in 0..options.runs {
                    runs.push(throughput::drain(&site, shape, language, options.tasks).await);
                }
                runs.sort_by(|a, b| a[0].as_f64().unwrap_or_default().total_cmp(&b[0].as_f64().unwrap_or_default()));
                report.row(shape.name(), &runs[runs.len() / 2]);
            }
        }
    }
    for language in [
        Language::Rust,
        Language::Ruby {
            threads: options.ruby_threads,
        },
    ] {
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
    if wanted("idle") {
        report.section("Idle, one orchestrator and one worker", &["queries/s/process"]);
        report.row("after 10 s", &[json!(latency::idle_queries(&site).await)]);
    }
    report.ratio(
        "linear-4 (rust) to the raw cycle",
        ("rust", "linear-4"),
        ("Raw", "send_batch + read + delete"),
    );
    report.ratio("linear-4, ruby to rust", ("ruby", "linear-4"), ("rust", "linear-4"));
    report.finish();
}

async fn median(runs: usize, measure: impl AsyncFn() -> f64) -> Value {
    let mut figures = Vec::new();
    for _ in 0..runs {
        figures.push(measure().await);
    }
    figures.sort_by(f64::total_cmp);
    json!(figures[figures.len() / 2])
}
