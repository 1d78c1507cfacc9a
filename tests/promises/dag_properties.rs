//! Any directed acyclic graph, with any conditions, in any order of completion, failure and crash: every step runs after its parents or is skipped, each
//! transition counts once, independent branches finish, and the task ends.

use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::json;

use crate::world::{Leased, World};

const ATTEMPTS: usize = 3;

/// For every step: its parents among the steps before it, which of two namespaces it is in, and its condition, if it has one.
type Graph = [(Vec<bool>, bool, Option<bool>)];

fn graphs() -> impl Strategy<Value = Vec<(Vec<bool>, bool, Option<bool>)>> {
    (1usize..10).prop_flat_map(|n| {
        let step = |position: usize| {
            let condition = prop::option::weighted(0.3, any::<bool>());
            (
                prop::collection::vec(prop::bool::weighted(0.35), position),
                any::<bool>(),
                condition,
            )
        };
        (0..n).map(step).collect::<Vec<_>>()
    })
}

/// What happens next; the numbers choose among the leased steps.
#[derive(Debug, Clone)]
enum Event {
    CompleteSome(u8),
    ReportAgain,
    FailForNow(u8),
    FailForGood(u8),
    Crash(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => any::<u8>().prop_map(Event::CompleteSome),
        1 => Just(Event::ReportAgain),
        2 => any::<u8>().prop_map(Event::FailForNow),
        1 => any::<u8>().prop_map(Event::FailForGood),
        2 => any::<u8>().prop_map(Event::Crash),
    ];
    prop::collection::vec(event, 0..40)
}

fn yaml(graph: &Graph) -> String {
    let step = |(position, (parents, elsewhere, condition)): (usize, &(Vec<bool>, bool, Option<bool>))| {
        let parents: Vec<String> = parents
            .iter()
            .enumerate()
            .filter(|(_, p)| **p)
            .map(|(parent, _)| format!("s{parent}"))
            .collect();
        format!(
            "  - {{ name: s{position}, handler: H, namespace: {}, depends_on: [{}]{}, retry: {{ max_attempts: {ATTEMPTS} }} }}\n",
            if *elsewhere { "there" } else { "here" },
            parents.join(", "),
            condition.map_or_else(String::new, |holds| format!(", if: \"$.input.{holds}\""))
        )
    };
    format!(
        "name: random\nnamespace: here\nsteps:\n{}",
        graph.iter().enumerate().map(step).collect::<String>()
    )
}

/// What we know of the task without asking the engine.
#[derive(Default)]
struct Model {
    complete: HashSet<i16>,
    dead: HashSet<i16>,
    failures: Vec<usize>,
}

impl Model {
    fn parents<'a>(graph: &'a Graph, step: i16) -> impl Iterator<Item = i16> + 'a {
        let (parents, ..) = &graph[step as usize];
        parents
            .iter()
            .enumerate()
            .filter(|(_, is_parent)| **is_parent)
            .map(|(parent, _)| parent as i16)
    }

    fn skips(graph: &Graph, step: i16) -> bool {
        let mut parents = Model::parents(graph, step).peekable();
        graph[step as usize].2 == Some(false) || (parents.peek().is_some() && parents.all(|parent| Model::skips(graph, parent)))
    }

    fn is_ready(&self, graph: &Graph, step: i16) -> bool {
        Model::parents(graph, step).all(|parent| self.complete.contains(&parent) || self.is_skipped(graph, parent))
    }

    fn is_skipped(&self, graph: &Graph, step: i16) -> bool {
        Model::skips(graph, step) && self.is_ready(graph, step)
    }

    fn may_run(&self, graph: &Graph, step: i16) -> bool {
        !self.complete.contains(&step) && !self.dead.contains(&step) && !Model::skips(graph, step) && self.is_ready(graph, step)
    }
}

