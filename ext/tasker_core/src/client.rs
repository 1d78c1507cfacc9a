//! TaskerCore::Native::Client: the engine's verbs for Ruby.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use magnus::{function, method, prelude::*, Error, RArray, RModule, Ruby, TryConvert, Value as RubyValue};
use opentelemetry::context::FutureExt;
use opentelemetry::Context;
use serde::Deserialize;
use tasker::config::{Given, Local};
use tasker::engine::children::{read_children, Page};
use tasker::engine::fork::fork_task;
use tasker::engine::lists;
use tasker::engine::memories::read_values;
use tasker::engine::shards::{by_shard, Shards};
use tasker::engine::submit::{check_inputs, Accepted as CoreAccepted, Input, NewTask, Submitted, Submitter, CREATE_WITHIN};
use tasker::engine::{bulk, cancel, read};
use tasker::health::Health;
use tasker::telemetry::{self, Carrier};
use tasker::template::Unique;
use tasker::{Db, Template};

use crate::runtime::Owned;
use crate::waiting::block_on;
use crate::{json, raise};

#[magnus::wrap(class = "TaskerCore::Native::Client", free_immediately, size)]
pub(crate) struct Client(Owned<Parts>);

struct Parts {
    shards: Shards,
    /// The one of what is not about a task, a template or a namespace.
    home: Db,
    health: Health,
}

