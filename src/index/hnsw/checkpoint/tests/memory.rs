//! A graph that is saved or loaded lies in pages of its file, which are no memory of the process until they change.

use super::*;

/// Bytes of the process in pages of the mappings of `path`: of the file, and changed ones of its own.
fn resident(path: &Path) -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.display().to_string();
    let (mut all, mut own, mut is_ours) = (0, 0, false);
    for line in maps.lines() {
        let kib = |line: &str| line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap();
        match line.split_once(':') {
            Some(("Rss", size)) if is_ours => all += 1024 * kib(size),
            Some(("Anonymous", size)) if is_ours => own += 1024 * kib(size),
            Some((key, _)) if !key.contains(' ') => {}
            _ => is_ours = line.ends_with(&name),
        }
    }
    (all - own, own)
}

#[test]
fn saved_and_loaded_graphs_lie_in_the_pages_of_their_file() {
    const MANY: usize = 3 * BLOCK_ROWS + 100;
    let matrix = values(MANY);
    let params = Params { m: 4, ef_construction: 10, ..Params::default() };
    let graph = Hnsw::new(Metric::L2, DIM, params).unwrap();
    insert(&graph, matrix.row_ids(), &matrix);
    let before = search(&graph, &matrix);
    let (_dir, path, bytes) = saved(&graph);
    assert_eq!(resident(&path), (0, 0), "nothing was read back");
    assert_eq!(search(&graph, &matrix), before);
    let (of_file, own) = resident(&path);
    assert!(of_file > 0 && own == 0, "{of_file} bytes of the file, {own} of our own");
    drop(graph);

    let loaded = load(&path).unwrap().unwrap();
    let (of_file, own) = resident(&path);
    assert!(of_file == 0 && own == 0, "{of_file} bytes of the file, {own} of our own");
    assert_eq!(search(&loaded, &matrix), before);
    let (of_file, own) = resident(&path);
    assert!(of_file > 0 && own == 0, "{of_file} bytes of the file, {own} of our own");

    let more = values(MANY + 10);
    insert(&loaded, more.row_ids().skip(MANY), &more);
    assert!(resident(&path).1 > 0, "new links are in pages of this process");
    assert_eq!(fs::read(&path).unwrap(), bytes, "and not in the file");
    loaded.save(&path, &STAMP).unwrap();
    assert_eq!(resident(&path).1, 0, "until the graph is saved again");
    assert!(loaded.verify().is_sound());
}
