//! Where a namespace lives: as tasker.yml has it under shards, or where it has moved since, as the databases themselves say (migrations/0040_moves.sql).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::register::{register, register_if_new, Registered};
use super::shards::{Moved, Shards};
use super::submit::{NewTask, Submitted, Submitter};
use crate::backoff::Backoff;
use crate::config::{DEFAULT_SHARD, DEFAULT_SHARD_NUMBER};
use crate::db::Db;
use crate::error::{Error, Result};
use crate::template::Template;

/// How long what a database has said counts.
const FRESH: Duration = Duration::from_secs(5);

/// How many numbers each shard gives out.
const NUMBERS: i64 = 1_000_000_000_000;

/// A namespace that has moved, or is about to, as one shard has it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Move {
    /// Which.
    pub(crate) namespace: String,
    /// The number of the shard where its tasks are created; None: as tasker.yml says.
    pub(crate) lives_in: Option<i32>,
    /// That of another which has tasks of it, or is about to.
    pub(crate) also_in: Option<i32>,
}

/// Follows a namespace to where it has moved.
struct Following {
    until: Instant,
    hops: usize,
    backoff: Backoff,
}

impl Shards {
    fn moved(&self) -> MutexGuard<'_, Moved> {
        self.all.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the shard that has this number; None: tasker.yml has none.
    pub(crate) fn name_of(&self, number: i32) -> Option<&str> {
        let mut others = self.settings().shards.iter();
        match others.find(|(_, shard)| i32::from(shard.number) == number) {
            Some((name, _)) => Some(name),
            None => (number == i32::from(DEFAULT_SHARD_NUMBER)).then_some(DEFAULT_SHARD),
        }
    }

    /// The name of the shard where a namespace lives, as far as is known.
    pub(crate) fn home_of(&self, namespace: &str) -> &str {
        let number = self.moved().homes.get(namespace).copied();
        number
            .and_then(|number| self.name_of(number))
            .unwrap_or_else(|| self.settings().home_of(namespace))
    }

    /// The same of a template (name or namespace/name).
    pub(crate) fn home_of_template(&self, template: &str) -> &str {
        match template.split_once('/') {
            Some((namespace, _)) => self.home_of(namespace),
            None => {
                let number = self.moved().homes.get(&format!("/{template}")).copied();
                number.and_then(|number| self.name_of(number)).unwrap_or(DEFAULT_SHARD)
            }
        }
    }

    /// What a shard says of namespaces that have moved. Errors: those of [`Shards::named`].
    pub(crate) async fn moves(&self, name: &str) -> Result<Vec<Move>> {
        let db = self.named(name).await?;
        let moves = list_moves(&db).await?;
        let mut moved = self.moved();
        moved.others.retain(|(shard, _), _| shard != name);
        for Move {
            namespace,
            lives_in,
            also_in,
        } in &moves
        {
            if let Some(number) = lives_in {
                moved.homes.insert(namespace.clone(), *number);
            }
            if let Some(number) = also_in {
                moved.others.insert((name.to_owned(), namespace.clone()), *number);
            }
        }
        Ok(moves)
    }

