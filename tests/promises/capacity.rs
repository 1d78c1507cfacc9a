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
