//! What of a task's inputs, results and signals is not shown: the setting `redact`.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use serde_json_path::JsonPath;

use crate::error::{Error, Result};

/// What stands in the place of a value that is not shown.
pub const REDACTED: &str = "[redacted]";

/// Which values are not shown, by their places in a payload. Cheap to clone; the default hides nothing.
#[derive(Clone, Default)]
pub struct Redaction(Arc<[JsonPath]>);

impl fmt::Debug for Redaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(JsonPath::to_string)).finish()
    }
}

impl Redaction {
    /// Of JSONPaths as RFC 9535 has them, from the payload itself on, such as `$.customer.email`; a name alone, such as `password`, is meant wherever it is.
    /// Errors: what is wrong with one of them.
    pub fn parse(paths: &[String]) -> std::result::Result<Redaction, String> {
        let parse = |path: &String| {
            let everywhere = || format!("$..[{}]", Value::String(path.clone()));
            let written = if path.starts_with('$') { path.clone() } else { everywhere() };
            JsonPath::parse(&written).map_err(|error| format!("{path:?} is no JSONPath: {error}"))
        };
        Ok(Redaction(paths.iter().map(parse).collect::<std::result::Result<_, _>>()?))
    }

    /// Whether everything is shown.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The places, as JSON Pointers, of what is not shown in this payload.
    fn places(&self, payload: &Value) -> Vec<String> {
        let places = |path: &JsonPath| {
            path.query_located(payload)
                .locations()
                .map(|at| at.to_json_pointer())
                .collect::<Vec<_>>()
        };
        self.0.iter().flat_map(places).collect()
    }

    /// Hides what is not shown of this payload.
    pub(crate) fn hide(&self, payload: &mut Value) {
        for place in self.places(payload) {
            // What is in something hidden is hidden with it.
            if let Some(value) = payload.pointer_mut(&place) {
                *value = REDACTED.into();
            }
        }
    }

    /// The same for payloads that are fields of an object.
    pub(crate) fn hide_fields(&self, of: &mut Value, names: &[&str]) {
        if self.is_empty() {
            return;
        }
        for name in names {
            if let Some(payload) = of.get_mut(name) {
                self.hide(payload);
            }
        }
    }

    /// The same for a payload that is a field within fields of an object.
    pub(crate) fn hide_within(&self, of: &mut Value, names: &[&str]) {
        if let Some(payload) = names.iter().try_fold(of, |of, name| of.get_mut(name)) {
            self.hide(payload);
        }
    }

    /// The same for a payload that is JSON text.
    pub(crate) fn hide_in_json(&self, json: String) -> String {
        if self.is_empty() {
            return json;
        }
        match serde_json::from_str(&json) {
            Ok(mut payload) => {
                self.hide(&mut payload);
                payload.to_string()
            }
            Err(_) => json,
        }
    }

