//! Filtered searches: recall of walk and plan at every selectivity, exact counts, one version.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;
use crate::collection::{Allowed, RowBytes, Schema, Staged, VectorFile};
use crate::distance::Metric;
use crate::format::{self, Dtype, Layout};
use crate::store::Store;

/// A collection and the store that its rows lie in.
struct Bench {
    _dir: TempDir,
    store: Arc<Store>,
    collection: Collection,
}

impl Bench {
    fn new(metric: Metric, exact_below: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "a test").unwrap();
        let schema = Schema { metric, exact_below, m: 8, ef_construction: 80, ..Schema::default() };
        Self { _dir: dir, store, collection: Collection::new(7, schema, 3) }
    }

    /// Stages a file of these bytes.
    fn stage(&self, number: u64, bytes: &[u8], layout: Layout, group: u32) -> Arc<VectorFile> {
        let (id, file) = self.store.create_blob().unwrap();
        std::io::Write::write_all(&mut &file, bytes).unwrap();
        let rows = RowBytes::Blob(self.store.map_blob(id).unwrap());
        self.collection.stage(VectorFile::new(FileNumber(number), layout, rows, group)).unwrap().0
    }

    fn add(&self, number: u64, bytes: &[u8], layout: Layout) {
        let file = self.stage(number, bytes, layout, 0);
        self.collection.publish(&Staged { added: vec![file], removed: vec![] });
    }

    fn index(&self) {
        while self.collection.index_step(1, &AtomicBool::new(false)).unwrap() {}
    }

    fn find(&self, vector: &[f32], k: usize, options: &Options, filter: &Filter) -> Found {
        let mut scratch = Scratch::default();
        let limits = Limits::within(Duration::from_secs(60));
        let mut context = Context { scratch: &mut scratch, limits };
        nearest(&self.collection, vector, k, options, filter, None, &mut context).unwrap()
    }

    /// The same, by a walk with this budget or by a scan.
    fn by(&self, walk: Option<Beam>, vector: &[f32], k: usize, allowed: &RowSet) -> Option<Vec<u32>> {
        let snapshot = self.collection.snapshot();
        let query = Query::new(self.collection.schema().metric, vector);
        let limits = Limits::within(Duration::from_secs(60));
        let rows = Allowing { snapshot: &snapshot, allowed: Some(allowed) };
        let search = Search { rows, query: &query, limits };
        let mut scratch = Scratch::default();
        let found = match walk {
            Some(beam) => search
                .by_graph(snapshot.graph.as_ref().unwrap(), beam, &mut Work::default(), &mut scratch)
                .unwrap(),
            None => Some(search.by_scan(k, &mut scratch).unwrap()),
        };
        found.map(|found| found.iter().take(k).map(|neighbor| neighbor.row.0).collect())
    }

    /// Every row in the order of its distance.
    fn ranked(&self, vector: &[f32]) -> Vec<RowId> {
        let all = self.collection.reader().live_from(RowId(0)).collect();
        self.by(None, vector, usize::MAX >> 1, &all).unwrap().into_iter().map(RowId).collect()
    }
}

fn layout_of(rows: u64, dim: u32) -> Layout {
    Layout { dtype: Dtype::F32, dim, rows, offset: 0, stride: u64::from(dim) * 4 }
}

fn within(rows: impl IntoIterator<Item = RowId>) -> Filter {
    Filter {
        allowed: Arc::new(Allowed::All),
        condition: None,
        within: Some(Arc::new(rows.into_iter().collect())),
    }
}

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn unit(&mut self) -> f32 {
        f32::from(u16::try_from(self.below(1 << 16)).unwrap()) / 65536.0
    }
}

