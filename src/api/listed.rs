//! Lists: bounded, and a page at a time.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::problem::{Outcome, Problem};
use crate::engine::everywhere;

/// A page of a list
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Listed {
    /// What was found; a page may have fewer than were asked for, or none, and yet not be the last
    #[schema(value_type = Vec<Object>)]
    items: Vec<Value>,
    /// The `cursor` of the next page; null: this is the last
    next: Option<String>,
}

/// Which page of a list
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Paged {
    /// `next` of the page before
    pub(super) cursor: Option<String>,
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub(super) limit: Option<i32>,
}

/// How many of a list that begins with the newest
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Newest {
    /// How many at most
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub(super) limit: Option<i32>,
}

/// How many entries were asked for: 100 where nothing is said.
pub(super) fn limit(asked: Option<i32>) -> Outcome<i32> {
    match asked.unwrap_or(100) {
        limit @ 1..=1_000 => Ok(limit),
        _ => Err(Problem::bad_request("limit: expected 1 to 1000")),
    }
}

impl Listed {
    /// A list that is always whole.
    pub(super) fn whole(items: Vec<Value>) -> Listed {
        Listed { items, next: None }
    }

    /// A page out of all there are, in the order of these fields, by which the cursor names the last entry of a page.
    pub(super) fn of_all(all: Vec<Value>, asked: &Paged, fields: &[&str]) -> Outcome<Listed> {
        let limit = limit(asked.limit)?;
        let key = |of: &Value| {
            fields
                .iter()
                .map(|name| of[*name].as_str().unwrap_or_default())
                .collect::<Vec<_>>()
                .join("/")
        };
        let mut all: Vec<(String, Value)> = all.into_iter().map(|entry| (key(&entry), entry)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let begin = asked
            .cursor
            .as_ref()
            .map_or(0, |cursor| all.partition_point(|(key, _)| key <= cursor));
        let rest = all.split_off(begin);
        let limit = usize::try_from(limit).unwrap_or_default();
        let next = rest.get(limit).and_then(|_| rest.get(limit - 1)).map(|(key, _)| key.clone());
        let items = rest.into_iter().take(limit).map(|(_, entry)| entry).collect();
        Ok(Listed { items, next })
    }

    /// A page after which the list goes on at `next`.
    pub(super) fn continued(items: Vec<Value>, next: Option<String>) -> Listed {
        Listed { items, next }
    }

    /// A page where one that is not full need not be the last; `field` of its last entry is where the next one begins.
    pub(super) fn until_none(items: Vec<Value>, field: &str) -> Listed {
        let next = items.last().map(|last| everywhere::text(&last[field]));
        Listed { items, next }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pages_of_a_list_have_each_entry_once() {
        let all = || (0..7).rev().map(|n| json!({ "name": n.to_string() })).collect();
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let asked = Paged { cursor, limit: Some(3) };
            let page = Listed::of_all(all(), &asked, &["name"]).unwrap();
            seen.extend(page.items.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["0", "1", "2", "3", "4", "5", "6"]);
    }
}
