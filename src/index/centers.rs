//! What codes are taken relative to: the mean of the vectors, or one center for each of their clusters.
//!
//! A code errs by a share of the vector's length. Where clusters lie far apart against their width, vectors relative to
//! one mean are much longer than those within a cluster are apart, and codes cannot tell neighbours. So a sample is
//! grouped by k-means; where that takes most of the squared lengths away, the groups' means are the centers. Where
//! it does not, one is enough: more would only cost time.
//!
//! How many groups there are is not known. Seeds are drawn, each with a chance that grows with the squared distance to
//! those before, until twice as many do not come much nearer; after k-means, groups that one center serves nearly as
//! well are joined. So a cluster ends up with one center, however many seeds fell into it.
//!
//! A group may be one of clusters in its turn: twice as many seeds do not come much nearer before there is one for each
//! cluster. So each is looked at by itself, as the whole was.
//!
//! Everything is a function of the rows: the same rows have the same centers.
//!
//! Sources: Arthur and Vassilvitskii 2007, "k-means++" (the seeds); Ward 1963, "Hierarchical grouping to optimize an
//! objective function" (what joining two groups costs).

use super::{Quant, RowId, VectorSource};
use crate::distance::{self, Metric};
use crate::random::splitmix64;

/// The most centers that there are.
pub(super) const MAX_CENTERS: usize = 512;

/// Rows and elements of the sample, at most.
const SAMPLE_ROWS: usize = 4096;
const SAMPLE_ELEMENTS: usize = 1 << 23;
/// Rows for each seed, at least.
const ROWS_PER_SEED: usize = 2;
/// One of so many rows of the sample is looked at first, which spares data without clusters the rest.
const THINNED: usize = 4;
/// The share of the squared distances from the mean that may be left for centers to be worth having.
const WORTH: f64 = 0.25;
/// Twice as many seeds have to leave less than this share of the squared distances.
const NEARER: f64 = 0.8;
/// Groups are joined when that adds no more than this share to the squared distances within them.
const JOINED: f64 = 0.2;
/// Rows of the sample that a group has at least for it to be looked at by itself: of few, chance makes groups.
const GROUP_ROWS: usize = 64;
/// Rounds of k-means.
const ROUNDS: usize = 3;

/// The centers of codes of `rows`, one after the other; none where there is no use for them. For cosine they are those
/// of unit vectors. Rows that are gone are left out.
pub fn centers<S: VectorSource + ?Sized>(
    metric: Metric,
    quant: Quant,
    source: &S,
    rows: impl Iterator<Item = RowId>,
) -> Vec<f32> {
    if quant == Quant::None {
        return Vec::new();
    }
    let sample = Sample::draw(metric, source, &rows.collect::<Vec<_>>());
    let mean = sample.mean();
    // A mean that leaves the range of f32 would make every code nonsense.
    if mean.iter().any(|x| !x.is_finite()) {
        return Vec::new();
    }
    sample.groups(&mean, MAX_CENTERS).unwrap_or(mean)
}

/// Number `number` of the centers of vectors of `dim` elements that is nearest to `vector`; 0 when there are none.
pub(super) fn nearest(centers: &[f32], vector: &[f32]) -> usize {
    let (mut best, mut least) = (0, f32::INFINITY);
    if centers.len() > vector.len() {
        for (number, center) in centers.chunks_exact(vector.len()).enumerate() {
            let distance = distance::l2_squared(vector, center);
            if distance < least {
                (best, least) = (number, distance);
            }
        }
    }
    best
}

/// Some of the vectors, as they are compared.
struct Sample {
    dim: usize,
    values: Vec<f32>,
}

/// Rows of the sample and what is nearest to them.
struct Grouping {
    centers: Vec<f32>,
    /// Of each row: the number of its center, and the squared distance from it.
    nearest: Vec<usize>,
    squares: Vec<f32>,
}

