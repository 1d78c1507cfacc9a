//! Schedules: each time begins one task, however many orchestrators there are, and whatever is done to the schedule meanwhile.

use serde_json::{json, Value};
use tasker::engine::schedules;
use tasker::orchestrator::{Orchestrator, OrchestratorConfig};
use tasker::schedule::Schedule;
use tasker::Template;

use super::command_line::{json_of, tasker};
use super::world::World;

const REPORT: &str = "name: report\nnamespace: here\nsteps:\n  - { name: only, handler: h }\n";

fn schedule(written: Value) -> Schedule {
    Schedule::parse(&written).expect("it is valid")
}

async fn orchestrators(count: usize, world: &World) -> Vec<Orchestrator> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap());
    }
    all
}

async fn stop(orchestrators: Vec<Orchestrator>) {
    for orchestrator in orchestrators {
        orchestrator.shutdown().await;
    }
}

/// As if the schedule had stood since then, and nobody had looked.
async fn as_if_since(world: &World, ago: &str) {
    world
        .run(&format!(
            "UPDATE tasker.schedules SET since = date_trunc('hour', now()) - interval '{ago}', next_at = NULL, look_at = now()"
        ))
        .await;
    world.run("NOTIFY tasker_due").await;
}

async fn planned(world: &World) {
    world
        .until_true("NOT EXISTS (SELECT FROM tasker.schedules WHERE next_at IS NULL OR look_at <= now())")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_time_begins_one_task_however_many_orchestrators_there_are() {
    World::with(async |world| {
        world.register(REPORT).await;
        let often = schedule(json!({ "every": "1s", "input": { "for": "$time", "by": "clock" }, "priority": "high", "catch_up": "all" }));
        assert_eq!(schedules::put(&world.db, "often", "report", &often).await.unwrap(), "created");
        assert_eq!(schedules::put(&world.db, "often", "here/report", &often).await.unwrap(), "unchanged");
        let three = orchestrators(3, world).await;
        world.until_true("(SELECT count(*) >= 4 FROM tasker.ticks)").await;
        schedules::pause(&world.db, "often", true, "ann", Some("enough")).await.unwrap();
        stop(three).await;
        let ticks = world.count("SELECT count(*) FROM tasker.ticks WHERE state = 'started'").await;
        assert_eq!(world.count("SELECT count(*) FROM tasker.tasks").await, ticks);
        let gaps = "SELECT count(*) FROM (SELECT time - lag(time) OVER (ORDER BY time) AS gap FROM tasker.ticks) AS g WHERE gap <> interval '1 second'";
        assert_eq!(world.count(gaps).await, 0);
        let input = "SELECT count(*) FROM tasker.ticks k JOIN tasker.tasks t ON t.id = k.task_id
                     WHERE (t.input ->> 'for')::timestamptz = k.time AND t.input ->> 'by' = 'clock' AND t.priority = 3";
        assert_eq!(world.count(input).await, ticks);
        let shown = schedules::show(&world.db, "often", 2).await.unwrap();
        assert_eq!(
            (&shown["paused"]["who"], &shown["paused"]["why"], shown["ticks"].as_array().unwrap().len()),
            (&json!("ann"), &json!("enough"), 2)
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_caught_up_or_left_as_the_schedule_says() {
    World::with(async |world| {
        world.register(REPORT).await;
        for catch_up in ["none", "last", "all"] {
            let hourly = schedule(json!({ "cron": "30 * * * *", "catch_up": catch_up }));
            schedules::put(&world.db, catch_up, "report", &hourly).await.unwrap();
        }
        as_if_since(world, "5 hours").await;
        let two = orchestrators(2, world).await;
        planned(world).await;
        stop(two).await;
        for (name, least) in [("none", 0), ("last", 1), ("all", 5)] {
            let count = format!("SELECT count(*) FROM tasker.ticks JOIN tasker.schedules s ON s.id = schedule_id WHERE name = '{name}'");
            let began = world.count(&count).await;
            // An hour's half may have passed since the hour began.
            assert!(
                (least..=least + i64::from(name == "all" || name == "none")).contains(&began),
                "{name}: {began}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_comes_while_a_task_runs_is_left_out_queued_or_cancels_it() {
    World::with(async |world| {
        world.register(REPORT).await;
        for overlap in ["allow", "skip", "queue", "cancel_old"] {
            let hourly = schedule(json!({ "every": "1h", "catch_up": "all", "overlap": overlap }));
            schedules::put(&world.db, overlap, "report", &hourly).await.unwrap();
        }
        as_if_since(world, "3 hours 30 minutes").await;
        let one = orchestrators(1, world).await;
        world
            .until_true("(SELECT count(DISTINCT schedule_id) = 4 FROM tasker.ticks) AND NOT EXISTS (SELECT FROM tasker.schedules WHERE next_at IS NULL)")
            .await;
        let states = async |name: &str| -> Vec<String> {
            let sql = "SELECT k.state || coalesce(' ' || t.state::text, '') FROM tasker.ticks k JOIN tasker.schedules s ON s.id = k.schedule_id
                       LEFT JOIN tasker.tasks t ON t.id = k.task_id WHERE s.name = $1 ORDER BY k.time LIMIT 4";
            sqlx::query_scalar(sql).bind(name).fetch_all(&world.pool).await.unwrap()
        };
        let running = |state: &String| ["started pending", "started running"].contains(&state.as_str());
        assert!(states("allow").await.iter().all(running), "{:?}", states("allow").await);
        let skipped = states("skip").await;
        assert!(running(&skipped[0]) && skipped[1..].iter().all(|state| state == "skipped"), "{skipped:?}");
        let queued = states("queue").await;
        assert!(running(&queued[0]) && queued[1..].iter().all(|state| state == "queued"), "{queued:?}");
        let cancelled = states("cancel_old").await;
        assert!(cancelled[..3].iter().all(|state| state == "started cancelled") && running(&cancelled[3]), "{cancelled:?}");

        world
            .run("SELECT tasker.cancel_tasks(ARRAY(SELECT task_id FROM tasker.ticks JOIN tasker.schedules s ON s.id = schedule_id WHERE name = 'queue' AND task_id IS NOT NULL))")
            .await;
        world
            .until_true(
                "(SELECT count(*) = 2 FROM tasker.ticks JOIN tasker.schedules s ON s.id = schedule_id WHERE name = 'queue' AND state = 'started')",
            )
            .await;
        stop(one).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_was_changed_paused_or_deleted_never_begins_its_old_form() {
    World::with(async |world| {
        world.register(REPORT).await;
        let old = schedule(json!({ "every": "1h", "input": { "form": "old" }, "catch_up": "all" }));
        schedules::put(&world.db, "hourly", "report", &old).await.unwrap();
        as_if_since(world, "2 hours 30 minutes").await;
        let due = "SELECT id || '/' || revision || '/' || coalesce(next_at::text, '') FROM tasker.due_schedules(10)";
        assert!(!world.text(due).await.is_empty());
        // Somebody who has looked before the change comes after it.
        let fire =
            "SELECT tasker.fire_schedule((SELECT id FROM tasker.schedules), 1, NULL, ARRAY[now()], now() + interval '1 hour')::bigint";
        let new = schedule(json!({ "every": "1h", "input": { "form": "new" } }));
        assert_eq!(schedules::put(&world.db, "hourly", "report", &new).await.unwrap(), "changed");
        assert_eq!(world.count(fire).await, 0);
        schedules::pause(&world.db, "hourly", true, "ann", None).await.unwrap();
        assert_eq!(world.count(&fire.replace(", 1,", ", 2,")).await, 0);
        schedules::pause(&world.db, "hourly", false, "ann", None).await.unwrap();
        let one = orchestrators(1, world).await;
        planned(world).await;
        assert_eq!(
            world.count("SELECT count(*) FROM tasker.tasks").await,
            0,
            "what would have been meanwhile does not begin"
        );
        let tasks = schedules::trigger(&world.db, "hourly").await.unwrap();
        assert_eq!(world.task(tasks[0]).await["input"]["form"], "new");
        schedules::delete(&world.db, "hourly").await.unwrap();
        assert_eq!(world.count(&fire.replace(", 1,", ", 2,")).await, 0);
        assert!(schedules::trigger(&world.db, "hourly").await.is_err());
        stop(one).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_brings_its_schedules_along_and_takes_them_away() {
    World::with(async |world| {
        let with = |schedules: &str| format!("{REPORT}{schedules}");
        world
            .register(&with(
                "schedules:\n  nightly: { cron: \"0 3 * * *\", time_zone: Europe/Berlin }\n  often: { every: 15m }\n",
            ))
            .await;
        let names = async || -> Vec<Value> {
            schedules::list(&world.db)
                .await
                .unwrap()
                .into_iter()
                .map(|of| of["name"].clone())
                .collect()
        };
        assert_eq!(names().await, ["here/report:nightly", "here/report:often"]);
        let refused = schedules::delete(&world.db, "here/report:often").await.unwrap_err().to_string();
        assert_eq!(
            refused,
            "the schedule here/report:often belongs to its template; take it out there; or pause it"
        );
        world.register(&with("schedules:\n  often: { every: 20m }\n")).await;
        assert_eq!(names().await, ["here/report:often"]);
        assert_eq!(schedules::list(&world.db).await.unwrap()[0]["definition"]["every"]["secs"], 1200);
        let old = Template::parse(
            &with("schedules:\n  nightly: { cron: \"0 3 * * *\", time_zone: Europe/Berlin }\n  often: { every: 15m }\n"),
            "t.yml",
        )
        .unwrap();
        tasker::engine::register::register_if_new(&world.db, &old).await.unwrap();
        assert_eq!(
            names().await,
            ["here/report:often"],
            "a process of an old release takes nobody back"
        );
        world.register(&with("description: none any more\n")).await;
        assert!(names().await.is_empty());

        for (written, said) in [
            (
                "{ cron: '0 3 * *' }",
                "t.yml:6: schedule \"nightly\": cron \"0 3 * *\" is no pattern",
            ),
            (
                "{ cron: '0 3 * * *', time_zone: Europe/Berlni }",
                "t.yml:6: schedule \"nightly\": time_zone \"Europe/Berlni\" is unknown: did you mean Europe/Berlin?",
            ),
            ("{ every: 1h, version: '1' }", "t.yml:6: schedule \"nightly\": it has a version"),
        ] {
            let problem = Template::parse(&with(&format!("schedules:\n  nightly: {written}\n")), "t.yml")
                .unwrap_err()
                .to_string();
            assert!(problem.starts_with(said), "{problem}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_creates_sees_and_steers_schedules() {
    World::with(async |world| {
        let url = world.url.as_str();
        world.register(REPORT).await;
        let said = |arguments: &[&str]| {
            let output = tasker(url, arguments);
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stdout).trim().to_owned() + String::from_utf8_lossy(&output.stderr).trim(),
            )
        };
        let create = [
            "schedule",
            "create",
            "nightly",
            "report",
            "--cron",
            "0 3 * * *",
            "--time-zone",
            "Europe/Berlin",
        ];
        assert_eq!(said(&create), (Some(0), "nightly: created".into()));
        let unknown = said(&["schedule", "create", "x", "nothing", "--every", "1h"]);
        assert!(unknown.0 == Some(4) && unknown.1.contains("no template nothing"), "{unknown:?}");
        let wrong = said(&["schedule", "create", "x", "report", "--cron", "0 3 * * *", "--time-zone", "Mars"]);
        assert!(wrong.0 == Some(1) && wrong.1.contains("time_zone \"Mars\" is unknown"), "{wrong:?}");
        let shown = json_of(url, &["schedule", "show", "nightly", "--json"]);
        let next: Vec<&str> = shown["next"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(
            next.len() == 10 && next.iter().all(|time| time.contains("T01:00:00") || time.contains("T02:00:00")),
            "{next:?}"
        );
        assert_eq!(
            said(&[
                "schedule",
                "backfill",
                "nightly",
                "--from",
                "2026-03-28T00:00:00Z",
                "--until",
                "2026-03-30T23:00:00Z"
            ])
            .1,
            "3 tasks begin"
        );
        assert_eq!(
            said(&[
                "schedule",
                "backfill",
                "nightly",
                "--from",
                "2026-03-28T00:00:00Z",
                "--until",
                "2026-03-31T23:00:00Z"
            ])
            .1,
            "1 tasks begin"
        );
        assert_eq!(
            said(&["schedule", "pause", "nightly", "--who", "ann", "--why", "moving"]).1,
            "nightly: paused"
        );
        assert!(said(&["schedule", "show", "nightly"]).1.contains("paused    by ann"));
        assert!(said(&["schedule", "list"]).1.contains("0 3 * * * (Europe/Berlin)"));
        assert_eq!(said(&["schedule", "resume", "nightly"]).1, "nightly: goes on");
        assert_eq!(said(&["schedule", "trigger", "nightly"]).0, Some(0));
        assert_eq!(said(&["schedule", "delete", "nightly"]).1, "nightly: deleted");
        assert_eq!(said(&["schedule", "delete", "nightly"]).0, Some(4));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_whose_task_cannot_begin_says_why_and_the_schedule_goes_on() {
    World::with(async |world| {
        world.register(REPORT).await;
        schedules::put(&world.db, "often", "report", &schedule(json!({ "every": "1s", "jitter": "1h" })))
            .await
            .unwrap();
        world.run("UPDATE tasker.schedules SET template = 'here/gone'").await;
        let one = orchestrators(1, world).await;
        world.until_true("(SELECT count(*) >= 2 FROM tasker.ticks)").await;
        let shown = schedules::show(&world.db, "often", 1).await.unwrap();
        assert_eq!(
            (&shown["last"]["state"], &shown["last"]["why"]),
            (&json!("skipped"), &json!("no template here/gone"))
        );
        world.run("UPDATE tasker.schedules SET template = 'here/report'").await;
        world.until_true("EXISTS (SELECT FROM tasker.tasks WHERE run_at > now())").await;
        stop(one).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_keeps_the_schedules_of_its_file() {
    World::with(async |world| {
        let settings = |schedules: Value| tasker::config::Settings {
            schedules: Some(serde_json::from_value(schedules).unwrap()),
            ..Default::default()
        };
        let hourly =
            settings(json!({ "hourly": { "workflow": "here/report", "every": "1h" }, "often": { "workflow": "report", "every": "5m" } }));
        let first = Orchestrator::start(&world.db, hourly).await.unwrap();
        world.register(REPORT).await;
        world
            .until_true("(SELECT count(*) = 2 FROM tasker.schedules WHERE owner = 'file' AND template = 'here/report')")
            .await;
        first.shutdown().await;
        let second = Orchestrator::start(&world.db, settings(json!({ "often": { "workflow": "report", "every": "10m" } })))
            .await
            .unwrap();
        world
            .until_true("(SELECT count(*) = 1 AND bool_and(definition #>> '{every, secs}' = '600') FROM tasker.schedules)")
            .await;
        second.shutdown().await;
        let third = Orchestrator::start(&world.db, OrchestratorConfig::default()).await.unwrap();
        third.shutdown().await;
        assert_eq!(
            schedules::list(&world.db).await.unwrap().len(),
            1,
            "who has no schedules in its file leaves them alone"
        );

        let wrong = settings(json!({ "often": { "workflow": "report", "evry": "10m" } }));
        let problem = Orchestrator::start(&world.db, wrong).await.unwrap_err().to_string();
        assert!(
            problem.starts_with("schedules of which often is not valid: unknown field `evry`"),
            "{problem}"
        );
    })
    .await;
}
