//! Any graph, cancelled with undo at any moment, with any outcome of what runs then: what was done, or may have been, is undone exactly once, and never
//! before what came after it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;
use tasker::engine::cancel::undo_tasks;

use crate::world::{Leased, World};

/// For every step: its parents among the steps before it, and whether it can be undone.
type Graph = Vec<(Vec<bool>, bool)>;

fn graphs() -> impl Strategy<Value = Graph> {
    (1usize..10).prop_flat_map(|n| {
        let step = |position: usize| {
            (
                prop::collection::vec(prop::bool::weighted(0.35), position),
                prop::bool::weighted(0.7),
            )
        };
        (0..n).map(step).collect::<Vec<_>>()
    })
}

/// What becomes of one of the steps that run; the number says which.
#[derive(Debug, Clone)]
enum Event {
    Complete(u8),
    FailForNow(u8),
    FailForGood(u8),
    Crash(u8),
}

fn events(most: usize) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => any::<u8>().prop_map(Event::Complete),
        1 => any::<u8>().prop_map(Event::FailForNow),
        1 => any::<u8>().prop_map(Event::FailForGood),
        2 => any::<u8>().prop_map(Event::Crash),
    ];
    prop::collection::vec(event, 0..most)
}

fn yaml(graph: &Graph) -> String {
    let step = |(position, (parents, undone)): (usize, &(Vec<bool>, bool))| {
        let parents = (0..position).filter(|&parent| parents[parent]).map(|parent| format!("s{parent}"));
        let parents = parents.collect::<Vec<_>>().join(", ");
        let undo = if *undone { ", undo: U" } else { "" };
        format!("  - {{ name: s{position}, handler: H, depends_on: [{parents}]{undo}, retry: {{ max_attempts: 100 }} }}\n")
    };
    let steps: String = graph.iter().enumerate().map(step).collect();
    format!("name: any\nnamespace: here\nsteps:\n{steps}")
}

/// Whether `step` depends on `other`, directly or not.
fn is_below(graph: &Graph, step: usize, other: usize) -> bool {
    (0..step).any(|parent| graph[step].0[parent] && (parent == other || is_below(graph, parent, other)))
}

async fn lease(world: &World, held: &mut Vec<Leased>) {
    world.run("UPDATE tasker.tasks SET look_at = now() WHERE look_at IS NOT NULL").await;
    world.count("SELECT tasker.expire_tasks(100)::bigint").await;
    world.enqueue_due_retries().await;
    held.extend(world.lease("here_queue", 100).await);
}

/// A step that runs meets its fate. Returns whether it may have done something.
async fn happen(world: &World, held: &mut Vec<Leased>, event: &Event) -> Option<(usize, bool)> {
    let (Event::Complete(n) | Event::FailForNow(n) | Event::FailForGood(n) | Event::Crash(n)) = event;
    let step = held.swap_remove(usize::from(*n).checked_rem(held.len())?);
    let done = match event {
        Event::Complete(_) => {
            world.complete(std::slice::from_ref(&step), "1").await;
            true
        }
        Event::FailForNow(_) => !world.fail(&step, "not now", false, Some(0.0)).await,
        Event::FailForGood(_) => !world.fail(&step, "never", true, None).await,
        Event::Crash(_) => {
            world.expire(&step).await;
            true
        }
    };
    Some((step.step.try_into().unwrap(), done))
}

async fn run(world: &World, graph: &Graph, before: &[Event], after: &[Event], undos: &[u8]) {
    world.register(&yaml(graph)).await;
    let task = world.submit("any", json!({})).await;
    world.claim().await;
    let (mut held, mut done) = (Vec::new(), BTreeSet::new());
    for event in before {
        lease(world, &mut held).await;
        if let (Some((step, true)), Event::Complete(_)) = (happen(world, &mut held, event).await, event) {
            done.insert(step);
        }
    }
    lease(world, &mut held).await;
    let complete = world.task(task).await["state"] == "complete";
    assert_eq!(undo_tasks(&world.db, &[task]).await.unwrap(), [task]);
    for event in after.iter().chain(&vec![Event::Crash(0); graph.len()]) {
        if let Some((step, true)) = happen(world, &mut held, event).await {
            done.insert(step);
        }
    }
    assert!(!complete || done.len() == graph.len());

    let mut undone: Vec<usize> = Vec::new();
    let mut choices = undos.iter().cycle();
    loop {
        lease(world, &mut held).await;
        let Some(choice) = choices.next().filter(|_| !held.is_empty()) else {
            break;
        };
        let step = held.swap_remove(usize::from(*choice) % held.len());
        if choice % 5 == 0 && step.fence == 1 {
            world.expire(&step).await;
        } else {
            assert_eq!(world.complete(std::slice::from_ref(&step), "1").await.len(), 1);
            undone.push(step.name.strip_prefix('s').unwrap().strip_suffix(".undo").unwrap().parse().unwrap());
        }
    }
    let wanted: Vec<usize> = done.into_iter().filter(|&step| graph[step].1).collect();
    let mut sorted = undone.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, wanted, "what was done is undone, once");
    for (position, &step) in undone.iter().enumerate() {
        let early = undone[..position].iter().find(|&&earlier| is_below(graph, step, earlier));
        assert_eq!(early, None, "s{step} came after it");
    }
    assert_eq!(world.task(task).await["state"], "cancelled");
    assert_eq!(world.reconcile().await, 0, "nothing is left to mend");
}

#[test]
fn any_graph_is_undone_once_from_its_end_to_its_beginning_whenever_it_is_cancelled() {
    let undos = prop::collection::vec(1u8..255, 1..20);
    World::for_any(
        40,
        (graphs(), events(20), events(6), undos),
        async |world, (graph, before, after, undos)| {
            run(world, graph, before, after, undos).await;
        },
    );
}
