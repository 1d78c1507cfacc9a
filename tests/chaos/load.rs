//! The work: mixed graphs, some under limits, some of whose steps are other tasks, wait for signals or for their time, or are handled together, some of which only one is at a time, with retries, timeouts, refusals, a step that kills its workers, and transfers that move money.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use chrono::Utc;
use fastrand::Rng;
use serde_json::json;
use sqlx::PgPool;
use tasker::engine::register::register;
use tasker::engine::schedules;
use tasker::engine::signals::{self, Addressee, Signal};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::schedule::Schedule;
use tasker::{Db, Template};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

const TEMPLATES: [&str; 15] = [
    "{ name: linear, namespace: work, steps: [
        { name: a, handler: Work }, { name: b, handler: Work, depends_on: [a] }, { name: c, handler: Work, depends_on: [b] },
        { name: d, handler: Work, depends_on: [c] }] }",
    "{ name: diamond, namespace: work, steps: [
        { name: a, handler: Work }, { name: b, handler: Work, depends_on: [a] }, { name: c, handler: Work, depends_on: [a] },
        { name: d, handler: Work, depends_on: [b, c] }] }",
    "FAN",
    "{ name: family, namespace: work, steps: [
        { name: a, handler: Work },
        { name: parts, each: { over: $.input.parts, handler: Work, limit: 3, input: { ms: $.input.ms, part: $item } }, depends_on: [a] },
        { name: whole, workflow: linear, depends_on: [a] }, { name: z, handler: Work, depends_on: [parts, whole] }] }",
    "{ name: signalled, namespace: work, steps: [
        { name: a, handler: Work }, { name: told, wait: go, depends_on: [a] }, { name: paid, wait: { key: $.input.order }, depends_on: [a] },
        { name: z, handler: Work, depends_on: [told, paid] }] }",
    "{ name: single, namespace: work, unique: { by: $.input.from, while: live }, steps: [{ name: a, handler: Work }, { name: b, handler: Work, depends_on: [a] }] }",
    "{ name: sleepy, namespace: work, steps: [
        { name: a, handler: Work }, { name: nap, sleep: 500ms, depends_on: [a] }, { name: b, handler: Work, depends_on: [nap], delay: 300ms }] }",
    "{ name: together, namespace: work, steps: [
        { name: a, handler: Many, retry: { max_attempts: 100, base: 0.05, max: 1 } },
        { name: parts, each: { over: $.input.parts, handler: Many, input: { cents: $item } }, depends_on: [a],
          retry: { max_attempts: 100, base: 0.05, max: 1 } }] }",
    // Long enough to be under way when a worker that was frozen past its lease comes back.
    "{ name: long, namespace: work, steps: [{ name: a, handler: Work, config: { ms: 2500 } }, { name: b, handler: Work, depends_on: [a] }] }",
    "{ name: retrying, namespace: work, steps: [
        { name: a, handler: Work, config: { fail_before: 3 }, retry: { max_attempts: 5, base: 0.05 } },
        { name: b, handler: Work, depends_on: [a] }] }",
    "{ name: slow, namespace: work, steps: [
        { name: a, handler: Work, config: { hang_before: 2 }, timeout: 0.5, retry: { max_attempts: 100, base: 0.05, max: 1 } },
        { name: b, handler: Work, depends_on: [a] }] }",
    "{ name: refused, namespace: work, steps: [
        { name: a, handler: Work }, { name: b, handler: Work, depends_on: [a], config: { refuse: true } },
        { name: c, handler: Work, depends_on: [b] }, { name: d, handler: Work, depends_on: [a] }] }",
    "{ name: poison, namespace: work, steps: [{ name: a, handler: Work, config: { kill: true } }] }",
    "{ name: transfer, namespace: bank, steps: [
        { name: move, handler: Transfer, transactional: true, retry: { max_attempts: 100, base: 0.05, max: 1 } },
        { name: receipt, handler: Work, namespace: work, depends_on: [move] }] }",
    "{ name: returned, namespace: bank, on_failure: undo, steps: [
        { name: move, handler: Transfer, transactional: true, retry: { max_attempts: 100, base: 0.05, max: 1 },
          undo: { handler: Transfer, retry: { max_attempts: 100, base: 0.05, max: 1 } } },
        { name: parts, each: { over: $.input.parts, handler: Work, input: { ms: $.input.ms, part: $item } }, undo: Work, namespace: work,
          depends_on: [move], retry: { max_attempts: 100, base: 0.05, max: 1 } },
        { name: check, handler: Work, namespace: work, depends_on: [parts], config: { refuse: true } }] }",
];

pub(crate) const ACCOUNTS: i64 = 10;
pub(crate) const CENTS: i64 = 100_000;

pub(crate) async fn prepare(db: &Db, pool: &PgPool) {
    let leaves: Vec<String> = (0..20)
        .map(|n| format!("{{ name: l{n}, handler: Work, depends_on: [a] }}"))
        .collect();
    let names: Vec<String> = (0..20).map(|n| format!("l{n}")).collect();
    let fan = format!(
        "{{ name: fan, namespace: work, steps: [{{ name: a, handler: Work }}, {}, {{ name: z, handler: Work, depends_on: [{}] }}] }}",
        leaves.join(", "),
        names.join(", ")
    );
    for source in TEMPLATES {
        let template = Template::parse(if source == "FAN" { &fan } else { source }, "chaos").unwrap_or_else(|error| panic!("{error}"));
        register(db, &template).await.unwrap();
    }
    let limits = json!({ "namespaces": {
        "work": { "limits": {
            "diamonds": { "template": "diamond", "key": "from", "concurrency": 2 },
            "retries": { "template": "retrying", "rate": 10, "per_seconds": 0.5 },
        } },
        "bank": { "limits": { "transfers": { "handler": "Transfer", "concurrency": 3, "breaker": { "failure_rate": 1, "open_seconds": 1 } } } },
    } });
    sqlx::query("SELECT tasker.change_configuration(0, $1, 'chaos', NULL)")
        .bind(limits)
        .execute(pool)
        .await
        .unwrap();
    sqlx::raw_sql(&format!(
        "CREATE TABLE accounts AS SELECT n AS id, {CENTS} AS cents FROM generate_series(1, {ACCOUNTS}) AS n;
         CREATE TABLE ledger (task uuid NOT NULL, run text NOT NULL, cents int NOT NULL)"
    ))
    .execute(pool)
    .await
    .unwrap();
}

