//! Schedules: at what times a task of a workflow is to begin. Cron patterns are read as the Open Cron Pattern Specification has them, in a time zone of
//! IANA's: of a daylight-saving change, a fixed time in the gap moves to the first that exists, one in the overlap comes once, and a frequent pattern runs
//! through (<https://github.com/open-source-cron/ocps>). Intervals are elapsed time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds};
use croner::Cron;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::priority::Priority;
use crate::span::Span;

/// When, with what, and how the tasks of a schedule get along with each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// By which times.
    #[serde(flatten)]
    pub when: When,
    /// A task begins at random within that time after each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Duration>,
    /// When its time comes while a task of it has not ended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overlap: Overlap,
    /// What is done about times at which no orchestrator ran.
    #[serde(default, skip_serializing_if = "is_default")]
    pub catch_up: CatchUp,
    /// Not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<DateTime<Utc>>,
    /// Not after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<DateTime<Utc>>,
    /// The input of each task; a value that is `"$time"` is the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// None: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Of the template; None: the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Schedules by their names, each with the template (name or namespace/name) whose tasks it begins.
pub type Named = BTreeMap<String, (String, Schedule)>;

/// By which times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum When {
    /// By those of a pattern.
    Cron {
        /// Five fields, or six with seconds first.
        cron: String,
        /// Of IANA's; None: UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time_zone: Option<String>,
    },
    /// Again and again after that time, counted from `starts_at`, or from 1970.
    Every {
        /// At least a second.
        every: Duration,
    },
}

/// What becomes of a time that comes while a task of the schedule has not ended. (One that is blocked by a dead letter does not count.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Its task begins beside the other.
    #[default]
    Allow,
    /// It is left out.
    Skip,
    /// Its task begins when the others have ended.
    Queue,
    /// The others are cancelled.
    CancelOld,
}

/// What is done about times that were missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Nothing: a task begins no later than a minute after its time.
    None,
    /// One task begins, for the last of them.
    #[default]
    Last,
    /// A task begins for each.
    All,
}

/// As people write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    cron: Option<String>,
    every: Option<Span>,
    time_zone: Option<String>,
    jitter: Option<Span>,
    overlap: Option<String>,
    catch_up: Option<String>,
    starts_at: Option<String>,
    ends_at: Option<String>,
    input: Option<Value>,
    priority: Option<String>,
    version: Option<String>,
}

/// A task may begin so long after its time where nothing is caught up.
const GRACE: TimeDelta = TimeDelta::minutes(1);

impl Schedule {
    /// Reads and validates what people write: `{ cron: "0 3 * * *", time_zone: Europe/Berlin }`. Errors: what is wrong, and what was expected.
    pub fn parse(written: &Value) -> Result<Schedule, String> {
        let written: Written = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
        let when = match (written.cron, written.every) {
            (Some(cron), None) => When::Cron {
                cron,
                time_zone: written.time_zone,
            },
            (None, Some(every)) => When::Every {
                every: span("every", &every, Duration::from_secs(1))?,
            },
            _ => return Err("expected either cron, such as \"0 3 * * *\", or every, such as \"15m\"".into()),
        };
        let schedule = Schedule {
            when,
            jitter: written
                .jitter
                .map(|jitter| span("jitter", &jitter, Duration::from_millis(1)))
                .transpose()?,
            overlap: word("overlap", written.overlap, "allow, skip, queue or cancel_old")?,
            catch_up: word("catch_up", written.catch_up, "none, last or all")?,
            starts_at: time("starts_at", written.starts_at)?,
            ends_at: time("ends_at", written.ends_at)?,
            input: written.input,
            priority: written.priority.map(|name| name.parse()).transpose()?,
            version: written.version,
        };
        if schedule.input.as_ref().is_some_and(|input| !input.is_object()) {
            return Err("input is no mapping".into());
        }
        let times = schedule.times()?;
        if times.after(Utc::now()).is_none() && times.after(DateTime::UNIX_EPOCH).is_none() {
            return Err(format!("{} never comes", schedule.when));
        }
        Ok(schedule)
    }

