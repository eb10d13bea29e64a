//! Insertion (algorithms 1 and 4).
//!
//! A level-0 list begins with the node's tree links: its parent (the first node: itself), then its children in the
//! order in which they came; the ordinary links follow. Tree links never move and never go while both nodes are there,
//! so a reader finds them at any moment; only what follows them is pruned.
//!
//! A node is written completely before its parent links it, which is the moment it becomes visible. An insertion that
//! panics before that (in the caller's vectors) leaves a number without a row, which nothing links.

use std::sync::OnceLock;

use super::nodes::{NodeId, link_word};
use super::search::{Budget, SearchScratch, greedy, walk};
use super::select::{Selector, Space};
use super::{Hnsw, MAX_LEVEL, STRIPES};
use crate::Result;
use crate::distance::Metric;
use crate::index::codec::Draft;
use crate::index::ranked::Ranked;
use crate::index::{RowId, VectorSource};
use crate::random::splitmix64;
use crate::store::rows::pin;
use crate::sync::{AtomicU32, AtomicUsize, Mutex, Ordering};

/// What an insertion needs beside the graph.
#[derive(Debug, Default)]
pub(super) struct BuildScratch {
    pub(super) search: SearchScratch,
    /// The vector of the new row.
    own: Vec<f32>,
    draft: Draft,
    pub(super) select: Selector,
    pub(super) tree: Vec<u32>,
    /// The neighbours chosen on each level.
    chosen: Vec<Vec<Ranked>>,
    /// Nodes found around the new one on level 0, nearest first.
    pub(super) around: Vec<u32>,
}

/// Nodes that an insertion may visit on a level for each of `ef_construction`. Met only where most rows are gone.
const VISITS_PER_EF: usize = 256;

impl Hnsw {
    /// Inserts a row; false if its vector is gone, and then nothing is inserted. A row must be inserted once only.
    /// May run in many threads at once.
    ///
    /// # Errors
    ///
    /// When memory or the numbers of nodes are used up; [`Error::Corrupt`](crate::Error::Corrupt) when the graph is
    /// damaged.
    ///
    /// # Panics
    ///
    /// When the source's dimension is not the graph's, or for row 2^32 - 1, which is the mark of no row.
    pub fn insert<S: VectorSource + ?Sized>(&self, row: RowId, source: &S) -> Result<bool> {
        assert_eq!(source.dim(), self.dim, "the source's dimension");
        assert!(row.0 != u32::MAX, "row number {} is reserved", row.0);
        let _gate = self.gate.read();
        let guard = pin();
        let view = self.view(&guard);
        let space = Space { view, source, metric: self.metric };
        let mut scratch = self.scratch.take();
        let BuildScratch { search, own, draft, select, tree, chosen, around } = &mut *scratch;
        let mut decode = std::mem::take(own);
        decode.resize(self.dim, 0.0);
        let Some(vector) = source.vector(row, &mut decode) else {
            return Ok(false);
        };
        let level = self.level_of(row);
        view.codec.encode(vector, draft);

        let below_top = |entry: NodeId| level <= self.nodes.level(entry, &guard);
        // Whoever rises above all others keeps them from doing the same until it is linked.
        let raising =
            if self.entry(&guard).is_some_and(below_top) { None } else { Some(self.raising.lock()) };
        let Some(entry) = self.entry(&guard) else {
            let id = self.nodes.allocate(level, &guard)?;
            self.nodes.codes.put(id.0, draft.head, &draft.near, &draft.far, &guard);
            self.nodes.list(id, 0, &guard)[0].store(link_word(id.0), Ordering::Release);
            self.nodes.set_row(id, Some(row), &guard);
            self.entry.store(link_word(id.0), Ordering::Release);
            self.live.fetch_add(1, Ordering::AcqRel);
            return Ok(true);
        };
        let top = self.nodes.level(entry, &guard);

        let mut never_stop = || true;
        let ef = self.params.ef_construction as usize;
        view.codec.probe(vector, &mut search.probe);
        chosen.resize_with(MAX_LEVEL + 1, Vec::new);
        chosen.iter_mut().for_each(Vec::clear);
        around.clear();
        let mut budget = Budget::new(usize::MAX, &mut never_stop);
        let mut nearest = Ranked::new(f32::INFINITY, entry.0);
        for at in (level + 1..=top).rev() {
            nearest = greedy(view, at, nearest, None, search, &mut budget);
        }
        search.entries.clear();
        search.entries.push(nearest);
        for at in (0..=level.min(top)).rev() {
            let mut budget = Budget::new(ef.saturating_mul(VISITS_PER_EF).max(16_384), &mut never_stop);
            walk(view, at, ef, None, None::<fn(RowId) -> bool>, search, &mut budget);
            select.rerank(space, &mut search.probe, vector, search.frontier.accepted().map(|(_, node)| node));
            select.choose(space, self.nodes.max_links(at), &[]);
            chosen[at].extend_from_slice(&select.kept);
            // The next level begins with all that was found here; where everything is gone, with what is there.
            search.entries.clear();
            search.entries.extend(search.frontier.all().map(|(key, node)| Ranked::new(key, node)));
            if at == 0 {
                around.extend(select.candidates.iter().map(|found| found.number()));
                around.extend(search.entries.first().map(|found| found.number()));
            }
        }

        if self.nodes.is_damaged() {
            return Err(self.damage());
        }
        let id = self.nodes.allocate(level, &guard)?;
        self.nodes.codes.put(id.0, draft.head, &draft.near, &draft.far, &guard);
        for (at, chosen) in chosen.iter().enumerate().take(level + 1).skip(1) {
            write_links(self.nodes.list(id, at, &guard), 0, chosen.iter().map(|chosen| chosen.number()));
        }
        if !self.publish(id, row, around, &chosen[0], space, select, tree) {
            self.nodes.mark_broken();
            return Err(self.damage());
        }
        // It is there from now on, whether or not the links to it can be completed.
        self.live.fetch_add(1, Ordering::AcqRel);
        for (at, chosen) in chosen.iter().enumerate() {
            for neighbor in chosen {
                self.link_back(NodeId(neighbor.number()), at, id.0, space, select, tree);
            }
        }
        if raising.is_some() && level > top {
            self.entry.store(link_word(id.0), Ordering::Release);
        }
        scratch.own = decode;
        Ok(true)
    }

