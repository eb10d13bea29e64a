//! The measuring itself, in pieces: the true neighbours of a sample by a scan, then the walks for it.
//!
//! **A stored row is not a query**: a walk for it meets its own node, which links the rows that are looked for. So each
//! is asked for in the graph as it would be without it ([`Absence`]): like a query, it then has no part in the links.
//!
//! **Rows go meanwhile**, from the graph as well: a row that is gone by the time of a walk is no true neighbour for it.
//! Else the walk would seem to miss it, and searches would be made wider for good.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Calibration, Curve, Point, as_f64};
use crate::collection::{Reader, Schema};
use crate::index::flat::{self, TopK};
use crate::index::hnsw::{Absence, Beam, Hnsw, Place, SearchScratch};
use crate::index::{Neighbor, Query, RowId, VectorSource as _};
use crate::random::splitmix64;

/// Rows of a sample. With 1000 the standard error of a recall@10 of 0.9 is about 0.004.
const MAX_SAMPLE: usize = 1000;

/// Rows of a sample where [`WORK`] would allow fewer; their scan is then a tenth of the work that linking the rows was.
const MIN_SAMPLE: usize = 200;

/// `ef` of all walks at one rung of the ladder, where the sample has so many rows: at a high `ef` recalls differ less,
/// and [`MIN_SAMPLE`] tell as much.
const RUNG_WORK: usize = 64_000;

/// Elements compared by the scan, and by the walks: each some 2 seconds of one core.
const WORK: usize = 20_000_000_000;

/// Elements compared by the walks, which read rows in no order.
const WALK_WORK: usize = WORK / 4;

/// Elements compared in one piece of the work.
const PIECE: usize = 16_000_000;

/// Rows that are compared with the whole sample before the next rows are read: they stay in the CPU's cache.
const BLOCK: usize = 256;

/// The `ef` that are tried, one after the other, until the highest recall that can be asked for is there. Where a
/// recall rises steeply they lie close.
const LADDER: [usize; 28] = [
    10, 11, 12, 14, 16, 20, 24, 28, 30, 32, 40, 48, 64, 80, 100, 128, 160, 192, 256, 384, 512, 768, 1024,
    1536, 2048, 3072, 4096, 6144,
];

/// Climbed whatever it costs; what lies above it only while [`WALK_WORK`] is not spent.
const ALWAYS_UP_TO: usize = 768;

/// Visits that take as long as making an [`Absence`], about.
const ABSENCE_VISITS: usize = 80_000;

/// The largest `k` that is measured.
const MAX_K: usize = 100;

/// A stored row in the role of a query.
#[derive(Debug)]
struct Sampled {
    row: RowId,
    top: TopK,
    /// Its true neighbours, nearest first, once the scan is done.
    truth: Vec<Neighbor>,
    /// Where it lies in the graph, once the scan is done.
    place: Option<Place>,
    /// The graph without it, from its first walk on.
    absence: Option<Absence>,
}

/// A measuring that is under way. It reads the collection as it was at the beginning.
#[derive(Debug)]
pub(in crate::collection) struct Measuring {
    reader: Reader,
    watermark: RowId,
    /// Live rows below the watermark.
    rows: u64,
    sample: Vec<Sampled>,
    /// Rows below this one have been compared with the sample.
    scanned: u32,
    /// First for k = 1 and 10, then for 30 and for 100.
    climbs: [Climb; 3],
    /// Elements compared by walks.
    walked: usize,
    scratch: SearchScratch,
}

impl Measuring {
    /// Draws the sample from the live rows below `watermark`, all of which the graph has.
    pub(super) fn begin(reader: Reader, watermark: RowId) -> Self {
        let rows = (0..watermark.0).filter(|&row| reader.row(RowId(row)).is_some()).count();
        let work = rows.saturating_mul(reader.dim()).max(1);
        let size = (WORK / work).clamp(MIN_SAMPLE, MAX_SAMPLE);
        let sample = draw(&reader, watermark, size)
            .into_iter()
            .map(|row| Sampled { row, top: TopK::new(MAX_K), truth: Vec::new(), place: None, absence: None })
            .collect();
        let climbs = [Climb::new(10, &[1, 10]), Climb::new(30, &[30]), Climb::new(MAX_K, &[MAX_K])];
        let scratch = SearchScratch::new();
        Self { reader, watermark, rows: rows as u64, sample, scanned: 0, climbs, walked: 0, scratch }
    }

    /// Live rows at the beginning.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The graph's watermark at the beginning.
    pub(super) fn watermark(&self) -> RowId {
        self.watermark
    }

