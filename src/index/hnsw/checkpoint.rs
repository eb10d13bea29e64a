//! A graph on disk: derived state that spares a rebuild, and is thrown away when anything about it is wrong.
//!
//! All numbers are little-endian. With `n` nodes, `m0 = 2 m`, and `NONE = 0xFFFFFFFF`:
//!
//! ```text
//! offset  size      field
//!      0  8         magic: "VEXHNSW" and a zero byte
//!      8  4         version: 1
//!     12  4         metric: 0 cosine, 1 ip, 2 l2
//!     16  4         dim: elements of a vector, at least 1
//!     20  4         m: 2..=128
//!     24  4         ef_construction: 1..=4096
//!     28  4         n: nodes
//!     32  8         seed of the levels
//!     40  4         entry: node where searches begin; NONE if there is none
//!     44  4         zero
//!     48  32        stamp: names the state of the collection that the graph describes
//!     80  n         level of each node: 0..=24
//!      -  0..=3     zero, up to a multiple of 4
//!      -  4 n       row of each node; NONE: the node was never completed, is on level 0, links and is linked to none
//!      -  4 n m0    level-0 links of each node, NONE from the first free place on
//!      -  4 m s     upper links, s = sum of the levels: for each node in order, levels 1 and up, as on level 0
//!      -  8         XXH3-64 of everything before
//! ```
//!
//! A level-0 list begins with the tree links: the parent, then the children in the order in which they came. The
//! first node of all is its own parent. How many children a node has is not stored: they are the nodes whose parent
//! it is.
//!
//! The file is written beside its place, synced and renamed, so a crash leaves the old file or the new one. A reader
//! checks lengths before it allocates, and every number before it is used: a valid checksum proves nothing about who
//! wrote the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::Xxh3Default;

use super::nodes::{EMPTY, NodeId};
use super::{Hnsw, MAX_LEVEL, Params};
use crate::distance::Metric;
use crate::index::RowId;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"VEXHNSW\0";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 80;
const CHECKSUM_BYTES: u64 = 8;

impl Hnsw {
    /// Writes the graph to `path` and makes it durable. `stamp` names the state that the graph describes.
    ///
    /// Inserts wait while the nodes are copied out; searches do not. Nobody else writes to `path` at the same time.
    ///
    /// # Errors
    ///
    /// I/O errors; the file at `path` is then what it was before.
    pub fn save(&self, path: &Path, stamp: &[u8; 32]) -> Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = Path::new(&beside);
        let written = self.write(beside, stamp).and_then(|()| Ok(fs::rename(beside, path)?));
        if written.is_err() {
            // What is left of a failed attempt only takes space; the first error is the one to report.
            drop(fs::remove_file(beside));
            return written;
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(File::open(parent)?.sync_all()?)
    }

