//! How the graph would be without one of its rows: for measuring recall with stored rows as queries.
//!
//! A walk past the row's own node is easier than one for a new vector: the node links the very rows that are looked
//! for. A walk that only leaves the node out is harder: those around it were linked in its presence, and do without
//! what it covered. An [`Absence`] has the lists that they would have without it, about; the graph itself stays as it
//! is. They are not those of a [repair](Hnsw::repair), which looks for new links only among those of the row that goes:
//! these are the very neighbours of it, and linked to each other they are found more easily than a new vector's.

use std::collections::{BTreeSet, HashMap};

use super::Hnsw;
use super::build::{BuildScratch, write_links};
use super::nodes::NodeId;
use super::search::{Budget, walk};
use super::select::Space;
use crate::index::ranked::Ranked;
use crate::index::{RowId, VectorSource};
use crate::store::rows::pin;
use crate::sync::AtomicU32;

/// Width of the walk that finds the nodes which link the row's own. Those farther away that do are left as they are:
/// they only lose the link.
const AROUND: usize = 256;

/// Where a row lies in the graph. Holds until the graph is repaired.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    row: RowId,
    node: NodeId,
}

impl Place {
    /// The row that lies there.
    #[must_use]
    pub fn row(self) -> RowId {
        self.row
    }
}

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
    /// Where those of `rows` lie that the graph has, in no order.
    ///
    /// All nodes are looked through. A walk would find most of them with less work, but only those that are easily
    /// found: a recall that is measured on these alone says nothing about the others.
    #[must_use]
    pub fn places(&self, rows: &BTreeSet<RowId>) -> Vec<Place> {
        let guard = pin();
        let lies = |node| self.nodes.row(node, &guard).map(|row| Place { row, node });
        self.nodes.ids().filter_map(lies).filter(|place| rows.contains(&place.row)).collect()
    }

    /// What the graph would be without the row at `place`; `None` when it is not there any more.
    ///
    /// # Panics
    ///
    /// When the source's dimension is not the graph's.
    pub fn absence<S: VectorSource + ?Sized>(&self, place: Place, source: &S) -> Option<Absence> {
        assert_eq!(source.dim(), self.dim, "the source's dimension");
        let Place { row, node } = place;
        let guard = pin();
        if self.nodes.row(node, &guard) != Some(row) {
            return None;
        }
        let view = self.view(&guard);
        let space = Space { view, source, metric: self.metric };
        let mut scratch = self.scratch.take();
        let mut decode = vec![0.0; self.dim];
        view.codec.probe(source.vector(row, &mut decode)?, &mut scratch.search.probe);
        let mut never_stop = || true;
        let mut budget = Budget::new(usize::MAX, &mut never_stop);
        let search = &mut scratch.search;
        // From the node itself, however far its own code may seem.
        search.entries.clear();
        search.entries.push(Ranked::new(f32::NEG_INFINITY, node.0));
        walk(view, 0, AROUND, None, None::<fn(RowId) -> bool>, search, &mut budget);
        let around: Vec<NodeId> = search.frontier.all().map(|(_, node)| NodeId(node)).collect();
        let mut lists = HashMap::new();
        for id in around.into_iter().filter(|&id| id != node) {
            if self.nodes.linked(id, 0, &guard).any(|linked| linked == node) {
                lists.insert(id.0, self.list_without(id, node, space, &mut scratch));
            }
        }
        Some(Absence { node, lists })
    }

    /// The list of `id` with other links in the place of `node`. They are chosen from what all of its links link: from
    /// what an insertion would have met around it. What `node` alone linked would be the rows that are looked for.
    fn list_without<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        node: NodeId,
        space: Space<'_, S>,
        scratch: &mut BuildScratch,
    ) -> Box<[AtomicU32]> {
        let guard = space.view.guard;
        let BuildScratch { tree: stay, around, .. } = &mut *scratch;
        stay.clear();
        around.clear();
        for linked in self.nodes.linked(id, 0, guard) {
            around.extend(self.nodes.linked(linked, 0, guard).map(|linked| linked.0));
            if linked != node {
                stay.push(linked.0);
            }
        }
        around.retain(|&other| other != node.0 && other != id.0);
        self.fill_places(id, 0, space, scratch);
        let list: Box<[AtomicU32]> = (0..self.nodes.max_links(0)).map(|_| AtomicU32::new(0)).collect();
        let new = scratch.select.kept.iter().map(|kept| kept.number());
        write_links(&list, 0, scratch.tree.iter().copied().chain(new));
        list
    }
}
