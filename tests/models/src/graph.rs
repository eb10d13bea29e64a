//! Models of the graph: searches while others link, and while nodes are taken away.

use std::sync::Arc;

use crate::Model;
use crate::distance::Metric;
use crate::index::flat::Matrix;
use crate::index::hnsw::{Beam, Hnsw, Params, SearchScratch};
use crate::index::{Quant, Query, RowId};
use crate::sync::{Kind, together};

const LINKED: &[(Kind, &str)] = &[
    (Kind::Acquire, "let Some(linked) = link.load("),
    (Kind::Release, "let moved = links[place].swap(word,"),
];

const REPAIRED: &[(Kind, &str)] = &[LINKED[0], LINKED[1], (Kind::Guard, "vacate.run(done)")];

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "a search beside an insertion finds every row that was there (levels 1)",
        preemptions: None,
        notices: LINKED,
        run: searched_while_it_grows::<1>,
    },
    Model {
        name: "a search beside an insertion finds every row that was there (levels 2)",
        preemptions: None,
        notices: LINKED,
        run: searched_while_it_grows::<2>,
    },
    Model {
        name: "a search beside an insertion finds every row that was there (levels 3)",
        preemptions: None,
        notices: LINKED,
        run: searched_while_it_grows::<3>,
    },
    Model {
        name: "two insertions at once leave a sound graph with both rows (levels 1)",
        preemptions: Some(2),
        notices: LINKED,
        run: grown_by_two::<1>,
    },
    Model {
        name: "two insertions at once leave a sound graph with both rows (levels 2)",
        preemptions: Some(2),
        notices: LINKED,
        run: grown_by_two::<2>,
    },
    Model {
        name: "two insertions at once leave a sound graph with both rows (levels 3)",
        preemptions: Some(2),
        notices: LINKED,
        run: grown_by_two::<3>,
    },
    Model {
        name: "a search beside a repair finds every row that stays (levels 1)",
        preemptions: Some(2),
        notices: REPAIRED,
        run: searched_while_it_is_repaired::<1>,
    },
    Model {
        name: "a search beside a repair finds every row that stays (levels 2)",
        preemptions: Some(2),
        notices: REPAIRED,
        run: searched_while_it_is_repaired::<2>,
    },
    Model {
        name: "a search beside a repair finds every row that stays (levels 3)",
        preemptions: Some(2),
        notices: REPAIRED,
        run: searched_while_it_is_repaired::<3>,
    },
];

/// Row `n` has the vector `n * n`, so that no two pairs are as far apart.
fn rows(count: u32) -> Matrix {
    Matrix::new(1, (0..count).map(|row| (row * row) as f32).collect())
}

/// A graph with the first rows, with as few links for a node as there may be. The seed gives the rows their levels.
fn graph(rows: &Matrix, first: u32, seed: u64) -> Arc<Hnsw> {
    let params = Params { m: 2, ef_construction: 4, seed, quant: Quant::None };
    let graph = Hnsw::new(Metric::L2, 1, params).expect("the parameters are in range");
    for row in (0..first).map(RowId) {
        assert!(graph.insert(row, rows).expect("there is memory"));
    }
    Arc::new(graph)
}

/// Rows that a search finds that wants them all; each at its distance.
fn found(graph: &Hnsw, rows: &Matrix, is_live: impl Fn(RowId) -> bool) -> Vec<u32> {
    let query = Query::new(Metric::L2, &[0.0]);
    let mut scratch = SearchScratch::new();
    let found = graph.search(&query, Beam::new(8, 8), rows, is_live, &mut scratch, &mut || true);
    assert!(!found.damaged, "{}", graph.damage());
    for neighbor in &found.neighbors {
        assert_eq!(neighbor.key, (neighbor.row.0 as f32).powi(4));
    }
    found.neighbors.iter().map(|neighbor| neighbor.row.0).collect()
}

fn searched_while_it_grows<const SEED: u64>() {
    let rows = Arc::new(rows(3));
    let graph = graph(&rows, 2, SEED);
    let (grown, source) = (Arc::clone(&graph), Arc::clone(&rows));
    let insert = move || assert!(grown.insert(RowId(2), &*source).expect("there is memory"));
    together(vec![Box::new(insert)], || {
        let found = found(&graph, &rows, |_| true);
        assert!(found == [0, 1] || found == [0, 1, 2], "{found:?}");
    });
    assert_eq!(found(&graph, &rows, |_| true), [0, 1, 2]);
    check(&graph, 3);
}

fn grown_by_two<const SEED: u64>() {
    let rows = Arc::new(rows(3));
    let graph = graph(&rows, 1, SEED);
    let insert = |row: u32| {
        let (graph, rows) = (Arc::clone(&graph), Arc::clone(&rows));
        move || assert!(graph.insert(RowId(row), &*rows).expect("there is memory"))
    };
    together(vec![Box::new(insert(1))], insert(2));
    assert_eq!(found(&graph, &rows, |_| true), [0, 1, 2]);
    check(&graph, 3);
}

fn searched_while_it_is_repaired<const SEED: u64>() {
    let rows = Arc::new(rows(4));
    let graph = graph(&rows, 3, SEED);
    let is_live = |row: RowId| row.0 != 1;
    let (changed, source) = (Arc::clone(&graph), Arc::clone(&rows));
    let change = move || {
        assert_eq!(changed.repair(is_live, &*source, 1), 1);
        // In the place of the one that went, if nobody can be looking at it.
        assert!(changed.insert(RowId(3), &*source).expect("there is memory"));
    };
    together(vec![Box::new(change)], || {
        let found = found(&graph, &rows, is_live);
        assert!(found == [0, 2] || found == [0, 2, 3], "{found:?}");
    });
    assert_eq!(found(&graph, &rows, is_live), [0, 2, 3]);
    check(&graph, 3);
}

fn check(graph: &Hnsw, rows: usize) {
    assert_eq!(graph.len(), rows);
    let report = graph.verify();
    assert!(report.is_sound(), "{report}");
}
