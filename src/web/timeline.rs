//! When each step of a task waited and ran; the critical path is the chain of steps that each began when the one before it ended, up to the last.

use chrono::{DateTime, Utc};
use maud::{html, Markup};
use serde_json::Value;

use super::shown::{class, length, list, short, text, time};

/// How many steps it has at most.
const MOST: usize = 100;

const WIDTH: f64 = 1000.0;

struct Times {
    enqueued: DateTime<Utc>,
    started: Option<DateTime<Utc>>,
    finished: Option<DateTime<Utc>>,
}

fn times(step: &Value) -> Option<Times> {
    Some(Times {
        enqueued: time(&step["enqueued_at"])?,
        started: time(&step["started_at"]),
        finished: time(&step["finished_at"]),
    })
}

/// The names of the steps that the task's end had to wait for, the last one first.
fn critical_path(steps: &[Value]) -> Vec<&str> {
    let ended = |step: &&Value| time(&step["finished_at"]);
    let mut path = Vec::new();
    let mut last = steps.iter().filter(|step| ended(step).is_some()).max_by_key(ended);
    while let Some(step) = last.filter(|_| path.len() < steps.len()) {
        path.push(text(step, "name"));
        let parents = list(step, "depends_on");
        last = steps
            .iter()
            .filter(|other| parents.contains(&other["name"]) && ended(other).is_some())
            .max_by_key(ended);
    }
    path
}

/// The steps of a task that have begun, a row each, in the order in which they did.
pub(super) fn draw(task: &Value, now: DateTime<Utc>) -> Markup {
    let steps = list(task, "steps");
    let mut rows: Vec<(&Value, Times)> = steps.iter().filter_map(|step| Some((step, times(step)?))).collect();
    rows.sort_by_key(|(_, times)| times.enqueued);
    let Some(begin) = rows.first().map(|(_, times)| times.enqueued) else {
        return html! { p.none { "Nothing has begun yet." } };
    };
    let end = time(&task["finished_at"]).unwrap_or(now).max(begin);
    let whole = ((end - begin).num_milliseconds() as f64).max(1.0);
    let place = |at: DateTime<Utc>| ((at - begin).num_milliseconds() as f64 / whole).clamp(0.0, 1.0) * WIDTH;
    let critical = critical_path(steps);
    let left = rows.len().saturating_sub(MOST);
    let bar = |class: &str, from: DateTime<Utc>, to: DateTime<Utc>| {
        let (from, to) = (place(from), place(to));
        html! { rect class={ "bar " (class) } x=(format!("{from:.1}")) width=(format!("{:.1}", (to - from).max(3.0))) y="2" height="12" {} }
    };
    html! {
        div.scroll tabindex="0" role="group" aria-label="The timeline" {
            table.timeline {
                thead { tr { th scope="col" { "Step" } th scope="col" { "Waited" } th scope="col" { "Ran" } th.wide scope="col" { "0 to " (length(whole / 1000.0)) } } }
                tbody {
                    @for (step, times) in rows.iter().take(MOST) {
                        @let begun = times.started.or(times.finished).unwrap_or(end);
                        @let over = times.finished.unwrap_or(end);
                        @let is_critical = critical.contains(&text(step, "name"));
                        tr.critical[is_critical] {
                            th scope="row" {
                                (short(text(step, "name"), 30))
                                @if is_critical { span.mark title="On the critical path" { " ◆" } }
                            }
                            td { (length((begun - times.enqueued).num_milliseconds() as f64 / 1000.0)) }
                            td { @if times.started.is_some() { (length((over - begun).num_milliseconds() as f64 / 1000.0)) } }
                            td {
                                svg viewBox=(format!("0 0 {WIDTH} 16")) preserveAspectRatio="none" aria-hidden="true" {
                                    (bar("wait", times.enqueued, begun))
                                    @if times.started.is_some() { (bar(class(text(step, "state")), begun, over)) }
                                    @for error in list(step, "errors") {
                                        @if let Some(at) = time(&error["at"]) { (bar("bad", at, at)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if left > 0 { p.note { (left) " more steps have begun." } }
        p.note { "◆ the critical path: the chain of steps whose end was waited for. Red marks are attempts that failed." }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_critical_path_goes_by_the_parents_that_ended_last() {
        let step = |name: &str, parents: &[&str], second: u8| json!({ "name": name, "depends_on": parents, "finished_at": format!("2026-11-29T12:00:{second:02}Z") });
        let steps = [
            step("a", &[], 1),
            step("b", &["a"], 5),
            step("c", &["a"], 3),
            step("d", &["b", "c"], 9),
        ];
        assert_eq!(critical_path(&steps), ["d", "b", "a"]);
        assert!(critical_path(&[]).is_empty());
    }
}
