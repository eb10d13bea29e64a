//! Stages, versions, numbering and the graph of a collection.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::*;
use crate::distance::Metric;
use crate::format::{Dtype, Layout};
use crate::index::hnsw::{Beam, SearchScratch};
use crate::index::{Quant, Query, VectorSource as _, flat};
use crate::store::Store;

const DIM: u32 = 4;

/// The rows of a filter for which everything is known.
fn rows(collection: &Collection, filter: &Filter, reader: &Reader) -> Arc<RowSet> {
    collection.rows(filter, reader, &mut || true).unwrap()
}

/// A collection and the store that its rows lie in.
struct Bench {
    dir: TempDir,
    store: Arc<Store>,
    collection: Collection,
}

impl Bench {
    fn new() -> Self {
        Self::with(Schema { metric: Metric::L2, exact_below: 100, ..Schema::default() })
    }

    fn with(schema: Schema) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "a test").unwrap();
        Self { dir, store, collection: Collection::new(7, schema, 3) }
    }

    /// A file of `rows` rows of `dim` elements in 0..1; the values follow from its number.
    fn file(&self, number: u64, rows: u64, dim: u32) -> VectorFile {
        self.file_around(0.5, number, rows, dim)
    }

    fn file_around(&self, middle: f32, number: u64, rows: u64, dim: u32) -> VectorFile {
        let mut state = number + 1;
        let mut value = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            middle - 0.5 + f32::from(u16::try_from(state >> 48).unwrap()) / 65536.0
        };
        let bytes: Vec<u8> = (0..rows * u64::from(dim)).flat_map(|_| value().to_le_bytes()).collect();
        let slot = self.store.write_slot(&bytes).unwrap();
        let layout = Layout { dtype: Dtype::F32, dim, rows, offset: 0, stride: u64::from(dim) * 4 };
        VectorFile::new(FileNumber(number), layout, RowBytes::Slot(slot), 0)
    }

    /// A file of `rows` rows of `dim` elements around `middle`, published.
    fn add_around(&self, middle: f32, number: u64, rows: u64, dim: u32) -> Arc<VectorFile> {
        let file = self.file_around(middle, number, rows, dim);
        let (file, _) = self.collection.stage(file).unwrap();
        self.collection.publish(&added(&file));
        file
    }

    fn stage(&self, number: u64, rows: u64) -> Arc<VectorFile> {
        self.collection.stage(self.file(number, rows, DIM)).unwrap().0
    }

    fn add(&self, number: u64, rows: u64) -> Arc<VectorFile> {
        let file = self.stage(number, rows);
        self.collection.publish(&added(&file));
        file
    }

    fn remove(&self, file: &Arc<VectorFile>) {
        self.collection.publish(&Staged { added: vec![], removed: vec![Arc::clone(file)] });
    }

    /// Runs the graph's work to its end.
    fn index(&self) {
        while self.collection.index_step(1, &AtomicBool::new(false)).unwrap() {}
    }

    fn visible(&self) -> Vec<u32> {
        self.collection.reader().live_from(RowId(0)).map(|row| row.0).collect()
    }

    fn count(&self, allowed: Allowed) -> u64 {
        rows(&self.collection, &Filter::files(Arc::new(allowed)), &self.collection.reader()).len()
    }

    /// A collection as an opened volume puts it back: the same files under the same numbers.
    fn reopened(&self, schema: Schema, files: &[Arc<VectorFile>]) -> Collection {
        self.reopened_under(self.collection.numbering(), schema, files)
    }

    fn reopened_under(&self, numbering: u64, schema: Schema, files: &[Arc<VectorFile>]) -> Collection {
        let collection = Collection::new(7, schema, numbering);
        let files: Vec<_> = files
            .iter()
            .map(|file| {
                let again =
                    VectorFile::new(file.number(), *file.layout(), file.bytes().clone(), file.group());
                Arc::new(again.with_first_row(file.first_row()))
            })
            .collect();
        collection.restore(&files);
        collection
    }
}

fn added(file: &Arc<VectorFile>) -> Staged {
    Staged { added: vec![Arc::clone(file)], removed: vec![] }
}

/// What the graph alone finds near a vector.
fn through_graph(collection: &Collection, vector: &[f32], k: usize) -> Vec<(u32, f32)> {
    let Snapshot { reader, graph, .. } = collection.snapshot();
    let query = Query::new(collection.schema().metric, vector);
    let found = graph.unwrap().hnsw.search(
        &query,
        Beam::new(k, 200),
        &reader,
        |row| reader.row(row).is_some(),
        &mut SearchScratch::default(),
        &mut || true,
    );
    found.neighbors.iter().map(|neighbor| (neighbor.row.0, neighbor.key)).collect()
}

#[test]
fn a_staged_file_is_invisible_until_it_is_published() {
    let bench = Bench::new();
    let file = bench.stage(1, 3);
    assert_eq!(bench.visible(), [0; 0]);
    assert!(bench.collection.is_empty() && bench.collection.file(FileNumber(1)).is_none());
    assert!(!file.is_live());
    bench.collection.publish(&added(&file));
    assert_eq!(bench.visible(), [0, 1, 2]);
    assert_eq!(bench.collection.len(), 3);
    assert!(Arc::ptr_eq(&bench.collection.file(FileNumber(1)).unwrap(), &file));
    let mut scratch = [0.0; DIM as usize];
    let reader = bench.collection.reader();
    let row = reader.row(RowId(2)).unwrap();
    assert_eq!((row.file.number(), row.index), (FileNumber(1), 2));
    let want: Vec<f32> = file.bytes().bytes()[32..48]
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(row.file.row(2, &mut scratch), want);
}

#[test]
fn several_files_come_and_go_at_one_version_and_an_older_reader_keeps_what_it_began_with() {
    let bench = Bench::new();
    let old = bench.add(1, 2);
    let before = bench.collection.reader();
    let version = bench.collection.version();
    let (new, other) = (bench.stage(1, 3), bench.stage(2, 1));
    let change =
        Staged { added: vec![Arc::clone(&new), Arc::clone(&other)], removed: vec![Arc::clone(&old)] };
    bench.collection.publish(&change);
    assert_eq!(bench.collection.version(), version + 1);
    assert_eq!(bench.visible(), [2, 3, 4, 5]);
    assert_eq!(before.live_from(RowId(0)).map(|row| row.0).collect::<Vec<_>>(), [0, 1]);
    assert!(Arc::ptr_eq(&bench.collection.file(FileNumber(1)).unwrap(), &new), "the new version stays");
    assert!(!old.is_live() && new.is_live());
    assert_eq!(bench.collection.files().len(), 2);
}

