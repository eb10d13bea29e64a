//! The filter planner: whether a search walks the graph, scans the rows that it may return, or the codes of these.
//!
//! All costs are estimated from exact numbers: how many rows the filter lets pass, and how many nodes the graph has.
//! The estimate of a walk holds for a filter that has nothing to do with the query. Where the rows that pass lie
//! far from the query, a walk visits many times more; so it gets a budget, and what it does not finish within
//! is scanned. A walk that gave up and the scan after it cost at most the budget's share more than the scan of the rows
//! alone; where codes can be scanned, no more than that. Most that give up do so long before, by the share of what
//! they meet that passes.

use crate::index::Quant;
use crate::index::hnsw::Outlook;

/// Share of the cheaper scan's cost that a walk may use up in vain when at least half of the rows are refused. It
/// rises to all of it where none is: there a walk has no filter to be unlucky with.
const BUDGET: f64 = 0.5;

/// How many times fewer of the nodes that a walk meets may pass than of all: where fewer do, the rows that pass lie far
/// from the query, and it would need many times more.
const PATIENCE: f64 = 1.5;

/// How many times the visits that are expected a walk may make. How many it needs differs with the data, by more than with
/// where the rows lie.
const VISITS: f64 = 3.0;

/// Share of the budget that a walk must be expected to need at most, so that few walks give up.
const EXPECTED: f64 = 0.8;

/// Codes are scanned where that is estimated to cost less than this share of scanning the rows: estimates err, and a search
/// is not to take longer for being planned.
const CLEARLY: f64 = 0.85;

/// Nodes visited for one that is passed, when the beam is narrow against the graph: the links of a node that no
/// earlier one had. Measured at m 16.
const FRESH_LINKS: f64 = 14.0;

/// A beam of this width is weighed against a scan where nothing is refused as well. Most of the time no row is worth the
/// question: `exact_below` has answered it.
pub const WIDE: usize = 1024;

/// What the planner knows of a search.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Rows in the graph that may be returned, counted.
    pub allowed: u64,
    /// Nodes of the graph, those of rows that are gone included.
    pub nodes: u64,
    /// Results wanted.
    pub k: usize,
    /// Width of the beam, at least `k`.
    pub ef: usize,
    /// Elements of a vector.
    pub dim: usize,
    /// What a walk reads of a vector.
    pub quant: Quant,
}

/// What the planner expects each way to cost: see [`Case`]. Rows that the graph does not have yet are compared in any
/// case, and not in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimates {
    /// Microseconds to compare all rows that may be returned.
    pub rows_us: f64,
    /// Microseconds to compare their codes; `None` where that is no way.
    pub codes_us: Option<f64>,
    /// Microseconds to walk the graph.
    pub graph_us: f64,
    /// Nodes that the walk visits.
    pub visits: usize,
}

/// Microseconds to compare so many rows of a dimension.
#[must_use]
pub fn rows_us(rows: u64, dim: usize) -> f64 {
    rows as f64 * scanned_ns(dim) / 1e3
}

/// How a search goes about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plan {
    /// Every row that may be returned is compared.
    Scan,
    /// The codes of all rows that may be returned are compared, and the nearest by their vectors.
    CodeScan,
    /// The graph is walked.
    Walk {
        /// Visited nodes after which the walk gives up and everything is scanned.
        max_visited: usize,
        /// When it gives up before.
        outlook: Option<Outlook>,
    },
}

impl Case {
    /// The cheaper way.
    #[must_use]
    pub fn plan(&self) -> Plan {
        if self.wants_all() {
            return Plan::Scan;
        }
        let budget = self.budget_ns() / visited_ns(self.dim, self.quant);
        if self.expected_visits() > EXPECTED * budget {
            return self.scan();
        }
        let outlook = Outlook { selectivity: self.selectivity(), patience: PATIENCE };
        let max_visited = rounded(budget.min(VISITS * self.expected_visits()));
        Plan::Walk { max_visited, outlook: Some(outlook) }
    }