impl Grouping {
    fn potential(&self) -> f64 {
        self.squares.iter().map(|&square| f64::from(square)).sum()
    }
}

impl Sample {
    /// One row of each of as many equal stretches of `rows`, so that neither an order nor a period is missed.
    fn draw<S: VectorSource + ?Sized>(metric: Metric, source: &S, rows: &[RowId]) -> Self {
        let dim = source.dim();
        let size = SAMPLE_ROWS.min(SAMPLE_ELEMENTS / dim.max(1)).min(rows.len());
        let mut sample = Sample { dim, values: Vec::with_capacity(size * dim) };
        let mut scratch = vec![0.0; dim];
        let mut random = Random(0);
        for stretch in 0..size {
            let (begin, end) = (stretch * rows.len() / size, (stretch + 1) * rows.len() / size);
            let row = rows[begin + random.below(end - begin)];
            let Some(vector) = source.vector(row, &mut scratch) else { continue };
            let scale = if metric == Metric::Cosine { source.inverse_norm(row) } else { 1.0 };
            sample.values.extend(vector.iter().map(|x| x * scale));
        }
        sample
    }

    fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim)
    }

    fn mean(&self) -> Vec<f32> {
        let all = vec![0; self.rows().len()];
        self.means(&all, 1, &vec![0.0; self.dim])
    }

    /// The means of the rows by group; of a group without rows what was its center.
    fn means(&self, group: &[usize], groups: usize, centers: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0f64; groups * self.dim];
        let mut counts = vec![0.0f64; groups];
        for (row, &group) in self.rows().zip(group) {
            counts[group] += 1.0;
            for (sum, &x) in sums[group * self.dim..].iter_mut().zip(row) {
                *sum += f64::from(x);
            }
        }
        let mut means = centers.to_vec();
        for (group, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            let places = group * self.dim..(group + 1) * self.dim;
            for (mean, sum) in means[places.clone()].iter_mut().zip(&sums[places]) {
                #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
                let rounded = (sum / count) as f32;
                *mean = rounded;
            }
        }
        means
    }

    /// The means of at most `most` groups, where they are worth having.
    fn groups(&self, mean: &[f32], most: usize) -> Option<Vec<f32>> {
        let thinned = self.rows().step_by(THINNED).flatten().copied().collect();
        let thinned = Sample { dim: self.dim, values: thinned };
        thinned.seed(thinned.worth(mean)?, most)?;
        let worth = self.worth(mean)?;
        let mut grouping = self.seed(worth, most)?;
        for _ in 0..ROUNDS {
            self.settle(&mut grouping);
        }
        grouping.centers = self.join(&grouping);
        self.settle(&mut grouping);
        (grouping.potential() <= worth).then(|| self.refine(&grouping, most))
    }

    /// The means of groups, or of the groups that one is made of; at most `most`.
    fn refine(&self, grouping: &Grouping, most: usize) -> Vec<f32> {
        let groups = grouping.centers.len() / self.dim;
        if groups == 1 {
            return grouping.centers.clone();
        }
        let mut means = Vec::new();
        for (number, mean) in grouping.centers.chunks_exact(self.dim).enumerate() {
            let own = self.rows().zip(&grouping.nearest).filter(|&(_, &nearest)| nearest == number);
            let own = Sample { dim: self.dim, values: own.flat_map(|(row, _)| row).copied().collect() };
            // Each of those behind it has one at least.
            let left = most - means.len() / self.dim - (groups - number - 1);
            let finer = if own.rows().len() < GROUP_ROWS { None } else { own.groups(mean, left) };
            means.extend(finer.unwrap_or_else(|| mean.to_vec()));
        }
        means
    }

    /// The squared distances from centers that they may leave to be worth having. `None` where there is nothing to gain.
    fn worth(&self, mean: &[f32]) -> Option<f64> {
        let around_mean: f64 = self.rows().map(|row| f64::from(distance::l2_squared(row, mean))).sum();
        let worth = WORTH * around_mean;
        worth.is_normal().then_some(worth)
    }

    /// Rows as seeds, each with those that it is the nearest to. `None` when even the most of them leave more than is
    /// `worth`.
    fn seed(&self, worth: f64, most: usize) -> Option<Grouping> {
        let rows = self.rows().len();
        let most = most.min(rows / ROWS_PER_SEED);
        let mut grouping =
            Grouping { centers: Vec::new(), nearest: vec![0; rows], squares: vec![f32::INFINITY; rows] };
        let mut random = Random(1);
        let mut next = random.below(rows);
        let mut before = f64::INFINITY;
        for number in 0..most {
            let seed = &self.values[next * self.dim..(next + 1) * self.dim];
            grouping.centers.extend_from_slice(seed);
            let places = grouping.nearest.iter_mut().zip(&mut grouping.squares);
            for (row, (nearest, square)) in self.rows().zip(places) {
                let distance = distance::l2_squared(row, seed);
                if distance < *square {
                    (*nearest, *square) = (number, distance);
                }
            }
            let potential = grouping.potential();
            // The other rows of a group are twice as far, in squares, from one of them as from their mean.
            let others = (rows - number - 1) as f64 / rows as f64;
            let is_worth = potential / 2.0 <= worth * others;
            if (number + 1).is_power_of_two() {
                if is_worth && potential > NEARER * before {
                    return Some(grouping);
                }
                before = potential;
            }
            if number + 1 == most || potential == 0.0 {
                return is_worth.then_some(grouping);
            }
            let mut left = random.share() * potential;
            // Behind the last one only when rounding has left a rest.
            let drawn = grouping.squares.iter().position(|&square| {
                left -= f64::from(square);
                left < 0.0
            });
            next = drawn.unwrap_or(rows - 1);
        }
        None
    }

    /// A round of k-means: rows go to the nearest center, and centers into the middle of their rows.
    fn settle(&self, grouping: &mut Grouping) {
        for (row, nearest) in self.rows().zip(&mut grouping.nearest) {
            *nearest = self::nearest(&grouping.centers, row);
        }
        let groups = grouping.centers.len() / self.dim;
        grouping.centers = self.means(&grouping.nearest, groups, &grouping.centers);
        for ((row, &nearest), square) in self.rows().zip(&grouping.nearest).zip(&mut grouping.squares) {
            let center = &grouping.centers[nearest * self.dim..(nearest + 1) * self.dim];
            *square = distance::l2_squared(row, center);
        }
    }

    /// Joins groups, the two first that it costs least, as long as it costs little. Returns the centers.
    fn join(&self, grouping: &Grouping) -> Vec<f32> {
        let mut groups: Vec<Group> = grouping
            .centers
            .chunks_exact(self.dim)
            .map(|center| Group {
                center: center.to_vec(),
                rows: 0.0,
                within: 0.0,
                partner: (0, f64::INFINITY),
            })
            .collect();
        for (&nearest, &square) in grouping.nearest.iter().zip(&grouping.squares) {
            groups[nearest].rows += 1.0;
            groups[nearest].within += f64::from(square);
        }
        groups.retain(|group| group.rows > 0.0);
        for at in 0..groups.len() {
            groups[at].partner = partner(&groups, at);
        }
        let cheapest = |groups: &[Group]| {
            let (at, group) =
                groups.iter().enumerate().min_by(|(_, a), (_, b)| a.partner.1.total_cmp(&b.partner.1))?;
            (group.partner.1 <= JOINED).then_some((at, group.partner.0))
        };
        while let Some((one, other)) = cheapest(&groups) {
            let (first, last) = (one.min(other), one.max(other));
            let gone = groups.swap_remove(last);
            let moved = groups.len();
            groups[first].take_in(&gone);
            for at in 0..groups.len() {
                let partner_of = groups[at].partner.0;
                if at == first || [first, last].contains(&partner_of) {
                    groups[at].partner = partner(&groups, at);
                } else {
                    if partner_of == moved {
                        groups[at].partner.0 = last;
                    }
                    let cost = groups[at].cost(&groups[first]);
                    if cost < groups[at].partner.1 {
                        groups[at].partner = (first, cost);
                    }
                }
            }
        }
        groups.into_iter().flat_map(|group| group.center).collect()
    }
}

