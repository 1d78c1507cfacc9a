//! Small charts of the last hour.

use maud::{html, Markup};
use serde_json::Value;

use super::shown::{count, length, moment};

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 64.0;

/// What a chart shows of a minute.
pub(super) struct Series<'t> {
    pub(super) title: &'t str,
    /// None: nothing is known of that minute.
    pub(super) value: fn(&Value) -> Option<f64>,
    pub(super) written: fn(f64) -> String,
    /// good, bad or busy.
    pub(super) class: &'t str,
}

fn of(minute: &Value, name: &str) -> f64 {
    minute[name].as_f64().unwrap_or_default()
}

/// What the first page shows.
pub(super) const HOUR: [Series; 3] = [
    Series {
        title: "Steps completed a minute",
        value: |minute| Some(of(minute, "completed")),
        written: |value| count(value as i64),
        class: "good",
    },
    Series {
        title: "Attempts that failed a minute",
        value: |minute| Some(of(minute, "failed")),
        written: |value| count(value as i64),
        class: "bad",
    },
    Series {
        title: "Time in a handler, mean",
        value: |minute| {
            let steps = of(minute, "completed") + of(minute, "failed");
            (steps > 0.0).then(|| of(minute, "seconds") / steps)
        },
        written: length,
        class: "busy",
    },
];

/// A bar for each of these minutes.
pub(super) fn chart(minutes: &[Value], series: &Series) -> Markup {
    let values: Vec<Option<f64>> = minutes.iter().map(series.value).collect();
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let last = values.last().copied().flatten();
    let step = WIDTH / minutes.len().max(1) as f64;
    let said = format!(
        "{}: at most {}, {} in the last minute",
        series.title,
        (series.written)(most),
        last.map_or_else(|| "nothing".into(), series.written)
    );
    html! {
        figure.chart {
            figcaption { (series.title) " " strong { (last.map_or_else(|| "–".into(), series.written)) } }
            svg role="img" aria-label=(said) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
                @for (place, value) in values.iter().enumerate() {
                    @if let Some(value) = value.filter(|value| *value > 0.0) {
                        @let height = (value / most * HEIGHT).max(1.0);
                        rect class={ "bar " (series.class) } x=(format!("{:.1}", place as f64 * step)) y=(format!("{:.1}", HEIGHT - height))
                            width=(format!("{:.1}", step * 0.8)) height=(format!("{height:.1}")) {}
                    }
                }
            }
            p.axis {
                span { (moment(&minutes.first().map(|minute| minute["at"].clone()).unwrap_or_default())) }
                span { "at most " ((series.written)(most)) }
            }
        }
    }
}