    /// Inserts `rows` in order, each by whichever of `threads` threads is free, and calls `done` after each. Rows that
    /// are gone are left out.
    ///
    /// # Errors
    ///
    /// The first of [`insert`](Self::insert)'s, which ends it: rows before the one that failed may be missing.
    pub fn insert_all<S: VectorSource + ?Sized>(
        &self,
        rows: &[RowId],
        source: &S,
        threads: usize,
        done: impl Fn() + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed = OnceLock::new();
        let work = || {
            while let Some(&row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                if failed.get().is_some() {
                    break;
                }
                if let Err(error) = self.insert(row, source) {
                    // Another thread's error is as good.
                    let _ = failed.set(error);
                }
                done();
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// The level of a row: geometrically distributed, the same whenever and by whomever it is inserted.
    fn level_of(&self, row: RowId) -> usize {
        let bits = mix(self.params.seed ^ mix(u64::from(row.0)));
        // Uniform within (0, 1].
        let uniform = ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let level = -uniform.ln() / f64::from(self.params.m).ln();
        #[expect(clippy::cast_possible_truncation, reason = "at most 53, and rounding down is meant")]
        let level = level as usize;
        level.min(MAX_LEVEL)
    }

    /// Finds a tree parent for a new node among those `around` it, nearest first, writes its level-0 links and makes
    /// it visible. False if there is none, which only damage can bring about.
    #[expect(clippy::too_many_arguments, reason = "the new node, where it goes, and what to work with")]
    fn publish<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        row: RowId,
        around: &[u32],
        chosen: &[Ranked],
        space: Space<'_, S>,
        select: &mut Selector,
        tree: &mut Vec<u32>,
    ) -> bool {
        let guard = space.view.guard;
        let mut adopt = |parent: NodeId| {
            let others = chosen.iter().map(|chosen| chosen.number()).filter(|&link| link != parent.0);
            write_links(self.nodes.list(id, 0, guard), 0, std::iter::once(parent.0).chain(others));
            self.try_adopt(parent, id, Some(row), space, select, tree)
        };
        if around.iter().any(|&parent| adopt(NodeId(parent))) {
            return true;
        }
        // All around have as many children as they may: one of their descendants has not. Descendants are near,
        // too, for each was the nearest that could be had.
        let root = || self.entry(guard).map_or(0, |entry| entry.0);
        let mut parent = NodeId(around.first().copied().unwrap_or_else(root));
        let mut turn = mix(u64::from(row.0));
        // No way down is longer than there are nodes.
        for _ in 0..self.nodes.count() {
            if adopt(parent) {
                return true;
            }
            turn = mix(turn);
            parent = self.some_child(parent, turn, guard);
        }
        false
    }

    /// One of a node's tree children, or the node itself when it has none.
    pub(super) fn some_child(&self, parent: NodeId, turn: u64, guard: &crate::store::rows::Guard) -> NodeId {
        let children = self.nodes.children(parent, guard) as u64;
        if children == 0 {
            return parent;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 255")]
        let place = 1 + (turn % children) as usize;
        let word =
            self.nodes.list(parent, 0, guard).get(place).map_or(0, |link| link.load(Ordering::Acquire));
        self.nodes.target(word).unwrap_or(parent)
    }

    /// Makes `parent` the tree parent of node `id`, whose list says so already, unless it has as many children as it
    /// may. A new node gets its `row` at that moment.
    pub(super) fn try_adopt<S: VectorSource + ?Sized>(
        &self,
        parent: NodeId,
        id: NodeId,
        row: Option<RowId>,
        space: Space<'_, S>,
        select: &mut Selector,
        tree: &mut Vec<u32>,
    ) -> bool {
        let guard = space.view.guard;
        if self.nodes.children(parent, guard) >= self.max_children() {
            return false;
        }
        let _lock = self.stripe(parent).lock();
        let count = self.nodes.children(parent, guard);
        // A node that is being taken away adopts nobody.
        if count >= self.max_children() || self.nodes.row(parent, guard).is_none() {
            return false;
        }
        let links = self.nodes.list(parent, 0, guard);
        if links.is_empty() {
            return false;
        }
        let place = 1 + count;
        // An ordinary link to the new child is its tree link from now on.
        let word = link_word(id.0);
        if !links[place..].iter().any(|link| link.load(Ordering::Acquire) == word)
            && links.last().is_some_and(|last| last.load(Ordering::Acquire) != 0)
        {
            self.prune_links(parent, 0, links.len() - 1, None, space, select, tree);
        }
        // From here on nothing can panic: a node has either both, row and parent, or neither.
        if let Some(row) = row {
            self.nodes.set_row(id, Some(row), guard);
        }
        let moved = links[place].swap(word, Ordering::AcqRel);
        self.nodes.set_children(parent, count + 1, guard);
        // The ordinary link that was in the child's place goes to the end, or where the child was.
        if moved != 0 && moved != word {
            let rest = &links[place + 1..];
            let free = rest.iter().find(|link| {
                let there = link.load(Ordering::Acquire);
                there == 0 || there == word
            });
            if let Some(free) = free.or(rest.last()) {
                free.store(moved, Ordering::Release);
            }
        }
        true
    }

    /// Tree children that a node may have: a quarter of its level-0 links, so that enough are left for the others.
    /// At least 2, or else the tree would be a chain.
    pub(super) fn max_children(&self) -> usize {
        (self.params.m as usize / 2).clamp(2, 255)
    }

    /// Links `node` to the new node, pruning its links if they are full.
    pub(super) fn link_back<S: VectorSource + ?Sized>(
        &self,
        node: NodeId,
        level: usize,
        new: u32,
        space: Space<'_, S>,
        select: &mut Selector,
        tree: &mut Vec<u32>,
    ) {
        let _lock = self.stripe(node).lock();
        let links = self.nodes.list(node, level, space.view.guard);
        for link in links {
            let linked = link.load(Ordering::Acquire);
            if linked == link_word(new) {
                return;
            }
            if linked == 0 {
                link.store(link_word(new), Ordering::Release);
                return;
            }
        }
        if !links.is_empty() {
            self.prune_links(node, level, links.len(), Some(new), space, select, tree);
        }
    }

    /// Chooses at most `max` links for a node among those that it has and `new`. Tree links stay. The node's lock
    /// is held.
    #[expect(clippy::too_many_arguments, reason = "the list, its bound, and what to work with")]
    fn prune_links<S: VectorSource + ?Sized>(
        &self,
        node: NodeId,
        level: usize,
        max: usize,
        new: Option<u32>,
        space: Space<'_, S>,
        select: &mut Selector,
        tree: &mut Vec<u32>,
    ) {
        let guard = space.view.guard;
        let links = self.nodes.list(node, level, guard);
        self.tree_links(node, level, tree, guard);
        let linked = self.nodes.linked(node, level, guard).map(|linked| linked.0);
        if !select.rank(space, node, linked.chain(new)) {
            // The node is gone, so there is no telling which links are the better: the last makes room.
            if new.is_none()
                && let Some(last) = links.get(max)
            {
                last.store(0, Ordering::Release);
            }
            return;
        }
        let most = max - tree.len();
        select.choose(space, most, tree);
        let ordinary = select.kept.iter().map(|kept| kept.number()).filter(|link| !tree.contains(link));
        // The lists of long vectors are full of links in directions of their own, and everybody links to them: with some
        // room they are not chosen anew for each.
        let has_many = space.metric == Metric::Ip && select.kept.len() >= max;
        write_links(links, tree.len(), ordinary.take(if has_many { most - most / 8 } else { most }));
    }

    /// The tree links of a node's list: parent and children on level 0, none above.
    pub(super) fn tree_links(
        &self,
        node: NodeId,
        level: usize,
        tree: &mut Vec<u32>,
        guard: &crate::store::rows::Guard,
    ) {
        tree.clear();
        if level == 0 {
            let fixed = 1 + self.nodes.children(node, guard);
            tree.extend(self.nodes.linked(node, 0, guard).take(fixed).map(|linked| linked.0));
        }
    }

    pub(super) fn stripe(&self, id: NodeId) -> &Mutex<()> {
        &self.stripes[id.index() % STRIPES]
    }
}

/// Writes links to `nodes` from place `from` on, as many as fit, and empties the rest.
pub(super) fn write_links(links: &[AtomicU32], from: usize, nodes: impl Iterator<Item = u32>) {
    let words = nodes.map(link_word).chain(std::iter::repeat(0));
    for (link, word) in links.iter().skip(from).zip(words) {
        link.store(word, Ordering::Release);
    }
}

/// A well-mixed function of a number.
pub(super) fn mix(number: u64) -> u64 {
    splitmix64(&mut { number })
}
