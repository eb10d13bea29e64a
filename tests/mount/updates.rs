//! Changes of vectors: close, rename, unlink, truncate, hard links, and what a search sees meanwhile.

use std::fs::{self, File};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Mount, Random, errno, f32_bytes, npy, paths, shell, wait_for};

#[test]
fn a_vector_is_searchable_when_close_returns_and_gone_when_unlink_returns() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0, 0.0]);
    mount.put("docs/b.f32", &[0.9, 0.1, 0.0]);
    mount.put("docs/c.f32", &[0.0, 0.0, 1.0]);
    assert_eq!(mount.similar("docs/a.f32"), ["b.f32", "c.f32"]);
    assert_eq!(mount.status("docs/a.f32"), "indexed");
    fs::remove_file(mount.path("docs/b.f32")).unwrap();
    assert_eq!(mount.similar("docs/a.f32"), ["c.f32"]);
}

#[test]
fn a_vector_written_in_many_pieces_is_seen_old_until_the_last_writer_closes() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/query.f32", &[1.0, 0.0, 0.0, 0.0]);
    mount.put("docs/a.f32", &[0.0, 1.0, 0.0, 0.0]);
    let distance = || mount.attribute("docs/query.f32", "user.vexfs.distance.a.f32");
    assert_eq!(distance(), "1");
    let mut first = File::options().write(true).truncate(true).open(mount.path("docs/a.f32")).unwrap();
    let second = File::options().write(true).open(mount.path("docs/a.f32")).unwrap();
    for byte in f32_bytes(&[1.0, 0.0, 0.0, 0.0]) {
        first.write_all(&[byte]).unwrap();
        assert_eq!(distance(), "1", "an unfinished file must not be seen");
    }
    assert_eq!(fs::metadata(mount.path("docs/a.f32")).unwrap().len(), 16);
    assert_eq!(mount.status("docs/a.f32"), "pending");
    drop(first);
    assert_eq!(distance(), "1", "another writer is open");
    drop(second);
    assert_eq!(distance(), "0");
}

#[test]
fn a_rename_decides_by_the_final_name() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/query.f32", &[1.0, 0.0]);
    fs::write(mount.path("docs/.a.f32.x7Gh2"), f32_bytes(&[0.5, 0.5])).unwrap();
    assert_eq!(mount.similar("docs/query.f32"), [""; 0]);
    assert_eq!(mount.status("docs/.a.f32.x7Gh2"), "plain");
    fs::rename(mount.path("docs/.a.f32.x7Gh2"), mount.path("docs/a.f32")).unwrap();
    assert_eq!(mount.similar("docs/query.f32"), ["a.f32"]);
    fs::rename(mount.path("docs/a.f32"), mount.path("docs/b.f32")).unwrap();
    assert_eq!(mount.similar("docs/query.f32"), ["b.f32"]);
    fs::rename(mount.path("docs/b.f32"), mount.path("docs/b.f32.bak")).unwrap();
    assert_eq!(mount.similar("docs/query.f32"), [""; 0]);
    assert_eq!(fs::read(mount.path("docs/b.f32.bak")).unwrap(), f32_bytes(&[0.5, 0.5]));
    fs::rename(mount.path("docs/b.f32.bak"), mount.path("docs/c.f32")).unwrap();
    assert_eq!(mount.similar("docs/query.f32"), ["c.f32"]);
}

#[test]
fn a_rename_over_a_vector_replaces_it() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/query.f32", &[1.0, 0.0]);
    mount.put("docs/a.f32", &[0.0, 1.0]);
    mount.put("docs/a.tmp", &[1.0, 0.0]);
    assert_eq!(mount.attribute("docs/query.f32", "user.vexfs.distance.a.f32"), "1");
    fs::rename(mount.path("docs/a.tmp"), mount.path("docs/a.f32")).unwrap();
    assert_eq!(mount.attribute("docs/query.f32", "user.vexfs.distance.a.f32"), "0");
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "2");
}

#[test]
fn a_vector_moves_between_collections_with_its_directory_or_alone() {
    let mount = Mount::new();
    for dir in ["a", "b", "a/sub"] {
        mount.mkdir(dir);
    }
    mount.put("a/x.f32", &[1.0, 0.0]);
    mount.put("a/sub/y.f32", &[0.0, 1.0]);
    let counts = || (mount.attribute("a", "user.vexfs.count"), mount.attribute("b", "user.vexfs.count"));
    assert_eq!(counts(), ("2".into(), "0".into()));
    fs::rename(mount.path("a/x.f32"), mount.path("b/x.f32")).unwrap();
    assert_eq!(counts(), ("1".into(), "1".into()));
    fs::rename(mount.path("a/sub"), mount.path("b/sub")).unwrap();
    assert_eq!(counts(), ("0".into(), "2".into()));
    assert_eq!(mount.similar("b/x.f32"), ["sub/y.f32"]);
    fs::rename(mount.path("b/sub"), mount.path("sub")).unwrap();
    assert_eq!(mount.attribute("sub", "user.vexfs.count"), "1");
    assert_eq!(counts(), ("0".into(), "1".into()));
}

