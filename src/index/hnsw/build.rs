//! Insertion (algorithms 1 and 4).
//!
//! A level-0 list begins with the node's tree links: its parent (the first node: itself), then its children in the
//! order in which they came; the ordinary links follow. Tree links never move and never go, so a reader finds them
//! at any moment; only what follows them is pruned.
//!
//! A node is written completely before its parent links it, which is the moment it becomes visible. An insertion that
//! panics before that (in the caller's vectors) leaves a number without a row, which nothing links.

use std::sync::atomic::{AtomicU32, Ordering};

use super::nodes::{EMPTY, NodeId};
use super::search::{Budget, SearchScratch, Width, walk};
use super::space::Space;
use super::{Hnsw, MAX_LEVEL, STRIPES};
use crate::index::ranked::Ranked;
use crate::index::{RowId, VectorSource};

/// What an insertion needs beside the graph.
#[derive(Debug, Default)]
pub(super) struct BuildScratch {
    search: SearchScratch,
    /// Decoded vector of the new row.
    own: Vec<f32>,
    prune: PruneScratch,
    /// The neighbours chosen on each level.
    chosen: Vec<Vec<Ranked>>,
}

/// What the choice among candidates needs.
#[derive(Debug, Default)]
struct PruneScratch {
    decode: [Vec<f32>; 2],
    candidates: Vec<Ranked>,
    tree: Vec<u32>,
    kept: Vec<Ranked>,
}

/// Rows that an insertion may visit on a level for each of `ef_construction`. Met only where most rows have vanished.
const VISITS_PER_EF: usize = 256;

