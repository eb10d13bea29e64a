//! Everything at once, and insertions that do not come to their end.

use super::*;

#[test]
fn rows_are_inserted_searched_and_vanish_at_the_same_time() {
    for quant in QUANTS {
        let (values, queries) = clustered(10, ROWS, 30, false);
        let source = Vanishing::new(Matrix::new(DIM, values));
        let graph = Hnsw::new(Metric::L2, DIM, Params { quant, ..params() }).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let inserters: Vec<_> = (0..2u32)
                .map(|part| {
                    let (graph, source) = (&graph, &source);
                    scope.spawn(move || {
                        for row in source.matrix.row_ids().filter(|row| row.0 % 2 == part) {
                            assert!(graph.insert(row, source).unwrap());
                            if row.0 % 10 == part {
                                source.vanish(row);
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                let mut scratch = SearchScratch::new();
                while !done.load(Ordering::Relaxed) {
                    for vector in &queries {
                        let query = Query::new(Metric::L2, vector);
                        let beam = Beam::new(K, 50);
                        let found = graph.search(&query, beam, &source, |_| true, &mut scratch, &mut || true);
                        assert!(!found.damaged);
                        assert!(found.neighbors.windows(2).all(|pair| pair[0].key <= pair[1].key));
                    }
                }
            });
            let outcomes: Vec<_> = inserters.into_iter().map(|inserter| inserter.join()).collect();
            done.store(true, Ordering::Relaxed);
            assert!(outcomes.iter().all(std::thread::Result::is_ok));
        });
        assert_eq!(graph.len(), ROWS);
        assert_sound(&graph);
        let got = recall(&graph, &queries, wide_enough(quant), &source, |row| source.is_live(row));
        assert!(got >= 0.95, "{}: recall {got}", quant.name());
    }
}

#[test]
fn repairs_insertions_and_searches_run_at_the_same_time() {
    let (values, queries) = clustered(16, ROWS, 20, false);
    let source = Vanishing::new(Matrix::new(DIM, values));
    let graph = Hnsw::new(Metric::L2, DIM, params()).unwrap();
    insert_all(&graph, (0..1000).map(RowId), &source);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (graph, source, queries, done) = (&graph, &source, &queries, &done);
        let searcher = scope.spawn(move || {
            let mut scratch = SearchScratch::new();
            let mut searches = 0;
            while !done.load(Ordering::Relaxed) {
                for vector in queries {
                    let query = Query::new(Metric::L2, vector);
                    let accept = |row: RowId| source.is_live(row);
                    let found =
                        graph.search(&query, Beam::new(K, 50), source, accept, &mut scratch, &mut || true);
                    assert!(!found.damaged);
                    // At least 800 rows live at every moment, and no number of a node means another row meanwhile.
                    assert!(found.neighbors.len() >= K, "{} found", found.neighbors.len());
                    for neighbor in &found.neighbors {
                        let vector = source.matrix.row(neighbor.row).unwrap();
                        assert_eq!(neighbor.key, distance::l2_squared(query.vector, vector));
                    }
                    searches += 1;
                }
            }
            searches
        });
        // Twenty times a hundred rows go and a hundred others come.
        for step in 0..20u32 {
            (100 * step..100 * step + 100).map(RowId).for_each(|row| source.vanish(row));
            let repairer = scope.spawn(|| graph.repair(|row| source.is_live(row), source, 2));
            insert_all(graph, (1000 + 100 * step..1100 + 100 * step).map(RowId), source);
            assert_eq!(repairer.join().unwrap(), 100, "step {step}");
        }
        done.store(true, Ordering::Relaxed);
        assert!(searcher.join().unwrap() > 0);
    });
    assert_eq!(graph.len(), 1000);
    assert_sound(&graph);
    assert_recall(recall(&graph, &queries, 100, &source, |_| true), 0.95);
}

/// A source that unwinds after so many vectors, without the noise of a panic.
struct Failing<'m> {
    matrix: &'m Matrix,
    left: AtomicU32,
}

impl VectorSource for Failing<'_> {
    fn dim(&self) -> usize {
        self.matrix.dim()
    }

    fn vector<'a>(&'a self, row: RowId, scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            std::panic::resume_unwind(Box::new("out of vectors"));
        }
        self.matrix.vector(row, scratch)
    }

    fn inverse_norm(&self, row: RowId) -> f32 {
        self.matrix.inverse_norm(row)
    }
}

#[test]
fn an_insertion_that_panics_leaves_a_sound_graph() {
    let (values, queries) = clustered(12, 1000, 20, false);
    let matrix = Matrix::new(DIM, values);
    // With one bit the links are chosen by the vectors, so an insertion asks for some hundred of them.
    let params = Params { m: 4, ef_construction: 40, quant: Quant::B1, ..Params::default() };
    let graph = Hnsw::new(Metric::L2, DIM, params).unwrap();
    let mut failed = 0;
    let mut random = Random::new(77);
    for row in matrix.row_ids() {
        let left = u32::try_from(random.below(1500)).unwrap();
        let failing = Failing { matrix: &matrix, left: AtomicU32::new(left) };
        let insert = std::panic::AssertUnwindSafe(|| graph.insert(row, &failing));
        failed += usize::from(std::panic::catch_unwind(insert).is_err());
    }
    assert!(failed > 100, "{failed} failed");
    assert_sound(&graph);
    let rows = graph.rows();
    assert!(rows.len() >= 1000 - failed && rows.len() < 1000);
    assert_recall(recall(&graph, &queries, 300, &matrix, |_| true), 0.9);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");
    graph.save(&path, &[1; 32]).unwrap();
    let loaded = Hnsw::load(&path, &[1; 32], Metric::L2, DIM).unwrap().unwrap();
    assert_eq!(loaded.rows(), rows);
    assert_sound(&loaded);
    // All that is there can be taken away, whether or not its insertion came to its end.
    assert_eq!(graph.repair(|_| false, &matrix, 1), rows.len());
    assert!(graph.is_empty());
}
