//! Tables: a row for each entry, bounded.

use maud::{html, Markup};
use serde_json::Value;

use super::shown::{count, short};

/// How many rows a table has.
const MOST: usize = 500;

/// A table of these columns, with a row for each entry.
pub(super) fn table<E>(label: &str, columns: &[&str], rows: &[E], cells: impl Fn(&E) -> Vec<Markup>) -> Markup {
    html! {
        @if rows.is_empty() { p.none { "There is none." } }
        @else {
            div.scroll tabindex="0" role="group" aria-label=(label) {
                table {
                    thead { tr { @for column in columns { th scope="col" { (column) } } } }
                    tbody {
                        @for row in rows.iter().take(MOST) {
                            tr { @for (place, cell) in cells(row).into_iter().enumerate() { @if place == 0 { th scope="row" { (cell) } } @else { td { (cell) } } } }
                        }
                    }
                }
            }
            @if rows.len() > MOST { p.note { "The first " (MOST) " of " (count(rows.len() as i64)) "; the API has all." } }
        }
    }
}

pub(super) fn written(text: impl Into<String>) -> Markup {
    let text = text.into();
    html! { (text) }
}

/// What was set: a text as it is, anything else as JSON; null: nothing was.
pub(super) fn value(of: &Value) -> Markup {
    html! {
        @match of {
            Value::Null => span.none { "–" },
            Value::String(text) => code { (short(text, 120)) },
            other => code { (short(&other.to_string(), 120)) },
        }
    }
}