    /// Does a piece of the work; returns the outcome with the last one. `now` are the rows by now. Ends early when `stop`
    /// is set.
    pub(super) fn step(&mut self, hnsw: &Hnsw, now: &Reader, stop: &AtomicBool) -> Option<Calibration> {
        let mut work = 0;
        while work < PIECE && !stop.load(Ordering::Relaxed) {
            if self.scanned < self.watermark.0 {
                work += self.scan_block(hnsw);
            } else if let Some(at) = self.climbs.iter().position(|climb| !climb.is_done) {
                work += self.walk_once(at, hnsw, now, stop);
            } else {
                let curves = self.climbs.iter_mut().flat_map(Climb::take_curves).collect();
                return Some(Calibration { curves, rows: self.rows, watermark: self.watermark });
            }
        }
        None
    }

    /// Compares the next rows with the whole sample. Returns how many elements that were.
    fn scan_block(&mut self, hnsw: &Hnsw) -> usize {
        let (reader, dim) = (&self.reader, self.reader.dim());
        let per_row = dim.max(1) * self.sample.len().max(1);
        let rows = u32::try_from((PIECE / per_row).clamp(1, BLOCK)).unwrap_or(1);
        let end = self.scanned.saturating_add(rows).min(self.watermark.0);
        let block: Vec<RowId> =
            (self.scanned..end).map(RowId).filter(|&row| reader.row(row).is_some()).collect();
        let (mut decoded, mut scratch) = (vec![0.0; dim], vec![0.0; dim]);
        for sampled in &mut self.sample {
            let Some(vector) = reader.vector(sampled.row, &mut decoded) else { continue };
            let query = Query::new(hnsw.metric(), vector);
            let others = block.iter().copied().filter(|&row| row != sampled.row);
            flat::scan(&query, others, reader, &mut sampled.top, &mut scratch, &mut || true);
            if end == self.watermark.0 {
                sampled.truth = std::mem::take(&mut sampled.top).into_sorted();
            }
        }
        if end == self.watermark.0 {
            self.find_places(hnsw);
        }
        self.scanned = end;
        block.len().max(1) * per_row
    }

    /// Finds where the sample lies in the graph. What is not there has no part in the walks.
    fn find_places(&mut self, hnsw: &Hnsw) {
        let places = hnsw.places(&self.sample.iter().map(|sampled| sampled.row).collect());
        let places: HashMap<RowId, Place> = places.into_iter().map(|place| (place.row(), place)).collect();
        self.sample.retain_mut(|sampled| {
            sampled.place = places.get(&sampled.row).copied();
            sampled.place.is_some()
        });
    }

    /// Walks the graph for one sampled row at one `ef`. Returns how many elements were compared.
    fn walk_once(&mut self, at: usize, hnsw: &Hnsw, now: &Reader, stop: &AtomicBool) -> usize {
        let Self { reader, watermark, rows, sample, climbs, walked, scratch, .. } = self;
        let climb = &mut climbs[at];
        let Some(sampled) = sample.get_mut(climb.next) else {
            climb.end_rung(*rows, *walked, sample.len());
            return 0;
        };
        let mut decoded = vec![0.0; reader.dim()];
        let Some(vector) = reader.vector(sampled.row, &mut decoded) else {
            climb.next += climb.stride;
            return 0;
        };
        let Some(absence) = &sampled.absence else {
            sampled.absence = sampled.place.and_then(|place| hnsw.absence(place, reader));
            if sampled.absence.is_none() {
                // A repair has moved it: it has no part, now or at the next rung.
                sample.remove(climb.next);
            }
            return ABSENCE_VISITS * reader.dim();
        };
        climb.next += climb.stride;
        let query = Query::new(hnsw.metric(), vector);
        // As a search without a filter walks.
        let beam = Beam { accepts_most: true, without: Some(absence), ..Beam::new(climb.k, climb.ef()) };
        let is_live = |row| now.row(row).is_some();
        let accept = |row| row < *watermark && row != sampled.row && is_live(row);
        let found = hnsw.search(&query, beam, reader, accept, scratch, &mut || !stop.load(Ordering::Relaxed));
        if !found.stopped {
            sampled.truth.retain(|neighbor| is_live(neighbor.row));
            climb.count(&found.neighbors, &sampled.truth);
        }
        let work = found.visited.max(1) * reader.dim();
        *walked += work;
        work
    }
}

/// The walks for one `k`, at one rung of the ladder after the other.
#[derive(Debug)]
struct Climb {
    k: usize,
    /// What is counted in its answers: the first k of them are what a search for fewer would find.
    tallies: Vec<Tally>,
    rung: usize,
    /// The next of the sample.
    next: usize,
    /// From one of the sample to the next that takes part at this rung.
    stride: usize,
    is_done: bool,
}

/// Recall at one `k`.
#[derive(Debug)]
struct Tally {
    k: usize,
    /// Recalls at this rung.
    recalls: Vec<f64>,
    points: Vec<Point>,
}

