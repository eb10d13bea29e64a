//! What lists hold, sizes, parameters.

use super::*;

#[test]
fn one_thread_and_one_seed_give_one_graph() {
    let (values, _) = clustered(2, 600, 0, false);
    let matrix = Matrix::new(DIM, values);
    let links = |graph: &Hnsw| -> Vec<Vec<u32>> {
        let guard = pin();
        let levels = |id| (0..=graph.nodes.level(id, &guard)).map(move |level| (id, level));
        let list = |(id, level)| graph.nodes.linked(id, level, &guard).map(|linked| linked.0).collect();
        graph.nodes.ids().flat_map(levels).map(list).collect()
    };
    for quant in QUANTS {
        let params = Params { quant, ..params() };
        let graphs = [(); 2].map(|()| build_with(Metric::L2, &matrix, params));
        assert_eq!(links(&graphs[0]), links(&graphs[1]), "{}", quant.name());
    }
}

#[test]
fn lists_have_no_double_links_and_keep_their_tree() {
    let (values, _) = clustered(3, 1500, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    assert_lists_are_distinct(&graph);
    let guard = pin();
    let mut children = vec![0; graph.len()];
    for id in graph.nodes.ids() {
        let parent = graph.nodes.linked(id, 0, &guard).next().unwrap();
        if parent != id {
            assert!(graph.nodes.linked(parent, 0, &guard).skip(1).any(|child| child == id));
            children[parent.index()] += 1;
        }
    }
    for id in graph.nodes.ids() {
        assert_eq!(graph.nodes.children(id, &guard), children[id.index()]);
    }
}

#[test]
fn the_smallest_m_keeps_everything_reachable() {
    let (values, _) = clustered(11, 1000, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build_with(Metric::L2, &matrix, Params { m: 2, ef_construction: 4, ..Params::default() });
    assert_sound(&graph);
    let live = |row: RowId| !row.0.is_multiple_of(3);
    assert_eq!(graph.repair(live, &matrix, 1), 334);
    assert_sound(&graph);
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (m, ef_construction) in [(1, 200), (129, 200), (16, 0), (16, 4097)] {
        assert!(Hnsw::new(Metric::L2, 4, Params { m, ef_construction, ..Params::default() }).is_err());
    }
    assert!(Hnsw::new(Metric::L2, 0, Params::default()).is_err());
    for wrong in [3, 4 * 513] {
        let graph = Hnsw::with_centers(Metric::L2, 4, Params::default(), vec![0.0; wrong]);
        assert!(matches!(graph, Err(Error::Dimension { expected: 4, .. })));
    }
}

#[test]
fn codes_are_as_small_as_they_are_said_to_be() {
    let bytes = |dim, quant| {
        let params = Params { quant, ..Params::default() };
        Hnsw::new(Metric::L2, dim, params).unwrap().code_bytes()
    };
    for dim in (1..=1100).chain([1536, 4096]) {
        let b1 = bytes(dim, Quant::B1);
        assert!(b1 <= dim.div_ceil(8) + 16, "b1, dim {dim}: {b1} bytes");
        let sq8 = bytes(dim, Quant::Sq8);
        // The 8 bytes of the head weigh more where there are few elements.
        let most = if dim < 12 { 16 } else { 12 * dim / 10 };
        assert!(sq8 <= most, "sq8, dim {dim}: {sq8} bytes, {} of f32", 4 * dim);
    }
}
