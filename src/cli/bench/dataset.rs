//! The files of a benchmark: vectors, queries, true neighbours.

use std::fs;
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::super::exit::{Code, Failure};
use crate::distance::Metric;
use crate::format::{self, Dtype, FileKind, Layout, Limits};
use crate::store::{BlobMap, Store};

/// Rows of the base begin at multiples of so many floats: a cache line, as slots of the store do.
const ROW_ALIGN: usize = 16;

/// A file of many rows, whole in memory.
struct Table {
    bytes: Vec<u8>,
    layout: Layout,
}

impl Table {
    fn read(file: &Path) -> Result<Self, Failure> {
        let kind = file.file_name().and_then(|name| format::recognise(name.as_bytes()));
        let Some(kind @ (FileKind::Npy | FileKind::Vecs(_) | FileKind::Bin(_))) = kind else {
            let want = "want a name in .npy .fvecs .bvecs .ivecs .fbin .f16bin .u8bin .i8bin";
            return Err(invalid(file, want));
        };
        let bytes = fs::read(file).map_err(|error| invalid(file, error))?;
        let layout =
            format::layout(kind, &bytes, &Limits::default()).map_err(|error| invalid(file, error))?;
        Ok(Table { bytes, layout })
    }

    fn rows(&self) -> usize {
        usize::try_from(self.layout.rows).expect("every row has bytes in memory")
    }

    /// Reads every row once, and refuses the file at the first that has no distances.
    fn validate(&self, file: &Path, metric: Metric, on_row: impl FnMut(u64, &[f32])) -> Result<(), Failure> {
        format::validate(&self.layout, &self.bytes, metric == Metric::Cosine, on_row)
            .map_err(|error| invalid(file, error))
    }
}

/// The vectors that are indexed, as f32 in a mapped file of the store: as the daemon has them, the kernel may drop
/// their pages, and they are no anonymous memory.
pub(super) struct Base {
    map: Arc<BlobMap>,
    name: String,
    dim: usize,
    rows: usize,
    is_cut: bool,
}

impl Base {
    /// Reads all rows of `file`, or the first `n`, checks them, and writes them to a store of their own.
    ///
    /// # Errors
    ///
    /// Invalid for a file that cannot be read, has fewer than `n` rows, or a row without distances, which it names;
    /// errors of the store.
    pub(super) fn read(file: &Path, metric: Metric, n: Option<NonZeroUsize>) -> Result<Self, Failure> {
        let mut table = Table::read(file)?;
        let all = table.rows();
        let rows = n.map_or(all, NonZeroUsize::get);
        if rows > all {
            return Err(Failure::new(
                Code::Invalid,
                format!("n is {rows}, {} has {all} vectors", file.display()),
            ));
        }
        table.layout.rows = rows as u64;
        let dim = table.layout.dim as usize;

        let dir = tempfile::tempdir().map_err(|error| Failure::io(&std::env::temp_dir(), &error))?;
        let store = Store::open(&dir.path().join("store"), "vexfs bench")?;
        let (id, blob) = store.create_blob()?;
        let mut out = BufWriter::with_capacity(1 << 20, &blob);
        let gap = vec![0.0f32; dim.next_multiple_of(ROW_ALIGN) - dim];
        let mut written = Ok(());
        table.validate(file, metric, |_, row| {
            if written.is_ok() {
                written = out.write_all(row.as_bytes()).and_then(|()| out.write_all(gap.as_bytes()));
            }
        })?;
        written.and_then(|()| out.flush()).map_err(|error| Failure::io(dir.path(), &error))?;
        drop(out);
        // Pages that wait to be written would be written while the clock runs.
        store.sync_blob(id, &blob)?;
        let map = store.map_blob(id)?;
        // The directory goes now, so that nothing is left of it when the program is interrupted; the mapping stays.
        let name = file.display().to_string();
        Ok(Base { map, name, dim, rows, is_cut: rows < all })
    }

    /// The f32 of all rows, [`stride`](Self::stride) apart, page-aligned.
    pub(super) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Floats from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.dim.next_multiple_of(ROW_ALIGN)
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the file has more rows.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }
}

/// One query.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    pub(super) number: usize,
    pub(super) values: &'a [f32],
}

/// The vectors that are searched for.
pub(super) struct Queries {
    dim: usize,
    values: Vec<f32>,
}

