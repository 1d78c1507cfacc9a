//! Submitting tasks: the door, where bad input is turned away.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::types::Json;
use sqlx::Postgres;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, Semaphore};
use uuid::Uuid;

pub use super::input::{check_inputs, Input, NewTask};
use super::input::{Templates, Version};
use super::trace::Submission;
use crate::db::{answered, Db};
use crate::error::{Error, Result};
use crate::redaction::REDACTED;
use crate::telemetry::{self, Carrier, Metrics};
use crate::template::{Priority, Unique};

/// What became of a [`NewTask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Submitted {
    /// UUIDv7.
    pub id: Uuid,
    /// False when the key was known, or the task is unique and there was one: it is an earlier one.
    pub created: bool,
}

/// Creates tasks inside the caller's own transaction, on the caller's connection, after [`Submitter::check`]: rows of id and created, in the
/// tasks' order. The parameters: template; version; inputs, keys, priorities and times, each as a JSON array of strings (or nulls); the trace, as
/// JSON; tags and rules of uniqueness, each as a JSON array of objects (or nulls).
pub const CREATE_WITHIN: &str = "
    SELECT id, created::text FROM tasker.create_tasks(
        $1, ARRAY(SELECT e::jsonb FROM jsonb_array_elements_text($3::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        ARRAY(SELECT e FROM jsonb_array_elements_text($4::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        ARRAY(SELECT e FROM jsonb_array_elements_text($5::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n), $2,
        (SELECT array_agg($7::jsonb) FROM jsonb_array_elements($3::jsonb)),
        ARRAY(SELECT e::timestamptz FROM jsonb_array_elements_text($6::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        NULL, ARRAY(SELECT nullif(e, 'null') FROM jsonb_array_elements($8::jsonb) WITH ORDINALITY AS a(e, n) ORDER BY n),
        (SELECT array_agg(nullif(e, 'null') ORDER BY n) FROM jsonb_array_elements($9::jsonb) WITH ORDINALITY AS a(e, n) HAVING bool_or(e <> 'null')))";

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
        self.accept(&version, template, tasks)?;
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
    /// [`Error::TooLarge`] for an input of more than [`MAX_PAYLOAD_BYTES`](super::payload::MAX_PAYLOAD_BYTES), [`Error::NotUnique`] for a task whose
    /// rule says so.
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

    /// What is shown of another task's input is no input where something of it is hidden.
    fn accept(&self, version: &Version, template: &str, tasks: &[NewTask]) -> Result<()> {
        version.accept(template, tasks, self.db.redaction())?;
        let hidden = self.db.hidden();
        if hidden.is_empty() {
            return Ok(());
        }
        for task in tasks.iter().filter(|task| task.input.as_str().contains(REDACTED)) {
            if let Ok(mut input) = serde_json::from_str(task.input.as_str()) {
                hidden.restore(&mut input, None)?;
            }
        }
        Ok(())
    }

    async fn create(&self, template: &str, version: Option<&str>, tasks: &[NewTask], trace: Option<Carrier>) -> Result<Vec<Submitted>> {
        if let Some(known) = self.templates.remembered(template, version) {
            if self.accept(&known, template, tasks).is_ok() {
                let flow = Flow {
                    template: template.into(),
                    version: version.map(str::to_owned),
                    checked: Some(known.digest.clone()),
                };
                match self.create_with_others(flow, tasks, trace.clone()).await {
                    // Another version is the current one by now.
                    Err(Error::Stale(_)) if version.is_none() => {}
                    Err(Error::Stale(_)) => {
                        self.templates.forget(template, version);
                        return Err(Error::NotFound(format!(
                            "version {} of {template} is not what it was: the database has lost it, in a failover or a restore, and given its number \
                             to another; register the template again",
                            known.name
                        )));
                    }
                    done => return done,
                }
            }
        }
        let found = self.templates.ask(template, version).await?;
        self.accept(&found, template, tasks)?;
        let flow = Flow {
            template: template.into(),
            version: Some(found.name.clone()),
            checked: None,
        };
        self.create_with_others(flow, tasks, trace).await
    }

    async fn create_with_others(&self, flow: Flow, tasks: &[NewTask], trace: Option<Carrier>) -> Result<Vec<Submitted>> {
        let door = self.door.get_or_init(|| Door::open(&self.db));
        if let Ok(_permit) = door.commits.try_acquire() {
            return create_tasks(&self.db, &flow, tasks.iter().map(|task| (task, trace.as_ref())).collect()).await;
        }
        let call = Call {
            flow,
            tasks: tasks.to_vec(),
            trace,
        };
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
    /// The digest of the version that the inputs were checked against; None: the one that is named.
    checked: Option<String>,
}

/// Tasks that wait to be created.
#[derive(Debug)]
struct Call {
    flow: Flow,
    tasks: Vec<NewTask>,
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
        let mut count = first.call.tasks.len();
        let mut groups = vec![vec![first]];
        while count < TOGETHER {
            let Ok(next) = waiting.try_recv() else { break };
            count += next.call.tasks.len();
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

/// One transaction for all of these calls; where PostgreSQL refuses that, one for each half of them: a bad one must not hold up the others.
async fn create_together(db: &Db, group: Vec<Waiting>) {
    let mut parts = vec![group];
    while let Some(mut part) = parts.pop() {
        let Some(flow) = part.first().map(|waiting| waiting.call.flow.clone()) else {
            continue;
        };
        let tasks = part
            .iter()
            .flat_map(|Waiting { call, .. }| call.tasks.iter().map(|task| (task, call.trace.as_ref())));
        match create_tasks(db, &flow, tasks.collect()).await {
            Ok(mut submitted) => {
                for waiting in part {
                    let rest = submitted.split_off(waiting.call.tasks.len().min(submitted.len()));
                    waiting.answer(Ok(std::mem::replace(&mut submitted, rest)));
                }
            }
            // Who knows whether it was committed: whoever wants to try again has to know that.
            Err(Error::Database(error)) if !Error::Database(error.clone()).is_bad_data() => {
                for waiting in part {
                    waiting.answer(Err(Error::Database(error.clone())));
                }
            }
            Err(error) => match part.len() {
                1 => part.remove(0).answer(Err(error)),
                many => {
                    parts.push(part.split_off(many / 2));
                    parts.push(part);
                }
            },
        }
    }
}

/// How many bytes of inputs one statement has at most, unless one input alone has more.
const STATEMENT_BYTES: usize = 8 << 20;

/// Creates tasks, each with the trace that it is part of, in one transaction: of one statement, or of several where there is much to say.
async fn create_tasks(db: &Db, flow: &Flow, tasks: Vec<(&NewTask, Option<&Carrier>)>) -> Result<Vec<Submitted>> {
    let statements = statements(&tasks);
    if statements.len() <= 1 {
        return super::again_on_conflict(|| async { Ok(insert(flow, &tasks).fetch_all(db.pool()).await?) }).await;
    }
    super::again_on_conflict(|| async {
        let pool = db.pool();
        let created = pool.within(async |connection| {
            let mut created = Vec::with_capacity(tasks.len());
            for statement in &statements {
                let some: Vec<_> = statement.iter().map(|n| tasks[*n]).collect();
                let submitted = answered(insert(flow, &some).fetch_all(&mut *connection)).await?;
                created.extend(statement.iter().copied().zip(submitted));
            }
            Ok(created)
        });
        let mut created: Vec<(usize, Submitted)> = created.await?;
        created.sort_by_key(|(n, _)| *n);
        Ok(created.into_iter().map(|(_, submitted)| submitted).collect())
    })
    .await
}

/// Which tasks each statement creates. By key, as the statement itself does, so that submissions which share keys cannot deadlock.
fn statements(tasks: &[(&NewTask, Option<&Carrier>)]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|n| &tasks[*n].0.key);
    let (mut statements, mut bytes) = (vec![Vec::new()], 0);
    for n in order {
        let more = tasks[n].0.input.as_str().len();
        if bytes > 0 && bytes + more > STATEMENT_BYTES {
            statements.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(last) = statements.last_mut() {
            last.push(n);
        }
    }
    statements
}

fn insert<'q>(flow: &'q Flow, tasks: &[(&'q NewTask, Option<&'q Carrier>)]) -> QueryAs<'q, Postgres, Submitted, PgArguments> {
    let inputs: Vec<&str> = tasks.iter().map(|(task, _)| task.input.as_str()).collect();
    let keys: Vec<Option<&str>> = tasks.iter().map(|(task, _)| task.key.as_deref()).collect();
    let keys = keys.iter().any(Option::is_some).then_some(keys);
    let priorities: Vec<Option<&str>> = tasks.iter().map(|(task, _)| task.priority.map(Priority::name)).collect();
    let run_ats: Vec<Option<DateTime<Utc>>> = tasks.iter().map(|(task, _)| task.run_at).collect();
    let run_ats = run_ats.iter().any(Option::is_some).then_some(run_ats);
    let traces: Vec<Option<Json<&Carrier>>> = tasks.iter().map(|(_, trace)| trace.map(Json)).collect();
    let traces = traces.iter().any(Option::is_some).then_some(traces);
    let tags: Vec<Option<Json<&BTreeMap<String, String>>>> = tasks
        .iter()
        .map(|(task, _)| Some(Json(&task.tags)).filter(|tags| !tags.is_empty()))
        .collect();
    let tags = tags.iter().any(Option::is_some).then_some(tags);
    let uniques: Vec<Option<Json<&Unique>>> = tasks.iter().map(|(task, _)| task.unique.as_ref().map(Json)).collect();
    let uniques = uniques.iter().any(Option::is_some).then_some(uniques);
    let query = sqlx::query_as("SELECT id, created FROM tasker.create_tasks($1, $2::text[]::jsonb[], $3, $4, $5, $6, $7, $8, $9, $10)");
    let query = query.bind(&flow.template).bind(inputs).bind(keys).bind(priorities);
    query
        .bind(&flow.version)
        .bind(traces)
        .bind(run_ats)
        .bind(flow.checked.as_deref())
        .bind(tags)
        .bind(uniques)
}

/// How many are forgotten in one transaction.
const SLICE: i32 = 1_000;

/// Forgets which tasks were the same, where none is left that can stand in the way of another.
pub(crate) async fn forget_uniques(db: &Db) -> Result<()> {
    let forget = || sqlx::query_scalar::<_, i32>("SELECT tasker.forget_uniques($1)").bind(SLICE);
    while forget().fetch_one(db.upkeep()).await? == SLICE {}
    Ok(())
}
