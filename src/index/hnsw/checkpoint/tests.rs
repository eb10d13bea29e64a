//! Checkpoints come back as they were, and damaged ones are refused.

use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::index::Query;
use crate::index::flat::Matrix;
use crate::index::hnsw::{Beam, SearchScratch};

const STAMP: [u8; 32] = [7; 32];
const ROWS: usize = 300;

fn sample() -> (Matrix, Hnsw) {
    let values = (0..ROWS * 4).map(|i| ((i * 7919) % 1013) as f32).collect();
    let matrix = Matrix::new(4, values);
    let graph = Hnsw::new(
        Metric::L2,
        4,
        Params { m: 3, ef_construction: 20, seed: 5, quant: crate::index::Quant::Sq8 },
    )
    .unwrap();
    matrix.row_ids().for_each(|row| assert!(graph.insert(row, &matrix)));
    (matrix, graph)
}

fn search(graph: &Hnsw, matrix: &Matrix) -> Vec<u32> {
    let query = Query::new(Metric::L2, &[500.0; 4]);
    let mut scratch = SearchScratch::new();
    let found = graph.search(&query, Beam::new(10, 50), matrix, |_| true, &mut scratch, &mut || true);
    found.neighbors.iter().map(|n| n.row.0).collect()
}

/// The bytes of a saved graph, and a directory to try variations in.
fn saved(graph: &Hnsw) -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");
    graph.save(&path, &STAMP).unwrap();
    let bytes = fs::read(&path).unwrap();
    (dir, path, bytes)
}

fn load(path: &Path) -> Result<Option<Hnsw>> {
    Hnsw::load(path, &STAMP, Metric::L2, 4)
}

fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 8;
    let checksum = xxh3_64(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
}

fn is_corrupt(result: &Result<Option<Hnsw>>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}

#[test]
fn a_loaded_graph_answers_and_grows_as_the_saved_one() {
    let (matrix, graph) = sample();
    let (dir, path, bytes) = saved(&graph);
    let loaded = load(&path).unwrap().unwrap();
    assert_eq!(loaded.params(), graph.params());
    assert!(loaded.rows().eq(graph.rows()));
    assert_eq!(search(&loaded, &matrix), search(&graph, &matrix));

    let again = dir.path().join("again");
    loaded.save(&again, &STAMP).unwrap();
    assert_eq!(fs::read(&again).unwrap(), bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside the files");

    let more = Matrix::new(4, (0..(ROWS + 100) * 4).map(|i| ((i * 7919) % 1013) as f32).collect());
    for row in more.row_ids().skip(ROWS) {
        assert!(loaded.insert(row, &more) && graph.insert(row, &more));
    }
    assert_eq!(search(&loaded, &more), search(&graph, &more));
    assert!(loaded.unreachable().is_empty());
}

#[test]
fn an_empty_graph_is_saved_and_loaded() {
    let graph = Hnsw::new(Metric::Cosine, 8, Params::default()).unwrap();
    let (_dir, path, bytes) = saved(&graph);
    assert_eq!(bytes.len() as u64, HEADER_BYTES + CHECKSUM_BYTES);
    assert!(Hnsw::load(&path, &STAMP, Metric::Cosine, 8).unwrap().unwrap().is_empty());
}

#[test]
fn a_missing_file_and_another_stamp_are_no_graph() {
    let (_, graph) = sample();
    let (dir, path, _) = saved(&graph);
    assert!(load(&dir.path().join("none")).unwrap().is_none());
    assert!(Hnsw::load(&path, &[8; 32], Metric::L2, 4).unwrap().is_none());
}

#[test]
fn another_metric_or_dimension_is_damage() {
    let (_, graph) = sample();
    let (_dir, path, _) = saved(&graph);
    assert!(is_corrupt(&Hnsw::load(&path, &STAMP, Metric::Ip, 4)));
    assert!(is_corrupt(&Hnsw::load(&path, &STAMP, Metric::L2, 5)));
}

#[test]
fn every_truncation_is_damage() {
    let (_, graph) = sample();
    let (_dir, path, bytes) = saved(&graph);
    let lengths = (0..200).chain((200..bytes.len()).step_by(211)).chain(bytes.len() - 12..bytes.len());
    for len in lengths {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(is_corrupt(&load(&path)), "cut to {len} bytes");
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert!(is_corrupt(&load(&path)), "one byte more");
}

#[test]
fn every_flipped_bit_is_damage_or_another_stamp() {
    let (_, graph) = sample();
    let (_dir, path, bytes) = saved(&graph);
    for at in (0..bytes.len()).filter(|at| at % 13 == 0 || *at < 96) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, &damaged).unwrap();
        let result = load(&path);
        let stamp = (48..80).contains(&at);
        assert!(if stamp { matches!(result, Ok(None)) } else { is_corrupt(&result) }, "byte {at}");
    }
}