impl Climb {
    fn new(k: usize, counted: &[usize]) -> Self {
        let tally = |&k| Tally { k, recalls: Vec::new(), points: Vec::new() };
        let rung = LADDER.partition_point(|&ef| ef < k);
        Climb { k, tallies: counted.iter().map(tally).collect(), rung, next: 0, stride: 1, is_done: false }
    }

    fn ef(&self) -> usize {
        LADDER[self.rung]
    }

    fn count(&mut self, found: &[Neighbor], truth: &[Neighbor]) {
        for tally in &mut self.tallies {
            tally.recalls.extend(recall(found, truth, tally.k));
        }
    }

    /// Takes the rung's points and goes up, unless nothing more is to be had: every curve has the highest recall
    /// that can be asked for, the beam held all `rows`, or enough has been `walked`.
    fn end_rung(&mut self, rows: u64, walked: usize, sample: usize) {
        let ef = self.ef();
        let mut is_enough = true;
        for tally in &mut self.tallies {
            let point = summary(ef, &tally.recalls);
            tally.recalls.clear();
            is_enough &= point.is_none_or(|point| point.recall >= Schema::MAX_RECALL);
            tally.points.extend(point);
        }
        self.rung += 1;
        let is_costly = ef >= ALWAYS_UP_TO && walked >= WALK_WORK;
        self.is_done = is_enough || is_costly || self.rung == LADDER.len() || ef as u64 >= rows;
        self.next = 0;
        let wanted = LADDER.get(self.rung).map_or(sample, |ef| (RUNG_WORK / ef).max(MIN_SAMPLE));
        self.stride = (sample / wanted.max(1)).max(1);
    }

    fn take_curves(&mut self) -> Vec<Curve> {
        self.tallies.drain(..).map(|tally| Curve::new(tally.k, tally.points)).collect()
    }
}

/// Mean at a rung; `None` of nothing.
fn summary(ef: usize, recalls: &[f64]) -> Option<Point> {
    let count = as_f64(recalls.len());
    (!recalls.is_empty()).then(|| Point { ef, recall: recalls.iter().sum::<f64>() / count })
}

/// Share of the true `k` nearest that were found; `None` where there are no true ones. A row as near as the last true
/// one is right, whichever of those that tie it is.
fn recall(found: &[Neighbor], truth: &[Neighbor], k: usize) -> Option<f64> {
    let truth = &truth[..truth.len().min(k)];
    let last = truth.last()?;
    // By number as well: a graph may compute a key with another rounding.
    let is_right = |one: &&Neighbor| one.key <= last.key || truth.iter().any(|right| right.row == one.row);
    let right = found.iter().take(truth.len()).filter(is_right).count();
    Some(as_f64(right) / as_f64(truth.len()))
}

/// Up to `size` different live rows below `end`, the same ones for the same rows.
fn draw(reader: &Reader, end: RowId, size: usize) -> BTreeSet<RowId> {
    let mut rows = BTreeSet::new();
    let mut state = 0x7e57_ca11_b8a7_e000_u64;
    // Where almost every number is dead, fewer are found, or none; then the graph is about to be built anew.
    for _ in 0..size.saturating_mul(64) {
        if rows.len() == size || end.0 == 0 {
            break;
        }
        // The high half of the product of two 32-bit numbers lies below the first.
        let scaled = (u64::from(end.0) * (splitmix64(&mut state) >> 32)) >> 32;
        let row = RowId(u32::try_from(scaled).unwrap_or(0));
        if reader.row(row).is_some() {
            rows.insert(row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbors(pairs: &[(u32, f32)]) -> Vec<Neighbor> {
        pairs.iter().map(|&(row, key)| Neighbor { row: RowId(row), key }).collect()
    }

    #[test]
    fn a_row_that_ties_with_the_last_true_one_is_right() {
        let truth = neighbors(&[(1, 0.0), (2, 1.0), (3, 1.0), (4, 1.0)]);
        assert_eq!(recall(&neighbors(&[(1, 0.0), (4, 1.0)]), &truth, 2), Some(1.0));
        assert_eq!(recall(&neighbors(&[(1, 0.0), (9, 1.5)]), &truth, 2), Some(0.5));
        assert_eq!(recall(&neighbors(&[(1, 0.0)]), &truth, 4), Some(0.25));
        assert_eq!(recall(&neighbors(&[(1, 0.0), (2, 1.0), (3, 1.0), (4, 1.0)]), &truth, 10), Some(1.0));
        assert_eq!(recall(&[], &[], 10), None);
    }

    #[test]
    fn a_point_is_the_mean_of_what_was_found() {
        assert_eq!(summary(32, &[1.0, 0.5, 0.75, 0.75]), Some(Point { ef: 32, recall: 0.75 }));
        assert_eq!(summary(10, &[]), None);
    }

    #[test]
    fn the_ladder_rises() {
        assert!(LADDER.is_sorted_by(|a, b| a < b) && LADDER.contains(&10) && LADDER.contains(&MAX_K));
    }
}
