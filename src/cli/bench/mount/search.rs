//! Searches through the mount, beside the index in this process: the same vectors, a graph built in the same way, the
//! same width, so the same recall. Neither side makes its queries while it is timed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use zerocopy::IntoBytes;

use super::super::super::exit::{Code, Failure};
use super::super::super::output::bar;
use super::super::dataset::{Base, Queries, Truth};
use super::super::engine::{self, Engine, Rows};
use super::tally::{Tally, Unit};
use crate::collection::{self, Schema};
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
        let progress = bar("scan", queries.len() as u64);
        let truth = engine::scan(&Rows::new(&base, METRIC), METRIC, &queries, K, 1, &progress);
        progress.finish_and_clear();
        Ok(Self { base, queries, truth: Truth::scanned(truth), ef })
    }

    fn bytes_of(&self, query: usize) -> &[u8] {
        self.queries.get(query).map_or(&[][..], |query| query.values.as_bytes())
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
    /// Where the queries are files beside the vectors.
    similar: PathBuf,
    query: File,
    /// What asks the transaction file for each query, and for all of them.
    requests: Vec<Vec<u8>>,
    batch: Vec<u8>,
    /// Width with which this process finds what the attribute is to find: that asks for a recall, not for a width.
    similar_ef: usize,
    /// Part of the true neighbours that the mount and this process find.
    pub(super) recall: (f64, f64),
}

/// A request for some of the queries.
fn request(data: &Data, queries: std::ops::Range<usize>) -> Vec<u8> {
    let (rows, dim, ef) = (queries.len(), data.base.dim(), data.ef);
    let header = format!("{{\"dtype\":\"f32\",\"rows\":{rows},\"dim\":{dim},\"k\":{K},\"ef\":{ef}}}\n");
    let mut request = header.into_bytes();
    queries.for_each(|number| request.extend_from_slice(data.bytes_of(number)));
    request
}

/// Makes a directory that is a collection of its own and has the vectors. Within a collection that others have vectors
/// in, it would be a part that is filtered for.
fn load(file: &Path, dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    setxattr(dir, "user.vexfs.metric", METRIC.name().as_bytes(), XattrFlags::empty())?;
    fs::copy(file, dir.join(file.file_name().unwrap_or_default()))?;
    Ok(())
}

impl<'a> Search<'a> {
    /// Loads the vectors into a directory of the mount, and waits until it has indexed them.
    pub(super) fn prepare(data: &'a Data, file: &Path, dir: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io(dir, &error);
        let rows = Rows::new(&data.base, METRIC);
        let progress = bar("build", data.base.rows() as u64);
        let params = Params { seed: collection::GRAPH_SEED, ..Params::default() };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let engine = Engine::build(&rows, METRIC, params, threads, &progress)?;
        progress.finish_and_clear();
        let (searched, similar) = (dir.join("search"), dir.join("similar"));
        for dir in [&searched, &similar] {
            load(file, dir).map_err(failed)?;
        }
        let query = searched.join(".vexfs/query");
        let query = File::options().read(true).write(true).open(query).map_err(failed)?;
        let count = data.queries.len();
        let requests = (0..count).map(|number| request(data, number..number + 1)).collect();
        let batch = request(data, 0..count);
        let (similar_ef, recall) = (data.ef, (0.0, 0.0));
        let mut search = Self { data, rows, engine, similar, query, requests, batch, similar_ef, recall };
        for number in 0..FILES.min(count) {
            fs::write(search.file(number), data.bytes_of(number)).map_err(failed)?;
        }
        for dir in [&searched, &search.similar] {
            wait_for_index(dir)?;
            wait_for_recall(dir);
        }
        search.recall = (search.recall_of_mount().map_err(failed)?, search.recall_of_process(data.ef));
        let enough = |ef: &usize| search.recall_of_process(*ef) >= Schema::default().recall;
        search.similar_ef = (K..data.ef).find(enough).unwrap_or(data.ef);
        Ok(search)
    }

    /// A query that is a vector file beside the vectors.
    fn file(&self, number: usize) -> PathBuf {
        self.similar.join(format!("query-{number}.f32"))
    }

