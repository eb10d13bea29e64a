//! Searches through the mount, beside the index in this process: the same vectors, the same width, so the same
//! recall.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use zerocopy::IntoBytes;

use super::super::super::exit::{Code, Failure};
use super::super::ann::bar;
use super::super::dataset::{Base, Queries, Truth};
use super::super::engine::{self, Engine, Rows};
use super::tally::{Tally, Unit};
use crate::distance::Metric;
use crate::fuse::ask::{MAX_BYTES, ask};
use crate::index::hnsw::{Params, SearchScratch};

/// Neighbours of a query.
const K: usize = 10;

/// The metric of a collection that nobody configured.
const METRIC: Metric = Metric::Cosine;

/// Queries that are files of their own, for the attribute.
const FILES: usize = 200;

/// How long the mount may take to index.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long it may then take to measure its recall.
const RECALL_PATIENCE: Duration = Duration::from_secs(60);

/// The row of queries that are asked with one system call.
const AT_ONCE: &str = "search: one query, ioctl";

/// The vectors, the queries and their true neighbours.
pub(super) struct Data {
    base: Base,
    queries: Queries,
    truth: Truth,
    ef: usize,
}

impl Data {
    pub(super) fn read(base: &Path, queries: &Path, ef: usize) -> Result<Self, Failure> {
        let base_file = base;
        let base = Base::read(base_file, METRIC, None)?;
        let queries = Queries::read(queries, METRIC, &base)?;
        if K > base.rows() {
            let message = format!("{} has {} vectors, want {K}", base_file.display(), base.rows());
            return Err(Failure::new(Code::Invalid, message));
        }
        let progress = bar("scan", queries.len());
        let truth = engine::scan(&Rows::new(&base, METRIC), METRIC, &queries, K, 1, &progress);
        progress.finish_and_clear();
        Ok(Self { base, queries, truth: Truth::scanned(truth), ef })
    }

    fn recall(&self, hits: usize) -> f64 {
        hits as f64 / (K * self.queries.len()) as f64
    }
}