/// Rows of a set of the test data, of dimension `dim`, and its queries.
fn real(name: &str) -> (Vec<u8>, Layout, Vec<Vec<f32>>) {
    let read = |part: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}_{part}.npy"));
        let bytes = std::fs::read(path).unwrap();
        let limits = format::Limits { max_dim: 1024, max_rows: 10_000 };
        let layout = format::layout(format::recognise(b"a.npy").unwrap(), &bytes, &limits).unwrap();
        (bytes, layout)
    };
    let ((base, layout), (queries, of_queries)) = (read("base"), read("query"));
    let mut scratch = vec![0.0; layout.dim as usize];
    let row = |row| of_queries.vector(&queries, row, &mut scratch).to_vec();
    (base, layout, (0..of_queries.rows).map(row).collect())
}

/// Rows around 40 centres, and queries around them.
fn clustered() -> (Vec<u8>, Layout, Vec<Vec<f32>>) {
    const DIM: usize = 16;
    let mut numbers = Numbers(11);
    let centres: Vec<f32> = (0..40 * DIM).map(|_| numbers.unit()).collect();
    let mut point = |at: usize| -> Vec<f32> {
        let centre = &centres[at % 40 * DIM..][..DIM];
        centre.iter().map(|value| value + 0.2 * (numbers.unit() - 0.5)).collect()
    };
    let rows: Vec<u8> = (0..4_000).flat_map(&mut point).flat_map(f32::to_le_bytes).collect();
    (rows, layout_of(4_000, 16), (0..40).map(point).collect())
}

#[test]
fn recall_holds_at_every_selectivity_random_and_correlated_by_walk_and_as_planned() {
    let sets = [
        ("minilm384", Metric::Ip, real("minilm384")),
        ("glove100", Metric::Ip, real("glove100")),
        ("sift128", Metric::L2, real("sift128")),
        ("clustered", Metric::L2, clustered()),
    ];
    for (name, metric, (bytes, layout, queries)) in sets {
        let bench = Bench::new(metric, 1);
        bench.add(1, &bytes, layout);
        bench.index();
        for (share, of) in [(0.5, 2), (0.1, 10), (0.01, 100), (0.001, 1000)] {
            let count = usize::try_from(layout.rows).unwrap() / of;
            for kind in ["random", "near", "far"] {
                let (mut walked, mut planned, mut wanted) = (0, 0, 0);
                for (at, query) in queries.iter().take(20).enumerate() {
                    let mut rows = bench.ranked(query);
                    match kind {
                        "random" => {
                            let mut numbers = Numbers(at as u64);
                            (1..rows.len()).rev().for_each(|i| rows.swap(i, numbers.below(i + 1)));
                        }
                        "near" => {}
                        _ => rows.reverse(),
                    }
                    let filter = within(rows[..count].iter().copied());
                    let allowed = filter.within.as_ref().unwrap();
                    let k = count.min(10);
                    let exact = bench.by(None, query, k, allowed).unwrap();
                    let beam = Beam { max_visited: usize::MAX, ..Beam::new(k, 100) };
                    let walk = bench.by(Some(beam), query, k, allowed).unwrap();
                    let plan = bench.find(query, 10, &Options::default(), &filter);
                    let plan: Vec<u32> = plan.near.iter().take(10).map(|near| near.row.0).collect();
                    assert_eq!((walk.len(), plan.len()), (k, k), "{name} {kind} {share}: how many are found");
                    assert!(plan.iter().all(|&row| allowed.contains(RowId(row))), "{name} {kind} {share}");
                    walked += exact.iter().filter(|row| walk.contains(row)).count();
                    planned += exact.iter().filter(|row| plan.contains(row)).count();
                    wanted += k;
                }
                // 0.95 of what is there, in whole numbers.
                assert!(walked * 100 >= wanted * 95, "{name} {kind} {share}: {walked} of {wanted} by walk");
                assert!(planned * 100 >= wanted * 95, "{name} {kind} {share}: {planned} of {wanted} planned");
            }
        }
    }
}