#[test]
fn hostile_files_with_a_valid_checksum_never_break_a_search() {
    let (matrix, graph) = sample();
    let (_dir, path, bytes) = saved(&graph);
    let mut refused = 0;
    let places = (0..48).chain((80..bytes.len() - 8).step_by(7));
    for at in places.clone() {
        for value in [0x00, 0x01, 0x2B, 0x7F, 0xFF] {
            let mut hostile = bytes.clone();
            hostile[at] = value;
            seal(&mut hostile);
            fs::write(&path, &hostile).unwrap();
            match load(&path) {
                Ok(Some(graph)) => {
                    assert!(search(&graph, &matrix).len() <= ROWS);
                    assert_eq!(graph.unreachable(), [], "byte {at} = {value}");
                }
                Ok(None) => panic!("byte {at} = {value}: the stamp was not touched"),
                Err(Error::Corrupt { .. }) => refused += 1,
                Err(error) => panic!("byte {at} = {value}: {error}"),
            }
        }
    }
    assert!(refused > places.count(), "{refused} refused");
}

#[test]
fn header_fields_out_of_range_are_refused() {
    let (_, graph) = sample();
    let (_dir, path, bytes) = saved(&graph);
    let cases = [(8, 2), (12, 3), (16, 0), (20, 1), (20, 129), (24, 0), (24, 4097), (28, u32::MAX)];
    let more = [(28, u32::MAX - 1), (28, 301), (28, 0), (40, 300), (40, u32::MAX), (44, 1)];
    for (at, value) in cases.into_iter().chain(more) {
        let mut hostile = bytes.clone();
        hostile[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        seal(&mut hostile);
        fs::write(&path, &hostile).unwrap();
        assert!(is_corrupt(&load(&path)), "offset {at} = {value}");
    }
}

#[test]
fn links_that_break_the_tree_are_refused() {
    let (_, graph) = sample();
    let (_dir, path, bytes) = saved(&graph);
    let level0 = 80 + ROWS.next_multiple_of(4) + 4 * ROWS;
    let list = |node: usize, place: usize| level0 + (node * 6 + place) * 4;
    // The root's first child replaced by the root; a node that is its own parent; a parent that is no node.
    let cases =
        [(list(0, 1), 0), (list(9, 0), 9), (list(9, 0), 300), (list(9, 0), u32::MAX), (list(0, 0), 1)];
    for (at, value) in cases {
        let mut hostile = bytes.clone();
        assert_ne!(hostile[at..at + 4], u32::to_le_bytes(value));
        hostile[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        seal(&mut hostile);
        fs::write(&path, &hostile).unwrap();
        assert!(is_corrupt(&load(&path)), "offset {at} = {value}");
    }
}

#[test]
fn a_failed_save_keeps_the_old_file() {
    let (_, graph) = sample();
    let (_dir, path, bytes) = saved(&graph);
    let mut beside = path.clone().into_os_string();
    beside.push(".tmp");
    fs::create_dir(&beside).unwrap();
    assert!(graph.save(&path, &[9; 32]).is_err());
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
