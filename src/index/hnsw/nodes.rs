//! Where the nodes of a graph lie: chunks that are never moved, so that readers need no lock.
//!
//! Every access is an atomic one. A reader may see a list of links half-way between its old and its new state;
//! each value in it is a node or [`EMPTY`] all the same. What a node's links mean is the business of `build`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::index::RowId;

/// No link, no node, no row.
pub(super) const EMPTY: u32 = u32::MAX;

/// Number of a node within its graph, in order of insertion.
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

/// The chunks. Each power of two of nodes is spread over four chunks, so at most a fifth of the room stands empty.
pub(super) struct Nodes {
    m: usize,
    m0: usize,
    /// Numbers from one level-0 list to the next: `m0` rounded up to whole cache lines.
    stride: usize,
    allocated: AtomicU32,
    chunks: Box<[OnceLock<Chunk>]>,
}

struct Chunk {
    /// Row of each node; [`EMPTY`] until the node is complete.
    rows: Box<[AtomicU32]>,
    /// Number of tree children of each node: see `build`.
    children: Box<[AtomicU8]>,
    level0: Box<[AtomicU32]>,
    /// Where the first list begins in `level0`, so that lists begin on cache lines.
    skip: usize,
    /// The lists of level 1 and up, `m` numbers each, of the few nodes that have them.
    upper: Box<[OnceLock<Box<[AtomicU32]>>]>,
}

const LINE: usize = 16;
/// Numbers below this are skipped, which makes it the size of the first four chunks together.
const BASE_BITS: u32 = 8;
const CHUNKS: usize = (32 - BASE_BITS as usize + 1) * 4;