#[test]
fn the_plan_walks_where_most_rows_pass_and_scans_where_few_do() {
    let (bytes, layout, queries) = clustered();
    let bench = Bench::new(Metric::L2, 1);
    bench.add(1, &bytes, layout);
    bench.index();
    let options = Options { ef: Some(20), ..Options::default() };
    let way = |filter: &Filter| bench.find(&queries[0], 10, &options, filter).way;
    assert_eq!(way(&Filter::all()), Way::Walk);
    assert_eq!(way(&within((0..3_800).map(RowId))), Way::Walk);
    assert_eq!(way(&within((0..40).map(RowId))), Way::Scan);
    let exact = Options { exact: true, ..options };
    assert_eq!(bench.find(&queries[0], 10, &exact, &Filter::all()).way, Way::Scan);
}

#[test]
fn a_beam_that_is_most_of_the_rows_is_a_scan() {
    let (bytes, layout, queries) = clustered();
    let bench = Bench::new(Metric::L2, 1);
    bench.add(1, &bytes, layout);
    bench.index();
    let rows = u32::try_from(bench.collection.len()).unwrap();
    let way = |ef: u32| {
        let options = Options { ef: Some(ef), ..Options::default() };
        bench.find(&queries[0], 10, &options, &Filter::all()).way
    };
    assert_eq!((way(64), way(rows)), (Way::Walk, Way::CodeScan));
}

#[test]
fn codes_are_scanned_for_far_rows_and_find_what_is_pending_too() {
    let (bytes, layout, queries) = real("minilm384");
    let bench = Bench::new(Metric::Ip, 1);
    bench.add(1, &bytes, layout);
    bench.index();
    let late: Vec<u8> = queries[1].iter().flat_map(|value| value.to_le_bytes()).collect();
    bench.add(2, &late, layout_of(1, 384));
    let last = u32::try_from(layout.rows).unwrap();
    for query in &queries[..20] {
        let rows = bench.ranked(query);
        // The far half, where a walk loses its way, and the row that the graph does not have.
        let far = rows[rows.len() / 2..].iter().copied().filter(|row| row.0 != last);
        let filter = within(far.chain([RowId(last)]));
        let found = bench.find(query, 10, &Options::default(), &filter);
        assert!(found.walked_in_vain || found.way != Way::Walk, "{found:?}");
        assert_eq!(found.pending, 1);
        let exact = bench.by(None, query, 10, filter.within.as_ref().unwrap()).unwrap();
        let found: Vec<u32> = found.near.iter().take(10).map(|near| near.row.0).collect();
        assert_eq!(found, exact);
    }
}

#[test]
fn below_the_threshold_the_allowed_rows_are_scanned() {
    let (bytes, layout, queries) = clustered();
    let bench = Bench::new(Metric::L2, 3_900);
    bench.add(1, &bytes, layout);
    bench.index();
    let options = Options { ef: Some(20), ..Options::default() };
    let way = |rows: u32| bench.find(&queries[0], 10, &options, &within((0..rows).map(RowId))).way;
    assert_eq!((way(3_900), way(3_899)), (Way::Walk, Way::Scan));
}

#[test]
fn a_walk_that_meets_its_budget_leaves_the_answer_to_the_scan() {
    let (bytes, layout, queries) = clustered();
    let bench = Bench::new(Metric::L2, 1);
    bench.add(1, &bytes, layout);
    bench.index();
    let rows = bench.ranked(&queries[0]);
    let far: RowSet = rows[3_600..].iter().copied().collect();
    let beam = |max_visited| Some(Beam { max_visited, ..Beam::new(10, 20) });
    assert_eq!(bench.by(beam(500), &queries[0], 10, &far), None);
    assert!(bench.by(beam(usize::MAX), &queries[0], 10, &far).is_some());
}

#[test]
fn rows_that_the_graph_does_not_have_yet_are_found_and_counted_when_they_pass() {
    let (bytes, layout, queries) = clustered();
    let bench = Bench::new(Metric::L2, 1);
    bench.add(1, &bytes, layout);
    bench.index();
    let late: Vec<u8> = queries[0].iter().flat_map(|value| value.to_le_bytes()).collect();
    bench.add(2, &late.repeat(3), layout_of(3, 16));
    let options = Options { ef: Some(20), ..Options::default() };
    let found = bench.find(&queries[0], 2, &options, &within((0..4_002).map(RowId)));
    assert_eq!((found.way, found.pending), (Way::Walk, 2));
    assert_eq!(found.near.iter().map(|near| near.row.0).collect::<Vec<_>>(), [4_000, 4_001]);
}

