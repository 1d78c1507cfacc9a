//! Dead letters: looking at them, and what an operator does about them.

use axum::extract::State;
use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use utoipa::{IntoParams, ToSchema};

use super::access::{As, Caller, Operator, Reader};
use super::extract::{Asked, Body, Part};
use super::listed::{limit, Listed, Newest};
use super::problem::{ChangeRefused, Outcome, Problem, ReadRefused};
use super::steering::Reason;
use super::Api;
use crate::engine::audit::Change;
use crate::engine::dead_letters::{self, Filter, Replay, Verb};
use crate::engine::lists;

/// Which dead letters
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LettersAsked {
    namespace: Option<String>,
    /// The template's name
    template: Option<String>,
    handler: Option<String>,
    /// Such as attempts_exhausted, permanent_error, timeout or deadline
    reason: Option<String>,
    /// The class of the last error
    class: Option<String>,
    /// The task's id
    task: Option<uuid::Uuid>,
    /// Seconds since it died, at least
    #[param(minimum = 0)]
    older_than: Option<f64>,
    /// Seconds since it died, at most
    #[param(minimum = 0)]
    newer_than: Option<f64>,
    /// `next` of the page before
    cursor: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i32>,
}

impl LettersAsked {
    fn filter(self) -> Outcome<Filter> {
        for (name, age) in [("older_than", self.older_than), ("newer_than", self.newer_than)] {
            if age.is_some_and(|age| !(0.0..=1e9).contains(&age)) {
                return Err(Problem::bad_request(format!("{name}: expected seconds, 0 to 1000000000")));
            }
        }
        Ok(Filter {
            namespace: self.namespace,
            template: self.template,
            handler: self.handler,
            reason: self.reason,
            class: self.class,
            task: self.task.map(|task| task.to_string()),
            older_than: self.older_than,
            newer_than: self.newer_than,
            before: None,
            ..Filter::default()
        })
    }
}

/// List dead letters
///
/// The newest first, without what is large. It takes the role reader.
#[utoipa::path(get, path = "/dead-letters", tag = "dead letters", params(LettersAsked), responses(
    (status = 200, description = "A page of dead letters", body = Listed, example = json!({ "items": [{
        "id": "fulfillment/7", "task": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "template": "order_fulfillment", "step": "charge",
        "reason": "permanent_error", "errors": [{ "class": "CardDeclined", "message": "no funds" }] }], "next": null })),
    ReadRefused))]
pub(super) async fn list(State(api): State<Api>, _: Reader, Asked(asked): Asked<LettersAsked>) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let cursor = asked.cursor.clone();
    let (letters, next) = lists::letters_page(&api.shards, &asked.filter()?, cursor.as_deref(), limit).await?;
    Ok(Json(Listed::continued(letters, next)))
}

/// List groups of dead letters
///
/// By namespace, template, step, reason and class of error, the largest first; `cursor` does not count. It takes the role reader.
#[utoipa::path(get, path = "/dead-letters/groups", tag = "dead letters", params(LettersAsked), responses(
    (status = 200, description = "The groups", body = Listed, example = json!({ "items": [{
        "namespace": "fulfillment", "template": "order_fulfillment", "step": "charge", "reason": "permanent_error", "class": "CardDeclined",
        "count": 12, "example": "fulfillment/7" }], "next": null })),
    ReadRefused))]
pub(super) async fn groups(State(api): State<Api>, _: Reader, Asked(asked): Asked<LettersAsked>) -> Outcome<Json<Listed>> {
    let limit = limit(asked.limit)?;
    let mut groups = lists::letter_groups(&api.shards, &asked.filter()?).await?;
    groups.truncate(usize::try_from(limit).unwrap_or_default());
    Ok(Json(Listed::whole(groups)))
}

/// List what was done to dead letters
///
/// By whom, and why, the newest first. It takes the role reader.
#[utoipa::path(get, path = "/dead-letters/actions", tag = "dead letters", params(Newest), responses(
    (status = 200, description = "What was done", body = Listed, example = json!({ "items": [{
        "at": "2026-11-29T10:00:00Z", "who": "ada", "action": "replay", "letter": "fulfillment/7", "step": "charge",
        "task_id": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "why": "the bank answers again" }], "next": null })),
    ReadRefused))]
