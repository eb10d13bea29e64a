//! `vexfs bench ann`: the index on vectors from files, in process.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::super::exit::{Code, Failure, Outcome};
use super::super::output::{bar, put};
use super::dataset::{Base, Queries, Truth};
use super::engine::{self, Engine, Rows};
use super::measure::{self, Memory};
use super::report::{Build, Bytes, Report};
use crate::distance::{self, Metric};
use crate::index::Quant;
use crate::index::hnsw::Params;

/// Widths of the search that are tried unless others are given.
const DEFAULT_EF: [u32; 13] = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 800];

/// The widest search that may be asked for.
const MAX_EF: u32 = 10_000;

/// Recall beyond which wider searches tell nothing more.
const ENOUGH_RECALL: f64 = 0.997;

/// Most threads that may be asked for.
const MAX_THREADS: u16 = 256;

#[derive(Args, Debug)]
pub(super) struct Ann {
    /// The vectors: .npy .fvecs .bvecs .ivecs .fbin .f16bin .u8bin .i8bin; what is not f32 is converted
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// The vectors that are searched for, in one of the same formats
    #[arg(long, value_name = "FILE")]
    query: PathBuf,
    /// The true neighbours of each query, nearest first, as rows of the base: .npy (whole numbers) or .ivecs; found by an
    /// exact scan when left out
    #[arg(long, value_name = "FILE")]
    gt: Option<PathBuf>,
    /// How distances are measured
    #[arg(long)]
    metric: MetricName,
    /// How many neighbours
    #[arg(short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_EF)))]
    k: u32,
    /// Threads that search; with several, the queries are dealt out to them
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_THREADS)))]
    threads: u16,
    /// Threads that build; as many as search when left out
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_THREADS)))]
    build_threads: Option<u16>,
    /// What the graph keeps of its vectors for the walk
    #[arg(long, default_value = Params::default().quant.name())]
    quant: QuantName,
    /// Links of a node on the upper levels; twice as many on the lowest
    #[arg(long, default_value_t = Params::default().m, value_parser = clap::value_parser!(u32).range(2..=128))]
    m: u32,
    /// Width of the search for a new node's neighbours
    #[arg(
        long,
        default_value_t = Params::default().ef_construction,
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    ef_construction: u32,
    /// Widths of the search, separated by commas; those below k are left out, and those after one that finds more
    /// than 0.997 of the neighbours
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_values_t = DEFAULT_EF,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_EF))
    )]
    ef: Vec<u32>,
    /// Only the first N vectors of the base; the true neighbours among fewer than all are found by a scan
    #[arg(short, long, value_name = "N")]
    n: Option<NonZeroUsize>,
    /// Passes over the queries; their median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// The answer as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MetricName {
    Ip,
    L2,
    Cosine,
}

