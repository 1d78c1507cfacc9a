//! Children: steps whose work is other tasks, one for every element of a list (each), or one (workflow). What is here is what a template says of them,
//! and for tasks in memory what PostgreSQL does with it (`migrations/0026_children.sql`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use serde_saphyr::Spanned;
use sql_json_path::JsonPath;

use super::condition::path_problem;
use super::problems::Problems;
use super::{Kind, OnFailure, Step, StuckAfter, Template};

/// For each element of a list, a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Each {
    /// Which elements.
    #[serde(flatten)]
    pub items: Items,
    /// What each of its tasks does.
    #[serde(flatten)]
    pub by: By,
    /// None: the element, as `{item: …}` where it is no object; with `batch` `{items: […]}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Mapping>,
    /// How many of its tasks there are at once. None: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// How many elements each of its tasks is for. None: one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// How many of its tasks may be dead without blocking its own.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub tolerate: Tolerance,
}

/// Where the elements of a list come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Items {
    /// A SQL/JSON path over `{input, results}`: it finds an array, or with `[*]` its elements.
    Over(String),
    /// A handler that returns `{ items: […], next: … }`: it is called again with `next` as its `cursor`, until there is none.
    Pages(String),
}

/// What a child does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// It runs this handler, by the rules of its parent's step.
    Handler(String),
    /// It is a task of this template: namespace/name.
    Workflow(String),
}

/// Where the input of a child comes from: SQL/JSON paths over `{input, results}`, where `$item` is the element, and `$index` its number, from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Mapping {
    /// What that path finds: an object.
    Whole(String),
    /// By name, what each path finds.
    Parts(BTreeMap<String, String>),
}

/// How many children may be dead.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Tolerance {
    /// So many.
    Number(u32),
    /// That part of them, 0 to 1.
    Share(f64),
}

impl Default for Tolerance {
    fn default() -> Self {
        Tolerance::Number(0)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EachDocument {
    over: Option<Spanned<String>>,
    pages: Option<Spanned<String>>,
    handler: Option<Spanned<String>>,
    workflow: Option<Spanned<String>>,
    input: Option<Spanned<Value>>,
    limit: Option<Spanned<i64>>,
    batch: Option<Spanned<i64>>,
    tolerate: Option<Spanned<Value>>,
}

/// Whose the paths are: the step's name, and those of the steps before.
pub(super) struct Of<'a> {
    pub(super) step: &'a str,
    pub(super) namespace: &'a str,
    pub(super) parents: &'a [&'a str],
}

impl EachDocument {
    pub(super) fn validate(self, at: &Spanned<String>, of: &Of<'_>, found: &mut Problems) -> Kind {
        let items = match (self.over, self.pages) {
            (Some(over), None) => {
                path(&over, "over", &over.value, of, found);
                Items::Over(over.value)
            }
            (None, Some(pages)) => Items::Pages(found.handler(of.step, pages)),
            _ => {
                found.add(
                    at,
                    format!(
                        "step {:?}: each has to say over what (a path), or name the handler of its pages: expected one of these",
                        of.step
                    ),
                );
                Items::Over(String::new())
            }
        };
        let by = match (self.handler, self.workflow) {
            (Some(handler), None) => By::Handler(found.handler(of.step, handler)),
            (None, Some(workflow)) => By::Workflow(template(&workflow, of, found)),
            _ => {
                found.add(
                    at,
                    format!(
                        "step {:?}: each has to name a handler, or a workflow: expected one of these",
                        of.step
                    ),
                );
                By::Handler(String::new())
            }
        };
        let what = |what: &str| format!("step {:?}: {what}", of.step);
        let most = 1..=1_000_000;
        Kind::Each {
            each: Each {
                items,
                by,
                input: self.input.and_then(|input| mapping(&input, of, found)),
                limit: found.integer(self.limit, &what("limit"), most.clone()).map(|n| n as u32),
                batch: found.integer(self.batch, &what("batch"), most).map(|n| n as u32),
                tolerate: self
                    .tolerate
                    .and_then(|given| {
                        let read = tolerance(&given.value);
                        if read.is_none() {
                            found.add(
                                &given,
                                format!(
                                    "step {:?}: tolerate is {}: expected a number such as 10, or a share such as \"5%\"",
                                    of.step, given.value
                                ),
                            );
                        }
                        read
                    })
                    .unwrap_or_default(),
            },
        }
    }
}

/// A child of that template.
pub(super) fn workflow(name: &Spanned<String>, input: Option<Spanned<Value>>, of: &Of<'_>, found: &mut Problems) -> Kind {
    Kind::Workflow {
        workflow: template(name, of, found),
        input: input.and_then(|input| mapping(&input, of, found)),
    }
}