#[test]
fn truncating_a_path_settles_at_once() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0]);
    mount.put("docs/b.f32", &[0.0, 1.0]);
    shell(&mount.root(), "truncate -s 7 docs/b.f32");
    assert!(mount.status("docs/b.f32").starts_with("invalid: "), "{}", mount.status("docs/b.f32"));
    assert_eq!(mount.similar("docs/a.f32"), [""; 0]);
    shell(&mount.root(), "truncate -s 0 docs/b.f32; printf '\\0\\0\\200\\77\\0\\0\\0\\0' > docs/b.f32");
    assert_eq!(mount.similar("docs/a.f32"), ["b.f32"]);
}

#[test]
fn a_hard_link_is_one_vector_and_refused_across_dimensions() {
    let mount = Mount::new();
    for dir in ["docs", "docs/sub", "wide"] {
        mount.mkdir(dir);
    }
    mount.put("docs/a.f32", &[1.0, 0.0]);
    mount.put("docs/b.f32", &[0.9, 0.1]);
    mount.put("wide/w.f32", &[1.0, 0.0, 0.0]);
    fs::hard_link(mount.path("docs/b.f32"), mount.path("docs/sub/b2.f32")).unwrap();
    assert_eq!(mount.similar("docs/a.f32").len(), 1);
    assert_eq!(paths(&mount.ask_json("docs/sub", &json!({"vector": [1.0, 0.0]}))), ["b2.f32"]);
    let across = fs::hard_link(mount.path("docs/a.f32"), mount.path("wide/a.f32"));
    assert_eq!(errno(across), libc::EXDEV);
    fs::remove_file(mount.path("docs/b.f32")).unwrap();
    assert_eq!(mount.similar("docs/a.f32"), ["sub/b2.f32"]);
}

#[test]
fn a_status_is_that_of_every_collection_in_which_a_file_has_a_name() {
    let mount = Mount::new();
    for dir in ["docs", "wide"] {
        mount.mkdir(dir);
    }
    mount.put("docs/a.f32", &[1.0, 0.0, 0.0]);
    mount.put("docs/b.f32", &[1.0, 1.0, 0.0]);
    mount.put("wide/w.f32", &[1.0, 0.0]);
    fs::hard_link(mount.path("docs/a.f32"), mount.path("wide/a.txt")).unwrap();
    assert_eq!(mount.status("wide/a.txt"), "indexed");
    fs::rename(mount.path("wide/a.txt"), mount.path("wide/a.f32")).unwrap();
    for name in ["wide/a.f32", "docs/a.f32"] {
        assert_eq!(mount.status(name), "invalid: dimension 3, collection has 2");
        assert_eq!(mount.attribute(name, "user.vexfs.error"), "dimension 3, collection has 2");
    }
    assert_eq!(mount.similar("docs/a.f32"), ["b.f32"]);
    fs::remove_file(mount.path("wide/a.f32")).unwrap();
    assert_eq!(mount.status("docs/a.f32"), "indexed");
}

#[test]
fn rows_of_a_multi_row_file_come_and_go_together() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let rows: Vec<Vec<f32>> = (0..100).map(|i| vec![1.0, i as f32 / 10.0, 0.0]).collect();
    fs::write(mount.path("docs/big.npy"), npy(&rows)).unwrap();
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "100");
    assert_eq!(mount.attribute("docs/big.npy", "user.vexfs.rows"), "100");
    let answer = mount.ask_json("docs", &json!({"vector": [1.0, 4.2, 0.0], "k": 1}));
    assert_eq!((&answer["hits"][0]["row"], &answer["hits"][0]["id"]), (&json!(42), &json!(42)));
    fs::remove_file(mount.path("docs/big.npy")).unwrap();
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "0");
    // An emptied collection takes any dimension and numbers from 0 again.
    fs::write(mount.path("docs/other.npy"), npy(&[vec![1.0; 5], vec![2.0; 5]])).unwrap();
    let answer = mount.ask_json("docs", &json!({"vector": [1.0, 1.0, 1.0, 1.0, 1.0], "k": 9}));
    assert_eq!(answer["hits"].as_array().unwrap().len(), 2);
    assert_eq!(answer["hits"][0]["id"], 0);
}

