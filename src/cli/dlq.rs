//! `tasker dlq`: look at dead letters, and do something about them.

use clap::{Args, Subcommand};
use serde_json::{json, Value};

use super::server::{read, Reach, Server};
use super::{field, listing, print, read_json, table, About, Connection};
use crate::engine::dead_letters::{self, By, Filter, Replay, Verb};
use crate::engine::lists;
use crate::error::{Error, Result};

#[derive(Subcommand)]
pub(super) enum Dlq {
    /// List dead letters, the newest first
    List {
        #[command(flatten)]
        which: Which,
        /// The last of the page before
        #[arg(long)]
        before: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        limit: i32,
        #[command(flatten)]
        common: Common,
    },
    /// Count dead letters by namespace, template, step, reason and class of error
    Groups {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: Common,
    },
    /// Show one dead letter with everything it carries
    Show {
        /// namespace/number
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Let the steps of dead letters start over
    Replay {
        #[command(flatten)]
        which: Which,
        /// A JSON object in place of the tasks' input; @FILE reads it from a file, - from standard input
        #[arg(long)]
        input: Option<String>,
        /// In place of the steps' own
        #[arg(long)]
        max_attempts: Option<u16>,
        /// How many steps begin in a second
        #[arg(long)]
        per_second: Option<f64>,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        common: Common,
    },
    /// End a dead step by hand, with a result; its task goes on
    Resolve {
        #[command(flatten)]
        which: Which,
        /// JSON; @FILE reads it from a file, - from standard input
        #[arg(long)]
        result: String,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        common: Common,
    },
    /// End dead steps without a result; their tasks go on
    Skip {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        common: Common,
    },
    /// Delete dead letters, after recording them whole; tasks that they blocked have failed
    Discard {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        common: Common,
    },
    /// Delete the dead letters that are older than their retention
    Purge {
        #[command(flatten)]
        common: Common,
    },
    /// Show who did what, and why, the newest first
    Log {
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=10_000))]
        limit: i32,
        #[command(flatten)]
        common: Common,
    },
}

/// Which dead letters.
#[derive(Args)]
pub(super) struct Which {
    /// Only these, as namespace/number
    ids: Vec<String>,
    /// Only of this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Only of this template
    #[arg(long)]
    template: Option<String>,
    /// Only of this handler
    #[arg(long)]
    handler: Option<String>,
    /// Only with this reason: attempts_exhausted, permanent_error, timeout, payload_too_large, poison, deadline, stuck,
    /// not_a_step, unknown_task, unknown_step
    #[arg(long)]
    reason: Option<String>,
    /// Only with this class of the last error
    #[arg(long)]
    class: Option<String>,
    /// Only of this task
    #[arg(long)]
    task: Option<String>,
    /// Only older than this, as "1h"
    #[arg(long, value_parser = humantime::parse_duration)]
    older_than: Option<std::time::Duration>,
    /// Only newer than this, as "1h"
    #[arg(long, value_parser = humantime::parse_duration)]
    newer_than: Option<std::time::Duration>,
}

