//! Durable blocks: what a handler does once, however often it runs, and how it sleeps and waits without a worker. A handler that sleeps or waits ends, and
//! runs again from its beginning when it is time; what it did before it then only remembers.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;

use super::Step;
use crate::engine::fail::Failure;
use crate::engine::memories::{self, Awaited, Memory};
use crate::engine::payload::check_payload;
use crate::error::{Error, Result};

/// What one attempt of a step has recalled.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// By name; None: nothing was recalled yet.
    memories: Mutex<Option<HashMap<String, Memory>>>,
    /// How often the attempt has come by a sleep, or a wait for a signal.
    times: Mutex<HashMap<String, u32>>,
}

/// The longest sleep, and the longest wait.
const LONGEST: Duration = crate::span::LONGEST;

impl Step {
    /// What the step remembers under that name. None: nothing. Errors: those of the database.
    pub async fn recall(&self, name: &str) -> Result<Option<Memory>> {
        let (db, task, step) = (&self.shared.db, self.leased.task_id, self.leased.step);
        let mut recalled = self.recalled.memories.lock().await;
        let all = match recalled.take() {
            Some(all) => all,
            None => memories::recall(db, task, step, None)
                .await?
                .into_iter()
                .map(|memory| (memory.name.clone(), memory))
                .collect(),
        };
        let found = recalled.insert(all).get(name).cloned();
        match found {
            Some(memory) if memory.left_out => Ok(memories::recall(db, task, step, Some(name)).await?.pop()),
            memory => Ok(memory),
        }
    }

    /// Remembers a value (JSON) under a name, for all attempts to come, before it returns.
    /// Errors: [`Error::Stale`] when the step is no longer this worker's, or its task was cancelled; [`Error::TooLarge`]; [`Error::Invalid`] for a name
    /// that is empty or longer than 200.
    pub async fn remember(&self, name: &str, value: &str) -> Result<()> {
        check_payload("the value", value)?;
        self.still_ours(
            memories::remember(
                &self.shared.db,
                self.queue_name(),
                &self.lease(),
                &self.named(name)?,
                Some(value),
                None,
            )
            .await?,
        )?;
        if let Some(all) = &mut *self.recalled.memories.lock().await {
            let memory = Memory {
                name: name.to_owned(),
                value: Some(value.to_owned()),
                seconds: None,
                left_out: false,
            };
            all.entry(name.to_owned()).or_insert(memory);
        }
        Ok(())
    }

    /// Runs `work` once for this step: any later attempt, and any later call with this name, has its result.
    /// Errors: those of `work`, which is then not remembered; those of [`Step::remember`].
    pub async fn once<F: Future<Output = Result<Value, Failure>>>(&self, name: &str, work: impl FnOnce() -> F) -> Result<Value, Failure> {
        let name = format!("once/{name}");
        if let Some(memory) = self.recall(&name).await? {
            return Ok(value_of(&memory)?.unwrap_or_default());
        }
        let result = work().await?;
        self.remember(&name, &result.to_string()).await?;
        Ok(result)
    }

    /// Lets time pass, without a worker: the handler ends with this error, and is called again when the time is over; this call then returns.
    /// Errors: those of [`Step::remember`].
    pub async fn sleep(&self, time: Duration) -> Result<(), Failure> {
        let name = self.numbered("sleep").await;
        let left = match self.recall(&name).await? {
            Some(memory) => Duration::try_from_secs_f64(memory.seconds.unwrap_or_default()).unwrap_or_default(),
            None => self.begin_sleep(&name, time).await?,
        };
        match left.is_zero() {
            true => Ok(()),
            false => Err(Failure::snooze(left)),
        }
    }

    /// Remembers under a name until when the step sleeps. Returns for how long. Errors: those of [`Step::remember`].
    pub async fn begin_sleep(&self, name: &str, time: Duration) -> Result<Duration> {
        let (time, name, lease) = (time.min(LONGEST), self.named(name)?, self.lease());
        let held = memories::remember(&self.shared.db, self.queue_name(), &lease, &name, None, Some(time)).await?;
        self.still_ours(held)?;
        Ok(time)
    }

    /// Waits for a signal, without a worker: the handler ends with this error, and is called again when the signal has come, whose payload this call then
    /// returns; or None, when its time was over. Errors: those of [`Step::remember`].
    pub async fn wait_for(&self, awaited: &Awaited) -> Result<Option<Value>, Failure> {
        let name = self.numbered(&format!("wait/{}", awaited.signal)).await;
        if let Some(memory) = self.recall(&name).await? {
            return Ok(value_of(&memory)?);
        }
        self.begin_wait(&name, awaited).await?;
        Err(Failure::wait(name))
    }

    /// Begins to wait for a signal, to be remembered under that name. Errors: those of [`Step::remember`].
    pub async fn begin_wait(&self, name: &str, awaited: &Awaited) -> Result<()> {
        let awaited = Awaited {
            signal: self.named(&awaited.signal)?,
            timeout: awaited.timeout.map(|timeout| timeout.min(LONGEST)),
            ..awaited.clone()
        };
        self.still_ours(memories::await_signal(&self.shared.db, self.queue_name(), &self.lease(), &self.named(name)?, &awaited).await?)
    }

    /// Sets a value of the task (JSON), for whoever reads it while the task runs. Errors: those of [`Step::remember`].
    pub async fn publish(&self, name: &str, value: &str) -> Result<()> {
        check_payload("the value", value)?;
        self.still_ours(memories::publish(&self.shared.db, self.queue_name(), &self.lease(), &self.named(name)?, value).await?)
    }

    /// What is done several times has a number, by the order in which it is done.
    async fn numbered(&self, name: &str) -> String {
        let mut times = self.recalled.times.lock().await;
        let count = times.entry(name.to_owned()).or_default();
        *count += 1;
        format!("{name}/{count}")
    }

    fn named(&self, name: &str) -> Result<String> {
        match (1..=200).contains(&name.chars().count()) && !name.contains('\0') {
            true => Ok(name.to_owned()),
            false => Err(Error::Invalid(format!(
                "the name {name:?} is not acceptable: expected 1 to 200 characters"
            ))),
        }
    }

    fn queue_name(&self) -> &str {
        &self.shared.queues[self.queue]
    }

    pub(super) fn still_ours(&self, held: bool) -> Result<()> {
        match held && !self.is_lost() {
            true => Ok(()),
            false => Err(Error::Stale(format!(
                "step {} of task {} is no longer this worker's, or was cancelled",
                self.leased.name, self.leased.task_id
            ))),
        }
    }
}

fn value_of(memory: &Memory) -> Result<Option<Value>> {
    let value = memory.value.as_deref().map(serde_json::from_str).transpose();
    value.map_err(|error| Error::Invalid(format!("what is remembered as {:?} is not JSON: {error}", memory.name)))
}