#[test]
fn a_search_beside_a_writer_sees_all_of_a_change_or_nothing() {
    let bench = Bench::new();
    let mut now = [bench.add(1, 5), bench.add(2, 7)];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut readers = 0;
            while !done.load(Ordering::Acquire) || readers < 100 {
                assert_eq!(bench.visible().len(), 12);
                readers += 1;
            }
        });
        for _ in 0..300 {
            let new = [bench.stage(1, 5), bench.stage(2, 7)];
            bench.collection.publish(&Staged { added: new.to_vec(), removed: now.to_vec() });
            bench.collection.index_step(1, &AtomicBool::new(false)).unwrap();
            now = new;
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn an_abandoned_file_is_never_seen_and_its_numbers_stay_unused() {
    let bench = Bench::new();
    bench.add(1, 1);
    let file = bench.stage(2, 2);
    bench.collection.abandon(&added(&file));
    assert_eq!(bench.add(3, 1).first_row(), RowId(3));
    assert_eq!(bench.visible(), [0, 3]);
    assert_eq!(bench.collection.len(), 2);
}

#[test]
fn an_abandoned_file_gives_back_the_dimension_that_it_fixed() {
    let bench = Bench::new();
    let (file, _) = bench.collection.stage(bench.file(1, 1, 3)).unwrap();
    assert_eq!(bench.collection.dim(), None, "a dimension is in force once its vectors are visible");
    let refused = bench.collection.stage(bench.file(2, 1, 5));
    assert!(matches!(refused, Err(Error::Dimension { expected: 3, got: 5 })), "{refused:?}");
    bench.collection.abandon(&added(&file));
    assert_eq!(bench.collection.dim(), None);
    bench.collection.stage(bench.file(2, 1, 5)).unwrap();
}

#[test]
fn an_emptied_collection_numbers_from_0_again_under_a_new_numbering() {
    let bench = Bench::new();
    let (file, renumbered) = bench.collection.stage(bench.file(1, 2, DIM)).unwrap();
    assert!(renumbered, "the first rows have a numbering of their own");
    bench.collection.publish(&added(&file));
    let first = bench.collection.numbering();
    bench.remove(&file);
    assert_eq!((bench.collection.len(), bench.collection.dim()), (0, None));
    let (file, renumbered) = bench.collection.stage(bench.file(2, 1, 9)).unwrap();
    assert_eq!((file.first_row(), renumbered), (RowId(0), true));
    assert_ne!(bench.collection.numbering(), first);
    assert_eq!(bench.collection.dim(), None);
    // Its commit fails: whoever comes next has to commit the numbering.
    bench.collection.abandon(&added(&file));
    let (file, renumbered) = bench.collection.stage(bench.file(3, 1, DIM)).unwrap();
    assert!(renumbered);
    bench.collection.publish(&added(&file));
    let (_, renumbered) = bench.collection.stage(bench.file(4, 1, DIM)).unwrap();
    assert!(!renumbered);
    assert_eq!(bench.visible(), [file.first_row().0]);
}

#[test]
fn a_collection_whose_only_files_are_staged_is_not_renumbered() {
    let bench = Bench::new();
    let first = bench.add(1, 1);
    bench.remove(&first);
    let (a, _) = bench.collection.stage(bench.file(2, 2, DIM)).unwrap();
    let (b, _) = bench.collection.stage(bench.file(3, 2, DIM)).unwrap();
    assert_eq!((a.first_row(), b.first_row()), (RowId(0), RowId(2)));
    bench.collection.publish(&added(&b));
    bench.collection.publish(&added(&a));
    assert_eq!(bench.visible(), [0, 1, 2, 3]);
}

#[test]
fn rows_are_counted_by_group_through_regroup_and_removal() {
    let bench = Bench::new();
    let (a, b) = (bench.add(1, 3), bench.add(2, 5));
    let only = |group: usize| {
        let set = (0..=group).map(|at| at == group).collect();
        bench.count(Allowed::Groups(set))
    };
    assert_eq!((only(0), only(1), bench.count(Allowed::All)), (8, 0, 8));
    let version = bench.collection.version();
    bench.collection.regroup(&b, 1);
    assert_eq!((only(0), only(1)), (3, 5));
    assert!(bench.collection.version() > version, "an answer computed before may be another now");
    bench.collection.regroup(&b, 1);
    assert_eq!((only(0), only(1)), (3, 5));
    bench.remove(&a);
    assert_eq!((only(0), only(1), bench.count(Allowed::All)), (0, 5, 5));
    assert!(!Allowed::Groups(vec![true]).contains(1), "a group beyond the set is not allowed");
    assert_eq!((bench.count(Allowed::First(1)), bench.count(Allowed::First(2))), (0, 5));
    let is_all = |first| Filter::files(Arc::new(Allowed::First(first))).is_all(bench.collection.groups());
    assert_eq!((is_all(1), is_all(2)), (false, true), "a group that was not judged is refused");
}

#[test]
fn metric_and_dimension_cannot_change_while_there_are_vectors() {
    let bench = Bench::new();
    let now = || (*bench.collection.schema()).clone();
    let file = bench.add(1, 1);
    let message = |schema| bench.collection.set_schema(schema).unwrap_err().to_string();
    assert_eq!(
        message(Schema { metric: Metric::Ip, ..now() }),
        "config: metric l2 cannot become ip: the collection has 1 vectors"
    );
    assert_eq!(
        message(Schema { dim: Some(9), ..now() }),
        "config: dim 4 cannot become 9: the collection has 1 vectors"
    );
    assert_eq!(
        message(Schema { max_dim: 3, ..now() }),
        "config: limits.max_dim = 3: the collection has 1 vectors of 4"
    );
    bench.collection.set_schema(Schema { max_dim: 4, ..now() }).unwrap();
    bench.collection.set_schema(Schema { dim: Some(DIM), recall: 0.9, ..now() }).unwrap();
    assert_eq!(now().recall, 0.9);
    bench.remove(&file);
    bench.collection.set_schema(Schema { dim: Some(9), metric: Metric::Ip, ..now() }).unwrap();
    assert_eq!(bench.collection.dim(), Some(9));
    let refused = bench.collection.stage(bench.file(1, 1, DIM));
    assert!(matches!(refused, Err(Error::Dimension { expected: 9, got: DIM })), "{refused:?}");
}

#[test]
fn a_staged_file_keeps_the_dimension_from_being_declared_otherwise() {
    let bench = Bench::new();
    let file = bench.stage(1, 1);
    let declared = Schema { dim: Some(9), ..(*bench.collection.schema()).clone() };
    let taken = bench.collection.set_schema(declared).is_ok();
    bench.collection.publish(&added(&file));
    let dims = (bench.collection.dim(), bench.collection.schema().dim);
    assert!(!taken || dims == (Some(DIM), None), "a file of dimension {DIM} is in a collection of {dims:?}");
}

#[test]
fn the_dimension_of_the_only_file_changes_with_it_and_its_graph_goes() {
    let bench = Bench::new();
    let old = bench.add(1, 120);
    bench.index();
    let before = bench.collection.snapshot();
    let (new, _) = bench.collection.stage(bench.file(1, 110, 9)).unwrap();
    assert_eq!(bench.collection.dim(), Some(DIM), "until the new version is visible");
    bench.collection.publish(&Staged { added: vec![Arc::clone(&new)], removed: vec![old] });
    assert_eq!((bench.collection.dim(), bench.collection.len()), (Some(9), 110));
    assert_eq!(bench.collection.pending(), 110);
    bench.index();
    assert_eq!((bench.collection.pending(), through_graph(&bench.collection, &[0.5; 9], 5).len()), (0, 5));
    // A search that began before goes on with what it has.
    assert_eq!(before.reader.live_from(RowId(0)).count(), 120);
    assert_eq!(before.graph.unwrap().hnsw.dim(), DIM as usize);
    let other = bench.collection.stage(bench.file(2, 1, DIM));
    assert!(matches!(other, Err(Error::Dimension { expected: 9, got: DIM })), "{other:?}");
}

#[test]
fn while_the_only_file_changes_its_dimension_no_other_file_of_the_old_one_comes_in() {
    let bench = Bench::new();
    let old = bench.add(1, 1);
    let (new, _) = bench.collection.stage(bench.file(1, 1, 9)).unwrap();
    // Two files are closed at the same moment: this one was checked against the version that is about to go.
    let other = bench.collection.stage(bench.file(2, 1, DIM));
    bench.collection.publish(&Staged { added: vec![new], removed: vec![old] });
    if let Ok((other, _)) = other {
        bench.collection.publish(&added(&other));
    }
    let dims: BTreeSet<u32> = bench.collection.files().iter().map(|file| file.dim()).collect();
    assert_eq!(dims.len(), 1, "one collection has vectors of {dims:?} elements");
}

#[test]
fn a_reader_has_the_dimension_of_the_rows_that_it_sees() {
    let bench = Bench::new();
    let mut now = bench.add(1, 3);
    let kinds = [bench.file(1, 3, 9), bench.file(1, 3, DIM)];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let Some(file) = bench.collection.file(FileNumber(1)) else { continue };
                let reader = bench.collection.reader();
                if let Some(row) = reader.row(file.first_row()) {
                    assert_eq!(reader.dim(), row.file.dim() as usize, "at version {}", reader.version());
                }
            }
        });
        for kind in kinds.iter().cycle().take(5_000) {
            let file = VectorFile::new(kind.number(), *kind.layout(), kind.bytes().clone(), 0);
            let (new, _) = bench.collection.stage(file).unwrap();
            bench.collection.publish(&Staged { added: vec![Arc::clone(&new)], removed: vec![now.clone()] });
            now = new;
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn a_dimension_above_the_limit_is_refused_with_both_numbers() {
    let bench = Bench::with(Schema { max_dim: 8, ..Schema::default() });
    let refused = bench.collection.stage(bench.file(1, 1, 9)).unwrap_err();
    assert_eq!(refused.to_string(), "dimension 9, the limit is 8");
    assert_eq!(bench.collection.dim(), None);
}

#[test]
fn the_graph_begins_at_exact_below_and_pending_counts_down() {
    let bench = Bench::new();
    bench.add(1, 99);
    bench.index();
    assert!(bench.collection.graph().is_none());
    assert_eq!(bench.collection.pending(), 0);
    assert!(bench.collection.is_indexed(RowId(98)), "no graph is wanted");
    bench.add(2, 1);
    assert_eq!(bench.collection.pending(), 100);
    assert!(!bench.collection.is_indexed(RowId(0)));
    bench.index();
    let graph = bench.collection.graph().unwrap();
    assert_eq!((graph.watermark(), graph.hnsw.len()), (RowId(100), 100));
    assert_eq!(bench.collection.pending(), 0);
    bench.add(3, 5);
    assert_eq!(bench.collection.pending(), 5);
    assert!(bench.collection.is_indexed(RowId(99)) && !bench.collection.is_indexed(RowId(100)));
    bench.index();
    assert_eq!(bench.collection.pending(), 0);
    assert_eq!(bench.collection.graph().unwrap().hnsw.len(), 105);
}

#[test]
fn a_staged_file_holds_the_watermark_back_until_it_is_settled() {
    let bench = Bench::new();
    bench.add(1, 100);
    let (late, gone) = (bench.stage(2, 10), bench.stage(3, 10));
    bench.add(4, 10);
    bench.index();
    let watermark = || bench.collection.graph().unwrap().watermark().0;
    assert_eq!((watermark(), bench.collection.pending()), (100, 10));
    bench.collection.publish(&added(&late));
    bench.index();
    assert_eq!((watermark(), bench.collection.pending()), (110, 10));
    bench.collection.abandon(&added(&gone));
    bench.index();
    assert_eq!((watermark(), bench.collection.pending()), (130, 0));
    assert_eq!(bench.collection.graph().unwrap().hnsw.len(), 120);
}

#[test]
fn rows_are_taken_out_of_the_graph_when_more_than_a_twentieth_of_it_is_gone() {
    let bench = Bench::new();
    let files: Vec<_> = (0..20).map(|number| bench.add(number, 50)).collect();
    bench.index();
    let nodes = || bench.collection.graph().unwrap().hnsw.len();
    bench.remove(&files[0]);
    bench.index();
    assert_eq!(nodes(), 1000, "a twentieth is tolerated");
    for file in &files[1..5] {
        bench.remove(file);
    }
    bench.index();
    assert_eq!(nodes(), 750);
    assert_eq!(bench.collection.pending(), 0);
    let rows = through_graph(&bench.collection, &[0.5; DIM as usize], 100);
    assert_eq!(rows.len(), 100);
    assert!(rows.iter().all(|(row, _)| *row >= 250), "rows of removed files: {rows:?}");
}

#[test]
fn a_collection_that_shrinks_below_the_threshold_wants_no_graph() {
    let bench = Bench::new();
    let big = bench.add(1, 100);
    bench.add(2, 10);
    bench.index();
    bench.remove(&big);
    bench.index();
    assert_eq!(bench.collection.pending(), 0);
    assert!(bench.collection.is_indexed(RowId(109)));
    assert_eq!(bench.visible(), (100..110).collect::<Vec<_>>());
}

#[test]
fn the_work_stops_when_it_is_told_to() {
    let bench = Bench::new();
    bench.add(1, 100);
    let stop = AtomicBool::new(true);
    while bench.collection.index_step(1, &stop).unwrap() {}
    assert_eq!(bench.collection.pending(), 100);
}

/// Runs the measuring to its end; returns how many pieces it took.
fn calibrate(collection: &Collection) -> usize {
    let stop = AtomicBool::new(false);
    std::iter::repeat(()).take_while(|()| collection.calibrate_step(&stop)).count()
}

#[test]
fn a_graph_is_measured_once_and_again_when_a_quarter_of_its_rows_came_or_went() {
    let bench = Bench::new();
    let files: Vec<_> = (0..20).map(|number| bench.add(number, 50)).collect();
    assert_eq!(calibrate(&bench.collection), 0, "there is no graph yet");
    bench.index();
    assert!(bench.collection.wants_calibration());
    assert!(calibrate(&bench.collection) > 0);
    assert!(!bench.collection.wants_calibration());
    assert_eq!(calibrate(&bench.collection), 0);
    let measured_on = || bench.collection.recall().measured_on;
    assert_eq!(measured_on(), Some(1000));
    for number in 20..25 {
        bench.add(number, 50);
    }
    bench.index();
    assert!(!bench.collection.wants_calibration(), "a quarter is not more");
    bench.remove(&files[0]);
    assert_eq!(measured_on(), Some(1000), "the old one holds until there is a new one");
    assert!(calibrate(&bench.collection) > 0);
    assert_eq!(measured_on(), Some(1200));
}

#[test]
fn another_recall_is_looked_up_and_not_measured() {
    let bench = Bench::new();
    bench.add(1, 1000);
    bench.index();
    calibrate(&bench.collection);
    let with = |recall| {
        let schema = Schema { recall, ..(*bench.collection.schema()).clone() };
        bench.collection.set_schema(schema).unwrap();
        assert!(!bench.collection.wants_calibration());
        bench.collection.recall()
    };
    let (low, high) = (with(0.6), with(0.999));
    assert_eq!((low.asked, high.asked), (0.6, 0.999));
    assert!(low.estimate.unwrap() >= 0.6 && high.estimate.unwrap() >= 0.99, "{low:?} {high:?}");
    assert!(low.ef.unwrap() <= high.ef.unwrap_or(usize::MAX), "{low:?} {high:?}");
}

#[test]
fn what_is_known_of_recall_follows_the_state_of_the_graph() {
    let bench = Bench::new();
    let unknown = |ef| RecallEstimate { asked: 0.95, estimate: None, ef: Some(ef), measured_on: None };
    let exact = RecallEstimate { estimate: Some(1.0), ef: None, ..unknown(0) };
    assert_eq!(bench.collection.recall(), exact, "no rows");
    let file = bench.add(1, 200);
    assert_eq!(bench.collection.recall(), exact, "no graph yet: every row is compared");
    bench.index();
    assert_eq!(bench.collection.recall(), unknown(200));
    assert_eq!(bench.collection.graph().unwrap().effort(0.995, 10), Effort::Walk(400.0));
    assert_eq!(bench.collection.graph().unwrap().effort(0.9, 500), Effort::Walk(500.0));
    assert_eq!(bench.collection.graph().unwrap().effort(1.0, 10), Effort::Scan);
    calibrate(&bench.collection);
    assert!(bench.collection.recall().estimate.unwrap() >= 0.95);
    bench.remove(&file);
    assert_eq!(bench.collection.recall(), exact);
    assert!(!bench.collection.wants_calibration());
}

#[test]
fn what_was_measured_is_known_after_opening_and_goes_with_the_checkpoint() {
    let bench = Bench::new();
    let files = [bench.add(1, 1000)];
    bench.index();
    calibrate(&bench.collection);
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let again = bench.reopened((*bench.collection.schema()).clone(), &files);
    again.load_graph(bench.dir.path()).unwrap();
    assert_eq!(again.recall(), bench.collection.recall());
    assert!(!again.wants_calibration());
    again.remove_checkpoint(bench.dir.path()).unwrap();
    assert!(!bench.dir.path().join(again.calibration_name()).exists());
}

#[test]
fn the_same_rows_measure_the_same() {
    let ef = || {
        let bench = Bench::new();
        bench.add(1, 1000);
        bench.index();
        calibrate(&bench.collection);
        let graph = bench.collection.graph().unwrap();
        [0.8, 0.9, 0.95, 0.99].map(|recall| graph.effort(recall, 10))
    };
    assert_eq!(ef(), ef());
}

#[test]
fn measuring_stops_when_it_is_told_to_and_gives_way_when_the_collection_shrinks() {
    let bench = Bench::new();
    let wide = |number| bench.collection.stage(bench.file(number, 60, 512)).unwrap().0;
    let files: Vec<_> = (0..8).map(wide).collect();
    bench.collection.publish(&Staged { added: files.clone(), removed: vec![] });
    bench.index();
    assert!(!bench.collection.calibrate_step(&AtomicBool::new(true)));
    assert!(bench.collection.calibrate_step(&AtomicBool::new(false)));
    let graph = bench.collection.graph().unwrap();
    assert!(
        graph.calibration.load().is_none() && graph.measuring.lock().is_some(),
        "it takes several pieces"
    );
    bench.collection.publish(&Staged { added: vec![], removed: files[1..].to_vec() });
    assert!(!bench.collection.calibrate_step(&AtomicBool::new(false)));
    assert!(graph.measuring.lock().is_none(), "it would keep the bytes of the removed files");
}

#[test]
fn rows_that_go_while_recall_is_measured_are_not_missed() {
    let bench = Bench::new();
    let wide = |number| bench.collection.stage(bench.file(number, 60, 512)).unwrap().0;
    let files: Vec<_> = (0..8).map(wide).collect();
    bench.collection.publish(&Staged { added: files.clone(), removed: vec![] });
    bench.index();
    assert!(bench.collection.calibrate_step(&AtomicBool::new(false)), "it takes several pieces");
    bench.collection.publish(&Staged { added: vec![], removed: files[7..].to_vec() });
    bench.index();
    assert_eq!(bench.collection.graph().unwrap().hnsw.len(), 420, "they are taken out of the graph");
    calibrate(&bench.collection);
    let known = bench.collection.recall();
    assert_eq!(known.measured_on, Some(480));
    assert!(known.ef.is_some_and(|ef| ef < 200) && known.estimate.unwrap() >= 0.95, "{known:?}");
}

#[test]
fn another_quant_builds_another_graph() {
    let bench = Bench::new();
    bench.add(1, 200);
    bench.index();
    let schema = Schema { quant: Quant::None, ..(*bench.collection.schema()).clone() };
    bench.collection.set_schema(schema).unwrap();
    assert_eq!(bench.collection.pending(), 200);
    bench.index();
    assert_eq!(bench.collection.graph().unwrap().hnsw.params().quant, Quant::None);
}

#[test]
fn other_graph_parameters_build_another_graph() {
    let bench = Bench::new();
    bench.add(1, 200);
    bench.index();
    let schema = Schema { m: 4, ..(*bench.collection.schema()).clone() };
    bench.collection.set_schema(schema).unwrap();
    assert_eq!(bench.collection.pending(), 200);
    bench.index();
    assert_eq!(bench.collection.graph().unwrap().hnsw.params().m, 4);
}

#[test]
fn a_checkpoint_gives_the_same_graph() {
    let bench = Bench::new();
    let files: Vec<_> = (0..6).map(|number| bench.add(number, 100)).collect();
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let again = bench.reopened((*bench.collection.schema()).clone(), &files);
    assert_eq!(again.pending(), 600);
    again.load_graph(bench.dir.path()).unwrap();
    assert_eq!(again.pending(), 0);
    assert_eq!(again.graph().unwrap().watermark(), RowId(600));
    for seed in 0u8..20 {
        let vector = [0.05 * f32::from(seed), 0.5, 0.9, 0.1];
        assert_eq!(through_graph(&again, &vector, 10), through_graph(&bench.collection, &vector, 10));
    }
}

#[test]
fn a_loaded_graph_is_caught_up_with_what_came_after_it() {
    let bench = Bench::new();
    let mut files = vec![bench.add(0, 120)];
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    files.push(bench.add(1, 30));
    let again = bench.reopened((*bench.collection.schema()).clone(), &files);
    again.load_graph(bench.dir.path()).unwrap();
    assert_eq!(again.pending(), 30);
    while again.index_step(1, &AtomicBool::new(false)).unwrap() {}
    assert_eq!((again.pending(), again.graph().unwrap().hnsw.len()), (0, 150));
}

#[test]
fn a_number_that_a_loaded_graph_knows_is_not_given_again() {
    let bench = Bench::new();
    let files = vec![bench.add(0, 120)];
    bench.add(1, 30);
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    // The second file's removal came after the checkpoint.
    let again = bench.reopened((*bench.collection.schema()).clone(), &files);
    again.load_graph(bench.dir.path()).unwrap();
    let (file, _) = again.stage(bench.file(2, 1, DIM)).unwrap();
    assert_eq!(file.first_row(), RowId(150));
}

#[test]
fn the_checkpoint_of_another_numbering_or_metric_is_not_loaded() {
    let bench = Bench::new();
    let files = vec![bench.add(0, 120)];
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let now = || (*bench.collection.schema()).clone();
    let numbering = bench.collection.numbering();
    for (what, schema, numbering) in [
        ("numbering", now(), numbering.wrapping_add(1)),
        ("metric", Schema { metric: Metric::Ip, ..now() }, numbering),
    ] {
        let again = bench.reopened_under(numbering, schema, &files);
        // Under the same numbering another metric contradicts the stamp, so it counts as damage.
        let loaded = again.load_graph(bench.dir.path());
        assert!(matches!(loaded, Ok(()) | Err(Error::Corrupt { .. })), "another {what}: {loaded:?}");
        assert!(again.graph().is_none(), "another {what}");
        assert_eq!(again.pending(), 120, "another {what}");
    }
}

#[test]
fn a_collection_that_was_opened_empty_is_no_more_what_it_was_before() {
    let bench = Bench::new();
    bench.add(0, 120);
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let now = || (*bench.collection.schema()).clone();
    // It was emptied, and the process died before the checkpoint was removed.
    let filled_again = || {
        let emptied = bench.reopened(now(), &[]);
        let (file, is_to_be_committed) = emptied.stage(bench.file(1, 120, DIM)).unwrap();
        assert!(is_to_be_committed);
        emptied.publish(&added(&file));
        (emptied.numbering(), file)
    };
    let (numbering, file) = filled_again();
    let again = bench.reopened_under(numbering, now(), &[file]);
    again.load_graph(bench.dir.path()).unwrap();
    assert!(again.graph().is_none(), "the graph is of other rows with the same numbers");
    assert_ne!(filled_again().0, numbering, "a power cut may take the first one back");
}

#[test]
fn a_checkpoint_with_other_parameters_serves_until_its_successor_is_built() {
    let bench = Bench::new();
    let files = vec![bench.add(0, 120)];
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let now = || (*bench.collection.schema()).clone();
    for schema in [Schema { m: 8, ..now() }, Schema { ef_construction: 8, ..now() }] {
        let again = bench.reopened(schema.clone(), &files);
        again.load_graph(bench.dir.path()).unwrap();
        assert_eq!((again.index_state().phase, again.pending()), (Phase::Rebuilding, 120));
        while again.index_step(1, &AtomicBool::new(false)).unwrap() {}
        let params = again.graph().unwrap().hnsw.params();
        assert_eq!((params.m, params.ef_construction), (schema.m, schema.ef_construction));
        assert_eq!((again.index_state().phase, again.pending()), (Phase::Ready, 0));
    }
}

#[test]
fn a_missing_checkpoint_is_no_error_and_a_damaged_one_leaves_the_collection_without_a_graph() {
    let bench = Bench::new();
    let files = vec![bench.add(0, 120)];
    bench.index();
    let again = bench.reopened((*bench.collection.schema()).clone(), &files);
    again.load_graph(bench.dir.path()).unwrap();
    assert!(again.graph().is_none());
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let path = bench.dir.path().join(bench.collection.checkpoint_name());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(again.load_graph(bench.dir.path()), Err(Error::Corrupt { .. })));
    assert!(again.graph().is_none());
    assert!(again.index_state().damage.is_some_and(|damage| damage.contains("checksum of the header")));
    while again.index_step(1, &AtomicBool::new(false)).unwrap() {}
    assert_eq!(again.pending(), 0, "it is built anew");
    assert!(again.index_state().damage.is_none());
}