#[test]
fn a_search_never_misses_a_file_that_is_being_replaced() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let (old, new) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]);
    mount.put("docs/a.f32", &old);
    mount.put("docs/far.f32", &[0.0, 0.0, 1.0]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(3);
            for round in 0.. {
                if Instant::now() > deadline {
                    break;
                }
                let vector = if round % 2 == 0 { new } else { old };
                match round % 3 {
                    0 => mount.put("docs/a.f32", &vector),
                    _ => {
                        mount.put("docs/a.tmp", &vector);
                        fs::rename(mount.path("docs/a.tmp"), mount.path("docs/a.f32")).unwrap();
                    }
                }
            }
            stop.store(true, Ordering::Release);
        });
        let mut searches = 0;
        while !stop.load(Ordering::Acquire) {
            let answer = mount.ask_json("docs", &json!({"vector": [1.0, 1.0, 0.0], "k": 10}));
            let found: Vec<_> = paths(&answer).into_iter().filter(|path| path == "a.f32").collect();
            assert_eq!(found.len(), 1, "{answer}");
            let distance = answer["hits"][0]["distance"].as_f64().unwrap();
            assert!((distance - 0.29289).abs() < 1e-4, "neither old nor new: {answer}");
            searches += 1;
        }
        assert!(searches > 20, "only {searches} searches ran beside the writer");
    });
}

#[test]
fn a_file_that_is_being_replaced_is_asked_about_by_its_name() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.mkdir("docs/sub");
    for name in ["a", "b", "c", "sub/d"] {
        mount.put(&format!("docs/{name}.f32"), &[1.0, 0.0, 0.0]);
    }
    // The kernel looks a name up again once in a call, and says ESTALE when that is gone as well.
    let attribute = |path: &str, name: &str| loop {
        match mount.try_attribute(path, name) {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {}
            value => break value.unwrap_or_else(|error| panic!("{path}: {name}: {error}")),
        }
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(4);
            while Instant::now() < deadline {
                mount.put("docs/.t", &[1.0, 0.0, 0.0]);
                fs::rename(mount.path("docs/.t"), mount.path("docs/a.f32")).unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        let mut rounds = 0;
        while !stop.load(Ordering::Acquire) {
            fs::read_dir(mount.path("docs/.vexfs/similar/a.f32")).unwrap();
            // Of one that was replaced since it was looked up its successor is a neighbour.
            let similar = attribute("docs/a.f32", "user.vexfs.similar").lines().count();
            assert!(similar == 3 || similar == 4, "{similar} neighbours");
            for _ in 0..20 {
                assert_eq!(attribute("docs/a.f32", "user.vexfs.status"), "indexed");
            }
            assert_eq!(attribute("docs/b.f32", "user.vexfs.distance.a.f32"), "0");
            let answer = mount.ask_json("docs/sub", &json!({"like": "../a.f32"}));
            assert_eq!(paths(&answer), ["d.f32"]);
            rounds += 1;
        }
        assert!(rounds > 20, "only {rounds} rounds ran beside the writer");
    });
    // What was known of a name is not what another file with this name has.
    let row = || fs::read(mount.path("docs/.vexfs/rows/a.f32/000000.f32")).unwrap();
    assert_eq!(row(), f32_bytes(&[1.0, 0.0, 0.0]));
    let _listed = fs::read_dir(mount.path("docs/.vexfs/rows/a.f32")).unwrap();
    mount.put("docs/.t", &[0.0, 1.0, 0.0]);
    fs::rename(mount.path("docs/.t"), mount.path("docs/a.f32")).unwrap();
    assert_eq!(row(), f32_bytes(&[0.0, 1.0, 0.0]));
}

#[test]
fn half_of_a_collection_deleted_leaves_exactly_the_other_half() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let mut random = Random(7);
    let dim = 8;
    for i in 0..300 {
        mount.put(&format!("docs/{i}.f32"), &random.vector(dim));
    }
    let rows: Vec<Vec<f32>> = (0..6000).map(|_| random.vector(dim)).collect();
    fs::write(mount.path("docs/bulk.npy"), npy(&rows)).unwrap();
    mount.sync();
    for i in (0..300).step_by(2) {
        fs::remove_file(mount.path(format!("docs/{i}.f32"))).unwrap();
    }
    for _ in 0..20 {
        let answer = mount.ask_json("docs", &json!({"vector": random.vector(dim), "k": 200}));
        let paths = paths(&answer);
        assert_eq!(paths.len(), 200);
        for path in paths.iter().filter(|path| *path != "bulk.npy") {
            let number: u64 = path.strip_suffix(".f32").unwrap().parse().unwrap();
            assert!(number % 2 == 1, "{path} is deleted");
        }
    }
    fs::remove_file(mount.path("docs/bulk.npy")).unwrap();
    let answer = mount.ask_json("docs", &json!({"vector": random.vector(dim), "k": 1000}));
    assert_eq!(answer["hits"].as_array().unwrap().len(), 150);
    wait_for("the dead rows to be swept", || {
        mount.json(".vexfs/stats.json")["collections"][0]["count"] == 150
    });
}