/// Rows around a center.
struct Group {
    center: Vec<f32>,
    rows: f64,
    /// Their squared distances from it.
    within: f64,
    /// The group that is joined with this one at the least cost, and the cost.
    partner: (usize, f64),
}

impl Group {
    /// What joining two groups adds to the squared distances within them.
    fn added(&self, other: &Group) -> f64 {
        let apart = f64::from(distance::l2_squared(&self.center, &other.center));
        self.rows * other.rows / (self.rows + other.rows) * apart
    }

    /// The same as a share of what is within them, but for twice what chance adds: even the halves of one group have means
    /// of their own, and the fewer rows they have, the farther from each other.
    fn cost(&self, other: &Group) -> f64 {
        let (within, rows) = (self.within + other.within, self.rows + other.rows);
        let by_chance = if rows > 2.0 { 2.0 * within / (rows - 2.0) } else { 0.0 };
        let added = self.added(other) - by_chance;
        if added > 0.0 { added / within } else { 0.0 }
    }

    fn take_in(&mut self, other: &Group) {
        self.within += other.within + self.added(other);
        let share = other.rows / (self.rows + other.rows);
        for (x, &y) in self.center.iter_mut().zip(&other.center) {
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
            let moved = (f64::from(*x) + share * (f64::from(y) - f64::from(*x))) as f32;
            *x = moved;
        }
        self.rows += other.rows;
    }
}

