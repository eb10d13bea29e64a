//! Recall as the knob: which `ef` a graph needs for the recall that is asked, as measured on the collection's own
//! rows.
//!
//! `measure` samples stored rows, finds the true neighbours of each by a scan, and walks the graph for it at growing
//! `ef`, as if it were a query. The outcome is a [`Calibration`]: derived state that lives with its graph, is
//! begun when the graph has none, and is redone when as many rows as a quarter of those measured have come or gone.

mod measure;
mod saved;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Collection, Graph};
use crate::index::RowId;
pub(super) use measure::Measuring;

/// `ef` of a search whose graph is not calibrated yet.
const UNCALIBRATED_EF: usize = 200;

/// The same where a recall above [`HIGH_RECALL`] is asked.
const UNCALIBRATED_HIGH_EF: usize = 400;

const HIGH_RECALL: f64 = 0.99;

/// The `k` for which [`Collection::recall`] speaks.
const TYPICAL_K: usize = 10;

/// What a search does to find what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effort {
    /// A walk through the graph of this `ef`, which is at least `k`. What it has beyond a whole number is the share of
    /// the queries that get one more: at a small `ef` a whole step would be hundredths of recall.
    Walk(f64),
    /// A comparison with every row: the graph was not seen to have as much as is asked.
    Scan,
}

/// What is known about the recall of a collection's searches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecallEstimate {
    /// The collection's own, which searches have that ask for nothing else.
    pub asked: f64,
    /// Mean share of the true 10 nearest that such a search finds; 1 where it compares every row, `None` while the
    /// graph is not calibrated.
    pub estimate: Option<f64>,
    /// Its `ef`, rounded up; `None` where it compares every row.
    pub ef: Option<usize>,
    /// Live rows when it was measured.
    pub measured_on: Option<u64>,
}

/// A rung of a [`Curve`].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    ef: usize,
    /// Mean recall of the sample.
    recall: f64,
}

/// Recall by `ef` for one `k`. `ef` rises from point to point; recall does not fall.
#[derive(Clone, Debug, PartialEq)]
struct Curve {
    k: usize,
    points: Vec<Point>,
}

impl Curve {
    /// Makes measured points, whose `ef` rises, a curve that does not fall: what a larger `ef` does not keep, a
    /// smaller one is not believed to have.
    fn new(k: usize, mut points: Vec<Point>) -> Self {
        let mut above = f64::INFINITY;
        for point in points.iter_mut().rev() {
            point.recall = point.recall.min(above);
            above = point.recall;
        }
        Curve { k, points }
    }

    /// The least `ef` that was seen to have `recall`, interpolated over log `ef`. `None` beyond the last point.
    fn ef_for(&self, recall: f64) -> Option<f64> {
        let at = self.points.partition_point(|point| point.recall < recall);
        let high = self.points.get(at)?;
        let Some(low) = at.checked_sub(1).map(|below| self.points[below]) else {
            return Some(as_f64(high.ef));
        };
        let share = (recall - low.recall) / (high.recall - low.recall);
        Some(between(as_f64(low.ef), as_f64(high.ef), share))
    }

    /// Mean recall at `ef`, interpolated over log `ef`; beyond the ends that of the ends. `None` without points.
    fn recall_at(&self, ef: f64) -> Option<f64> {
        let at = self.points.partition_point(|point| as_f64(point.ef) < ef);
        let low = at.checked_sub(1).map(|below| self.points[below]);
        match (low, self.points.get(at)) {
            (Some(low), Some(high)) => {
                let share = (ef / as_f64(low.ef)).ln() / (as_f64(high.ef) / as_f64(low.ef)).ln();
                Some(low.recall + share * (high.recall - low.recall))
            }
            (low, high) => low.or(high.copied()).map(|point| point.recall),
        }
    }
}

/// From `low` to `high`, both positive, on a logarithmic scale.
fn between(low: f64, high: f64, share: f64) -> f64 {
    low * (high / low).powf(share)
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows and candidates are far below 2^53")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an interpolated ef is in range")]
fn rounded_up(ef: f64) -> usize {
    ef.ceil() as usize
}

/// What a graph's recall was measured to be: derived state that lives with its graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Of rising `k`; never empty.
    curves: Vec<Curve>,
    /// Live rows that were in the graph.
    rows: u64,
    /// The graph's watermark.
    watermark: RowId,
}

