//! Taking nodes away whose rows are gone, in place.
//!
//! A row that is gone is not returned from the moment on that the caller's `accept` refuses it; its node goes on being
//! walked through. [`Hnsw::repair`] takes all such nodes away at once: every list that names one of them gets the
//! links of that one as candidates for the place, and what is new in it links it back (after the consolidation of
//! FreshDiskANN, Singh et al. 2021, arXiv:2105.09613, algorithm 4, which chooses the whole list anew and loses links).
//! When nobody can be looking at them, their numbers are used again.
//!
//! **The tree.** Without the nodes that go, the tree falls into parts. The top of each part is adopted by its nearest
//! ancestor that stays, or by a descendant of that one if it has no room; where none of its ancestors stays, by the
//! new root. So a part only ever hangs itself below parts that were above it, and no circle can come about.

use super::build::{BuildScratch, mix, write_links};
use super::nodes::{NodeId, link_word};
use super::select::Space;
use super::{Hnsw, MAX_LEVEL};
use crate::index::{RowId, VectorSource};
use crate::store::rows::{Guard, pin};
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Nodes that a thread repairs at a time.
const PORTION: usize = 256;

/// Nodes that go.
struct Going {
    marks: Vec<bool>,
    ids: Vec<NodeId>,
}

impl Going {
    fn has(&self, id: NodeId) -> bool {
        self.marks.get(id.index()).copied().unwrap_or(false)
    }
}

impl Hnsw {
    /// Takes away the nodes of all rows for which `is_live` says no, on `threads` threads, and returns how many.
    /// Insertions wait meanwhile; searches do not.
    pub fn repair<S: VectorSource + ?Sized>(
        &self,
        is_live: impl Fn(RowId) -> bool,
        source: &S,
        threads: usize,
    ) -> usize {
        let _gate = self.gate.write();
        let guard = pin();
        let mut going = Going { marks: vec![false; self.nodes.count() as usize], ids: Vec::new() };
        for id in self.nodes.ids() {
            if self.nodes.row(id, &guard).is_some_and(|row| !is_live(row)) {
                going.marks[id.index()] = true;
                going.ids.push(id);
            }
        }
        if going.ids.is_empty() {
            return 0;
        }
        self.raise_entry(&going, &guard);
        for &id in &going.ids {
            self.nodes.set_row(id, None, &guard);
        }
        self.mend_tree(&going, source, &guard);
        self.mend_links(&going, source, threads);
        for &id in &going.ids {
            self.nodes.retire(id, &guard);
        }
        self.live.fetch_sub(going.ids.len(), Ordering::AcqRel);
        // Others pin and let go all the time; this makes sure that somebody looks at what can be freed.
        guard.flush();
        going.ids.len()
    }

    /// Where searches begin must stay: if it goes, the highest that stays takes its place.
    fn raise_entry(&self, going: &Going, guard: &Guard) {
        if self.entry(guard).is_some_and(|entry| !going.has(entry)) {
            return;
        }
        let stays = |id: &NodeId| self.nodes.row(*id, guard).is_some() && !going.has(*id);
        let highest = self.nodes.ids().filter(stays).max_by_key(|&id| self.nodes.level(id, guard));
        self.entry.store(highest.map_or(0, |id| link_word(id.0)), Ordering::Release);
    }

    fn parent(&self, id: NodeId, guard: &Guard) -> Option<NodeId> {
        self.nodes.target(self.nodes.list(id, 0, guard).first()?.load(Ordering::Acquire))
    }

