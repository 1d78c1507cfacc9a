//! Signals, and the steps that wait for them: whichever comes first finds the other, and each counts once.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::cancel::cancel_tasks;
use tasker::engine::read::wait_for_end;
use tasker::engine::signals::{self, Addressee, Sent, Signal, SignalFilter, WaitFilter};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step};
use tasker::Template;
use uuid::Uuid;

use super::world::World;

const APPROVAL: &str = "
name: purchase
namespace: here
steps:
  - { name: approval, wait: { signal: approved, timeout: 3d } }
  - { name: buy, handler: h, depends_on: [approval] }
";

const PAYMENT: &str = "
name: order
namespace: here
steps:
  - { name: paid, wait: { key: $.input.order } }
";

fn to(task: Uuid, name: &str, payload: Value) -> Signal {
    Signal {
        to: Addressee::Task(task),
        name: name.into(),
        payload: payload.to_string(),
        id: None,
        keep: None,
    }
}

fn by_key(key: &str, name: &str, payload: Value) -> Signal {
    Signal {
        to: Addressee::Key(key.into()),
        ..to(Uuid::nil(), name, payload)
    }
}

async fn send(world: &World, signal: &Signal) -> Sent {
    signals::send(&world.db, signal).await.expect("it is sent")
}

/// As an orchestrator does.
async fn matched(world: &World) -> i64 {
    world.count("SELECT tasker.match_signals(100)::bigint").await
}

async fn begun(world: &World, template: &str, input: Value) -> Uuid {
    let task = world.submit(template, input).await;
    world.claim().await;
    task
}

async fn waiting(world: &World, template: &str, input: Value) -> Uuid {
    let task = begun(world, template, input).await;
    matched(world).await;
    task
}

/// As if all that waits had waited long enough.
async fn time_out(world: &World) {
    world
        .run("UPDATE tasker.waits SET look_at = now(), times_out_at = now() WHERE times_out_at IS NOT NULL")
        .await;
    matched(world).await;
}

