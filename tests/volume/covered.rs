//! Which collections a search looks in, and what it costs beside many others.

use std::time::{Duration, Instant};

use vexfs::search::{Options, Request, Target};
use vexfs::volume::XattrMode;

use crate::support::*;

const VECTOR: [f32; 2] = [1.0, 0.5];

fn put(fs: &Fs, path: &str) {
    fs.put(path, &VECTOR.map(f32::to_le_bytes).concat());
}

/// Makes a directory a collection of its own.
fn nest(fs: &Fs, path: &str) {
    let ino = fs.ino(path).unwrap();
    fs.volume.setxattr(&ROOT, ino, b"user.vexfs.recall", b"0.9", XattrMode::Either).unwrap();
}

/// Paths of all that a search asked in `dir` finds.
fn found(fs: &Fs, dir: &str) -> Vec<String> {
    first(fs, dir, 1000)
}

/// Those of the first `k`.
fn first(fs: &Fs, dir: &str, k: u32) -> Vec<String> {
    let target = Target::Vectors { dim: 2, values: VECTOR.to_vec() };
    let request = Request { target, options: Options { k: Some(k), ..Options::default() } };
    let answers = fs.volume.search(&ROOT, fs.ino(dir).unwrap(), &request).unwrap();
    answers[0].hits.iter().map(|hit| String::from_utf8(hit.path.to_vec()).unwrap()).collect()
}

#[test]
fn a_search_covers_what_lies_below_wherever_directories_are_moved() {
    let fs = Fs::new();
    for dir in ["a", "a/b", "a/b/c", "d", "d/e"] {
        fs.mkdir(dir).unwrap();
    }
    assert!(found(&fs, "a").is_empty());
    for file in ["x.f32", "a/1.f32", "a/b/2.f32", "a/b/c/3.f32", "d/4.f32", "d/e/5.f32"] {
        put(&fs, file);
    }
    assert_eq!(found(&fs, "a"), ["1.f32", "b/2.f32", "b/c/3.f32"]);
    // A collection within one, and one within that.
    nest(&fs, "a/b/c");
    assert_eq!(found(&fs, "a"), ["1.f32", "b/2.f32", "b/c/3.f32"]);
    nest(&fs, "a/b");
    assert_eq!(found(&fs, "a"), ["1.f32", "b/2.f32", "b/c/3.f32"]);
    assert_eq!(found(&fs, "a/b"), ["2.f32", "c/3.f32"]);
    assert_eq!(found(&fs, "a/b/c"), ["3.f32"]);
    // With all that it has, into another.
    fs.rename("a/b", "d/e/b").unwrap();
    assert_eq!(found(&fs, "a"), ["1.f32"]);
    assert_eq!(found(&fs, "d"), ["4.f32", "e/5.f32", "e/b/2.f32", "e/b/c/3.f32"]);
    assert_eq!(found(&fs, "d/e"), ["5.f32", "b/2.f32", "b/c/3.f32"]);
    // The directory above both of them.
    fs.rename("d/e", "a/e").unwrap();
    assert_eq!(found(&fs, "a"), ["1.f32", "e/5.f32", "e/b/2.f32", "e/b/c/3.f32"]);
    assert_eq!(found(&fs, "d"), ["4.f32"]);
    // Out to the root, and what lies in the root below a directory.
    fs.rename("a/e/b", "b").unwrap();
    assert_eq!(found(&fs, "b"), ["2.f32", "c/3.f32"]);
    fs.rename("a", "b/a").unwrap();
    assert_eq!(found(&fs, "b"), ["2.f32", "a/1.f32", "a/e/5.f32", "c/3.f32"]);
    assert_eq!(found(&fs, ""), ["b/2.f32", "b/a/1.f32", "b/a/e/5.f32", "b/c/3.f32", "d/4.f32", "x.f32"]);
    let fs = fs.reopen();
    assert_eq!(found(&fs, "b/a"), ["1.f32", "e/5.f32"]);
    assert_eq!(found(&fs, "b"), ["2.f32", "a/1.f32", "a/e/5.f32", "c/3.f32"]);
    // Gone with its directory.
    fs.unlink("b/c/3.f32").unwrap();
    fs.rmdir("b/c").unwrap();
    assert_eq!(found(&fs, "b"), ["2.f32", "a/1.f32", "a/e/5.f32"]);
}

#[test]
fn a_file_with_names_in_several_collections_is_one_hit_and_takes_no_others_place() {
    let fs = Fs::new();
    for dir in ["a", "a/b", "a/b/c", "d"] {
        fs.mkdir(dir).unwrap();
    }
    nest(&fs, "a/b");
    nest(&fs, "a/b/c");
    put(&fs, "a/1.f32");
    for name in ["a/b/linked.f32", "a/b/c/again.f32", "d/outside.f32"] {
        fs.link("a/1.f32", name).unwrap();
    }
    for (file, vector) in [("a/2.f32", [1.0f32, 0.6]), ("a/b/3.f32", [1.0, 0.7]), ("a/b/c/4.f32", [1.0, 0.8])]
    {
        fs.put(file, &vector.map(f32::to_le_bytes).concat());
    }
    for k in 1..=5 {
        let hits = first(&fs, "a", k);
        assert_eq!(hits, ["1.f32", "2.f32", "b/3.f32", "b/c/4.f32"][..(k as usize).min(4)], "k {k}");
    }
    assert_eq!(first(&fs, "a/b", 3), ["linked.f32", "3.f32", "c/4.f32"]);
    assert_eq!(first(&fs, "d", 3), ["outside.f32"]);
    // A matrix has each of its rows once.
    fs.put("a/m.f32", &[1.0f32, 0.55].map(f32::to_le_bytes).concat());
    let rows = [[1.0f32, 0.51], [1.0, 0.52]]
        .concat()
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect::<Vec<_>>();
    fs.put("a/m.fbin", &[&2u32.to_le_bytes()[..], &2u32.to_le_bytes(), &rows].concat());
    fs.link("a/m.fbin", "a/b/m.fbin").unwrap();
    assert_eq!(first(&fs, "a", 4), ["1.f32", "m.fbin", "m.fbin", "m.f32"]);
}

/// The shortest of many calls.
fn least(mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    (0..300).map(time).min().unwrap()
}

#[test]
fn a_search_in_one_of_many_collections_costs_what_it_costs_in_the_only_one() {
    let fs = Fs::new();
    fs.mkdir("one").unwrap();
    for file in ["one/a.f32", "one/b.f32"] {
        put(&fs, file);
    }
    let alone = least(|| assert_eq!(found(&fs, "one").len(), 2));
    for number in 0..3000 {
        fs.mkdir(&format!("{number}")).unwrap();
        put(&fs, &format!("{number}/a.f32"));
    }
    let among_many = least(|| assert_eq!(found(&fs, "one").len(), 2));
    assert!(among_many < 4 * alone, "{among_many:?}, alone {alone:?}");
}
