//! Files that are not as they were written, by accident and on purpose.

use super::*;

/// Gives blocks and header the checksums that their bytes have.
fn seal(bytes: &mut [u8], plan: &Plan) {
    let blocks: usize = plan.shapes.iter().map(|(rows, _)| rows.div_ceil(BLOCK_ROWS)).sum();
    let mut at = plan.head_bytes - 8 * blocks;
    for (&(rows, row_bytes), &offset) in plan.shapes.iter().zip(&plan.offsets) {
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let start = offset + first * row_bytes;
            let end = start + (rows - first).min(BLOCK_ROWS) * row_bytes;
            let checksum = xxh3_64(&bytes[start..end]);
            bytes[at..at + 8].copy_from_slice(&checksum.to_le_bytes());
            at += 8;
        }
    }
    let checksum = xxh3_64(&bytes[..plan.head_bytes]);
    bytes[plan.head_bytes..plan.head_bytes + 8].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn sealing_an_undamaged_file_changes_nothing() {
    let (_, graph) = sample(Quant::Sq8);
    let (_dir, path, bytes) = saved(&graph);
    let mut sealed = bytes.clone();
    seal(&mut sealed, &plan(&path));
    assert_eq!(sealed, bytes);
}

#[test]
fn every_truncation_is_damage() {
    let (_, graph) = sample(Quant::Sq8);
    let (_dir, path, bytes) = saved(&graph);
    let lengths = (0..400).chain((400..bytes.len()).step_by(211)).chain(bytes.len() - 80..bytes.len());
    for len in lengths {
        replace(&path, &bytes[..len]);
        assert!(is_corrupt(&load(&path)), "cut to {len} bytes");
    }
    replace(&path, &[&bytes[..], &[0]].concat());
    assert!(is_corrupt(&load(&path)), "one byte more");
}

#[test]
fn every_changed_byte_of_the_header_is_damage_or_another_stamp_or_age() {
    let (_, graph) = sample(Quant::Sq8);
    let (_dir, path, bytes) = saved(&graph);
    for at in 0..plan(&path).head_bytes + 8 {
        for bit in [1, 1 << (at % 8), 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bit;
            replace(&path, &damaged);
            let result = load(&path);
            let is_stamp = (64..96).contains(&at);
            let is_older = at == 8 && (1..VERSION).contains(&u32::from(damaged[at]));
            let is_none = is_stamp || is_older;
            assert!(if is_none { matches!(result, Ok(None)) } else { is_corrupt(&result) }, "byte {at}");
        }
    }
}

#[test]
fn header_fields_out_of_range_are_refused_even_with_a_valid_checksum() {
    let (_, graph) = sample(Quant::Sq8);
    let (_dir, path, bytes) = saved(&graph);
    let plan = plan(&path);
    let fields = [
        (8, &[0, VERSION + 1, u32::MAX][..]),
        (12, &[0, 3]),
        (16, &[0, 5, u32::MAX]),
        (20, &[1, 2, 129]),
        (24, &[0, 4097]),
        (28, &[0, 2, 3]),
        (40, &[0, 299, 301, 1 << 30, u32::MAX]),
        (44, &[0, 1 << 20, u32::MAX]),
        (48, &[0, 301, u32::MAX]),
        (52, &[0, 301, u32::MAX]),
        (56, &[0, 1, 5, u32::MAX]),
        (60, &[1]),
    ];
    for (at, values) in fields {
        for value in values {
            let mut hostile = bytes.clone();
            hostile[at..at + 4].copy_from_slice(&u32::to_le_bytes(*value));
            seal(&mut hostile, &plan);
            replace(&path, &hostile);
            assert!(is_corrupt(&load(&path)), "offset {at} = {value}");
        }
    }
}

#[test]
fn a_graph_of_an_older_version_is_no_graph() {
    let (_, graph) = sample(Quant::Sq8);
    let (_dir, path, mut bytes) = saved(&graph);
    for version in 1..VERSION {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        replace(&path, &bytes);
        assert!(matches!(load(&path), Ok(None)), "version {version}");
    }
}

#[test]
fn a_changed_bit_anywhere_is_seen_or_changes_no_answer() {
    for quant in QUANTS {
        let (matrix, graph) = sample(quant);
        let answer = search(&graph, &matrix);
        let (_dir, path, bytes) = saved(&graph);
        let plan = plan(&path);
        let ends = plan.shapes.iter().zip(&plan.offsets).map(|((rows, row), at)| at + rows * row);
        for (section, (start, end)) in plan.offsets.iter().copied().zip(ends).enumerate() {
            let mut seen = 0;
            for at in (start..end).step_by(97).chain([end - 1]) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                replace(&path, &damaged);
                let loaded = load(&path).unwrap().unwrap();
                let found = found(&loaded, &matrix);
                if found.damaged {
                    seen += 1;
                    let Error::Corrupt { file, offset, .. } = loaded.damage() else {
                        panic!("section {section}: {}", loaded.damage());
                    };
                    assert_eq!((file, offset), (path.display().to_string(), start as u64));
                } else {
                    let neighbors: Vec<_> = found.neighbors.iter().map(|n| (n.row.0, n.key)).collect();
                    assert_eq!(neighbors, answer, "byte {at}");
                }
                let report = loaded.verify();
                assert!(
                    report.damage.is_some(),
                    "section {section} of {}, byte {at}: {report}",
                    quant.name()
                );
                let saved = loaded.save(&path, &STAMP);
                assert!(matches!(saved, Err(Error::Corrupt { .. })), "damage is not written on: {saved:?}");
            }
            // Every search reads links, rows, the description of the entry point, and near bytes.
            if section < 3 || section == 4 {
                assert!(seen > 0, "section {section} of {}", quant.name());
            }
        }
    }
}

