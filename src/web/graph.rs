//! The picture of a DAG: its steps from left to right, coloured by their states. The layout is that of dagre (Sugiyama's method), kept for graphs that were
//! just drawn, since a template's is the same for all of its tasks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use dagre::graph::{Graph, GraphOptions};
use dagre::{layout, EdgeLabel, LayoutOptions, NodeLabel, RankDir};
use maud::{html, Markup};
use serde_json::Value;

use super::shown::{class, count, list, number, short, text};

const WIDTH: f64 = 184.0;
const HEIGHT: f64 = 46.0;

/// How many boxes a picture has at most: what is alike is one then, and in the end each layer.
const MOST: usize = 80;

/// How many layouts are kept.
const KEPT: usize = 256;

/// What is drawn as one box: a step, or several.
#[derive(Debug, PartialEq)]
struct Node<'s> {
    steps: Vec<&'s Value>,
    parents: Vec<usize>,
}

/// Where the boxes are, and the lines between them.
#[derive(Debug)]
struct Layout {
    width: f64,
    height: f64,
    /// The middles.
    boxes: Vec<(f64, f64)>,
    lines: Vec<Vec<(f64, f64)>>,
}

type Shape = Vec<Vec<usize>>;

/// Layouts of the graphs that were drawn last.
#[derive(Debug, Clone, Default)]
pub(super) struct Layouts(Arc<Mutex<HashMap<Shape, Arc<Layout>>>>);

impl Layouts {
    /// None: it cannot be drawn.
    async fn of(&self, shape: Shape) -> Option<Arc<Layout>> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&shape) {
            return Some(known.clone());
        }
        let drawn = shape.clone();
        // It takes a processor for some milliseconds, and is somebody else's code.
        let layout = tokio::task::spawn_blocking(move || lay_out(&drawn)).await.ok().flatten();
        let layout = Arc::new(layout.or_else(|| in_a_row(&shape))?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(shape, layout.clone());
        Some(layout)
    }
}

fn lay_out(shape: &Shape) -> Option<Layout> {
    let mut graph = Graph::with_options(GraphOptions {
        directed: true,
        multigraph: false,
        compound: false,
    });
    for node in 0..shape.len() {
        let label = NodeLabel {
            width: WIDTH,
            height: HEIGHT,
            ..NodeLabel::default()
        };
        graph.set_node(node.to_string(), Some(label));
    }
    let edges = || {
        shape
            .iter()
            .enumerate()
            .flat_map(|(node, parents)| parents.iter().map(move |parent| (*parent, node)))
    };
    for (parent, node) in edges() {
        graph.set_edge(parent.to_string(), node.to_string(), Some(EdgeLabel::default()), None);
    }
    let options = LayoutOptions {
        rankdir: RankDir::LR,
        nodesep: 18.0,
        ranksep: 52.0,
        ..LayoutOptions::default()
    };
    layout(&mut graph, Some(options));
    let middle = |node: usize| {
        let label = graph.node(&node.to_string())?;
        Some((label.x?, label.y?))
    };
    let boxes = (0..shape.len()).map(middle).collect::<Option<Vec<_>>>()?;
    let line = |(parent, node): (usize, usize)| {
        let label = graph.edge(&parent.to_string(), &node.to_string(), None)?;
        Some(label.points.iter().map(|point| (point.x, point.y)).collect())
    };
    let lines = edges().map(line).collect::<Option<Vec<_>>>()?;
    Some(within(boxes, lines))
}

/// Moved to where a picture begins.
fn within(mut boxes: Vec<(f64, f64)>, mut lines: Vec<Vec<(f64, f64)>>) -> Layout {
    let least = |pick: fn(&(f64, f64)) -> f64| boxes.iter().map(pick).fold(f64::INFINITY, f64::min);
    let (left, top) = (
        least(|middle| middle.0) - WIDTH / 2.0 - 4.0,
        least(|middle| middle.1) - HEIGHT / 2.0 - 4.0,
    );
    for (x, y) in boxes.iter_mut().chain(lines.iter_mut().flatten()) {
        *x -= left;
        *y -= top;
    }
    let most = |pick: fn(&(f64, f64)) -> f64| boxes.iter().map(pick).fold(0.0, f64::max);
    Layout {
        width: most(|middle| middle.0) + WIDTH / 2.0 + 4.0,
        height: most(|middle| middle.1) + HEIGHT / 2.0 + 4.0,
        boxes,
        lines,
    }
}

/// One after the other, where the library has failed.
fn in_a_row(shape: &Shape) -> Option<Layout> {
    let middle = |node: usize| (node as f64 * (WIDTH + 52.0), (node % 3) as f64 * (HEIGHT + 18.0));
    let boxes: Vec<_> = (0..shape.len()).map(middle).collect();
    let edges = shape
        .iter()
        .enumerate()
        .flat_map(|(node, parents)| parents.iter().map(move |parent| (*parent, node)));
    let lines = edges.map(|(parent, node)| vec![middle(parent), middle(node)]).collect();
    (!shape.is_empty()).then(|| within(boxes, lines))
}