/// The results of the steps before.
fn seen(step: &Step) -> Value {
    let results = step.leased.results.as_deref().expect("they are small");
    serde_json::from_str(results).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_is_complete_when_its_signal_comes_with_the_payload_as_its_result() {
    World::with(async |world| {
        world.register(APPROVAL).await;
        let task = waiting(world, "purchase", json!({})).await;
        let seen = world.task(task).await;
        assert_eq!((&seen["state"], &seen["steps"][0]["state"]), (&json!("waiting"), &json!("waiting")));
        assert_eq!(seen["steps"][0]["waits_for"], "the signal approved");
        assert!(seen["steps"][0]["retry_at"].is_string(), "when its time is over");
        assert_eq!(send(world, &to(task, "approved", json!({ "by": "Ann" }))).await.outcome, "awaited");
        assert_eq!(matched(world).await, 1);
        let buy = world.lease("here_queue", 1).await;
        assert_eq!(
            serde_json::from_str::<Value>(&buy[0].results).unwrap(),
            json!({ "approval": { "by": "Ann" } })
        );
        world.complete(&buy, "{}").await;
        assert_eq!(world.task(task).await["state"], "complete");
        assert_eq!(world.count("SELECT count(*) FROM tasker.waits WHERE look_at IS NOT NULL").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_comes_before_its_wait_is_kept() {
    World::with(async |world| {
        world.register(APPROVAL).await;
        let task = world.submit("purchase", json!({})).await;
        assert_eq!(send(world, &to(task, "approved", json!(1))).await.outcome, "kept");
        matched(world).await;
        world.claim().await;
        matched(world).await;
        assert_eq!(world.step_states(task).await, ["complete", "enqueued"]);

        world.register(PAYMENT).await;
        assert_eq!(
            send(world, &by_key("17", "paid", json!(2))).await,
            Sent {
                outcome: "kept".into(),
                note: None
            }
        );
        matched(world).await;
        let task = waiting(world, "order", json!({ "order": 17 })).await;
        assert_eq!(world.task(task).await["steps"][0]["result"], 2);
        let later = waiting(world, "order", json!({ "order": 17 })).await;
        assert_eq!(
            world.step_states(later).await,
            ["waiting"],
            "it was for the first that came, and that task was not there yet"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_signal_to_a_task_ends_one_wait_the_one_that_has_waited_longest() {
    World::with(async |world| {
        world
            .register(
                "
name: four_eyes
namespace: here
steps:
  - { name: first, wait: approved }
  - { name: second, wait: approved }
  - { name: third, wait: approved, depends_on: [first] }
",
            )
            .await;
        let task = waiting(world, "four_eyes", json!({})).await;
        send(world, &to(task, "approved", json!("Ann"))).await;
        matched(world).await;
        matched(world).await;
        assert_eq!(world.step_states(task).await, ["complete", "waiting", "waiting"]);
        for who in ["Bob", "Cid"] {
            send(world, &to(task, "approved", json!(who))).await;
        }
        for _ in 0..2 {
            matched(world).await;
        }
        let seen = world.task(task).await;
        assert_eq!(seen["state"], "complete");
        let who: Vec<&Value> = (0..3).map(|n| &seen["steps"][n]["result"]).collect();
        assert_eq!(who, ["Ann", "Bob", "Cid"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signal_by_a_key_is_for_all_tasks_that_were_there_also_for_those_that_wait_later() {
    World::with(async |world| {
        world.register(PAYMENT).await;
        world
            .register(
                &PAYMENT
                    .replace("name: order\n", "name: slow\n")
                    .replace("wait: {", "delay: 1h, wait: {"),
            )
            .await;
        let submitter = tasker::engine::submit::Submitter::new(world.db.clone());
        let task = tasker::engine::submit::NewTask {
            input: json!({ "order": "A-1" }).into(),
            ..Default::default()
        };
        submitter.submit("order", None, &vec![task; 1000]).await.unwrap();
        let slow = world.submit("slow", json!({ "order": "A-1" })).await;
        world.claim().await;
        while matched(world).await > 0 {}
        assert_eq!(send(world, &by_key("A-1", "paid", json!(true))).await.outcome, "awaited");
        assert_eq!(send(world, &by_key("A-2", "paid", json!(true))).await.outcome, "kept");
        for _ in 0..11 {
            matched(world).await;
        }
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'complete'").await,
            1000
        );
        assert_eq!(world.count("SELECT count(*) FROM tasker.signals WHERE is_new").await, 0);
        assert_eq!(world.step_states(slow).await, ["waiting"]);
        world.run("UPDATE tasker.waits SET look_at = now() WHERE look_at IS NOT NULL").await;
        matched(world).await;
        assert_eq!(world.task(slow).await["state"], "complete");
        assert_eq!(world.count("SELECT max(received)::bigint FROM tasker.signals").await, 1001);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_threads_that_signal_tasks_as_these_begin_to_wait_lose_nothing_and_double_nothing() {
    World::with(async |world| {
        world
            .register(
                "
name: race
namespace: here
steps:
  - { name: work, handler: h }
  - { name: by_task, wait: { signal: go, timeout: 1h }, depends_on: [work] }
  - { name: by_key, wait: { signal: paid, key: $.input.key }, depends_on: [work] }
  - { name: end, handler: h, depends_on: [by_task, by_key] }
",
            )
            .await;
        let mut orchestrators = Vec::new();
        for _ in 0..3 {
            orchestrators.push(Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap());
        }
        let worker = world
            .worker(Handlers::default().with("h", |step: Arc<Step>| async move { Ok(seen(&step)) }))
            .await;
        let senders: Vec<_> = (0..20)
            .map(|n| {
                let (db, key) = (world.db.clone(), format!("key-{n}"));
                tokio::spawn(async move {
                    let submitter = tasker::engine::submit::Submitter::new(db.clone());
                    let mut tasks = Vec::new();
                    for round in 0..5 {
                        let key = format!("{key}-{round}");
                        let task = tasker::engine::submit::NewTask {
                            input: json!({ "key": key }).into(),
                            ..Default::default()
                        };
                        let task = submitter.submit("race", None, &[task]).await.unwrap()[0].id;
                        // Somewhere before, during or after the moment in which it begins to wait.
                        tokio::time::sleep(Duration::from_millis((n * 7 + round * 3) % 40)).await;
                        for signal in [to(task, "go", json!(key)), by_key(&key, "paid", json!(key))] {
                            let signal = Signal {
                                id: Some("the same".into()),
                                ..signal
                            };
                            let (one, other) = tokio::join!(signals::send(&db, &signal), signals::send(&db, &signal));
                            let outcomes = [one.unwrap().outcome, other.unwrap().outcome];
                            assert_eq!(outcomes.iter().filter(|outcome| *outcome == "duplicate").count(), 1, "{outcomes:?}");
                        }
                        tasks.push((task, key));
                    }
                    tasks
                })
            })
            .collect();
        for sender in senders {
            for (task, key) in sender.await.unwrap() {
                assert_eq!(
                    wait_for_end(&world.db, task, Some(Duration::from_secs(60))).await.unwrap(),
                    "complete"
                );
                assert_eq!(
                    world.task(task).await["steps"][3]["result"],
                    json!({ "by_task": key, "by_key": key })
                );
            }
        }
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.signals WHERE received = 1").await,
            200,
            "each signal, once"
        );
        worker.shutdown(Duration::from_secs(5)).await;
        for orchestrator in orchestrators {
            orchestrator.shutdown().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_whose_time_is_over_is_skipped_or_fails_or_is_dead_as_its_template_says() {
    World::with(async |world| {
        for (name, on_timeout) in [("skip", ", on_timeout: skip"), ("fail", ", on_timeout: fail"), ("dead", "")] {
            let template = APPROVAL
                .replace("purchase", name)
                .replace("timeout: 3d", &format!("timeout: 3d{on_timeout}"));
            world.register(&template).await;
        }
        let skipped = waiting(world, "skip", json!({})).await;
        let failed = waiting(world, "fail", json!({})).await;
        let dead = waiting(world, "dead", json!({})).await;
        time_out(world).await;
        let seen = world.task(skipped).await;
        assert_eq!(
            (&seen["state"], &seen["steps"][0]["skipped_because"]),
            (&json!("complete"), &json!("no signal \"approved\" came within 3 days"))
        );
        assert_eq!(seen["steps"][1]["skipped_because"], "no step before it ran");
        assert_eq!(world.task(failed).await["state"], "failed");
        assert_eq!(world.task(dead).await["state"], "blocked");
        let letters = world.dead_letters("here").await;
        assert_eq!(letters.len(), 2);
        for letter in letters {
            assert_eq!(letter["reason"], "timed_out");
            assert_eq!(letter["errors"][0]["message"], "no signal \"approved\" came within 3 days");
        }
        world.replay_all("here").await;
        matched(world).await;
        for task in [failed, dead] {
            let seen = world.task(task).await;
            assert_eq!(
                (&seen["state"], &seen["steps"][0]["waits_for"]),
                (&json!("waiting"), &json!("the signal approved"))
            );
            send(world, &to(task, "approved", json!(null))).await;
        }
        matched(world).await;
        assert_eq!(world.step_states(dead).await, ["complete", "enqueued"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_was_sent_in_time_counts_however_late_it_is_looked_at() {
    World::with(async |world| {
        world.register(APPROVAL).await;
        let task = waiting(world, "purchase", json!({})).await;
        assert_eq!(send(world, &to(task, "approved", json!(1))).await.outcome, "awaited");
        time_out(world).await;
        assert_eq!(world.step_states(task).await, ["complete", "enqueued"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_unknown_and_duplicate_signals_and_those_to_nowhere_have_an_answer_that_says_so() {
    World::with(async |world| {
        world.register(APPROVAL).await;
        let task = waiting(world, "purchase", json!({})).await;
        let twice = Signal {
            id: Some("evt_1".into()),
            ..to(task, "approved", json!(1))
        };
        assert_eq!(send(world, &twice).await.outcome, "awaited");
        assert_eq!(send(world, &twice).await.outcome, "duplicate");
        let typo = send(world, &to(task, "aproved", json!(1))).await;
        assert_eq!(
            (typo.outcome.as_str(), typo.note.as_deref()),
            (
                "kept",
                Some("no step of purchase waits for \"aproved\": its steps wait for approved")
            )
        );
        let nowhere = send(world, &by_key("17", "paid", json!(1))).await;
        assert_eq!(
            nowhere.note.as_deref(),
            Some("no template has a step that waits for \"paid\" by a key")
        );
        matched(world).await;
        let buy = world.lease("here_queue", 1).await;
        world.complete(&buy, "{}").await;
        assert_eq!(send(world, &to(task, "approved", json!(2))).await.outcome, "late");
        assert_eq!(
            send(world, &twice).await.outcome,
            "duplicate",
            "who sends it again need not know how it ended"
        );
        let unknown = signals::send(&world.db, &to(Uuid::nil(), "approved", json!(1))).await;
        assert_eq!(unknown.unwrap_err().to_string(), "no task 00000000-0000-0000-0000-000000000000");

        let cancelled = waiting(world, "purchase", json!({})).await;
        cancel_tasks(&world.db, &[cancelled]).await.unwrap();
        assert_eq!(world.task(cancelled).await["state"], "cancelled");
        assert_eq!(send(world, &to(cancelled, "approved", json!(1))).await.outcome, "late");
        assert!(signals::list_waits(&world.db, &WaitFilter::default(), 10).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_no_wait_would_accept_is_refused_at_the_senders_door() {
    World::with(async |world| {
        let schema = "{ type: object, required: [amount], properties: { amount: { type: integer } } }";
        world.register(&APPROVAL.replace("timeout: 3d", &format!("schema: {schema}"))).await;
        world
            .register(&PAYMENT.replace("key: $.input.order", &format!("key: $.input.order, form: {schema}")))
            .await;
        let task = waiting(world, "purchase", json!({})).await;
        let refused = async |signal: &Signal| signals::send(&world.db, signal).await.unwrap_err().to_string();
        for signal in [
            to(task, "approved", json!({ "amount": "x" })),
            by_key("17", "paid", json!({ "amount": "x" })),
        ] {
            assert_eq!(
                refused(&signal).await,
                format!(
                    "the payload is not what a step that waits for {:?} accepts: /amount: \"x\" is not of type \"integer\"",
                    signal.name
                )
            );
        }
        let large = to(task, "approved", json!("x".repeat(1 << 20)));
        assert_eq!(refused(&large).await, "the payload has 1048578 bytes, at most 1048576 are accepted");
        let nul = to(task, "approved", json!({ "amount": 1, "by": "\0" }));
        assert!(refused(&nul).await.contains("U+0000"));
        assert_eq!(send(world, &to(task, "approved", json!({ "amount": 5 }))).await.outcome, "awaited");
        assert_eq!(world.count("SELECT count(*) FROM tasker.signals").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_person_says_who_is_asked_for_what_and_by_when() {
    World::with(async |world| {
        let form = "form: { type: object, properties: { amount: { type: integer } } }";
        world
            .register(&APPROVAL.replace("timeout: 3d", &format!("assignees: [board, $.input.manager], due: 1d, {form}")))
            .await;
        world.register(PAYMENT).await;
        let approval = waiting(world, "purchase", json!({ "manager": "ann" })).await;
        let payment = waiting(world, "order", json!({ "order": "A-1" })).await;
        let all = signals::list_waits(&world.db, &WaitFilter::default(), 10).await.unwrap();
        assert_eq!(
            all.iter().map(|wait| wait["task"].clone()).collect::<Vec<_>>(),
            [json!(approval), json!(payment)]
        );
        assert_eq!(
            (&all[0]["step"], &all[0]["signal"], &all[0]["assignees"], &all[0]["form"]["type"]),
            (&json!("approval"), &json!("approved"), &json!(["ann", "board"]), &json!("object"))
        );
        assert!(all[0]["due_at"].is_string() && all[0]["times_out_at"].is_null());
        assert_eq!(all[1]["key"], "A-1");
        let behind = WaitFilter {
            after: Some(approval),
            ..WaitFilter::default()
        };
        assert_eq!(signals::list_waits(&world.db, &behind, 10).await.unwrap().len(), 1);
        let anns = WaitFilter {
            assignee: Some("ann".into()),
            ..WaitFilter::default()
        };
        assert_eq!(signals::list_waits(&world.db, &anns, 10).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_whose_key_is_not_to_be_found_is_dead_until_its_input_has_one() {
    World::with(async |world| {
        world.register(PAYMENT).await;
        let task = waiting(world, "order", json!({ "ordr": 17 })).await;
        assert_eq!(world.task(task).await["state"], "blocked");
        let letters = world.dead_letters("here").await;
        assert_eq!(
            (&letters[0]["reason"], &letters[0]["errors"][0]["message"]),
            (
                &json!("no_key"),
                &json!("$.input.order finds nothing: expected the key of a signal, one string or number")
            )
        );
        world
            .run("SELECT tasker.replay_dead_letters(ARRAY(SELECT 'here/' || msg_id FROM pgmq.q_here_queue_dlq), '{\"order\": 17}', NULL, NULL, 0, 't', NULL)")
            .await;
        send(world, &by_key("17", "paid", json!(1))).await;
        matched(world).await;
        assert_eq!(world.task(task).await["state"], "complete");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_nobody_waited_for_in_the_time_that_it_was_kept_is_counted() {
    World::with(async |world| {
        world.register(APPROVAL).await;
        let task = world.submit("purchase", json!({})).await;
        send(world, &to(task, "approved", json!(1))).await;
        send(world, &by_key("17", "paid", json!(1))).await;
        let unclaimed = SignalFilter {
            unclaimed: true,
            ..SignalFilter::default()
        };
        assert_eq!(signals::list_signals(&world.db, &unclaimed, 10).await.unwrap().len(), 2);
        world.run("UPDATE tasker.signals SET keep_until = now()").await;
        world.run("SELECT tasker.forget_signals(100)").await;
        assert_eq!(world.counter("unclaimed_signals").await, 1);
        let kept = signals::list_signals(&world.db, &unclaimed, 10).await.unwrap();
        assert_eq!(
            (kept.len(), &kept[0]["task"]),
            (1, &json!(task)),
            "its task may still come to wait for it"
        );
    })
    .await;
}

#[test]
fn a_wait_that_is_not_valid_is_refused_with_its_place() {
    let problem = |wait: &str| {
        let error = Template::parse(
            &format!("name: t\nnamespace: n\nsteps:\n  - {{ name: a, wait: {wait} }}\n"),
            "t.yml",
        );
        error.expect_err("it is not valid").to_string()
    };
    for (wait, said) in [
        ("{ timeot: 3d }", "t.yml:4: unknown field `timeot`"),
        ("{ timeout: soon }", "t.yml:4: step \"a\": timeout is \"soon\": expected a duration"),
        ("{ on_timeout: skip }", "t.yml:4: step \"a\": it has on_timeout, and no timeout"),
        (
            "{ timeout: 1h, on_timeout: stop }",
            "t.yml:4: step \"a\": on_timeout is \"stop\": expected skip, fail or dead",
        ),
        (
            "{ key: $.results.x }",
            "t.yml:4: step \"a\": key \"$.results.x\" asks for the result of x",
        ),
        ("{ schema: { type: 5 } }", "t.yml:4: step \"a\": schema is not a valid JSON Schema"),
        ("''", "t.yml:4: step \"a\": signal is empty"),
        ("5", "t.yml:4: invalid type"),
    ] {
        assert!(problem(wait).starts_with(said), "{}", problem(wait));
    }
    let named = Template::parse("name: t\nnamespace: n\nsteps:\n  - { name: approved, wait: {} }\n", "t.yml").unwrap();
    assert_eq!(json!(named)["steps"][0]["wait"]["signal"], "approved");
}
