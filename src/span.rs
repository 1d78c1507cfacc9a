//! A length of time as people write it, in templates and in settings: 30, 1.5, "30s", "1h 30m".

use std::time::Duration;

use serde::Deserialize;

/// The bound keeps every sum in range.
pub(crate) const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// What is written.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Span {
    Seconds(f64),
    Text(String),
}

impl Span {
    /// None: it is no length of time, or longer than [`LONGEST`].
    pub(crate) fn read(&self) -> Option<Duration> {
        let read = match self {
            Span::Seconds(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Span::Text(text) => humantime::parse_duration(text).ok(),
        };
        read.filter(|span| *span <= LONGEST)
    }

    pub(crate) fn written(&self) -> String {
        match self {
            Span::Seconds(seconds) => seconds.to_string(),
            Span::Text(text) => format!("{text:?}"),
        }
    }
}

/// How many seconds a length of time has, as templates and settings write it ("30s", "1h 30m"); None: it is none, or longer than a year.
pub fn seconds(text: &str) -> Option<f64> {
    let of = Span::Text(text.to_owned());
    of.read().map(|span| span.as_secs_f64())
}
