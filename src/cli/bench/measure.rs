//! Times, rates, recall, memory.

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::super::exit::{Code, Failure};
use super::dataset::{Queries, Truth, Vector};
use super::engine::{Engine, Rows};
use crate::index::hnsw::SearchScratch;

/// What a piece of work took: on the clock on the wall, and of all CPUs by this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
}

/// Runs `work` and says what it took.
pub(super) fn clocked<T>(work: impl FnOnce() -> T) -> (T, Took) {
    let (wall, cpu) = (Instant::now(), cpu_time());
    let value = work();
    (value, Took { wall: wall.elapsed(), cpu: cpu_time().saturating_sub(cpu) })
}

fn cpu_time() -> Duration {
    let time =
        clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("Linux has a CPU clock for every process");
    Duration::from(time)
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Resident and anonymous: what only swapping could free.
    pub(super) anon_rss: u64,
    /// Resident pages of files; shared memory counts, for a temporary directory may be of it.
    pub(super) rss_file: u64,
}

impl Memory {
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub(super) fn now() -> Result<Self, Failure> {
        let path = Path::new("/proc/self/status");
        let status = fs::read_to_string(path).map_err(|error| Failure::io(path, &error))?;
        Self::parse(&status).ok_or_else(|| {
            Failure::new(Code::FAILED, "/proc/self/status: RssAnon, RssFile or RssShmem is missing")
        })
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Memory { anon_rss: field("RssAnon")?, rss_file: field("RssFile")? + field("RssShmem")? })
    }
}

/// What a search of one width is worth.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Point {
    /// Width of the search.
    pub(super) ef: usize,
    /// Part of the true neighbours that is found, over all queries.
    pub(super) recall: f64,
    /// Queries per second of a pass by all threads; the median of the passes.
    pub(super) qps: f64,
    /// Queries per second of CPU time; the median of the passes.
    pub(super) qps_cpu: f64,
    /// Codes that a query is compared with, on average.
    pub(super) compared: f64,
    /// Median time of a query on its own, in microseconds.
    pub(super) p50_us: f64,
    /// Time that 99 of 100 queries on their own stay within, in microseconds.
    pub(super) p99_us: f64,
}

/// Measures a search of one width. The first pass warms the caches and counts hits, `runs` passes measure the
/// rate, and as many (at least two) by one thread the time of each query.
#[expect(clippy::too_many_arguments, reason = "what is measured, on what, and how; none belong together")]
pub(super) fn point(
    engine: &Engine,
    rows: &Rows<'_>,
    queries: &Queries,
    truth: &Truth,
    k: usize,
    ef: usize,
    threads: usize,
    runs: usize,
) -> Point {
    let search = |query: Vector<'_>, worker: &mut Worker| {
        engine.search(query.values, (k, ef), rows, &mut worker.scratch, &mut worker.found)
    };
    let mut workers: Vec<Worker> = (0..threads).map(|_| Worker::default()).collect();
    // Every worker's scratch grows to its size here.
    pass(queries, &mut workers, &search);
    let first = &mut workers[0];
    let (mut hits, mut compared) = (0, 0);
    for query in all(queries) {
        compared += search(query, first);
        hits += truth.count_hits(query.number, &first.found);
    }

    let count = queries.len() as f64;
    let passes: Vec<Took> = (0..runs).map(|_| pass(queries, &mut workers, &search)).collect();
    let rate = |part: fn(&Took) -> Duration| {
        median(passes.iter().map(|took| count / part(took).as_secs_f64().max(f64::MIN_POSITIVE)).collect())
    };

    let first = &mut workers[0];
    let mut times = Vec::with_capacity(runs.max(2) * queries.len());
    for _ in 0..runs.max(2) {
        for query in all(queries) {
            let start = Instant::now();
            search(query, first);
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    Point {
        ef,
        recall: rounded(hits as f64 / (count * k as f64), 6),
        qps: rounded(rate(|took| took.wall), 1),
        qps_cpu: rounded(rate(|took| took.cpu), 1),
        compared: rounded(compared as f64 / count, 1),
        p50_us: rounded(percentile_us(&times, 50), 3),
        p99_us: rounded(percentile_us(&times, 99), 3),
    }
}

/// A figure without the digits that say nothing.
pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// What a thread needs beside the queries; kept from pass to pass.
#[derive(Default)]
struct Worker {
    scratch: SearchScratch,
    found: Vec<u32>,
}

fn all(queries: &Queries) -> impl Iterator<Item = Vector<'_>> {
    (0..).map_while(|number| queries.get(number))
}

/// All queries once, dealt out to the workers in turn. The clock starts when all of them are ready.
fn pass(
    queries: &Queries,
    workers: &mut [Worker],
    search: &(impl Fn(Vector<'_>, &mut Worker) -> usize + Sync),
) -> Took {
    let step = workers.len();
    let work = |first: usize, worker: &mut Worker| {
        for query in all(queries).skip(first).step_by(step) {
            search(query, worker);
        }
    };
    if let [worker] = workers {
        return clocked(|| work(0, worker)).1;
    }
    let ready = Barrier::new(step + 1);
    thread::scope(|scope| {
        for (first, worker) in workers.iter_mut().enumerate() {
            let (ready, work) = (&ready, &work);
            scope.spawn(move || {
                ready.wait();
                work(first, worker);
                ready.wait();
            });
        }
        ready.wait();
        clocked(|| {
            ready.wait();
        })
        .1
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The least of the sorted `times` that `percent` of them do not exceed.
fn percentile_us(times: &[Duration], percent: usize) -> f64 {
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times[rank - 1].as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert!((percentile_us(&times, 50) - 100.0).abs() < 1e-9);
        assert!((percentile_us(&times, 99) - 198.0).abs() < 1e-9);
        assert!((percentile_us(&times[..1], 99) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn work_takes_cpu_time_and_sleep_takes_none() {
        let sleep = clocked(|| thread::sleep(Duration::from_millis(20))).1;
        assert!(sleep.wall >= Duration::from_millis(20));
        let work = clocked(|| {
            let start = cpu_time();
            while cpu_time() - start < Duration::from_millis(5) {}
        })
        .1;
        assert!(work.cpu >= Duration::from_millis(5));
    }

    #[test]
    fn memory_is_read_from_the_status_of_the_process() {
        let status = "Name:\tvexfs\nRssAnon:\t    1208 kB\nRssFile:\t    3000 kB\nRssShmem:\t       4 kB\n";
        let memory = Memory::parse(status).unwrap();
        assert_eq!((memory.anon_rss, memory.rss_file), (1208 * 1024, 3004 * 1024));
        assert!(Memory::parse("RssAnon: 1 kB\n").is_none());
        assert!(Memory::now().unwrap().anon_rss > 0);
    }
}