#[test]
fn a_graph_that_is_damaged_anywhere_a_search_goes_is_given_up_and_built_anew() {
    let bench = Bench::new();
    let files = vec![bench.add(0, 120)];
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    let path = bench.dir.path().join(bench.collection.checkpoint_name());
    let good = std::fs::read(&path).unwrap();
    let mut loaded = 0;
    for at in (200..good.len() - 64).step_by(257) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let again = bench.reopened((*bench.collection.schema()).clone(), &files);
        // Opening reads the numbers of the rows and nothing else.
        if again.load_graph(bench.dir.path()).is_ok() {
            loaded += 1;
            let check = again.verify();
            assert!(!check.is_sound() && again.graph().is_none(), "byte {at}");
            assert!(check.to_string().contains(".hnsw"), "byte {at}: {check}");
        }
        assert_eq!(again.pending(), 120, "byte {at}");
        while again.index_step(1, &AtomicBool::new(false)).unwrap() {}
        assert!(again.verify().is_sound() && again.pending() == 0, "byte {at}");
    }
    assert!(loaded > 0);
}

#[test]
fn restored_files_keep_their_numbers_and_the_next_follows_the_last() {
    let bench = Bench::new();
    let (a, b) = (bench.add(1, 3), bench.add(2, 2));
    bench.remove(&a);
    let again = bench.reopened(Schema::default(), &[b]);
    assert_eq!(again.reader().live_from(RowId(0)).map(|row| row.0).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((again.len(), again.dim()), (2, Some(DIM)));
    assert_eq!(again.stage(bench.file(3, 1, DIM)).unwrap().0.first_row(), RowId(5));
    assert_eq!(rows(&again, &Filter::files(Arc::new(Allowed::Groups(vec![true]))), &again.reader()).len(), 2);
}

#[test]
fn the_rows_of_a_filter_are_those_of_its_files_at_every_version() {
    let bench = Bench::new();
    let within: Arc<RowSet> = Arc::new((0..20_000).step_by(3).map(RowId).collect());
    let filters = [
        Filter::all(),
        Filter::files(Arc::new(Allowed::Groups(vec![true, false, true]))),
        Filter {
            allowed: Arc::new(Allowed::Groups(vec![false, true])),
            within: Some(within),
            condition: None,
        },
    ];
    let mut files: Vec<Arc<VectorFile>> = (0..8).map(|number| bench.add(number, number + 1)).collect();
    // Between two looks: one change, several, and more than are kept.
    for (round, changes) in [1usize, 3, 100, 1_500, 1, 7].into_iter().enumerate() {
        for change in 0..changes {
            let at = (change * 5 + round) % files.len();
            match change % 3 {
                0 => bench.collection.regroup(&files[at], u32::try_from(change % 4).unwrap()),
                1 => {
                    let new = bench.stage(at as u64, 1 + change as u64 % 5);
                    let removed = vec![std::mem::replace(&mut files[at], Arc::clone(&new))];
                    bench.collection.publish(&Staged { added: vec![new], removed });
                }
                _ => {
                    bench.remove(&files[at]);
                    files[at] = bench.add(at as u64, 4);
                }
            }
        }
        for filter in &filters {
            let reader = bench.collection.reader();
            let passes = |row: &RowId| {
                filter.within.as_ref().is_none_or(|within| within.contains(*row))
                    && filter.allowed.contains(reader.row(*row).unwrap().file.group())
            };
            let want: Vec<RowId> = reader.live_from(RowId(0)).filter(passes).collect();
            let found = rows(&bench.collection, filter, &reader);
            assert_eq!(found.iter().collect::<Vec<_>>(), want, "round {round}, {:?}", filter.allowed);
            assert_eq!(found.len(), want.len() as u64);
            let again = rows(&bench.collection, &filter.clone(), &reader);
            assert!(Arc::ptr_eq(&found, &again), "the same filter at the same version costs nothing");
        }
    }
}

/// What a test of one attribute lets pass.
fn lang(value: &[u8]) -> Filter {
    let is = Is::Equal(Literal::text(value));
    let condition = Condition::new(vec![Step::Test(Test { name: (*b"lang").into(), is })]);
    Filter { condition: condition.map(Arc::new), ..Filter::all() }
}

fn attributes(value: &[u8]) -> Arc<Attributes> {
    Attributes::new([(&b"lang"[..], value)], &Arc::default()).unwrap()
}

#[test]
fn a_condition_has_rows_once_the_attributes_are_known_and_follows_their_changes() {
    let bench = Bench::new();
    let files: Vec<_> = (0..3).map(|number| bench.add(number, 2)).collect();
    let numbers = |filter: &Filter| {
        let rows = rows(&bench.collection, filter, &bench.collection.reader());
        rows.iter().map(|row| row.0).collect::<Vec<_>>()
    };
    let unknown =
        |filter: &Filter| match bench.collection.rows(filter, &bench.collection.reader(), &mut || true) {
            Err(NoRows::Unknown(files)) => files.iter().map(|file| file.number().0).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
    assert_eq!(unknown(&lang(b"en")), [0, 1, 2]);
    bench.collection.keep_attributes();
    files.iter().for_each(|file| bench.collection.learn_attributes(file, attributes(b"en")));
    assert_eq!(numbers(&lang(b"en")), [0, 1, 2, 3, 4, 5]);
    // What is read late does not undo a change.
    bench.collection.set_attributes(&files[1], attributes(b"de"));
    bench.collection.learn_attributes(&files[1], attributes(b"en"));
    assert_eq!((numbers(&lang(b"en")), numbers(&lang(b"de"))), (vec![0, 1, 4, 5], vec![2, 3]));
    // A set that is brought up to date asks for what is new, and only for that.
    let late = bench.add(7, 1);
    assert_eq!(unknown(&lang(b"de")), [7]);
    bench.collection.learn_attributes(&late, attributes(b"de"));
    bench.collection.set_attributes(&files[0], Attributes::none());
    bench.remove(&files[2]);
    assert_eq!((numbers(&lang(b"en")), numbers(&lang(b"de"))), (vec![], vec![2, 3, 6]));
    bench.collection.regroup(&files[1], 1);
    let first_group = Filter { allowed: Arc::new(Allowed::Groups(vec![true])), ..lang(b"de") };
    assert_eq!((numbers(&lang(b"de")), numbers(&first_group)), (vec![2, 3, 6], vec![6]));
    bench.collection.refuse_attributes();
    let refused = bench.collection.rows(&lang(b"de"), &bench.collection.reader(), &mut || true);
    assert!(matches!(refused, Err(NoRows::TooMany)));
    assert_eq!(numbers(&Filter::all()), [0, 1, 2, 3, 6], "without a condition nothing is refused");
}

#[test]
fn a_reader_from_before_has_the_rows_of_a_file_that_is_gone() {
    let bench = Bench::new();
    let file = bench.add(1, 1);
    bench.collection.learn_attributes(&file, attributes(b"en"));
    let before = bench.collection.reader();
    let new = bench.stage(2, 1);
    bench.collection.learn_attributes(&new, attributes(b"en"));
    bench.collection.publish(&Staged { added: vec![new], removed: vec![file] });
    assert_eq!(
        rows(&bench.collection, &lang(b"en"), &bench.collection.reader()).iter().collect::<Vec<_>>(),
        [RowId(1)]
    );
    assert_eq!(rows(&bench.collection, &lang(b"en"), &before).iter().collect::<Vec<_>>(), [RowId(0)]);
}

#[test]
fn an_older_reader_gets_the_rows_of_its_own_version() {
    let bench = Bench::new();
    let file = bench.add(1, 3);
    let filter = Filter::files(Arc::new(Allowed::Groups(vec![true])));
    let before = bench.collection.reader();
    bench.add(2, 2);
    bench.remove(&file);
    let numbers = |reader: &Reader| {
        rows(&bench.collection, &filter, reader).iter().map(|row| row.0).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&bench.collection.reader()), [3, 4]);
    assert_eq!(numbers(&before), [0, 1, 2]);
}

#[test]
fn the_sets_of_no_more_than_64_filters_are_kept() {
    let bench = Bench::new();
    bench.add(1, 3);
    let reader = bench.collection.reader();
    let filter = |at: usize| Filter::files(Arc::new(Allowed::Groups((0..=at).map(|i| i == at).collect())));
    let sets: Vec<_> = (0..65).map(|at| rows(&bench.collection, &filter(at), &reader)).collect();
    let kept = |at: usize| Arc::strong_count(&sets[at]) > 1;
    assert!(!kept(0), "the oldest went");
    assert!((1..65).all(kept));
}

#[test]
fn rows_are_found_in_files_that_share_chunks_and_in_one_that_fills_some() {
    let bench = Bench::new();
    let files = [(1, 300), (2, 1500), (3, 20)].map(|(number, rows)| bench.add(number, rows));
    let where_it_is =
        |reader: &Reader, row: u32| reader.row(RowId(row)).map(|at| (at.file.number().0, at.index));
    let expected = |row: u32| match row {
        0..300 => Some((1, row)),
        300..1800 => Some((2, row - 300)),
        1800..1820 => Some((3, row - 1800)),
        _ => None,
    };
    let before = bench.collection.reader();
    for row in 0..2100 {
        assert_eq!(where_it_is(&before, row), expected(row), "row {row}");
    }
    let mut scratch = vec![0.0; DIM as usize];
    let norm = |reader: &Reader, row: u32| reader.inverse_norm(RowId(row));
    let norms: Vec<f32> = (0..1820).map(|row| norm(&before, row)).collect();
    for (row, found) in (0..1820).zip(&norms) {
        let vector = before.vector(RowId(row), &mut scratch).unwrap();
        assert_eq!(found.to_bits(), crate::distance::inverse_norm(vector).to_bits(), "row {row}");
    }
    // Of the file that goes, two chunks are whole and two are shared.
    bench.remove(&files[1]);
    assert_eq!(bench.collection.table.sweep(), 4);
    let after = bench.collection.reader();
    for row in 0..2100 {
        let left = expected(row).filter(|(number, _)| *number != 2);
        assert_eq!(where_it_is(&after, row), left, "row {row}");
        if left.is_some() {
            assert_eq!(norm(&after, row).to_bits(), norms[row as usize].to_bits(), "row {row}");
        }
    }
    // Numbers that the swept chunks have left go to others.
    bench.add(4, 600);
    let again = bench.collection.reader();
    assert_eq!((where_it_is(&again, 1820), where_it_is(&again, 2419)), (Some((4, 0)), Some((4, 599))));
    assert_eq!(where_it_is(&before, 700), Some((2, 400)), "a reader keeps what it began with");
}

#[test]
fn numbers_that_nobody_has_any_more_take_no_memory_and_are_stepped_over() {
    let bench = Bench::new();
    let kept = bench.add(1, 3);
    for number in 2..40 {
        let file = bench.add(number, 5000);
        bench.remove(&file);
    }
    assert_eq!(bench.collection.table.chunks(), (3 + 38 * 5000usize).div_ceil(512));
    bench.collection.table.sweep();
    assert_eq!((bench.collection.table.chunks(), bench.visible()), (1, vec![0, 1, 2]));
    let reader = bench.collection.reader();
    assert_eq!((reader.end(), reader.count_live_from(RowId(1000))), (RowId(190_003), 0));
    assert!(reader.row(RowId(1000)).is_none() && reader.inverse_norm(RowId(1000)) == 0.0);
    // What comes next fills the last chunk, which is gone, and one more.
    let last = bench.add(50, 600);
    assert_eq!((last.first_row(), bench.collection.table.chunks()), (RowId(190_003), 3));
    let found: Vec<u32> = bench.visible();
    assert_eq!((found.len(), found[3], found[602]), (603, 190_003, 190_602));
    let reader = bench.collection.reader();
    assert_eq!(reader.live_from(RowId(3)).next(), Some(RowId(190_003)));
    assert_eq!(reader.count_live_from(RowId(190_600)), 3);
    // As it is opened again.
    let opened = bench.reopened(Schema::default(), &[kept, last]);
    assert_eq!((opened.table.chunks(), opened.reader().count_live_from(RowId(0))), (3, 603));
    let all: Vec<u32> = opened.reader().live_from(RowId(0)).map(|row| row.0).collect();
    assert_eq!(all, found);
}

#[test]
fn a_sweep_keeps_what_dies_with_a_version_that_is_not_published_yet() {
    let bench = Bench::new();
    let file = bench.add(1, 2);
    file.die(bench.collection.version() + 1);
    bench.collection.table.sweep();
    assert_eq!(bench.visible(), [0, 1]);
}

#[test]
fn a_graph_is_sound_while_rows_come_and_go() {
    let bench = Bench::new();
    let files: Vec<_> = (0..10).map(|number| bench.add(number, 50)).collect();
    assert_eq!(bench.collection.index_state().phase, Phase::Building);
    let check = bench.collection.verify();
    assert!(check.is_sound() && check.report.is_none(), "without a graph every row is compared");
    bench.index();
    bench.add(20, 30);
    bench.remove(&files[3]);
    let check = bench.collection.verify();
    assert!(check.is_sound(), "{check}");
    let report = check.report.unwrap();
    assert_eq!((report.nodes, check.coverage.gone, check.coverage.missing), (500, 50, vec![]));
    let state = bench.collection.index_state();
    assert_eq!((state.vectors, state.pending, state.gone), (480, 30, 50));
    bench.index();
    assert!(bench.collection.verify().is_sound());
    assert_eq!(bench.collection.index_state().phase, Phase::Ready);
}

#[test]
fn a_graph_that_lacks_live_rows_is_found_out_and_given_up() {
    let bench = Bench::new();
    bench.add(1, 200);
    bench.index();
    bench.add(2, 10);
    // As if they had been linked.
    bench.collection.graph().unwrap().set_watermark(RowId(210));
    assert_eq!(bench.collection.pending(), 0);
    let check = bench.collection.verify();
    assert_eq!(check.coverage.missing, (200..210).map(RowId).collect::<Vec<_>>());
    assert_eq!((check.is_sound(), check.to_string()), (false, "10 rows are missing".into()));
    assert!(bench.collection.graph().is_none(), "searches scan");
    assert_eq!(bench.collection.index_state().damage.as_deref(), Some("10 rows are missing"));
    assert!(!bench.collection.verify().is_sound(), "until there is another graph");
    bench.index();
    assert!(bench.collection.verify().is_sound());
    let state = bench.collection.index_state();
    assert_eq!((state.phase, state.pending, state.damage), (Phase::Ready, 0, None));
    assert_eq!(bench.collection.graph().unwrap().hnsw.len(), 210);
}

#[test]
fn the_damage_of_a_graph_that_nobody_wants_any_more_is_forgotten() {
    let bench = Bench::new();
    let big = bench.add(1, 200);
    bench.index();
    bench.collection.give_up(&bench.collection.graph().unwrap(), "a flipped bit".into());
    assert_eq!(bench.collection.index_state().damage.as_deref(), Some("a flipped bit"));
    bench.add(2, 10);
    bench.remove(&big);
    let state = bench.collection.index_state();
    assert_eq!((state.phase, state.damage), (Phase::Exact, None));
    assert!(bench.collection.verify().is_sound());
}

#[test]
fn a_graph_serves_until_its_successor_has_as_many_rows() {
    let bench = Bench::new();
    assert!(!bench.collection.rebuild(), "there is none");
    let files: Vec<_> = (0..30).map(|number| bench.add(number, 100)).collect();
    bench.index();
    let before = bench.collection.graph().unwrap();
    assert!(bench.collection.rebuild());
    assert_eq!((bench.collection.pending(), bench.collection.index_state().phase), (3000, Phase::Rebuilding));
    let step = || bench.collection.index_step(1, &AtomicBool::new(false)).unwrap();
    let is_before = || Arc::ptr_eq(&before, &bench.collection.graph().unwrap());
    assert!(step() && step() && is_before());
    assert_eq!(bench.collection.pending(), 3000 - 2048, "a batch is linked");
    assert!(bench.collection.is_indexed(RowId(2999)), "by the one that serves");
    // What comes and goes meanwhile does so in both.
    bench.remove(&files[0]);
    bench.add(30, 100);
    assert_eq!(bench.collection.index_state().phase, Phase::Building, "new rows are compared");
    let found = |of: &dyn Fn(u32) -> bool| {
        let rows = through_graph(&bench.collection, &[0.5; DIM as usize], 3000);
        rows.iter().filter(|(row, _)| of(*row)).count()
    };
    assert!(step() && is_before());
    assert_eq!((found(&|row| row < 100), found(&|row| row >= 3000)), (0, 100));
    assert_eq!(bench.collection.index_state().phase, Phase::Rebuilding);
    bench.index();
    let after = bench.collection.graph().unwrap();
    assert!(!is_before() && after.watermark() == RowId(3100));
    let state = bench.collection.index_state();
    assert_eq!((state.phase, state.pending, state.gone), (Phase::Ready, 0, 100));
    assert_eq!((found(&|row| row < 100), found(&|row| row >= 3000)), (0, 100));
    assert!(bench.collection.verify().is_sound() && !step());
}

#[test]
fn rows_that_the_codes_do_not_fit_wait_for_a_graph_that_is_built_for_them() {
    const DIM: u32 = 64;
    let bench = Bench::new();
    for number in 10..16 {
        bench.add_around(0.5, number, 500, DIM);
    }
    bench.index();
    let before = bench.collection.graph().unwrap();
    // Another topic, far away: its rows are compared, so none is missed.
    bench.add_around(40.5, 2, 200, DIM);
    bench.index();
    let state = bench.collection.index_state();
    assert_eq!((state.phase, before.watermark()), (Phase::Building, RowId(3000)));
    assert!(!bench.collection.is_indexed(RowId(3000)));
    assert!(Arc::ptr_eq(&before, &bench.collection.graph().unwrap()), "more may be coming");
    // An eighth of the graph is enough.
    bench.add_around(40.5, 3, 200, DIM);
    bench.index();
    assert_eq!((bench.collection.pending(), bench.collection.graph().unwrap().hnsw.len()), (0, 3400));
    let (graph, reader) = (bench.collection.graph().unwrap(), bench.collection.reader());
    let mut scratch = SearchScratch::new();
    let mut found = 0;
    for row in (3000..3400).map(RowId) {
        let mut decoded = [0.0; DIM as usize];
        let query = Query::new(Metric::L2, reader.vector(row, &mut decoded).unwrap());
        let mut truth = flat::TopK::new(10);
        let mut other = [0.0; DIM as usize];
        flat::scan(&query, reader.live_from(RowId(0)), &reader, &mut truth, &mut other, &mut || true);
        let truth = truth.into_sorted();
        let beam = Beam::new(10, 40);
        let near = graph.hnsw.search(&query, beam, &reader, |_| true, &mut scratch, &mut || true).neighbors;
        found += near.iter().filter(|one| truth.iter().any(|right| right.row == one.row)).count();
    }
    assert!(found >= 400 * 9, "{found} of 4000");
    assert!(bench.collection.verify().is_sound());
}

#[test]
fn rows_that_wait_for_another_graph_have_it_when_no_more_come() {
    let bench = Bench::new();
    bench.add(1, 3000);
    bench.index();
    bench.add_around(40.5, 2, 200, DIM);
    bench.index();
    assert!(bench.collection.pending() > 0);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    bench.index();
    assert_eq!((bench.collection.pending(), bench.collection.graph().unwrap().hnsw.len()), (0, 3200));
}

#[test]
fn a_few_rows_far_away_and_any_number_of_the_same_kind_go_into_the_graph_that_is_there() {
    let bench = Bench::new();
    bench.add(1, 3000);
    bench.index();
    let before = bench.collection.graph().unwrap();
    for number in 2..10 {
        bench.add(number, 3000);
    }
    bench.add_around(40.5, 10, 60, DIM);
    bench.index();
    let after = bench.collection.graph().unwrap();
    assert!(Arc::ptr_eq(&before, &after) && bench.collection.pending() == 0);
    assert_eq!(after.hnsw.len(), 27_060);
}

#[test]
fn a_damaged_graph_is_followed_by_the_successor_that_is_being_built() {
    let bench = Bench::new();
    bench.add(1, 3000);
    bench.index();
    bench.collection.rebuild();
    for _ in 0..2 {
        bench.collection.index_step(1, &AtomicBool::new(false)).unwrap();
    }
    bench.collection.give_up(&bench.collection.graph().unwrap(), "a flipped bit".into());
    let state = bench.collection.index_state();
    assert_eq!((state.phase, state.pending), (Phase::Building, 3000 - 2048));
    assert_eq!(state.damage.as_deref(), Some("a flipped bit"));
    let rows = through_graph(&bench.collection, &[0.5; DIM as usize], 3000);
    assert_eq!(rows.len(), 2048);
    bench.index();
    let state = bench.collection.index_state();
    assert_eq!((state.phase, state.damage), (Phase::Ready, None));
    assert!(bench.collection.verify().is_sound());
}

#[test]
fn a_successor_is_forgotten_with_the_rows_that_it_was_built_from() {
    let bench = Bench::new();
    let file = bench.add(1, 3000);
    bench.index();
    bench.collection.rebuild();
    bench.collection.index_step(1, &AtomicBool::new(false)).unwrap();
    bench.collection.index_step(1, &AtomicBool::new(false)).unwrap();
    bench.remove(&file);
    bench.add(2, 120);
    assert_eq!((bench.collection.pending(), bench.collection.graph().is_none()), (120, true));
    bench.index();
    assert_eq!(bench.collection.graph().unwrap().hnsw.len(), 120);
    assert!(bench.collection.verify().is_sound());
}

#[test]
fn a_graph_of_another_dimension_gets_no_place_and_no_rows() {
    let bench = Bench::new();
    let (file, _) = bench.collection.stage(bench.file(1, 200, 4)).unwrap();
    bench.collection.publish(&added(&file));
    let numbering = bench.collection.numbering();
    let late = bench.collection.empty_graph().unwrap().unwrap();
    bench.index();
    let before = bench.collection.graph().unwrap();
    let successor = bench.collection.empty_graph().unwrap().unwrap();
    // The only file becomes one of another dimension, which keeps the numbering.
    let (wide, _) = bench.collection.stage(bench.file(1, 200, 5)).unwrap();
    bench.collection.publish(&Staged { added: vec![wide], removed: vec![file] });
    assert_eq!(bench.collection.numbering(), numbering);
    assert!(!bench.collection.install(&bench.collection.graph, late, numbering));
    for stale in [&*before, &successor] {
        assert!(!bench.collection.grow(stale, true, (1, &AtomicBool::new(false))).unwrap());
    }
    bench.index();
    assert_eq!(bench.collection.graph().unwrap().hnsw.dim(), 5);
    assert!(bench.collection.verify().is_sound() && bench.collection.pending() == 0);
}

#[test]
fn a_graph_wants_to_be_saved_when_much_of_it_is_new() {
    let bench = Bench::new();
    bench.add(1, 4000);
    bench.index();
    assert_eq!(bench.collection.wants_save(false), None, "4000 rows are linked in a moment");
    bench.add(2, 100);
    bench.index();
    let bytes = bench.collection.wants_save(false).unwrap();
    assert_eq!(bench.collection.wants_save(true), None, "that is little to have in memory");
    bench.collection.save_graph(bench.dir.path()).unwrap();
    assert_eq!(bench.collection.wants_save(false), None);
    let file = bench.dir.path().join(bench.collection.checkpoint_name());
    let written = || std::fs::metadata(&file).unwrap().ino();
    let len = std::fs::metadata(&file).unwrap().len();
    assert!(bytes < len && len < bytes * 5 / 4, "{bytes} were told, {len} are written");
    let first = written();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    assert_eq!(written(), first, "what did not change is not written again");
    // Rows that go count as those that come.
    let third = bench.add(3, 4000);
    bench.index();
    assert_eq!(bench.collection.wants_save(false), None);
    bench.remove(&third);
    bench.index();
    assert!(bench.collection.wants_save(false).is_some());
    bench.collection.put_save_off();
    assert_eq!(bench.collection.wants_save(false), None, "until there is more");
    bench.collection.save_graph(bench.dir.path()).unwrap();
    assert_ne!(written(), first);
}

#[test]
fn the_checkpoint_of_a_graph_that_lacks_a_live_row_is_not_loaded() {
    let bench = Bench::new();
    let (a, b) = (bench.add(1, 100), bench.add(2, 50));
    bench.remove(&b);
    let c = bench.add(3, 50);
    bench.index();
    bench.collection.save_graph(bench.dir.path()).unwrap();
    // The removal is taken back, as by a power cut.
    let again = bench.reopened((*bench.collection.schema()).clone(), &[a, b, c]);
    let refused = again.load_graph(bench.dir.path()).unwrap_err().to_string();
    assert!(refused.contains("50 live rows are missing, the first is 100"), "{refused}");
    assert!(again.graph().is_none());
    assert_eq!(again.index_state().damage, Some(refused));
}
