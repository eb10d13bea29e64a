//! A calibration beside its graph's checkpoint, so that opening a store does not read every vector to measure again.
//!
//! A catalog record (see [`record`]) and its XXH3-64. Derived state: whatever is wrong with it, it is as if there was
//! none. It is renamed into place and not synced: what a power cut leaves of it fails the checksum.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::{Calibration, Curve, Point};
use crate::Result;
use crate::format::record;
use crate::index::RowId;

/// Longest file that is read, in bytes.
const LIMIT: u64 = 64 << 10;

const CHECKSUM_BYTES: usize = 8;

/// `ef` and recall of a point.
type SavedPoint = (u32, f64);

/// `k` and its points.
type SavedCurve = (u32, Vec<SavedPoint>);

/// The calibration of the graph that `stamp` names.
#[derive(bincode::Encode, bincode::Decode)]
struct Saved {
    stamp: [u8; 32],
    rows: u64,
    watermark: u32,
    curves: Vec<SavedCurve>,
}

impl Calibration {
    /// Writes it to `path`.
    ///
    /// # Errors
    ///
    /// I/O errors; the file at `path` is then what it was before.
    pub(in crate::collection) fn save(&self, path: &Path, stamp: [u8; 32]) -> Result<()> {
        // ef and k are at most 10,000.
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let point = |point: &Point| (number(point.ef), point.recall);
        let curve = |curve: &Curve| (number(curve.k), curve.points.iter().map(point).collect());
        let curves = self.curves.iter().map(curve).collect();
        let mut bytes =
            record::encode(&Saved { stamp, rows: self.rows, watermark: self.watermark.0, curves });
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        let beside = path.with_extension("recall.tmp");
        fs::write(&beside, bytes)?;
        Ok(fs::rename(beside, path)?)
    }

    /// Reads the one at `path`; `None` when there is none that can be read, or it is not of the graph that `stamp`
    /// names.
    pub(in crate::collection) fn load(path: &Path, stamp: [u8; 32]) -> Option<Self> {
        let mut bytes = Vec::new();
        fs::File::open(path).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
        parse(&bytes).filter(|saved| saved.stamp == stamp).and_then(Saved::check)
    }
}

fn parse(bytes: &[u8]) -> Option<Saved> {
    let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    let is_whole = checksum == xxh3_64(body).to_le_bytes();
    is_whole.then(|| record::decode("index", body).ok()).flatten()
}

impl Saved {
    /// What the rest of the room relies on: a valid checksum does not say who wrote the file.
    fn check(self) -> Option<Calibration> {
        let is_share = |share: f64| share.is_finite() && share <= 1.0;
        let is_curve = |(k, points): &SavedCurve| {
            *k > 0
                && points.is_sorted_by(|low, high| low.0 < high.0)
                && points.iter().all(|point| point.0 > 0 && is_share(point.1))
        };
        let rises = self.curves.is_sorted_by(|low, high| low.0 < high.0);
        if self.curves.is_empty() || !rises || !self.curves.iter().all(is_curve) {
            return None;
        }
        let point = |(ef, recall): SavedPoint| Point { ef: ef as usize, recall };
        let curve =
            |(k, points): (u32, Vec<_>)| Curve::new(k as usize, points.into_iter().map(point).collect());
        let curves = self.curves.into_iter().map(curve).collect();
        Some(Calibration { curves, rows: self.rows, watermark: RowId(self.watermark) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        let point = |ef, recall| Point { ef, recall };
        let curve = |k| Curve::new(k, vec![point(10, 0.8), point(16, 0.9)]);
        Calibration { curves: vec![curve(1), curve(10)], rows: 1000, watermark: RowId(1024) }
    }

    #[test]
    fn a_calibration_comes_back_for_its_own_graph_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.recall");
        assert_eq!(Calibration::load(&path, [1; 32]), None);
        calibration().save(&path, [1; 32]).unwrap();
        assert_eq!(Calibration::load(&path, [1; 32]), Some(calibration()));
        assert_eq!(Calibration::load(&path, [2; 32]), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.recall");
        calibration().save(&path, [1; 32]).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(Calibration::load(&path, [1; 32]), None, "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(Calibration::load(&path, [1; 32]), None, "{at} bytes");
        }
    }

    #[test]
    fn numbers_that_no_measuring_gives_are_refused() {
        let saved = |curves| Saved { stamp: [0; 32], rows: 1, watermark: 1, curves };
        assert!(saved(vec![(1, vec![(10, 0.5)])]).check().is_some());
        for curves in [
            vec![],
            vec![(0, vec![])],
            vec![(10, vec![]), (1, vec![])],
            vec![(1, vec![(0, 0.5)])],
            vec![(1, vec![(10, f64::NAN)])],
            vec![(1, vec![(10, 1.5)])],
            vec![(1, vec![(16, 0.5), (10, 0.6)])],
        ] {
            let shown = format!("{curves:?}");
            assert!(saved(curves).check().is_none(), "{shown}");
        }
    }
}