pub(crate) fn init(ruby: &Ruby, native: RModule) -> Result<(), Error> {
    let class = native.define_class("Client", ruby.class_object())?;
    class.undef_default_alloc_func();
    // For statements on the application's own connections.
    class.const_set("CREATE_WITHIN", CREATE_WITHIN)?;
    class.const_set("IS_INSTALLED", read::IS_INSTALLED)?;
    class.const_set("INSTALLATION", read::INSTALLATION)?;
    class.define_singleton_method("connect", function!(Client::connect, 2))?;
    class.define_method("migrate", method!(Client::migrate, 0))?;
    class.define_method("health", method!(Client::health, 0))?;
    class.define_method("register", method!(Client::register, 3))?;
    class.define_method("submit", method!(Client::submit, 4))?;
    class.define_method("check", method!(Client::check, 4))?;
    class.define_method("created", method!(Client::created, 2))?;
    class.define_method("installation", method!(Client::installation, 2))?;
    class.define_method("read_task", method!(Client::read_task, 1))?;
    class.define_method("fork", method!(Client::fork, 3))?;
    class.define_method("bulk", method!(Client::bulk, 1))?;
    class.define_method("list_tasks", method!(Client::list_tasks, 2))?;
    class.define_method("read_results", method!(Client::read_results, 2))?;
    class.define_method("read_children", method!(Client::read_children, 4))?;
    class.define_method("read_values", method!(Client::read_values, 1))?;
    class.define_method("task_states", method!(Client::task_states, 1))?;
    class.define_method("wait", method!(Client::wait, 2))?;
    class.define_method("cancel", method!(Client::cancel, 2))?;
    class.define_method("close", method!(Client::close, 0))?;

    let class = native.define_class("Accepted", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_method("version", method!(|accepted: &Accepted| accepted.version.clone(), 0))?;
    class.define_method("trace", method!(|accepted: &Accepted| accepted.trace.clone(), 0))?;
    Ok(())
}

impl Client {
    fn connect(ruby: &Ruby, url: String, max_connections: u32) -> Result<Client, Error> {
        let local = Local::read(Given::default()).and_then(|local| local.with(0, &serde_json::json!({})));
        let settings = local.map_err(|error| raise::error(ruby, &error))?.settings;
        let connecting = async move {
            let shards = Shards::new(url, max_connections, settings.clone());
            let home = shards.home().await?;
            Ok(Parts {
                health: Health::of_client(&home, settings),
                home,
                shards,
            })
        };
        Ok(Client(Owned::new(block_on(ruby, connecting)?)))
    }

    fn owned(&self, ruby: &Ruby) -> Result<&Parts, Error> {
        self.0.get().ok_or_else(|| {
            raise::with_class(
                ruby,
                "Error",
                "this client was made before the process forked: make a new one".into(),
            )
        })
    }

    pub(crate) fn db(&self, ruby: &Ruby) -> Result<Db, Error> {
        Ok(self.owned(ruby)?.home.clone())
    }

    pub(crate) fn shards(&self, ruby: &Ruby) -> Result<Shards, Error> {
        Ok(self.owned(ruby)?.shards.clone())
    }

    fn migrate(ruby: &Ruby, this: &Client) -> Result<(), Error> {
        let db = this.db(ruby)?;
        block_on(ruby, async move { db.migrate().await })
    }

    /// How this process is, as JSON.
    fn health(ruby: &Ruby, this: &Client) -> Result<String, Error> {
        let health = this.owned(ruby)?.health.clone();
        let live = block_on(ruby, async move { Ok(health.live().await) })?;
        Ok(serde_json::json!(live).to_string())
    }

    /// "namespace/name" and the version, which is the current one if it is new, or `use_it`.
    fn register(ruby: &Ruby, this: &Client, source: String, origin: String, use_it: bool) -> Result<(String, String), Error> {
        let shards = this.shards(ruby)?;
        let template = Template::parse(&source, &origin).map_err(|error| raise::error(ruby, &error.into()))?;
        let name = format!("{}/{}", template.namespace, template.name);
        let registered = block_on(ruby, async move { shards.register(&template, use_it).await })?;
        Ok((name, registered.version))
    }

    /// [id, created] for each task. The trace is what they join, as W3C Trace Context propagates it.
    fn submit(
        ruby: &Ruby,
        this: &Client,
        template: String,
        version: Option<String>,
        tasks: RArray,
        trace: Option<Carrier>,
    ) -> Result<Vec<(String, bool)>, Error> {
        let shards = this.shards(ruby)?;
        let tasks = new_tasks(ruby, tasks)?;
        let submitting = async move { shards.submit(&template, version.as_deref(), &tasks).await };
        let submitted = block_on(ruby, submitting.with_context(context(trace)))?;
        Ok(submitted.into_iter().map(|task| (task.id.to_string(), task.created)).collect())
    }

    /// For tasks that are created on another connection: checks them, and returns what to create, and the inputs as JSON.
    fn check(
        ruby: &Ruby,
        this: &Client,
        template: String,
        version: Option<String>,
        tasks: RArray,
        trace: Option<Carrier>,
    ) -> Result<(Accepted, Vec<String>), Error> {
        let shards = this.shards(ruby)?;
        let tasks = new_tasks(ruby, tasks)?;
        let texts = tasks.iter().map(|task| task.input.as_str().to_owned()).collect();
        let checking = async move {
            let submitter = shards.submitter(&template).await?;
            let accepted = submitter.check(&template, version.as_deref(), &tasks).await?;
            Ok((submitter, accepted))
        };
        let (submitter, accepted) = block_on(ruby, checking.with_context(context(trace)))?;
        Ok((
            Accepted {
                version: accepted.version.clone(),
                trace: accepted.trace.as_ref().map(|trace| serde_json::json!(trace).to_string()),
                core: Cell::new(Some((submitter, accepted))),
            },
            texts,
        ))
    }

    /// They were created, with these ids; and whether each is new.
    fn created(ruby: &Ruby, _: &Client, accepted: &Accepted, tasks: Vec<(String, bool)>) -> Result<(), Error> {
        let submitted = |(id, created): &(String, bool)| {
            Ok(Submitted {
                id: parse_id(ruby, id)?,
                created: *created,
            })
        };
        let tasks = tasks.iter().map(submitted).collect::<Result<Vec<_>, Error>>()?;
        if let Some((submitter, core)) = accepted.core.take() {
            submitter.created(core, &tasks);
        }
        Ok(())
    }

    /// The identity of the installation that has this template, or this task.
    fn installation(ruby: &Ruby, this: &Client, template: Option<String>, task: Option<String>) -> Result<String, Error> {
        let shards = this.shards(ruby)?;
        let task = task.map(|id| parse_id(ruby, &id)).transpose()?;
        block_on(ruby, async move {
            let db = match (template, task) {
                (Some(template), _) => shards.of_template(&template).await?,
                (None, Some(task)) => shards.of_task(task).await?,
                (None, None) => shards.home().await?,
            };
            read::installation(&db).await
        })
    }

    /// The task with its steps, as JSON.
    fn read_task(ruby: &Ruby, this: &Client, id: String) -> Result<String, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        Ok(block_on(ruby, async move { read::read_task(&shards.of_task(id).await?, id).await })?.to_string())
    }

    /// The tasks that a filter (JSON) lets through, as a list has them, as JSON.
    fn list_tasks(ruby: &Ruby, this: &Client, filter: String, limit: i32) -> Result<String, Error> {
        let shards = this.shards(ruby)?;
        let invalid = |error: serde_json::Error| raise::error(ruby, &tasker::Error::Invalid(format!("the filter is not valid: {error}")));
        let filter: read::TaskFilter = serde_json::from_str(&filter).map_err(invalid)?;
        let listed = block_on(ruby, async move { lists::tasks(&shards, &filter, limit).await })?;
        Ok(serde_json::json!(listed).to_string())
    }

    /// Its id. `input`: JSON.
    fn fork(ruby: &Ruby, this: &Client, id: String, from: Option<String>, input: Option<String>) -> Result<String, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        let input = input.map(|input| json::parse(ruby, &input)).transpose()?;
        Ok(block_on(ruby, async move {
            fork_task(&shards.of_task(id).await?, id, from.as_deref(), input.as_ref()).await
        })?
        .to_string())
    }

    /// What is done to many tasks: {action, filter, dry_run}. How many it concerned.
    fn bulk(ruby: &Ruby, this: &Client, request: RubyValue) -> Result<usize, Error> {
        let shards = this.shards(ruby)?;
        let invalid = |error: serde_json::Error| raise::with_class(ruby, "InvalidInput", format!("bulk: {error}"));
        let Bulk { action, filter, dry_run } = serde_json::from_value(json::from_ruby(ruby, request)?).map_err(invalid)?;
        block_on(ruby, async move {
            let mut concerned = 0;
            for db in shards.of_filter(filter.namespace.as_deref()).await? {
                let tasks = bulk::matching(&db, &filter, &action).await?;
                concerned += match dry_run {
                    true => tasks.len(),
                    false => bulk::apply(&db, &tasks, &action).await?.len(),
                };
            }
            Ok(concerned)
        })
    }

    /// [name, JSON] of the results of these steps of a task, of those that are complete or skipped.
    fn read_results(ruby: &Ruby, this: &Client, id: String, names: Vec<String>) -> Result<Vec<(String, String)>, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        block_on(ruby, async move {
            read::read_results(&shards.of_task(id).await?, id, None, &names, None).await
        })
    }

    /// What the handlers of a task have published, as JSON.
    fn read_values(ruby: &Ruby, this: &Client, id: String) -> Result<String, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        Ok(block_on(ruby, async move { read_values(&shards.of_task(id).await?, id).await })?.to_string())
    }

    /// The next page of what became of the tasks of a step, as JSON.
    fn read_children(ruby: &Ruby, this: &Client, id: String, step: String, after: Option<i32>, dead: bool) -> Result<String, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        let children = block_on(ruby, async move {
            read_children(&shards.of_task(id).await?, id, None, &step, &page(after, dead)).await
        })?;
        Ok(serde_json::json!(children).to_string())
    }

    /// [id, state] of each task that exists.
    fn task_states(ruby: &Ruby, this: &Client, ids: Vec<String>) -> Result<Vec<(String, String)>, Error> {
        let shards = this.shards(ruby)?;
        let ids = ids.iter().map(|id| parse_id(ruby, id)).collect::<Result<Vec<_>, _>>()?;
        let states = block_on(ruby, async move {
            let mut states = Vec::new();
            for ids in by_shard(ids) {
                states.extend(read::task_states(&shards.of_task(ids[0]).await?, &ids).await?);
            }
            Ok(states)
        })?;
        Ok(states.into_iter().map(|(id, state)| (id.to_string(), state)).collect())
    }

    /// The task's state once it has ended or is blocked, or after that many seconds; nil waits for ever.
    fn wait(ruby: &Ruby, this: &Client, id: String, seconds: Option<f64>) -> Result<String, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        let timeout = seconds.map(|s| Duration::try_from_secs_f64(s).unwrap_or_default());
        block_on(
            ruby,
            async move { read::wait_for_end(&shards.of_task(id).await?, id, timeout).await },
        )
    }

    fn cancel(ruby: &Ruby, this: &Client, id: String, undo: bool) -> Result<bool, Error> {
        let (shards, id) = (this.shards(ruby)?, parse_id(ruby, &id)?);
        let cancelled = block_on(ruby, async move {
            let db = shards.of_task(id).await?;
            match undo {
                true => cancel::undo_tasks(&db, &[id]).await,
                false => cancel::cancel_tasks(&db, &[id]).await,
            }
        })?;
        Ok(!cancelled.is_empty())
    }

    fn close(ruby: &Ruby, this: &Client) -> Result<(), Error> {
        let shards = this.shards(ruby)?;
        block_on(ruby, async move {
            shards.close().await;
            Ok(())
        })
    }
}

