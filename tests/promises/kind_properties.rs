//! Any graph of steps of all kinds (handlers, sleeps, waits, fan-outs, workflows; with conditions and delays), whatever happens in whatever order: a
//! step runs when its parents are done and its time has come, once, or is skipped; signals count once, early or in time; the task ends.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{json, Value};
use tasker::engine::signals::{self, Addressee, Signal};
use uuid::Uuid;

use crate::world::{Leased, World};

const ATTEMPTS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Handler,
    Sleep,
    /// Whether it is skipped, or dead, when its time is over; None: it has no time.
    Wait(Option<bool>),
    /// Over so many, of which so many may be dead.
    Each(usize, usize),
    Workflow,
}

#[derive(Debug, Clone)]
struct Step {
    /// Among the steps before it.
    parents: Vec<bool>,
    kind: Kind,
    condition: Option<bool>,
    delay: bool,
}

impl Step {
    fn parents(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.parents.len()).filter(|parent| self.parents[*parent])
    }

    fn yaml(&self, position: usize) -> String {
        let parents: Vec<String> = self.parents().map(|parent| format!("s{parent}")).collect();
        let kind = match self.kind {
            Kind::Handler => format!("handler: H, retry: {{ max_attempts: {ATTEMPTS} }}"),
            Kind::Sleep => "sleep: 1h".into(),
            Kind::Wait(timeout) => {
                let timeout = timeout.map(|skips| format!(", timeout: 1h, on_timeout: {}", if skips { "skip" } else { "dead" }));
                format!("wait: {{ signal: s{position}{} }}", timeout.unwrap_or_default())
            }
            Kind::Each(count, tolerate) => {
                format!("each: {{ over: $.input.of{count}, handler: H, tolerate: {tolerate} }}, retry: {{ max_attempts: {ATTEMPTS} }}")
            }
            Kind::Workflow => "workflow: leaf".into(),
        };
        let condition = self
            .condition
            .map_or_else(String::new, |holds| format!(", if: \"$.input.{holds}\""));
        let delay = if self.delay { ", delay: 1h" } else { "" };
        format!(
            "  - {{ name: s{position}, depends_on: [{}], {kind}{condition}{delay} }}\n",
            parents.join(", ")
        )
    }
}

fn graphs() -> impl Strategy<Value = Vec<Step>> {
    let kinds = prop_oneof![
        3 => Just(Kind::Handler),
        1 => Just(Kind::Sleep),
        3 => prop::option::of(any::<bool>()).prop_map(Kind::Wait),
        2 => (0usize..4, 0usize..2).prop_map(|(count, tolerate)| Kind::Each(count, tolerate)),
        1 => Just(Kind::Workflow),
    ];
    let step = move |position: usize| {
        let parents = prop::collection::vec(prop::bool::weighted(0.4), position);
        let condition = prop::option::weighted(0.3, any::<bool>());
        (parents, kinds.clone(), condition, prop::bool::weighted(0.2)).prop_map(|(parents, kind, condition, delay)| Step {
            parents,
            kind,
            condition,
            delay,
        })
    };
    (1usize..8).prop_flat_map(move |n| (0..n).map(&step).collect::<Vec<_>>())
}

/// What happens next; the numbers choose among the leased steps, or the steps of the graph.
#[derive(Debug, Clone)]
enum Event {
    Complete(u8),
    FailForNow(u8),
    FailForGood(u8),
    Crash(u8),
    /// It is sent once, however often this happens.
    Signal(u8),
    /// Whatever waits for its time has waited long enough.
    Time,
    Pause,
    Resume,
    /// An orchestrator dies before it commits what it does.
    CrashOfTheOrchestrator,
    Reconcile,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => any::<u8>().prop_map(Event::Complete),
        1 => any::<u8>().prop_map(Event::FailForNow),
        1 => any::<u8>().prop_map(Event::FailForGood),
        1 => any::<u8>().prop_map(Event::Crash),
        4 => any::<u8>().prop_map(Event::Signal),
        2 => Just(Event::Time),
        1 => Just(Event::Pause),
        2 => Just(Event::Resume),
        1 => Just(Event::CrashOfTheOrchestrator),
        1 => Just(Event::Reconcile),
    ];
    prop::collection::vec(event, 0..40)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Pending,
    Delayed,
    /// Its handler may run, or its children may.
    Open,
    Asleep,
    Awaits,
    Complete,
    Skipped,
    Dead,
}