    /// The cheaper of the scans.
    #[must_use]
    pub fn scan(&self) -> Plan {
        if self.code_scan_ns() < CLEARLY * self.vector_scan_ns() { Plan::CodeScan } else { Plan::Scan }
    }

    /// Whether there is nothing to choose: all that may be returned is wanted.
    #[must_use]
    pub fn wants_all(&self) -> bool {
        self.allowed <= self.k as u64 || self.nodes == 0
    }

    /// What is weighed against each other.
    #[must_use]
    pub fn estimates(&self) -> Estimates {
        let (visits, codes_us) = (self.expected_visits(), self.code_scan_ns() / 1e3);
        Estimates {
            rows_us: rows_us(self.allowed, self.dim),
            codes_us: codes_us.is_finite().then_some(codes_us),
            graph_us: visits * visited_ns(self.dim, self.quant) / 1e3,
            visits: rounded(visits),
        }
    }

    /// What a walk may cost in vain. A scan of codes leaves it as long as the rows would take beside that, up to as long as
    /// the codes take.
    fn budget_ns(&self) -> f64 {
        let (vectors, codes) = (self.vector_scan_ns(), self.code_scan_ns());
        let share = self.budget_share() * vectors.min(codes);
        if codes < vectors { share.max((vectors - codes).min(codes)) } else { share }
    }

    fn vector_scan_ns(&self) -> f64 {
        self.allowed as f64 * scanned_ns(self.dim)
    }

    /// Infinite where codes are not worth scanning: without them, and where one bit for each element tells too little
    /// for few to be left.
    fn code_scan_ns(&self) -> f64 {
        if self.quant != Quant::Sq8 {
            return f64::INFINITY;
        }
        let compared = CODE_NS + self.dim as f64 / 2.0 * NS_PER_BYTE_IN_ORDER;
        let refined = REFINED + REFINED_PER_RESULT * self.k as f64;
        self.nodes as f64 * NODE_NS + self.allowed as f64 * compared + refined * 2.0 * scanned_ns(self.dim)
    }

    /// Share of the rows that may be returned.
    fn selectivity(&self) -> f64 {
        (self.allowed as f64 / self.nodes as f64).min(1.0)
    }

    fn budget_share(&self) -> f64 {
        BUDGET + (1.0 - BUDGET) * (2.0 * self.selectivity() - 1.0).max(0.0)
    }