/// What comes next.
pub(crate) type Mix = fn(&mut Rng) -> &'static str;

pub(crate) fn anything(random: &mut Rng) -> &'static str {
    match random.u8(..100) {
        0..=3 => "long",
        4..=8 => "linear",
        9..=13 => "sleepy",
        14..=19 => "together",
        20..=27 => "family",
        28..=37 => "signalled",
        38..=45 => "diamond",
        46..=50 => "fan",
        51..=60 => "retrying",
        61..=65 => "slow",
        66..=69 => "refused",
        70 => "poison",
        71..=78 => "returned",
        79..=83 => "single",
        _ => "transfer",
    }
}

pub(crate) fn often_long(random: &mut Rng) -> &'static str {
    match random.u8(..100) {
        0..=29 => "long",
        _ => anything(random),
    }
}

/// Nothing that runs more than once by itself.
pub(crate) fn plain(random: &mut Rng) -> &'static str {
    ["linear", "diamond", "fan"][random.usize(..3)]
}

/// How many tasks may kill their workers: each takes some down.
const POISONS: usize = 3;

/// Submits until it is stopped.
pub(crate) struct Load {
    stop: CancellationToken,
    accepted: JoinHandle<HashMap<String, &'static str>>,
}

impl Load {
    pub(crate) fn start(db: Db, seed: u64, mix: Mix) -> Load {
        let stop = CancellationToken::new();
        Load {
            accepted: tokio::spawn(submit(db, Rng::with_seed(seed + 1), mix, stop.clone())),
            stop,
        }
    }

    /// The templates of all accepted tasks, by their keys.
    pub(crate) async fn stop(self) -> HashMap<String, &'static str> {
        self.stop.cancel();
        self.accepted.await.unwrap()
    }
}

async fn submit(db: Db, mut random: Rng, mix: Mix, stop: CancellationToken) -> HashMap<String, &'static str> {
    let clock = Schedule::parse(&json!({ "every": "1s", "catch_up": "all", "input": { "ms": 5 } })).unwrap();
    until_done(|| schedules::put(&db, "clock", "linear", &clock)).await;
    let submitter = Submitter::new(db.clone());
    let mut senders = JoinSet::new();
    let mut accepted = HashMap::new();
    let (mut poisons, mut known) = (0, HashSet::new());
    while !stop.is_cancelled() {
        let template = match mix(&mut random) {
            "poison" if poisons == POISONS => continue,
            template => template,
        };
        poisons += usize::from(template == "poison");
        let count = if ["poison", "long"].contains(&template) {
            1
        } else {
            random.usize(1..10)
        };
        let tasks: Vec<NewTask> = (0..count)
            .map(|n| {
                let from = random.i64(1..=ACCOUNTS);
                let mut input = json!({ "from": from, "to": 1 + from % ACCOUNTS, "cents": random.u32(1..50), "ms": random.u32(0..20) });
                if ["family", "returned", "together"].contains(&template) {
                    input["parts"] = json!((0..random.u32(0..15)).collect::<Vec<_>>());
                }
                if template == "signalled" {
                    let order = format!("order-{}-{n}", accepted.len());
                    input["order"] = json!(order);
                    senders.spawn(send(db.clone(), Addressee::Key(order), "paid", random.u64(0..2_000)));
                }
                NewTask {
                    input: input.into(),
                    key: Some(format!("{}-{n}", accepted.len())),
                    run_at: (random.u32(0..5) == 0).then(|| Utc::now() + Duration::from_millis(random.u64(0..3_000))),
                    ..NewTask::default()
                }
            })
            .collect();
        // Whether a call that broke was accepted nobody knows; with the same keys it is harmless to ask again.
        let submitted = until_done(|| submitter.submit(template, None, &tasks)).await;
        if template == "signalled" {
            for task in &submitted {
                senders.spawn(send(db.clone(), Addressee::Task(task.id), "go", random.u64(0..2_000)));
            }
        }
        // One that is like a task that there is, is that one.
        let new = tasks.into_iter().zip(submitted).filter(|(_, task)| known.insert(task.id));
        accepted.extend(new.map(|(task, _)| (format!("{template}/{}", task.key.unwrap()), template)));
        tokio::time::sleep(Duration::from_millis(random.u64(20..150))).await;
    }
    senders.join_all().await;
    until_done(|| schedules::pause(&db, "clock", true, "chaos", None)).await;
    accepted
}

/// Calls until it is answered.
async fn until_done<T, F: Future<Output = tasker::Result<T>>>(call: impl Fn() -> F) -> T {
    loop {
        match call().await {
            Ok(done) => return done,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Sends a signal, early or late, twice.
async fn send(db: Db, to: Addressee, name: &str, after_ms: u64) {
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let signal = Signal {
        payload: json!({ "to": format!("{to:?}") }).to_string(),
        to,
        name: name.into(),
        id: Some("once".into()),
        keep: None,
    };
    for _ in 0..2 {
        until_done(|| signals::send(&db, &signal)).await;
    }
}