/// The boxes of these steps: one each, or, of many, one for those that have the same steps before and after them, or one for each layer.
fn nodes(steps: &[Value]) -> Vec<Node<'_>> {
    let place: HashMap<&str, usize> = steps.iter().enumerate().map(|(place, step)| (text(step, "name"), place)).collect();
    let parents: Shape = steps
        .iter()
        .map(|step| {
            list(step, "depends_on")
                .iter()
                .filter_map(|name| place.get(name.as_str()?).copied())
                .collect()
        })
        .collect();
    let alone: Vec<usize> = (0..steps.len()).collect();
    let by = |groups: &[usize]| gather(steps, &parents, groups);
    if steps.len() <= MOST {
        return by(&alone);
    }
    let mut children: Shape = vec![vec![]; steps.len()];
    for (step, parents) in parents.iter().enumerate() {
        for parent in parents {
            children[*parent].push(step);
        }
    }
    let alike = number_of_each(parents.iter().zip(&children));
    let grouped = by(&alike);
    if grouped.len() <= MOST {
        return grouped;
    }
    let layers = layers(&parents);
    let depth = layers.iter().max().map_or(1, |last| last + 1);
    by(&layers.iter().map(|layer| layer * MOST.min(depth) / depth).collect::<Vec<_>>())
}

/// How many steps are before each, at most.
fn layers(parents: &Shape) -> Vec<usize> {
    let mut layers = vec![0; parents.len()];
    // In any order, each round has one more layer right.
    for _ in 0..parents.len() {
        let mut is_right = true;
        for (step, parents) in parents.iter().enumerate() {
            let layer = parents.iter().map(|parent| layers[*parent] + 1).max().unwrap_or_default();
            is_right &= layer == layers[step];
            layers[step] = layer;
        }
        if is_right {
            break;
        }
    }
    layers
}

fn number_of_each<K: std::hash::Hash + Eq>(keys: impl Iterator<Item = K>) -> Vec<usize> {
    let mut known = HashMap::new();
    keys.map(|key| {
        let next = known.len();
        *known.entry(key).or_insert(next)
    })
    .collect()
}

fn gather<'s>(steps: &'s [Value], parents: &Shape, group_of: &[usize]) -> Vec<Node<'s>> {
    let mut groups: BTreeMap<usize, Node<'s>> = BTreeMap::new();
    for (place, step) in steps.iter().enumerate() {
        let node = groups.entry(group_of[place]).or_insert_with(|| Node {
            steps: vec![],
            parents: vec![],
        });
        node.steps.push(step);
        for parent in &parents[place] {
            let parent = group_of[*parent];
            if parent != group_of[place] && !node.parents.contains(&parent) {
                node.parents.push(parent);
            }
        }
    }
    let numbers: HashMap<usize, usize> = groups.keys().enumerate().map(|(number, group)| (*group, number)).collect();
    let mut nodes: Vec<Node> = groups.into_values().collect();
    for node in &mut nodes {
        node.parents = node.parents.iter().filter_map(|group| numbers.get(group).copied()).collect();
        node.parents.sort_unstable();
    }
    nodes
}

/// The picture of these steps; `link` leads to one.
pub(super) async fn draw(layouts: &Layouts, steps: &[Value], chosen: Option<&str>, link: impl Fn(&str) -> String) -> Markup {
    let nodes = nodes(steps);
    let shape: Shape = nodes.iter().map(|node| node.parents.clone()).collect();
    let Some(layout) = layouts.of(shape).await else {
        return html! {};
    };
    let view = format!("0 0 {:.0} {:.0}", layout.width, layout.height);
    html! {
        div.graph tabindex="0" role="group" aria-label="The graph of its steps" {
            svg viewBox=(view) width=(format!("{:.0}", layout.width)) height=(format!("{:.0}", layout.height)) xmlns="http://www.w3.org/2000/svg" {
                defs {
                    marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" {
                        path.arrow d="M0 0 8 4 0 8z" {}
                    }
                }
                @for line in &layout.lines { path.edge d=(path(line)) marker-end="url(#arrow)" {} }
                @for (node, (x, y)) in nodes.iter().zip(&layout.boxes) {
                    g transform=(format!("translate({:.1} {:.1})", x - WIDTH / 2.0, y - HEIGHT / 2.0)) {
                        @match node.steps.as_slice() {
                            [step] => {
                                a href=(link(text(step, "name"))) aria-current=[(chosen == Some(text(step, "name"))).then_some("true")] { (single(step)) }
                            }
                            many => (several(many)),
                        }
                    }
                }
            }
        }
    }
}