impl Calibration {
    /// The least `ef` whose measured recall@`k` is `recall`; at least `k`. `None` when the graph was not seen to reach
    /// that.
    ///
    /// Curves are measured for k = 1, 10, 30 and 100. For one between, `ef` is interpolated, logarithm over logarithm;
    /// above 100 it grows as `k` does.
    #[must_use]
    pub fn ef_for(&self, recall: f64, k: usize) -> Option<f64> {
        let (low, high, share) = self.beside(k);
        let ef = between(low.ef_for(recall)?, high.ef_for(recall)?, share) * self.beyond(k);
        Some(ef.max(as_f64(k)))
    }

    /// Mean recall@`k` at `ef`, by the same rule. `None` when nothing was measured.
    #[must_use]
    pub fn recall_at(&self, ef: f64, k: usize) -> Option<f64> {
        let (low, high, share) = self.beside(k);
        let ef = ef / self.beyond(k);
        let (low, high) = (low.recall_at(ef)?, high.recall_at(ef)?);
        Some(low + share * (high - low))
    }

    /// The curves on both sides of `k`, and where between them it is.
    fn beside(&self, k: usize) -> (&Curve, &Curve, f64) {
        let last = self.curves.len() - 1;
        let at = self.curves.partition_point(|curve| curve.k < k).min(last);
        let (low, high) = (&self.curves[at.saturating_sub(1)], &self.curves[at]);
        let share = (as_f64(k.max(low.k)) / as_f64(low.k)).ln() / (as_f64(high.k) / as_f64(low.k)).ln();
        (low, high, if share.is_finite() { share.min(1.0) } else { 0.0 })
    }

    /// How many times the largest measured `k` fits into `k`, at least 1.
    fn beyond(&self, k: usize) -> f64 {
        let largest = self.curves[self.curves.len() - 1].k;
        as_f64(k.max(largest)) / as_f64(largest)
    }
}

impl Graph {
    /// What a search for `k` rows has to do so that it finds `recall` of the true ones, a share above 0; of 1, all
    /// of them. Until the graph is calibrated this is a guess: `ef` 200, or 400 above a recall of 0.99.
    #[must_use]
    pub fn effort(&self, recall: f64, k: usize) -> Effort {
        if recall >= 1.0 {
            return Effort::Scan;
        }
        match &*self.calibration.load() {
            Some(known) => known.ef_for(recall, k).map_or(Effort::Scan, Effort::Walk),
            None if recall > HIGH_RECALL => Effort::Walk(as_f64(UNCALIBRATED_HIGH_EF.max(k))),
            None => Effort::Walk(as_f64(UNCALIBRATED_EF.max(k))),
        }
    }

    /// What was measured of walks for `k` rows: mean recall at `ef`, that of the widest one, and on how many rows.
    /// `None` while the graph is not calibrated.
    #[must_use]
    pub fn measured(&self, ef: f64, k: usize) -> Option<(f64, f64, u64)> {
        let known = self.calibration.load();
        let known = known.as_ref()?;
        Some((known.recall_at(ef, k)?, known.recall_at(f64::MAX, k)?, known.rows))
    }
}

impl Collection {
    /// What is known about the recall of searches that name neither `recall` nor `ef`, for k = 10.
    #[must_use]
    pub fn recall(&self) -> RecallEstimate {
        let schema = self.schema();
        let asked = schema.recall;
        let exact = RecallEstimate { asked, estimate: Some(1.0), ef: None, measured_on: None };
        if self.len() < u64::from(schema.exact_below) {
            return exact;
        }
        let Some(graph) = self.graph() else { return exact };
        let known = graph.calibration.load();
        let measured_on = known.as_ref().map(|known| known.rows);
        match graph.effort(asked, TYPICAL_K) {
            Effort::Scan => RecallEstimate { measured_on, ..exact },
            Effort::Walk(ef) => {
                let estimate = known.as_ref().and_then(|known| known.recall_at(ef, TYPICAL_K));
                RecallEstimate { asked, estimate, ef: Some(rounded_up(ef)), measured_on }
            }
        }
    }

    /// Whether the graph's recall is to be measured, for the first time or again.
    #[must_use]
    pub fn wants_calibration(&self) -> bool {
        self.len() >= u64::from(self.schema().exact_below)
            && self.graph().is_some_and(|graph| {
                let known = graph.calibration.load();
                known.as_ref().is_none_or(|known| self.has_changed(&graph, known.rows, known.watermark))
            })
    }

    /// Whether as many rows as a quarter of `rows` have come or gone since the graph's watermark was `watermark`.
    fn has_changed(&self, graph: &Graph, rows: u64, watermark: RowId) -> bool {
        let added = u64::from(graph.watermark().0.saturating_sub(watermark.0));
        let removed = (rows + added).saturating_sub(self.len());
        (added + removed) * 4 > rows
    }