    /// Makes one tree of the nodes that stay.
    fn mend_tree<S: VectorSource + ?Sized>(&self, going: &Going, source: &S, guard: &Guard) {
        let stays = |id: &NodeId| self.nodes.row(*id, guard).is_some();
        let tops: Vec<NodeId> = self
            .nodes
            .ids()
            .filter(stays)
            .filter(|&id| self.parent(id, guard).is_some_and(|parent| going.has(parent)))
            .collect();
        // Found before any list changes.
        let ancestors: Vec<Option<NodeId>> =
            tops.iter().map(|&top| self.ancestor_that_stays(top, going, guard)).collect();
        for id in self.nodes.ids().filter(stays) {
            self.let_children_go(id, going, guard);
        }
        let space = Space { view: self.view(guard), source, metric: self.metric };
        let mut scratch = self.scratch.take();
        let BuildScratch { select, tree, .. } = &mut *scratch;
        let mut root = None;
        for (&top, &ancestor) in tops.iter().zip(&ancestors) {
            let Some(mut parent) = ancestor.or(root) else {
                root = Some(top);
                self.set_parent(top, top, guard);
                continue;
            };
            let mut turn = mix(u64::from(top.0));
            // No way down is longer than there are nodes.
            let mut adopt = |_| {
                self.set_parent(top, parent, guard);
                let adopted = self.try_adopt(parent, top, None, space, select, tree);
                if !adopted {
                    turn = mix(turn);
                    parent = self.some_child(parent, turn, guard);
                }
                adopted
            };
            if (0..self.nodes.count()).any(&mut adopt) {
                self.drop_double_link(top, guard);
            } else {
                // There is no room anywhere: the tree is damaged, which ends the graph's life anyway.
                self.nodes.mark_broken();
            }
        }
    }

    /// Takes the parent out of a node's ordinary links, where it may have been before it was the parent.
    fn drop_double_link(&self, id: NodeId, guard: &Guard) {
        let links: Vec<u32> = self.nodes.linked(id, 0, guard).map(|linked| linked.0).collect();
        let fixed = 1 + self.nodes.children(id, guard);
        if let Some((tree, ordinary)) = links.split_at_checked(fixed) {
            let others = ordinary.iter().copied().filter(|link| tree.first() != Some(link));
            write_links(self.nodes.list(id, 0, guard), fixed, others);
        }
    }

    fn set_parent(&self, id: NodeId, parent: NodeId, guard: &Guard) {
        if let Some(first) = self.nodes.list(id, 0, guard).first() {
            first.store(link_word(parent.0), Ordering::Release);
        }
    }

    fn ancestor_that_stays(&self, top: NodeId, going: &Going, guard: &Guard) -> Option<NodeId> {
        let mut at = top;
        // A circle, which only damage can make, ends at the number of nodes.
        for _ in 0..self.nodes.count() {
            let parent = self.parent(at, guard)?;
            if parent == at {
                return None;
            }
            if !going.has(parent) {
                return Some(parent);
            }
            at = parent;
        }
        None
    }

    /// Takes the tree children that go out of the tree links of a node that stays. They stay among its ordinary links
    /// until those are chosen anew.
    fn let_children_go(&self, id: NodeId, going: &Going, guard: &Guard) {
        let links: Vec<u32> = self.nodes.linked(id, 0, guard).map(|linked| linked.0).collect();
        let children = self.nodes.children(id, guard);
        let Some((children, ordinary)) = links.get(1..).and_then(|rest| rest.split_at_checked(children))
        else {
            return;
        };
        let (gone, stay): (Vec<u32>, Vec<u32>) =
            children.iter().partition(|&&child| going.has(NodeId(child)));
        if !gone.is_empty() {
            let all = stay.iter().chain(ordinary).chain(&gone).copied();
            write_links(self.nodes.list(id, 0, guard), 1, all);
            self.nodes.set_children(id, stay.len(), guard);
        }
    }

    /// Gives every list that names a node that goes other links in the place of those, and links the nodes that are
    /// new in a list back.
    fn mend_links<S: VectorSource + ?Sized>(&self, going: &Going, source: &S, threads: usize) {
        let nodes: Vec<NodeId> = self.nodes.ids().collect();
        let added = Mutex::new(Vec::new());
        self.on_threads(&nodes, source, threads, |&id, space, scratch| {
            let guard = space.view.guard;
            if self.nodes.row(id, guard).is_some() {
                for level in 0..=self.nodes.level(id, guard).min(MAX_LEVEL) {
                    self.mend_list(id, level, going, space, scratch);
                    let new = scratch.select.kept.drain(..).map(|new| (NodeId(new.number()), level, id.0));
                    added.lock().extend(new);
                }
            }
        });
        let added = added.into_inner();
        self.on_threads(&added, source, threads, |&(node, level, new), space, scratch| {
            self.link_back(node, level, new, space, &mut scratch.select, &mut scratch.tree);
        });
    }

