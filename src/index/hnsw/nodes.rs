//! Where a graph lies: links, codes and row numbers by node, in rows that never move.
//!
//! Every word is atomic. A reader may see a list of links half-way between its old and its new state; each value in
//! it is a node or nothing all the same. What a node's links mean is the business of `build`.
//!
//! Numbers are kept as one more than they are, so that the zeros of new memory mean "none".
//!
//! **Invariant:** a node that is taken away keeps its code and links until nobody can be looking at it: see
//! [`CodeRows::retire`]. Only then its number is used again.

use std::ops::Range;
use std::sync::Arc;

use crate::index::RowId;
use crate::index::codec::Codec;
use crate::store::rows::{CodeRows, Guard, WordRows, pin};
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering};
use crate::{Error, Result};

/// Number of a node within its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u32);

impl NodeId {
    /// The number as an index.
    #[inline]
    pub(super) fn index(self) -> usize {
        // Lossless: the package's targets have pointers of at least 32 bits.
        self.0 as usize
    }
}

/// The most nodes of a graph: their numbers take 30 bits.
pub(super) const MAX_NODES: u32 = 1 << 30;

/// Words of a node's description: see [`Nodes::about`].
pub(super) const ABOUT_WORDS: usize = 2;
const TOWER: usize = 0;
const SHAPE: usize = 1;

/// The parts of a graph.
pub(super) struct Nodes {
    m: usize,
    /// Links on level 0: `2 m` of them.
    pub(super) links: WordRows,
    /// The row of each node; 0 while it is not complete, and when it is taken away.
    pub(super) rows: WordRows,
    /// The first tower of each node, then its level and, from the ninth bit on, how many tree children it has.
    pub(super) about: WordRows,
    /// Links on level 1 and up, `m` of them: as many towers one after the other as the node has such levels.
    pub(super) towers: WordRows,
    pub(super) codes: CodeRows,
    counts: Mutex<Counts>,
    allocated: AtomicU32,
    free: Arc<Free>,
    /// A number that cannot be was found in a link.
    broken: AtomicBool,
}

#[derive(Default)]
struct Counts {
    towers: u32,
    /// First towers of runs that no node has, by their length.
    spare: Vec<Vec<u32>>,
}

impl Counts {
    /// Keeps a run of towers for others.
    fn give_back(&mut self, first: u32, len: usize) {
        if self.spare.len() <= len {
            self.spare.resize_with(len + 1, Vec::new);
        }
        self.spare[len].push(first);
    }

    /// The first of `len` towers from the shortest run that has as many.
    fn take(&mut self, len: usize) -> Option<u32> {
        let (from, first) = (len..self.spare.len()).find_map(|from| Some((from, self.spare[from].pop()?)))?;
        if from > len {
            self.give_back(first + u32::try_from(len).unwrap_or(0), from - len);
        }
        Some(first)
    }
}

/// Nodes whose number can be used again.
#[derive(Default)]
struct Free {
    ids: Mutex<Vec<u32>>,
}

