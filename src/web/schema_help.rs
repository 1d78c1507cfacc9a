//! What a JSON Schema expects, in a table: for those who edit an input.

use maud::{html, Markup};
use serde_json::Value;

use super::shown::{list, short, text};

/// How many fields it says something of.
const MOST: usize = 60;

struct Field<'s> {
    path: String,
    schema: &'s Value,
    is_needed: bool,
}

/// Those of an object, and of those within it.
fn fields<'s>(schema: &'s Value, path: &str, found: &mut Vec<Field<'s>>) {
    for (name, of) in schema["properties"].as_object().into_iter().flatten() {
        if found.len() > MOST {
            return;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let is_needed = list(schema, "required").iter().any(|needed| needed == name);
        found.push(Field {
            path: path.clone(),
            schema: of,
            is_needed,
        });
        fields(of, &path, found);
        fields(&of["items"], &format!("{path}[]"), found);
    }
}

/// Its type, and what bounds it.
fn expected(schema: &Value) -> String {
    const BOUNDS: [&str; 9] = [
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "minItems",
        "pattern",
        "format",
    ];
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        kind => kind.as_str().unwrap_or_default().to_owned(),
    };
    let choices = schema["enum"]
        .as_array()
        .map(|choices| choices.iter().map(Value::to_string).collect::<Vec<_>>().join(", "));
    let bounds = BOUNDS
        .iter()
        .filter(|bound| !schema[**bound].is_null())
        .map(|bound| format!("{bound} {}", schema[*bound]));
    let all: Vec<String> = Some(kind)
        .into_iter()
        .chain(choices)
        .chain(bounds)
        .filter(|said| !said.is_empty())
        .collect();
    all.join(", ")
}

/// Nothing where it says nothing.
pub(super) fn of(schema: &Value) -> Markup {
    let mut found = Vec::new();
    fields(schema, "", &mut found);
    html! {
        @if !found.is_empty() {
            details {
                summary { "What is expected there" }
                div.scroll tabindex="0" role="group" aria-label="What is expected there" {
                    table {
                        thead { tr { th scope="col" { "Field" } th scope="col" { "Expected" } th scope="col" { "What it is" } } }
                        tbody {
                            @for field in found.iter().take(MOST) {
                                tr {
                                    th scope="row" { code { (short(&field.path, 80)) } @if field.is_needed { " (needed)" } }
                                    td { (short(&expected(field.schema), 120)) }
                                    td { (short(text(field.schema, "description"), 200)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_is_there_with_what_bounds_it() {
        let schema = json!({ "type": "object", "required": ["lines"], "properties": { "lines": { "type": "array", "minItems": 1, "items": {
            "properties": { "sku": { "type": "string", "pattern": "^A", "description": "of the shop" } } } }, "way": { "enum": ["post", null] } } });
        let shown = of(&schema).into_string();
        for expected in [
            "lines</code> (needed)",
            "array, minItems 1",
            "lines[].sku",
            "string, pattern &quot;^A&quot;",
            "of the shop",
            "&quot;post&quot;, null",
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
        assert_eq!(of(&json!({})).into_string(), "");
    }
}
