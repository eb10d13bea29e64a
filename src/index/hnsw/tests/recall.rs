//! What searches find: every metric and code, copies, filters, budgets, leave-one-out.

use super::*;

#[test]
fn every_metric_reaches_its_recall_with_every_code() {
    for metric in METRICS {
        let (values, queries) = clustered(1, ROWS, 50, metric == Metric::Ip);
        let matrix = Matrix::new(DIM, values);
        for quant in QUANTS {
            let graph = build_with(metric, &matrix, Params { quant, ..params() });
            let got = recall(&graph, &queries, wide_enough(quant), &matrix, |_| true);
            assert!(got >= 0.95, "{} {}: recall {got}", metric.name(), quant.name());
            assert_sound(&graph);
        }
    }
}

#[test]
fn neighbours_within_clusters_far_apart_are_found() {
    let mut random = Random::new(41);
    let middles: Vec<Vec<f32>> = (0..3).map(|_| random.vector(50.0)).collect();
    let mut one = || -> Vec<f32> {
        let middle = &middles[random.below(3)];
        middle.iter().zip(random.vector(1.0)).map(|(middle, x)| middle + x).collect()
    };
    let matrix = Matrix::new(DIM, (0..ROWS).flat_map(|_| one()).collect());
    let queries: Vec<_> = (0..50).map(|_| one()).collect();
    for metric in METRICS {
        for quant in QUANTS {
            let params = Params { quant, ..params() };
            let graph = build_with(metric, &matrix, params);
            let got = recall(&graph, &queries, wide_enough(quant), &matrix, |_| true);
            assert!(got >= 0.95, "{} {}: recall {got}", metric.name(), quant.name());
            assert_sound(&graph);
            let found = graph.scan_codes(
                &Query::new(metric, &queries[0]),
                K,
                &matrix,
                |_| true,
                &mut SearchScratch::new(),
                &mut || true,
            );
            let exact = exactly(&Query::new(metric, &queries[0]), &matrix, |_| true);
            assert!(quant == Quant::B1 || found.neighbors == exact, "{} {}", metric.name(), quant.name());
        }
    }
    // With the mean alone codes cannot tell them apart, or else this shows nothing.
    let graph = build_around_mean(&matrix);
    assert!(recall(&graph, &queries, 100, &matrix, |_| true) < 0.9);
}

#[test]
fn a_few_long_vectors_do_not_become_all_links_of_an_inner_product() {
    let mut random = Random::new(6);
    let mut positive =
        |length: f32| -> Vec<f32> { (0..DIM).map(|_| length * random.normal().abs()).collect() };
    let lengths = (0..ROWS).map(|row| if row % 1000 == 7 { 3.0 } else { 1.0 });
    let matrix = Matrix::new(DIM, lengths.flat_map(&mut positive).collect());
    let queries: Vec<_> = (0..50).map(|_| positive(1.0)).collect();
    for quant in QUANTS {
        let graph = build_with(Metric::Ip, &matrix, Params { quant, ..params() });
        let got = recall(&graph, &queries, wide_enough(quant), &matrix, |_| true);
        assert!(got >= 0.95, "{}: recall {got}", quant.name());
        assert_sound(&graph);
    }
}

#[test]
fn copies_of_one_vector_do_not_become_a_sink() {
    let (mut values, queries) = clustered(4, ROWS, 50, false);
    let copied = values[..DIM].to_vec();
    for copy in 0..500 {
        let row = copy * 6 + 1;
        values[row * DIM..(row + 1) * DIM].copy_from_slice(&copied);
    }
    let matrix = Matrix::new(DIM, values);
    for (metric, quant) in [(Metric::L2, Quant::Sq8), (Metric::Cosine, Quant::Sq8), (Metric::L2, Quant::B1)] {
        let graph = build_with(metric, &matrix, Params { quant, ..params() });
        let ef = wide_enough(quant);
        assert_sound(&graph);
        assert_recall(recall(&graph, &queries, ef, &matrix, |_| true), 0.95);
        // Asked for the copied vector itself, every copy ties with the last place.
        let found = find(&graph, &copied, ef, &matrix, |_| true);
        assert!(found.neighbors.len() >= 500, "{} copies found", found.neighbors.len());
        // So they do when no more than the places are kept: whose rows come first is not for the walk to say.
        let found = find(&graph, &copied, K, &matrix, |_| true);
        assert!(found.neighbors.len() >= 500, "{} copies found at ef {K}", found.neighbors.len());
        // Behind the copies the others are still found.
        let others = |row: RowId| row.0 % 6 != 1 && row.0 != 0;
        assert_recall(recall(&graph, std::slice::from_ref(&copied), ef, &matrix, others), 0.95);
    }
}