/// The group that is joined with number `at` of `groups` at the least cost, and the cost.
fn partner(groups: &[Group], at: usize) -> (usize, f64) {
    let others = (0..groups.len()).filter(|&other| other != at);
    others
        .map(|other| (other, groups[at].cost(&groups[other])))
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .unwrap_or((at, f64::INFINITY))
}

/// Numbers that look random, the same ones for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    /// A number below `bound`, which is at least 1.
    fn below(&mut self, bound: usize) -> usize {
        // The remainder is below `bound`, and no bound here is so large that it would favour small numbers.
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    /// A number within 0..1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::flat::Matrix;

    const DIM: usize = 24;

    /// Roughly normal with variance 1.
    fn normal(random: &mut Random) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "a number within -6..6")]
        let sum = (0..12).map(|_| random.share()).sum::<f64>() as f32;
        sum - 6.0
    }

    /// Rows around the middles of clusters that are `apart` times as far from each other as they are wide; `order` says
    /// which cluster a row belongs to.
    fn rows(
        clusters: usize,
        apart: f32,
        rows: usize,
        order: impl Fn(usize) -> usize,
    ) -> (Matrix, Vec<Vec<f32>>) {
        let mut random = Random(7);
        let middles: Vec<Vec<f32>> =
            (0..clusters).map(|_| (0..DIM).map(|_| apart * normal(&mut random)).collect()).collect();
        let values = (0..rows).flat_map(|row| {
            let middle = middles[order(row) % clusters].iter();
            middle.map(|x| x + normal(&mut random)).collect::<Vec<f32>>()
        });
        (Matrix::new(DIM, values.collect()), middles)
    }

    fn of(matrix: &Matrix, metric: Metric) -> Vec<f32> {
        centers(metric, Quant::Sq8, matrix, matrix.row_ids())
    }

    #[test]
    fn each_of_clusters_far_apart_has_a_center_in_whatever_order_they_come() {
        for (clusters, apart) in [(2, 4.0), (10, 4.0), (100, 20.0), (300, 10.0)] {
            let orders: [&dyn Fn(usize) -> usize; 3] = [&|row| row, &|row| row / 200, &|row| row * row / 7];
            for order in orders {
                let (matrix, middles) = rows(clusters, apart, 12_000, order);
                let found = of(&matrix, Metric::L2);
                let used: std::collections::BTreeSet<usize> =
                    (0..12_000).map(|row| order(row) % clusters).collect();
                assert!(
                    found.len() / DIM <= used.len() + used.len() / 8,
                    "{clusters}: {}",
                    found.len() / DIM
                );
                for middle in used.iter().map(|&number| &middles[number]) {
                    let nearest = nearest(&found, middle);
                    let away = distance::l2_squared(&found[nearest * DIM..][..DIM], middle);
                    assert!(away < DIM as f32, "{clusters} clusters: {away} from the middle of one");
                }
            }
        }
    }

    #[test]
    fn clusters_of_clusters_have_a_center_each() {
        for (groups, clusters) in [(2, 20), (3, 40), (20, 5)] {
            let mut random = Random(9);
            let mut middle = |of: f32| -> Vec<f32> { (0..DIM).map(|_| of * normal(&mut random)).collect() };
            let outer: Vec<Vec<f32>> = (0..groups).map(|_| middle(100.0)).collect();
            let middles: Vec<Vec<f32>> = (0..groups * clusters)
                .map(|number| middle(4.0).iter().zip(&outer[number % groups]).map(|(x, y)| x + y).collect())
                .collect();
            let rows = (0..12_000).flat_map(|row| {
                let middle = &middles[row % middles.len()];
                middle.iter().map(|x| x + normal(&mut random)).collect::<Vec<f32>>()
            });
            let found = of(&Matrix::new(DIM, rows.collect()), Metric::L2);
            let count = found.len() / DIM;
            assert!(count <= middles.len() + middles.len() / 8, "{groups} x {clusters}: {count}");
            for middle in &middles {
                let away = distance::l2_squared(&found[nearest(&found, middle) * DIM..][..DIM], middle);
                assert!(away < DIM as f32, "{groups} x {clusters}: {away} from the middle of one");
            }
        }
    }

    #[test]
    fn rows_without_clusters_have_their_mean() {
        for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
            for (clusters, apart) in [(1, 3.0), (50, 0.5)] {
                let (matrix, _) = rows(clusters, apart, 6000, |row| row);
                assert_eq!(of(&matrix, metric).len(), DIM, "{}", metric.name());
            }
        }
        let (matrix, middles) = rows(1, 3.0, 6000, |row| row);
        assert!(distance::l2_squared(&of(&matrix, Metric::L2), &middles[0]) < 0.1);
    }

    #[test]
    fn few_rows_copies_and_nothing_have_a_center_as_well() {
        for count in 0..6 {
            let (matrix, _) = rows(2, 50.0, count, |row| row);
            assert!((1..=3).contains(&(of(&matrix, Metric::L2).len() / DIM)), "{count} rows");
        }
        let matrix = Matrix::new(DIM, [[1.0; DIM], [5.0; DIM]].concat().repeat(3000));
        let found = of(&matrix, Metric::L2);
        let either = [[[1.0; DIM], [5.0; DIM]], [[5.0; DIM], [1.0; DIM]]];
        assert!(either.iter().any(|centers| found == centers.concat()), "{found:?}");
        let matrix = Matrix::new(DIM, vec![3.0; 6000 * DIM]);
        assert_eq!(of(&matrix, Metric::L2), [3.0; DIM]);
        assert_eq!(of(&Matrix::new(DIM, vec![f32::INFINITY; DIM]), Metric::L2), [0.0f32; 0]);
        assert_eq!(centers(Metric::L2, Quant::None, &matrix, matrix.row_ids()), [0.0f32; 0]);
    }

    #[test]
    fn the_same_rows_have_the_same_centers() {
        let (matrix, _) = rows(20, 6.0, 6000, |row| row);
        assert_eq!(of(&matrix, Metric::Cosine), of(&matrix, Metric::Cosine));
    }
}
