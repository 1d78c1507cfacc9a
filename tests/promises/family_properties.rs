//! Any family of tasks, in any order of completion, failure, crash, expansion and counting: every child is there once and counted once, and its parent
//! ends as its children did.

use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::{json, Value};
use uuid::Uuid;

use crate::world::{Leased, World};

/// How many leaves each child of the root has; how many of the children may be dead; how many of them there are at once, if that is bounded.
type Family = (Vec<usize>, usize, Option<u8>);

fn families() -> impl Strategy<Value = Family> {
    (
        prop::collection::vec(0usize..5, 0..6),
        0usize..3,
        prop::option::weighted(0.3, 1u8..4),
    )
}

/// What happens next; the numbers choose among the leased steps, or say how many children are created.
#[derive(Debug, Clone)]
enum Event {
    CompleteSome(u8),
    FailForNow(u8),
    FailForGood(u8),
    Crash(u8),
    Move(u8),
    CrashWhileMoving(u8),
    Reconcile,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => any::<u8>().prop_map(Event::CompleteSome),
        1 => any::<u8>().prop_map(Event::FailForNow),
        1 => any::<u8>().prop_map(Event::FailForGood),
        1 => any::<u8>().prop_map(Event::Crash),
        4 => any::<u8>().prop_map(Event::Move),
        1 => any::<u8>().prop_map(Event::CrashWhileMoving),
        1 => Just(Event::Reconcile),
    ];
    prop::collection::vec(event, 0..60)
}

/// Creates, counts and cancels, one slice of at most `limit`; whether there was anything to do.
async fn move_on(world: &World, limit: u8) -> bool {
    let (tallied, moved) = world.move_children(limit.into()).await;
    tallied + moved + world.claim().await > 0
}

async fn lease(world: &World, held: &mut Vec<Leased>) {
    world.enqueue_due_retries().await;
    held.extend(world.lease("here_queue", 1000).await);
}

async fn complete(world: &World, steps: &[Leased], once: &mut HashSet<(Uuid, i16)>) {
    assert_eq!(world.complete(steps, "1").await.len(), steps.len());
    for step in steps {
        assert!(once.insert((step.task_id, step.step)), "{} counted twice", step.name);
    }
}

async fn run(world: &World, (leaves, tolerate, limit): &Family, events: &[Event]) {
    let bounded = limit.map_or_else(String::new, |limit| format!(", limit: {limit}"));
    world.register("name: child\nnamespace: here\nsteps:\n  - { name: all, each: { over: $.input.leaves, handler: H }, retry: { max_attempts: 3 } }\n").await;
    world
        .register(&format!(
            "name: root\nnamespace: here\nsteps:\n  - {{ name: all, each: {{ over: $.input.children, workflow: child, tolerate: {tolerate}{bounded} }} }}
  - {{ name: after, handler: H, depends_on: [all] }}\n"
        ))
        .await;
    let children: Vec<Value> = leaves.iter().map(|&n| json!({ "leaves": vec![0; n] })).collect();
    let root = world.submit("root", json!({ "children": children })).await;
    world.claim().await;

    let (mut held, mut once) = (Vec::new(), HashSet::new());
    for event in events {
        lease(world, &mut held).await;
        let pick = |n: &u8| usize::from(*n) % held.len();
        match event {
            Event::Move(n) => drop(move_on(world, n % 4 + 1).await),
            Event::CrashWhileMoving(n) => {
                world
                    .run(&format!(
                        "BEGIN; SELECT tasker.tally_children(1000); SELECT tasker.move_fan_outs({}); ROLLBACK",
                        n % 4 + 1
                    ))
                    .await;
            }
            Event::Reconcile => assert_eq!(world.reconcile().await, 0, "nothing has drifted"),
            _ if held.is_empty() => {}
            Event::CompleteSome(n) => {
                let rest = held.split_off(pick(n) + 1);
                complete(world, &held, &mut once).await;
                held = rest;
            }
            Event::FailForNow(n) => {
                let step = held.swap_remove(pick(n));
                assert!(world.fail(&step, "not now", false, Some(0.0)).await);
            }
            Event::FailForGood(n) => {
                let step = held.swap_remove(pick(n));
                assert!(world.fail(&step, "never", true, None).await);
            }
            Event::Crash(n) => {
                let step = held.swap_remove(pick(n));
                world.expire(&step).await;
            }
        }
    }
    let finish = async |held: &mut Vec<Leased>, once: &mut HashSet<(Uuid, i16)>| loop {
        lease(world, held).await;
        if !held.is_empty() {
            complete(world, held, once).await;
            held.clear();
        } else if !move_on(world, 100).await {
            break;
        }
    };
    finish(&mut held, &mut once).await;

    let wrong = "SELECT count(*) FROM tasker.fan_outs f CROSS JOIN LATERAL (
            SELECT count(*) AS created, count(*) FILTER (WHERE t.state = 'complete') AS ended, count(*) FILTER (WHERE t.state = 'blocked') AS dead
            FROM tasker.tasks t WHERE t.parent_id = f.task_id) AS c
        WHERE (f.created, f.ended, f.dead) <> (c.created, c.ended, c.dead)";
    assert_eq!(world.count(wrong).await, 0, "a count is wrong");
    let blocked = "SELECT count(DISTINCT parent_id) FROM tasker.tasks WHERE state = 'blocked' AND parent_id <> ";
    let blocked = world.count(&format!("{blocked} '{root}'")).await as usize;
    let after_died = world
        .count(&format!(
            "SELECT count(*) FROM tasker.steps WHERE task_id = '{root}' AND step = 1 AND state = 'dead'"
        ))
        .await;
    let state = if blocked > *tolerate || after_died == 1 {
        "blocked"
    } else {
        "complete"
    };
    assert_eq!(world.task(root).await["state"], state, "{blocked} of its children are blocked");

    world.replay_all("here").await;
    finish(&mut held, &mut once).await;
    assert_eq!(world.task(root).await["state"], "complete", "what died was replayed");
    let tasks = 1 + leaves.len() + leaves.iter().sum::<usize>();
    assert_eq!(
        world.count("SELECT count(*) FROM tasker.tasks WHERE state = 'complete'").await as usize,
        tasks
    );
    assert_eq!(once.len(), leaves.iter().sum::<usize>() + 1);
}

#[test]
fn any_family_ends_as_its_members_did_and_each_is_counted_once() {
    World::for_any(40, (families(), events()), async |world, (family, events)| {
        run(world, family, events).await
    });
}