#[test]
fn copies_alone_make_a_graph_in_reasonable_time() {
    let matrix = Matrix::new(DIM, vec![0.5; DIM * 6000]);
    let graph = build_with(Metric::L2, &matrix, Params { m: 4, ef_construction: 20, ..Params::default() });
    assert_sound(&graph);
    assert!(find(&graph, &[0.5; DIM], 20, &matrix, |_| true).neighbors.len() >= K);
}

#[test]
fn refused_rows_take_no_place() {
    let (values, queries) = clustered(5, ROWS, 30, false);
    let matrix = Matrix::new(DIM, values);
    for quant in QUANTS {
        let graph = build_with(Metric::L2, &matrix, Params { quant, ..params() });
        for every in [2, 10, 50] {
            let got = recall(&graph, &queries, wide_enough(quant), &matrix, |row| row.0 % every == 0);
            assert!(got >= 0.95, "{}, one of {every}: recall {got}", quant.name());
        }
    }
}

#[test]
fn a_filter_that_refuses_everything_ends() {
    let (values, queries) = clustered(6, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let found = find(&graph, &queries[0], 100, &matrix, |_| false);
    assert!(found.neighbors.is_empty() && !found.exhausted);
    assert!(found.visited >= ROWS - 1, "{} visited", found.visited);

    let query = Query::new(Metric::L2, &queries[0]);
    let beam = Beam { max_visited: 500, ..Beam::new(K, 100) };
    let found = graph.search(&query, beam, &matrix, |_| false, &mut SearchScratch::new(), &mut || true);
    assert!(found.exhausted && found.visited < 700, "{found:?}");
}

#[test]
fn a_walk_far_from_what_is_accepted_gives_up_early() {
    let (values, queries) = clustered(8, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let query = Query::new(Metric::L2, &queries[0]);
    let mut top = TopK::new(ROWS / 2);
    flat::scan(&query, matrix.row_ids(), &matrix, &mut top, &mut [0.0; DIM], &mut || true);
    let near: Vec<u32> = top.into_sorted().iter().map(|neighbor| neighbor.row.0).collect();
    let far = |row: RowId| !near.contains(&row.0);
    let outlook = Outlook { selectivity: 0.5, patience: 1.5 };
    let beam = Beam { outlook: Some(outlook), ..Beam::new(K, 50) };
    let mut scratch = SearchScratch::new();
    let found = graph.search(&query, beam, &matrix, far, &mut scratch, &mut || true);
    assert!(found.exhausted && found.visited < 200, "{} visited", found.visited);
    // Half of the rows, wherever they lie, are as many as expected.
    let half = |row: RowId| row.0.is_multiple_of(2);
    let found = graph.search(&query, beam, &matrix, half, &mut scratch, &mut || true);
    assert!(!found.exhausted && found.neighbors.len() == K);
}

#[test]
fn a_search_stops_when_told_to() {
    let (values, queries) = clustered(7, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let query = Query::new(Metric::L2, &queries[0]);
    let mut scratch = SearchScratch::new();
    let found = graph.search(&query, Beam::new(K, 1000), &matrix, |_| true, &mut scratch, &mut || false);
    assert!(found.stopped && found.visited < ROWS / 2, "{} visited", found.visited);
    // The same scratch serves the next search.
    let found = graph.search(&query, Beam::new(K, 100), &matrix, |_| true, &mut scratch, &mut || true);
    assert!(!found.stopped && found.neighbors.len() == K);
}

/// The graph without a row that it may have.
fn absence(graph: &Hnsw, row: RowId, matrix: &Matrix) -> Option<Absence> {
    let place = graph.places(&[row].into()).pop()?;
    graph.absence(place, matrix)
}

/// Mean recall when every tenth row is searched for among the others.
fn recall_without_oneself(graph: &Hnsw, matrix: &Matrix, ef: usize) -> f64 {
    let (mut hits, mut asked) = (0, 0);
    let mut scratch = SearchScratch::new();
    for row in matrix.row_ids().step_by(10) {
        let query = Query::new(graph.metric(), matrix.row(row).unwrap());
        let last = exactly(&query, matrix, |other| other != row)[K - 1].key;
        let absence = absence(graph, row, matrix).unwrap();
        let beam = Beam { without: Some(&absence), ..Beam::new(K, ef) };
        let found = graph.search(&query, beam, matrix, |other| other != row, &mut scratch, &mut || true);
        hits += found.neighbors.iter().take(K).filter(|neighbor| neighbor.key <= last).count();
        asked += K;
    }
    hits as f64 / asked as f64
}

#[test]
fn leaving_one_out_finds_its_neighbours() {
    let (values, _) = clustered(13, 1000, 0, false);
    let matrix = Matrix::new(DIM, values);
    for quant in QUANTS {
        let graph = build_with(Metric::L2, &matrix, Params { quant, ..params() });
        assert_recall(recall_without_oneself(&graph, &matrix, wide_enough(quant)), 0.95);
    }
}

#[test]
fn a_row_that_is_left_out_is_not_walked_through() {
    let (values, _) = clustered(17, 500, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let guard = pin();
    let entry = graph.nodes.row(graph.entry(&guard).unwrap(), &guard).unwrap();
    let query = Query::new(Metric::L2, matrix.row(RowId(7)).unwrap());
    assert_ne!(entry, RowId(7));
    let absence = absence(&graph, RowId(7), &matrix).unwrap();
    for (without, is_met) in [(None, true), (Some(&absence), false)] {
        let met = std::cell::Cell::new(false);
        let accept = |row: RowId| {
            met.set(met.get() || row == RowId(7));
            true
        };
        let beam = Beam { without, ..Beam::new(500, 500) };
        let found = graph.search(&query, beam, &matrix, accept, &mut SearchScratch::new(), &mut || true);
        assert_eq!((met.get(), found.neighbors.len()), (is_met, 499 + usize::from(is_met)));
    }
}

#[test]
fn leaving_out_the_entry_point_leaves_a_way_in() {
    let (values, _) = clustered(14, 1000, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let entry = {
        let guard = pin();
        graph.nodes.row(graph.entry(&guard).unwrap(), &guard).unwrap()
    };
    let query = Query::new(Metric::L2, matrix.row(entry).unwrap());
    let absence = absence(&graph, entry, &matrix).unwrap();
    let beam = Beam { without: Some(&absence), ..Beam::new(K, 100) };
    let others = |row: RowId| row != entry;
    let found = graph.search(&query, beam, &matrix, others, &mut SearchScratch::new(), &mut || true);
    assert_eq!(found.neighbors, exactly(&query, &matrix, others));
}

#[test]
fn a_row_that_is_not_there_has_no_absence() {
    let (values, _) = clustered(15, 500, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = Hnsw::new(Metric::L2, DIM, params()).unwrap();
    assert!(absence(&graph, RowId(3), &matrix).is_none());
    graph.insert(RowId(0), &matrix).unwrap();
    graph.insert(RowId(1), &matrix).unwrap();
    assert!(absence(&graph, RowId(3), &matrix).is_none());
    assert!(absence(&graph, RowId(1), &matrix).is_some());
}

#[test]
fn the_recall_of_absent_rows_is_that_of_rows_that_were_never_there() {
    let matrix = Matrix::new(DIM, clustered(21, ROWS, 0, false).0);
    let sparse = Params { m: 5, ef_construction: 50, ..params() };
    let full = build_with(Metric::L2, &matrix, sparse);
    // Codes around the same centers: it is the links that are compared.
    let centers = full.codec.centers().to_vec();
    let part = Hnsw::with_centers(Metric::L2, DIM, sparse, centers).unwrap();
    for row in matrix.row_ids().filter(|row| row.0 % 10 != 0) {
        part.insert(row, &matrix).unwrap();
    }
    let mut scratch = SearchScratch::new();
    let mut recall =
        |graph: &Hnsw, row: RowId, absence: Option<&Absence>, without: &dyn Fn(RowId) -> bool| {
            let query = Query::new(Metric::L2, matrix.row(row).unwrap());
            let last = exactly(&query, &matrix, |other| !without(other))[K - 1].key;
            let beam = Beam { without: absence, ..Beam::new(K, 12) };
            let accept = |other: RowId| !without(other);
            let found = graph.search(&query, beam, &matrix, accept, &mut scratch, &mut || true);
            found.neighbors.iter().take(K).filter(|neighbor| neighbor.key <= last).count() as f64 / K as f64
        };
    let (mut absent, mut never, mut asked) = (0.0, 0.0, 0.0);
    for row in matrix.row_ids().step_by(10) {
        let absence = absence(&full, row, &matrix).unwrap();
        absent += recall(&full, row, Some(&absence), &|other| other == row);
        never += recall(&part, row, None, &|other| other.0 % 10 == 0);
        asked += 1.0;
    }
    let (absent, never) = (absent / asked, never / asked);
    // A width at which much is missed, so that there is something to tell apart.
    assert!(never < 0.95, "{never} against {absent}");
    assert!((absent - never).abs() < 0.02, "{absent} of absent rows, {never} of rows that were never there");
}

#[test]
fn small_graphs_answer_exactly() {
    let matrix = Matrix::new(1, vec![3.0, 1.0, 2.0]);
    for quant in QUANTS {
        let params = Params { m: 2, ef_construction: 1, quant, ..Params::default() };
        let graph = Hnsw::new(Metric::L2, 1, params).unwrap();
        assert!(find(&graph, &[0.0], 10, &matrix, |_| true).neighbors.is_empty());
        insert_all(&graph, matrix.row_ids(), &matrix);
        let found = find(&graph, &[0.0], 1, &matrix, |_| true);
        let found: Vec<_> = found.neighbors.iter().map(|n| (n.row.0, n.key)).collect();
        assert_eq!(found, [(1, 1.0), (2, 4.0), (0, 9.0)], "{}", quant.name());
    }
}

#[test]
fn real_vectors_are_found_with_every_code() {
    let read = |name: &str| {
        let bytes = std::fs::read(format!("{}/tests/data/{name}.npy", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let layout =
            crate::format::layout(crate::format::FileKind::Npy, &bytes, &Default::default()).unwrap();
        let mut values = Vec::new();
        crate::format::validate(&layout, &bytes, false, |_, row| values.extend_from_slice(row)).unwrap();
        Matrix::new(layout.dim as usize, values)
    };
    for (name, metric) in [("minilm384", Metric::Ip), ("glove100", Metric::Ip), ("sift128", Metric::L2)] {
        let (base, queries) = (read(&format!("{name}_base")), read(&format!("{name}_query")));
        for quant in QUANTS {
            let graph = build_with(metric, &base, Params { quant, ..params() });
            let mut hits = 0;
            for row in queries.row_ids() {
                let query = Query::new(metric, queries.row(row).unwrap());
                let mut top = TopK::new(K);
                let mut scratch = vec![0.0; base.dim()];
                flat::scan(&query, base.row_ids(), &base, &mut top, &mut scratch, &mut || true);
                let last = top.into_sorted()[K - 1].key;
                let found = find(&graph, query.vector, wide_enough(quant), &base, |_| true);
                hits += found.neighbors.iter().take(K).filter(|neighbor| neighbor.key <= last).count();
            }
            let got = hits as f64 / (queries.rows() * K) as f64;
            assert!(got >= 0.95, "{name} {}: recall {got}", quant.name());
        }
    }
}