impl Hnsw {
    /// Inserts a row; false if its vector is gone, and then nothing is inserted. A row must be inserted once only.
    /// May run in many threads at once.
    ///
    /// # Panics
    ///
    /// When the source's dimension is not the graph's, or for row 2^32 - 1, which is the mark of no row.
    pub fn insert<S: VectorSource + ?Sized>(&self, row: RowId, source: &S) -> bool {
        assert_eq!(source.dim(), self.dim, "the source's dimension");
        assert!(row.0 != EMPTY, "row number {EMPTY} is reserved");
        let _gate = self.gate.read();
        let mut scratch = self.scratch.take();
        let BuildScratch { search, own, prune, chosen } = &mut *scratch;
        own.resize(self.dim, 0.0);
        for decode in &mut prune.decode {
            decode.resize(self.dim, 0.0);
        }
        let space = self.space(source);
        let Some(probe) = space.probe_row(row, own) else {
            return false;
        };
        let level = self.level_of(row);

        let below_top = |entry: NodeId| level <= self.nodes.level(entry);
        // Whoever rises above all others keeps them from doing the same until it is linked.
        let raising = if self.entry().is_some_and(below_top) { None } else { Some(self.raising.lock()) };
        let Some(entry) = self.entry() else {
            let id = self.nodes.allocate();
            self.nodes.set_level(id, level);
            self.nodes.links(id, 0)[0].store(id.0, Ordering::Release);
            self.nodes.set_row(id, row);
            self.entry.store(id.0, Ordering::Release);
            return true;
        };
        let top = self.nodes.level(entry);

        let mut never_stop = || true;
        let ef = self.params.ef_construction as usize;
        self.start(entry, search);
        chosen.resize_with(MAX_LEVEL + 1, Vec::new);
        chosen.iter_mut().for_each(Vec::clear);
        for at in (0..=top).rev() {
            let width = Width { ef: if at > level { 1 } else { ef }, max_ties: 0 };
            let mut budget = Budget::new(ef.saturating_mul(VISITS_PER_EF).max(16_384), &mut never_stop);
            let found = walk(&self.nodes, &probe, at, width, |_| true, search, &mut budget);
            if found && at <= level {
                let max = if at == 0 { self.nodes.m0() } else { self.params.m as usize };
                prune.choose(&space, &search.entries, max, &[]);
                chosen[at].extend_from_slice(&prune.kept);
            }
        }

        let id = self.nodes.allocate();
        self.nodes.set_level(id, level);
        for (at, chosen) in chosen.iter().enumerate().skip(1) {
            write_links(self.nodes.links(id, at), 0, chosen.iter().map(|chosen| chosen.number()));
        }
        self.publish(id, row, &search.entries, &chosen[0], &space, prune);
        for (at, chosen) in chosen.iter().enumerate() {
            for neighbor in chosen {
                self.link_back(
                    NodeId(neighbor.number()),
                    at,
                    Ranked::new(neighbor.key(), id.0),
                    &space,
                    prune,
                );
            }
        }
        if raising.is_some() && level > top {
            self.entry.store(id.0, Ordering::Release);
        }
        true
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

    /// Finds a tree parent for a new node, writes its level-0 links and makes it visible. `near` are the nodes found
    /// around it, nearest first, or a waypoint when all around it has vanished.
    fn publish<S: VectorSource + ?Sized>(
        &self,
        id: NodeId,
        row: RowId,
        near: &[Ranked],
        chosen: &[Ranked],
        space: &Space<'_, S>,
        prune: &mut PruneScratch,
    ) {
        for parent in near.iter().map(|near| NodeId(near.number())) {
            if self.try_adopt(parent, id, row, chosen, space, prune) {
                return;
            }
        }
        // All around have as many children as they may: one of their descendants has not. Descendants are near,
        // too, for each was the nearest that could be had.
        let mut parent = NodeId(near[0].number());
        let mut turn = mix(u64::from(row.0));
        while !self.try_adopt(parent, id, row, chosen, space, prune) {
            let children = u64::from(self.nodes.children(parent).load(Ordering::Acquire));
            turn = mix(turn);
            #[expect(clippy::cast_possible_truncation, reason = "at most 255")]
            let child = 1 + (turn % children.max(1)) as usize;
            parent = NodeId(self.nodes.links(parent, 0)[child].load(Ordering::Acquire));
        }
    }

    /// Makes `parent` the tree parent of the new node `id`, unless it has as many children as it may.
    fn try_adopt<S: VectorSource + ?Sized>(
        &self,
        parent: NodeId,
        id: NodeId,
        row: RowId,
        chosen: &[Ranked],
        space: &Space<'_, S>,
        prune: &mut PruneScratch,
    ) -> bool {
        let children = self.nodes.children(parent);
        if children.load(Ordering::Acquire) >= self.max_children() {
            return false;
        }
        let others = chosen.iter().map(|chosen| chosen.number()).filter(|&link| link != parent.0);
        write_links(self.nodes.links(id, 0), 0, std::iter::once(parent.0).chain(others));

        let _lock = self.stripe(parent).lock();
        let count = children.load(Ordering::Acquire);
        if count >= self.max_children() {
            return false;
        }
        let links = self.nodes.links(parent, 0);
        let place = 1 + usize::from(count);
        if links.last().is_some_and(|last| last.load(Ordering::Acquire) != EMPTY) {
            self.prune_links(parent, 0, links.len() - 1, None, space, prune);
        }
        // The ordinary link that was in the child's place goes to the end.
        let moved = links[place].load(Ordering::Acquire);
        if moved != EMPTY {
            let free = links.iter().position(|link| link.load(Ordering::Acquire) == EMPTY);
            links[free.unwrap_or(links.len() - 1)].store(moved, Ordering::Release);
        }
        // From here on nothing can panic: a node has either both, row and parent, or neither.
        self.nodes.set_row(id, row);
        links[place].store(id.0, Ordering::Release);
        children.store(count + 1, Ordering::Release);
        true
    }

    /// Tree children that a node may have: a quarter of its level-0 links, so that enough are left for the others.
    /// At least 2, or else the tree would be a chain.
    fn max_children(&self) -> u8 {
        u8::try_from(self.params.m / 2).unwrap_or(u8::MAX).max(2)
    }

    /// Links `node` to the new node, which it has at `new.key()`, pruning its links if they are full.
    fn link_back<S: VectorSource + ?Sized>(
        &self,
        node: NodeId,
        level: usize,
        new: Ranked,
        space: &Space<'_, S>,
        prune: &mut PruneScratch,
    ) {
        let _lock = self.stripe(node).lock();
        let links = self.nodes.links(node, level);
        for link in links {
            let linked = link.load(Ordering::Acquire);
            if linked == new.number() {
                return;
            }
            if linked == EMPTY {
                link.store(new.number(), Ordering::Release);
                return;
            }
        }
        self.prune_links(node, level, links.len(), Some(new), space, prune);
    }

    /// Chooses at most `max` links for a node among those that it has and `new`. Tree links stay. The node's lock
    /// is held.
    fn prune_links<S: VectorSource + ?Sized>(
        &self,
        node: NodeId,
        level: usize,
        max: usize,
        new: Option<Ranked>,
        space: &Space<'_, S>,
        prune: &mut PruneScratch,
    ) {
        let links = self.nodes.links(node, level);
        let fixed = match level {
            0 => 1 + usize::from(self.nodes.children(node).load(Ordering::Acquire)),
            _ => 0,
        };
        let PruneScratch { decode: [own, other], candidates, tree, .. } = prune;
        tree.clear();
        tree.extend(links[..fixed].iter().map(|link| link.load(Ordering::Acquire)));
        candidates.clear();
        candidates.extend(new);
        let Some(probe) = space.probe_node(node, own) else {
            // The node has vanished, so there is no telling which links are the better: the last makes room.
            if new.is_none()
                && let Some(last) = links.get(max)
            {
                last.store(EMPTY, Ordering::Release);
            }
            return;
        };
        for linked in self.nodes.linked(node, level) {
            if let Some(row) = self.nodes.row(linked)
                && let Some(key) = probe.key(row, other)
            {
                candidates.push(Ranked::new(key, linked.0));
            }
        }
        candidates.sort_unstable();
        let found = std::mem::take(candidates);
        let tree = std::mem::take(tree);
        // Tree links count against the maximum even if their rows have vanished.
        prune.choose(space, &found, max - fixed, &tree);
        prune.candidates = found;
        let ordinary = prune.kept.iter().map(|kept| kept.number()).filter(|link| !tree.contains(link));
        write_links(links, fixed, ordinary);
        prune.tree = tree;
    }

    fn stripe(&self, id: NodeId) -> &parking_lot::Mutex<()> {
        &self.stripes[id.index() % STRIPES]
    }
}

impl PruneScratch {
    /// Chooses at most `max` of `candidates` (sorted, with their keys from the base) into `kept`: one is left out when
    /// it is nearer to one already kept than to the base, for it can be reached through that (algorithm 4). Those in
    /// `tree` are always kept and not counted.
    ///
    /// Of candidates equidistant from the base and each other one is left out too: those are copies of one vector,
    /// and lists full of copies would be a place that no walk leaves.
    fn choose<S: VectorSource + ?Sized>(
        &mut self,
        space: &Space<'_, S>,
        candidates: &[Ranked],
        max: usize,
        tree: &[u32],
    ) {
        let PruneScratch { decode: [own, other], kept, .. } = self;
        kept.clear();
        let mut counted = 0;
        for &candidate in candidates {
            if tree.contains(&candidate.number()) {
                kept.push(candidate);
                continue;
            }
            if counted == max {
                continue;
            }
            let Some(probe) = space.probe_node(NodeId(candidate.number()), own) else {
                continue;
            };
            let covered = kept.iter().any(|kept| {
                let row = space.nodes.row(NodeId(kept.number()));
                let Some(key) = row.and_then(|row| probe.key(row, other)) else {
                    return false;
                };
                key < candidate.key() || key == candidate.key() && kept.key() == key
            });
            if !covered {
                kept.push(candidate);
                counted += 1;
            }
        }
    }
}

/// Writes `values` from place `from` on, as many as fit, and empties the rest.
fn write_links(links: &[AtomicU32], from: usize, values: impl Iterator<Item = u32>) {
    let values = values.chain(std::iter::repeat(EMPTY));
    for (link, value) in links.iter().skip(from).zip(values) {
        link.store(value, Ordering::Release);
    }
}

/// A well-mixed function of a number (splitmix64).
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}
