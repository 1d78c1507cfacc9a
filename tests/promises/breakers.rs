//! Circuit breakers: when too much of what a limit concerns fails, the rest waits, its attempts unused, until probes succeed.

use serde_json::{json, Value};
use tasker::engine::limits;

use crate::world::{Leased, World};

const CALL: &str = "name: call\nnamespace: here\nsteps:\n  - { name: only, handler: Call }\n";

impl World {
    async fn breaker(&self) -> Value {
        limits::list(&self.db).await.expect("lists")[0]["breaker"].clone()
    }

    async fn calls(&self, breaker: Value, count: usize) -> Vec<Leased> {
        self.register(CALL).await;
        let limit = json!({ "limits": { "gateway": { "handler": "Call", "breaker": breaker } } });
        self.set_rules("here", limit).await.unwrap();
        for _ in 0..count {
            self.submit("call", json!({})).await;
        }
        self.granted("here_queue").await
    }

    /// The time that a breaker stays open is over.
    async fn let_time_pass(&self) {
        self.run("UPDATE tasker.breakers SET until = clock_timestamp(); UPDATE tasker.limit_events SET at = clock_timestamp()")
            .await;
    }
}

fn is(state: &str, breaker: &Value) -> bool {
    breaker[0]["state"] == state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_makes_steps_wait_probes_and_closes() {
    World::with(async |world| {
        let breaker = json!({ "minimum": 4, "failure_rate": 0.5, "probes": 2, "open_seconds": 3600.0 });
        let leased = world.calls(breaker, 10).await;
        assert_eq!(leased.len(), 10, "closed, it stands in nobody's way");
        for (n, step) in leased[..3].iter().enumerate() {
            match n {
                0 => drop(world.complete(std::slice::from_ref(step), "null").await),
                _ => assert!(world.fail(step, "no answer", false, Some(0.0)).await),
            }
        }
        while world.grant().await > 0 {}
        assert_eq!(world.breaker().await, json!([]), "three are too few to tell");
        assert!(world.fail(&leased[3], "no answer", false, Some(0.0)).await);
        while world.grant().await > 0 {}
        assert!(is("open", &world.breaker().await));

        // Retries are due, and others' leases run out: none runs.
        assert_eq!(world.enqueue_due_retries().await, 3);
        for step in &leased[4..] {
            world.expire(step).await;
        }
        assert_eq!(world.granted("here_queue").await.len(), 0);
        assert_eq!(world.count("SELECT count(*) FROM tasker.permits WHERE granted_at IS NULL").await, 9);

        world.let_time_pass().await;
        let probes = world.granted("here_queue").await;
        assert_eq!(probes.len(), 2);
        assert!(is("half_open", &world.breaker().await));
        world.complete(&probes[..1], "null").await;
        assert_eq!(world.granted("here_queue").await.len(), 0, "another is under way");
        assert!(world.fail(&probes[1], "no answer", false, Some(0.0)).await);
        assert_eq!(world.granted("here_queue").await.len(), 0);
        assert!(is("open", &world.breaker().await), "one that fails opens it again");

        world.let_time_pass().await;
        let probes = world.granted("here_queue").await;
        assert_eq!(probes.len(), 2);
        world.complete(&probes, "null").await;
        let rest = world.granted("here_queue").await;
        assert_eq!(world.breaker().await, json!([]), "closed");
        assert_eq!(rest.len(), 5);
        world.complete(&rest, "null").await;
        world.enqueue_due_retries().await;
        let last = world.granted("here_queue").await;
        assert_eq!((last.len(), last[0].attempt), (1, 2), "waiting used up no attempt");
        assert_eq!(world.dead_letters("here").await.len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_errors_open_no_breaker_and_old_failures_are_forgotten() {
    World::with(async |world| {
        let leased = world.calls(json!({ "minimum": 4, "window_seconds": 60.0 }), 8).await;
        for step in &leased[..4] {
            assert!(world.fail(step, "card declined", true, None).await);
        }
        while world.grant().await > 0 {}
        assert_eq!(world.breaker().await, json!([]));
        // Two halves of the window later.
        world
            .run("UPDATE tasker.breakers SET until = clock_timestamp() - interval '61 s'")
            .await;
        for step in &leased[4..7] {
            assert!(world.fail(step, "no answer", false, Some(60.0)).await);
        }
        while world.grant().await > 0 {}
        assert_eq!(world.breaker().await, json!([]), "the four do not count any more");
        assert!(world.fail(&leased[7], "no answer", false, Some(60.0)).await);
        while world.grant().await > 0 {}
        assert!(is("open", &world.breaker().await));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_can_be_closed_by_hand() {
    World::with(async |world| {
        let leased = world.calls(json!({ "minimum": 1, "open_seconds": 3600.0 }), 2).await;
        assert!(world.fail(&leased[0], "no answer", false, Some(0.0)).await);
        world.enqueue_due_retries().await;
        assert_eq!(world.granted("here_queue").await.len(), 0);
        assert!(limits::reset(&world.db, "here", "gatewai", None).await.is_err());
        assert_eq!(limits::reset(&world.db, "here", "gateway", None).await.unwrap(), 1);
        assert_eq!(world.granted("here_queue").await.len(), 1);
        assert_eq!(world.breaker().await, json!([]));
    })
    .await;
}
