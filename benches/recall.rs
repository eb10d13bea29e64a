//! Is the recall that is asked the recall that is found? On queries that are not stored.
//!
//! ```text
//! cargo bench --bench recall -- --base F --query F --metric cosine|ip|l2 [--quant none|sq8|b1] [-k 10]
//! ```
//!
//! Files are vector files by their names (`.npy`, `.fvecs`, `.fbin`, ...). One line for each recall: asked, `ef`,
//! measured against the exact scan, and whether rows were scanned instead.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a failed step is a failed benchmark")]

#[path = "../tests/recall/support.rs"]
#[expect(unreachable_pub, reason = "the tests share it")]
mod support;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use support::{Bed, Rows};
use vexfs::collection::{Effort, Schema};
use vexfs::distance::Metric;
use vexfs::index::Quant;
use vexfs::search::Options;

#[derive(Parser)]
struct Arguments {
    /// Vectors to store
    #[arg(long)]
    base: Option<PathBuf>,
    /// Vectors to ask for
    #[arg(long)]
    query: Option<PathBuf>,
    #[arg(long, default_value = "cosine")]
    metric: String,
    #[arg(long, default_value = "sq8")]
    quant: String,
    #[arg(short, default_value_t = 10)]
    k: usize,
    /// The first so many of the base are stored
    #[arg(long, default_value_t = u64::MAX)]
    rows: u64,
    /// The first so many of the queries are asked
    #[arg(long, default_value_t = 1000)]
    queries: u64,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn rows_of(path: &Path) -> Rows {
    let kind = vexfs::format::recognise(path.file_name().unwrap().as_bytes()).expect("a vector file's name");
    Rows::parse(kind, std::fs::read(path).unwrap())
}

fn main() {
    let arguments = Arguments::parse();
    let (Some(base), Some(query)) = (&arguments.base, &arguments.query) else {
        println!("recall: nothing to measure without --base and --query");
        return;
    };
    let metric = Metric::parse(&arguments.metric).expect("cosine, ip or l2");
    let quant = Quant::parse(&arguments.quant).expect("none, sq8 or b1");
    let bed = Bed::new(Schema { metric, quant, ..Schema::default() });
    let mut base = rows_of(base);
    base.layout.rows = base.layout.rows.min(arguments.rows);
    let started = Instant::now();
    bed.link(1, &base);
    let linked = started.elapsed();
    let started = Instant::now();
    let longest = bed.calibrate();
    let calibrated = started.elapsed();
    let queries = rows_of(query).vectors(arguments.queries);
    println!(
        "{} x {}, {} queries, k {}, linked in {:.1} s, calibrated in {:.2} s, longest step {:.1} ms",
        base.layout.rows,
        base.layout.dim,
        queries.len(),
        arguments.k,
        linked.as_secs_f64(),
        calibrated.as_secs_f64(),
        longest.as_secs_f64() * 1e3,
    );
    println!("asked\tef\tmeasured\tscanned");
    for asked in [0.80, 0.90, 0.95, 0.98, 0.99, 0.995] {
        let ef = match bed.collection.graph().expect("the graph").effort(asked, arguments.k) {
            Effort::Walk(ef) => format!("{ef:.1}"),
            Effort::Scan => "-".to_owned(),
        };
        let options = Options { recall: Some(asked), ..Options::default() };
        let (measured, scanned) = bed.recall(&queries, arguments.k, options);
        println!("{asked}\t{ef}\t{measured:.4}\t{scanned}");
    }
}