/// What we know of the task without asking the engine.
struct Model<'a> {
    graph: &'a [Step],
    states: Vec<State>,
    signalled: Vec<bool>,
    /// Of each that has children, how many are complete, and dead.
    children: Vec<(usize, usize)>,
    failures: HashMap<(Uuid, i16), usize>,
}

impl Model<'_> {
    fn of(graph: &[Step]) -> Model<'_> {
        let mut model = Model {
            graph,
            states: vec![State::Pending; graph.len()],
            signalled: vec![false; graph.len()],
            children: vec![(0, 0); graph.len()],
            failures: HashMap::new(),
        };
        model.settle();
        model
    }

    /// Whatever follows by itself.
    fn settle(&mut self) {
        for (position, step) in self.graph.iter().enumerate() {
            let done = |parent: usize| matches!(self.states[parent], State::Complete | State::Skipped);
            if self.states[position] == State::Pending && step.parents().all(done) {
                let unwanted = step.parents().count() > 0 && step.parents().all(|parent| self.states[parent] == State::Skipped);
                match unwanted || step.condition == Some(false) {
                    true => self.states[position] = State::Skipped,
                    // A sleep is as much longer.
                    false if step.delay && step.kind != Kind::Sleep => self.states[position] = State::Delayed,
                    false => self.begin(position),
                }
            }
            if self.states[position] == State::Awaits && self.signalled[position] {
                self.states[position] = State::Complete;
            }
            let (total, tolerate) = match step.kind {
                Kind::Each(count, tolerate) => (count, tolerate),
                Kind::Workflow => (1, 0),
                _ => continue,
            };
            let (complete, dead) = self.children[position];
            if self.states[position] == State::Open && complete + dead == total && dead <= tolerate {
                self.states[position] = State::Complete;
            }
        }
    }

    fn begin(&mut self, position: usize) {
        self.states[position] = match self.graph[position].kind {
            Kind::Sleep => State::Asleep,
            Kind::Wait(_) => State::Awaits,
            Kind::Handler | Kind::Each(..) | Kind::Workflow => State::Open,
        };
    }

    fn time_passes(&mut self) {
        for (position, step) in self.graph.iter().enumerate() {
            match (self.states[position], step.kind) {
                (State::Delayed, _) => self.begin(position),
                (State::Asleep, _) => self.states[position] = State::Complete,
                (State::Awaits, Kind::Wait(Some(true))) => self.states[position] = State::Skipped,
                (State::Awaits, Kind::Wait(Some(false))) => self.states[position] = State::Dead,
                _ => {}
            }
        }
        self.settle();
    }

    fn ends(&mut self, place: &Place, complete: bool) {
        match place {
            Place::Root(step) => self.states[*step] = if complete { State::Complete } else { State::Dead },
            Place::Child(step) if complete => self.children[*step].0 += 1,
            Place::Child(step) => self.children[*step].1 += 1,
        }
        self.settle();
    }

    /// More of its children are dead than may be.
    fn is_overwhelmed(&self, position: usize) -> bool {
        let (_, dead) = self.children[position];
        match self.graph[position].kind {
            Kind::Each(_, tolerate) => dead > tolerate,
            _ => dead > 0,
        }
    }
}

/// What a leased step is.
enum Place {
    Root(usize),
    /// The only step of a child of this one.
    Child(usize),
}

async fn place(world: &World, root: Uuid, step: &Leased) -> Place {
    if step.task_id == root {
        return Place::Root(step.step as usize);
    }
    let parent = format!("SELECT parent_step::bigint FROM tasker.tasks WHERE id = '{}'", step.task_id);
    Place::Child(world.count(&parent).await as usize)
}