    /// Nodes that a walk visits when the filter has nothing to do with the query. To keep `ef` it passes
    /// `ef / selectivity`, and sees what is linked to them; the more of the graph that is, the more often the same.
    fn expected_visits(&self) -> f64 {
        let nodes = self.nodes as f64;
        let seen = FRESH_LINKS * self.ef as f64 / self.selectivity();
        nodes * (1.0 - (-seen / nodes).exp())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and `as` saturates")]
fn rounded(count: f64) -> usize {
    count as usize
}

/// Nanoseconds to find and compare one row of a scan.
fn scanned_ns(dim: usize) -> f64 {
    12.0 + 4.0 * dim as f64 * NS_PER_BYTE_IN_ORDER
}

/// Nanoseconds to visit one node of a walk: what is read of its code, its link, its place in the list, the filter.
fn visited_ns(dim: usize, quant: Quant) -> f64 {
    let bytes = match quant {
        Quant::None => 4.0 * dim as f64,
        Quant::Sq8 => dim as f64,
        Quant::B1 => dim as f64 / 8.0,
    };
    30.0 + bytes * NS_PER_BYTE_ANYWHERE
}

/// Nanoseconds that a scan of codes spends on every node, whether it may be returned or not.
const NODE_NS: f64 = 1.5;

/// Nanoseconds to compare a code of such a scan beside those for its bytes.
const CODE_NS: f64 = 3.0;

/// Rows that it compares by their vectors at the end, in any case and for each result.
const REFINED: f64 = 60.0;
const REFINED_PER_RESULT: f64 = 6.0;

/// Nanoseconds to read and multiply a byte of rows that lie one after the other in memory. Only the ratio to
/// [`NS_PER_BYTE_ANYWHERE`] decides, which differs less between machines.
const NS_PER_BYTE_IN_ORDER: f64 = 0.025;

/// The same of a code that lies anywhere.
const NS_PER_BYTE_ANYWHERE: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case =
        Case { allowed: 1_000_000, nodes: 1_000_000, k: 10, ef: 100, dim: 384, quant: Quant::Sq8 };

    fn is_walk(case: Case) -> bool {
        matches!(case.plan(), Plan::Walk { .. })
    }

    #[test]
    fn a_filter_that_lets_everything_pass_is_walked() {
        for nodes in [20_000, 100_000, 10_000_000] {
            assert!(is_walk(Case { allowed: nodes, nodes, ..CASE }), "{nodes} nodes");
        }
    }

    #[test]
    fn half_and_a_tenth_of_a_million_are_walked_and_a_thousandth_is_scanned() {
        assert!(is_walk(Case { allowed: 500_000, ..CASE }));
        assert!(is_walk(Case { allowed: 100_000, ..CASE }));
        assert!(!is_walk(Case { allowed: 1_000, ..CASE }));
    }

    #[test]
    fn the_same_selectivity_is_scanned_in_a_small_graph() {
        assert!(!is_walk(Case { allowed: 1_000, nodes: 10_000, ..CASE }));
        // And the same number of rows, where they are most of the graph, is not.
        assert!(is_walk(Case { allowed: 9_000, nodes: 10_000, ..CASE }));
    }

    #[test]
    fn codes_are_scanned_where_they_are_less_to_read_than_the_rows() {
        let tenth = Case { allowed: 1_000, nodes: 10_000, ..CASE };
        assert_eq!(tenth.plan(), Plan::CodeScan);
        assert_eq!(Case { allowed: 10, k: 5, ..tenth }.plan(), Plan::Scan);
        // One bit tells too little, and without codes there is nothing to scan but the rows.
        for quant in [Quant::B1, Quant::None] {
            assert_eq!(Case { quant, ..tenth }.plan(), Plan::Scan);
        }
        // Every node has to be asked about.
        assert_eq!(Case { nodes: 10_000_000, ..tenth }.plan(), Plan::Scan);
    }

    #[test]
    fn a_walk_in_vain_and_a_scan_of_codes_cost_no_more_than_the_scan_of_the_rows() {
        for allowed in [50_000, 100_000, 300_000, 500_000] {
            let case = Case { allowed, ..CASE };
            if let Plan::Walk { max_visited, .. } = case.plan() {
                let walk = max_visited as f64 * visited_ns(case.dim, case.quant);
                assert!(walk + case.code_scan_ns() <= case.vector_scan_ns(), "{allowed} rows");
            }
        }
    }

    #[test]
    fn a_beam_as_wide_as_the_graph_is_a_scan() {
        assert!(!is_walk(Case { allowed: 50_000, nodes: 50_000, ef: 50_000, quant: Quant::None, ..CASE }));
    }

    #[test]
    fn there_is_nothing_to_choose_where_all_that_pass_are_wanted() {
        assert!(!is_walk(Case { allowed: 10, ..CASE }));
        assert!(!is_walk(Case { allowed: 0, nodes: 0, ..CASE }));
    }

    #[test]
    fn a_walk_in_vain_costs_a_bounded_share_of_the_scan() {
        for allowed in [100_000, 300_000, 500_000] {
            let case = Case { allowed, ..CASE };
            let Plan::Walk { max_visited, .. } = case.plan() else { panic!("{allowed} rows are scanned") };
            let share = max_visited as f64 * visited_ns(case.dim, case.quant)
                / (allowed as f64 * scanned_ns(case.dim));
            assert!(share <= BUDGET, "{share} of the scan of {allowed}");
            let spare = max_visited as f64 / case.expected_visits();
            assert!((1.2..=VISITS).contains(&spare), "{spare} times what is expected");
        }
    }
}
