//! What is on the screen.

use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table, Wrap};
use ratatui::Frame;

use super::reader::{Known, Wanted};
use super::view::View;
use crate::cli::field;
use crate::web::visible;

const KEYS: &str = "1 fleet  2 tasks  3 dead letters  ↑↓ choose  ⏎ open  ⌫ back  q quit";

impl View {
    pub(super) fn draw(&mut self, frame: &mut Frame, known: &Known) {
        let [head, body, foot] = Layout::vertical([Constraint::Length(1), Constraint::Min(5), Constraint::Length(1)]).areas(frame.area());
        frame.render_widget(self.head(), head);
        match self.wanted {
            Wanted::Fleet => self.fleet(frame, body, known),
            Wanted::Tasks(_) => self.list(frame, body, known),
            Wanted::Task(_) => self.task(frame, body, known),
            Wanted::Letters => self.letters(frame, body, known),
        }
        let foot_line = match (&self.asked, &known.said) {
            (Some(verb), _) => Line::from(format!("{verb:?}? y: do it, any other key: do not")).yellow().bold(),
            (None, Some(said)) => Line::from(visible(said)).yellow(),
            (None, None) => Line::from(self.keys()).dim(),
        };
        frame.render_widget(foot_line, foot);
    }

    fn keys(&self) -> String {
        match self.wanted {
            Wanted::Tasks(_) => format!("s state  {KEYS}"),
            Wanted::Task(_) => format!("r replay  p pause  u resume  c cancel  {KEYS}"),
            _ => KEYS.into(),
        }
    }

