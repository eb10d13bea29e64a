//! Metrics: counters and histograms of what the process did, as Prometheus text.
//!
//! A [`Metrics`] is owned by whoever counts; there is nothing global. Recording takes no lock: a few relaxed
//! additions. The room does not know what is measured beyond the names in [`Op`] and [`SearchKind`]; values
//! that others keep (rows, pending vectors, memory) are passed in when the text is [rendered](Metrics::render).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A FUSE operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Name to inode.
    Lookup,
    /// Attributes.
    Getattr,
    /// Change of attributes.
    Setattr,
    /// Target of a symbolic link.
    Readlink,
    /// New node.
    Mknod,
    /// New directory.
    Mkdir,
    /// Removal of a name.
    Unlink,
    /// Removal of a directory.
    Rmdir,
    /// New symbolic link.
    Symlink,
    /// Change of a name.
    Rename,
    /// New name of a file.
    Link,
    /// Open of a file.
    Open,
    /// New file, opened.
    Create,
    /// Read.
    Read,
    /// Write.
    Write,
    /// A `close` by a process.
    Flush,
    /// The last close.
    Release,
    /// Sync of a file.
    Fsync,
    /// Open of a directory.
    Opendir,
    /// Listing of a directory.
    Readdir,
    /// The last close of a directory.
    Releasedir,
    /// Sync of a directory.
    Fsyncdir,
    /// Figures of the filesystem.
    Statfs,
    /// Change of an extended attribute.
    Setxattr,
    /// Value of an extended attribute.
    Getxattr,
    /// Names of extended attributes.
    Listxattr,
    /// Removal of an extended attribute.
    Removexattr,
    /// Reservation or removal of space.
    Fallocate,
    /// A request and its answer in one call.
    Ioctl,
    /// Search for data or a hole.
    Lseek,
    /// Copy within the filesystem.
    CopyFileRange,
}

/// How a search was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SearchKind {
    /// By scanning every vector.
    Exact,
    /// By the graph.
    Graph,
}

/// A value that somebody else keeps: name, one label if it has one (its name and value), and the value.
pub type Gauge<'a> = (&'a str, Option<(&'a str, &'a str)>, f64);

impl Op {
    /// Every operation, in the order of the text.
    pub const ALL: [Op; 31] = [
        Op::Lookup,
        Op::Getattr,
        Op::Setattr,
        Op::Readlink,
        Op::Mknod,
        Op::Mkdir,
        Op::Unlink,
        Op::Rmdir,
        Op::Symlink,
        Op::Rename,
        Op::Link,
        Op::Open,
        Op::Create,
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::Release,
        Op::Fsync,
        Op::Opendir,
        Op::Readdir,
        Op::Releasedir,
        Op::Fsyncdir,
        Op::Statfs,
        Op::Setxattr,
        Op::Getxattr,
        Op::Listxattr,
        Op::Removexattr,
        Op::Fallocate,
        Op::Ioctl,
        Op::Lseek,
        Op::CopyFileRange,
    ];

    /// The operation's name as a label value: FUSE's own.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Op::Lookup => "lookup",
            Op::Getattr => "getattr",
            Op::Setattr => "setattr",
            Op::Readlink => "readlink",
            Op::Mknod => "mknod",
            Op::Mkdir => "mkdir",
            Op::Unlink => "unlink",
            Op::Rmdir => "rmdir",
            Op::Symlink => "symlink",
            Op::Rename => "rename",
            Op::Link => "link",
            Op::Open => "open",
            Op::Create => "create",
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Release => "release",
            Op::Fsync => "fsync",
            Op::Opendir => "opendir",
            Op::Readdir => "readdir",
            Op::Releasedir => "releasedir",
            Op::Fsyncdir => "fsyncdir",
            Op::Statfs => "statfs",
            Op::Setxattr => "setxattr",
            Op::Getxattr => "getxattr",
            Op::Listxattr => "listxattr",
            Op::Removexattr => "removexattr",
            Op::Fallocate => "fallocate",
            Op::Ioctl => "ioctl",
            Op::Lseek => "lseek",
            Op::CopyFileRange => "copy_file_range",
        }
    }
}