impl Queries {
    /// Reads all rows of `file`.
    ///
    /// # Errors
    ///
    /// Invalid for a file that cannot be read, has another dimension than the base, or a row without distances.
    pub(super) fn read(file: &Path, metric: Metric, base: &Base) -> Result<Self, Failure> {
        let table = Table::read(file)?;
        let dim = table.layout.dim as usize;
        if dim != base.dim {
            return Err(invalid(file, format!("dimension {dim}, {} has {}", base.name, base.dim)));
        }
        let mut values = Vec::with_capacity(table.rows() * dim);
        table.validate(file, metric, |_, row| values.extend_from_slice(row))?;
        Ok(Queries { dim, values })
    }

    pub(super) fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// `None` past the last.
    #[inline]
    pub(super) fn get(&self, number: usize) -> Option<Vector<'_>> {
        let start = number * self.dim;
        self.values.get(start..start + self.dim).map(|values| Vector { number, values })
    }
}

/// The true neighbours of the queries: `k` rows for each, every row once.
pub(super) struct Truth {
    neighbors: Vec<Vec<u32>>,
    origin: &'static str,
}

impl Truth {
    /// Neighbours that were found by a scan.
    pub(super) fn scanned(neighbors: Vec<Vec<u32>>) -> Self {
        Truth { neighbors, origin: "scan" }
    }

    /// Reads the first `k` neighbours of each query.
    ///
    /// # Errors
    ///
    /// Invalid for a file that cannot be read, does not have whole numbers, has fewer columns than `k`, not one row
    /// for each of `queries`, or names a row that the base of `rows` does not have.
    pub(super) fn read(file: &Path, k: usize, queries: usize, rows: usize) -> Result<Self, Failure> {
        let lists = Self::lists(file)?;
        let invalid = |why: String| Err(invalid(file, why));
        if lists.len() != queries {
            return invalid(format!("{} rows, there are {queries} queries", lists.len()));
        }
        let mut neighbors = Vec::with_capacity(queries);
        for (query, list) in lists.iter().enumerate() {
            if list.len() < k {
                return invalid(format!("{} neighbours of each query, k is {k}", list.len()));
            }
            let mut nearest = Vec::with_capacity(k);
            for &number in &list[..k] {
                match u32::try_from(number) {
                    Ok(row) if (row as usize) < rows => nearest.push(row),
                    _ => {
                        return invalid(format!(
                            "query {query}: neighbour {number}, the base has {rows} vectors"
                        ));
                    }
                }
            }
            neighbors.push(nearest);
        }
        Ok(Truth { neighbors, origin: "gt" })
    }

    /// All row numbers of a file, a list for each query.
    fn lists(file: &Path) -> Result<Vec<Vec<i64>>, Failure> {
        let kind = file.file_name().and_then(|name| format::recognise(name.as_bytes()));
        if kind == Some(FileKind::Npy) {
            let bytes = fs::read(file).map_err(|error| invalid(file, error))?;
            let numbers = format::npy_numbers(&bytes).map_err(|error| invalid(file, error))?;
            return Ok((0..numbers.rows()).map(|row| numbers.row(row).collect()).collect());
        }
        let Table { bytes, layout } = Table::read(file)?;
        if layout.dtype != Dtype::I32 {
            return Err(invalid(file, format!("elements are {}, want i32: row numbers", layout.dtype)));
        }
        let number = |value: &[u8; 4]| i32::from_le_bytes(*value).into();
        let list = |row| bytes[layout.row_range(row)].as_chunks().0.iter().map(number).collect();
        Ok((0..layout.rows).map(list).collect())
    }

    /// Where it is from: `gt` or `scan`.
    pub(super) fn origin(&self) -> &'static str {
        self.origin
    }

    /// How many of a query's true neighbours are in `found`; each counts once, however often it is on either side.
    pub(super) fn count_hits(&self, query: usize, found: &[u32]) -> usize {
        let truth = &self.neighbors[query];
        let is_first = |(at, row): &(usize, &u32)| !truth[..*at].contains(row);
        truth.iter().enumerate().filter(is_first).filter(|(_, row)| found.contains(row)).count()
    }
}

fn invalid(file: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Invalid, format!("{}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_counts_once_on_either_side() {
        let truth = Truth::scanned(vec![vec![1, 2, 3], vec![4, 4, 5]]);
        assert_eq!(truth.count_hits(0, &[3, 9, 1]), 2);
        assert_eq!(truth.count_hits(0, &[2, 2, 2]), 1);
        assert_eq!(truth.count_hits(1, &[4, 5, 6]), 2);
        assert_eq!(truth.count_hits(1, &[]), 0);
    }
}