    fn head(&self) -> Line<'static> {
        let what = match &self.wanted {
            Wanted::Fleet => "what goes on".to_owned(),
            Wanted::Tasks(filter) => {
                let of = |name: &Option<String>, all: &str| name.as_deref().map_or_else(|| all.into(), visible);
                let (state, namespace) = (of(&filter.state, "in all states"), of(&filter.namespace, "of all namespaces"));
                match &filter.error {
                    Some(error) => format!(
                        "tasks: {state}, {namespace}, {}, dead of {}",
                        of(&filter.template, ""),
                        visible(error)
                    ),
                    None => format!("tasks: {state}, {namespace}"),
                }
            }
            Wanted::Task(id) => format!("task {id}"),
            Wanted::Letters => "dead letters by error".into(),
        };
        Line::from(vec!["tasker ".bold(), Span::from(what)])
    }

    fn fleet(&mut self, frame: &mut Frame, area: Rect, known: &Known) {
        let needs = needs(known);
        let heights = [
            Constraint::Length(5),
            Constraint::Min(6),
            Constraint::Length((needs.len() as u16 + 2).min(14)),
        ];
        let [charts, namespaces, needed] = Layout::vertical(heights).areas(area);
        let [completed, failed] = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(charts);
        for (place, name, title, colour) in [
            (completed, "completed", "steps completed a minute", Color::Green),
            (failed, "failed", "attempts failed a minute", Color::Red),
        ] {
            let values: Vec<u64> = known
                .minutes
                .iter()
                .map(|minute| minute[name].as_f64().unwrap_or_default() as u64)
                .collect();
            let title = format!(" {title}: {} ", values.last().copied().unwrap_or_default());
            let block = Block::bordered().title(title);
            let room = usize::from(block.inner(place).width);
            let newest = values[values.len().saturating_sub(room)..].to_vec();
            frame.render_widget(Sparkline::default().data(newest).style(colour).block(block), place);
        }
        let none = serde_json::Map::new();
        let rows = known.fleet["namespaces"].as_object().unwrap_or(&none).iter().map(|(name, of)| {
            let pending: i64 = of["backlog"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(_, lane)| lane["pending"].as_i64())
                .sum();
            let rate = of["rates"]["1m"]["completed"].as_f64().unwrap_or_default();
            let state = field(&of["pressure"], "state");
            let cells = [
                visible(name),
                state.clone(),
                pending.to_string(),
                field(&of["queue"], "depth"),
                of["queue"]["oldest_seconds"]
                    .as_f64()
                    .map_or_else(|| "-".into(), |oldest| format!("{oldest:.1} s")),
                format!("{rate:.1}"),
                field(of, "workers"),
                field(&of["dead_letters"], "depth"),
            ];
            Row::new(cells).style(colour(&state))
        });
        let headings = ["NAMESPACE", "STATE", "PENDING", "QUEUED", "OLDEST", "STEPS/S", "WORKERS", "DEAD"];
        let widths = [
            Constraint::Min(16),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(7),
        ];
        let asleep = known.fleet["asleep"].as_i64().unwrap_or_default();
        let title = format!(" namespaces, {asleep} more asleep ");
        self.table(frame, namespaces, rows.collect(), &headings, &widths, title);
        let needed_text: Vec<Line> = needs.into_iter().map(Line::from).collect();
        frame.render_widget(
            Paragraph::new(needed_text).block(Block::bordered().title(" what needs a person ")),
            needed,
        );
    }

    fn list(&mut self, frame: &mut Frame, area: Rect, known: &Known) {
        let rows = known.tasks.iter().map(|task| {
            let cells = ["id", "namespace", "template", "state", "priority", "created_at"].map(|name| visible(&field(task, name)));
            let style = colour(&cells[3]);
            Row::new(cells).style(style)
        });
        let widths = [
            Constraint::Length(36),
            Constraint::Min(12),
            Constraint::Min(12),
            Constraint::Length(11),
            Constraint::Length(9),
            Constraint::Length(32),
        ];
        let headings = ["ID", "NAMESPACE", "TEMPLATE", "STATE", "PRIORITY", "CREATED"];
        self.table(frame, area, rows.collect(), &headings, &widths, " the newest ".into());
    }

    fn task(&mut self, frame: &mut Frame, area: Rect, known: &Known) {
        let task = &known.task;
        let reasons: Vec<Line> = known
            .reasons
            .iter()
            .map(|reason| {
                Line::from(visible(&format!(
                    "{}{}",
                    reason.step.as_ref().map_or_else(String::new, |step| format!("{step}: ")),
                    reason.why
                )))
            })
            .collect();
        let heights = [
            Constraint::Length(4),
            Constraint::Length((reasons.len() as u16 + 2).clamp(3, 12)),
            Constraint::Min(6),
        ];
        let [about, why, steps] = Layout::vertical(heights).areas(area);
        let line = |names: &[&str]| {
            names
                .iter()
                .map(|name| format!("{name} {}", visible(&field(task, name))))
                .collect::<Vec<_>>()
                .join("   ")
        };
        let facts = vec![
            Line::from(line(&["namespace", "template", "version", "state", "priority", "key"])),
            Line::from(line(&["created_at", "started_at", "finished_at"])),
        ];
        frame.render_widget(Paragraph::new(facts).block(Block::bordered().title(" about ")), about);
        frame.render_widget(
            Paragraph::new(reasons)
                .wrap(Wrap { trim: true })
                .block(Block::bordered().title(" why is this not running? ")),
            why,
        );
        let rows = task["steps"].as_array().into_iter().flatten().map(|step| {
            let error = step["errors"].as_array().and_then(|errors| errors.last());
            let error = error.map_or_else(
                || "-".into(),
                |error| format!("{}: {}", field(error, "class"), field(error, "message")),
            );
            let attempt = format!("{}/{}", field(step, "attempt"), field(step, "max_attempts"));
            let state = field(step, "state");
            Row::new([
                visible(&field(step, "name")),
                state.clone(),
                attempt,
                visible(&field(step, "worker")),
                visible(&error),
            ])
            .style(colour(&state))
        });
        let widths = [
            Constraint::Min(16),
            Constraint::Length(14),
            Constraint::Length(8),
            Constraint::Length(20),
            Constraint::Min(30),
        ];
        self.table(
            frame,
            steps,
            rows.collect(),
            &["STEP", "STATE", "ATTEMPT", "WORKER", "LAST ERROR"],
            &widths,
            " steps ".into(),
        );
    }

    fn letters(&mut self, frame: &mut Frame, area: Rect, known: &Known) {
        let rows = known.groups.iter().map(|group| {
            Row::new(["count", "namespace", "template", "step", "reason", "class", "message"].map(|name| visible(&field(group, name))))
        });
        let widths = [
            Constraint::Length(8),
            Constraint::Length(14),
            Constraint::Length(18),
            Constraint::Length(14),
            Constraint::Length(18),
            Constraint::Length(18),
            Constraint::Min(20),
        ];
        let headings = ["COUNT", "NAMESPACE", "TEMPLATE", "STEP", "REASON", "CLASS", "LAST MESSAGE"];
        self.table(frame, area, rows.collect(), &headings, &widths, " by error ".into());
    }

    fn table(&mut self, frame: &mut Frame, area: Rect, rows: Vec<Row>, headings: &[&'static str], widths: &[Constraint], title: String) {
        let chosen = self.rows.selected().unwrap_or_default().min(rows.len().saturating_sub(1));
        self.rows.select(Some(chosen).filter(|_| !rows.is_empty()).or(Some(0)));
        let table = Table::new(rows, widths.to_vec())
            .header(Row::new(headings.to_vec()).style(Style::new().add_modifier(Modifier::DIM)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::bordered().title(title));
        frame.render_stateful_widget(table, area, &mut self.rows);
    }
}

fn colour(state: &str) -> Style {
    match state {
        "dead" | "blocked" | "failed" | "critical" => Style::new().fg(Color::Red),
        "waiting" | "waiting_retry" | "paused" | "warning" | "cancelling" | "undoing" => Style::new().fg(Color::Yellow),
        "in_progress" | "running" => Style::new().fg(Color::Cyan),
        "complete" => Style::new().fg(Color::Green),
        _ => Style::new(),
    }
}

/// In a sentence each.
fn needs(known: &Known) -> Vec<String> {
    let letters = known.groups.iter().map(|group| {
        format!(
            "{} dead of {}, step {}: {}: {}",
            field(group, "count"),
            field(group, "template"),
            field(group, "step"),
            field(group, "class"),
            field(group, "message")
        )
    });
    let pauses = known.pauses.iter().map(|pause| {
        format!(
            "the {} {} is paused by {}: {}",
            field(pause, "kind"),
            field(pause, "name"),
            field(pause, "who"),
            field(pause, "why")
        )
    });
    let unhandled = known.fleet["unhandled"].as_array().into_iter().flatten();
    let unhandled = unhandled.map(|step| {
        format!(
            "no worker of {} has the handler {}",
            field(step, "namespace"),
            field(step, "handler")
        )
    });
    let broken = known.fleet["broken_queues"].as_object().into_iter().flatten();
    let broken = broken.map(|(queue, of)| format!("the queue {queue} cannot be worked with: {}", field(of, "why")));
    let all: Vec<String> = letters
        .chain(pauses)
        .chain(unhandled)
        .chain(broken)
        .map(|need| visible(&need))
        .collect();
    match all.is_empty() {
        true => vec!["nothing".into()],
        false => all,
    }
}
