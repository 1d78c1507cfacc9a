//! What is shown, read again and again; and what is done about it.

use std::time::Duration;

use serde_json::{json, Value};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::cli::server::{read, Reach};
use crate::cli::task;
use crate::engine::dead_letters::{By, Filter, Replay, NEWEST};
use crate::engine::fleet;
use crate::engine::lists;
use crate::engine::read::{read_task, TaskFilter};
use crate::engine::reasons::{explain, Reason};
use crate::engine::shards::Shards;
use crate::engine::{bulk, pauses};
use crate::error::Result;

/// How often it is read.
const EVERY: Duration = Duration::from_secs(1);

/// How many rows a list has.
const ROWS: i32 = 200;

/// What is looked at.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    /// The namespaces, and what needs a person.
    Fleet,
    /// The newest of these tasks.
    Tasks(TaskFilter),
    /// One of them.
    Task(Uuid),
    /// Dead letters by error.
    Letters,
}

/// What was read of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) fleet: Value,
    pub(super) minutes: Vec<Value>,
    pub(super) groups: Vec<Value>,
    pub(super) pauses: Vec<Value>,
    pub(super) tasks: Vec<Value>,
    pub(super) task: Value,
    pub(super) reasons: Vec<Reason>,
    /// What came of the last thing that was done, or why nothing could be read.
    pub(super) said: Option<String>,
}

/// What is done to a task.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verb {
    Cancel(Uuid),
    Pause(Uuid),
    Resume(Uuid),
    Replay(Uuid),
}

pub(super) struct Reader(Reach<Shards>);

impl Reader {
    pub(super) fn new(reach: Reach<Shards>) -> Reader {
        Reader(reach)
    }

    /// Until nobody looks any more.
    pub(super) async fn run(self, mut wants: watch::Receiver<Wanted>, mut acts: mpsc::Receiver<Verb>, known: watch::Sender<Known>) {
        let mut said = None;
        loop {
            let wanted = wants.borrow_and_update().clone();
            let read = self.read(&wanted).await;
            known.send_modify(|known| match read {
                Ok(read) => {
                    *known = Known {
                        said: said.clone(),
                        ..read
                    }
                }
                Err(error) => known.said = Some(error.to_string()),
            });
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                changed = wants.changed() => if changed.is_err() { return },
                verb = acts.recv() => match verb {
                    Some(verb) => said = Some(self.act(&verb).await.unwrap_or_else(|error| error.to_string())),
                    None => return,
                },
            }
        }
    }

    pub(super) async fn read(&self, wanted: &Wanted) -> Result<Known> {
        let mut known = Known::default();
        match wanted {
            Wanted::Fleet => {
                (known.fleet, known.minutes, known.groups, known.pauses) = match &self.0 {
                    Reach::Database(shards) => {
                        let letters = lists::letter_groups(shards, &newest()).await?;
                        (
                            fleet::of_all(shards).await?,
                            lists::minutes(shards, 60, None).await?,
                            letters,
                            shards.list(|db| async move { pauses::list(&db).await }).await?,
                        )
                    }
                    Reach::Server(server) => (
                        server.get("/fleet", &[])?,
                        server.whole("/statistics", &[("minutes", json!(60))])?,
                        server.whole("/dead-letters/groups", &[])?,
                        server.all("/pauses", &[])?,
                    ),
                };
            }
            Wanted::Tasks(filter) => {
                known.tasks = match &self.0 {
                    Reach::Database(shards) => lists::tasks_page(shards, filter, None, ROWS).await?.0,
                    Reach::Server(server) => {
                        let mut query = task::query(filter);
                        query.push(("limit", json!(ROWS)));
                        server.whole("/tasks", &query)?
                    }
                };
            }
            Wanted::Task(id) => {
                (known.task, known.reasons) = match &self.0 {
                    Reach::Database(shards) => {
                        let db = shards.of_task(*id).await?;
                        let task = read_task(&db, *id).await?;
                        let reasons = explain(&db, &task).await?;
                        (task, reasons)
                    }
                    Reach::Server(server) => {
                        let reasons = server.get(&format!("/tasks/{id}/reasons"), &[])?["items"].take();
                        (server.get(&format!("/tasks/{id}"), &[])?, read(reasons)?)
                    }
                };
            }
            Wanted::Letters => {
                known.groups = match &self.0 {
                    Reach::Database(shards) => lists::letter_groups(shards, &newest()).await?,
                    Reach::Server(server) => server.whole("/dead-letters/groups", &[])?,
                };
            }
        }
        Ok(known)
    }

    /// Does it, and says what came of it.
    async fn act(&self, verb: &Verb) -> Result<String> {
        let by = By {
            who: std::env::var("USER").unwrap_or_else(|_| "unknown".into()),
            why: Some("tasker top".into()),
        };
        let (id, path, action) = match verb {
            Verb::Cancel(id) => (id, "cancel", bulk::Action::Cancel { undo: false }),
            Verb::Pause(id) => (id, "pause", bulk::Action::Pause(by)),
            Verb::Resume(id) => (id, "resume", bulk::Action::Resume),
            Verb::Replay(id) => (
                id,
                "replay",
                bulk::Action::Replay {
                    how: Replay::default(),
                    by,
                },
            ),
        };
        let is_done = match &self.0 {
            Reach::Database(shards) => !bulk::apply(&shards.of_task(*id).await?, &[*id], &action).await?.is_empty(),
            Reach::Server(server) => server.post(&format!("/tasks/{id}/{path}"), json!({}))?["done"] == true,
        };
        Ok(match is_done {
            true => format!("{path}: done"),
            false => format!("{path}: there was nothing to do"),
        })
    }
}

fn newest() -> Filter {
    Filter {
        newest: Some(NEWEST),
        ..Filter::default()
    }
}