/// How an action is recorded, and whether it happens.
#[derive(Args)]
pub(super) struct Act {
    /// All that the filters let through; needed where neither ids nor filters are given
    #[arg(long)]
    all: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Who does it
    #[arg(long, env = "USER", default_value = "unknown")]
    who: String,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

#[derive(Args)]
pub(super) struct Common {
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Which {
    fn filter(self) -> Filter {
        Filter {
            namespace: self.namespace,
            template: self.template,
            handler: self.handler,
            reason: self.reason,
            class: self.class,
            task: self.task,
            tasks: Vec::new(),
            older_than: self.older_than.map(|age| age.as_secs_f64()),
            newer_than: self.newer_than.map(|age| age.as_secs_f64()),
            ids: self.ids,
            before: None,
            newest: None,
        }
    }
}

/// As the API has it.
fn query(filter: &Filter) -> Result<Vec<(&'static str, Value)>> {
    let names = [
        "namespace",
        "template",
        "handler",
        "reason",
        "class",
        "task",
        "older_than",
        "newer_than",
    ];
    let written = json!(filter);
    let mut query: Vec<(&str, Value)> = names.iter().map(|name| (*name, written[*name].clone())).collect();
    query.push(("cursor", json!(filter.before)));
    match filter.ids.is_empty() {
        true => Ok(query),
        false => Err(Error::Invalid("give either ids or filters".into())),
    }
}

/// The ids of those that a filter lets through.
fn matching(server: &Server, filter: &Filter) -> Result<Vec<String>> {
    if !filter.ids.is_empty() {
        return Ok(filter.ids.clone());
    }
    let letters = server.all("/dead-letters", &query(filter)?)?;
    Ok(letters.iter().map(|letter| field(letter, "id")).collect())
}

/// Has it done by the API, to so many at once as that takes.
fn ask(server: &Server, verb: &str, ids: &[String], by: &By, body: &Value) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for ids in ids.chunks(1_000) {
        let mut body = body.clone();
        body["ids"] = json!(ids);
        body["why"] = json!(by.why);
        done.extend(read::<Vec<String>>(
            server.post(&format!("/dead-letters/{verb}"), body)?["ids"].take(),
        )?);
    }
    Ok(done)
}

impl Dlq {
    pub(super) async fn run(self) -> Result<i32> {
        match self {
            Dlq::List {
                which,
                before,
                limit,
                common,
            } => {
                let filter = Filter { before, ..which.filter() };
                let letters = match common.connection.reach()? {
                    Reach::Database(shards) => lists::letters_page(&shards, &filter, None, limit).await?.0,
                    Reach::Server(server) => server.list("/dead-letters", &query(&filter)?, limit as usize)?,
                };
                print(common.json, &json!(letters), || {
                    let row = |letter: &Value| {
                        let error = letter["errors"].as_array().and_then(|errors| errors.last()).unwrap_or(&Value::Null);
                        let mut cells = ["id", "template", "step", "reason", "task"]
                            .map(|name| field(letter, name))
                            .to_vec();
                        cells.push(format!(
                            "{}: {}",
                            field(error, "class"),
                            field(error, "message").lines().next().unwrap_or_default()
                        ));
                        cells
                    };
                    table(
                        &["ID", "TEMPLATE", "STEP", "REASON", "TASK", "LAST ERROR"],
                        &letters.iter().map(row).collect::<Vec<_>>(),
                    )
                });
            }
            Dlq::Groups { which, common } => {
                let groups = match common.connection.reach()? {
                    Reach::Database(shards) => lists::letter_groups(&shards, &which.filter()).await?,
                    Reach::Server(server) => server.whole("/dead-letters/groups", &query(&which.filter())?)?,
                };
                print(common.json, &json!(groups), || {
                    listing(
                        &["COUNT", "NAMESPACE", "TEMPLATE", "STEP", "REASON", "CLASS", "LAST", "EXAMPLE"],
                        &["count", "namespace", "template", "step", "reason", "class", "last", "example"],
                        &groups,
                    )
                });
            }
            Dlq::Show { id, common } => {
                let letter = match common.connection.reach_of(About::Letter(&id)).await? {
                    Reach::Database(db) => dead_letters::show(&db, &id).await?,
                    Reach::Server(server) => server.get(&format!("/dead-letters/{id}"), &[])?,
                };
                print(common.json, &letter, || format!("{letter:#}"));
            }
            Dlq::Replay {
                which,
                input,
                max_attempts,
                per_second,
                act,
                common,
            } => {
                let how = Replay {
                    input: input.as_deref().map(read_json).transpose()?,
                    max_attempts,
                    per_second,
                };
                let body = json!({ "input": how.input, "max_attempts": max_attempts, "per_second": per_second });
                common.act(which, act, ("replay", "replayed"), &Verb::Replay(how), body).await?;
            }
            Dlq::Resolve {
                which,
                result,
                act,
                common,
            } => {
                let result = read_json(&result)?;
                let body = json!({ "result": result });
                common
                    .act(which, act, ("resolve", "resolved"), &Verb::Resolve(result), body)
                    .await?;
            }
            Dlq::Skip { which, act, common } => {
                common.act(which, act, ("skip", "skipped"), &Verb::Skip, json!({})).await?;
            }
            Dlq::Discard { which, act, common } => {
                if act.why.is_none() {
                    return Err(Error::Invalid("a dead letter is discarded for a reason: give --why".into()));
                }
                common.act(which, act, ("discard", "discarded"), &Verb::Discard, json!({})).await?;
            }
            Dlq::Purge { common } => {
                let purged = match common.connection.reach()? {
                    Reach::Database(shards) => {
                        let by = By {
                            who: "tasker dlq purge".into(),
                            why: None,
                        };
                        json!(dead_letters::purge_of_all(&shards, &by).await?)
                    }
                    Reach::Server(server) => server.post("/dead-letters/purge", json!({}))?["purged"].take(),
                };
                print(common.json, &json!({ "purged": purged }), || format!("purged {purged}"));
            }
            Dlq::Log { limit, common } => {
                let actions = match common.connection.reach()? {
                    Reach::Database(shards) => lists::letter_actions(&shards, limit).await?,
                    Reach::Server(server) => server.whole("/dead-letters/actions", &[("limit", json!(limit.min(1_000)))])?,
                };
                print(common.json, &json!(actions), || {
                    listing(
                        &["AT", "WHO", "ACTION", "LETTER", "STEP", "TASK", "WHY"],
                        &["at", "who", "action", "letter", "step", "task_id", "why"],
                        &actions,
                    )
                });
            }
        }
        Ok(0)
    }
}

impl Common {
    /// Does what `verb` says to the letters that it concerns (over the API, what is asked for by the verb with this body), or says which those are. That nothing was
    /// chosen must not mean everything.
    async fn act(&self, which: Which, act: Act, (would, did): (&str, &str), verb: &Verb, body: Value) -> Result<()> {
        let filter = which.filter();
        if filter == Filter::default() && !act.all {
            return Err(Error::Invalid("which dead letters? give ids or filters, or --all".into()));
        }
        let by = By {
            who: act.who,
            why: act.why,
        };
        let ids = match self.connection.reach()? {
            Reach::Database(shards) => {
                let ids = lists::matching_letters(&shards, &filter).await?;
                match act.dry_run {
                    true => ids,
                    false => verb.act_on_all(&shards, ids, &by).await?,
                }
            }
            Reach::Server(server) => {
                let ids = matching(&server, &filter)?;
                if act.dry_run {
                    ids
                } else {
                    ask(&server, would, &ids, &by, &body)?
                }
            }
        };
        print(self.json, &json!({ did: ids, "dry_run": act.dry_run }), || match act.dry_run {
            true => format!("would {would} {}: {}", ids.len(), ids.join(" ")),
            false => format!("{did} {}", ids.len()),
        });
        Ok(())
    }
}
