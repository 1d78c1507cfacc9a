//! How values are shown: states, times, lengths of time, JSON.

use chrono::{DateTime, Utc};
use maud::{html, Markup};
use percent_encoding::{utf8_percent_encode, NON_ALPHANUMERIC};
use serde_json::Value;

/// How many characters of one value a page shows.
const SHOWN: usize = 20_000;

pub(super) fn text<'v>(of: &'v Value, name: &str) -> &'v str {
    of[name].as_str().unwrap_or_default()
}

pub(super) fn number(of: &Value, name: &str) -> i64 {
    of[name]
        .as_i64()
        .or_else(|| of[name].as_f64().map(|number| number as i64))
        .unwrap_or_default()
}

pub(super) fn list<'v>(of: &'v Value, name: &str) -> &'v [Value] {
    of[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn time(of: &Value) -> Option<DateTime<Utc>> {
    of.as_str()?.parse().ok()
}

/// The class of a state, by which the stylesheet has its colour: several states have one.
pub(super) fn class(state: &str) -> &'static str {
    match state {
        "complete" | "added" | "current" => "good",
        "running" | "in_progress" => "busy",
        "dead" | "blocked" | "failed" | "open" | "critical" | "removed" => "bad",
        "changed" | "stopped" | "waiting" | "waiting_retry" | "paused" | "cancelling" | "undoing" | "half_open" | "warning" => "slow",
        _ => "still",
    }
}

pub(super) fn badge(state: &str) -> Markup {
    html! { span class={ "badge " (class(state)) } { (state.replace('_', " ")) } }
}

/// A moment, to the second.
pub(super) fn moment(of: &Value) -> Markup {
    html! {
        @match time(of) {
            Some(at) => { time datetime=(at.to_rfc3339()) { (at.format("%Y-%m-%d %H:%M:%S")) } }
            None => { span.none { "–" } }
        }
    }
}

/// In its largest units: `1.2 s`, `3 m 20 s`, `2 h 5 m`, `4 d 3 h`.
pub(super) fn length(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 if seconds < 0.0995 => format!("{:.0} ms", seconds.max(0.0) * 1000.0),
        0..=59 => format!("{seconds:.1} s"),
        60..=3_599 => format!("{} m {} s", whole / 60, whole % 60),
        3_600..=86_399 => format!("{} h {} m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

pub(super) fn seconds(of: &Value) -> Markup {
    html! {
        @match of.as_f64() {
            Some(seconds) => (length(seconds)),
            None => { span.none { "–" } }
        }
    }
}

/// With commas between thousands; what was counted no further says so.
pub(super) fn count(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if n < 0 {
        format!("-{grouped}")
    } else {
        grouped
    }
}

/// The same, of what is counted to `most`.
pub(super) fn count_to(n: i64, most: i64) -> String {
    if n >= most {
        format!("{}+", count(n))
    } else {
        count(n)
    }
}

/// Indented JSON; of more than some thousand characters, the first.
pub(super) fn json(value: &Value) -> Markup {
    let whole = serde_json::to_string_pretty(value).unwrap_or_default();
    cut(&whole)
}

pub(super) fn cut(whole: &str) -> Markup {
    let shown: String = whole.chars().take(SHOWN).collect();
    let left = whole.len() - shown.len();
    html! {
        pre tabindex="0" { (visible(&shown)) }
        @if left > 0 { p.note { (count(left as i64)) " more bytes: the API has them." } }
    }
}

/// With control characters, and those that turn the direction of writing, as what they are: a payload cannot pretend to be something else.
pub(crate) fn visible(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_hidden(c) {
            true => shown.push_str(&format!("\\u{{{:x}}}", c as u32)),
            false => shown.push(c),
        }
    }
    shown
}

/// The first characters of a line.
pub(super) fn short(text: &str, most: usize) -> String {
    let line = visible(text.lines().next().unwrap_or_default());
    match line.chars().count() > most {
        true => format!("{}…", line.chars().take(most - 1).collect::<String>()),
        false => line,
    }
}

/// What a field of a form says; None: nothing.
pub(super) fn filled(field: &str) -> Option<String> {
    Some(field.trim()).filter(|field| !field.is_empty()).map(str::to_owned)
}

/// As a part of a path, or of a query.
pub(super) fn part(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// `name=value` of a query, joined, without those that are empty.
pub(super) fn query<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> String {
    let pairs: Vec<String> = pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", part(value)))
        .collect();
    match pairs.is_empty() {
        true => String::new(),
        false => format!("?{}", pairs.join("&")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_shown_as_what_it_is() {
        assert_eq!(visible("a\u{202e}b\u{0}c\n"), "a\\u{202e}b\\u{0}c\n");
        assert_eq!(short("eleven letters", 11), "eleven let…");
        assert_eq!(query([("a", "x y&"), ("b", "")]), "?a=x%20y%26");
    }

    #[test]
    fn lengths_and_counts_are_as_people_read_them() {
        assert_eq!(
            [0.004, 1.24, 200.0, 7_500.0, 360_000.0].map(length),
            ["4 ms", "1.2 s", "3 m 20 s", "2 h 5 m", "4 d 4 h"]
        );
        assert_eq!([7, 1_234, 1_234_567].map(count), ["7", "1,234", "1,234,567"]);
        assert_eq!(count_to(10_000, 10_000), "10,000+");
    }
}
