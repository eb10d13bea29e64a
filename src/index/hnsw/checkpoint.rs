//! A graph on disk: derived state that spares a rebuild, and is thrown away when anything about it is wrong.
//!
//! All numbers are little-endian. With `n` nodes, `t` towers, `c` elements of the centers, `m0 = 2 m`:
//!
//! ```text
//! offset  size      field
//!      0  8         magic: "VEXHNSW" and a zero byte
//!      8  4         version: 5
//!     12  4         metric: 0 cosine, 1 ip, 2 l2
//!     16  4         dim: elements of a vector, at least 1
//!     20  4         m: 2..=128
//!     24  4         ef_construction: 1..=4096
//!     28  4         quant: 0 none, 1 sq8, 2 b1
//!     32  8         seed of levels and rotation
//!     40  4         n: nodes, free ones included
//!     44  4         t: towers
//!     48  4         entry: link to the node where searches begin; 0 if there is none
//!     52  4         nodes with a row
//!     56  4         c: a multiple of dim, at most 512 dim
//!     60  4         zero
//!     64  32        stamp: names the state of the collection that the graph describes
//!     96  4 c       centers of the codes
//!      -  8 b       XXH3-64 of every block of 4096 rows, section after section
//!      -  8         XXH3-64 of everything before
//!      -  0..=63    zero, up to a multiple of 64
//!      -            the sections, each with zeros up to a multiple of 64 behind it:
//!         4 m0 n    links on level 0 of each node
//!         4 n       the row of each node plus 1; 0: the node is free
//!         8 n       of each node: the number of its first tower plus 1, or 0; its level, and from the ninth bit on the
//!                   number of its tree children
//!         4 m t     towers: the links of one node on one level above 0, a node's towers one after the other
//!         code n    the codes: one to three sections, with rows as long as `CodeRows` says
//! ```
//!
//! A link is the number of a node plus 1; 0 ends a list. A level-0 list begins with the tree links: the parent, then
//! the children. The root is its own parent.
//!
//! The file is written beside its place, synced and renamed, so a crash leaves the old file or the new one. Opening it
//! reads the header and, if nodes are free, the row numbers. A block of a section is compared with its checksum when a
//! search first touches it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::nodes::{MAX_NODES, Nodes};
use super::{Hnsw, Params};
use crate::distance::Metric;
use crate::index::Quant;
use crate::index::centers::MAX_CENTERS;
use crate::store::rows::{BLOCK_ROWS, Guard, Image, Section, WordRows, pin};
use crate::sync::Ordering;
use crate::{Error, Result};

#[cfg(test)]
mod tests;

const MAGIC: [u8; 8] = *b"VEXHNSW\0";
const VERSION: u32 = 5;
const HEADER_BYTES: usize = 96;
const ALIGN: usize = 64;

/// Times that the epoch has to advance before what was given up under a guard is freed, and once more.
const EPOCHS_TO_PASS: usize = 4;

/// What the header says beside magic and version.
struct Header {
    metric: u32,
    dim: u32,
    m: u32,
    ef_construction: u32,
    quant: u32,
    seed: u64,
    nodes: u32,
    towers: u32,
    entry: u32,
    live: u32,
    centers: u32,
    stamp: [u8; 32],
}

/// Where everything lies.
struct Plan {
    /// Rows and bytes of a row of each section.
    shapes: Vec<(usize, usize)>,
    /// Offset of each section.
    offsets: Vec<usize>,
    /// Bytes before the checksum of the header.
    head_bytes: usize,
    len: usize,
}

