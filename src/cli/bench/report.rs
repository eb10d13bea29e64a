//! What `bench ann` prints: one JSON object for programs, a table for people.

use std::fmt::Write;

use serde::Serialize;

use super::super::exit::{Code, Failure};
use super::measure::{Memory, Point, Took, rounded};

/// The whole answer. Its fields are those of the JSON object.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: u32,
    /// Program and version.
    pub(super) engine: &'static str,
    /// Distance functions in use.
    pub(super) variant: &'static str,
    pub(super) n: usize,
    pub(super) dim: usize,
    pub(super) metric: &'static str,
    pub(super) k: usize,
    pub(super) quant: &'static str,
    pub(super) m: u32,
    pub(super) ef_construction: u32,
    /// Number of queries.
    pub(super) queries: usize,
    /// `gt` or `scan`: what recall is measured against.
    pub(super) truth: &'static str,
    /// Threads that search.
    pub(super) threads: usize,
    /// Passes whose median counts.
    pub(super) runs: u16,
    pub(super) build: Build,
    pub(super) bytes: Bytes,
    pub(super) points: Vec<Point>,
}

/// What building took.
#[derive(Debug, Serialize)]
pub(super) struct Build {
    seconds: f64,
    cpu_seconds: f64,
    vectors_per_s: f64,
    vectors_per_core_s: f64,
    threads: usize,
}

impl Build {
    pub(super) fn new(n: usize, took: Took, threads: usize) -> Self {
        let (seconds, cpu_seconds) = (took.wall.as_secs_f64(), took.cpu.as_secs_f64());
        let per = |seconds: f64| rounded(n as f64 / seconds.max(f64::MIN_POSITIVE), 1);
        Build {
            seconds: rounded(seconds, 6),
            cpu_seconds: rounded(cpu_seconds, 6),
            vectors_per_s: per(seconds),
            vectors_per_core_s: per(cpu_seconds),
            threads,
        }
    }
}

/// Sizes, the graph's file per vector and the process after the build.
#[derive(Debug, Serialize)]
pub(super) struct Bytes {
    file_per_vector: f64,
    anon_rss: u64,
    rss_file: u64,
}

impl Bytes {
    pub(super) fn new(n: usize, file_bytes: u64, memory: Memory) -> Self {
        let Memory { anon_rss, rss_file } = memory;
        Bytes { file_per_vector: rounded(file_bytes as f64 / n as f64, 3), anon_rss, rss_file }
    }
}

impl Report {
    /// One object on one line.
    pub(super) fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(self);
        let mut text = text.map_err(|error| Failure::new(Code::FAILED, format!("answer: {error}")))?;
        text.push('\n');
        Ok(text)
    }

    /// Lines for people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
        };
        line(format_args!("{}, {} distances", self.engine, self.variant));
        line(format_args!("data    {} x {}, {}, {} queries", self.n, self.dim, self.metric, self.queries));
        line(format_args!(
            "graph   quant {}, m {}, ef_construction {}",
            self.quant, self.m, self.ef_construction
        ));
        let Build { seconds, vectors_per_s, vectors_per_core_s, threads, .. } = self.build;
        line(format_args!(
            "build   {seconds:.2} s, {vectors_per_s:.0} vectors/s with {}, {vectors_per_core_s:.0} per core-second",
            counted(threads, "thread")
        ));
        line(format_args!(
            "memory  {:.1} MiB anonymous, {:.1} MiB of files; graph's file {:.1} bytes a vector",
            mib(self.bytes.anon_rss),
            mib(self.bytes.rss_file),
            self.bytes.file_per_vector
        ));
        let truth = if self.truth == "gt" { "the given neighbours" } else { "an exact scan" };
        line(format_args!(
            "search  {}, median of {}, recall against {truth}",
            counted(self.threads, "thread"),
            counted(self.runs.into(), "run")
        ));
        let recall = format!("recall@{}", self.k);
        line(format_args!(""));
        line(format_args!("{:>6} {recall:>10} {:>10} {:>10} {:>10}", "ef", "qps", "p50 us", "p99 us"));
        for point in &self.points {
            line(format_args!(
                "{:>6} {:>10.4} {:>10.0} {:>10.1} {:>10.1}",
                point.ef, point.recall, point.qps, point.p50_us, point.p99_us
            ));
        }
        text
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report() -> Report {
        let took = Took { wall: Duration::from_secs(2), cpu: Duration::from_secs(4) };
        let memory = Memory { anon_rss: 3 << 20, rss_file: 1 << 19 };
        Report {
            schema: 1,
            engine: "vexfs 1",
            variant: "scalar",
            n: 1000,
            dim: 4,
            metric: "l2",
            k: 10,
            quant: "sq8",
            m: 16,
            ef_construction: 200,
            queries: 50,
            truth: "scan",
            threads: 1,
            runs: 5,
            build: Build::new(1000, took, 2),
            bytes: Bytes::new(1000, 150_000, memory),
            points: vec![Point {
                ef: 10,
                recall: 0.9,
                qps: 5e4,
                qps_cpu: 5.1e4,
                compared: 150.0,
                p50_us: 20.0,
                p99_us: 41.5,
            }],
        }
    }

    #[test]
    fn rates_are_by_the_wall_and_by_cores() {
        let value: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(value["build"]["vectors_per_s"], 500.0);
        assert_eq!(value["build"]["vectors_per_core_s"], 250.0);
        assert_eq!(value["bytes"]["file_per_vector"], 150.0);
        assert_eq!(value["schema"], 1);
    }

    #[test]
    fn the_table_says_what_the_object_says() {
        let text = report().table();
        for line in [
            "data    1000 x 4, l2, 50 queries",
            "build   2.00 s, 500 vectors/s with 2 threads, 250 per core-second",
            "memory  3.0 MiB anonymous, 0.5 MiB of files; graph's file 150.0 bytes a vector",
            "search  1 thread, median of 5 runs, recall against an exact scan",
            "    ef  recall@10        qps     p50 us     p99 us",
            "    10     0.9000      50000       20.0       41.5",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\nis not in\n{text}");
        }
    }
}