    /// Asks a shard what has moved, unless it was asked just now.
    async fn look(&self, name: &str) -> Result<()> {
        let now = Instant::now();
        let fresh = |asked: &Instant| now.saturating_duration_since(*asked) < FRESH;
        if !self.are_named() || self.moved().asked.get(name).is_some_and(fresh) {
            return Ok(());
        }
        self.moved().asked.insert(name.to_owned(), now);
        match self.moves(name).await {
            // It knows of none.
            Ok(_) | Err(Error::NotMigrated(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The one where a namespace lives.
    pub async fn of_namespace(&self, namespace: &str) -> Result<Db> {
        self.look(self.home_of(namespace)).await?;
        self.named(self.home_of(namespace)).await
    }

    /// The one that has a template (name or namespace/name): the default one for a bare name.
    pub async fn of_template(&self, template: &str) -> Result<Db> {
        self.look(self.home_of_template(template)).await?;
        self.named(self.home_of_template(template)).await
    }

    /// Those that may have tasks of a namespace, or of any. Errors: those of [`Shards::named`] for any of them.
    pub async fn of_filter(&self, namespace: Option<&str>) -> Result<Vec<Db>> {
        let Some(namespace) = namespace else {
            return try_join_all(self.names().map(|name| self.named(name))).await;
        };
        let home = self.of_namespace(namespace).await?;
        let others = self.others_of(namespace);
        let mut found = vec![home];
        found.extend(try_join_all(others.iter().map(|name| self.named(name))).await?);
        Ok(found)
    }

    /// The shards that have tasks of a namespace beside the one where it lives.
    pub(crate) fn others_of(&self, namespace: &str) -> BTreeSet<String> {
        let home = self.home_of(namespace);
        let moved = self.moved();
        let of = moved.others.iter().filter(|((_, of), _)| of == namespace);
        let both = of.flat_map(|((shard, _), other)| [Some(shard.as_str()), self.name_of(*other)]);
        both.flatten().filter(|name| *name != home).map(str::to_owned).collect()
    }

    /// Each shard that has some of these, with them; `home` says of one in which it is. Errors: those of [`Shards::named`] for any of them.
    async fn apart_by<'s>(&'s self, all: Vec<String>, home: impl Fn(&str) -> &'s str) -> Result<Vec<(Db, Vec<String>)>> {
        let mut homes = BTreeMap::<&str, Vec<String>>::new();
        for one in all {
            homes.entry(home(&one)).or_default().push(one);
        }
        try_join_all(homes.into_iter().map(|(name, of)| async move { Ok((self.named(name).await?, of)) })).await
    }

    /// Each shard where some of these namespaces live, with them. Errors: those of [`Shards::named`] for any of them.
    pub async fn of_namespaces(&self, namespaces: Vec<String>) -> Result<Vec<(Db, Vec<String>)>> {
        self.apart_by(namespaces, |namespace| self.home_of(namespace)).await
    }

    /// The same of all shards, where none are named.
    pub(crate) async fn of_namespaces_or_all(&self, namespaces: Vec<String>) -> Result<Vec<(Db, Vec<String>)>> {
        match namespaces.is_empty() {
            true => Ok(self.of_filter(None).await?.into_iter().map(|db| (db, Vec::new())).collect()),
            false => self.of_namespaces(namespaces).await,
        }
    }

    /// Each shard that has some of these dead letters, with them. Errors: those of [`Shards::named`] for any of them.
    pub async fn of_letters(&self, ids: Vec<String>) -> Result<Vec<(Db, Vec<String>)>> {
        self.apart_by(ids, |id| self.home_of_letter(id)).await
    }

    /// The shard that has a dead letter (namespace/number).
    pub async fn of_letter(&self, id: &str) -> Result<Db> {
        self.named(self.home_of_letter(id)).await
    }

    fn home_of_letter(&self, id: &str) -> &str {
        let number = id.split_once('/').and_then(|(_, number)| number.parse::<i64>().ok());
        let shard = number.and_then(|number| i32::try_from(number / NUMBERS).ok());
        shard.and_then(|shard| self.name_of(shard)).unwrap_or(DEFAULT_SHARD)
    }

    /// The one that gave out a number: those of shard n begin at n × 10^12 (`tasker.become_shard`).
    pub(crate) async fn of_number(&self, number: i64) -> Result<Db> {
        let shard = i32::try_from(number / NUMBERS).ok().filter(|_| number >= 0);
        let name = shard
            .and_then(|shard| self.name_of(shard))
            .or((!self.are_named()).then_some(DEFAULT_SHARD));
        let none = || Error::NotFound(format!("nothing has the number {number}"));
        self.named(name.ok_or_else(none)?).await
    }

    /// The one where a template is to be registered. Errors: [`Error::Invalid`] where a step, or the tasks that do its work, are of a namespace that lives in
    /// another: the steps of a task move on in one transaction, and its children count there.
    pub async fn of_definition(&self, template: &Template) -> Result<Db> {
        self.look(self.home_of(&template.namespace)).await?;
        let home = self.home_of(&template.namespace);
        let elsewhere = |(_, namespace): &(&str, &str)| self.home_of(namespace) != home;
        if let Some((step, namespace)) = template.namespaces().find(elsewhere) {
            let other = self.home_of(namespace);
            return Err(Error::Invalid(format!(
                "{}/{} lives in shard {home}, and its step {step} wants the namespace {namespace}, which lives in {other}: a task has its steps and its \
                 children in its own shard; let a handler of the step enqueue a task there (docs/shards.md)",
                template.namespace, template.name
            )));
        }
        self.named(home).await
    }

    /// Creates tasks of that template, in its own shard.
    pub async fn submitter(&self, template: &str) -> Result<Submitter> {
        self.look(self.home_of_template(template)).await?;
        Ok(self.open(self.home_of_template(template)).await?.submitter.clone())
    }

    /// Creates tasks ([`Submitter::submit`]) where their namespace lives, also if it moves there at this moment.
    /// Errors: [`Error::Moved`] where it moves for longer than `failover.timeout`, or to a shard that tasker.yml does not have.
    pub async fn submit(&self, template: &str, version: Option<&str>, tasks: &[NewTask]) -> Result<Vec<Submitted>> {
        let mut following = self.following();
        loop {
            match self.submitter(template).await?.submit(template, version, tasks).await {
                Err(Error::Moved { message, shard }) => self.follow(&mut following, template, message, shard).await?,
                done => return done,
            }
        }
    }

    /// Registers a template where its namespace lives: see [`register`], or without `use_it` [`register_if_new`].
    pub async fn register(&self, template: &Template, use_it: bool) -> Result<Registered> {
        let mut following = self.following();
        loop {
            let db = self.of_definition(template).await?;
            let registered = match use_it {
                true => register(&db, template).await,
                false => register_if_new(&db, template).await,
            };
            match registered {
                Err(Error::Moved { message, shard }) => {
                    let name = format!("{}/{}", template.namespace, template.name);
                    self.follow(&mut following, &name, message, shard).await?;
                }
                done => return done,
            }
        }
    }

    fn following(&self) -> Following {
        Following {
            until: Instant::now() + self.settings().failover.timeout,
            hops: 0,
            backoff: Backoff::default(),
        }
    }

    /// From now on a template is looked for in that shard. While its namespace moves, each of the two says that it is in the other.
    async fn follow(&self, following: &mut Following, template: &str, message: String, shard: i32) -> Result<()> {
        let Following { until, hops, backoff } = following;
        if self.name_of(shard).is_none() || Instant::now() > *until {
            return Err(Error::Moved { message, shard });
        }
        *hops += 1;
        if *hops > 1 {
            tokio::time::sleep(backoff.next_delay()).await;
        }
        let key = match template.split_once('/') {
            Some((namespace, _)) => namespace.to_owned(),
            None => format!("/{template}"),
        };
        self.moved().homes.insert(key, shard);
        Ok(())
    }
}

/// The namespaces of which a database knows where they live, or where else they have tasks.
pub(crate) async fn list_moves(db: &Db) -> Result<Vec<Move>> {
    let listing = sqlx::query_as("SELECT namespace, lives_in, also_in FROM tasker.list_moves()");
    Ok(listing.fetch_all(db.pool()).await?)
}