impl SearchKind {
    /// Every kind, in the order of the text.
    pub const ALL: [SearchKind; 2] = [SearchKind::Exact, SearchKind::Graph];

    /// The kind's name as a label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            SearchKind::Exact => "exact",
            SearchKind::Graph => "graph",
        }
    }
}

/// Upper bounds of the histograms' buckets, in nanoseconds, and as the text shows them in seconds: 1, 2, 5 in
/// each decade from 1 us to 10 s. A last bucket holds what took longer.
const BOUNDS: [(u64, &str); 22] = [
    (1_000, "0.000001"),
    (2_000, "0.000002"),
    (5_000, "0.000005"),
    (10_000, "0.00001"),
    (20_000, "0.00002"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (200_000, "0.0002"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_000_000, "0.002"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (20_000_000, "0.02"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (200_000_000, "0.2"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_000_000_000, "2"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
];

/// How long something took, counted by bucket.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct OpMetrics {
    ok: AtomicU64,
    failed: AtomicU64,
    took: Histogram,
}

/// Everything that a process counts. Recording and rendering may happen at the same time on all threads; a
/// text that is rendered meanwhile may have one part of a recording and not the other.
#[derive(Debug, Default)]
pub struct Metrics {
    ops: [OpMetrics; Op::ALL.len()],
    searches: [Histogram; SearchKind::ALL.len()],
    vectors_indexed: AtomicU64,
    panics: AtomicU64,
    /// Most bytes of a stack that each operation used, where that is measured.
    stacks: [StackMetrics; Worker::ALL.len()],
}

/// Most bytes of a stack of one kind of thread.
#[derive(Debug, Default)]
struct StackMetrics {
    /// For joining the epochs, before an operation begins.
    joining: AtomicU64,
    ops: [AtomicU64; Op::ALL.len()],
}

/// Where an operation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// On the thread that took the request from the kernel.
    Request,
    /// On one of those for what may take long.
    Search,
}

impl Worker {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Worker; 2] = [Worker::Request, Worker::Search];

    /// The kind as a label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Worker::Request => "request",
            Worker::Search => "search",
        }
    }
}