    /// Changes what the attribute's answers depend on: one that is known is not searched for again.
    fn touch(&self, round: usize) -> io::Result<()> {
        let mode = if round.is_multiple_of(2) { 0o600 } else { 0o644 };
        fs::set_permissions(self.file(0), fs::Permissions::from_mode(mode))
    }

    fn recall_of_mount(&self) -> io::Result<f64> {
        let mut answers = vec![0; self.data.queries.len() * K * 8];
        self.ask(&self.batch, &mut answers)?;
        let id = |record: &[u8]| u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
        let hits = answers.chunks_exact(K * 8).enumerate().map(|(number, answer)| {
            let ids: Vec<u32> = answer.chunks_exact(8).map(id).collect();
            self.data.truth.count_hits(number, &ids)
        });
        Ok(self.data.recall(hits.sum()))
    }

    fn recall_of_process(&self, ef: usize) -> f64 {
        let (mut scratch, mut found) = (SearchScratch::default(), Vec::new());
        let hits = (0..self.data.queries.len()).filter_map(|number| {
            let query = self.data.queries.get(number)?;
            self.engine.search(query.values, (K, ef), &self.rows, &mut scratch, &mut found);
            Some(self.data.truth.count_hits(number, &found))
        });
        self.data.recall(hits.sum())
    }

    /// Asks the transaction file.
    fn ask(&self, request: &[u8], answer: &mut [u8]) -> io::Result<()> {
        (&self.query).write_all(request)?;
        (&self.query).read_exact(answer)
    }

    /// Asks for one query in one system call. The request is in the buffer, which it begins with.
    fn ask_at_once(&self, request: &[u8], buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.extend_from_slice(request);
        buffer.resize(request.len().max(K * 8), 0);
        match ask(&self.query, buffer)? {
            length if length == K * 8 => Ok(()),
            length => Err(io::Error::other(format!("answer of {length} bytes, want {}", K * 8))),
        }
    }

    /// Round number `round`: `mount` and `process` are the numbers of their columns.
    pub(super) fn round(
        &self,
        tally: &mut Tally,
        (mount, process): (usize, usize),
        round: usize,
    ) -> io::Result<()> {
        let count = self.data.queries.len();
        let mut answers = vec![0; count * K * 8];
        let one = &mut answers[..K * 8];
        tally.each("search: one query", mount, count, |number| self.ask(&self.requests[number], one))?;
        // Longer queries are asked with a write and a read only.
        let fits = self.requests.iter().all(|request| request.len() <= usize::from(MAX_BYTES));
        let mut buffer = Vec::new();
        if fits {
            let ask = |number: usize| self.ask_at_once(&self.requests[number], &mut buffer);
            tally.each(AT_ONCE, mount, count, ask)?;
        }
        tally
            .whole("search: a batch", mount, (Unit::Batch, count), || self.ask(&self.batch, &mut answers))?;
        let mut value = vec![0u8; 64 << 10];
        let files: Vec<PathBuf> = (0..FILES.min(count)).map(|number| self.file(number)).collect();
        self.touch(round)?;
        tally.each("search: user.vexfs.similar", mount, files.len(), |number| {
            getxattr(&files[number], "user.vexfs.similar", value.as_mut_slice())?;
            Ok(())
        })?;
        let (mut scratch, mut found) = (SearchScratch::default(), Vec::new());
        let mut search = |number: usize, ef: usize| {
            if let Some(query) = self.data.queries.get(number) {
                self.engine.search(query.values, (K, ef), &self.rows, &mut scratch, &mut found);
            }
            Ok(())
        };
        let ef = self.data.ef;
        tally.each("search: one query", process, count, |number| search(number, ef))?;
        if fits {
            tally.each(AT_ONCE, process, count, |number| search(number, ef))?;
        }
        tally.whole("search: a batch", process, (Unit::Batch, count), || {
            (0..count).try_for_each(|number| search(number, ef))
        })?;
        tally.each("search: user.vexfs.similar", process, files.len(), |number| {
            search(number, self.similar_ef)
        })
    }
}