    fn write(&self, path: &Path, stamp: &[u8; 32]) -> Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let mut out = Out { file: BufWriter::with_capacity(1 << 16, file), digest: Xxh3Default::new() };
        {
            let _gate = self.gate.write();
            self.write_nodes(&mut out, stamp)?;
        }
        let checksum = out.digest.digest().to_le_bytes();
        out.file.write_all(&checksum)?;
        out.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(())
    }

    fn write_nodes(&self, out: &mut Out, stamp: &[u8; 32]) -> io::Result<()> {
        let nodes = &self.nodes;
        let too_large = |_| io::Error::other("dimension beyond 32 bits");
        out.bytes(&MAGIC)?;
        out.number(VERSION)?;
        out.number(metric_code(self.metric))?;
        out.number(u32::try_from(self.dim).map_err(too_large)?)?;
        out.number(self.params.m)?;
        out.number(self.params.ef_construction)?;
        out.number(nodes.count())?;
        out.bytes(&self.params.seed.to_le_bytes())?;
        out.number(self.entry.load(Ordering::Acquire))?;
        out.number(0)?;
        out.bytes(stamp)?;
        // An insertion that panicked left a node without a row. It may have a level.
        let level = |id| nodes.row(id).map_or(0, |_| nodes.level(id));
        for id in nodes.ids() {
            out.bytes(&[u8::try_from(level(id)).map_err(io::Error::other)?])?;
        }
        out.bytes(&[0; 3][..padding(nodes.count())])?;
        for id in nodes.ids() {
            out.number(nodes.row(id).map_or(EMPTY, |row| row.0))?;
        }
        for id in nodes.ids() {
            let complete = nodes.row(id).is_some();
            for link in nodes.links(id, 0) {
                out.number(if complete { link.load(Ordering::Acquire) } else { EMPTY })?;
            }
        }
        for id in nodes.ids() {
            for at in 1..=level(id) {
                for link in nodes.links(id, at) {
                    out.number(link.load(Ordering::Acquire))?;
                }
            }
        }
        Ok(())
    }

    /// Reads the graph at `path`; `None` when there is no file, or its stamp is not `expected_stamp`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the file is damaged, of another version, or of another metric or dimension than its
    /// stamp promises; I/O errors.
    pub fn load(path: &Path, expected_stamp: &[u8; 32], metric: Metric, dim: usize) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = file.metadata()?.len();
        let mut from = In {
            file: BufReader::with_capacity(1 << 16, file),
            name: path,
            offset: 0,
            digest: Xxh3Default::new(),
        };
        if len < HEADER_BYTES + CHECKSUM_BYTES {
            let what = format!("file of {len} bytes, the least is {}", HEADER_BYTES + CHECKSUM_BYTES);
            return Err(from.corrupt(what));
        }
        let Some(header) = Header::read(&mut from, expected_stamp)? else {
            return Ok(None);
        };
        header.check(&from, metric, dim)?;
        let graph = Hnsw::new(metric, dim, header.params)?;
        graph.read_nodes(&mut from, &header, len)?;
        graph.entry.store(header.entry, Ordering::Release);
        Ok(Some(graph))
    }

    fn read_nodes(&self, from: &mut In<'_>, header: &Header, len: u64) -> Result<()> {
        let (m, m0) = (u64::from(self.params.m), self.nodes.m0() as u64);
        let n = u64::from(header.nodes);
        // At most 2^32 nodes with 4 * 256 + 9 bytes each: far from the end of 64 bits.
        let least = HEADER_BYTES + n + padding(header.nodes) as u64 + n * 4 * (1 + m0) + CHECKSUM_BYTES;
        if len < least {
            return Err(from.corrupt(format!("file of {len} bytes, {n} nodes need {least}")));
        }
        let mut levels = vec![0; header.nodes as usize];
        from.bytes(&mut levels)?;
        if let Some(at) = levels.iter().position(|&level| usize::from(level) > MAX_LEVEL) {
            let what = format!("level {} of node {at}, the highest is {MAX_LEVEL}", levels[at]);
            return Err(from.corrupt_at(HEADER_BYTES + at as u64, what));
        }
        let want = least + levels.iter().map(|&level| u64::from(level)).sum::<u64>() * 4 * m;
        if len != want {
            return Err(from.corrupt(format!("file of {len} bytes, its nodes take {want}")));
        }
        let mut zero = [0; 3];
        let zero = &mut zero[..padding(header.nodes)];
        from.bytes(zero)?;
        if zero.iter().any(|&byte| byte != 0) {
            return Err(from.corrupt("padding is not zero".to_owned()));
        }

        for &level in &levels {
            let id = self.nodes.allocate();
            self.nodes.set_level(id, usize::from(level));
            let row = from.number()?;
            if row != EMPTY {
                self.nodes.set_row(id, RowId(row));
            } else if level != 0 {
                return Err(from.corrupt(format!("node {} has level {level} and no row", id.0)));
            }
        }
        for id in self.nodes.ids() {
            self.read_links(from, id, 0)?;
        }
        for id in self.nodes.ids() {
            for level in 1..=self.nodes.level(id) {
                self.read_links(from, id, level)?;
            }
        }
        let checksum = from.digest.digest();
        let mut stored = [0; 8];
        from.bytes(&mut stored)?;
        let stored = u64::from_le_bytes(stored);
        if stored != checksum {
            return Err(from.corrupt(format!("checksum {stored:016x}, the content has {checksum:016x}")));
        }
        self.adopt_tree(from)?;
        let entry = NodeId(header.entry);
        let entry_is_node = entry.0 < header.nodes && self.nodes.row(entry).is_some();
        let has_rows = self.rows().next().is_some();
        if entry_is_node || !has_rows && header.entry == EMPTY {
            return Ok(());
        }
        Err(from.corrupt_at(ENTRY_OFFSET, format!("entry point {} of {n} nodes", header.entry)))
    }

    fn read_links(&self, from: &mut In<'_>, id: NodeId, level: usize) -> Result<()> {
        let complete = self.nodes.row(id).is_some();
        let mut ended = !complete;
        for link in self.nodes.links(id, level) {
            let value = from.number()?;
            ended |= value == EMPTY;
            if value == EMPTY {
                continue;
            }
            let linked = NodeId(value);
            if ended {
                return Err(from.corrupt(format!("node {} has a link where none can be", id.0)));
            }
            if value >= self.nodes.count()
                || self.nodes.row(linked).is_none()
                || self.nodes.level(linked) < level
            {
                let what = format!("link of node {} to {value}, which is not on level {level}", id.0);
                return Err(from.corrupt(what));
            }
            link.store(value, Ordering::Release);
        }
        Ok(())
    }

    /// Counts the tree children of every node, and checks that the tree links are one tree over all nodes.
    fn adopt_tree(&self, from: &In<'_>) -> Result<()> {
        let wrong = |id: NodeId, what: &str| from.corrupt(format!("node {} {what}", id.0));
        let mut root = None;
        let mut complete = 0usize;
        for id in self.nodes.ids().filter(|&id| self.nodes.row(id).is_some()) {
            complete += 1;
            let parent = self.nodes.linked(id, 0).next().ok_or_else(|| wrong(id, "has no tree parent"))?;
            if parent == id {
                if root.replace(id).is_some() {
                    return Err(wrong(id, "is a second root"));
                }
                continue;
            }
            let children = self.nodes.children(parent);
            let count = children.load(Ordering::Relaxed);
            if usize::from(count) + 1 >= self.nodes.m0() {
                return Err(wrong(parent, "has more tree children than links"));
            }
            children.store(count + 1, Ordering::Relaxed);
        }
        let mut seen = vec![false; self.len()];
        let mut open: Vec<NodeId> = root.into_iter().collect();
        let mut reached = 0usize;
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                return Err(wrong(id, "is a tree child twice"));
            }
            reached += 1;
            let count = usize::from(self.nodes.children(id).load(Ordering::Relaxed));
            for child in self.nodes.linked(id, 0).skip(1).take(count) {
                if self.nodes.linked(child, 0).next() != Some(id) || child == id {
                    return Err(wrong(child, "does not link its tree parent"));
                }
                open.push(child);
            }
        }
        if reached != complete {
            return Err(from.corrupt(format!("the tree has {reached} nodes of {complete}")));
        }
        Ok(())
    }
}

