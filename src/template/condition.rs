//! Conditions: a SQL/JSON path over `{input, results}` that says whether a step runs. PostgreSQL evaluates it where the step becomes ready
//! (`migrations/0025_readiness.sql`); this is the same for templates that are checked without it, and for tasks in memory.

use serde_json::Value;
use sql_json_path::JsonPath;

/// Whether a step with this condition runs, as PostgreSQL's `jsonb_path_match` with `silent` says it: what is neither true nor false is false. (A number in the
/// condition itself that has more digits than a double is one all the same, which PostgreSQL knows better.)
pub fn holds(condition: &str, of: &Value) -> bool {
    let Ok(path) = JsonPath::new(condition) else {
        return false;
    };
    match path.query(of).as_deref() {
        Ok([one]) => one.as_ref() == &Value::Bool(true),
        _ => false,
    }
}

/// What is wrong with a path of a step that depends on these.
pub(super) fn path_problem(path: &str, parents: &[&str]) -> Option<String> {
    if let Err(error) = JsonPath::new(path) {
        return Some(format!("is no SQL/JSON path: {error}"));
    }
    let unknown = results_in(path).into_iter().find(|name| !parents.contains(&name.as_str()))?;
    Some(match parents {
        [] => format!("asks for the result of {unknown}, and the step depends on none"),
        parents => format!(
            "asks for the result of {unknown}, and the step depends on {} alone",
            parents.join(", ")
        ),
    })
}

/// The names behind `$.results.`.
fn results_in(condition: &str) -> Vec<String> {
    let parts = condition.split("$.results.").skip(1);
    let name = |part: &str| match part.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
        None => part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect(),
    };
    parts.map(name).collect()
}
