//! Rows that go and rows that come: what is gone is not returned, and repair leaves a graph as good as a new one.

use super::*;

#[test]
fn vanished_rows_are_walked_through_and_not_returned() {
    for quant in QUANTS {
        let (values, queries) = clustered(8, ROWS, 50, false);
        let matrix = Matrix::new(DIM, values);
        let graph = build_with(Metric::L2, &matrix, Params { quant, ..params() });
        let source = Vanishing::new(matrix);
        let mut random = Random::new(99);
        for percent in [50, 90] {
            for row in graph.rows().into_iter().filter(|_| random.below(100) < percent) {
                source.vanish(row);
            }
            let got = recall(&graph, &queries, wide_enough(quant), &source, |row| source.is_live(row));
            assert!(got >= 0.95, "{}, {percent} % vanished: recall {got}", quant.name());
            // Accepted rows without a vector are not returned either.
            let found = find(&graph, &queries[0], 100, &source, |_| true);
            assert!(found.neighbors.iter().all(|neighbor| source.is_live(neighbor.row)));
            assert!(found.visited < ROWS, "{percent} % vanished: {} visited", found.visited);
        }
    }
}

#[test]
fn a_graph_whose_rows_all_vanished_takes_new_ones() {
    for quant in QUANTS {
        let (values, queries) = clustered(9, ROWS, 30, false);
        let source = Vanishing::new(Matrix::new(DIM, values));
        let graph = Hnsw::new(Metric::L2, DIM, Params { quant, ..params() }).unwrap();
        insert_all(&graph, (0..1500).map(RowId), &source);
        (0..1500).map(RowId).for_each(|row| source.vanish(row));
        assert!(find(&graph, &queries[0], 100, &source, |_| true).neighbors.is_empty());
        assert!(!graph.insert(RowId(3), &source).unwrap(), "a vanished row is not inserted");
        insert_all(&graph, (1500..3000).map(RowId), &source);
        assert_sound(&graph);
        let got = recall(&graph, &queries, wide_enough(quant), &source, |row| source.is_live(row));
        assert!(got >= 0.95, "{}: recall {got}", quant.name());
    }
}

#[test]
fn repair_takes_away_any_share_and_leaves_a_graph_as_good_as_new() {
    for quant in QUANTS {
        for percent in [10, 50, 95] {
            let (values, queries) = clustered(20, ROWS, 50, false);
            let matrix = Matrix::new(DIM, values);
            let graph = build_with(Metric::L2, &matrix, Params { quant, ..params() });
            let source = Vanishing::new(matrix);
            let mut random = Random::new(21);
            let gone: Vec<RowId> = source.matrix.row_ids().filter(|_| random.below(100) < percent).collect();
            gone.iter().for_each(|&row| source.vanish(row));
            assert_eq!(graph.rows().iter().filter(|&&row| !source.is_live(row)).count(), gone.len());
            assert_eq!(graph.repair(|row| source.is_live(row), &source, 2), gone.len());

            assert_eq!(graph.len(), ROWS - gone.len());
            assert!(graph.rows().into_iter().all(|row| source.is_live(row)));
            assert_sound(&graph);
            assert_lists_are_distinct(&graph);
            let ef = wide_enough(quant);
            let got = recall(&graph, &queries, ef, &source, |_| true);
            assert!(got >= 0.95, "{}, {percent} % gone: recall {got}", quant.name());
        }
    }
}

#[test]
fn rows_that_vanish_while_others_are_taken_away_keep_no_link_to_those() {
    for quant in QUANTS {
        let (values, _) = clustered(26, 1000, 0, false);
        let source = Vanishing::new(Matrix::new(DIM, values));
        let graph = build_with(Metric::L2, &source.matrix, Params { quant, ..params() });
        // The caller's view is of a moment before.
        (0..1000).step_by(3).for_each(|row| source.vanish(RowId(row)));
        assert_eq!(graph.repair(|row| row.0.is_multiple_of(2), &source, 2), 500);
        assert_sound(&graph);
    }
}

#[test]
fn a_repair_of_all_leaves_an_empty_graph_that_grows_again() {
    for quant in QUANTS {
        let (values, queries) = clustered(22, ROWS, 30, false);
        let source = Vanishing::new(Matrix::new(DIM, values));
        let graph = Hnsw::new(Metric::L2, DIM, Params { quant, ..params() }).unwrap();
        insert_all(&graph, (0..1500).map(RowId), &source);
        (0..1500).map(RowId).for_each(|row| source.vanish(row));
        assert_eq!(graph.repair(|row| source.is_live(row), &source, 2), 1500);
        assert!(graph.is_empty() && graph.rows().is_empty());
        assert!(graph.verify().is_sound());
        assert!(find(&graph, &queries[0], 50, &source, |_| true).neighbors.is_empty());
        assert_eq!(graph.repair(|row| source.is_live(row), &source, 2), 0, "there is nothing left to do");
        insert_all(&graph, (1500..3000).map(RowId), &source);
        assert_sound(&graph);
        assert_recall(recall(&graph, &queries, wide_enough(quant), &source, |_| true), 0.95);
    }
}