#[derive(Deserialize)]
struct Bulk {
    action: bulk::Action,
    filter: read::TaskFilter,
    dry_run: bool,
}

/// Tasks that may be created.
#[magnus::wrap(class = "TaskerCore::Native::Accepted", free_immediately, size)]
struct Accepted {
    version: String,
    /// JSON.
    trace: Option<String>,
    core: Cell<Option<(Submitter, CoreAccepted)>>,
}

/// The inputs, as JSON, of tasks that this template accepts. For tests without a database.
pub(crate) fn check_tasks(ruby: &Ruby, source: String, origin: String, tasks: RArray) -> Result<Vec<String>, Error> {
    let template = Template::parse(&source, &origin).map_err(|error| raise::error(ruby, &error.into()))?;
    let tasks = new_tasks(ruby, tasks)?;
    check_inputs(&template, &tasks).map_err(|error| raise::error(ruby, &error))?;
    Ok(tasks.iter().map(|task| task.input.as_str().to_owned()).collect())
}

fn context(trace: Option<Carrier>) -> Context {
    trace.map(|carrier| telemetry::extract(&carrier)).unwrap_or_default()
}

/// Each is given as [input, key, priority, time in RFC 3339, tags, rule of uniqueness as check_unique returns it].
fn new_tasks(ruby: &Ruby, given: RArray) -> Result<Vec<NewTask>, Error> {
    let new_task = |task: RubyValue| {
        type Given = (
            RubyValue,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<HashMap<String, String>>,
            Option<String>,
        );
        let (input, key, priority, run_at, tags, unique) = Given::try_convert(task)?;
        let run_at = run_at.map(|time| time.parse()).transpose();
        let priority = priority.map(|name| name.parse()).transpose();
        Ok(NewTask {
            input: Input::of_json(json::text(ruby, input)?),
            priority: priority.map_err(|problem| raise::with_class(ruby, "InvalidInput", problem))?,
            key,
            tags: tags.unwrap_or_default().into_iter().collect(),
            run_at: run_at.map_err(|problem| raise::with_class(ruby, "InvalidInput", format!("{problem}")))?,
            unique: unique.map(|rule| read_unique(ruby, &rule)).transpose()?,
        })
    };
    given.into_iter().map(new_task).collect()
}

