//! Capacity: how many workers a namespace wants, for autoscalers.

use serde_json::{json, Value};

use crate::world::World;

impl World {
    /// What the namespace needs, after a minute with this arrival: so many steps done, in so many seconds of handlers' time, and so many waiting then.
    async fn capacity_after(&self, done: i64, seconds: f64, waiting: i64) -> Value {
        sqlx::query("DELETE FROM tasker.activity")
            .execute(&self.pool)
            .await
            .expect("forgets");
        sqlx::query("DELETE FROM tasker.traffic")
            .execute(&self.pool)
            .await
            .expect("forgets");
        sqlx::query(
            "INSERT INTO tasker.activity (at, namespace_id, member, completed, failed, seconds)
             SELECT date_bin('10 s', clock_timestamp(), 'epoch') - interval '20 s', n.id, 1, $1, 0, $2 FROM tasker.namespaces n",
        )
        .bind(done)
        .bind(seconds)
        .execute(&self.pool)
        .await
        .expect("notes");
        sqlx::query(
            "INSERT INTO tasker.traffic (at, namespace_id, waiting)
             SELECT date_bin('10 s', clock_timestamp(), 'epoch') - w.ago * interval '1 second', n.id, w.waiting
             FROM tasker.namespaces n, (VALUES (40, 0), (0, $1)) AS w(ago, waiting)",
        )
        .bind(waiting)
        .execute(&self.pool)
        .await
        .expect("notes");
        sqlx::query_scalar("SELECT tasker.capacity(n) FROM tasker.namespaces n WHERE n.name = 'here'")
            .fetch_one(&self.pool)
            .await
            .expect("asks")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_wants_as_many_workers_as_littles_law_says() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        let workers = |of: &Value| of["desired_workers"].as_f64().unwrap();
        assert_eq!(workers(&world.capacity_after(0, 0.0, 0).await), 0.0, "nothing comes, nothing waits");

        // 40 steps a second of half a second each: 20 handlers busy, 25 at four fifths, which are three workers of ten.
        sqlx::query("SELECT tasker.join_members('worker', 'w', 'test', '{here}', interval '1 hour')")
            .execute(&world.pool)
            .await
            .unwrap();
        sqlx::query("UPDATE tasker.members SET report = $1 WHERE kind = 'worker'")
            .bind(json!({ "busy": { "slots": 10, "running": 10 } }))
            .execute(&world.pool)
            .await
            .unwrap();
        let steady = world.capacity_after(2400, 1200.0, 0).await;
        assert_eq!(
            (steady["arrival_rate"].as_f64(), steady["service_seconds"].as_f64()),
            (Some(40.0), Some(0.5))
        );
        assert_eq!((&steady["desired_handlers"], workers(&steady)), (&json!(25), 3.0));

        // The same is done, and 600 more came in than that: 50 a second, and five more handlers for a minute, for those that wait.
        let growing = world.capacity_after(2400, 1200.0, 600).await;
        assert_eq!((growing["arrival_rate"].as_f64(), &growing["waiting"]), (Some(50.0), &json!(600)));
        assert_eq!((&growing["desired_handlers"], workers(&growing)), (&json!(36.25), 4.0));

        let unknown = world.capacity_after(0, 0.0, 600).await;
        assert_eq!(
            workers(&unknown),
            1.0,
            "nobody knows how long a step takes: there must be one to find out"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_counted_in_steps_once_every_ten_seconds() {
    World::with(async |world| {
        world
            .register("name: two\nnamespace: here\nsteps:\n  - { name: a, handler: H }\n  - { name: b, handler: H, depends_on: [a] }\n")
            .await;
        for _ in 0..3 {
            world.submit("two", json!({})).await;
        }
        for _ in 0..2 {
            sqlx::query("SELECT tasker.note_traffic()").execute(&world.pool).await.unwrap();
        }
        let waiting: Vec<i64> = sqlx::query_scalar("SELECT waiting FROM tasker.traffic")
            .fetch_all(&world.pool)
            .await
            .unwrap();
        assert!(waiting == [6] || waiting == [6, 6], "{waiting:?}");
    })
    .await;
}

impl World {
    /// (rate, days) of the forecast for ten minutes ahead, where a hundred steps a second come in now.
    async fn forecast(&self) -> (f64, i32) {
        sqlx::query_as(
            "SELECT f.rate, f.days FROM tasker.namespaces n, tasker.forecast_rate(n.id, 100, '2026-03-16 08:30Z', '10 minutes') AS f",
        )
        .fetch_one(&self.pool)
        .await
        .expect("guesses")
    }

    /// So many steps a second came in, in the five minutes that began so long before.
    async fn arrived(&self, before: &str, rate: f64) {
        sqlx::query(
            "INSERT INTO tasker.arrivals (at, namespace_id, steps)
             SELECT timestamptz '2026-03-16 08:30Z' - $1::interval, n.id, 300 * $2 FROM tasker.namespaces n",
        )
        .bind(before)
        .bind(rate)
        .execute(&self.pool)
        .await
        .expect("notes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forecast_follows_the_trend_and_then_the_time_of_day() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        assert_eq!(world.forecast().await, (100.0, 0), "nothing is known: as it is now");
        // Ten a second more every five minutes.
        for n in 1..=6 {
            world.arrived(&format!("{} minutes", 5 * n), 100.0 - 10.0 * f64::from(n)).await;
        }
        let (rate, days) = world.forecast().await;
        assert_eq!((rate.round(), days), (120.0, 0));
        // The mean of a quarter of an hour has tripled at this time, on each of the last three days.
        for day in 1..=3 {
            for (minutes, rate) in [(10, 50.0), (5, 50.0), (0, 50.0), (-5, 200.0), (-10, 200.0)] {
                world.arrived(&format!("{day} days {minutes} minutes"), rate).await;
            }
        }
        let (rate, days) = world.forecast().await;
        assert_eq!((rate.round(), days), (210.0, 3), "the mean of 120 and 300");
        for day in 4..=8 {
            for minutes in [10, 5, 0, -5, -10] {
                world.arrived(&format!("{day} days {minutes} minutes"), 50.0).await;
            }
        }
        assert_eq!(world.forecast().await.0.round(), 110.0, "three odd days of eight");

        let told = world.capacity_after(2400, 1200.0, 0).await;
        assert_eq!(told["forecast"]["seconds_ahead"], 600);
        assert_eq!(told["forecast"]["basis"], "trend");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_hold_no_more_than_workers_can_take_soon() {
    World::with(async |world| {
        world
            .register("name: one\nnamespace: here\nsteps:\n  - { name: only, handler: H }\n")
            .await;
        for _ in 0..60 {
            world.submit("one", json!({})).await;
        }
        let claimed = async || {
            world
                .run("DELETE FROM tasker.traffic; SELECT tasker.note_traffic(); SELECT pgmq.purge_queue('here_queue')")
                .await;
            let sql = "SELECT coalesce(sum(claimed), 0) FROM tasker.claim_tasks($1, NULL, 40, 1000)";
            sqlx::query_scalar::<_, i64>(sql)
                .bind(world.orchestrator)
                .fetch_one(&world.pool)
                .await
                .unwrap()
        };
        assert_eq!(claimed().await, 10, "nobody is there to take them");
        world
            .run(
                "INSERT INTO tasker.members (kind, name, version, namespaces, lease_until, report)
                 VALUES ('worker', 'w', 'test', '{here}', now() + interval '1 hour', '{\"busy\": {\"slots\": 15}}')",
            )
            .await;
        assert_eq!(claimed().await, 15, "as many as they have handlers");
        world
            .run("UPDATE tasker.members SET report = '{\"busy\": {\"slots\": 500}}' WHERE kind = 'worker'")
            .await;
        assert_eq!(claimed().await, 35, "all that wait, and never more than 40");
    })
    .await;
}
