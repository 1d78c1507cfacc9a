//! Submitting tasks: the door, where bad input is turned away.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use opentelemetry::KeyValue;
use serde::Serialize;
use sqlx::types::Json;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, Semaphore};
use uuid::Uuid;

use super::input::Templates;
pub use super::input::{check_inputs, NewTask};
use super::trace::Submission;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::telemetry::{self, Carrier, Metrics};
use crate::template::Priority;

/// What became of a [`NewTask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Submitted {
    /// UUIDv7.
    pub id: Uuid,
    /// False when the key was known: the task is an earlier one.
    pub created: bool,
}

/// Creates tasks inside the caller's own transaction, on the caller's connection, after [`Submitter::check`]: rows of id and created, in the
/// tasks' order. The parameters: template; version; inputs, keys, priorities and times, each as a JSON array of strings (or nulls); the trace, as JSON.
pub const CREATE_WITHIN: &str = "
    SELECT id, created::text FROM tasker.create_tasks(
        $1, ARRAY(SELECT e::jsonb FROM jsonb_array_elements_text($3::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        ARRAY(SELECT e FROM jsonb_array_elements_text($4::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        ARRAY(SELECT e FROM jsonb_array_elements_text($5::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n), $2,
        (SELECT array_agg($7::jsonb) FROM jsonb_array_elements($3::jsonb)),
        ARRAY(SELECT e::timestamptz FROM jsonb_array_elements_text($6::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n))";

/// Tasks that [`Submitter::check`] found acceptable, and that their caller creates.
#[derive(Debug)]
pub struct Accepted {
    /// The version that they would run.
    pub version: String,
    /// The trace that they are part of.
    pub trace: Option<Carrier>,
    template: String,
    submission: Submission,
}

/// Creates tasks. Callers that come at the same time share a transaction. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Submitter {
    db: Db,
    templates: Arc<Templates>,
    door: Arc<OnceLock<Door>>,
    metrics: Arc<Metrics>,
}

impl Submitter {
    /// A submitter for this database.
    pub fn new(db: Db) -> Submitter {
        Submitter {
            templates: Arc::new(Templates::new(db.clone())),
            db,
            door: Arc::default(),
            metrics: telemetry::metrics(),
        }
    }

    /// Checks what [`Submitter::submit`] would check: for callers that create the tasks by themselves, with [`CREATE_WITHIN`], and then say so to
    /// [`Submitter::created`].
    pub async fn check(&self, template: &str, version: Option<&str>, tasks: &[NewTask]) -> Result<Accepted> {
        let submission = Submission::begin();
        let version = self.templates.ask(template, version).await?;
        version.accept(template, tasks)?;
        Ok(Accepted {
            version: version.name.clone(),
            trace: submission.carrier(),
            template: template.into(),
            submission,
        })
    }

    /// The caller has created accepted tasks, though perhaps not yet for good.
    pub fn created(&self, accepted: Accepted, tasks: &[Submitted]) {
        self.note(&accepted.template, accepted.submission, &Ok(tasks));
    }

    /// Creates all of `tasks` or, if one of them is refused, none. The result is in the order of `tasks`. They join the trace of the current
    /// context ([`opentelemetry::Context::current`]).
    ///
    /// `template` is a name or `namespace/name`; `version` None means the current one.
    /// Errors: [`Error::NotFound`] for an unknown template, [`Error::Invalid`] for an input, key or priority that is not acceptable,
    /// [`Error::TooLarge`] for an input of more than [`MAX_PAYLOAD_BYTES`](super::MAX_PAYLOAD_BYTES).
    pub async fn submit(&self, template: &str, version: Option<&str>, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let submission = Submission::begin();
        let submitted = self.create(template, version, tasks, submission.carrier()).await;
        self.note(template, submission, &submitted.as_deref());
        submitted
    }

    fn note(&self, template: &str, submission: Submission, submitted: &Result<&[Submitted], &Error>) {
        let tasks = submitted.unwrap_or_default();
        let created = tasks.iter().filter(|task| task.created).count();
        let label = KeyValue::new("template", template.to_owned());
        self.metrics.tasks_submitted.add(created as u64, &[label]);
        submission.end(template, tasks.iter().map(|task| task.id), submitted.err());
    }

    async fn create(&self, template: &str, version: Option<&str>, tasks: &[NewTask], trace: Option<Carrier>) -> Result<Vec<Submitted>> {
        if let Some(known) = self.templates.remembered(template, version) {
            if let Ok(inputs) = known.accept(template, tasks) {
                let flow = Flow {
                    template: template.into(),
                    version: version.map(str::to_owned),
                    checked: Some(known.id),
                };
                match self.create_with_others(flow, inputs, tasks, trace.clone()).await {
                    // Another version is the current one by now.
                    Err(Error::Stale(_)) => {}
                    done => return done,
                }
            }
        }
        let found = self.templates.ask(template, version).await?;
        let inputs = found.accept(template, tasks)?;
        let flow = Flow {
            template: template.into(),
            version: Some(found.name.clone()),
            checked: None,
        };
        self.create_with_others(flow, inputs, tasks, trace).await
    }

    async fn create_with_others(
        &self,
        flow: Flow,
        inputs: Vec<String>,
        tasks: &[NewTask],
        trace: Option<Carrier>,
    ) -> Result<Vec<Submitted>> {
        let call = Call {
            flow,
            inputs,
            keys: tasks.iter().map(|task| task.key.clone()).collect(),
            priorities: tasks.iter().map(|task| task.priority.map(Priority::name)).collect(),
            run_ats: tasks.iter().map(|task| task.run_at).collect(),
            trace,
        };
        let door = self.door.get_or_init(|| Door::open(&self.db));
        if let Ok(_permit) = door.commits.try_acquire() {
            return create_tasks(&self.db, &[&call]).await;
        }
        let (reply, answer) = oneshot::channel();
        let stopping = || Error::Unreachable {
            target: self.db.target().into(),
            reason: "this process is stopping".into(),
        };
        door.calls.send(Waiting { call, reply }).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

/// What the tasks of a call run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    template: String,
    version: Option<String>,
    /// The version that the inputs were checked against; None: the one that is named.
    checked: Option<i32>,
}

/// Tasks that wait to be created. The vectors are parallel.
#[derive(Debug)]
struct Call {
    flow: Flow,
    inputs: Vec<String>,
    keys: Vec<Option<String>>,
    priorities: Vec<Option<&'static str>>,
    run_ats: Vec<Option<DateTime<Utc>>>,
    /// Of all of them.
    trace: Option<Carrier>,
}

/// A call that found others before it.
#[derive(Debug)]
struct Waiting {
    call: Call,
    reply: oneshot::Sender<Result<Vec<Submitted>>>,
}

impl Waiting {
    fn answer(self, answer: Result<Vec<Submitted>>) {
        // Whoever does not wait any more does not want to know.
        self.reply.send(answer).ok();
    }
}

/// Where calls come in: one that finds nobody before it goes through by itself, the others in groups.
#[derive(Debug)]
struct Door {
    calls: UnboundedSender<Waiting>,
    commits: Arc<Semaphore>,
}

impl Door {
    fn open(db: &Db) -> Door {
        let commits = Arc::new(Semaphore::new(CONCURRENT_COMMITS));
        let (calls, waiting) = mpsc::unbounded_channel();
        tokio::spawn(admit(db.clone(), waiting, commits.clone()));
        Door { calls, commits }
    }
}

/// So many tasks are created together at most, as long as no single call has more.
const TOGETHER: usize = 1_000;
/// While one commit waits for the disk, the next one is prepared.
const CONCURRENT_COMMITS: usize = 2;

/// Creates what waits: all that came in while the commits before were under way goes together.
async fn admit(db: Db, mut waiting: UnboundedReceiver<Waiting>, commits: Arc<Semaphore>) {
    while let Some(first) = waiting.recv().await {
        let Ok(permit) = commits.clone().acquire_owned().await else {
            return;
        };
        let mut count = first.call.inputs.len();
        let mut groups = vec![vec![first]];
        while count < TOGETHER {
            let Ok(next) = waiting.try_recv() else { break };
            count += next.call.inputs.len();
            match groups.iter_mut().find(|group| group[0].call.flow == next.call.flow) {
                Some(group) => group.push(next),
                None => groups.push(vec![next]),
            }
        }
        let db = db.clone();
        tokio::spawn(async move {
            for group in groups {
                create_together(&db, group).await;
            }
            drop(permit);
        });
    }
}

/// One transaction for all of these calls; where PostgreSQL refuses that, one for each: a bad one must not hold up the others.
async fn create_together(db: &Db, group: Vec<Waiting>) {
    let calls: Vec<&Call> = group.iter().map(|waiting| &waiting.call).collect();
    match create_tasks(db, &calls).await {
        Ok(mut submitted) => {
            for waiting in group {
                let rest = submitted.split_off(waiting.call.inputs.len().min(submitted.len()));
                waiting.answer(Ok(std::mem::replace(&mut submitted, rest)));
            }
        }
        // Who knows whether it was committed: whoever wants to try again has to know that.
        Err(Error::Database(error)) if !Error::Database(error.clone()).is_bad_data() => {
            for waiting in group {
                waiting.answer(Err(Error::Database(error.clone())));
            }
        }
        Err(error) => match <[Waiting; 1]>::try_from(group) {
            Ok([waiting]) => waiting.answer(Err(error)),
            Err(group) => {
                for waiting in group {
                    let done = create_tasks(db, &[&waiting.call]).await;
                    waiting.answer(done);
                }
            }
        },
    }
}

async fn create_tasks(db: &Db, calls: &[&Call]) -> Result<Vec<Submitted>> {
    let flow = &calls[0].flow;
    let inputs: Vec<&str> = calls.iter().flat_map(|call| &call.inputs).map(String::as_str).collect();
    let keys: Vec<Option<&str>> = calls.iter().flat_map(|call| &call.keys).map(Option::as_deref).collect();
    let keys = keys.iter().any(Option::is_some).then_some(keys);
    let priorities: Vec<Option<&str>> = calls.iter().flat_map(|call| &call.priorities).copied().collect();
    let run_ats: Vec<Option<DateTime<Utc>>> = calls.iter().flat_map(|call| &call.run_ats).copied().collect();
    let run_ats = run_ats.iter().any(Option::is_some).then_some(run_ats);
    let traces = || {
        calls
            .iter()
            .flat_map(|call| call.inputs.iter().map(|_| call.trace.as_ref().map(Json)))
    };
    let traces: Option<Vec<_>> = calls.iter().any(|call| call.trace.is_some()).then(|| traces().collect());
    super::again_on_conflict(|| async {
        let query = sqlx::query_as("SELECT id, created FROM tasker.create_tasks($1, $2::text[]::jsonb[], $3, $4, $5, $6, $7, $8)");
        let query = query.bind(&flow.template).bind(&inputs).bind(&keys).bind(&priorities);
        let query = query.bind(&flow.version).bind(&traces).bind(&run_ats).bind(flow.checked);
        Ok(query.fetch_all(db.pool()).await?)
    })
    .await
}