impl Nodes {
    pub(super) fn new(m: usize, codec: &Codec) -> Self {
        let (near_bytes, far_bytes) = codec.code_bytes();
        Nodes {
            m,
            links: WordRows::new(2 * m),
            rows: WordRows::new(1),
            about: WordRows::new(ABOUT_WORDS),
            towers: WordRows::new(m),
            codes: CodeRows::new(near_bytes, far_bytes, codec.most_bytes()),
            counts: Mutex::default(),
            allocated: AtomicU32::new(0),
            free: Arc::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// Numbers given so far; those that are free now are among them.
    #[inline]
    pub(super) fn count(&self) -> u32 {
        self.allocated.load(Ordering::Acquire)
    }

    /// Towers given so far.
    pub(super) fn tower_count(&self) -> u32 {
        self.counts.lock().towers
    }

    /// Numbers that wait to be used again.
    pub(super) fn free_count(&self) -> usize {
        self.free.ids.lock().len()
    }

    /// Links of a node on level `level`.
    pub(super) fn max_links(&self, level: usize) -> usize {
        if level == 0 { 2 * self.m } else { self.m }
    }

    /// All numbers given so far.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.count()).map(NodeId)
    }

    /// Says how many nodes and towers there are in rows that were taken from a file. With nodes that are `free`, looks
    /// for towers that nobody has.
    pub(super) fn adopt(&mut self, nodes: u32, towers: u32, free: Vec<u32>) {
        self.allocated.store(nodes, Ordering::Release);
        let mut counts = Counts { towers, ..Counts::default() };
        if !free.is_empty() {
            let guard = pin();
            let mut used = vec![false; towers as usize];
            for id in self.ids().filter(|&id| self.row(id, &guard).is_some()) {
                let Some(about) = self.about(id, &guard) else { continue };
                let Some(first) = about[TOWER].load(Ordering::Acquire).checked_sub(1) else { continue };
                used.iter_mut()
                    .skip(first as usize)
                    .take(self.level(id, &guard))
                    .for_each(|used| *used = true);
            }
            let mut first = 0;
            for run in used.chunk_by(|a, b| a == b) {
                if !run[0] {
                    counts.give_back(first, run.len());
                }
                first += u32::try_from(run.len()).unwrap_or(0);
            }
        }
        *self.counts.lock() = counts;
        *self.free.ids.lock() = free;
    }

    /// A node on the levels up to `level`, with empty lists and without a row.
    ///
    /// # Errors
    ///
    /// When memory or numbers are used up; [`Error::Corrupt`] when the node's place is damaged.
    pub(super) fn allocate(&self, level: usize, guard: &Guard) -> Result<NodeId> {
        let mut counts = self.counts.lock();
        let free = self.free.ids.lock().pop();
        let id = free.unwrap_or_else(|| self.count());
        if id >= MAX_NODES {
            return Err(Error::TooLarge {
                what: "number of vectors in a graph",
                got: id.into(),
                limit: MAX_NODES.into(),
            });
        }
        self.links.ensure(id)?;
        self.rows.ensure(id)?;
        self.about.ensure(id)?;
        self.codes.ensure(id)?;
        let tower = self.allocate_tower(&mut counts, level)?;
        if free.is_none() {
            self.allocated.store(id + 1, Ordering::Release);
        }
        let id = NodeId(id);
        if let (Some(links), Some(about)) = (self.links.get(id.0, guard), self.about.get(id.0, guard)) {
            links.iter().for_each(|link| link.store(0, Ordering::Release));
            about[TOWER].store(tower, Ordering::Release);
            about[SHAPE].store(u32::try_from(level).unwrap_or(0), Ordering::Release);
        }
        for level in 1..=level {
            self.list(id, level, guard).iter().for_each(|link| link.store(0, Ordering::Release));
        }
        Ok(id)
    }

    fn allocate_tower(&self, counts: &mut Counts, level: usize) -> Result<u32> {
        if level == 0 {
            return Ok(0);
        }
        if let Some(tower) = counts.take(level) {
            return Ok(tower + 1);
        }
        let first = counts.towers;
        for _ in 0..level {
            self.towers.ensure(counts.towers)?;
            counts.towers += 1;
        }
        Ok(first + 1)
    }

    /// Takes a node away that nothing links any more. Its number is used again when nobody can be looking at it.
    pub(super) fn retire(&self, id: NodeId, guard: &Guard) {
        let level = self.level(id, guard);
        if let Some(about) = self.about.get(id.0, guard)
            && let Some(tower) = about[TOWER].swap(0, Ordering::AcqRel).checked_sub(1)
        {
            // A reader that is still here may see the links of another node: it loses its way, nothing else.
            self.counts.lock().give_back(tower, level);
            about[SHAPE].store(0, Ordering::Release);
        }
        let free = Arc::clone(&self.free);
        self.codes.retire(id.0, guard, move |id| free.ids.lock().push(id));
    }

    /// The row of a node; `None` while it is not complete and when it was taken away.
    #[inline]
    pub(super) fn row(&self, id: NodeId, guard: &Guard) -> Option<RowId> {
        row_of(&self.rows.get(id.0, guard)?[0])
    }

    /// The rows of the nodes of a range within one block, in their order.
    #[inline]
    pub(super) fn rows_of<'g>(
        &'g self,
        ids: Range<u32>,
        guard: &'g Guard,
    ) -> impl Iterator<Item = Option<RowId>> + use<'g> {
        let words = self.rows.get_range(ids, guard).unwrap_or(&[]);
        words.iter().map(row_of)
    }

    /// Gives a node its row, or takes it.
    pub(super) fn set_row(&self, id: NodeId, row: Option<RowId>, guard: &Guard) {
        if let Some(word) = self.rows.get(id.0, guard) {
            word[0].store(row.map_or(0, |row| row.0 + 1), Ordering::Release);
        }
    }

    fn about<'g>(&'g self, id: NodeId, guard: &'g Guard) -> Option<&'g [AtomicU32]> {
        self.about.get(id.0, guard)
    }

    /// The highest level that the node is on.
    pub(super) fn level(&self, id: NodeId, guard: &Guard) -> usize {
        self.about(id, guard).map_or(0, |about| (about[SHAPE].load(Ordering::Acquire) & 0xff) as usize)
    }

    /// Number of tree children of a node.
    pub(super) fn children(&self, id: NodeId, guard: &Guard) -> usize {
        self.about(id, guard).map_or(0, |about| (about[SHAPE].load(Ordering::Acquire) >> 8) as usize)
    }

    /// Changed only under the node's lock.
    pub(super) fn set_children(&self, id: NodeId, children: usize, guard: &Guard) {
        if let Some(about) = self.about(id, guard) {
            let level = about[SHAPE].load(Ordering::Acquire) & 0xff;
            about[SHAPE].store(u32::try_from(children).unwrap_or(0) << 8 | level, Ordering::Release);
        }
    }

    /// The places for links of a node on a level; none if it is not on the level, or damaged.
    #[inline]
    pub(super) fn list<'g>(&'g self, id: NodeId, level: usize, guard: &'g Guard) -> &'g [AtomicU32] {
        if level == 0 {
            return self.links.get(id.0, guard).unwrap_or(&[]);
        }
        self.tower(id, level, guard).unwrap_or(&[])
    }

    fn tower<'g>(&'g self, id: NodeId, level: usize, guard: &'g Guard) -> Option<&'g [AtomicU32]> {
        let about = self.about(id, guard)?;
        let first = about[TOWER].load(Ordering::Acquire).checked_sub(1)?;
        if level > (about[SHAPE].load(Ordering::Acquire) & 0xff) as usize {
            return None;
        }
        self.towers.get(first.checked_add(u32::try_from(level).ok()? - 1)?, guard)
    }

    /// The linked nodes of a node on a level. A number that cannot be ends the list, and is remembered.
    #[inline]
    pub(super) fn linked<'g>(
        &'g self,
        id: NodeId,
        level: usize,
        guard: &'g Guard,
    ) -> impl Iterator<Item = NodeId> + use<'g> {
        self.list(id, level, guard).iter().map_while(move |link| self.target(link.load(Ordering::Acquire)))
    }

    /// The node that a link's word means.
    #[inline]
    pub(super) fn target(&self, word: u32) -> Option<NodeId> {
        let id = word.checked_sub(1)?;
        // The count grows before anything links the new node.
        if id >= self.count() {
            self.broken.store(true, Ordering::Release);
            return None;
        }
        Some(NodeId(id))
    }

    /// What was found wrong with the memory so far.
    #[inline]
    pub(super) fn is_damaged(&self) -> bool {
        self.broken.load(Ordering::Acquire)
            || [&self.links, &self.rows, &self.about, &self.towers].iter().any(|rows| rows.is_damaged())
            || self.codes.is_damaged()
    }

    /// The first damage that was met, for messages.
    pub(super) fn damage(&self) -> Option<Error> {
        let rows = [&self.links, &self.rows, &self.about, &self.towers];
        rows.into_iter().find_map(WordRows::damage).or_else(|| self.codes.damage())
    }

    /// Says that something was read that cannot be.
    pub(super) fn mark_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }
}

/// The row that a node's word means.
#[inline]
fn row_of(word: &AtomicU32) -> Option<RowId> {
    word.load(Ordering::Acquire).checked_sub(1).map(RowId)
}

/// The word of a link to a node.
pub(super) fn link_word(id: u32) -> u32 {
    id + 1
}
