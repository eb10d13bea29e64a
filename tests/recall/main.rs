//! Recall as the knob: what is asked is found, on queries that are not stored.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, unreachable_pub, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use support::{Bed, Rows};
use vexfs::collection::{Attributes, Effort, FileNumber, Filter, RowBytes, Schema, Staged, VectorFile};
use vexfs::distance::Metric;
use vexfs::format::{self, Dtype, FileKind, Layout};
use vexfs::search::{Options, condition};

/// How far a measured recall may be from what was asked.
const TOLERANCE: f64 = 0.02;

/// What chance may add to it with some hundred queries: about a standard error and a half.
const CHANCE: f64 = 0.01;

/// The least `ef` that is measured.
const LEAST_EF: usize = 10;

fn slice(name: &str) -> Rows {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    Rows::parse(FileKind::Npy, std::fs::read(path).unwrap())
}

/// `rows` vectors of `dim` values, uniform and independent: as hard as vectors can be.
fn random(rows: usize, dim: usize, seed: u64) -> Rows {
    let mut state = seed;
    let mut value = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from((state >> 48) as u16) / 65536.0 - 0.5
    };
    let values: Vec<f32> = (0..rows * dim).map(|_| value()).collect();
    let dim = u32::try_from(dim).unwrap();
    Rows::parse(FileKind::Vecs(Dtype::F32), format::fvecs(dim, &values))
}

fn schema(metric: Metric) -> Schema {
    Schema { metric, exact_below: 500, ..Schema::default() }
}

/// Not less is found than was asked, and not more than is worth its cost.
#[track_caller]
fn assert_near(bed: &Bed, queries: &[Vec<f32>], k: usize, what: &str) {
    for asked in [0.90, 0.95, 0.99] {
        let options = Options { recall: Some(asked), ..Options::default() };
        let (measured, exact) = bed.recall(queries, k, options);
        let effort = bed.collection.graph().unwrap().effort(asked, k);
        println!("{what} k {k}: asked {asked}, measured {measured}, exact {exact}, {effort:?}");
        // Where the narrowest walk finds more than was asked, there is no cheaper one.
        let is_narrowest = matches!(effort, Effort::Walk(ef) if ef < k.max(LEAST_EF) as f64 + 1e-6);
        let most = if is_narrowest { 1.0 } else { asked + TOLERANCE + CHANCE };
        assert!(
            (asked - TOLERANCE..=most).contains(&measured),
            "{what}, k {k}: asked {asked}, measured {measured}"
        );
    }
}

/// Rows of the real data that are not stored.
const HELD_BACK: usize = 400;

#[test]
fn held_back_queries_of_real_data_get_the_recall_that_they_ask_for() {
    for (name, metric) in [("minilm384", Metric::Ip), ("glove100", Metric::Ip), ("sift128", Metric::L2)] {
        // Rows are held back beside the queries, so that one answer more or less is no hundredth of all.
        let mut stored = slice(&format!("{name}_base.npy")).vectors(u64::MAX);
        let mut queries = stored.split_off(stored.len() - HELD_BACK);
        queries.extend(slice(&format!("{name}_query.npy")).vectors(u64::MAX));
        let dim = u32::try_from(queries[0].len()).unwrap();
        let bed = Bed::new(schema(metric));
        bed.link(1, &Rows::parse(FileKind::Vecs(Dtype::F32), format::fvecs(dim, &stored.concat())));
        bed.calibrate();
        for k in [1, 10, 30, 100] {
            assert_near(&bed, &queries, k, name);
        }
    }
}

#[test]
fn held_back_queries_of_random_data_get_the_recall_that_they_ask_for() {
    let bed = Bed::new(schema(Metric::L2));
    bed.link(1, &random(4000, 32, 1));
    bed.calibrate();
    let queries = random(1000, 32, 2).vectors(1000);
    for k in [1, 10, 25, 150] {
        assert_near(&bed, &queries, k, "random");
    }
}

/// Not less is found than was asked, of 1, 10 and 30 neighbours.
#[track_caller]
fn assert_enough(bed: &Bed, queries: &[Vec<f32>]) {
    for k in [1, 10, 30] {
        for asked in [0.90, 0.95, 0.99] {
            let (measured, _) = bed.recall(queries, k, Options { recall: Some(asked), ..Options::default() });
            println!("k {k}: asked {asked}, measured {measured}");
            assert!(measured >= asked - TOLERANCE - CHANCE, "k {k}: asked {asked}, measured {measured}");
        }
    }
}

