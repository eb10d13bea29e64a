//! Models of a collection: changes of vector files beside searches.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Model;
use crate::collection::{Allowed, Collection, FileNumber, Filter, Reader, RowBytes, Schema, Staged, VectorFile};
use crate::format::{Dtype, Layout};
use crate::index::RowId;
use crate::store::Slot;
use crate::sync::{Kind, together};

const PUBLISHED: &[(Kind, &str)] = &[
    (Kind::Release, "self.state.store(version << DIM_BITS"),
    (Kind::Acquire, "let chunks = self.chunks.load_full()"),
    (Kind::Release, "self.chunks.store(Arc::new(Chunks::new(swept)))"),
];

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "a search beside a rewrite sees the old or the new version",
        preemptions: Some(3),
        notices: PUBLISHED,
        run: rewritten_while_read,
    },
    Model {
        name: "a search sees all of a change of two files or nothing",
        preemptions: Some(3),
        notices: PUBLISHED,
        run: two_at_once,
    },
    Model {
        name: "the rows that a filter lets pass are those of the version that is read",
        preemptions: Some(2),
        notices: &[],
        run: filtered_while_changed,
    },
    Model {
        name: "no search reads new rows by the graph of a numbering before",
        preemptions: Some(3),
        notices: &[],
        run: numbered_anew,
    },
];

/// A file with one row of one element, which no other version has.
fn version(number: u64, value: f32) -> VectorFile {
    let layout = Layout { dtype: Dtype::F32, dim: 1, rows: 1, offset: 0, stride: 4 };
    let bytes = RowBytes::Slot(Arc::new(Slot(value.to_le_bytes().to_vec())));
    VectorFile::new(FileNumber(number), layout, bytes, 0)
}

fn collection(schema: Schema) -> Arc<Collection> {
    Arc::new(Collection::new(1, schema, 0))
}

/// Gives files new versions in one change, and takes others away.
fn change(collection: &Collection, added: &[(u64, f32)], removed: &[u64]) {
    let stage = |&(number, value): &(u64, f32)| {
        let staged = collection.stage(version(number, value));
        staged.expect("one dimension").0
    };
    let before = |number: u64| collection.file(FileNumber(number));
    let replaced = added.iter().filter_map(|&(number, _)| before(number));
    let removed: Vec<_> = replaced.chain(removed.iter().filter_map(|&number| before(number))).collect();
    let added = added.iter().map(stage).collect();
    collection.publish(&Staged { added, removed });
}

/// What a search finds now: number and value of each file, by number.
fn seen(collection: &Collection) -> Vec<(u64, f32)> {
    let reader = collection.reader();
    let rows = reader.live_from(RowId(0)).map(|row| {
        let found = reader.row(row).expect("it is live at this version");
        (found.file.number().0, found.file.row(0, &mut [0.0])[0])
    });
    let mut seen: Vec<_> = rows.collect();
    seen.sort_by_key(|&(number, _)| number);
    seen
}

/// What the indexer does after changes.
fn sweep(collection: &Collection) {
    let swept = collection.index_step(1, &AtomicBool::new(false));
    assert!(swept.is_ok());
}

fn rewritten_while_read() {
    let collection = collection(Schema::default());
    change(&collection, &[(1, 1.0)], &[]);
    let changed = Arc::clone(&collection);
    let rewrite = move || {
        change(&changed, &[(1, 2.0)], &[]);
        sweep(&changed);
    };
    together(vec![Box::new(rewrite)], || {
        let first = seen(&collection);
        assert!(first == [(1, 1.0)] || first == [(1, 2.0)], "{first:?}");
        let then = seen(&collection);
        assert!(then == [(1, 2.0)] || then == first, "{first:?}, then {then:?}");
    });
    assert_eq!(seen(&collection), [(1, 2.0)]);
}

fn two_at_once() {
    let collection = collection(Schema::default());
    change(&collection, &[(1, 1.0), (2, 1.0)], &[]);
    let changed = Arc::clone(&collection);
    let rename_over = move || {
        change(&changed, &[(2, 2.0)], &[1]);
        sweep(&changed);
    };
    together(vec![Box::new(rename_over)], || {
        let seen = seen(&collection);
        assert!(seen == [(1, 1.0), (2, 1.0)] || seen == [(2, 2.0)], "{seen:?}");
    });
}

fn filtered_while_changed() {
    let collection = collection(Schema::default());
    change(&collection, &[(1, 1.0), (2, 1.0)], &[]);
    let filter = Filter::files(Arc::new(Allowed::Groups(vec![true])));
    // The set of the first version is kept, and brought up to date.
    let rows = |reader: &Reader| collection.rows(&filter, reader, &mut || true).expect("there is no condition");
    assert_eq!(rows(&collection.reader()).len(), 2);
    let changed = Arc::clone(&collection);
    together(vec![Box::new(move || change(&changed, &[(2, 2.0)], &[1]))], || {
        for _ in 0..2 {
            let reader = collection.reader();
            let passed: Vec<_> = rows(&reader).iter_from(RowId(0)).collect();
            let live: Vec<_> = reader.live_from(RowId(0)).collect();
            assert_eq!(passed, live);
        }
    });
}

fn numbered_anew() {
    let collection = collection(Schema { exact_below: 1, m: 2, ef_construction: 4, ..Schema::default() });
    change(&collection, &[(1, 1.0)], &[]);
    for _ in 0..3 {
        sweep(&collection);
    }
    assert_eq!(collection.pending(), 0, "the row is in the graph");
    let changed = Arc::clone(&collection);
    let replace = move || {
        change(&changed, &[], &[1]);
        change(&changed, &[(2, 2.0)], &[]);
    };
    together(vec![Box::new(replace)], || {
        let snapshot = collection.snapshot();
        // Every row that a search would take from the graph is in it.
        let by_graph = snapshot.reader.live_from(RowId(0)).filter(|&row| row < snapshot.watermark);
        let files: Vec<_> =
            by_graph.filter_map(|row| snapshot.reader.row(row)).map(|row| row.file.number().0).collect();
        assert!(files.iter().all(|&number| number == 1), "the graph has file 1 only: {files:?}");
    });
}