impl Metrics {
    /// Metrics with nothing counted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a FUSE operation that took `took`; `ok` when it did not answer with an error.
    pub fn op(&self, op: Op, took: Duration, ok: bool) {
        let metrics = &self.ops[op as usize];
        let counter = if ok { &metrics.ok } else { &metrics.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics.took.record(took);
    }

    /// Counts a request that ended in a panic and was answered EIO.
    pub fn panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that ended in a panic.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Counts a search that took `took`.
    pub fn search(&self, kind: SearchKind, took: Duration) {
        self.searches[kind as usize].record(took);
    }

    /// Notes that an operation used `bytes` bytes of its thread's stack; with no operation, that
    /// [joining the epochs](crate::pool::shallow::hold) before one did.
    pub fn stack(&self, worker: Worker, op: Option<Op>, bytes: usize) {
        let stacks = &self.stacks[worker as usize];
        let most = op.map_or(&stacks.joining, |op| &stacks.ops[op as usize]);
        most.fetch_max(bytes as u64, Ordering::Relaxed);
    }

    /// Counts vectors that the index took in.
    pub fn vectors_indexed(&self, count: u64) {
        self.vectors_indexed.fetch_add(count, Ordering::Relaxed);
    }

    /// Everything counted so far and `gauges`, in the Prometheus text format (version 0.0.4).
    ///
    /// Operations and kinds of search that never happened are left out. The gauges of one name are put
    /// together, at the place of the first.
    #[must_use]
    pub fn render(&self, gauges: &[Gauge<'_>]) -> String {
        let mut text = String::new();
        self.render_ops(&mut text);
        self.render_searches(&mut text);
        head(
            &mut text,
            "vexfs_panics_total",
            "counter",
            "Requests that ended in a panic and were answered EIO.",
        );
        sample(&mut text, "vexfs_panics_total", &[], self.panics());
        head(&mut text, "vexfs_vectors_indexed_total", "counter", "Vectors taken in by the index.");
        let indexed = self.vectors_indexed.load(Ordering::Relaxed);
        sample(&mut text, "vexfs_vectors_indexed_total", &[], indexed);
        self.render_stacks(&mut text);
        render_gauges(&mut text, gauges);
        text
    }

    fn render_stacks(&self, text: &mut String) {
        const NAME: &str = "vexfs_stack_high_water_bytes";
        let measured = |(worker, op, most): (Worker, &'static str, &AtomicU64)| {
            let most = most.load(Ordering::Relaxed);
            (most > 0).then_some((worker, op, most))
        };
        let all = Worker::ALL.into_iter().flat_map(|worker| {
            let stacks = &self.stacks[worker as usize];
            let ops = Op::ALL.into_iter().map(move |op| (worker, op.name(), &stacks.ops[op as usize]));
            ops.chain([(worker, "joining", &stacks.joining)])
        });
        let mut measured = all.filter_map(measured).peekable();
        if measured.peek().is_some() {
            head(text, NAME, "gauge", "Most bytes of a thread's stack in use during an operation.");
        }
        for (worker, op, most) in measured {
            sample(text, NAME, &[("op", op), ("thread", worker.name())], most);
        }
    }

    fn render_ops(&self, text: &mut String) {
        let happened = || {
            Op::ALL.iter().map(|&op| (op, &self.ops[op as usize])).filter(|(_, metrics)| {
                metrics.ok.load(Ordering::Relaxed) + metrics.failed.load(Ordering::Relaxed) > 0
            })
        };
        head(text, "vexfs_fuse_ops_total", "counter", "FUSE operations answered.");
        for (op, metrics) in happened() {
            for (result, counter) in [("ok", &metrics.ok), ("error", &metrics.failed)] {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    let labels = [("op", op.name()), ("result", result)];
                    sample(text, "vexfs_fuse_ops_total", &labels, count);
                }
            }
        }
        head(text, "vexfs_fuse_op_seconds", "histogram", "Time from request to answer of FUSE operations.");
        for (op, metrics) in happened() {
            metrics.took.render(text, "vexfs_fuse_op_seconds", ("op", op.name()));
        }
    }

    fn render_searches(&self, text: &mut String) {
        let happened = || {
            let all = SearchKind::ALL.iter().map(|&kind| (kind, &self.searches[kind as usize]));
            all.filter(|(_, took)| took.count() > 0)
        };
        head(text, "vexfs_searches_total", "counter", "Searches answered.");
        for (kind, took) in happened() {
            sample(text, "vexfs_searches_total", &[("kind", kind.name())], took.count());
        }
        head(text, "vexfs_search_seconds", "histogram", "Time that searches took.");
        for (kind, took) in happened() {
            took.render(text, "vexfs_search_seconds", ("kind", kind.name()));
        }
    }
}

impl Histogram {
    fn record(&self, took: Duration) {
        // 584 years fit.
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|&(bound, _)| bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    fn render(&self, text: &mut String, name: &str, label: (&str, &str)) {
        let bucket_name = format!("{name}_bucket");
        let bounds = BOUNDS.iter().map(|&(_, seconds)| seconds).chain(["+Inf"]);
        // The count is that of the buckets shown, so that the two agree while others record.
        let mut count = 0;
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            count += bucket.load(Ordering::Relaxed);
            sample(text, &bucket_name, &[label, ("le", bound)], count);
        }
        let sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        sample(text, &format!("{name}_sum"), &[label], sum);
        sample(text, &format!("{name}_count"), &[label], count);
    }
}

fn render_gauges(text: &mut String, gauges: &[Gauge<'_>]) {
    for (first, &(name, ..)) in gauges.iter().enumerate() {
        if gauges[..first].iter().any(|&(earlier, ..)| earlier == name) {
            continue;
        }
        line(text, format_args!("# TYPE {name} gauge"));
        for &(_, label, value) in gauges[first..].iter().filter(|&&(other, ..)| other == name) {
            let value = if value.is_infinite() {
                if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
            } else {
                value.to_string()
            };
            sample(text, name, label.as_slice(), value);
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    line(text, format_args!("# HELP {name} {help}"));
    line(text, format_args!("# TYPE {name} {kind}"));
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    let labels: Vec<String> =
        labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
    if labels.is_empty() {
        line(text, format_args!("{name} {value}"));
    } else {
        line(text, format_args!("{name}{{{}}} {value}", labels.join(",")));
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is rendered when nothing was counted.
    const EMPTY: &str = "\
# HELP vexfs_fuse_ops_total FUSE operations answered.
# TYPE vexfs_fuse_ops_total counter
# HELP vexfs_fuse_op_seconds Time from request to answer of FUSE operations.
# TYPE vexfs_fuse_op_seconds histogram
# HELP vexfs_searches_total Searches answered.
# TYPE vexfs_searches_total counter
# HELP vexfs_search_seconds Time that searches took.
# TYPE vexfs_search_seconds histogram
# HELP vexfs_panics_total Requests that ended in a panic and were answered EIO.
# TYPE vexfs_panics_total counter
vexfs_panics_total 0
# HELP vexfs_vectors_indexed_total Vectors taken in by the index.
# TYPE vexfs_vectors_indexed_total counter
vexfs_vectors_indexed_total 0
";

    fn lines<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.starts_with(prefix)).collect()
    }

    #[test]
    fn nothing_counted_renders_heads_only() {
        assert_eq!(Metrics::new().render(&[]), EMPTY);
    }

    #[test]
    fn every_operation_is_counted_under_its_own_name() {
        let metrics = Metrics::new();
        for (number, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, number);
            for _ in 0..=number {
                metrics.op(op, Duration::ZERO, true);
            }
        }
        let text = metrics.render(&[]);
        for (number, op) in Op::ALL.into_iter().enumerate() {
            let expected =
                format!("vexfs_fuse_ops_total{{op=\"{}\",result=\"ok\"}} {}", op.name(), number + 1);
            assert_eq!(lines(&text, &format!("vexfs_fuse_ops_total{{op=\"{}\"", op.name())), [expected]);
        }
    }

    #[test]
    fn an_operation_renders_its_counts_and_a_cumulative_histogram() {
        let metrics = Metrics::new();
        metrics.op(Op::Lookup, Duration::from_nanos(1), true);
        metrics.op(Op::Lookup, Duration::from_micros(1), true);
        metrics.op(Op::Lookup, Duration::from_nanos(1001), false);
        metrics.op(Op::Lookup, Duration::from_millis(250), true);
        metrics.op(Op::Lookup, Duration::from_secs(11), true);
        let text = metrics.render(&[]);
        assert_eq!(
            lines(&text, "vexfs_fuse_op"),
            "\
vexfs_fuse_ops_total{op=\"lookup\",result=\"ok\"} 4
vexfs_fuse_ops_total{op=\"lookup\",result=\"error\"} 1
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.000001\"} 2
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.000002\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.000005\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.00001\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.00002\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.00005\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.0001\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.0002\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.0005\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.001\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.002\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.005\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.01\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.02\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.05\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.1\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.2\"} 3
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"0.5\"} 4
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"1\"} 4
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"2\"} 4
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"5\"} 4
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"10\"} 4
vexfs_fuse_op_seconds_bucket{op=\"lookup\",le=\"+Inf\"} 5
vexfs_fuse_op_seconds_sum{op=\"lookup\"} 11.250002002
vexfs_fuse_op_seconds_count{op=\"lookup\"} 5"
                .lines()
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn searches_are_counted_by_kind() {
        let metrics = Metrics::new();
        metrics.search(SearchKind::Graph, Duration::from_micros(143));
        metrics.search(SearchKind::Graph, Duration::from_micros(57));
        let text = metrics.render(&[]);
        assert_eq!(lines(&text, "vexfs_searches_total"), ["vexfs_searches_total{kind=\"graph\"} 2"]);
        assert_eq!(
            lines(&text, "vexfs_search_seconds_sum"),
            ["vexfs_search_seconds_sum{kind=\"graph\"} 0.0002"]
        );
        assert_eq!(
            lines(&text, "vexfs_search_seconds_bucket{kind=\"graph\",le=\"0.0001\"}"),
            ["vexfs_search_seconds_bucket{kind=\"graph\",le=\"0.0001\"} 1"]
        );
        assert!(!text.contains("kind=\"exact\""));
    }

    #[test]
    fn indexed_vectors_add_up() {
        let metrics = Metrics::new();
        metrics.vectors_indexed(3);
        metrics.vectors_indexed(4);
        let text = metrics.render(&[]);
        assert_eq!(lines(&text, "vexfs_vectors_indexed"), ["vexfs_vectors_indexed_total 7"]);
    }

    #[test]
    fn the_deepest_stack_of_each_operation_is_kept() {
        let metrics = Metrics::new();
        for bytes in [2000, 3000, 1000] {
            metrics.stack(Worker::Request, Some(Op::Read), bytes);
        }
        metrics.stack(Worker::Search, None, 700);
        let text = metrics.render(&[]);
        let expected = [
            "vexfs_stack_high_water_bytes{op=\"read\",thread=\"request\"} 3000",
            "vexfs_stack_high_water_bytes{op=\"joining\",thread=\"search\"} 700",
        ];
        assert_eq!(lines(&text, "vexfs_stack_high_water_bytes"), expected);
    }

    #[test]
    fn gauges_of_one_name_stand_together_with_escaped_labels() {
        let text = Metrics::new().render(&[
            ("vexfs_rows", Some(("path", "docs")), 12.0),
            ("vexfs_recall", None, 0.953),
            ("vexfs_rows", Some(("path", "a\"b\\c\nd")), 3.0),
            ("vexfs_limit", None, f64::INFINITY),
            ("vexfs_floor", None, f64::NEG_INFINITY),
            ("vexfs_unknown", None, f64::NAN),
        ]);
        let expected = "\
# TYPE vexfs_rows gauge
vexfs_rows{path=\"docs\"} 12
vexfs_rows{path=\"a\\\"b\\\\c\\nd\"} 3
# TYPE vexfs_recall gauge
vexfs_recall 0.953
# TYPE vexfs_limit gauge
vexfs_limit +Inf
# TYPE vexfs_floor gauge
vexfs_floor -Inf
# TYPE vexfs_unknown gauge
vexfs_unknown NaN
";
        assert_eq!(text.strip_prefix(EMPTY), Some(expected));
    }

    #[test]
    fn recordings_of_all_threads_are_counted() {
        let metrics = Metrics::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| metrics.op(Op::Read, Duration::from_micros(3), true)));
            }
        });
        let text = metrics.render(&[]);
        let expected = ["vexfs_fuse_op_seconds_sum{op=\"read\"} 0.012"];
        assert_eq!(lines(&text, "vexfs_fuse_op_seconds_sum"), expected);
        let expected = ["vexfs_fuse_op_seconds_count{op=\"read\"} 4000"];
        assert_eq!(lines(&text, "vexfs_fuse_op_seconds_count"), expected);
    }
}
