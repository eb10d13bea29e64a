//! The scan of codes finds what the scan of vectors does, or says that it cannot.

use super::*;

fn scan_codes<S: VectorSource>(
    graph: &Hnsw,
    query: &Query<'_>,
    source: &S,
    accept: impl Fn(RowId) -> bool,
) -> Found {
    graph.scan_codes(query, K, source, accept, &mut SearchScratch::new(), &mut || true)
}

#[test]
fn it_finds_the_nearest_of_what_is_accepted() {
    for metric in METRICS {
        let (values, queries) = clustered(31, ROWS, 50, metric == Metric::Ip);
        let matrix = Matrix::new(DIM, values);
        for quant in [Quant::None, Quant::Sq8] {
            let graph = build_with(metric, &matrix, Params { quant, ..params() });
            for every in [1, 2, 10, 50] {
                let accept = |row: RowId| row.0.is_multiple_of(every);
                for vector in &queries {
                    let query = Query::new(metric, vector);
                    let found = scan_codes(&graph, &query, &matrix, accept);
                    assert!(!found.exhausted && !found.stopped && !found.damaged);
                    assert!(found.visited >= ROWS.div_ceil(every as usize), "{} compared", found.visited);
                    let name = (metric.name(), quant.name(), every);
                    assert_eq!(found.neighbors, exactly(&query, &matrix, accept), "{name:?}");
                }
            }
        }
    }
}

#[test]
fn it_finds_all_when_there_are_fewer_than_wanted() {
    let (values, queries) = clustered(32, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let query = Query::new(Metric::L2, &queries[0]);
    for count in 0..=K {
        let accept = |row: RowId| (row.0 as usize) < count;
        assert_eq!(
            scan_codes(&graph, &query, &matrix, accept).neighbors,
            exactly(&query, &matrix, accept),
            "{count} rows"
        );
    }
    assert!(
        scan_codes(&Hnsw::new(Metric::L2, DIM, params()).unwrap(), &query, &matrix, |_| true)
            .neighbors
            .is_empty()
    );
}

/// Of 6,000 rows the first `crowd` lie around the query, by less than codes can tell.
fn crowd(crowd: usize) -> (Matrix, Vec<f32>) {
    let (mut values, mut queries) = clustered(33, 6000, 1, false);
    let mut random = Random::new(34);
    for row in values.chunks_exact_mut(DIM).take(crowd) {
        row.iter_mut().zip(&queries[0]).for_each(|(x, near)| *x = near + 1e-4 * random.normal());
    }
    (Matrix::new(DIM, values), queries.remove(0))
}

#[test]
fn a_further_pass_finds_those_that_the_list_had_no_place_for() {
    let (matrix, vector) = crowd(500);
    let graph = build_around_mean(&matrix);
    let query = Query::new(Metric::L2, &vector);
    let found = scan_codes(&graph, &query, &matrix, |_| true);
    assert_eq!(found.neighbors, exactly(&query, &matrix, |_| true));
    assert!(found.visited >= 2 * 6000, "{} compared", found.visited);
}

#[test]
fn where_codes_tell_too_little_it_tells_nothing() {
    let (matrix, vector) = crowd(1500);
    let graph = build_around_mean(&matrix);
    let query = Query::new(Metric::L2, &vector);
    let found = scan_codes(&graph, &query, &matrix, |_| true);
    assert!(found.exhausted && found.neighbors.is_empty());
}

#[test]
fn copies_that_tie_with_the_last_place_are_told() {
    let (mut values, _) = clustered(35, ROWS, 0, false);
    let copied = values[..DIM].to_vec();
    for copy in 0..300 {
        values[(copy * 10 + 1) * DIM..][..DIM].copy_from_slice(&copied);
    }
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let query = Query::new(Metric::L2, &copied);
    let found = scan_codes(&graph, &query, &matrix, |_| true);
    assert_eq!(found.neighbors.len(), 301);
    assert_eq!(found.neighbors, exactly(&query, &matrix, |_| true));
}

#[test]
fn rows_without_a_vector_are_left_out() {
    let (values, queries) = clustered(36, ROWS, 1, false);
    let vanishing = Vanishing::new(Matrix::new(DIM, values));
    let graph = build(Metric::L2, &vanishing.matrix);
    let query = Query::new(Metric::L2, &queries[0]);
    let nearest = exactly(&query, &vanishing.matrix, |_| true);
    nearest.iter().take(5).for_each(|gone| vanishing.vanish(gone.row));
    let found = scan_codes(&graph, &query, &vanishing, |_| true);
    assert_eq!(found.neighbors, exactly(&query, &vanishing.matrix, |row| vanishing.is_live(row)));
}

#[test]
fn it_stops_when_told_to() {
    let (values, queries) = clustered(37, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let query = Query::new(Metric::L2, &queries[0]);
    let mut scratch = SearchScratch::new();
    let found = graph.scan_codes(&query, K, &matrix, |_| true, &mut scratch, &mut || false);
    assert!(found.stopped && found.neighbors.is_empty() && found.visited == 0);
    let found = graph.scan_codes(&query, K, &matrix, |_| true, &mut scratch, &mut || true);
    assert_eq!(found.neighbors, exactly(&query, &matrix, |_| true));
}
