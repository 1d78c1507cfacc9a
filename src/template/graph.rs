//! The shape of a template: who waits for whom.

use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;

use super::Step;

/// The steps of one cycle, each before the one that waits for it, beginning with the one written first; None where there is no cycle.
pub(super) fn cycle(steps: &[Step]) -> Option<Vec<usize>> {
    let edges = steps
        .iter()
        .enumerate()
        .flat_map(|(step, s)| s.parents.iter().map(move |&parent| (parent as u32, step as u32)));
    let mut graph = DiGraph::<(), ()>::from_edges(edges);
    while graph.node_count() < steps.len() {
        graph.add_node(());
    }
    let component = tarjan_scc(&graph)
        .into_iter()
        .find(|members| members.len() > 1 || graph.contains_edge(members[0], members[0]))?;

    // Walk from parent to parent inside the component: the first step met again closes a cycle.
    let inside = |step: &usize| component.iter().any(|member| member.index() == *step);
    let mut path = vec![component.iter().map(|member| member.index()).min()?];
    loop {
        let next = steps[*path.last()?].parents.iter().copied().find(inside)?;
        if let Some(start) = path.iter().position(|&step| step == next) {
            path.drain(..start);
            path.reverse();
            let first = path
                .iter()
                .enumerate()
                .min_by_key(|(_, step)| **step)
                .map_or(0, |(position, _)| position);
            path.rotate_left(first);
            return Some(path);
        }
        path.push(next);
    }
}
