//! Limits on concurrency and on rate hold across all workers, exactly, and what waits for them holds up nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tasker::engine::submit::{NewTask, Submitter};
use tasker::engine::{limits, read};
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::worker::{Handlers, Step, Worker, WorkerConfig};
use uuid::Uuid;

use crate::world::{Leased, World};

const CHARGE: &str = "name: charge\nnamespace: here\nsteps:\n  - { name: only, handler: Charge }\n";

impl World {
    /// The template `charge`, and limits on its namespace.
    async fn charges_under(&self, limits: Value) {
        self.register(CHARGE).await;
        self.set_rules("here", json!({ "limits": limits })).await.expect("sets the limits");
    }

    async fn submit_to(&self, template: &str, inputs: Vec<Value>) -> Vec<Uuid> {
        let task = |input: Value| NewTask {
            input: input.into(),
            ..NewTask::default()
        };
        let tasks: Vec<NewTask> = inputs.into_iter().map(task).collect();
        let submitted = Submitter::new(self.db.clone()).submit(template, None, &tasks).await;
        submitted.expect("submits").iter().map(|task| task.id).collect()
    }

    /// Grants what can be granted; how much that was.
    pub(crate) async fn grant(&self) -> i64 {
        self.count("SELECT granted::bigint FROM tasker.grant_permits(1000)").await
    }

    /// Claims, grants, and leases what may run.
    pub(crate) async fn granted(&self, queue: &str) -> Vec<Leased> {
        self.claim().await;
        while self.grant().await > 0 {}
        self.lease(queue, 1000).await
    }

    async fn limit(&self, name: &str) -> Value {
        let limits = limits::list(&self.db).await.expect("lists");
        limits.into_iter().find(|limit| limit["name"] == name).expect("the limit exists")
    }

    /// Runs an orchestrator and eight workers until these tasks have ended.
    async fn run_with_eight_workers(&self, handlers: impl Fn() -> Handlers, tasks: &[Uuid]) {
        let orchestrator = Orchestrator::start(&self.db, OrchestratorConfig::default()).await.unwrap();
        let mut workers = Vec::new();
        for _ in 0..8 {
            let config = WorkerConfig {
                namespaces: vec!["here".into()],
                concurrency: 4,
                ..WorkerConfig::default()
            };
            let worker = Arc::new(Worker::start(&self.db, config).await.unwrap());
            worker.handle_with(handlers());
            workers.push(worker);
        }
        for task in tasks {
            let ended = read::wait_for_end(&self.db, *task, Some(Duration::from_secs(60))).await.unwrap();
            assert_eq!(ended, "complete");
        }
        for worker in workers {
            worker.shutdown(Duration::from_secs(5)).await;
        }
        orchestrator.shutdown().await;
    }
}

/// How many handlers run, by account.
#[derive(Default)]
struct Running(Mutex<HashMap<String, (usize, usize)>>);