impl Plan {
    fn new(nodes: &Nodes, header: &Header) -> Self {
        let n = header.nodes as usize;
        let mut shapes = vec![
            (n, nodes.links.row_bytes()),
            (n, nodes.rows.row_bytes()),
            (n, nodes.about.row_bytes()),
            (header.towers as usize, nodes.towers.row_bytes()),
        ];
        shapes.extend(nodes.codes.row_bytes().into_iter().map(|bytes| (n, bytes)));
        let blocks: usize = shapes.iter().map(|(rows, _)| rows.div_ceil(BLOCK_ROWS)).sum();
        let head_bytes = HEADER_BYTES + 4 * header.centers as usize + 8 * blocks;
        let mut at = (head_bytes + 8).next_multiple_of(ALIGN);
        let mut offsets = Vec::new();
        for (rows, row_bytes) in &shapes {
            offsets.push(at);
            // At most 2^30 rows of 2^17 bytes: far from the end of 64 bits.
            at += (rows * row_bytes).next_multiple_of(ALIGN);
        }
        Plan { shapes, offsets, head_bytes, len: at }
    }

    /// The sections, with the checksums of their blocks in order.
    fn sections(&self, checksums: &[u64]) -> Vec<Section> {
        let mut rest = checksums;
        let mut section = |(&(rows, _), &offset): (&(usize, usize), &usize)| {
            let (own, others) = rest.split_at(rows.div_ceil(BLOCK_ROWS).min(rest.len()));
            rest = others;
            Section { offset, rows, checksums: own.to_vec() }
        };
        self.shapes.iter().zip(&self.offsets).map(&mut section).collect()
    }
}

impl Hnsw {
    /// Writes the graph to `path`, makes it durable, and goes on from that file's pages, which need no memory of this
    /// process until they change. `stamp` names the state that the graph describes.
    ///
    /// Inserts wait meanwhile; searches do not. Nobody else writes to `path` at the same time.
    ///
    /// # Errors
    ///
    /// I/O errors, [`Error::Corrupt`] when the graph is damaged; the file at `path` is then what it was before.
    pub fn save(&self, path: &Path, stamp: &[u8; 32]) -> Result<()> {
        let _gate = self.gate.write();
        let still = self.nodes.codes.hold_still();
        let guard = pin();
        let mut beside = path.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = Path::new(&beside);
        let saved = self.write(beside, stamp, &guard).and_then(|written| {
            fs::rename(beside, path)?;
            Ok(written)
        });
        let (file, sections) = match saved {
            Ok(saved) => saved,
            Err(error) => {
                // What is left of a failed attempt only takes space; the first error is the one to report.
                drop(fs::remove_file(beside));
                return Err(if self.is_damaged() { self.damage() } else { error });
            }
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)?.sync_all()?;
        if self.nodes.count() == 0 {
            return Ok(());
        }
        let image = Arc::new(Image::map(&file, path)?);
        let (words, codes) = sections.split_at(4);
        for (rows, section) in word_rows(&self.nodes).into_iter().zip(words) {
            rows.settle(&image, section.clone(), &guard)?;
        }
        let settled = self.nodes.codes.settle(&image, codes, &guard);
        drop(still);
        guard.flush();
        drop(guard);
        // The old memory goes now if nobody reads it, and not when somebody happens to come by.
        for _ in 0..EPOCHS_TO_PASS {
            pin().flush();
        }
        settled
    }

