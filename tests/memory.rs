//! Memory of a graph: alone in its process, which is what is measured.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use vexfs::distance::Metric;
use vexfs::index::flat::Matrix;
use vexfs::index::hnsw::{Beam, Hnsw, Params, SearchScratch};
use vexfs::index::{Query, RowId};

const DIM: usize = 64;
const ROWS: usize = 20_000;
const STAMP: [u8; 32] = [0; 32];

/// Bytes of this process that only swapping could free.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    1024 * line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap()
}

#[test]
fn a_graph_gives_its_memory_back_when_it_is_saved_and_takes_none_when_it_is_loaded() {
    let mut state = 1u32;
    let values = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32
    });
    let matrix = Matrix::new(DIM, values.take(ROWS * DIM).collect());
    let graph =
        Hnsw::new(Metric::L2, DIM, Params { m: 16, ef_construction: 8, ..Params::default() }).unwrap();
    let empty = anonymous();
    for row in matrix.row_ids() {
        assert!(graph.insert(row, &matrix).unwrap());
    }
    let built = anonymous();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");
    graph.save(&path, &STAMP).unwrap();
    let saved = anonymous();
    let len = path.metadata().unwrap().len();
    assert!(built - empty > len * 3 / 4, "{} bytes in memory, {len} in the file", built - empty);
    // Blocks with room for more rows stay: of 5 blocks one.
    assert!(saved < built - len / 2, "{built} bytes before saving, {saved} after; {len} in the file");

    // Answers from the file's pages take none.
    let search = |graph: &Hnsw| {
        let query = Query::new(Metric::L2, matrix.row(RowId(7)).unwrap());
        let mut scratch = SearchScratch::new();
        let found = graph.search(&query, Beam::new(10, 50), &matrix, |_| true, &mut scratch, &mut || true);
        found.neighbors
    };
    let answer = search(&graph);
    assert!(anonymous() < built - len / 2);
    drop(graph);
    let before = anonymous();
    let loaded = Hnsw::load(&path, &STAMP, Metric::L2, DIM).unwrap().unwrap();
    assert!(anonymous() < before + len / 10, "{before} bytes before loading, {} after", anonymous());
    assert_eq!(search(&loaded), answer);
    assert!(anonymous() < before + len / 2, "{before} bytes before loading, {} after", anonymous());
}
