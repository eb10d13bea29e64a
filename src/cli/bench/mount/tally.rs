//! What was measured: rounds of each row for each target, and what is shown of them.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::measure::rounded;

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Operations, timed one by one.
    Operations,
    /// Operations that are timed all together.
    Batch,
    /// Bytes, shown in MiB.
    Bytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Operations | Unit::Batch => "1/s",
            Unit::Bytes => "MiB/s",
        }
    }
}

/// One round of a row.
#[derive(Clone, Copy, Debug)]
struct Round {
    p50_us: f64,
    p99_us: f64,
    per_s: f64,
}

/// A line of the answer: one operation on every target.
struct Row {
    op: &'static str,
    unit: Unit,
    /// By target.
    rounds: Vec<Vec<Round>>,
}

/// All rows, in the order in which they were measured first.
pub(super) struct Tally {
    targets: Vec<&'static str>,
    rows: Vec<Row>,
}

/// One row as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) op: &'static str,
    /// What `rate` is in.
    pub(super) unit: &'static str,
    pub(super) results: Vec<Shown>,
}

/// A target's share of a row: medians of its rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    pub(super) target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_us: Option<f64>,
    pub(super) rate: f64,
    /// The first target's speed by this one's, from the median times of an operation, else from the rates.
    pub(super) ratio: f64,
}

impl Tally {
    pub(super) fn new(targets: Vec<&'static str>) -> Self {
        Self { targets, rows: Vec::new() }
    }

    /// Times `count` operations one by one.
    pub(super) fn each(
        &mut self,
        op: &'static str,
        target: usize,
        count: usize,
        mut work: impl FnMut(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            let started = Instant::now();
            work(number)?;
            times.push(started.elapsed());
        }
        let total: Duration = times.iter().sum();
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let per_s = count as f64 / total.as_secs_f64().max(f64::MIN_POSITIVE);
        self.add(op, Unit::Operations, target, Round { p50_us: at(50), p99_us: at(99), per_s });
        Ok(())
    }

    /// Times one piece of work that is worth `count` of `unit`.
    pub(super) fn whole(
        &mut self,
        op: &'static str,
        target: usize,
        (unit, count): (Unit, usize),
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let started = Instant::now();
        work()?;
        let seconds = started.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let scale = if unit == Unit::Bytes { f64::from(1 << 20) } else { 1.0 };
        let per_s = count as f64 / scale / seconds;
        self.add(op, unit, target, Round { p50_us: 0.0, p99_us: 0.0, per_s });
        Ok(())
    }

    fn add(&mut self, op: &'static str, unit: Unit, target: usize, round: Round) {
        let row = match self.rows.iter_mut().position(|row| row.op == op) {
            Some(row) => row,
            None => {
                self.rows.push(Row { op, unit, rounds: vec![Vec::new(); self.targets.len()] });
                self.rows.len() - 1
            }
        };
        if let Some(rounds) = self.rows[row].rounds.get_mut(target) {
            rounds.push(round);
        }
    }

    /// What is printed.
    pub(super) fn lines(&self) -> Vec<Line> {
        self.rows.iter().map(|row| row.line(&self.targets)).collect()
    }
}

impl Row {
    fn line(&self, targets: &[&'static str]) -> Line {
        let is_timed = self.unit == Unit::Operations;
        let of = |rounds: &[Round], value: fn(&Round) -> f64| median(rounds.iter().map(value).collect());
        let first = self.rounds.first().map(Vec::as_slice).unwrap_or_default();
        let results = targets.iter().zip(&self.rounds).filter(|(_, rounds)| !rounds.is_empty());
        let results = results
            .map(|(&target, rounds)| {
                let (p50, rate) = (of(rounds, |round| round.p50_us), of(rounds, |round| round.per_s));
                let ratio = match is_timed {
                    true => p50 / of(first, |round| round.p50_us),
                    false => of(first, |round| round.per_s) / rate,
                };
                Shown {
                    target,
                    p50_us: is_timed.then(|| rounded(p50, 2)),
                    p99_us: is_timed.then(|| rounded(of(rounds, |round| round.p99_us), 2)),
                    rate: rounded(rate, 1),
                    ratio: rounded(ratio, 3),
                }
            })
            .collect();
        Line { op: self.op, unit: self.unit.name(), results }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_compared_by_its_medians_with_the_first() {
        let mut tally = Tally::new(vec!["vexfs", "floor"]);
        for (vexfs, floor) in [(10.0, 5.0), (20.0, 8.0), (90.0, 70.0)] {
            for (target, p50_us) in [vexfs, floor].into_iter().enumerate() {
                tally.add(
                    "stat",
                    Unit::Operations,
                    target,
                    Round { p50_us, p99_us: p50_us, per_s: 1e6 / p50_us },
                );
                tally.add("copy", Unit::Batch, target, Round { p50_us: 0.0, p99_us: 0.0, per_s: p50_us });
            }
        }
        let lines = tally.lines();
        let shown = &lines[0].results[1];
        assert_eq!((shown.p50_us, shown.ratio), (Some(8.0), 0.4));
        let shown = &lines[1].results[1];
        assert_eq!((shown.p50_us, shown.rate, shown.ratio), (None, 8.0, 2.5));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