/// A rule of uniqueness as people write it, as JSON, as the core has it.
pub(crate) fn check_unique(ruby: &Ruby, rule: String) -> Result<String, Error> {
    let rule = Unique::parse(&json::parse(ruby, &rule)?);
    let rule = rule.map_err(|problem| raise::with_class(ruby, "InvalidInput", format!("unique: {problem}")))?;
    Ok(serde_json::json!(rule).to_string())
}

/// What makes tasks with this input the same, by a rule as [`check_unique`] returns it.
pub(crate) fn sameness(ruby: &Ruby, rule: String, input: String) -> Result<String, Error> {
    Ok(read_unique(ruby, &rule)?.sameness(&json::parse(ruby, &input)?).to_string())
}

fn read_unique(ruby: &Ruby, rule: &str) -> Result<Unique, Error> {
    serde_json::from_str(rule).map_err(|error| raise::with_class(ruby, "InvalidInput", format!("unique: {error}")))
}

pub(crate) fn parse_id<T: std::str::FromStr>(ruby: &Ruby, id: &str) -> Result<T, Error> {
    id.parse()
        .map_err(|_| raise::with_class(ruby, "InvalidInput", format!("{id:?} is not a task id: expected a UUID")))
}

/// For the other files: a client out of a Ruby value.
pub(crate) fn unwrap(value: RubyValue) -> Result<magnus::typed_data::Obj<Client>, Error> {
    TryConvert::try_convert(value)
}

/// How many children Ruby reads at once.
const PAGE: i32 = 500;

pub(crate) fn page(after: Option<i32>, dead: bool) -> Page {
    Page { after, limit: PAGE, dead }
}