fn path(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (place, (x, y)) in points.iter().enumerate() {
        let command = if place == 0 { "M" } else { "L" };
        path.push_str(&format!("{command}{x:.1} {y:.1}"));
    }
    path
}

fn outline(class: &str) -> Markup {
    html! { rect class={ "node " (class) } width=(WIDTH) height=(HEIGHT) rx="8" {} }
}

/// What a step does, as a template has it: its handler, or what else it is.
pub(super) fn does(step: &Value) -> &str {
    let kinds = ["each", "workflow", "wait", "sleep"];
    step["handler"]
        .as_str()
        .or_else(|| kinds.into_iter().find(|kind| !step[*kind].is_null()))
        .unwrap_or("step")
}

fn single(step: &Value) -> Markup {
    let (name, state) = (text(step, "name"), text(step, "state"));
    let attempts = match number(step, "attempt") {
        0 | 1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let children = match step["children"]["created"].as_i64() {
        Some(created) => {
            let total = step["children"]["total"].as_i64().unwrap_or(created);
            format!(", {} of {}", count(number(&step["children"], "ended")), count(total))
        }
        None => String::new(),
    };
    let said = match state {
        "" => does(step).to_owned(),
        state => format!("{}{attempts}{children}", state.replace('_', " ")),
    };
    html! {
        title { (name) ": " (said) }
        (outline(class(state)))
        text x="12" y="19" { (short(name, 23)) }
        text.state x="12" y="36" { (short(&said, 27)) }
    }
}

/// Of several steps: how many there are of each state.
fn several(steps: &[&Value]) -> Markup {
    let mut states: BTreeMap<&str, i64> = BTreeMap::new();
    for step in steps {
        *states.entry(text(step, "state")).or_default() += 1;
    }
    // What is bad is not to be missed.
    let worst = ["bad", "slow", "busy", "still"]
        .into_iter()
        .find(|worst| states.keys().any(|state| class(state) == *worst));
    let said: Vec<String> = states
        .iter()
        .map(|(state, n)| format!("{} {}", count(*n), state.replace('_', " ")))
        .collect();
    let name = format!("{} steps", count(steps.len() as i64));
    html! {
        title { (name) ", " (text(steps[0], "name")) " and others: " (said.join(", ")) }
        (outline(&format!("several {}", worst.unwrap_or("good"))))
        text x="12" y="19" { (name) }
        text.state x="12" y="36" { (short(&said.join(", "), 27)) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn step(name: &str, parents: &[&str]) -> Value {
        json!({ "name": name, "state": "pending", "depends_on": parents })
    }

    #[tokio::test]
    async fn each_step_has_a_box_right_of_those_that_it_depends_on() {
        let steps = [step("a", &[]), step("b", &["a"]), step("c", &["a"]), step("d", &["b", "c"])];
        let shape: Shape = nodes(&steps).into_iter().map(|node| node.parents).collect();
        let layout = Layouts::default().of(shape.clone()).await.unwrap();
        for (node, parents) in shape.iter().enumerate() {
            for parent in parents {
                assert!(layout.boxes[*parent].0 + WIDTH <= layout.boxes[node].0);
            }
        }
        assert_eq!(layout.lines.len(), 4);
        let picture = draw(&Layouts::default(), &steps, Some("b"), |name| format!("?step={name}"))
            .await
            .into_string();
        assert_eq!(picture.matches("<a href").count(), 4);
        assert!(picture.contains(r#"<a href="?step=b" aria-current="true">"#));
    }

    #[test]
    fn a_thousand_steps_that_are_alike_are_one_box() {
        let mut steps = vec![step("first", &[])];
        let names: Vec<String> = (0..998).map(|n| format!("s{n}")).collect();
        steps.extend(names.iter().map(|name| step(name, &["first"])));
        steps.push(step("last", &names.iter().map(String::as_str).collect::<Vec<_>>()));
        let nodes = nodes(&steps);
        assert_eq!(nodes.iter().map(|node| node.steps.len()).collect::<Vec<_>>(), [1, 998, 1]);
        assert_eq!(
            nodes.iter().map(|node| node.parents.clone()).collect::<Vec<_>>(),
            [vec![], vec![0], vec![1]]
        );
    }

    #[test]
    fn of_a_thousand_others_each_layer_is_a_box() {
        let mut steps = vec![step("s0", &[]), step("s1", &[])];
        for n in 2..1_000 {
            steps.push(step(
                &format!("s{n}"),
                &[&format!("s{}", n - 2), &format!("s{}", if n % 7 == 0 { 0 } else { n - 2 })],
            ));
        }
        assert!(nodes(&steps).len() <= MOST);
        assert_eq!(nodes(&steps).iter().map(|node| node.steps.len()).sum::<usize>(), 1_000);
    }
}