/// In many dimensions without any structure the neighbours of a row link each other little, unless through the row.
#[test]
fn vectors_without_structure_get_the_recall_that_they_ask_for() {
    let bed = Bed::new(schema(Metric::L2));
    bed.link(1, &random(12_000, 64, 12));
    bed.calibrate();
    assert_enough(&bed, &random(1000, 64, 13).vectors(1000));
}

/// Codes of two dimensions tell little: most rows are not found where their own codes say. The measuring must
/// know it of these as well.
#[test]
fn directions_in_a_plane_get_the_recall_that_they_ask_for() {
    let bed = Bed::new(schema(Metric::Cosine));
    bed.link(1, &random(6000, 2, 10));
    bed.calibrate();
    assert_enough(&bed, &random(400, 2, 11).vectors(400));
}

#[test]
fn copies_of_one_vector_do_not_spoil_the_measuring() {
    let bed = Bed::new(schema(Metric::L2));
    bed.link(1, &random(2000, 24, 3));
    bed.calibrate();
    let one = random(1, 24, 4).vector(0);
    bed.link(2, &Rows::parse(FileKind::Vecs(Dtype::F32), format::fvecs(24, &one.repeat(600))));
    bed.calibrate();
    assert!(bed.collection.recall().estimate.unwrap() >= 0.94, "{:?}", bed.collection.recall());
    for asked in [0.90, 0.95, 0.99] {
        let options = Options { recall: Some(asked), ..Options::default() };
        let (measured, _) = bed.recall(&random(100, 24, 5).vectors(100), 10, options);
        assert!(measured >= asked - TOLERANCE, "asked {asked}, measured {measured}");
    }
}

#[test]
fn the_estimate_is_what_a_default_search_has() {
    let bed = Bed::new(schema(Metric::L2));
    bed.link(1, &random(3000, 32, 6));
    bed.calibrate();
    let estimate = bed.collection.recall();
    let (measured, exact) = bed.recall(&random(200, 32, 7).vectors(200), 10, Options::default());
    assert!(!exact && estimate.ef.is_some() && estimate.measured_on == Some(3000), "{estimate:?}");
    let shown = estimate.estimate.unwrap();
    assert!((shown - measured).abs() <= 0.02, "estimated {shown}, measured {measured}");
    assert_eq!(estimate.asked, 0.95);
}

#[test]
fn a_recall_of_one_compares_every_row() {
    let bed = Bed::new(schema(Metric::L2));
    bed.link(1, &random(1000, 16, 8));
    bed.calibrate();
    let queries = random(5, 16, 9).vectors(5);
    let recall = |asked| bed.recall(&queries, 10, Options { recall: Some(asked), ..Options::default() });
    assert_eq!(recall(1.0), (1.0, true));
    assert!(!recall(0.5).1);
}

/// Adds a file for each row, whose only attribute is the remainder of its number by 1000, and links them.
fn link_each(bed: &Bed, rows: &Rows) {
    let kept = Arc::default();
    let file = |row: u64| {
        let values: Vec<u8> = rows.vector(row).iter().flat_map(|value| value.to_le_bytes()).collect();
        let layout = Layout { rows: 1, offset: 0, stride: values.len() as u64, ..rows.layout };
        let bytes = RowBytes::Slot(bed.store.write_slot(&values).unwrap());
        let share = (row % 1000).to_string();
        let attributes = Attributes::new([(&b"share"[..], share.as_bytes())], &kept);
        let file = VectorFile::new(FileNumber(row), layout, bytes, 0).with_attributes(attributes);
        bed.collection.stage(file).unwrap().0
    };
    let added = (0..rows.layout.rows).map(file).collect();
    bed.collection.publish(&Staged { added, removed: vec![] });
    let stop = AtomicBool::new(false);
    while bed.collection.index_step(1, &stop).unwrap() {}
}

#[test]
fn searches_under_a_condition_have_the_recall_that_they_ask_for() {
    let bed = Bed::new(schema(Metric::L2));
    link_each(&bed, &random(20_000, 24, 14));
    bed.calibrate();
    let queries = random(200, 24, 15).vectors(200);
    for (text, share) in [("share<500", 0.5), ("share<100", 0.1), ("share<10", 0.01), ("share=0", 0.001)] {
        let condition = Some(Arc::new(condition::parse(text).unwrap()));
        let filter = Filter { condition, ..Filter::all() };
        let rows = bed.collection.rows(&filter, &bed.collection.reader(), &mut || true).unwrap();
        assert_eq!(rows.len() as f64, 20_000.0 * share, "{text}");
        let (measured, exact) = bed.recall_under(&filter, &queries, 10, Options::default());
        println!("{text}: {measured}, exact {exact}");
        assert!(measured >= 0.95, "{text}: {measured}");
    }
}
