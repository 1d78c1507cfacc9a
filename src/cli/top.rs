//! `tasker top`: what goes on, at a terminal.

mod draw;
mod reader;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod view;

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use tokio::sync::{mpsc, watch};

use super::{say, Connection};
use crate::error::{Error, Result};
use reader::{Known, Reader, Verb, Wanted};
use view::View;

/// How often keys are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Of a picture that is printed.
const SIZE: (u16, u16) = (120, 40);

#[derive(Args)]
pub(super) struct Top {
    /// Print one picture, and end: also where there is no terminal
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Top {
    pub(super) async fn run(self) -> Result<i32> {
        let reader = Reader::new(self.connection.reach()?);
        let mut view = View::default();
        if self.once || !std::io::stdout().is_terminal() {
            let known = reader.read(&view.wanted()).await?;
            say(&picture(&mut view, &known)?);
            return Ok(0);
        }
        let (wanted, wants) = watch::channel(view.wanted());
        let (known, mut news) = watch::channel(Known::default());
        let (act, acts) = mpsc::channel(8);
        let reading = tokio::spawn(reader.run(wants, acts, known));
        let done = tokio::task::block_in_place(|| {
            let terminal = ratatui::try_init().map_err(|source| cannot("cannot use this terminal", source))?;
            let done = look(terminal, &mut view, &wanted, &mut news, &act);
            ratatui::restore();
            done
        });
        reading.abort();
        done.map(|()| 0)
    }
}

fn cannot(what: &str, source: std::io::Error) -> Error {
    Error::System { what: what.into(), source }
}

/// Until somebody has seen enough.
fn look(
    mut terminal: DefaultTerminal,
    view: &mut View,
    wanted: &watch::Sender<Wanted>,
    news: &mut watch::Receiver<Known>,
    act: &mpsc::Sender<Verb>,
) -> Result<()> {
    loop {
        let known = news.borrow_and_update().clone();
        terminal
            .draw(|frame| view.draw(frame, &known))
            .map_err(|source| cannot("cannot draw on this terminal", source))?;
        if !event::poll(TICK).map_err(|source| cannot("cannot read keys", source))? {
            continue;
        }
        let key = match event::read().map_err(|source| cannot("cannot read keys", source))? {
            Event::Key(key) if key.kind != KeyEventKind::Release => key,
            _ => continue,
        };
        let is_interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if is_interrupted || key.code == KeyCode::Char('q') {
            return Ok(());
        }
        if let Some(verb) = view.press(key.code, &known) {
            act.try_send(verb).ok();
        }
        wanted.send_if_modified(|before| {
            let now = view.wanted();
            let is_new = *before != now;
            *before = now;
            is_new
        });
    }
}

/// As text.
fn picture(view: &mut View, known: &Known) -> Result<String> {
    let draws = |error: &dyn std::fmt::Display| Error::Invalid(format!("the picture cannot be drawn: {error}"));
    let mut terminal = Terminal::new(TestBackend::new(SIZE.0, SIZE.1)).map_err(|error| draws(&error))?;
    terminal.draw(|frame| view.draw(frame, known)).map_err(|error| draws(&error))?;
    let buffer = terminal.backend().buffer();
    let line = |row: u16| {
        let cells = (0..SIZE.0).filter_map(|column| buffer.cell((column, row)).map(|cell| cell.symbol()));
        cells.collect::<String>().trim_end().to_owned()
    };
    Ok((0..SIZE.1).map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned())
}