fn tolerance(given: &Value) -> Option<Tolerance> {
    match given {
        Value::Number(number) => match number.as_u64() {
            Some(number) => u32::try_from(number).ok().map(Tolerance::Number),
            None => number.as_f64().filter(|share| (0.0..1.0).contains(share)).map(Tolerance::Share),
        },
        Value::String(text) => {
            let percent: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(Tolerance::Share(percent / 100.0))
        }
        _ => None,
    }
}

/// A name without a namespace is one of the template's own.
fn template(name: &Spanned<String>, of: &Of<'_>, found: &mut Problems) -> String {
    let (namespace, bare) = name.value.split_once('/').unwrap_or((of.namespace, &name.value));
    let part = |value: &str| Spanned {
        value: value.to_owned(),
        ..name.clone()
    };
    let namespace = found.name(&part(namespace), "namespace", 37);
    let bare = found.name(&part(bare), "workflow", 100);
    format!("{namespace}/{bare}")
}

fn mapping(input: &Spanned<Value>, of: &Of<'_>, found: &mut Problems) -> Option<Mapping> {
    let read: Option<Mapping> = match &input.value {
        Value::String(whole) => Some(Mapping::Whole(whole.clone())),
        Value::Object(parts) => {
            let part = |(name, path): (&String, &Value)| Some((name.clone(), path.as_str()?.to_owned()));
            parts.iter().map(part).collect::<Option<_>>().map(Mapping::Parts)
        }
        _ => None,
    };
    match &read {
        Some(Mapping::Whole(whole)) => path(input, "input", whole, of, found),
        Some(Mapping::Parts(parts)) => parts.values().for_each(|part| path(input, "input", part, of, found)),
        None => found.add(
            input,
            format!(
                "step {:?}: input is {}: expected a path such as $.input, or a path for each of its names",
                of.step, input.value
            ),
        ),
    }
    read
}

pub(super) fn path<T>(at: &Spanned<T>, what: &str, path: &str, of: &Of<'_>, found: &mut Problems) {
    found.storable(at, &format!("step {:?}: {what}", of.step), &path.into());
    if let Some(problem) = path_problem(path, of.parents) {
        found.add(at, format!("step {:?}: {what} {path:?} {problem}", of.step));
    }
}

impl Template {
    /// The templates of the children whose step names a handler: the step's name behind the template's own, and one step, by the same rules.
    pub(crate) fn part(&self, step: &Step) -> Option<Template> {
        let Kind::Each {
            each: Each {
                by: By::Handler(handler), ..
            },
        } = &step.kind
        else {
            return None;
        };
        Some(self.small(step, format!("{}.{}", self.name, step.name), handler))
    }

    /// The template of the tasks that find out, page by page, what a step is to do.
    pub(crate) fn pages(&self, step: &Step) -> Option<Template> {
        match &step.kind {
            Kind::Each {
                each: Each {
                    items: Items::Pages(handler),
                    ..
                },
            } => {
                let mut pages = self.small(step, format!("{}.{}.pages", self.name, step.name), handler);
                pages.steps[0].undo = None;
                Some(pages)
            }
            _ => None,
        }
    }

    /// One step, which runs that handler by the rules of `step`.
    fn small(&self, step: &Step, name: String, handler: &str) -> Template {
        let only = Step {
            kind: Kind::Handler {
                handler: handler.to_owned(),
            },
            parents: Vec::new(),
            condition: None,
            delay: None,
            ..step.clone()
        };
        Template {
            namespace: step.namespace.clone(),
            name,
            version: None,
            description: None,
            priority: self.priority,
            on_failure: OnFailure::Block,
            deadline: None,
            stuck_after: StuckAfter::default(),
            input_schema: None,
            output: None,
            tags: BTreeMap::new(),
            unique: None,
            max_depth: None,
            limits: BTreeMap::new(),
            schedules: BTreeMap::new(),
            steps: vec![only],
        }
    }
}