    fn write(&self, path: &Path, stamp: &[u8; 32], guard: &Guard) -> Result<(File, Vec<Section>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let number = |n: usize| u32::try_from(n).map_err(|_| io::Error::other("a number beyond 32 bits"));
        let header = Header {
            metric: metric_code(self.metric),
            dim: number(self.dim)?,
            m: self.params.m,
            ef_construction: self.params.ef_construction,
            quant: quant_code(self.params.quant),
            seed: self.params.seed,
            nodes: self.nodes.count(),
            towers: self.nodes.tower_count(),
            entry: self.entry.load(Ordering::Acquire),
            live: number(self.len())?,
            centers: number(self.codec.centers().len())?,
            stamp: *stamp,
        };
        let plan = Plan::new(&self.nodes, &header);
        file.set_len(plan.len as u64)?;
        let mut out = BufWriter::with_capacity(1 << 16, file);
        let mut checksums = Vec::new();
        let words = word_rows(&self.nodes);
        for (at, (&(rows, _), &offset)) in plan.shapes.iter().zip(&plan.offsets).enumerate() {
            out.seek(SeekFrom::Start(offset as u64))?;
            checksums.extend(match words.get(at) {
                Some(words) => words.write(rows, guard, &mut out)?,
                None => self.nodes.codes.write(at - words.len(), rows, guard, &mut out)?,
            });
        }
        let head = header.render(self.codec.centers(), &checksums);
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&head)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok((file, plan.sections(&checksums)))
    }

    /// Maps the graph at `path`; `None` when there is no file, or its stamp is not `expected_stamp`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the header is damaged, of a newer version, or of another metric or dimension than its
    /// stamp promises, or does not fit the file's length; I/O errors.
    pub fn load(path: &Path, expected_stamp: &[u8; 32], metric: Metric, dim: usize) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut from = In { file, path, len: 0, bytes: Vec::new() };
        from.len = from.file.metadata()?.len();
        let Some(header) = Header::read(&mut from, expected_stamp)? else {
            return Ok(None);
        };
        let params = header.check(&from, metric, dim)?;
        let centers = from.more(4 * header.centers as usize)?;
        let centers = centers.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let mut graph = Hnsw::with_centers(metric, dim, params, centers)?;
        let plan = Plan::new(&graph.nodes, &header);
        if from.len != plan.len as u64 {
            let what = format!("file of {} bytes, {} nodes take {}", from.len, header.nodes, plan.len);
            return Err(from.corrupt(40, what));
        }
        let checksums = from.more(plan.head_bytes - from.bytes.len())?;
        let checksums: Vec<u64> =
            checksums.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
        let want = xxh3_64(&from.bytes);
        let stored = from.more(8)?;
        let stored = stored.first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes));
        if stored != want {
            let what = format!("checksum of the header {stored:016x}, it has {want:016x}");
            return Err(from.corrupt(plan.head_bytes, what));
        }
        graph.attach(&from, &header, &plan.sections(&checksums))?;
        Ok(Some(graph))
    }

    fn attach(&mut self, from: &In<'_>, header: &Header, sections: &[Section]) -> Result<()> {
        *self.live.get_mut() = header.live as usize;
        *self.entry.get_mut() = header.entry;
        if header.nodes == 0 {
            return Ok(());
        }
        let image = Arc::new(Image::map(&from.file, from.path)?);
        let (words, codes) = sections.split_at(4);
        for (rows, section) in word_rows(&self.nodes).into_iter().zip(words) {
            rows.attach(&image, section.clone())?;
        }
        self.nodes.codes.attach(&image, codes)?;
        let mut free = Vec::new();
        if header.live < header.nodes {
            let guard = pin();
            for id in 0..header.nodes {
                let row = self.nodes.rows.get(id, &guard).ok_or_else(|| self.damage())?;
                if row[0].load(Ordering::Relaxed) == 0 {
                    free.push(id);
                }
            }
        }
        free.iter().for_each(|&id| self.nodes.codes.vacate(id));
        self.nodes.adopt(header.nodes, header.towers, free);
        Ok(())
    }
}

fn word_rows(nodes: &Nodes) -> [&WordRows; 4] {
    [&nodes.links, &nodes.rows, &nodes.about, &nodes.towers]
}