#[test]
fn the_entry_point_and_the_root_can_go() {
    let (values, queries) = clustered(23, 1000, 20, false);
    let source = Vanishing::new(Matrix::new(DIM, values));
    let graph = build(Metric::L2, &source.matrix);
    for round in 0..20 {
        {
            let guard = pin();
            let root = |&id: &NodeId| {
                graph.nodes.row(id, &guard).is_some() && graph.nodes.linked(id, 0, &guard).next() == Some(id)
            };
            let mut roots: Vec<NodeId> = graph.nodes.ids().filter(root).collect();
            assert_eq!(roots.len(), 1, "round {round}: roots");
            roots.extend(graph.entry(&guard));
            roots.into_iter().filter_map(|id| graph.nodes.row(id, &guard)).for_each(|row| source.vanish(row));
        }
        assert!((1..=2).contains(&graph.repair(|row| source.is_live(row), &source, 1)), "round {round}");
        assert_sound(&graph);
        let guard = pin();
        let highest = graph.nodes.ids().map(|id| graph.nodes.level(id, &guard)).max().unwrap();
        assert_eq!(graph.nodes.level(graph.entry(&guard).unwrap(), &guard), highest, "round {round}");
    }
    assert_recall(recall(&graph, &queries, 100, &source, |_| true), 0.95);
}

/// Waits until the numbers of nodes that were taken away can be used again.
fn wait_for_numbers(graph: &Hnsw, free: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while graph.nodes.free_count() < free {
        assert!(std::time::Instant::now() < deadline, "{} of {free} are free", graph.nodes.free_count());
        pin().flush();
        std::thread::yield_now();
    }
}

#[test]
fn numbers_are_used_again_and_recall_stays_that_of_a_fresh_build() {
    const AT_FIRST: u32 = 3000;
    const REPLACED: u32 = 300;
    for quant in QUANTS {
        let (values, queries) = clustered(24, (AT_FIRST + 5 * REPLACED) as usize, 1000, false);
        let source = Vanishing::new(Matrix::new(DIM, values));
        let graph = Hnsw::new(Metric::L2, DIM, Params { quant, ..params() }).unwrap();
        insert_all(&graph, (0..AT_FIRST).map(RowId), &source);
        let (nodes, towers) = (graph.nodes.count(), graph.nodes.tower_count());
        let mut random = Random::new(25);
        for round in 0..5 {
            let mut live = graph.rows();
            live.sort_unstable();
            for _ in 0..REPLACED {
                source.vanish(live.swap_remove(random.below(live.len())));
            }
            assert_eq!(graph.repair(|row| source.is_live(row), &source, 2), REPLACED as usize);
            wait_for_numbers(&graph, REPLACED as usize);
            let first = AT_FIRST + round * REPLACED;
            insert_all(&graph, (first..first + REPLACED).map(RowId), &source);
            assert_eq!(graph.nodes.count(), nodes, "round {round}: numbers of nodes");
        }
        assert_sound(&graph);
        assert_lists_are_distinct(&graph);
        // Levels are drawn, so that there may be a few more than at first.
        let now = graph.nodes.tower_count();
        assert!(now <= towers + towers / 5, "{now} towers, {towers} at first");

        let mut live = graph.rows();
        live.sort_unstable();
        let fresh = Hnsw::new(Metric::L2, DIM, Params { quant, ..params() }).unwrap();
        insert_all(&fresh, live.into_iter(), &source);
        let links = [&graph, &fresh].map(|graph| graph.verify().links);
        // Lists that were chosen anew at each repair had 64 % of them after five.
        assert!(links[0] >= links[1] * 85 / 100, "{}: {} links, fresh {}", quant.name(), links[0], links[1]);
        // At a width where recall is below 1, so that a difference would show.
        let ef = wide_enough(quant) / 4;
        let was = recall(&fresh, &queries, ef, &source, |_| true);
        let is = recall(&graph, &queries, ef, &source, |_| true);
        assert!(is >= was - 0.005, "{}: recall {is}, fresh {was}", quant.name());
    }
}