impl From<MetricName> for Metric {
    fn from(name: MetricName) -> Self {
        match name {
            MetricName::Ip => Metric::Ip,
            MetricName::L2 => Metric::L2,
            MetricName::Cosine => Metric::Cosine,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum QuantName {
    None,
    Sq8,
    B1,
}

impl From<QuantName> for Quant {
    fn from(name: QuantName) -> Self {
        match name {
            QuantName::None => Quant::None,
            QuantName::Sq8 => Quant::Sq8,
            QuantName::B1 => Quant::B1,
        }
    }
}

impl Ann {
    pub(super) fn run(&self) -> Outcome {
        let widths = self.widths()?;
        let metric = Metric::from(self.metric);
        let params = Params {
            m: self.m,
            ef_construction: self.ef_construction,
            quant: self.quant.into(),
            ..Params::default()
        };
        let (k, threads) = (self.k as usize, usize::from(self.threads));
        let build_threads = self.build_threads.map_or(threads, usize::from);

        let base = Base::read(&self.base, metric, self.n)?;
        let rows = Rows::new(&base, metric);
        let queries = Queries::read(&self.query, metric, &base)?;
        if k > base.rows() {
            let message = format!("k is {k}, {} has {} vectors", self.base.display(), base.rows());
            return Err(Failure::new(Code::Invalid, message));
        }
        // Of other vectors than those that the file of neighbours is about, it says nothing.
        let gt = self.gt.as_deref().filter(|_| !base.is_cut());
        let truth = match gt {
            Some(file) => Truth::read(file, k, queries.len(), base.rows())?,
            None => {
                let bar = bar("scan", queries.len() as u64);
                let truth = engine::scan(&rows, metric, &queries, k, threads.max(build_threads), &bar);
                bar.finish_and_clear();
                Truth::scanned(truth)
            }
        };

        let bar_build = bar("build", base.rows() as u64);
        let (graph, built) =
            measure::clocked(|| Engine::build(&rows, metric, params, build_threads, &bar_build));
        let graph = graph?;
        bar_build.finish_and_clear();
        let memory = Memory::now()?;
        let file_bytes = graph.saved_bytes()?;

        let bar_search = bar("search", widths.len() as u64);
        let mut points = Vec::new();
        for ef in widths {
            let point =
                measure::point(&graph, &rows, &queries, &truth, k, ef, threads, usize::from(self.runs));
            let enough = point.recall > ENOUGH_RECALL;
            points.push(point);
            bar_search.inc(1);
            if enough {
                break;
            }
        }
        bar_search.finish_and_clear();

        let report = Report {
            schema: 1,
            engine: concat!("vexfs ", env!("CARGO_PKG_VERSION")),
            variant: distance::variant(),
            n: base.rows(),
            dim: base.dim(),
            metric: metric.name(),
            k,
            quant: params.quant.name(),
            m: params.m,
            ef_construction: params.ef_construction,
            queries: queries.len(),
            truth: truth.origin(),
            threads,
            runs: self.runs,
            build: Build::new(base.rows(), built, build_threads),
            bytes: Bytes::new(base.rows(), file_bytes, memory),
            points,
        };
        put(if self.json { report.json()? } else { report.table() }.as_bytes())?;
        Ok(Code::Ok)
    }

    /// The widths that are at least `k`, ascending, each once. Where those that are tried by default are all narrower,
    /// it is once, twice and four times `k`.
    fn widths(&self) -> Result<Vec<usize>, Failure> {
        let mut widths: Vec<usize> =
            self.ef.iter().filter(|&&ef| ef >= self.k).map(|&ef| ef as usize).collect();
        widths.sort_unstable();
        widths.dedup();
        if widths.is_empty() && self.ef == DEFAULT_EF {
            let wide = [1, 2, 4].map(|times| self.k.saturating_mul(times).min(MAX_EF) as usize);
            widths.extend(wide);
            widths.dedup();
        }
        if widths.is_empty() {
            let largest = self.ef.iter().max().copied().unwrap_or_default();
            let message = format!("--ef: the largest is {largest}, want at least k, which is {}", self.k);
            return Err(Failure::new(Code::Usage, message));
        }
        Ok(widths)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ann: Ann,
    }

    fn parse(more: &[&str]) -> Ann {
        let words = ["ann", "--base", "b.npy", "--query", "q.npy", "--metric", "ip"];
        Line::try_parse_from(words.iter().chain(more)).unwrap().ann
    }

    #[test]
    fn defaults_are_those_of_the_index() {
        let ann = parse(&[]);
        let params = Params::default();
        assert_eq!(Quant::from(ann.quant), params.quant);
        assert_eq!((ann.m, ann.ef_construction), (params.m, params.ef_construction));
        assert_eq!(ann.widths().unwrap(), DEFAULT_EF.map(|ef| ef as usize));
    }

    #[test]
    fn widths_below_k_are_left_out_and_the_rest_ascends() {
        let ann = parse(&["-k", "20", "--ef", "64,10,32,64,20"]);
        assert_eq!(ann.widths().unwrap(), [20, 32, 64]);
        assert_eq!(parse(&["-k", "800"]).widths().unwrap(), [800]);
        assert_eq!(parse(&["-k", "1000"]).widths().unwrap(), [1000, 2000, 4000], "no default is as wide");
        assert_eq!(parse(&["-k", "10000"]).widths().unwrap(), [10_000]);
        let failure = parse(&["-k", "20", "--ef", "10,16"]).widths().unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert_eq!(failure.message, "--ef: the largest is 16, want at least k, which is 20");
    }
}