impl Header {
    fn render(&self, centers: &[f32], checksums: &[u64]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let seed = self.seed.to_le_bytes();
        let [low, high] = seed.as_chunks::<4>().0 else { return bytes };
        let numbers = [
            VERSION,
            self.metric,
            self.dim,
            self.m,
            self.ef_construction,
            self.quant,
            u32::from_le_bytes(*low),
            u32::from_le_bytes(*high),
            self.nodes,
            self.towers,
            self.entry,
            self.live,
            self.centers,
            0,
        ];
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend_from_slice(&self.stamp);
        bytes.extend(centers.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(checksums.iter().flat_map(|checksum| checksum.to_le_bytes()));
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// `None` when the stamp is another than `expected_stamp`, or an older program wrote the file.
    fn read(from: &mut In<'_>, expected_stamp: &[u8; 32]) -> Result<Option<Self>> {
        let bytes = from.more(HEADER_BYTES)?;
        let number = |at: usize| bytes[at..].first_chunk().map_or(0, |&bytes| u32::from_le_bytes(bytes));
        if bytes[..8] != MAGIC {
            return Err(from.corrupt(0, "not a graph file".to_owned()));
        }
        let version = number(8);
        if (1..VERSION).contains(&version) {
            return Ok(None);
        }
        if version != VERSION {
            return Err(from.corrupt(8, format!("version {version}, this program reads {VERSION}")));
        }
        let mut stamp = [0; 32];
        stamp.copy_from_slice(&bytes[64..96]);
        let header = Header {
            metric: number(12),
            dim: number(16),
            m: number(20),
            ef_construction: number(24),
            quant: number(28),
            seed: u64::from(number(36)) << 32 | u64::from(number(32)),
            nodes: number(40),
            towers: number(44),
            entry: number(48),
            live: number(52),
            centers: number(56),
            stamp,
        };
        if number(60) != 0 {
            return Err(from.corrupt(60, "padding is not zero".to_owned()));
        }
        Ok((header.stamp == *expected_stamp).then_some(header))
    }

    fn check(&self, from: &In<'_>, metric: Metric, dim: usize) -> Result<Params> {
        if self.metric != metric_code(metric) {
            let what = format!("metric {}, the collection has {}", self.metric, metric_code(metric));
            return Err(from.corrupt(12, what));
        }
        if self.dim as usize != dim || dim == 0 {
            return Err(from.corrupt(16, format!("dimension {}, the collection has {dim}", self.dim)));
        }
        let quants = [Quant::None, Quant::Sq8, Quant::B1];
        let Some(quant) = quants.into_iter().find(|&quant| quant_code(quant) == self.quant) else {
            return Err(from.corrupt(28, format!("quant {}, want 0 to 2", self.quant)));
        };
        let params = Params { m: self.m, ef_construction: self.ef_construction, seed: self.seed, quant };
        if let Err(error) = params.validate() {
            return Err(from.corrupt(20, error.to_string()));
        }
        if self.nodes > MAX_NODES || self.towers > MAX_NODES {
            return Err(from.corrupt(40, format!("{} nodes, {} towers", self.nodes, self.towers)));
        }
        if self.live > self.nodes || self.entry > self.nodes || (self.entry == 0) != (self.live == 0) {
            let what = format!("entry point {} and {} rows of {} nodes", self.entry, self.live, self.nodes);
            return Err(from.corrupt(48, what));
        }
        if !self.centers.is_multiple_of(self.dim) || self.centers as usize / dim > MAX_CENTERS {
            return Err(from.corrupt(56, format!("centers of {} elements, dimension {dim}", self.centers)));
        }
        Ok(params)
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

/// Number of a quantisation on disk.
fn quant_code(quant: Quant) -> u32 {
    match quant {
        Quant::None => 0,
        Quant::Sq8 => 1,
        Quant::B1 => 2,
    }
}

/// The head of a file that is read.
struct In<'p> {
    file: File,
    path: &'p Path,
    len: u64,
    /// What was read so far.
    bytes: Vec<u8>,
}

impl In<'_> {
    /// The next `len` bytes. Nothing is allocated for what the file does not have.
    fn more(&mut self, len: usize) -> Result<Vec<u8>> {
        let start = self.bytes.len();
        let end = start as u64 + len as u64;
        if end > self.len {
            return Err(self.corrupt(start, format!("file of {} bytes, its header takes {end}", self.len)));
        }
        self.bytes.resize(start + len, 0);
        self.file.read_exact(&mut self.bytes[start..])?;
        Ok(self.bytes[start..].to_vec())
    }

    fn corrupt(&self, offset: usize, what: String) -> Error {
        Error::Corrupt { file: self.path.display().to_string(), offset: offset as u64, what }
    }
}