const ENTRY_OFFSET: u64 = 40;

/// What the header says beside magic, version and stamp.
struct Header {
    metric: u32,
    dim: u32,
    params: Params,
    nodes: u32,
    entry: u32,
    zero: u32,
}

impl Header {
    /// `None` when the stamp is another than `expected_stamp`.
    fn read(from: &mut In<'_>, expected_stamp: &[u8; 32]) -> Result<Option<Self>> {
        let mut magic = [0; 8];
        from.bytes(&mut magic)?;
        if magic != MAGIC {
            return Err(from.corrupt_at(0, "not a graph file".to_owned()));
        }
        let version = from.number()?;
        if version != VERSION {
            return Err(from.corrupt_at(8, format!("version {version}, this program reads {VERSION}")));
        }
        let metric = from.number()?;
        let dim = from.number()?;
        let m = from.number()?;
        let ef_construction = from.number()?;
        let nodes = from.number()?;
        let mut seed = [0; 8];
        from.bytes(&mut seed)?;
        let seed = u64::from_le_bytes(seed);
        let entry = from.number()?;
        let zero = from.number()?;
        let mut stamp = [0; 32];
        from.bytes(&mut stamp)?;
        let params = Params { m, ef_construction, seed, quant: crate::index::Quant::Sq8 };
        let header = Header { metric, dim, params, nodes, entry, zero };
        Ok((stamp == *expected_stamp).then_some(header))
    }

    fn check(&self, from: &In<'_>, metric: Metric, dim: usize) -> Result<()> {
        if self.metric != metric_code(metric) {
            let what = format!("metric {}, the collection has {}", self.metric, metric_code(metric));
            return Err(from.corrupt_at(12, what));
        }
        if self.dim as usize != dim || dim == 0 {
            return Err(from.corrupt_at(16, format!("dimension {}, the collection has {dim}", self.dim)));
        }
        if let Err(error) = self.params.validate() {
            return Err(from.corrupt_at(20, error.to_string()));
        }
        if self.nodes == EMPTY {
            return Err(from.corrupt_at(28, format!("{} nodes", self.nodes)));
        }
        if self.zero != 0 {
            return Err(from.corrupt_at(44, "padding is not zero".to_owned()));
        }
        Ok(())
    }
}

/// Number of a metric on disk.
fn metric_code(metric: Metric) -> u32 {
    match metric {
        Metric::Cosine => 0,
        Metric::Ip => 1,
        Metric::L2 => 2,
    }
}

/// Zero bytes after `nodes` levels.
fn padding(nodes: u32) -> usize {
    (nodes.wrapping_neg() % 4) as usize
}

/// A file that is written, and the checksum of what went there.
struct Out {
    file: BufWriter<File>,
    digest: Xxh3Default,
}

impl Out {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.file.write_all(bytes)
    }

    fn number(&mut self, number: u32) -> io::Result<()> {
        self.bytes(&number.to_le_bytes())
    }
}

/// A file that is read, and the checksum of what came from there.
struct In<'p> {
    file: BufReader<File>,
    name: &'p Path,
    offset: u64,
    digest: Xxh3Default,
}

impl In<'_> {
    fn bytes(&mut self, into: &mut [u8]) -> Result<()> {
        self.file.read_exact(into).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.corrupt("the file ends here".to_owned()),
            _ => Error::Io(error),
        })?;
        self.digest.update(into);
        self.offset += into.len() as u64;
        Ok(())
    }

    fn number(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Damage at what was read last.
    fn corrupt(&self, what: String) -> Error {
        self.corrupt_at(self.offset, what)
    }

    fn corrupt_at(&self, offset: u64, what: String) -> Error {
        Error::Corrupt { file: self.name.display().to_string(), offset, what }
    }
}

#[cfg(test)]
mod tests;