async fn run(world: &World, graph: &Graph, events: &[Event]) {
    world.register(&yaml(graph)).await;
    let task = world.submit("random", json!({ "true": true, "false": false })).await;
    assert_eq!(world.claim().await, 1);

    let mut model = Model {
        failures: vec![0; graph.len()],
        ..Model::default()
    };
    let mut held: Vec<Leased> = Vec::new();
    let mut stale: Vec<Leased> = Vec::new();
    let mut events = events.iter();
    loop {
        world.enqueue_due_retries().await;
        for queue in ["here_queue", "there_queue"] {
            if sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pgmq.meta WHERE queue_name = $1)")
                .bind(queue)
                .fetch_one(&world.pool)
                .await
                .unwrap()
            {
                held.extend(world.lease(queue, 100).await);
            }
        }
        for step in &held {
            assert!(model.may_run(graph, step.step), "{} was leased too early, or again", step.name);
            assert_eq!(step.attempt as usize, model.failures[step.step as usize] + 1);
        }
        if held.is_empty() {
            break;
        }
        let pick = |n: &u8| usize::from(*n) % held.len();
        match events.next().unwrap_or(&Event::CompleteSome(u8::MAX)) {
            Event::CompleteSome(n) => {
                // All that are in the same queue as the chosen one, up to it: one batch.
                let upto = pick(n);
                let queue = held[upto].queue.clone();
                let batch: Vec<Leased> = held[..=upto].iter().filter(|s| s.queue == queue).cloned().collect();
                assert_eq!(world.complete(&batch, "{}").await.len(), batch.len());
                for step in &batch {
                    assert!(model.complete.insert(step.step), "{} counted twice", step.name);
                }
                held.retain(|s| !batch.iter().any(|b| b.msg_id == s.msg_id && b.queue == s.queue));
                stale.extend(batch);
            }
            Event::ReportAgain => {
                for step in &stale {
                    assert!(
                        world.complete(std::slice::from_ref(step), "{}").await.is_empty(),
                        "a stale report of {} counted",
                        step.name
                    );
                    assert!(
                        !world.fail(step, "late", false, None).await,
                        "a stale failure of {} counted",
                        step.name
                    );
                }
            }
            Event::FailForNow(n) => {
                let step = held.swap_remove(pick(n));
                assert!(world.fail(&step, "not now", false, Some(0.0)).await);
                model.failures[step.step as usize] += 1;
                if model.failures[step.step as usize] == ATTEMPTS {
                    model.dead.insert(step.step);
                }
                stale.push(step);
            }
            Event::FailForGood(n) => {
                let step = held.swap_remove(pick(n));
                assert!(world.fail(&step, "never", true, None).await);
                model.dead.insert(step.step);
                stale.push(step);
            }
            Event::Crash(n) => {
                let step = held.swap_remove(pick(n));
                world.expire(&step).await;
                stale.push(step);
            }
        }
    }

    let expected: Vec<&str> = (0..graph.len() as i16)
        .map(|step| match step {
            s if model.complete.contains(&s) => "complete",
            s if model.dead.contains(&s) => "dead",
            s if model.is_skipped(graph, s) => "skipped",
            s => {
                assert!(!model.may_run(graph, s), "s{s} could run and never did");
                "pending"
            }
        })
        .collect();
    assert_eq!(world.step_states(task).await, expected);
    let state = if model.dead.is_empty() { "complete" } else { "blocked" };
    assert_eq!(world.task(task).await["state"], state);
    let mut letters = 0;
    for namespace in ["here", "there"] {
        if graph.iter().any(|(_, elsewhere, _)| *elsewhere == (namespace == "there")) {
            letters += world.dead_letters(namespace).await.len();
            assert_eq!(
                world.count(&format!("SELECT count(*) FROM pgmq.q_{namespace}_queue")).await,
                0,
                "a message is left over"
            );
        }
    }
    assert_eq!(letters, model.dead.len());
}

#[test]
fn any_graph_ends_in_order_and_every_transition_counts_once() {
    World::for_any(60, (graphs(), events()), async |world, (graph, events)| {
        run(world, graph, events).await
    });
}