    /// Whether what is at this place, a JSON Pointer, or something that it is a part of, is not shown.
    pub(crate) fn hides(&self, payload: &Value, place: &str) -> bool {
        let is_within = |hidden: &String| {
            place
                .strip_prefix(hidden.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.places(payload).iter().any(is_within)
    }

    /// Puts what was hidden back into a payload that somebody made of what is shown of `known`. Errors: [`Error::Invalid`] where it is not known what was
    /// hidden there, so that nobody stores what stands in its place.
    pub(crate) fn restore(&self, payload: &mut Value, known: Option<&Value>) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let shown = known.map(|known| {
            let mut shown = known.clone();
            self.hide(&mut shown);
            shown
        });
        let marked = |place: &String| payload.pointer(place).is_some_and(|value| value == REDACTED);
        let places: Vec<String> = self.places(payload).into_iter().filter(marked).collect();
        for place in places {
            let is_the_same = || match first_element(payload, &place) {
                Some(element) => shown.as_ref().and_then(|shown| shown.pointer(element)) == payload.pointer(element),
                None => true,
            };
            match known.and_then(|known| known.pointer(&place)).filter(|_| is_the_same()).cloned() {
                Some(value) => drop(payload.pointer_mut(&place).map(|hidden| *hidden = value)),
                None => {
                    return Err(Error::Invalid(format!(
                        "{place} is {REDACTED:?}, which stands for a value that is not shown: give the value itself"
                    )))
                }
            }
        }
        Ok(())
    }
}

/// The place of the first element of a list on the way to this place: elements may have moved, and what was hidden belongs to those that are as they were.
fn first_element<'p>(payload: &Value, place: &'p str) -> Option<&'p str> {
    let mut ends = place.match_indices('/').map(|(at, _)| at).skip(1).chain([place.len()]);
    let mut list = payload;
    ends.find_map(|end| {
        let was_list = list.is_array();
        list = payload.pointer(&place[..end])?;
        was_list.then(|| &place[..end])
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(paths: &[&str]) -> Redaction {
        Redaction::parse(&paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_name_is_hidden_wherever_it_is_and_a_path_where_it_leads() {
        let mut payload = json!({ "password": 1, "customer": { "email": "a@b", "password": { "old": 2 } }, "orders": [{ "card": "4111" }, { "card": "4222" }], "email": "c@d" });
        of(&["password", "$.customer.email", "$.orders[*].card", "$.customer.password.old"]).hide(&mut payload);
        let expected = json!({ "password": REDACTED, "customer": { "email": REDACTED, "password": REDACTED }, "orders": [{ "card": REDACTED }, { "card": REDACTED }], "email": "c@d" });
        assert_eq!(payload, expected);
    }

    #[test]
    fn names_with_quotes_and_dots_are_names() {
        let mut payload = json!({ "a.\"b'": { "a.\"b'": 1 }, "a": { "\"b'": 2 } });
        of(&["a.\"b'"]).hide(&mut payload);
        assert_eq!(payload, json!({ "a.\"b'": REDACTED, "a": { "\"b'": 2 } }));
    }

    #[test]
    fn a_path_that_is_none_is_refused_with_its_text() {
        let refused = Redaction::parse(&["$.customer[".to_owned()]).unwrap_err();
        assert!(refused.starts_with("\"$.customer[\" is no JSONPath"), "{refused}");
    }

    #[test]
    fn what_was_hidden_comes_back_where_the_rest_was_edited() {
        let redaction = of(&["email", "card"]);
        let known = json!({ "email": "a@b", "amount": -1, "orders": [{ "n": 1, "card": "4111" }, { "n": 2, "card": "4222" }] });
        let mut edited = known.clone();
        redaction.hide(&mut edited);
        edited["amount"] = json!(1);
        redaction.restore(&mut edited, Some(&known)).unwrap();
        assert_eq!(
            edited,
            json!({ "email": "a@b", "amount": 1, "orders": [{ "n": 1, "card": "4111" }, { "n": 2, "card": "4222" }] })
        );
    }

    #[test]
    fn what_was_hidden_goes_to_no_other_element_of_a_list() {
        let redaction = of(&["card"]);
        let known = json!({ "orders": [{ "n": 1, "card": "4111" }, { "n": 2, "card": "4222" }] });
        let mut edited = json!({ "orders": [{ "n": 2, "card": REDACTED }] });
        let refused = redaction.restore(&mut edited, Some(&known)).unwrap_err();
        assert!(refused.to_string().contains("/orders/0/card"), "{refused}");
    }

    #[test]
    fn what_stands_for_a_hidden_value_is_nothing_to_store() {
        let refused = of(&["email"]).restore(&mut json!({ "email": REDACTED }), None).unwrap_err();
        assert!(refused.to_string().contains("/email"), "{refused}");
        of(&["email"])
            .restore(&mut json!({ "email": "a@b", "note": REDACTED }), None)
            .unwrap();
    }

    #[test]
    fn whether_a_place_is_hidden_counts_what_it_is_a_part_of() {
        let payload = json!({ "customer": { "email": "a", "e": 1 } });
        let redaction = of(&["$.customer.email"]);
        assert!(
            redaction.hides(&payload, "/customer/email")
                && !redaction.hides(&payload, "/customer/e")
                && !redaction.hides(&payload, "/customer")
        );
        assert!(of(&["customer"]).hides(&payload, "/customer/email"));
    }
}