    /// Its times. Errors: its pattern or its time zone is none.
    pub fn times(&self) -> Result<Times, String> {
        let cron = match &self.when {
            When::Every { .. } => None,
            When::Cron { cron, time_zone } => {
                let zone = time_zone.as_deref().unwrap_or("UTC");
                let zone = zone.parse().map_err(|_| unknown_zone(zone))?;
                let parser = CronParser::builder().seconds(Seconds::Optional).build();
                let cron = parser
                    .parse(cron)
                    .map_err(|error| format!("cron {cron:?} is no pattern: {error}"))?;
                Some((cron, zone))
            }
        };
        Ok(Times {
            cron,
            schedule: self.clone(),
        })
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::Cron { cron, time_zone } => write!(f, "{cron} ({})", time_zone.as_deref().unwrap_or("UTC")),
            When::Every { every } => write!(f, "every {}", humantime::format_duration(*every)),
        }
    }
}

/// The times of a schedule.
#[derive(Debug, Clone)]
pub struct Times {
    schedule: Schedule,
    cron: Option<(Cron, Tz)>,
}

/// What is due of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The times for which a task is to begin.
    pub times: Vec<DateTime<Utc>>,
    /// Then what comes next; None: nothing any more.
    pub next: Option<DateTime<Utc>>,
}

impl Times {
    /// The first behind that one. None: there is none.
    pub fn after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let base = match self.schedule.starts_at {
            Some(start) if time < start => start - TimeDelta::microseconds(1),
            _ => time,
        };
        let next = match (&self.cron, &self.schedule.when) {
            (Some((cron, zone)), _) => cron.find_next_occurrence(&base.with_timezone(zone), false).ok()?.to_utc(),
            (None, When::Every { every }) => {
                let every = i64::try_from(every.as_micros()).ok()?;
                let anchor = self.schedule.starts_at.unwrap_or(DateTime::UNIX_EPOCH);
                let passed = (base - anchor).num_microseconds()?.div_euclid(every);
                anchor + TimeDelta::microseconds((passed + 1).checked_mul(every)?)
            }
            (None, When::Cron { .. }) => return None,
        };
        (self.schedule.ends_at.is_none_or(|end| next <= end)).then_some(next)
    }

    /// The first `count` behind that one.
    pub fn take(&self, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.after(after), |last| self.after(*last))
            .take(count)
            .collect()
    }

    /// What is due at `now` of the times from `from` on, of which `most` are looked at.
    pub fn due(&self, from: DateTime<Utc>, now: DateTime<Utc>, most: usize) -> Due {
        let mut past = Vec::new();
        let mut next = Some(from);
        while let Some(time) = next.filter(|time| *time <= now && past.len() < most) {
            past.push(time);
            next = self.after(time);
        }
        let is_last = next.is_none_or(|next| next > now);
        let last = past.last().copied().filter(|_| is_last);
        let times = match self.schedule.catch_up {
            CatchUp::All => past,
            CatchUp::Last => last.into_iter().collect(),
            CatchUp::None => last.filter(|last| now - last <= GRACE).into_iter().collect(),
        };
        Due { times, next }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn span(name: &str, written: &Span, least: Duration) -> Result<Duration, String> {
    let expected = || {
        format!(
            "{name} is {}: expected a duration such as \"15m\", of at least {}",
            written.written(),
            humantime::format_duration(least)
        )
    };
    written.read().filter(|read| *read >= least).ok_or_else(expected)
}

fn word<T: for<'a> Deserialize<'a> + Default>(name: &str, written: Option<String>, words: &str) -> Result<T, String> {
    let read =
        |word: String| serde_json::from_value(Value::String(word.clone())).map_err(|_| format!("{name} is {word:?}: expected {words}"));
    written.map_or_else(|| Ok(T::default()), read)
}

fn time(name: &str, written: Option<String>) -> Result<Option<DateTime<Utc>>, String> {
    let read = |text: String| {
        text.parse()
            .map_err(|_| format!("{name} is {text:?}: expected a time such as 2030-01-31T08:00:00Z"))
    };
    written.map(read).transpose()
}

fn unknown_zone(name: &str) -> String {
    let likeness = |zone: &&Tz| strsim::jaro_winkler(zone.name(), name);
    let nearest = chrono_tz::TZ_VARIANTS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let meant = nearest
        .filter(|zone| likeness(zone) > 0.8)
        .map_or("expected one of IANA's, such as Europe/Berlin".into(), |zone| {
            format!("did you mean {zone}?")
        });
    format!("time_zone {name:?} is unknown: {meant}")
}
