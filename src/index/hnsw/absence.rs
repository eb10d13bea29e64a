//! How the graph would be without one of its rows: for measuring recall with stored rows as queries.
//!
//! A walk past the row's own node is easier than one for a new vector: the node links the very rows that are looked
//! for. A walk that only leaves the node out is harder: those around it were linked in its presence, and do without
//! what it covered. An [`Absence`] has the lists that [repair](Hnsw::repair) would give them if the row were gone;
//! the graph itself stays as it is.

use std::collections::HashMap;

use super::Hnsw;
use super::build::{BuildScratch, write_links};
use super::nodes::NodeId;
use super::search::{Budget, begin, descend, walk};
use super::select::Space;
use crate::index::{RowId, VectorSource};
use crate::store::rows::pin;
use crate::sync::AtomicU32;

/// Width of the walk that finds the nodes which link the row's own. Those farther away that do are left as they are:
/// they only lose the link.
const AROUND: usize = 256;

/// A row that a search does as if it were not in the graph. Holds until the graph is repaired.
#[derive(Debug)]
pub struct Absence {
    pub(super) node: NodeId,
    /// Level-0 lists of the nodes that link `node`.
    lists: HashMap<u32, Box<[AtomicU32]>>,
}

impl Absence {
    /// The level-0 list that `node` would have, where it is another one.
    pub(super) fn list(&self, node: NodeId) -> Option<&[AtomicU32]> {
        self.lists.get(&node.0).map(AsRef::as_ref)
    }
}

impl Hnsw {
    /// What the graph would be without `row`; `None` when the row is not found in it.
    ///
    /// # Panics
    ///
    /// When the source's dimension is not the graph's.
    pub fn absence<S: VectorSource + ?Sized>(&self, row: RowId, source: &S) -> Option<Absence> {
        assert_eq!(source.dim(), self.dim, "the source's dimension");
        let guard = pin();
        let view = self.view(&guard);
        let space = Space { view, source, metric: self.metric };
        let mut scratch = self.scratch.take();
        let mut decode = vec![0.0; self.dim];
        view.codec.probe(source.vector(row, &mut decode)?, &mut scratch.search.probe);
        let mut never_stop = || true;
        let mut budget = Budget::new(usize::MAX, &mut never_stop);
        let search = &mut scratch.search;
        let nearest = descend(view, self.entry(&guard)?, None, search, &mut budget);
        begin(view, nearest, None, search);
        walk(view, 0, AROUND, None, None::<fn(RowId) -> bool>, search, &mut budget);
        let around: Vec<NodeId> = search.frontier.all().map(|(_, node)| NodeId(node)).collect();
        let node = around.iter().copied().find(|&id| self.nodes.row(id, &guard) == Some(row))?;
        let mut lists = HashMap::new();
        for id in around.into_iter().filter(|&id| id != node) {
            if self.nodes.linked(id, 0, &guard).any(|linked| linked == node) {
                lists.insert(id.0, self.list_without(id, node, space, &mut scratch));
            }
        }
        Some(Absence { node, lists })
    }

    fn list_without<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        node: NodeId,
        space: Space<'_, S>,
        scratch: &mut BuildScratch,
    ) -> Box<[AtomicU32]> {
        self.replace_links(id, 0, |linked| linked == node, space, scratch);
        let list: Box<[AtomicU32]> = (0..self.nodes.max_links(0)).map(|_| AtomicU32::new(0)).collect();
        let new = scratch.select.kept.iter().map(|kept| kept.number());
        write_links(&list, 0, scratch.tree.iter().copied().chain(new));
        list
    }
}
