//! TaskerCore::Native::Worker and Step: leases, prefetching, heartbeats and batched reports run on tokio threads without the GVL; Ruby
//! threads take steps with `next` and give outcomes with `complete` and `fail`.

use std::cell::Cell;
use std::sync::{Arc, Weak};
use std::time::Duration;

use magnus::{function, method, prelude::*, Error, RArray, RModule, Ruby, Value as RubyValue};
use tasker::engine::complete::COMPLETE_WITHIN;
use tasker::engine::fail::Failure;
use tasker::engine::member::Kind;
use tasker::engine::memories::Awaited;
use tasker::engine::payload::check_payload;
use tasker::health::Beat;
use tasker::http::{Server, Serving};
use tasker::telemetry::{self, Carrier};
use tasker::worker::{Bulk, Outcome, Step as CoreStep, Worker as CoreWorker};
use tokio_util::sync::DropGuard;

use crate::json::{Converted, Unknown};
use crate::runtime::Owned;
use crate::waiting::{block_on, wait};
use crate::{client, json, raise, settings};

#[magnus::wrap(class = "TaskerCore::Native::Worker", free_immediately, size)]
struct Worker(Owned<Parts>);

struct Parts {
    worker: Arc<CoreWorker>,
    serving: Arc<Serving>,
    _following: DropGuard,
    /// Of the Ruby thread that looks after the others.
    supervisor: Beat,
}

/// When Ruby has not come round for so long, it stands still: some handler keeps its lock.
const SUPERVISOR_BOUND: Duration = Duration::from_secs(30);

#[magnus::wrap(class = "TaskerCore::Native::Step", free_immediately, size)]
pub(crate) struct Step {
    pub(crate) core: CoreStep,
    held_by: Weak<CoreWorker>,
    pid: u32,
    /// It was reported, or needs no report.
    settled: Cell<bool>,
    /// Whose it is, and which worker's: for logs.
    pub(crate) namespace: Arc<str>,
    pub(crate) worker: i32,
}

