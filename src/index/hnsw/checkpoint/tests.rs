//! Checkpoints come back as they were, and damage shows: at the header at once, elsewhere when a walk comes there.

mod damage;
mod memory;

use std::path::PathBuf;

use super::*;
use crate::index::flat::Matrix;
use crate::index::hnsw::{Beam, Found, SearchScratch};
use crate::index::{Query, RowId};

const STAMP: [u8; 32] = [7; 32];
/// With fewer than 40 a code of sq8 has no far part.
const DIM: usize = 44;
const ROWS: usize = 300;
const QUANTS: [Quant; 3] = [Quant::None, Quant::Sq8, Quant::B1];

fn values(rows: usize) -> Matrix {
    Matrix::new(DIM, (0..rows * DIM).map(|i| ((i * 7919) % 1013) as f32).collect())
}

fn sample(quant: Quant) -> (Matrix, Hnsw) {
    let matrix = values(ROWS);
    let params = Params { m: 3, ef_construction: 20, seed: 5, quant };
    let graph = Hnsw::with_centers(Metric::L2, DIM, params, vec![506.0; DIM]).unwrap();
    insert(&graph, matrix.row_ids(), &matrix);
    (matrix, graph)
}

fn insert(graph: &Hnsw, rows: impl Iterator<Item = RowId>, matrix: &Matrix) {
    for row in rows {
        assert!(graph.insert(row, matrix).unwrap());
    }
}

fn found(graph: &Hnsw, matrix: &Matrix) -> Found {
    let query = Query::new(Metric::L2, &[500.0; DIM]);
    let mut scratch = SearchScratch::new();
    graph.search(&query, Beam::new(10, 50), matrix, |_| true, &mut scratch, &mut || true)
}

fn search(graph: &Hnsw, matrix: &Matrix) -> Vec<(u32, f32)> {
    let found = found(graph, matrix);
    assert!(!found.damaged);
    found.neighbors.iter().map(|n| (n.row.0, n.key)).collect()
}

/// The bytes of a saved graph, and a directory to try variations in.
fn saved(graph: &Hnsw) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");
    graph.save(&path, &STAMP).unwrap();
    let bytes = fs::read(&path).unwrap();
    (dir, path, bytes)
}

/// A file with other bytes in the place of the one at `path`, which may be mapped.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn load(path: &Path) -> Result<Option<Hnsw>> {
    Hnsw::load(path, &STAMP, Metric::L2, DIM)
}

fn is_corrupt(result: &Result<Option<Hnsw>>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}

/// Where the parts of an undamaged file lie.
fn plan(path: &Path) -> Plan {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let header = Header::read(&mut In { file, path, len, bytes: Vec::new() }, &STAMP).unwrap().unwrap();
    Plan::new(&load(path).unwrap().unwrap().nodes, &header)
}

