//! `tasker health`: how the orchestrators and workers of this host, or container, are.

use clap::Args;

use super::say;
use crate::engine::member::Kind;
use crate::health::local::{ask, Answer, Level};

#[derive(Args)]
pub(super) struct Health {
    /// Whether they work, which is the default
    #[arg(long)]
    live: bool,
    /// Whether they should be given work
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// All that they know of themselves and of the fleet, as JSON
    #[arg(long, conflicts_with_all = ["live", "ready"])]
    detailed: bool,
    /// Ask workers only
    #[arg(long)]
    worker: bool,
}

impl Health {
    /// The exit code: 0 when somebody is there and all are well, 1 otherwise.
    pub(super) fn run(&self) -> i32 {
        let level = match (self.ready, self.detailed) {
            (true, _) => Level::Ready,
            (_, true) => Level::Detailed,
            _ => Level::Live,
        };
        let answers = ask(self.worker.then_some(Kind::Worker), level);
        if answers.is_empty() {
            say(match self.worker {
                true => "no worker runs here",
                false => "neither an orchestrator nor a worker runs here",
            });
        }
        for answer in &answers {
            say(&line(answer, level));
        }
        i32::from(answers.is_empty() || !answers.iter().all(Answer::is_well))
    }
}

fn line(answer: &Answer, level: Level) -> String {
    match &answer.report {
        Ok(report) if level == Level::Detailed => report.body.to_string(),
        _ if answer.is_well() => {
            let warnings: String = answer.warnings().iter().map(|warning| format!("; but {warning}")).collect();
            format!("{} {}: ok{warnings}", answer.kind, answer.pid)
        }
        _ => format!("{} {}: {}", answer.kind, answer.pid, answer.failures().join("; ")),
    }
}