    /// Does `work` for each of `items`, in portions that go to whichever of `threads` threads is free.
    fn on_threads<S: VectorSource + ?Sized, T: Sync>(
        &self,
        items: &[T],
        source: &S,
        threads: usize,
        work: impl Fn(&T, Space<'_, S>, &mut BuildScratch) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let run = || {
            let guard = pin();
            let space = Space { view: self.view(&guard), source, metric: self.metric };
            let mut scratch = self.scratch.take();
            while let Some(portion) = items.get(next.fetch_add(PORTION, Ordering::Relaxed)..) {
                if portion.is_empty() {
                    break;
                }
                portion.iter().take(PORTION).for_each(|item| work(item, space, &mut scratch));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(run);
            }
            run();
        });
    }

    /// Fills the places of nodes that go in a list with the best of what those linked, and leaves in
    /// `scratch.select.kept` what is new in the list.
    fn mend_list<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        level: usize,
        going: &Going,
        space: Space<'_, S>,
        scratch: &mut BuildScratch,
    ) {
        let guard = space.view.guard;
        scratch.select.kept.clear();
        if self.nodes.linked(id, level, guard).any(|linked| going.has(linked)) {
            let fixed = self.replace_links(id, level, |linked| going.has(linked), space, scratch);
            let new = scratch.select.kept.iter().map(|kept| kept.number());
            let ordinary = scratch.tree[fixed..].iter().copied();
            write_links(self.nodes.list(id, level, guard), fixed, ordinary.chain(new));
        }
    }

    /// Chooses what takes the places of nodes that go in a list, among what those linked. Leaves the links that stay
    /// in `scratch.tree`, the tree's first, and the new ones in `scratch.select.kept`; returns how many of those that
    /// stay are the tree's.
    fn replace_links<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        level: usize,
        goes: impl Fn(NodeId) -> bool,
        space: Space<'_, S>,
        scratch: &mut BuildScratch,
    ) -> usize {
        let guard = space.view.guard;
        let BuildScratch { tree: stay, around, .. } = &mut *scratch;
        stay.clear();
        around.clear();
        let tree_places = if level == 0 { 1 + self.nodes.children(id, guard) } else { 0 };
        let mut fixed = 0;
        for (place, linked) in self.nodes.linked(id, level, guard).enumerate() {
            if goes(linked) {
                around.extend(self.nodes.linked(linked, level, guard).map(|linked| linked.0));
            } else {
                stay.push(linked.0);
                fixed += usize::from(place < tree_places);
            }
        }
        around.retain(|&node| !goes(NodeId(node)) && node != id.0);
        self.fill_places(id, level, space, scratch);
        fixed
    }

    /// Chooses links of a node for the places that `scratch.tree`, which stays, leaves in its list. `scratch.around`
    /// has what they are chosen from, in any order and as often as it came up. Leaves them in `scratch.select.kept`.
    pub(super) fn fill_places<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        level: usize,
        space: Space<'_, S>,
        scratch: &mut BuildScratch,
    ) {
        let BuildScratch { select, tree: stay, around, .. } = scratch;
        around.extend_from_slice(stay);
        around.sort_unstable();
        around.dedup();
        select.kept.clear();
        // Where its own vector has just gone, it is taken away next, and until then does with fewer links.
        if select.rank(space, id, around.iter().copied()) {
            let free = self.nodes.max_links(level).saturating_sub(stay.len());
            select.choose(space, free, stay);
            select.kept.retain(|kept| !stay.contains(&kept.number()));
        }
    }
}