#[test]
fn a_loaded_graph_answers_and_grows_as_the_saved_one() {
    for quant in QUANTS {
        let (matrix, graph) = sample(quant);
        let before = search(&graph, &matrix);
        let (dir, path, bytes) = saved(&graph);
        let loaded = load(&path).unwrap().unwrap();
        assert_eq!(loaded.params(), graph.params());
        assert_eq!(loaded.rows(), graph.rows());
        assert_eq!(search(&graph, &matrix), before);
        assert_eq!(search(&loaded, &matrix), before);
        assert!(loaded.verify().is_sound());

        let again = dir.path().join("again");
        loaded.save(&again, &STAMP).unwrap();
        assert_eq!(fs::read(&again).unwrap(), bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside the files");

        let more = values(ROWS + 100);
        insert(&loaded, more.row_ids().skip(ROWS), &more);
        insert(&graph, more.row_ids().skip(ROWS), &more);
        assert_eq!(search(&loaded, &more), search(&graph, &more));
        assert!(loaded.verify().is_sound());
        assert_eq!(fs::read(&again).unwrap(), bytes, "what changes in memory does not change the file");
    }
}

#[test]
fn the_centers_of_a_graph_come_back() {
    let matrix = values(ROWS);
    for quant in [Quant::Sq8, Quant::B1] {
        let params = Params { m: 3, ef_construction: 20, seed: 5, quant };
        let centers = [[100.0; DIM], [500.0; DIM], [900.0; DIM]].concat();
        let graph = Hnsw::with_centers(Metric::L2, DIM, params, centers.clone()).unwrap();
        insert(&graph, matrix.row_ids(), &matrix);
        let (_dir, path, _) = saved(&graph);
        let loaded = load(&path).unwrap().unwrap();
        assert_eq!(loaded.codec.centers(), centers);
        assert_eq!(search(&loaded, &matrix), search(&graph, &matrix));
    }
}

#[test]
fn a_loaded_graph_is_repaired_saved_and_loaded_again() {
    for quant in QUANTS {
        let (_, graph) = sample(quant);
        let (_dir, path, _) = saved(&graph);
        drop(graph);
        let more = values(ROWS + 100);
        let is_live = |row: RowId| !row.0.is_multiple_of(3);

        let loaded = load(&path).unwrap().unwrap();
        assert_eq!(loaded.repair(is_live, &more, 2), 100);
        loaded.save(&path, &STAMP).unwrap();
        let again = load(&path).unwrap().unwrap();
        assert_eq!(again.len(), 200);
        assert_eq!(again.rows(), loaded.rows());
        assert_eq!(search(&again, &more), search(&loaded, &more));
        assert_eq!((again.nodes.count(), again.nodes.free_count()), (300, 100));

        // The numbers of those that went are there for others, whatever was still in use when the file was written.
        insert(&again, more.row_ids().skip(ROWS), &more);
        assert_eq!((again.nodes.count(), again.nodes.free_count()), (300, 0));
        assert_eq!(again.len(), 300);
        assert!(again.verify().is_sound(), "{}", again.verify());
    }
}

#[test]
fn files_stay_flat_while_rows_are_replaced_between_saves() {
    let matrix = values(ROWS * 6);
    let params = Params { m: 3, ef_construction: 20, ..Params::default() };
    let graph = Hnsw::new(Metric::L2, DIM, params).unwrap();
    insert(&graph, matrix.row_ids().take(ROWS), &matrix);
    let (_dir, path, bytes) = saved(&graph);
    for round in 1..6 {
        let loaded = load(&path).unwrap().unwrap();
        let end = u32::try_from(ROWS * round).unwrap();
        assert_eq!(loaded.repair(|row| row.0 >= end, &matrix, 1), ROWS);
        loaded.save(&path, &STAMP).unwrap();
        let loaded = load(&path).unwrap().unwrap();
        insert(&loaded, matrix.row_ids().skip(ROWS * round).take(ROWS), &matrix);
        loaded.save(&path, &STAMP).unwrap();
        assert!(loaded.verify().is_sound());
        let len = fs::metadata(&path).unwrap().len();
        assert!(len <= bytes.len() as u64 * 11 / 10, "round {round}: {len} bytes, {} at first", bytes.len());
    }
}

#[test]
fn an_empty_graph_is_saved_and_loaded() {
    let graph = Hnsw::new(Metric::Cosine, 8, Params::default()).unwrap();
    let (_dir, path, bytes) = saved(&graph);
    assert_eq!(bytes.len(), (HEADER_BYTES + 8).next_multiple_of(ALIGN));
    let loaded = Hnsw::load(&path, &STAMP, Metric::Cosine, 8).unwrap().unwrap();
    assert!(loaded.is_empty() && loaded.verify().is_sound());
}

#[test]
fn a_graph_that_was_emptied_is_saved_and_loaded() {
    let (matrix, graph) = sample(Quant::Sq8);
    assert_eq!(graph.repair(|_| false, &matrix, 1), ROWS);
    let (_dir, path, _) = saved(&graph);
    let loaded = load(&path).unwrap().unwrap();
    assert!(loaded.is_empty());
    insert(&loaded, matrix.row_ids(), &matrix);
    assert_eq!((loaded.len(), loaded.nodes.count()), (ROWS, 300));
    assert!(loaded.verify().is_sound());
}

#[test]
fn a_missing_file_and_another_stamp_are_no_graph() {
    let (_, graph) = sample(Quant::Sq8);
    let (dir, path, _) = saved(&graph);
    assert!(load(&dir.path().join("none")).unwrap().is_none());
    assert!(Hnsw::load(&path, &[8; 32], Metric::L2, DIM).unwrap().is_none());
}

#[test]
fn another_metric_or_dimension_is_damage() {
    let (_, graph) = sample(Quant::Sq8);
    let (_dir, path, _) = saved(&graph);
    assert!(is_corrupt(&Hnsw::load(&path, &STAMP, Metric::Ip, DIM)));
    assert!(is_corrupt(&Hnsw::load(&path, &STAMP, Metric::L2, 5)));
}

#[test]
fn a_failed_save_keeps_the_old_file_and_the_graph() {
    let (matrix, graph) = sample(Quant::Sq8);
    let (_dir, path, bytes) = saved(&graph);
    let mut beside = path.clone().into_os_string();
    beside.push(".tmp");
    fs::create_dir(&beside).unwrap();
    assert!(graph.save(&path, &[9; 32]).is_err());
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(search(&graph, &matrix).len(), 10);
}