const ROUND: [&str; 6] = [
    "SELECT tasker.match_signals(100)::bigint",
    "SELECT tasker.end_sleeps(100)::bigint",
    "SELECT enqueued::bigint FROM tasker.enqueue_due_retries(100)",
    "SELECT tasker.tally_children(1000)::bigint",
    "SELECT moved::bigint FROM tasker.move_fan_outs(2)",
    "SELECT coalesce(sum(claimed), 0)::bigint FROM tasker.claim_tasks($1, NULL, 1000000, 10000)",
];

/// What orchestrators do, until nothing is left to do.
async fn settle(world: &World) {
    let round = format!("SELECT ({})", ROUND.join(") + (")).replace("$1", &world.orchestrator.to_string());
    // Twice, as what a round begins without a word may be for one that it has asked already.
    let mut quiet = 0;
    while quiet < 2 {
        quiet = if world.count(&round).await == 0 { quiet + 1 } else { 0 };
    }
}

async fn later(world: &World) {
    for column in ["retry_at", "wakes_at"] {
        world
            .run(&format!("UPDATE tasker.steps SET {column} = now() WHERE {column} < 'infinity'"))
            .await;
    }
    world
        .run(
            "UPDATE tasker.waits SET look_at = now(), times_out_at = CASE WHEN times_out_at IS NOT NULL THEN now() END WHERE look_at IS NOT NULL;
             UPDATE tasker.fan_outs SET look_at = now() WHERE look_at > now()",
        )
        .await;
    settle(world).await;
}

async fn send(world: &World, root: Uuid, position: usize) {
    let signal = Signal {
        to: Addressee::Task(root),
        name: format!("s{position}"),
        payload: json!(position).to_string(),
        id: Some("once".into()),
        keep: None,
    };
    signals::send(&world.db, &signal).await.expect("it is sent");
}