#[test]
fn a_damaged_graph_takes_no_rows_and_ends_every_call() {
    for quant in QUANTS {
        let (_, graph) = sample(quant);
        let more = values(ROWS + 20);
        let (_dir, path, bytes) = saved(&graph);
        let plan = plan(&path);
        for (section, &start) in plan.offsets.iter().enumerate() {
            let mut damaged = bytes.clone();
            damaged[start] ^= 1;
            replace(&path, &damaged);
            let loaded = load(&path).unwrap().unwrap();
            let outcomes: Vec<_> = (300..320).map(|row| loaded.insert(RowId(row), &more)).collect();
            let is_refused = |outcome: &Result<bool>| matches!(outcome, Err(Error::Corrupt { .. }));
            assert!(outcomes.iter().any(is_refused), "section {section} of {}: {outcomes:?}", quant.name());
            loaded.repair(|row| row.0 % 2 == 0, &more, 1);
            assert!(found(&loaded, &more).damaged, "section {section} of {}", quant.name());
        }
    }
}

#[test]
fn a_damaged_block_elsewhere_ends_an_insertion_too() {
    const MANY: usize = BLOCK_ROWS + 100;
    let matrix = values(MANY + 50);
    for quant in QUANTS {
        let params = Params { m: 3, ef_construction: 20, seed: 5, quant };
        let graph = Hnsw::new(Metric::L2, DIM, params).unwrap();
        insert(&graph, matrix.row_ids().take(MANY), &matrix);
        let (_dir, path, bytes) = saved(&graph);
        let plan = plan(&path);
        for (section, &start) in plan.offsets.iter().enumerate() {
            let mut damaged = bytes.clone();
            damaged[start] ^= 1;
            replace(&path, &damaged);
            let loaded = load(&path).unwrap().unwrap();
            let first = matrix.row_ids().skip(MANY).find(|&row| loaded.insert(row, &matrix).is_err());
            assert!(first.is_some(), "section {section} of {}", quant.name());
            assert!(loaded.is_damaged() && loaded.save(&path, &STAMP).is_err());
        }
    }
}

/// Inserts until the graph says that it is damaged, if it does.
fn insert_until_damage(graph: &Hnsw, matrix: &Matrix) {
    for row in matrix.row_ids().skip(ROWS) {
        match graph.insert(row, matrix) {
            Ok(inserted) => assert!(inserted),
            Err(Error::Corrupt { .. } | Error::Invalid(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_link_to_a_node_that_does_not_exist_is_damage() {
    let (matrix, graph) = sample(Quant::Sq8);
    let (_dir, path, bytes) = saved(&graph);
    let plan = plan(&path);
    let entry = u32::from_le_bytes(*bytes[48..].first_chunk().unwrap()) as usize - 1;
    let (_, row_bytes) = plan.shapes[0];
    // The tree parent of the node where every search begins.
    let at = plan.offsets[0] + entry * row_bytes;
    for value in [301u32, 1 << 30, u32::MAX] {
        let mut hostile = bytes.clone();
        hostile[at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(&mut hostile, &plan);
        replace(&path, &hostile);
        let loaded = load(&path).unwrap().unwrap();
        assert!(loaded.verify().damage.is_some(), "{value}");
        let loaded = load(&path).unwrap().unwrap();
        insert_until_damage(&loaded, &values(ROWS + 20));
        let loaded = load(&path).unwrap().unwrap();
        let query = Query::new(Metric::L2, &[500.0; DIM]);
        let all = Beam::new(ROWS, ROWS);
        let found = loaded.search(&query, all, &matrix, |_| true, &mut SearchScratch::new(), &mut || true);
        assert!(found.damaged, "{value}");
    }
}

#[test]
fn hostile_files_with_valid_checksums_never_break_anything() {
    for quant in QUANTS {
        let (_, graph) = sample(quant);
        let (_dir, path, bytes) = saved(&graph);
        let plan = plan(&path);
        let more = values(ROWS + 3);
        let sections = plan.shapes.iter().zip(&plan.offsets);
        let places = sections.flat_map(|(&(rows, row), &at)| {
            let step = (row * 23 + 4).next_multiple_of(4);
            (at..at + rows * row).step_by(step)
        });
        for at in places {
            for value in [0u32, 1, 42, 300, 301, 0x7fff, 0xffff_ff01, u32::MAX] {
                let mut hostile = bytes.clone();
                hostile[at..at + 4].copy_from_slice(&value.to_le_bytes());
                seal(&mut hostile, &plan);
                replace(&path, &hostile);
                let graph = load(&path).unwrap().unwrap();
                for neighbor in found(&graph, &more).neighbors {
                    let query = Query::new(Metric::L2, &[500.0; DIM]);
                    let key = query.key(&more, neighbor.row, &mut [0.0; DIM]);
                    assert_eq!(key, Some(neighbor.key), "byte {at} = {value}");
                }
                insert_until_damage(&graph, &more);
                graph.repair(|row| row.0 % 2 == 0, &more, 1);
                drop(graph.verify());
                insert_until_damage(&graph, &more);
            }
        }
    }
}
