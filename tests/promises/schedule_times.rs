//! At what times the tasks of a schedule begin: through daylight-saving changes, and after nobody has looked for long.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde_json::{json, Value};
use tasker::schedule::{Due, Schedule, Times};

fn times(written: Value) -> Times {
    Schedule::parse(&written).expect("it is valid").times().expect("it has times")
}

fn at(time: &str) -> DateTime<Utc> {
    time.parse().expect("a time")
}

fn local(times: &[DateTime<Utc>], zone: Tz) -> Vec<String> {
    times
        .iter()
        .map(|time| time.with_timezone(&zone).format("%d. %H:%M %z").to_string())
        .collect()
}

#[test]
fn a_fixed_time_in_the_gap_of_a_daylight_saving_change_moves_to_the_first_that_exists() {
    let nightly = times(json!({ "cron": "30 2 * * *", "time_zone": "Europe/Berlin" }));
    assert_eq!(
        local(&nightly.take(at("2026-03-28T00:00:00Z"), 3), Tz::Europe__Berlin),
        ["28. 02:30 +0100", "29. 03:00 +0200", "30. 02:30 +0200"]
    );
}

#[test]
fn a_fixed_time_in_the_overlap_comes_once_and_a_frequent_pattern_runs_through() {
    let zone = Tz::America__New_York;
    let nightly = times(json!({ "cron": "30 1 * * *", "time_zone": "America/New_York" }));
    assert_eq!(
        local(&nightly.take(at("2026-11-01T00:00:00Z"), 2), zone),
        ["01. 01:30 -0400", "02. 01:30 -0500"]
    );
    let often = times(json!({ "cron": "*/30 * * * *", "time_zone": "America/New_York" }));
    assert_eq!(
        local(&often.take(at("2026-11-01T04:45:00Z"), 5), zone),
        [
            "01. 01:00 -0400",
            "01. 01:30 -0400",
            "01. 01:00 -0500",
            "01. 01:30 -0500",
            "01. 02:00 -0500"
        ]
    );
    assert_eq!(
        local(&often.take(at("2026-03-08T06:15:00Z"), 3), zone),
        ["08. 01:30 -0500", "08. 03:00 -0400", "08. 03:30 -0400"]
    );
}

#[test]
fn an_interval_is_elapsed_time_from_its_start_or_from_1970() {
    let quarters = times(json!({ "every": "15m" }));
    assert_eq!(
        quarters.take(at("2026-01-01T00:07:00Z"), 2),
        [at("2026-01-01T00:15:00Z"), at("2026-01-01T00:30:00Z")]
    );
    let own = times(json!({ "every": "90s", "starts_at": "2026-01-01T00:00:10Z", "ends_at": "2026-01-01T00:02:00Z" }));
    assert_eq!(
        own.take(at("2020-01-01T00:00:00Z"), 9),
        [at("2026-01-01T00:00:10Z"), at("2026-01-01T00:01:40Z")]
    );
}

#[test]
fn what_was_missed_is_caught_up_as_the_schedule_says() {
    let due = |catch_up: &str, now: &str| {
        let hourly = times(json!({ "cron": "0 * * * *", "catch_up": catch_up }));
        hourly.due(at("2026-01-01T01:00:00Z"), at(now), 1_000)
    };
    let next = Some(at("2026-01-01T04:00:00Z"));
    let late = "2026-01-01T03:30:00Z";
    assert_eq!(due("none", late), Due { times: vec![], next });
    assert_eq!(
        due("none", "2026-01-01T03:00:30Z"),
        Due {
            times: vec![at("2026-01-01T03:00:00Z")],
            next
        }
    );
    assert_eq!(
        due("last", late),
        Due {
            times: vec![at("2026-01-01T03:00:00Z")],
            next
        }
    );
    assert_eq!(due("all", late).times.len(), 3);
    let many = times(json!({ "every": "1s" })).due(at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"), 100);
    assert_eq!(
        (many.times.len(), many.next),
        (0, Some(at("2026-01-01T00:01:40Z"))),
        "the last is still to come"
    );
}

#[test]
fn what_is_no_schedule_is_told() {
    for (written, said) in [
        (json!({}), "expected either cron, such as \"0 3 * * *\", or every, such as \"15m\""),
        (
            json!({ "cron": "0 3 * * *", "time_zone": "Europe/Berlni" }),
            "time_zone \"Europe/Berlni\" is unknown: did you mean Europe/Berlin?",
        ),
        (
            json!({ "cron": "0 3 * * *", "time_zone": "Mars" }),
            "time_zone \"Mars\" is unknown: ",
        ),
        (json!({ "cron": "0 25 * * *" }), "cron \"0 25 * * *\" is no pattern: "),
        (json!({ "cron": "0 0 30 2 *" }), "0 0 30 2 * (UTC) never comes"),
        (
            json!({ "every": "10ms" }),
            "every is \"10ms\": expected a duration such as \"15m\", of at least 1s",
        ),
        (
            json!({ "every": "1h", "overlap": "wait" }),
            "overlap is \"wait\": expected allow, skip, queue or cancel_old",
        ),
        (json!({ "every": "1h", "catchup": "all" }), "unknown field `catchup`"),
        (json!({ "every": "1h", "input": 5 }), "input is no mapping"),
        (
            json!({ "every": "1h", "starts_at": "soon" }),
            "starts_at is \"soon\": expected a time",
        ),
    ] {
        let problem = Schedule::parse(&written).expect_err("it is not valid");
        assert!(problem.starts_with(said), "{problem}");
    }
    assert!(Schedule::parse(&json!({ "cron": "*/10 0 3 * * MON-FRI", "time_zone": "Asia/Tokyo" })).is_ok());
}