    /// Does a piece of the measuring, some 10 ms long. To be called when no linking work waits. Returns whether there
    /// was something to do.
    pub fn calibrate_step(&self, stop: &AtomicBool) -> bool {
        let Some(graph) = self.graph() else { return false };
        let mut measuring = graph.measuring.lock();
        let is_outdated = |now: &Measuring| self.has_changed(&graph, now.rows(), now.watermark());
        // What is being measured keeps the bytes of the rows that it began with.
        if self.len() < u64::from(self.schema().exact_below) || measuring.as_ref().is_some_and(is_outdated) {
            *measuring = None;
        }
        if stop.load(Ordering::Relaxed) || measuring.is_none() && !self.wants_calibration() {
            return false;
        }
        let snapshot = self.snapshot();
        if !snapshot.graph.is_some_and(|now| Arc::ptr_eq(&now, &graph)) {
            return false;
        }
        let begin = || Measuring::begin(snapshot.reader.clone(), snapshot.watermark);
        if let Some(calibration) =
            measuring.get_or_insert_with(begin).step(&graph.hnsw, &snapshot.reader, stop)
        {
            graph.calibration.store(Some(Arc::new(calibration)));
            *measuring = None;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(k: usize, points: &[(usize, f64)]) -> Curve {
        Curve::new(k, points.iter().map(|&(ef, recall)| Point { ef, recall }).collect())
    }

    fn calibration() -> Calibration {
        let curves = vec![
            curve(1, &[(10, 0.88), (40, 0.96), (160, 1.0)]),
            curve(10, &[(10, 0.68), (40, 0.88), (160, 0.98)]),
            curve(100, &[(100, 0.78), (400, 0.98)]),
        ];
        Calibration { curves, rows: 1000, watermark: RowId(1000) }
    }

    #[test]
    fn a_measured_curve_that_falls_has_what_its_lower_end_keeps() {
        let curve = curve(10, &[(10, 0.8), (16, 0.95), (24, 0.93), (32, 0.99)]);
        let recalls: Vec<f64> = curve.points.iter().map(|point| point.recall).collect();
        assert_eq!(recalls, [0.8, 0.93, 0.93, 0.99]);
    }

    #[test]
    fn a_plateau_is_left_at_its_cheaper_end() {
        let curve = curve(10, &[(10, 0.9), (20, 0.9), (40, 0.9), (80, 1.0)]);
        assert_eq!(curve.ef_for(0.9), Some(10.0));
        assert!(curve.ef_for(0.91).unwrap() > 40.0);
    }

    #[test]
    fn ef_is_interpolated_over_its_logarithm() {
        let known = calibration();
        let ef = |recall| known.ef_for(recall, 10).map(f64::round);
        assert_eq!(ef(0.68), Some(10.0));
        assert_eq!(ef(0.78), Some(20.0), "half of the way from 10 to 40");
        assert_eq!(ef(0.88), Some(40.0));
        assert_eq!(ef(0.93), Some(80.0));
        assert_eq!(ef(0.1), Some(10.0), "not below the least that was tried");
        assert_eq!(ef(0.985), None, "it was never that good");
    }

    #[test]
    fn a_k_between_two_curves_is_between_them_and_one_beyond_grows_with_k() {
        let known = calibration();
        let mut before = 0.0;
        for k in 1..=300 {
            let ef = known.ef_for(0.9, k).unwrap();
            assert!(ef >= before - 1e-9 && ef >= as_f64(k), "k {k}: {ef} after {before}");
            before = ef;
        }
        assert_eq!(known.ef_for(0.88, 200).unwrap(), 2.0 * known.ef_for(0.88, 100).unwrap());
    }

    #[test]
    fn more_recall_never_costs_less() {
        let known = calibration();
        for k in [1, 7, 10, 30, 100, 1000] {
            let ef: Vec<f64> = (1..99).map_while(|i| known.ef_for(f64::from(i) / 100.0, k)).collect();
            assert!(ef.is_sorted_by(|a, b| *a <= b + 1e-9) && ef.len() > 90, "k {k}: {ef:?}");
        }
    }

    #[test]
    fn the_estimate_is_the_mean_and_stays_within_the_ends() {
        let known = calibration();
        assert_eq!(known.recall_at(10.0, 10), Some(0.68));
        assert!((known.recall_at(20.0, 10).unwrap() - 0.78).abs() < 1e-9);
        assert_eq!(known.recall_at(5000.0, 10), Some(0.98));
        assert_eq!(known.recall_at(1.0, 1), Some(0.88));
        assert_eq!(known.recall_at(200.0, 200), known.recall_at(100.0, 100));
    }
}
