//! A registered version never changes, and a running task keeps the version it began with.

use serde_json::json;
use tasker::engine::register::{register, register_if_new};
use tasker::{Error, Template};

use crate::world::World;

fn steps(names: &[&str]) -> String {
    let step = |n: usize| match n {
        0 => format!("  - {{ name: {}, handler: H }}\n", names[0]),
        n => format!("  - {{ name: {}, handler: H, depends_on: [{}] }}\n", names[n], names[n - 1]),
    };
    format!(
        "name: flow\nnamespace: here\nsteps:\n{}",
        (0..names.len()).map(step).collect::<String>()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_version_with_other_content_is_refused() {
    World::with(async |world| {
        let versioned = |names: &[&str]| format!("version: \"1.0\"\n{}", steps(names));
        assert!(world.register(&versioned(&["a"])).await.created);
        assert!(!world.register(&versioned(&["a"])).await.created);
        let other = Template::parse(&versioned(&["a", "b"]), "test.yml").unwrap();
        match register(&world.db, &other).await {
            Err(Error::VersionTaken(message)) => assert_eq!(
                message,
                "template here/flow version 1.0 is registered with other content; a registered version never changes: give the new content a new version"
            ),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_without_a_version_gets_a_new_one_whenever_its_content_changes() {
    World::with(async |world| {
        let mut versions = Vec::new();
        for names in [&["a"][..], &["a", "b"], &["a", "b"], &["a"]] {
            versions.push(world.register(&steps(names)).await.version);
        }
        assert_eq!(versions, ["1", "2", "2", "1"], "content that comes back gets its version back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_an_old_release_that_starts_again_takes_nobody_back() {
    World::with(async |world| {
        let parsed = |names: &[&str]| Template::parse(&steps(names), "test.yml").unwrap();
        let current = "SELECT version FROM tasker.template_versions v JOIN tasker.templates t ON t.current_version_id = v.id";
        for (names, expected) in [(&["a"][..], "1"), (&["a", "b"], "2"), (&["a"], "2"), (&["a", "b"], "2")] {
            register_if_new(&world.db, &parsed(names)).await.unwrap();
            assert_eq!(world.text(current).await, expected, "{names:?}");
        }
        // Unless somebody says so; and then that stays.
        register(&world.db, &parsed(&["a"])).await.unwrap();
        register_if_new(&world.db, &parsed(&["a", "b"])).await.unwrap();
        assert_eq!(world.text(current).await, "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_renames_removes_and_adds_steps_does_not_touch_running_tasks() {
    World::with(async |world| {
        world.register(&steps(&["a", "b", "c"])).await;
        let old = world.submit("flow", json!({})).await;
        world.claim().await;
        world.complete(&world.lease("here_queue", 1).await, "{}").await;

        world.register(&steps(&["x", "b"])).await;
        let new = world.submit("flow", json!({})).await;
        world.claim().await;
        let mut ran = Vec::new();
        loop {
            let leased = world.lease("here_queue", 10).await;
            if leased.is_empty() {
                break;
            }
            ran.extend(leased.iter().map(|step| (step.task_id, step.name.clone())));
            world.complete(&leased, "{}").await;
        }
        let of = |task| {
            ran.iter()
                .filter(|(t, _)| *t == task)
                .map(|(_, name)| name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!((of(old), of(new)), (vec!["b", "c"], vec!["x", "b"]));
        for task in [old, new] {
            assert_eq!(world.task(task).await["state"], "complete");
        }
    })
    .await;
}