impl Kind {
    /// Of which tasks its work is, as the database keeps it; `part` and `pages`: (namespace/name, version) of [`Template::part`] and of
    /// [`Template::pages`]. None: it has no children.
    pub(crate) fn spawn(&self, part: Option<&(String, String)>, pages: Option<&(String, String)>) -> Option<Value> {
        let mut spawn = match self {
            Kind::Workflow { workflow, input } => json!({ "template": workflow, "input": input }),
            Kind::Each { each } => {
                let (template, version) = match (&each.by, part) {
                    (By::Workflow(workflow), _) => (workflow, None),
                    (By::Handler(_), part) => {
                        let (template, version) = part?;
                        (template, Some(version))
                    }
                };
                let (tolerate, share) = match each.tolerate {
                    Tolerance::Number(number) => (Some(number), None),
                    Tolerance::Share(share) => (None, Some(share)),
                };
                let over = match &each.items {
                    Items::Over(over) => Some(over),
                    Items::Pages(_) => None,
                };
                let pages = pages.map(|(template, version)| json!({ "template": template, "version": version }));
                json!({ "template": template, "version": version, "over": over, "pages": pages, "input": each.input, "limit": each.limit, "batch": each.batch,
                        "tolerate": tolerate, "tolerate_share": share })
            }
            _ => return None,
        };
        if let Some(fields) = spawn.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        Some(spawn)
    }
}

/// The inputs of a step's children, in order, as PostgreSQL makes them: `kind` is the step's, `seen` is `{input, results}`; `page` is the page that has
/// just been read, where the elements come so, and the number of its first child.
/// Errors: why it cannot have any.
pub fn inputs(kind: &Kind, seen: &Value, page: Option<(&Value, usize)>) -> Result<Vec<Value>, String> {
    let first = page.map_or(0, |(_, first)| first);
    let inputs: Vec<Value> = match kind {
        Kind::Each { each } => {
            let items = match (&each.items, page) {
                (Items::Over(over), _) => items(over, seen)?,
                (Items::Pages(_), None) => Vec::new(),
                (Items::Pages(_), Some((page, _))) => match page["items"].as_array() {
                    Some(items) => items.clone(),
                    None => return Err("a page is no { items: [ … ], next: … }".into()),
                },
            };
            let items: Vec<Value> = match each.batch {
                None => items,
                Some(batch) => items.chunks(batch as usize).map(|items| json!(items)).collect(),
            };
            let input = |(index, item): (usize, Value)| match &each.input {
                Some(mapping) => mapped(mapping, seen, &item, first + index),
                None if each.batch.is_some() => json!({ "items": item }),
                None if item.is_object() => item,
                None => json!({ "item": item }),
            };
            items.into_iter().enumerate().map(input).collect()
        }
        Kind::Workflow { input: Some(mapping), .. } => vec![mapped(mapping, seen, &Value::Null, 0)],
        Kind::Workflow { .. } => vec![seen["input"].clone()],
        _ => Vec::new(),
    };
    match inputs.iter().position(|input| !input.is_object()) {
        Some(index) => Err(format!(
            "the input of task {} is {}: expected an object",
            first + index,
            inputs[index]
        )),
        None => Ok(inputs),
    }
}

fn items(over: &str, seen: &Value) -> Result<Vec<Value>, String> {
    let mut values = query(over, seen, &json!({}));
    if over.contains("[*]") {
        return Ok(values);
    }
    match (values.len(), values.pop()) {
        (1, Some(Value::Array(items))) => Ok(items),
        (n, _) => Err(format!(
            "{over} finds {}: expected one array (or a path with [*], which finds its elements)",
            match n {
                0 => "nothing".to_owned(),
                1 => "a value that is none".to_owned(),
                n => format!("{n} values"),
            }
        )),
    }
}

fn mapped(mapping: &Mapping, seen: &Value, item: &Value, index: usize) -> Value {
    let vars = json!({ "item": item, "index": index });
    let first = |path: &str| query(path, seen, &vars).into_iter().next().unwrap_or_default();
    match mapping {
        Mapping::Whole(path) => first(path),
        Mapping::Parts(parts) => parts.iter().map(|(name, path)| (name.clone(), first(path))).collect(),
    }
}

/// What a task of one step, or of several, has to say to its parent: `output` is its template's.
pub fn output(output: Option<&str>, seen: &Value) -> Value {
    let results = seen["results"].as_object();
    match (output, results) {
        (Some(path), _) => query(path, seen, &json!({})).into_iter().next().unwrap_or_default(),
        (None, Some(results)) if results.len() == 1 => results.values().next().cloned().unwrap_or_default(),
        (None, _) => seen["results"].clone(),
    }
}

pub(super) fn query(path: &str, of: &Value, vars: &Value) -> Vec<Value> {
    let Ok(path) = JsonPath::new(path) else {
        return Vec::new();
    };
    let found = path.query_with_vars(of, vars);
    found.map_or_else(
        |_| Vec::new(),
        |values| values.into_iter().map(|value| value.into_owned()).collect(),
    )
}