impl Nodes {
    pub(super) fn new(m: usize) -> Self {
        let m0 = 2 * m;
        Nodes {
            m,
            m0,
            stride: m0.next_multiple_of(LINE),
            allocated: AtomicU32::new(0),
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Nodes allocated so far, complete or not.
    #[inline]
    pub(super) fn count(&self) -> u32 {
        self.allocated.load(Ordering::Acquire)
    }

    /// Links of a node on level 0.
    pub(super) fn m0(&self) -> usize {
        self.m0
    }

    /// All numbers allocated so far.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.count()).map(NodeId)
    }

    /// A new node without row and links.
    ///
    /// # Panics
    ///
    /// At 2^32 - 1 nodes. Rows are never inserted twice, and there are no more rows than that.
    pub(super) fn allocate(&self) -> NodeId {
        let id = self.allocated.fetch_add(1, Ordering::AcqRel);
        assert!(id != EMPTY, "the graph is full");
        let (chunk, _, len) = place(id);
        self.chunks[chunk].get_or_init(|| Chunk::new(len, self.stride));
        NodeId(id)
    }

    #[inline]
    fn at(&self, id: NodeId) -> Option<(&Chunk, usize)> {
        let (chunk, offset, _) = place(id.0);
        Some((self.chunks[chunk].get()?, offset))
    }

    /// The row of a node; `None` while it is not complete.
    #[inline]
    pub(super) fn row(&self, id: NodeId) -> Option<RowId> {
        let (chunk, offset) = self.at(id)?;
        let row = chunk.rows[offset].load(Ordering::Acquire);
        (row != EMPTY).then_some(RowId(row))
    }

    pub(super) fn set_row(&self, id: NodeId, row: RowId) {
        if let Some((chunk, offset)) = self.at(id) {
            chunk.rows[offset].store(row.0, Ordering::Release);
        }
    }

    /// Number of tree children of a node. Changed only under the node's lock.
    pub(super) fn children(&self, id: NodeId) -> &AtomicU8 {
        let (chunk, offset) = self.at(id).expect("an allocated node has its chunk");
        &chunk.children[offset]
    }

    /// The highest level that the node is on.
    pub(super) fn level(&self, id: NodeId) -> usize {
        let upper = self.at(id).and_then(|(chunk, offset)| chunk.upper[offset].get());
        upper.map_or(0, |lists| lists.len() / self.m)
    }

    /// Puts a node on the levels up to `level`, with empty lists. Once for each node, before it is reachable.
    pub(super) fn set_level(&self, id: NodeId, level: usize) {
        if level > 0
            && let Some((chunk, offset)) = self.at(id)
        {
            chunk.upper[offset].get_or_init(|| empty_links(level * self.m));
        }
    }

    /// The links of a node on a level, [`EMPTY`] from the first free place on; nothing if it is not on the level.
    #[inline]
    pub(super) fn links(&self, id: NodeId, level: usize) -> &[AtomicU32] {
        let Some((chunk, offset)) = self.at(id) else {
            return &[];
        };
        if level == 0 {
            let start = chunk.skip + offset * self.stride;
            return &chunk.level0[start..start + self.m0];
        }
        let lists = chunk.upper[offset].get();
        lists.and_then(|lists| lists.get((level - 1) * self.m..level * self.m)).unwrap_or(&[])
    }

    /// The linked nodes of a node on a level.
    #[inline]
    pub(super) fn linked(&self, id: NodeId, level: usize) -> impl Iterator<Item = NodeId> {
        let links = self.links(id, level).iter().map(|link| link.load(Ordering::Acquire));
        links.take_while(|&link| link != EMPTY).map(NodeId)
    }
}

/// Chunk of a node, its place in it, and the chunk's length.
#[inline]
fn place(id: u32) -> (usize, usize, usize) {
    let number = u64::from(id) + (1 << BASE_BITS);
    let bits = number.ilog2();
    let len = 1u64 << (bits - 2);
    #[expect(clippy::cast_possible_truncation, reason = "2 bits and 32 bits")]
    let (quarter, offset) = ((number >> (bits - 2)) as usize & 3, (number & (len - 1)) as usize);
    ((bits - BASE_BITS) as usize * 4 + quarter, offset, 1 << (bits - 2))
}

impl Chunk {
    fn new(len: usize, stride: usize) -> Self {
        let level0 = empty_links(len * stride + LINE - 1);
        // At most LINE - 1 for numbers of 4 bytes; where it cannot be told, alignment is given up.
        let skip = level0.as_ptr().align_offset(LINE * 4).min(LINE - 1);
        Chunk {
            rows: empty_links(len),
            children: (0..len).map(|_| AtomicU8::new(0)).collect(),
            level0,
            skip,
            upper: (0..len).map(|_| OnceLock::new()).collect(),
        }
    }
}

fn empty_links(len: usize) -> Box<[AtomicU32]> {
    (0..len).map(|_| AtomicU32::new(EMPTY)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_each_other_without_gap_or_overlap() {
        let mut want = (0, 0);
        for id in 0..100_000 {
            let (chunk, offset, len) = place(id);
            assert_eq!((chunk, offset), want, "node {id}");
            want = if offset + 1 == len { (chunk + 1, 0) } else { (chunk, offset + 1) };
        }
        let (chunk, offset, len) = place(EMPTY - 1);
        assert!(chunk < CHUNKS && offset < len);
    }

    #[test]
    fn lists_begin_on_cache_lines_and_are_separate() {
        let nodes = Nodes::new(16);
        for _ in 0..1000 {
            nodes.allocate();
        }
        for id in nodes.ids() {
            let links = nodes.links(id, 0);
            assert_eq!((links.len(), links.as_ptr().addr() % 64), (32, 0));
            assert!(links.iter().all(|link| link.load(Ordering::Relaxed) == EMPTY));
            links.iter().for_each(|link| link.store(id.0, Ordering::Relaxed));
        }
        for id in nodes.ids() {
            assert!(nodes.linked(id, 0).all(|linked| linked == id));
        }
    }

    #[test]
    fn a_node_has_links_only_on_its_levels() {
        let nodes = Nodes::new(4);
        let (low, high) = (nodes.allocate(), nodes.allocate());
        nodes.set_level(high, 2);
        assert_eq!((nodes.level(low), nodes.level(high)), (0, 2));
        assert_eq!(
            (nodes.links(low, 1).len(), nodes.links(high, 2).len(), nodes.links(high, 3).len()),
            (0, 4, 0)
        );
        assert_eq!(nodes.row(low), None);
        nodes.set_row(low, RowId(9));
        assert_eq!(nodes.row(low), Some(RowId(9)));
        assert!(nodes.links(NodeId(1 << 30), 0).is_empty());
    }
}