/// Waits until every vector of a directory is in its graph.
fn wait_for_index(dir: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut value = [0u8; 32];
    loop {
        let length = getxattr(dir, "user.vexfs.pending", value.as_mut_slice());
        let length = length.map_err(|errno| Failure::io(dir, &errno.into()))?;
        match &value[..length] {
            b"0" => return Ok(()),
            _ if Instant::now() > deadline => {
                return Err(Failure::new(Code::NotReady, "the mount does not finish its index"));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Waits, but not for ever, until the mount has measured its recall: it uses the CPU that the searches need.
fn wait_for_recall(dir: &Path) {
    let deadline = Instant::now() + RECALL_PATIENCE;
    let mut value = [0u8; 64];
    while getxattr(dir, "user.vexfs.recall", value.as_mut_slice()).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is searched, on both sides.
pub(super) struct Search<'a> {
    data: &'a Data,
    rows: Rows<'a>,
    engine: Engine,
    dir: std::path::PathBuf,
    query: File,
    /// Part of the true neighbours that the mount and this process find.
    pub(super) recall: (f64, f64),
}

/// What goes to the transaction file and comes from it, in memory that is used again.
#[derive(Default)]
struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl<'a> Search<'a> {
    /// Loads the vectors into a directory of the mount, and waits until it has indexed them.
    pub(super) fn prepare(data: &'a Data, file: &Path, dir: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io(dir, &error);
        let rows = Rows::new(&data.base, METRIC);
        let progress = bar("build", data.base.rows());
        let engine = Engine::build(&rows, METRIC, Params::default(), 1, &progress)?;
        progress.finish_and_clear();
        let dir = dir.join("search");
        fs::create_dir(&dir).map_err(failed)?;
        // A collection of its own. Within that of the other vectors here, it would be a part that is filtered for.
        setxattr(&dir, "user.vexfs.metric", METRIC.name().as_bytes(), XattrFlags::empty())
            .map_err(|errno| failed(errno.into()))?;
        let name = file.file_name().unwrap_or_default();
        fs::copy(file, dir.join(name)).map_err(failed)?;
        wait_for_index(&dir)?;
        let query = File::options().read(true).write(true).open(dir.join(".vexfs/query")).map_err(failed)?;
        let mut search = Self { data, rows, engine, dir, query, recall: (0.0, 0.0) };
        search.recall = search.measure_recall().map_err(failed)?;
        for number in 0..FILES.min(data.queries.len()) {
            fs::write(search.file(number), search.bytes_of(number)).map_err(failed)?;
        }
        wait_for_index(&search.dir)?;
        wait_for_recall(&search.dir);
        Ok(search)
    }

    /// A query that is a vector file beside the vectors.
    fn file(&self, number: usize) -> std::path::PathBuf {
        self.dir.join(format!("query-{number}.f32"))
    }

    fn bytes_of(&self, number: usize) -> &[u8] {
        let query = self.data.queries.get(number % self.data.queries.len());
        query.map_or(&[][..], |query| query.values.as_bytes())
    }

    fn measure_recall(&self) -> io::Result<(f64, f64)> {
        let (mut scratch, mut found, mut hits) = (SearchScratch::default(), Vec::new(), (0, 0));
        let mut exchange = Exchange::default();
        self.ask(0, self.data.queries.len(), &mut exchange)?;
        for (number, answer) in exchange.answer.chunks_exact(K * 8).enumerate() {
            let Some(query) = self.data.queries.get(number) else { break };
            let ids: Vec<u32> = answer
                .chunks_exact(8)
                .map(|record| u32::from_le_bytes([record[0], record[1], record[2], record[3]]))
                .collect();
            hits.0 += self.data.truth.count_hits(number, &ids);
            self.engine.search(query.values, (K, self.data.ef), &self.rows, &mut scratch, &mut found);
            hits.1 += self.data.truth.count_hits(number, &found);
        }
        Ok((self.data.recall(hits.0), self.data.recall(hits.1)))
    }

    /// Asks the transaction file for `count` queries from `first` on, in one request.
    fn ask(&self, first: usize, count: usize, exchange: &mut Exchange) -> io::Result<()> {
        let Exchange { request, answer } = exchange;
        self.write_request(first, count, request)?;
        (&self.query).write_all(request)?;
        answer.resize(count * K * 8, 0);
        (&self.query).read_exact(answer)
    }

    /// Asks for query `number` in one system call.
    fn ask_at_once(&self, number: usize, Exchange { request, answer }: &mut Exchange) -> io::Result<()> {
        self.write_request(number, 1, request)?;
        request.resize(request.len().max(K * 8), 0);
        let length = ask(&self.query, request)?;
        answer.clear();
        answer.extend_from_slice(&request[..length]);
        match length {
            _ if length == K * 8 => Ok(()),
            _ => Err(io::Error::other(format!("answer of {length} bytes, want {}", K * 8))),
        }
    }

    fn write_request(&self, first: usize, count: usize, request: &mut Vec<u8>) -> io::Result<()> {
        let (dim, ef) = (self.data.base.dim(), self.data.ef);
        request.clear();
        writeln!(request, "{{\"dtype\":\"f32\",\"rows\":{count},\"dim\":{dim},\"k\":{K},\"ef\":{ef}}}")?;
        for number in first..first + count {
            request.extend_from_slice(self.bytes_of(number));
        }
        Ok(())
    }

    /// Round number `round`: `mount` and `process` are the numbers of their columns.
    pub(super) fn round(
        &self,
        tally: &mut Tally,
        (mount, process): (usize, usize),
        round: usize,
    ) -> io::Result<()> {
        let count = self.data.queries.len();
        let mut exchange = Exchange::default();
        tally.each("search: one query", mount, count, |number| self.ask(number, 1, &mut exchange))?;
        // Longer queries are asked with a write and a read only.
        self.write_request(0, 1, &mut exchange.request)?;
        let fits = exchange.request.len() <= usize::from(MAX_BYTES);
        if fits {
            tally.each(AT_ONCE, mount, count, |number| self.ask_at_once(number, &mut exchange))?;
        }
        tally.whole("search: a batch", mount, (Unit::Batch, count), || self.ask(0, count, &mut exchange))?;
        let mut value = vec![0u8; 64 << 10];
        // Another k in each round: an answer that is known is not searched for again.
        let name = format!("user.vexfs.similar.{}", K + round);
        tally.each("search: user.vexfs.similar", mount, FILES.min(count), |number| {
            getxattr(self.file(number), &name, value.as_mut_slice())?;
            Ok(())
        })?;
        let (mut scratch, mut found) = (SearchScratch::default(), Vec::new());
        let mut search = |number: usize| {
            if let Some(query) = self.data.queries.get(number % count) {
                self.engine.search(query.values, (K, self.data.ef), &self.rows, &mut scratch, &mut found);
            }
            Ok(())
        };
        tally.each("search: one query", process, count, &mut search)?;
        if fits {
            tally.each(AT_ONCE, process, count, &mut search)?;
        }
        tally.whole("search: a batch", process, (Unit::Batch, count), || {
            (0..count).try_for_each(&mut search)
        })?;
        tally.each("search: user.vexfs.similar", process, FILES.min(count), search)
    }
}
