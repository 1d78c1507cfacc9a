//! Workflow orchestration that needs nothing but PostgreSQL.
//!
//! # The life of a task
//!
//! A [`Template`] says what a task will do: an acyclic graph of steps, each with a handler and a namespace. It is written in YAML (or in Ruby,
//! with the gem), checked by [`template`], and stored by [`engine::register`] under a version that never changes.
//!
//! A task is one run of it. [`engine::submit`] creates it, in the caller's own transaction where the caller speaks SQL. It is `pending`, and waits
//! where priority counts: in the table `tasker.tasks`.
//!
//! An [`orchestrator`] claims it ([`engine::claim`]), the most urgent first, as soon as its queue is shallow, and in the same transaction sends
//! the first steps as messages to the pgmq queues of their namespaces. Or an idle worker does, a moment earlier, and has leased the first steps
//! by the same call. The task is `running`. The orchestrator does not meet it again, unless a step waits for a retry, or a worker dies.
//!
//! A [`worker`] leases the step ([`engine::lease`]) with everything its handler needs: the task's input, the results of the steps it depends
//! on, its configuration. The message's visibility timeout is the lease, its read count is the fence: whoever leases it next makes every report
//! of the former holder stale. While the handler runs, a heartbeat renews the lease.
//!
//! The result lands in [`engine::complete`], many at a time: one transaction deletes the message, stores the result, sends the steps that are
//! ready now, and marks the task `complete` when it was the last. Where nothing else waits in the queue, the worker has leased what became ready by
//! the same call, and goes on with it. Or the handler failed, and [`engine::fail`] schedules the retry; or, when there
//! is none left, moves the step to the dead letters with all that is known, and the task is `blocked`. Or [`engine::cancel`] got there first.
//!
//! A step under a limit ([`engine::limits`]) is not sent before it has its permit: it waits as a row, and an orchestrator sends it when one
//! comes back.
//!
//! Nothing holds a task between these transactions: a claim ends with the one that sends the first steps, so there is no claim to
//! renew, or to free when its holder dies. What no transaction of ours can leave behind (somebody deleted a message by hand), a
//! round of [`engine::reconcile`] finds, mends and counts.
//!
//! [`engine::read`] shows all of it, at any time.
//!
//! # A program that does it all
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use serde_json::json;
//! use tasker::engine::{read, register, submit};
//! use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
//! use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
//! use tasker::{Db, Template};
//!
//! # async fn run() -> tasker::Result<()> {
//! let db = Db::connect("postgres://user:password@localhost/app", 10).await?;
//! db.migrate().await?;
//! let template = Template::parse("{ name: greeting, namespace: hall, steps: [{ name: greet, handler: Greet }] }", "main.rs")?;
//! register::register(&db, &template).await?;
//!
//! let orchestrator = Orchestrator::start(&db, OrchestratorConfig::default()).await?;
//! let config = WorkerConfig { namespaces: vec!["hall".into()], ..WorkerConfig::default() };
//! let worker = Arc::new(Worker::start(&db, config).await?);
//! worker.handle_with(Handlers::default().with("Greet", |step: Arc<Step>| async move { Ok(json!(format!("hello {}", step.input().await?))) }));
//!
//! let task = submit::NewTask { input: json!({ "name": "world" }).into(), ..Default::default() };
//! let submitted = submit::Submitter::new(db.clone()).submit("greeting", None, &[task]).await?;
//! assert_eq!(read::wait_for_end(&db, submitted[0].id, None).await?, "complete");
//!
//! worker.shutdown(Duration::from_secs(25)).await;
//! orchestrator.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod api;
mod backoff;
pub mod cli;
pub mod config;
mod db;
pub mod engine;
mod error;
pub mod health;
pub mod http;
pub mod orchestrator;
mod priority;
pub mod private_postgres;
pub mod redaction;
pub mod schedule;
mod span;
mod standard_webhooks;
mod streams;
pub mod subscription;
pub mod telemetry;
pub mod template;
pub mod threads;
pub mod web;
pub mod worker;

pub use db::{Db, PoolUse, Repaired, PLANS};
pub use error::{Error, ErrorKind, Result};
pub use span::seconds;
pub use template::{Priority, Template, TemplateError};