#[test]
fn a_set_with_dead_and_unborn_rows_returns_the_live_ones() {
    let bench = Bench::new(Metric::L2, 5_000);
    let bytes: Vec<u8> = (1..=6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let files: Vec<_> = (0..3).map(|number| bench.stage(number, &bytes, layout_of(6, 1), 0)).collect();
    bench.collection.publish(&Staged { added: files[..2].to_vec(), removed: vec![] });
    bench.collection.publish(&Staged { added: vec![], removed: files[..1].to_vec() });
    let found = bench.find(&[0.0], 10, &Options::default(), &within([1, 7, 9, 14, 900].map(RowId)));
    assert_eq!(found.near.iter().map(|near| near.row.0).collect::<Vec<_>>(), [7, 9]);
}

#[test]
fn the_excluded_row_takes_no_place() {
    let bench = Bench::new(Metric::L2, 5_000);
    let bytes: Vec<u8> = (1..=6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    bench.add(5, &bytes, layout_of(6, 1));
    let mut scratch = Scratch::default();
    let limits = Limits::within(Duration::from_secs(60));
    let mut context = Context { scratch: &mut scratch, limits };
    let filter = within([0, 2, 3, 5].map(RowId));
    let exclude = Some((FileNumber(5), 2));
    let options = Options::default();
    let found = nearest(&bench.collection, &[3.0], 3, &options, &filter, exclude, &mut context).unwrap();
    assert_eq!(found.near.iter().map(|near| near.row.0).collect::<Vec<_>>(), [3, 0, 5]);
}

#[test]
fn a_filtered_search_beside_a_writer_sees_all_of_a_change_or_nothing() {
    let bench = Bench::new(Metric::L2, 5_000);
    let bytes: Vec<u8> = (1..=6u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    // Files 1 and 2 are in the group that is asked for, file 3 is in another.
    let stage =
        || [(1, 0), (2, 0), (3, 1)].map(|(at, group)| bench.stage(at, &bytes, layout_of(6, 1), group));
    let mut now = stage();
    bench.collection.publish(&Staged { added: now.to_vec(), removed: vec![] });
    let filter = Filter::files(Arc::new(Allowed::Groups(vec![true])));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut searches = 0;
            while !done.load(Ordering::Acquire) || searches < 100 {
                let near = bench.find(&[0.0], 100, &Options::default(), &filter).near;
                assert_eq!(near.len(), 12, "search {searches}");
                let files: BTreeSet<_> = near.iter().map(|near| near.file.0).collect();
                assert_eq!(files.into_iter().collect::<Vec<_>>(), [1, 2]);
                let firsts: BTreeSet<u32> = near.iter().map(|near| near.row.0 - near.index).collect();
                assert_eq!(firsts.len(), 2, "rows of two versions of a file");
                searches += 1;
            }
        });
        for _ in 0..300 {
            let new = stage();
            bench.collection.publish(&Staged { added: new.to_vec(), removed: now.to_vec() });
            bench.index();
            now = new;
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn a_fraction_of_an_ef_is_one_more_for_that_share_of_the_queries() {
    for ef in [12.0, 11.25, 40.9] {
        // Values of bytes too: they differ in few bits.
        let queries = (0..10_000u16).map(|i| [f32::from(i % 251), f32::from(i / 251), 7.0]);
        let all: Vec<usize> = queries.map(|query| whole(ef, &query)).collect();
        assert!(all.iter().all(|&one| one as f64 <= ef.ceil() && one as f64 >= ef.floor()));
        let mean = all.iter().sum::<usize>() as f64 / all.len() as f64;
        assert!((mean - ef).abs() < 0.02, "{ef}: {mean}");
    }
}
