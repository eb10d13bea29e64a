//! `vexfs index explain`: how a search is answered, through the transaction file of the directory, as any program can
//! ask it.

use std::fmt::{Display, Write as _};
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde::Deserialize;

use super::super::exit::{Code, Failure, Outcome, code_of_answer};
use super::super::output::{put, shown};
use super::super::search::{Effort, QueryFile, RequestOptions, Requests};

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("what"))]
pub(super) struct Explain {
    /// The directory whose subtree is searched
    dir: PathBuf,
    /// Search like this file, or one row of it, and say what was done
    #[arg(long, value_name = "FILE[#ROW]", group = "what")]
    like: Option<PathBuf>,
    /// Search like the vectors in this file, each on its own, and say what was done; - reads stdin
    #[arg(long, value_name = "FILE", group = "what")]
    vector: Option<PathBuf>,
    #[command(flatten)]
    effort: Effort,
    /// Answer in JSON, one line for each vector
    #[arg(long)]
    json: bool,
}

/// An answer line, as far as it is shown. Further fields are left for `--json`.
#[derive(Debug, Deserialize)]
struct Answer {
    k: Option<u64>,
    #[serde(default)]
    took_us: u64,
    hits: Option<Vec<serde::de::IgnoredAny>>,
    explain: Option<Explanation>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    code: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Explanation {
    ran: bool,
    collections: Vec<OfCollection>,
}

#[derive(Debug, Deserialize)]
struct OfCollection {
    path: String,
    dim: Option<u64>,
    metric: String,
    vectors: u64,
    covered: u64,
    left_out: Option<String>,
    #[serde(flatten)]
    search: Option<Explained>,
}

#[derive(Debug, Deserialize)]
struct Explained {
    passing: u64,
    pending: u64,
    plan: String,
    why: String,
    ef: Option<Ef>,
    recall: Recall,
    costs: Costs,
    run: Option<Run>,
}

#[derive(Debug, Deserialize)]
struct Ef {
    value: f64,
    used: Option<u64>,
    from: String,
}

#[derive(Debug, Deserialize)]
struct Recall {
    asked: Option<f64>,
    expected: Option<f64>,
    reachable: Option<f64>,
    measured_on: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Costs {
    rows_us: f64,
    codes_us: Option<f64>,
    graph_us: Option<f64>,
    visits: Option<u64>,
    max_visits: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Run {
    answered_by: String,
    walk_gave_up: Option<String>,
    codes_gave_up: Option<String>,
    expanded: u64,
    codes: u64,
    rows: u64,
    took_us: u64,
}

impl Explain {
    pub(super) fn run(&self) -> Outcome {
        self.effort.check()?;
        let mut query = QueryFile::open(&self.dir)?;
        let options = RequestOptions { explain: Some(true), ..self.effort.options() };
        let requests = match (&self.like, &self.vector) {
            (Some(like), _) => Requests::like(like, query.dir(), options)?,
            (_, Some(file)) => Requests::vectors(file, options)?,
            (None, None) => Requests::of_nothing(options),
        };
        let mut is_anything = false;
        for number in 0..requests.len() {
            let line = query.ask(&requests.line(number)?)?;
            let failed = |why: String| Failure::new(Code::FAILED, format!("answer: {why}"));
            let answer: Answer = serde_json::from_str(&line).map_err(|error| failed(error.to_string()))?;
            if let Some(Refusal { code, message }) = answer.error {
                return Err(Failure::new(code_of_answer(&code), message));
            }
            let Some(explained) = &answer.explain else { return Err(failed("no explanation".into())) };
            is_anything |= !explained.collections.is_empty();
            if self.json {
                put(&[line.as_bytes(), b"\n"].concat())?;
            } else {
                if requests.len() > 1 {
                    put(format!("query {number}\n").as_bytes())?;
                }
                put(describe(&answer, explained).as_bytes())?;
            }
        }
        if !is_anything && !self.json {
            super::super::say(&format!("{}: there are no vectors to search", self.dir.display()));
        }
        Ok(if is_anything { Code::Ok } else { Code::NoResult })
    }
}

/// A block of lines for each collection, and one for the whole search.
fn describe(answer: &Answer, explained: &Explanation) -> String {
    let k = answer.k.unwrap_or_default();
    let mut blocks: Vec<String> =
        explained.collections.iter().map(|collection| describe_one(collection, k)).collect();
    if explained.ran {
        let hits = answer.hits.as_ref().map_or(0, Vec::len);
        blocks.push(format!("{:<12} {hits} of {k} wanted, in {} us\n", "hits", answer.took_us));
    }
    blocks.join("\n")
}

fn describe_one(collection: &OfCollection, k: u64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn Display| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("collection", &shown(&collection.path));
    let dim = collection.dim.map_or("unknown".to_owned(), |dim| dim.to_string());
    let of =
        format_args!("{}, dimension {dim}, {}", collection.vectors, shown(&collection.metric)).to_string();
    line("vectors", &of);
    line("covered", &format_args!("{} of them lie in this directory", collection.covered));
    if let Some(why) = &collection.left_out {
        line("left out", &format_args!("its {} is not the query's", shown(why)));
    }
    let Some(search) = &collection.search else { return text };
    line("passing", &format_args!("{} of these may be returned", search.passing));
    if search.pending > 0 {
        line(
            "pending",
            &format_args!("{} of these are not in the graph and compared one by one", search.pending),
        );
    }
    line("plan", &format_args!("{}: {}", way(&search.plan), reason(search, k)));
    if let Some(Ef { value, used, from }) = &search.ef {
        let from = match from.as_str() {
            "asked" => "as asked",
            "measured" => "what the graph was measured to need",
            "not_measured" => "a guess: the graph is not measured yet",
            other => other,
        };
        let value = (value * 100.0).round() / 100.0;
        match used {
            Some(used) => line("ef", &format_args!("{used} (of {value}: {})", shown(from))),
            None => line("ef", &format_args!("{value}: {}", shown(from))),
        }
    }
    line("recall", &recall(&search.recall));
    line("costs", &costs(&search.costs));
    if let Some(run) = &search.run {
        for (name, why) in [("the walk", &run.walk_gave_up), ("the scan of codes", &run.codes_gave_up)] {
            if let Some(why) = why {
                line("gave up", &format_args!("{name}: {}", gave_up(why)));
            }
        }
        line("answered by", &way(&run.answered_by));
        let Run { expanded, codes, rows, took_us, .. } = run;
        line(
            "did",
            &format_args!("{expanded} nodes expanded, {codes} codes and {rows} rows compared, {took_us} us"),
        );
    }
    text
}

fn way(name: &str) -> String {
    shown(match name {
        "rows" => "scan of rows",
        "codes" => "scan of codes",
        "graph" => "walk through the graph",
        other => other,
    })
}

fn reason(search: &Explained, k: u64) -> String {
    shown(&match search.why.as_str() {
        "exact_asked" => "exact is asked".to_owned(),
        "below_exact_below" => "fewer rows pass than index.exact_below".to_owned(),
        "whole_recall_asked" => "a recall of 1 is asked".to_owned(),
        "recall_not_reached" => "the graph was not seen to find as much as is asked".to_owned(),
        "no_graph" => "there is no graph yet".to_owned(),
        "few_in_graph" => format!("the graph has no more than {k} of the rows that pass"),
        "nothing_refused" => "every row may be returned, and few nodes have to be visited".to_owned(),
        "cost" => "the cheapest by estimated cost".to_owned(),
        other => other.to_owned(),
    })
}

fn gave_up(why: &str) -> String {
    shown(match why {
        "budget" => "it had visited as many nodes as it may",
        "outlook" => "too little of what is near the query passes, or is told apart",
        "too_few" => "it found fewer rows than are wanted",
        "damage" => "the graph is damaged",
        other => other,
    })
}

fn recall(recall: &Recall) -> String {
    let mut text = match recall.expected {
        Some(1.0) => "1 expected: every row is compared".to_owned(),
        Some(expected) => format!("{expected:.4} expected"),
        None => "not measured yet".to_owned(),
    };
    if let Some(asked) = recall.asked {
        let _ = write!(text, ", {asked} asked");
    }
    if let (Some(rows), Some(reachable)) = (recall.measured_on, recall.reachable) {
        let _ = write!(text, ", at most {reachable:.4} measured on {rows} rows");
    }
    text
}

fn costs(costs: &Costs) -> String {
    let mut text = format!("rows {} us", costs.rows_us);
    if let Some(codes) = costs.codes_us {
        let _ = write!(text, ", codes {codes} us");
    }
    if let (Some(graph), Some(visits)) = (costs.graph_us, costs.visits) {
        let _ = write!(text, ", graph {graph} us for {visits} nodes");
    }
    if let Some(most) = costs.max_visits {
        let _ = write!(text, " (it gives up at {most})");
    }
    text + ", estimated"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(answer: &str) -> String {
        let answer: Answer = serde_json::from_str(answer).unwrap();
        describe(&answer, answer.explain.as_ref().unwrap())
    }

    #[test]
    fn a_search_is_described_line_by_line() {
        let text = described(
            r#"{"schema":1,"k":10,"took_us":300,"hits":[{"rank":1},{"rank":2}],"explain":{"ran":true,"collections":[
            {"path":"/a","dim":4,"metric":"l2","vectors":900,"covered":800,"passing":700,"pending":3,"later":1,
            "plan":"graph","why":"cost","ef":{"value":57.314,"used":58,"from":"measured"},
            "recall":{"asked":0.95,"expected":0.9512,"reachable":0.99,"measured_on":850},
            "costs":{"rows_us":90.5,"codes_us":40.0,"graph_us":30.2,"visits":500,"max_visits":750},
            "run":{"answered_by":"codes","walk_gave_up":"outlook","codes_gave_up":null,"expanded":12,"codes":1300,
            "rows":80,"took_us":250}},
            {"path":"/b","dim":3,"metric":"l2","vectors":5,"covered":5,"left_out":"dimension"}]}}"#,
        );
        let want = "\
collection   /a
vectors      900, dimension 4, l2
covered      800 of them lie in this directory
passing      700 of these may be returned
pending      3 of these are not in the graph and compared one by one
plan         walk through the graph: the cheapest by estimated cost
ef           58 (of 57.31: what the graph was measured to need)
recall       0.9512 expected, 0.95 asked, at most 0.9900 measured on 850 rows
costs        rows 90.5 us, codes 40 us, graph 30.2 us for 500 nodes (it gives up at 750), estimated
gave up      the walk: too little of what is near the query passes, or is told apart
answered by  scan of codes
did          12 nodes expanded, 1300 codes and 80 rows compared, 250 us

collection   /b
vectors      5, dimension 3, l2
covered      5 of them lie in this directory
left out     its dimension is not the query's

hits         2 of 10 wanted, in 300 us
";
        assert_eq!(text, want);
    }

    #[test]
    fn a_plan_without_a_query_tells_of_no_work() {
        let text = described(
            r#"{"k":5,"explain":{"ran":false,"collections":[{"path":"/a","dim":4,"metric":"ip","vectors":9,"covered":9,
            "passing":9,"pending":0,"plan":"rows","why":"below_exact_below","ef":null,
            "recall":{"asked":0.95,"expected":1.0,"reachable":null,"measured_on":null},
            "costs":{"rows_us":0.1,"codes_us":null,"graph_us":null,"visits":null,"max_visits":null},"run":null}]}}"#,
        );
        let plan = "plan         scan of rows: fewer rows pass than index.exact_below\n\
            recall       1 expected: every row is compared, 0.95 asked\ncosts        rows 0.1 us, estimated\n";
        assert!(text.ends_with(plan), "{text}");
    }
}