impl Running {
    fn begin(&self, account: &str) {
        let mut running = self.0.lock().unwrap();
        let (now, most) = running.entry(account.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
    }

    fn end(&self, account: &str) {
        self.0.lock().unwrap().get_mut(account).unwrap().0 -= 1;
    }

    fn most(&self, account: &str) -> usize {
        self.0.lock().unwrap()[account].1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_by_key_and_one_for_all_hold_exactly_under_eight_workers() {
    World::with(async |world| {
        world
            .charges_under(json!({
                "accounts": { "handler": "Charge", "key": "account.id", "concurrency": 3 },
                "gateway": { "handler": "Charge", "concurrency": 5 },
            }))
            .await;
        let accounts = ["a", "b", "c"];
        let inputs = (0..180).map(|n| json!({ "account": { "id": accounts[n % 3] } })).collect();
        let tasks = world.submit_to("charge", inputs).await;
        let running = Arc::new(Running::default());
        let handlers = || {
            let running = running.clone();
            Handlers::default().with("Charge", move |step: Arc<Step>| {
                let running = running.clone();
                async move {
                    let input: Value = serde_json::from_str(&step.input().await.unwrap()).unwrap();
                    let account = input["account"]["id"].as_str().unwrap().to_owned();
                    running.begin(&account);
                    running.begin("all");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    running.end("all");
                    running.end(&account);
                    Ok(json!(null))
                }
            })
        };
        world.run_with_eight_workers(handlers, &tasks).await;
        for account in accounts {
            assert!(running.most(account) <= 3, "of account {account} at once");
        }
        assert!((2..=5).contains(&running.most("all")));
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits").await, 0, "all came back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stretch_of_time_has_more_starts_than_the_rate() {
    World::with(async |world| {
        world.charges_under(json!({ "gateway": { "rate": 20, "per_seconds": 0.5 } })).await;
        let tasks = world.submit_to("charge", vec![json!({}); 90]).await;
        let handlers = || Handlers::default().with("Charge", |_: Arc<Step>| async { Ok(json!(null)) });
        world.run_with_eight_workers(handlers, &tasks).await;
        let too_many = "SELECT count(*) FROM (
            SELECT started_at - lag(started_at, 20) OVER (ORDER BY started_at) AS stretch FROM tasker.steps) AS s WHERE stretch <= interval '0.5 s'";
        assert_eq!(world.count(too_many).await, 0);
        let full = "SELECT count(*) FROM (
            SELECT started_at - lag(started_at, 19) OVER (ORDER BY started_at) AS stretch FROM tasker.steps) AS s WHERE stretch <= interval '0.5 s'";
        assert!(world.count(full).await > 0, "and as many as it allows");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_permit_is_not_sent_and_comes_in_order_as_others_end() {
    World::with(async |world| {
        world
            .charges_under(json!({ "one": { "template": "charge", "concurrency": 1 } }))
            .await;
        world
            .register("name: free\nnamespace: here\nsteps:\n  - { name: only, handler: Free }\n")
            .await;
        let tasks = world.submit_to("charge", vec![json!({}); 3]).await;
        let free = world.submit("free", json!({})).await;
        let mut leased = world.granted("here_queue").await;
        leased.sort_by_key(|step| step.task_id != free);
        assert_eq!(
            leased.iter().map(|step| step.task_id).collect::<Vec<_>>(),
            [free, tasks[0]],
            "one of them, and what no limit concerns"
        );
        assert_eq!(world.task(tasks[1]).await["steps"][0]["waits_for"], "one");
        let limit = world.limit("one").await;
        assert_eq!((&limit["granted"], &limit["waiting"]), (&json!(1), &json!(2)));

        assert!(world.fail(&leased[1], "again", false, Some(0.0)).await);
        assert_eq!(world.enqueue_due_retries().await, 1);
        let second = world.granted("here_queue").await;
        assert_eq!(second[0].task_id, tasks[1], "a retry comes after who has waited");
        tasker::engine::cancel::cancel_tasks(&world.db, &[tasks[1]]).await.unwrap();
        assert!(world.granted("here_queue").await.is_empty(), "its handler runs still");
        world.complete(&second, "null").await;
        let third = world.granted("here_queue").await;
        assert_eq!(third[0].task_id, tasks[2]);
        world.complete(&third, "null").await;
        let last = world.granted("here_queue").await;
        assert_eq!((last[0].task_id, last[0].attempt), (tasks[0], 2));
        world.complete(&last, "null").await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits").await, 0);
    })
    .await;
}

/// What a worker that may lease so many ahead gets with its report of this step.
async fn passed_on(world: &World, step: &Leased, ahead: i32) -> Vec<Uuid> {
    let next = "SELECT (next).task_id FROM tasker.complete_steps($1, 7, ARRAY[$2], ARRAY[$3], ARRAY[$4], ARRAY[$5], ARRAY['null'], '{}', 0, '1 hour', $6)
                WHERE (next).msg_id IS NOT NULL";
    let query = sqlx::query_scalar(next).bind(&step.queue).bind(step.msg_id).bind(step.fence);
    let query = query.bind(step.task_id).bind(step.step).bind(ahead);
    query.fetch_all(&world.pool).await.expect("completes")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_is_free_is_taken_at_once_and_goes_on_with_the_report_to_who_has_waited_longest() {
    World::with(async |world| {
        world.charges_under(json!({ "two": { "concurrency": 2 } })).await;
        let tasks = world.submit_to("charge", vec![json!({}); 6]).await;
        world.claim().await;
        let leased = world.lease("here_queue", 10).await;
        assert_eq!(
            leased.iter().map(|step| step.task_id).collect::<Vec<_>>(),
            tasks[..2],
            "nobody had to grant"
        );
        let younger = world.submit("charge", json!({})).await;
        world.claim().await;

        assert_eq!(passed_on(world, &leased[0], 5).await, [tasks[2]]);
        assert_eq!(passed_on(world, &leased[1], 0).await, Vec::<Uuid>::new(), "without room it is sent");
        let sent = world.lease("here_queue", 10).await;
        assert_eq!(sent.iter().map(|step| step.task_id).collect::<Vec<_>>(), [tasks[3]]);
        let limit = world.limit("two").await;
        assert_eq!((&limit["granted"], &limit["waiting"]), (&json!(2), &json!(3)));

        // Who waits for the last permit that it wants learns of a limit that came meanwhile.
        world
            .set_rules(
                "here",
                json!({ "limits": { "two": { "concurrency": 2 }, "one": { "concurrency": 1 } } }),
            )
            .await
            .unwrap();
        assert_eq!(
            passed_on(world, &sent[0], 5).await,
            Vec::<Uuid>::new(),
            "it seeks the other one now"
        );
        let last = world.granted("here_queue").await;
        assert_eq!(last.iter().map(|step| step.task_id).collect::<Vec<_>>(), [tasks[4]]);
        assert_eq!(passed_on(world, &last[0], 5).await, Vec::<Uuid>::new());
        let last = world.granted("here_queue").await;
        assert_eq!(last.iter().map(|step| step.task_id).collect::<Vec<_>>(), [tasks[5]]);
        assert_eq!(world.task(younger).await["steps"][0]["state"], "enqueued");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_start_counts_or_whose_namespace_is_paused_is_not_taken_unseen() {
    World::with(async |world| {
        world
            .charges_under(json!({ "rare": { "rate": 2, "per_seconds": 3600.0, "concurrency": 1 } }))
            .await;
        let tasks = world.submit_to("charge", vec![json!({}); 3]).await;
        world.claim().await;
        let leased = world.lease("here_queue", 10).await;
        assert_eq!(leased.len(), 1);
        assert_eq!(world.count("SELECT count(*) FROM tasker.limited_starts").await, 1);
        assert_eq!(
            passed_on(world, &leased[0], 5).await,
            Vec::<Uuid>::new(),
            "its start counts when it is leased"
        );
        let second = world.lease("here_queue", 10).await;
        assert_eq!(second.iter().map(|step| step.task_id).collect::<Vec<_>>(), [tasks[1]]);
        assert_eq!(world.count("SELECT count(*) FROM tasker.limited_starts").await, 2);
        world.complete(&second, "null").await;
        assert_eq!(world.granted("here_queue").await.len(), 0, "two have started");

        world
            .set_rules("here", json!({ "limits": { "one": { "concurrency": 1 } } }))
            .await
            .unwrap();
        let third = world.granted("here_queue").await;
        assert_eq!(third.len(), 1);
        world.submit("charge", json!({})).await;
        world.claim().await;
        world.run("SELECT tasker.pause('namespace', 'here', 'test')").await;
        assert_eq!(passed_on(world, &third[0], 5).await, Vec::<Uuid>::new());
        assert_eq!(world.granted("here_queue").await.len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_goes_with_the_step_to_the_next_worker_when_one_dies() {
    World::with(async |world| {
        world.charges_under(json!({ "one": { "concurrency": 1 } })).await;
        let tasks = world.submit_to("charge", vec![json!({}); 2]).await;
        let first = world.granted("here_queue").await;
        world.expire(&first[0]).await;
        let again = world.granted("here_queue").await;
        assert_eq!((again.len(), again[0].task_id, again[0].crashes), (1, tasks[0], 1));
        assert_eq!(world.complete(&first, "null").await, Vec::<i64>::new(), "stale");
        assert_eq!(world.granted("here_queue").await.len(), 0, "so it gave nothing back");
        world.complete(&again, "null").await;
        assert_eq!(world.granted("here_queue").await[0].task_id, tasks[1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_counts_as_another_under_a_rate() {
    World::with(async |world| {
        world.charges_under(json!({ "rare": { "rate": 1, "per_seconds": 3600.0 } })).await;
        world.submit("charge", json!({})).await;
        let first = world.granted("here_queue").await;
        assert_eq!(first.len(), 1);
        world.expire(&first[0]).await;
        assert_eq!(world.granted("here_queue").await.len(), 0);
        assert_eq!(world.limit("rare").await["waiting"], 1);
        world
            .run("UPDATE tasker.limited_starts SET at = at - interval '2 hours'; UPDATE tasker.limit_events SET at = clock_timestamp()")
            .await;
        let second = world.granted("here_queue").await;
        assert_eq!(second.len(), 1);
        world.complete(&second, "null").await;
        assert_eq!(world.counter("stale_messages").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_and_go_while_steps_wait_for_them() {
    World::with(async |world| {
        world.register(CHARGE).await;
        let one = |concurrency: i32| json!({ "limits": { "one": { "concurrency": concurrency } } });
        world.set_rules("here", one(1)).await.unwrap();
        world.submit_to("charge", vec![json!({}); 6]).await;
        assert_eq!(world.granted("here_queue").await.len(), 1);
        world.set_rules("here", one(3)).await.unwrap();
        assert_eq!(world.granted("here_queue").await.len(), 2);
        world.set_rules("here", json!({ "limits": {} })).await.unwrap();
        assert_eq!(world.granted("here_queue").await.len(), 3);
        for wrong in [
            json!({ "one": { "concurrency": 0 } }),
            json!({ "one": { "rate": 1, "per_seconds": 1e9 } }),
            json!({ "one": { "key": "a..b" } }),
        ] {
            let refused = world.set_rules("here", json!({ "limits": wrong })).await;
            assert!(matches!(refused, Err(tasker::Error::Invalid(_))), "{refused:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_permit_ends_with_the_deadline() {
    World::with(async |world| {
        world
            .register("name: charge\nnamespace: here\ndeadline: 1h\nsteps:\n  - { name: only, handler: Charge }\n")
            .await;
        world
            .set_rules("here", json!({ "limits": { "one": { "concurrency": 1 } } }))
            .await
            .unwrap();
        let tasks = world.submit_to("charge", vec![json!({}); 2]).await;
        assert_eq!(world.granted("here_queue").await.len(), 1);
        world
            .run("UPDATE tasker.tasks SET deadline_at = now(), look_at = now(); SELECT tasker.expire_tasks(100)")
            .await;
        assert_eq!(world.step_states(tasks[1]).await, ["dead"]);
        assert_eq!(world.dead_letters("here").await.len(), 2);
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_that_were_lost_or_left_behind_are_mended() {
    World::with(async |world| {
        world.charges_under(json!({ "one": { "concurrency": 1 } })).await;
        let tasks = world.submit_to("charge", vec![json!({}); 2]).await;
        world.granted("here_queue").await;
        world
            .run(&format!(
                "DELETE FROM tasker.permits WHERE task_id = '{}';
                 UPDATE tasker.steps SET state = 'complete' WHERE task_id = '{}'",
                tasks[1], tasks[0]
            ))
            .await;
        assert!(world.reconcile().await >= 2);
        assert_eq!(world.granted("here_queue").await[0].task_id, tasks[1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_brings_its_limits_along_and_an_operators_of_the_same_name_takes_its_place() {
    World::with(async |world| {
        let template = |limits: &str| format!("{CHARGE}limits: {{ {limits} }}\n");
        world.register(&template("by_key: { concurrency: 2, key: account }")).await;
        let limit = world.limit("charge:by_key").await;
        assert_eq!(
            (&limit["concurrency"], &limit["template"], &limit["key"]),
            (&json!(2), &json!("charge"), &json!("account"))
        );

        // What an operator changes elsewhere leaves it; what is of its name replaces it, until it goes.
        world
            .set_rules("here", json!({ "limits": { "all": { "concurrency": 9 } } }))
            .await
            .unwrap();
        assert_eq!(world.limit("charge:by_key").await["concurrency"], 2);
        world
            .set_rules(
                "here",
                json!({ "limits": { "charge:by_key": { "concurrency": 1, "template": "charge", "key": "account" } } }),
            )
            .await
            .unwrap();
        assert_eq!(world.limit("charge:by_key").await["concurrency"], 1);
        world.set_rules("here", json!({ "limits": {} })).await.unwrap();
        assert_eq!(world.limit("charge:by_key").await["concurrency"], 2);

        world.submit_to("charge", vec![json!({ "account": 1 }); 5]).await;
        assert_eq!(world.granted("here_queue").await.len(), 2);
        // The next version has another; those that wait for the first are let go.
        world.register(&template("gateway: { rate: 100, handler: Charge }")).await;
        assert_eq!(world.granted("here_queue").await.len(), 3);
        let limits = limits::list(&world.db).await.unwrap();
        assert_eq!(limits.iter().map(|limit| &limit["name"]).collect::<Vec<_>>(), ["charge:gateway"]);
        world.register(CHARGE).await;
        assert_eq!(limits::list(&world.db).await.unwrap(), Vec::<Value>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_says_when_it_concerns_nothing() {
    World::with(async |world| {
        world
            .charges_under(json!({
                "nobody": { "concurrency": 1, "handler": "Missing" },
                "astray": { "concurrency": 1, "key": "acount" },
                "right": { "concurrency": 1, "key": "account" },
            }))
            .await;
        world.submit_to("charge", vec![json!({ "account": 1 })]).await;
        let listed = super::command_line::tasker(&world.url, &["limit", "list"]);
        let said = String::from_utf8(listed.stdout).unwrap();
        let doubts: Vec<bool> = said.lines().skip(1).map(|line| line.contains("so far")).collect();
        assert_eq!(doubts, [true, true, false], "{said}");
    })
    .await;
}