pub(crate) fn init(ruby: &Ruby, native: RModule) -> Result<(), Error> {
    let class = native.define_class("Worker", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_singleton_method("start", function!(Worker::start, 3))?;
    class.define_method("concurrency", method!(Worker::concurrency, 0))?;
    class.define_method("gather", method!(Worker::gather, 3))?;
    class.define_method("next", method!(Worker::next, 1))?;
    class.define_method("stopped?", method!(Worker::is_stopped, 0))?;
    class.define_method("complete", method!(Worker::complete, 3))?;
    class.define_method("fail", method!(Worker::fail, 2))?;
    class.define_method("fail_barely", method!(Worker::fail_barely, 1))?;
    class.define_method("decline", method!(Worker::decline, 1))?;
    class.define_method("asked", method!(Worker::asked, 0))?;
    class.define_method("answer", method!(Worker::answer, 1))?;
    class.define_method("progress", method!(Worker::progress, 2))?;
    class.define_method("checkpoint", method!(Worker::checkpoint, 2))?;
    class.define_method("completion", method!(Worker::completion, 3))?;
    class.define_method("forget", method!(Worker::forget, 1))?;
    class.define_method("beat", method!(Worker::beat, 0))?;
    class.define_method("health", method!(Worker::health, 0))?;
    class.define_method("shutdown", method!(Worker::shutdown, 1))?;

    let class = native.define_class("Step", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_method("task_id", method!(|step: &Step| step.core.leased.task_id.to_string(), 0))?;
    class.define_method("name", method!(|step: &Step| step.core.leased.name.clone(), 0))?;
    class.define_method("handler", method!(|step: &Step| step.core.leased.handler.clone(), 0))?;
    class.define_method("template", method!(|step: &Step| step.core.leased.template.clone(), 0))?;
    class.define_method("version", method!(|step: &Step| step.core.leased.version.clone(), 0))?;
    class.define_method("attempt", method!(|step: &Step| step.core.leased.attempt, 0))?;
    class.define_method("max_attempts", method!(|step: &Step| step.core.leased.max_attempts, 0))?;
    class.define_method(
        "timeout",
        method!(|step: &Step| step.core.leased.timeout_ms.map(|ms| ms as f64 / 1000.0), 0),
    )?;
    class.define_method("input", method!(Step::input, 0))?;
    class.define_method("config", method!(|step: &Step| step.core.leased.config.clone(), 0))?;
    class.define_method("results", method!(|step: &Step| step.core.leased.results.clone(), 0))?;
    class.define_method("names_before", method!(Step::names_before, 0))?;
    class.define_method("read_results", method!(Step::read_results, 1))?;
    class.define_method("fan_outs", method!(|step: &Step| step.core.leased.fan_outs.clone(), 0))?;
    class.define_method("read_children", method!(Step::read_children, 3))?;
    class.define_method("checkpoint", method!(Step::checkpoint, 0))?;
    class.define_method("recall", method!(Step::recall, 1))?;
    class.define_method("remember", method!(Step::remember, 2))?;
    class.define_method("begin_sleep", method!(Step::begin_sleep, 2))?;
    class.define_method("begin_wait", method!(Step::begin_wait, 4))?;
    class.define_method("publish", method!(Step::publish, 2))?;
    class.define_method("transactional?", method!(|step: &Step| step.core.leased.transactional, 0))?;
    class.define_method("namespace", method!(|step: &Step| step.namespace.to_string(), 0))?;
    class.define_method("worker", method!(|step: &Step| step.worker, 0))?;
    class.define_method("trace_id", method!(Step::trace_id, 0))?;
    class.define_method("trace", method!(Step::trace, 0))?;
    class.define_method("lost?", method!(|step: &Step| step.core.is_lost(), 0))?;
    Ok(())
}

type Remembered = (Option<String>, Option<f64>);

impl Step {
    /// In hex; nil: its task is part of no trace.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.core.leased.trace.as_ref()?.id().map(str::to_owned)
    }

    /// Where what its handler does belongs, as W3C Trace Context propagates it; nil: in no trace.
    fn trace(&self) -> Option<Carrier> {
        self.core.context().as_ref().map(telemetry::inject)
    }

    /// JSON; what is large is read now.
    fn input(ruby: &Ruby, this: &Step) -> Result<String, Error> {
        match &this.core.leased.input {
            Some(input) => Ok(input.clone()),
            None => {
                let core = this.core.clone();
                block_on(ruby, async move { core.input().await })
            }
        }
    }

    /// JSON, or nil; what is large is read now.
    fn checkpoint(ruby: &Ruby, this: &Step) -> Result<Option<String>, Error> {
        match &this.core.leased.input {
            Some(_) => Ok(this.core.leased.checkpoint.clone()),
            // It is left behind together with the input.
            None => {
                let core = this.core.clone();
                block_on(ruby, async move { core.checkpoint().await })
            }
        }
    }

    /// What it remembers under that name: [JSON or nil, how many seconds it still sleeps or nil]; nil: nothing.
    fn recall(ruby: &Ruby, this: &Step, name: String) -> Result<Option<Remembered>, Error> {
        let core = this.core.clone();
        let memory = block_on(ruby, async move { core.recall(&name).await })?;
        Ok(memory.map(|memory| (memory.value, memory.seconds)))
    }

    /// Remembers a value under a name. Returns it as JSON. Raises TaskerCore::LeaseLost.
    fn remember(ruby: &Ruby, this: &Step, name: String, value: RubyValue) -> Result<String, Error> {
        let (core, json) = (this.core.clone(), storable(ruby, value)?);
        block_on(ruby, async move { core.remember(&name, &json).await.map(|()| json) })
    }

    /// Remembers until when it sleeps. Returns for how many seconds. Raises TaskerCore::LeaseLost.
    fn begin_sleep(ruby: &Ruby, this: &Step, name: String, seconds: f64) -> Result<f64, Error> {
        let (core, time) = (this.core.clone(), Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let asleep = block_on(ruby, async move { core.begin_sleep(&name, time).await })?;
        Ok(asleep.as_secs_f64())
    }

    /// Begins to wait for a signal, to be remembered under that name. Raises TaskerCore::LeaseLost.
    fn begin_wait(ruby: &Ruby, this: &Step, name: String, signal: String, key: Option<String>, timeout: Option<f64>) -> Result<(), Error> {
        let core = this.core.clone();
        let timeout = timeout.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        block_on(ruby, async move { core.begin_wait(&name, &Awaited { signal, key, timeout }).await })
    }

    /// Sets a value of the task. Raises TaskerCore::LeaseLost.
    fn publish(ruby: &Ruby, this: &Step, name: String, value: RubyValue) -> Result<(), Error> {
        let (core, json) = (this.core.clone(), storable(ruby, value)?);
        block_on(ruby, async move { core.publish(&name, &json).await })
    }

    fn names_before(ruby: &Ruby, this: &Step) -> Result<Vec<String>, Error> {
        let core = this.core.clone();
        block_on(ruby, async move { core.names_before().await })
    }

    /// [name, JSON] of each that is there.
    fn read_results(ruby: &Ruby, this: &Step, names: Vec<String>) -> Result<Vec<(String, String)>, Error> {
        let core = this.core.clone();
        block_on(ruby, async move { core.results(&names).await })
    }

    /// The next page of what became of the tasks of a step before, as JSON.
    fn read_children(ruby: &Ruby, this: &Step, name: String, after: Option<i32>, dead: bool) -> Result<String, Error> {
        let core = this.core.clone();
        let children = block_on(ruby, async move { core.children(&name, &client::page(after, dead)).await })?;
        Ok(serde_json::json!(children).to_string())
    }
}

/// A step that nobody has reported is not held for ever: whoever had it has lost it.
impl Drop for Step {
    fn drop(&mut self) {
        if self.settled.get() || self.pid != std::process::id() {
            return;
        }
        if let Some(worker) = self.held_by.upgrade() {
            worker.report(&self.core, Outcome::Fail(undescribed()));
        }
    }
}

/// What is recorded where nothing of a failure can be.
fn undescribed() -> Failure {
    Failure::retryable("TaskerCore::Error", "the handler failed, and how cannot be described")
}

impl Worker {
    /// With what this process sets (as a section of tasker.yml has it), and that file's own section where Ruby has read it.
    fn start(ruby: &Ruby, with: RubyValue, flags: RubyValue, file: RubyValue) -> Result<Worker, Error> {
        let shards = client::unwrap(with)?.shards(ruby)?;
        let local = settings::local(ruby, flags, file)?;
        let own = settings::own(ruby, &local)?;
        let listen = own.worker.listen;
        let parts = block_on(ruby, async move {
            // The address first: a port in use should not cost a membership.
            let server = Server::bind(listen, Kind::Worker).await?;
            let shards = shards.of_process(&own);
            let (live, following) = settings::follow(&shards, local).await?;
            let worker = CoreWorker::start_in(&shards, live).await?;
            Ok(Parts {
                _following: following,
                supervisor: worker.health().beats().register("supervisor", SUPERVISOR_BOUND),
                serving: Arc::new(server.start(worker.health().clone())),
                worker: Arc::new(worker),
            })
        })?;
        Ok(Worker(Owned::new(parts)))
    }

    /// How many handlers may run at once, now.
    fn concurrency(ruby: &Ruby, this: &Worker) -> Result<usize, Error> {
        Ok(this.owned(ruby)?.concurrency())
    }

    fn owned(&self, ruby: &Ruby) -> Result<&Arc<CoreWorker>, Error> {
        self.parts(ruby).map(|parts| &parts.worker)
    }

    fn parts(&self, ruby: &Ruby) -> Result<&Parts, Error> {
        self.0.get().ok_or_else(|| {
            raise::with_class(
                ruby,
                "Error",
                "this worker belongs to the process that this one was forked from".into(),
            )
        })
    }

    /// From now on, so many steps of this handler come together, at most, and the first waits that many seconds for others.
    fn gather(ruby: &Ruby, this: &Worker, handler: String, batch: usize, within: f64) -> Result<(), Error> {
        let within = Duration::try_from_secs_f64(within).unwrap_or_default();
        this.owned(ruby)?.gather(&handler, Bulk { batch, within });
        Ok(())
    }

    /// The steps of the next call; nil after that many seconds without one, or when the worker stops (see stopped?).
    fn next(ruby: &Ruby, this: &Worker, seconds: f64) -> Result<Option<RArray>, Error> {
        let timeout = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let worker = this.owned(ruby)?;
        let call = match worker.try_next() {
            // What is there already costs no hand-over of the GVL.
            Some(call) => Some(call),
            None => wait(ruby, Some(timeout), || worker.next())?.flatten(),
        };
        let step = |core: CoreStep| Step {
            held_by: Arc::downgrade(worker),
            pid: std::process::id(),
            settled: Cell::new(false),
            namespace: worker.namespace(&core).into(),
            worker: core.worker(),
            core,
        };
        Ok(call.map(|call| ruby.ary_from_iter(call.into_iter().map(step))))
    }

    fn is_stopped(ruby: &Ruby, this: &Worker) -> Result<bool, Error> {
        Ok(this.owned(ruby)?.is_stopped())
    }

    /// Reports a result; returns what is null in it because JSON cannot hold it. Raises TaskerCore::InvalidInput, and reports nothing, when that is
    /// an error (`strict`), or it is too large.
    fn complete(ruby: &Ruby, this: &Worker, step: &Step, result: RubyValue, strict: bool) -> Result<Vec<String>, Error> {
        let (result, left_out) = storable_result(ruby, result, strict)?;
        this.settle(ruby, step, Outcome::Complete(result))?;
        Ok(left_out)
    }

    /// Reports a failure: a hash with class, message, backtrace, reason, permanent, retry_after. False: the step was reported before, or handed back.
    fn fail(ruby: &Ruby, this: &Worker, step: &Step, failure: RubyValue) -> Result<bool, Error> {
        let failure = serde_json::from_value(json::from_ruby(ruby, failure)?);
        let failure = failure.map_err(|error| raise::with_class(ruby, "InvalidInput", format!("no failure: {error}")))?;
        this.settle(ruby, step, Outcome::Fail(failure))
    }

    /// Reports a failure of which nothing can be said.
    fn fail_barely(ruby: &Ruby, this: &Worker, step: &Step) -> Result<bool, Error> {
        this.settle(ruby, step, Outcome::Fail(undescribed()))
    }

    /// This worker has no handler for it.
    fn decline(ruby: &Ruby, this: &Worker, step: &Step) -> Result<bool, Error> {
        this.settle(ruby, step, Outcome::Decline)
    }

    /// The names of handlers that other workers do not have, and steps wait for.
    fn asked(ruby: &Ruby, this: &Worker) -> Result<Vec<String>, Error> {
        Ok(this.owned(ruby)?.asked().into_iter().map(|kind| kind.handler).collect())
    }

    /// Which of them this one has.
    fn answer(ruby: &Ruby, this: &Worker, found: Vec<String>) -> Result<(), Error> {
        this.owned(ruby)?.answer(|kind| found.contains(&kind.handler));
        Ok(())
    }

    fn settle(&self, ruby: &Ruby, step: &Step, outcome: Outcome) -> Result<bool, Error> {
        let taken = self.owned(ruby)?.report(&step.core, outcome);
        step.settled.set(true);
        Ok(taken)
    }

    /// Notes progress; it travels with the next heartbeat.
    fn progress(ruby: &Ruby, this: &Worker, step: &Step, progress: RubyValue) -> Result<(), Error> {
        let progress = json::parse(ruby, &storable(ruby, progress)?)?;
        this.owned(ruby)?.progress(&step.core, progress);
        Ok(())
    }

    /// Records a checkpoint before it returns. Raises TaskerCore::LeaseLost.
    fn checkpoint(ruby: &Ruby, this: &Worker, step: &Step, checkpoint: RubyValue) -> Result<(), Error> {
        let (worker, step, checkpoint) = (this.owned(ruby)?.clone(), step.core.clone(), json::from_ruby(ruby, checkpoint)?);
        block_on(ruby, async move { worker.checkpoint(&step, checkpoint).await })
    }

    /// [SQL, arguments, what is null in the result]: what completes the step inside the handler's own transaction.
    fn completion(
        ruby: &Ruby,
        this: &Worker,
        step: &Step,
        result: RubyValue,
        strict: bool,
    ) -> Result<(&'static str, Vec<String>, Vec<String>), Error> {
        let (result, left_out) = storable_result(ruby, result, strict)?;
        let (queue, member, msg_id, fence, task, step) = this.owned(ruby)?.completion(&step.core);
        let arguments = vec![
            queue.to_owned(),
            member.to_string(),
            msg_id.to_string(),
            fence.to_string(),
            task.to_string(),
            step.to_string(),
            result,
        ];
        Ok((COMPLETE_WITHIN, arguments, left_out))
    }

    /// The step was completed inside the handler's own transaction.
    fn forget(ruby: &Ruby, this: &Worker, step: &Step) -> Result<(), Error> {
        this.owned(ruby)?.forget(&step.core);
        step.settled.set(true);
        Ok(())
    }

    /// The supervisor has come round. Returns why the worker cannot go on; nil: it can.
    fn beat(ruby: &Ruby, this: &Worker) -> Result<Option<String>, Error> {
        this.parts(ruby)?.supervisor.beat();
        Ok(this.owned(ruby)?.health().why_given_up())
    }

    /// How this worker is, as JSON.
    fn health(ruby: &Ruby, this: &Worker) -> Result<String, Error> {
        let worker = this.owned(ruby)?.clone();
        let live = block_on(ruby, async move { Ok(worker.health().live().await) })?;
        Ok(serde_json::json!(live).to_string())
    }

    fn shutdown(ruby: &Ruby, this: &Worker, grace: f64) -> Result<(), Error> {
        let parts = this.parts(ruby)?;
        let (worker, serving) = (parts.worker.clone(), parts.serving.clone());
        let grace = Duration::try_from_secs_f64(grace).unwrap_or_default();
        block_on(ruby, async move {
            worker.shutdown(grace).await;
            serving.stop().await;
            Ok(())
        })
    }
}

/// As JSON, if it can be stored. Raises TaskerCore::InvalidInput.
pub(crate) fn storable(ruby: &Ruby, value: RubyValue) -> Result<String, Error> {
    let text = json::text(ruby, value)?;
    check_payload("the value", &text).map_err(|error| raise::error(ruby, &error))?;
    Ok(text)
}

/// [JSON, what is null in it because JSON cannot hold it] of a result. Raises TaskerCore::InvalidInput.
pub(crate) fn storable_result(ruby: &Ruby, result: RubyValue, strict: bool) -> Result<(String, Vec<String>), Error> {
    let unknown = match strict {
        true => Unknown::Refused,
        false => Unknown::Null,
    };
    let Converted { json, left_out } = json::convert(ruby, result, unknown)?;
    check_payload("the result", &json).map_err(|error| raise::error(ruby, &error))?;
    Ok((json, left_out))
}