async fn run(world: &World, graph: &[Step], events: &[Event]) {
    world
        .register("name: leaf\nnamespace: here\nsteps: [{ name: only, handler: H, retry: { max_attempts: 3 } }]\n")
        .await;
    let steps: String = graph.iter().enumerate().map(|(position, step)| step.yaml(position)).collect();
    world.register(&format!("name: random\nnamespace: here\nsteps:\n{steps}")).await;
    let input = json!({ "true": true, "false": false, "of0": [], "of1": [1], "of2": [1, 2], "of3": [1, 2, 3] });
    let root = world.submit("random", input).await;
    settle(world).await;

    let mut model = Model::of(graph);
    let mut held: Vec<Leased> = Vec::new();
    let mut paused = false;
    // After what is to happen, whatever can still come to an end does.
    let ends = [Event::Resume]
        .into_iter()
        .chain((0..=u8::MAX).flat_map(|n| [Event::Complete(n), Event::Signal(n), Event::Time]));
    let mut at_the_end = 0;
    for (number, event) in events.iter().cloned().chain(ends).enumerate() {
        let leased = world.lease("here_queue", 1000).await;
        assert!(!paused || leased.is_empty(), "a step of a paused task was leased");
        for step in &leased {
            let state = match place(world, root, step).await {
                Place::Root(position) | Place::Child(position) => model.states[position],
            };
            assert_eq!(state, State::Open, "{} was leased too early, or again", step.name);
            let failures = model.failures.get(&(step.task_id, step.step)).copied().unwrap_or_default();
            assert_eq!(step.attempt as usize, failures + 1);
        }
        held.extend(leased);
        let before = model.states.clone();
        let pick = |n: u8| usize::from(n) % held.len();
        match event {
            Event::Complete(n) if !held.is_empty() => {
                let step = held.swap_remove(pick(n));
                assert_eq!(world.complete(std::slice::from_ref(&step), "1").await.len(), 1);
                model.ends(&place(world, root, &step).await, true);
                assert!(world.complete(&[step], "1").await.is_empty(), "it counted twice");
            }
            Event::FailForNow(n) if !held.is_empty() => {
                let step = held.swap_remove(pick(n));
                assert!(world.fail(&step, "not now", false, Some(0.0)).await);
                let failures = model.failures.entry((step.task_id, step.step)).or_default();
                *failures += 1;
                if *failures == ATTEMPTS {
                    model.ends(&place(world, root, &step).await, false);
                }
            }
            Event::FailForGood(n) if !held.is_empty() => {
                let step = held.swap_remove(pick(n));
                assert!(world.fail(&step, "never", true, None).await);
                model.ends(&place(world, root, &step).await, false);
            }
            Event::Crash(n) if !held.is_empty() => world.expire(&held.swap_remove(pick(n))).await,
            Event::Signal(n) => {
                let position = usize::from(n) % graph.len();
                if matches!(graph[position].kind, Kind::Wait(_)) {
                    send(world, root, position).await;
                    model.signalled[position] = true;
                    model.settle();
                }
            }
            // What is paused has not begun to wait, perhaps.
            Event::Time if !paused => {
                later(world).await;
                model.time_passes();
            }
            Event::Pause => {
                paused = true;
                world.run(&format!("SELECT tasker.pause('task', '{root}', 'test', NULL)")).await;
            }
            Event::Resume => {
                paused = false;
                world.run(&format!("SELECT tasker.resume('task', '{root}')")).await;
            }
            Event::CrashOfTheOrchestrator => {
                let round = ROUND.join("; ").replace("$1", &world.orchestrator.to_string());
                world.run(&format!("BEGIN; {round}; ROLLBACK")).await;
            }
            Event::Reconcile => assert_eq!(world.reconcile().await, 0, "nothing has drifted"),
            _ => {}
        }
        settle(world).await;
        if number > events.len() {
            at_the_end = if before == model.states && held.is_empty() {
                at_the_end + 1
            } else {
                0
            };
            if at_the_end > 3 * graph.len() + 3 {
                break;
            }
        }
    }

    let stands_still = |position: usize| {
        let above = graph[position]
            .parents()
            .any(|parent| !matches!(model.states[parent], State::Complete | State::Skipped));
        (model.states[position] == State::Pending && above) || (model.states[position] == State::Open && model.is_overwhelmed(position))
    };
    let seen = world.step_states(root).await;
    for (position, state) in model.states.iter().enumerate() {
        let expected = match state {
            State::Complete => "complete",
            State::Skipped => "skipped",
            State::Dead => "dead",
            _ => {
                assert!(
                    stands_still(position),
                    "s{position} could go on and did not: {state:?}, {}",
                    seen[position]
                );
                continue;
            }
        };
        assert_eq!(seen[position], expected, "s{position}");
    }
    let troubled = (0..graph.len()).any(|position| model.states[position] == State::Dead || model.is_overwhelmed(position));
    let task = world.task(root).await;
    assert_eq!(task["state"], if troubled { "blocked" } else { "complete" });
    for (position, step) in graph.iter().enumerate() {
        let result = &task["steps"][position]["result"];
        match step.kind {
            Kind::Wait(_) if model.states[position] == State::Complete => assert_eq!(*result, json!(position)),
            Kind::Each(count, _) if model.states[position] == State::Complete => {
                assert_eq!(*result, json!({ "size": count, "errors": model.children[position].1 }));
            }
            Kind::Sleep => assert_eq!(*result, Value::Null),
            _ => {}
        }
    }
    assert_eq!(
        world.count("SELECT count(*) FROM pgmq.q_here_queue").await,
        0,
        "a message is left over"
    );
    assert_eq!(world.reconcile().await, 0, "nothing has drifted");
}

#[test]
fn any_graph_of_steps_of_all_kinds_ends_by_its_rules() {
    World::for_any(40, (graphs(), events()), async |world, (graph, events)| {
        run(world, graph, events).await
    });
}