pub(super) async fn actions(State(api): State<Api>, _: Reader, Asked(asked): Asked<Newest>) -> Outcome<Json<Listed>> {
    let actions = lists::letter_actions(&api.shards, limit(asked.limit)?).await?;
    Ok(Json(Listed::whole(actions)))
}

/// How many dead letters
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PurgedLetters {
    /// That were deleted
    purged: usize,
}

/// Purge dead letters
///
/// Those are deleted whose time is over (`retention_days`), as an orchestrator does every hour. It takes the role operator.
#[utoipa::path(post, path = "/dead-letters/purge", tag = "dead letters", request_body = Reason, responses(
    (status = 200, description = "How many", body = PurgedLetters, example = json!({ "purged": 12 })), ChangeRefused))]
pub(super) async fn purge(
    State(api): State<Api>,
    As(caller): Operator,
    Body(Reason { why }): Body<Reason>,
) -> Outcome<Json<PurgedLetters>> {
    let by = caller.by(why.as_deref());
    let mut purged = 0;
    for db in api.shards.of_filter(None).await? {
        let change = Change {
            action: "dead_letters.purge",
            why: why.as_deref(),
            ..Change::default()
        };
        let purge = async { Ok(dead_letters::purge(&db, &by).await?) };
        purged += caller.change(&db, change, purge, |_| None).await?;
    }
    Ok(Json(PurgedLetters { purged }))
}

/// Show a dead letter
///
/// Whole: with the task's input, all errors, and the results of the steps before it. It takes the role reader.
#[utoipa::path(get, path = "/dead-letters/{namespace}/{number}", tag = "dead letters",
    params(("namespace" = String, Path, description = "The first part of its id"), ("number" = i64, Path, description = "The second part of its id")),
    responses((status = 200, description = "The letter", body = Object, example = json!({
        "id": "fulfillment/7", "task": "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b", "step": "charge", "reason": "permanent_error", "input": { "order_id": 42 } })),
    ReadRefused))]
pub(super) async fn show(State(api): State<Api>, _: Reader, Part((namespace, number)): Part<(String, i64)>) -> Outcome<Json<Value>> {
    let id = format!("{namespace}/{number}");
    Ok(Json(dead_letters::show(&api.shards.of_letter(&id).await?, &id).await?))
}

/// Which dead letters, by their ids
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "ids": ["fulfillment/7"], "why": "the bank answers again" }))]
pub(crate) struct Letters {
    /// Each namespace/number
    #[schema(min_items = 1, max_items = 1000)]
    ids: Vec<String>,
    /// For those who read the record
    why: Option<String>,
}

/// Those to which it was done
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "ids": ["fulfillment/7"] }))]
pub(crate) struct LettersDone {
    /// The others are not there any more, their tasks have ended, or they are no step's
    ids: Vec<String>,
}

const MAX_LETTERS: usize = 1_000;

impl Letters {
    fn check(&self) -> Outcome<()> {
        match (1..=MAX_LETTERS).contains(&self.ids.len()) {
            true => Ok(()),
            false => Err(Problem::invalid(format!("ids: expected 1 to {MAX_LETTERS}"))),
        }
    }
}

/// Does it to the letters of each shard, where it is recorded, too.
async fn act(api: &Api, caller: &Caller, letters: &Letters, action: &'static str, verb: &Verb) -> Outcome<Json<LettersDone>> {
    letters.check()?;
    let by = caller.by(letters.why.as_deref());
    let mut done = Vec::new();
    for (db, ids) in api.shards.of_letters(letters.ids.clone()).await? {
        let change = Change {
            action,
            object: ids.first().filter(|_| ids.len() == 1).map(String::as_str),
            why: letters.why.as_deref(),
            details: Some(json!({ "ids": ids })),
            ..Change::default()
        };
        let doing = async { Ok(verb.act(&db, &ids, &by).await?) };
        done.extend(caller.change(&db, change, doing, |_| None).await?);
    }
    Ok(Json(LettersDone { ids: done }))
}

