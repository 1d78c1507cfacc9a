use ratatui::crossterm::event::KeyCode;
use serde_json::json;
use uuid::Uuid;

use super::reader::{Known, Verb, Wanted};
use super::view::View;
use crate::engine::read::TaskFilter;
use crate::engine::reasons::Reason;

fn task() -> Uuid {
    "0195f1c2-7d6a-7c3e-9f53-6b8f3f0c1a2b".parse().unwrap()
}

fn known() -> Known {
    Known {
        fleet: json!({ "asleep": 3, "unhandled": [{ "namespace": "shop", "handler": "Pack" }], "namespaces": {
            "bank": { "workers": 1, "pressure": { "state": "normal" } }, "shop": { "workers": 0, "pressure": { "state": "critical" }, "backlog": { "high": { "pending": 7 } } } } }),
        minutes: (0..60).map(|minute| json!({ "completed": minute, "failed": 0 })).collect(),
        groups: vec![
            json!({ "count": 9, "template": "order", "step": "charge", "class": "Declined", "message": "no\u{202e} funds\u{1b}[2J" }),
        ],
        tasks: vec![json!({ "id": task(), "namespace": "shop", "template": "order", "state": "blocked" })],
        task: json!({ "namespace": "shop", "template": "order", "state": "blocked", "steps": [{ "name": "charge", "state": "dead", "attempt": 1, "max_attempts": 5 }] }),
        reasons: vec![Reason {
            step: Some("charge".into()),
            why: "It is dead after 1 of 5 attempts.".into(),
        }],
        ..Known::default()
    }
}

fn picture(view: &mut View) -> String {
    super::picture(view, &known()).unwrap()
}

#[test]
fn the_first_picture_has_the_namespaces_and_what_needs_a_person() {
    let shown = picture(&mut View::default());
    for expected in [
        "3 more asleep",
        "completed a minute: 59",
        "shop",
        "critical",
        "9 dead of order, step charge: Declined: no\\u{202e} funds\\u{1b}[2J",
        "no worker of shop has the handler Pack",
    ] {
        assert!(shown.contains(expected), "{expected}\n{shown}");
    }
}

#[test]
fn keys_lead_from_a_namespace_to_its_tasks_to_one_of_them_and_back() {
    let (mut view, known) = (View::default(), known());
    picture(&mut view);
    view.press(KeyCode::Down, &known);
    view.press(KeyCode::Enter, &known);
    let tasks = |state: Option<&str>| {
        Wanted::Tasks(TaskFilter {
            state: state.map(str::to_owned),
            namespace: Some("shop".into()),
            ..TaskFilter::default()
        })
    };
    assert_eq!(view.wanted(), tasks(None));
    view.press(KeyCode::Char('s'), &known);
    assert_eq!(view.wanted(), tasks(Some("blocked")));
    assert!(picture(&mut view).contains("tasks: blocked, shop"));
    view.press(KeyCode::Enter, &known);
    assert_eq!(view.wanted(), Wanted::Task(task()));
    let shown = picture(&mut view);
    assert!(
        shown.contains("charge: It is dead after 1 of 5 attempts.") && shown.contains("r replay"),
        "{shown}"
    );
    view.press(KeyCode::Backspace, &known);
    assert_eq!(view.wanted(), tasks(Some("blocked")));
}

#[test]
fn a_group_of_dead_letters_leads_to_its_tasks() {
    let (mut view, known) = (View::default(), known());
    view.press(KeyCode::Char('3'), &known);
    picture(&mut view);
    view.press(KeyCode::Enter, &known);
    let expected = TaskFilter {
        template: Some("order".into()),
        error: Some("Declined".into()),
        ..TaskFilter::default()
    };
    assert_eq!(view.wanted(), Wanted::Tasks(expected));
    assert!(picture(&mut view).contains("tasks: in all states, of all namespaces, order, dead of Declined"));
}

#[test]
fn nothing_is_done_to_a_task_before_it_is_confirmed() {
    let (mut view, known) = (View::default(), known());
    view.press(KeyCode::Char('2'), &known);
    view.press(KeyCode::Enter, &known);
    assert_eq!(view.press(KeyCode::Char('c'), &known), None);
    assert!(picture(&mut view).contains("y: do it"));
    assert_eq!(view.press(KeyCode::Char('n'), &known), None);
    assert_eq!(view.press(KeyCode::Char('y'), &known), None);
    view.press(KeyCode::Char('r'), &known);
    assert_eq!(view.press(KeyCode::Char('y'), &known), Some(Verb::Replay(task())));
}
