//! Where somebody is, and where keys lead.

use ratatui::crossterm::event::KeyCode;
use ratatui::widgets::TableState;

use super::reader::{Known, Verb, Wanted};
use crate::cli::field;
use crate::engine::read::TaskFilter;

/// The states by which tasks are listed, one after the other.
const STATES: [Option<&str>; 7] = [
    None,
    Some("blocked"),
    Some("running"),
    Some("waiting"),
    Some("pending"),
    Some("paused"),
    Some("failed"),
];

/// Where somebody is.
#[derive(Debug)]
pub(super) struct View {
    pub(super) wanted: Wanted,
    before: Vec<Wanted>,
    pub(super) rows: TableState,
    state: usize,
    /// What is done once it is confirmed.
    pub(super) asked: Option<Verb>,
}

impl Default for View {
    fn default() -> View {
        View {
            wanted: Wanted::Fleet,
            before: Vec::new(),
            rows: TableState::default().with_selected(0),
            state: 0,
            asked: None,
        }
    }
}

impl View {
    pub(super) fn wanted(&self) -> Wanted {
        self.wanted.clone()
    }

    /// What a key asks to be done, once it was confirmed.
    pub(super) fn press(&mut self, key: KeyCode, known: &Known) -> Option<Verb> {
        if let Some(verb) = self.asked.take() {
            return Some(verb).filter(|_| key == KeyCode::Char('y'));
        }
        match key {
            KeyCode::Char('1') => self.go(Wanted::Fleet),
            KeyCode::Char('2') => self.go(self.tasks(TaskFilter::default())),
            KeyCode::Char('3') => self.go(Wanted::Letters),
            KeyCode::Down | KeyCode::Char('j') => self.rows.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.rows.select_previous(),
            KeyCode::Enter => self.open(known),
            KeyCode::Backspace | KeyCode::Esc | KeyCode::Left => {
                if let Some(before) = self.before.pop() {
                    self.show(before);
                }
            }
            KeyCode::Char('s') => {
                if let Wanted::Tasks(filter) = &self.wanted {
                    let filter = filter.clone();
                    self.state = (self.state + 1) % STATES.len();
                    self.show(self.tasks(filter));
                }
            }
            KeyCode::Char(letter) => {
                if let Wanted::Task(id) = self.wanted {
                    self.asked = match letter {
                        'c' => Some(Verb::Cancel(id)),
                        'p' => Some(Verb::Pause(id)),
                        'u' => Some(Verb::Resume(id)),
                        'r' => Some(Verb::Replay(id)),
                        _ => None,
                    };
                }
            }
            _ => {}
        }
        None
    }

    fn tasks(&self, filter: TaskFilter) -> Wanted {
        Wanted::Tasks(TaskFilter {
            state: STATES[self.state].map(str::to_owned),
            ..filter
        })
    }

    fn go(&mut self, to: Wanted) {
        let before = self.wanted.clone();
        if before != to {
            self.before.push(before);
            self.show(to);
        }
    }

    fn show(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        self.rows.select(Some(0));
    }

    fn open(&mut self, known: &Known) {
        let at = self.rows.selected().unwrap_or_default();
        match &self.wanted {
            Wanted::Fleet => {
                let namespace = known.fleet["namespaces"].as_object().and_then(|all| all.keys().nth(at)).cloned();
                self.go(self.tasks(TaskFilter {
                    namespace,
                    ..TaskFilter::default()
                }));
            }
            Wanted::Letters => {
                if let Some(group) = known.groups.get(at) {
                    let of = |name: &str| group[name].as_str().map(str::to_owned);
                    self.state = 0;
                    self.go(self.tasks(TaskFilter {
                        namespace: of("namespace"),
                        template: of("template"),
                        error: of("class"),
                        ..TaskFilter::default()
                    }));
                }
            }
            Wanted::Tasks(_) => {
                if let Some(id) = known.tasks.get(at).and_then(|task| field(task, "id").parse().ok()) {
                    self.go(Wanted::Task(id));
                }
            }
            Wanted::Task(_) => {}
        }
    }
}