/// How to replay which dead letters
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "ids": ["fulfillment/7"], "why": "the bank answers again" }))]
pub(crate) struct ReplayLetters {
    /// Each namespace/number
    #[schema(min_items = 1, max_items = 1000)]
    ids: Vec<String>,
    /// In place of the tasks' input
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
    /// In place of the steps' own
    #[schema(minimum = 1, maximum = 1000)]
    max_attempts: Option<u16>,
    /// How many begin in a second; none: all at once
    per_second: Option<f64>,
    /// Only check whether this can be done, and say to which
    #[serde(default)]
    dry_run: bool,
    /// For those who read the record
    why: Option<String>,
}

/// Replay dead letters
///
/// Their steps start over. With `dry_run`, nothing is done: the answer has those that would be replayed. It takes the role operator.
#[utoipa::path(post, path = "/dead-letters/replay", tag = "dead letters", request_body = ReplayLetters, responses(
    (status = 200, description = "Those that were replayed", body = LettersDone, example = json!({ "ids": ["fulfillment/7"] })), ChangeRefused))]
pub(crate) async fn replay(State(api): State<Api>, As(caller): Operator, Body(given): Body<ReplayLetters>) -> Outcome<Json<LettersDone>> {
    let how = Replay {
        input: given.input,
        max_attempts: given.max_attempts,
        per_second: given.per_second,
    };
    let letters = Letters {
        ids: given.ids,
        why: given.why,
    };
    if given.dry_run {
        letters.check()?;
        let mut ids = Vec::new();
        for (db, of) in api.shards.of_letters(letters.ids).await? {
            ids.extend(dead_letters::check_replay(&db, &of, &how).await?);
        }
        return Ok(Json(LettersDone { ids }));
    }
    act(&api, &caller, &letters, "dead_letters.replay", &Verb::Replay(how)).await
}

/// With what to resolve which dead letters
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "ids": ["fulfillment/7"], "result": { "charged": true }, "why": "charged by hand" }))]
pub(crate) struct Resolve {
    /// Each namespace/number
    #[schema(min_items = 1, max_items = 1000)]
    ids: Vec<String>,
    /// The result of the steps
    result: Value,
    /// For those who read the record
    why: Option<String>,
}

/// Resolve dead letters
///
/// Their steps are complete with a result that is given; their tasks go on. It takes the role operator.
#[utoipa::path(post, path = "/dead-letters/resolve", tag = "dead letters", request_body = Resolve, responses(
    (status = 200, description = "Those that were resolved", body = LettersDone, example = json!({ "ids": ["fulfillment/7"] })), ChangeRefused))]
pub(crate) async fn resolve(State(api): State<Api>, As(caller): Operator, Body(given): Body<Resolve>) -> Outcome<Json<LettersDone>> {
    let letters = Letters {
        ids: given.ids,
        why: given.why,
    };
    act(&api, &caller, &letters, "dead_letters.resolve", &Verb::Resolve(given.result)).await
}

/// Skip dead letters
///
/// Their steps end without a result; their tasks go on. It takes the role operator.
#[utoipa::path(post, path = "/dead-letters/skip", tag = "dead letters", request_body = Letters, responses(
    (status = 200, description = "Those that were skipped", body = LettersDone, example = json!({ "ids": ["fulfillment/7"] })), ChangeRefused))]
pub(crate) async fn skip(State(api): State<Api>, As(caller): Operator, Body(letters): Body<Letters>) -> Outcome<Json<LettersDone>> {
    act(&api, &caller, &letters, "dead_letters.skip", &Verb::Skip).await
}

/// Discard dead letters
///
/// They are deleted, after being recorded whole; tasks that they blocked have failed. A reason is expected (`why`). It takes the role operator.
#[utoipa::path(post, path = "/dead-letters/discard", tag = "dead letters", request_body = Letters, responses(
    (status = 200, description = "Those that were discarded", body = LettersDone, example = json!({ "ids": ["fulfillment/7"] })), ChangeRefused))]
pub(crate) async fn discard(State(api): State<Api>, As(caller): Operator, Body(letters): Body<Letters>) -> Outcome<Json<LettersDone>> {
    if letters.why.is_none() {
        return Err(Problem::invalid("a dead letter is discarded for a reason: expected why"));
    }
    act(&api, &caller, &letters, "dead_letters.discard", &Verb::Discard).await
}
