//! How a search is answered, for who asks with `"explain": true`: which way was planned for each collection and why,
//! what decided it, and what was then done.
//!
//! These are the planner's own numbers, kept as it decides: nothing here is worked out a second time. A search that
//! does not ask makes none of it.

use serde::Serialize;

use super::nearest::Way;
use super::plan::Estimates;

/// How one request is answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Whether the search was made; false where no vector was given, so that only plans are told.
    pub ran: bool,
    /// The collections that the directory asked covers.
    pub collections: Vec<OfCollection>,
}

/// How one collection is searched.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfCollection {
    /// Its directory, from the root of the mount.
    pub path: String,
    /// Elements of its vectors.
    pub dim: Option<u32>,
    /// The name of its metric.
    pub metric: &'static str,
    /// All its rows.
    pub vectors: u64,
    /// Those below the directory asked, whoever may read them.
    pub covered: u64,
    /// Why it is not searched: its `dimension` or its `metric`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<&'static str>,
    /// How it is searched.
    #[serde(flatten)]
    pub search: Option<Box<Explained>>,
}

/// The plan for one collection, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// Rows that may be returned, counted.
    pub passing: u64,
    /// Those of them that the graph does not have yet, and that are compared one by one; 0 where no graph is wanted.
    pub pending: u64,
    /// The way that was planned.
    pub plan: Way,
    /// What decided that.
    pub why: Why,
    /// The width of the walk; `None` where none was thought of.
    pub ef: Option<Ef>,
    /// What is known about its recall.
    pub recall: Recall,
    /// What was expected to take how long.
    pub costs: Costs,
    /// What was done; `None` without a search.
    pub run: Option<Run>,
}

/// What decided between the ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The request says `exact`.
    ExactAsked,
    /// Fewer rows pass than `index.exact_below`.
    BelowExactBelow,
    /// A recall of 1 is asked: every row.
    WholeRecallAsked,
    /// The graph was not seen to find what is asked, however wide the walk.
    RecallNotReached,
    /// There is no graph yet.
    NoGraph,
    /// The graph has no more of the rows that pass than are wanted.
    FewInGraph,
    /// Nothing is refused and the walk is narrow: nothing else comes into question.
    NothingRefused,
    /// The estimated costs.
    Cost,
}

/// The width of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ef {
    /// As it follows from what is asked. Between two whole numbers some queries get one and the others the next.
    pub value: f64,
    /// That of this query.
    pub used: Option<usize>,
    /// Where it comes from.
    pub from: EfFrom,
}

/// Where the width of a walk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EfFrom {
    /// The request.
    Asked,
    /// What the graph was measured to need for the recall.
    Measured,
    /// A guess, until it is measured.
    NotMeasured,
}

/// What is known about the recall of a search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recall {
    /// By the request, or else by the collection; `None` where `ef` or `exact` is asked instead.
    pub asked: Option<f64>,
    /// Mean share of the true neighbours that such a search finds; `None` while it is not measured.
    pub expected: Option<f64>,
    /// That of the widest walk that was measured.
    pub reachable: Option<f64>,
    /// Rows when it was measured.
    pub measured_on: Option<u64>,
}

/// What the planner expects the ways to take; only their ratios decide.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// Microseconds to compare every row that passes.
    pub rows_us: f64,
    /// To compare their codes; `None` where that is no way.
    pub codes_us: Option<f64>,
    /// To walk the graph; `None` where that is none.
    pub graph_us: Option<f64>,
    /// Nodes that the walk is expected to visit.
    pub visits: Option<usize>,
    /// After which it gives up.
    pub max_visits: Option<usize>,
}

impl Costs {
    /// Of the rows alone.
    #[must_use]
    pub fn of_rows(rows_us: f64) -> Self {
        Self { rows_us: hundredths(rows_us), codes_us: None, graph_us: None, visits: None, max_visits: None }
    }

    /// Of every way; `max_visits` where the walk is planned.
    #[must_use]
    pub fn of_all(estimates: &Estimates, max_visits: Option<usize>) -> Self {
        let Estimates { rows_us, codes_us, graph_us, visits } = *estimates;
        Self {
            rows_us: hundredths(rows_us),
            codes_us: codes_us.map(hundredths),
            graph_us: Some(hundredths(graph_us)),
            visits: Some(visits),
            max_visits,
        }
    }
}

/// Without the digits that say nothing.
fn hundredths(microseconds: f64) -> f64 {
    (microseconds * 100.0).round() / 100.0
}

/// What a search did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The way that gave the answer.
    pub answered_by: Way,
    /// Why a walk before that did not.
    pub walk_gave_up: Option<GaveUp>,
    /// Why a scan of codes before that did not.
    pub codes_gave_up: Option<GaveUp>,
    /// Nodes whose links were followed.
    pub expanded: usize,
    /// Codes compared: nodes visited.
    pub codes: usize,
    /// Rows compared by their vectors.
    pub rows: u64,
    /// Time in microseconds, without that for paths.
    pub took_us: u64,
}

/// Why a way did not come to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GaveUp {
    /// It had visited as many nodes as it may.
    Budget,
    /// Too few of what it met near the query pass; of codes: they err too much to tell what is near.
    Outlook,
    /// It found fewer rows than are wanted.
    TooFew,
    /// The graph is damaged.
    Damage,
}
