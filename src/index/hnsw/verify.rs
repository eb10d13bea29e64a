//! Checking a graph as a whole.

use std::fmt;

use super::Hnsw;
use super::nodes::NodeId;
use crate::Error;
use crate::index::RowId;
use crate::store::rows::pin;

/// What [`Hnsw::verify`] found. A graph is sound when [`is_sound`](Self::is_sound) says so.
#[derive(Debug, Default)]
pub struct Report {
    /// Nodes with a row.
    pub nodes: usize,
    /// Numbers that wait to be used again.
    pub free: usize,
    /// Links on level 0.
    pub links: usize,
    /// Rows that no walk on level 0 can reach from where searches begin.
    pub unreachable: Vec<RowId>,
    /// Links to numbers without a row, and rows without a code.
    pub dangling: usize,
    /// Nodes that have no parent in the tree, or whose parent does not know them.
    pub orphans: usize,
    /// What was found damaged.
    pub damage: Option<Error>,
}

impl Report {
    /// Whether every row is reachable, every link leads to a node, and nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.unreachable.is_empty() && self.dangling == 0 && self.orphans == 0 && self.damage.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} nodes, {} links, {} free numbers, {} unreachable, {} dangling links, {} orphans",
            self.nodes,
            self.links,
            self.free,
            self.unreachable.len(),
            self.dangling,
            self.orphans
        )?;
        match &self.damage {
            Some(damage) => write!(f, ", {damage}"),
            None => Ok(()),
        }
    }
}

impl Hnsw {
    /// Reads all of the graph and checks it. Insertions wait meanwhile.
    #[must_use]
    pub fn verify(&self) -> Report {
        let _gate = self.gate.write();
        let guard = pin();
        let nodes = &self.nodes;
        let mut report = Report { free: nodes.free_count(), ..Report::default() };
        let mut seen = vec![false; nodes.count() as usize];
        let mut open: Vec<NodeId> = self.entry(&guard).into_iter().collect();
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut seen[id.index()], true) {
                open.extend(nodes.linked(id, 0, &guard));
            }
        }
        for id in nodes.ids() {
            let Some(row) = nodes.row(id, &guard) else { continue };
            report.nodes += 1;
            if !seen[id.index()] {
                report.unreachable.push(row);
            }
            let has_far = self.codec.code_bytes().1 > 0;
            let is_whole = nodes.codes.get(id.0, &guard).is_some()
                && (!has_far || nodes.codes.far(id.0, &guard).is_some());
            if !is_whole {
                report.dangling += 1;
            }
            for level in 0..=nodes.level(id, &guard) {
                let ends = nodes.linked(id, level, &guard).filter(|&end| nodes.row(end, &guard).is_none());
                report.dangling += ends.count();
            }
            report.links += nodes.linked(id, 0, &guard).count();
            let knows = |parent: NodeId| {
                let children = nodes.children(parent, &guard);
                parent == id
                    || nodes.linked(parent, 0, &guard).skip(1).take(children).any(|child| child == id)
            };
            if !nodes.linked(id, 0, &guard).next().is_some_and(knows) {
                report.orphans += 1;
            }
        }
        if nodes.is_damaged() {
            report.damage = Some(self.damage());
        }
        report
    }
}
