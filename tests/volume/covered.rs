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
    let target = Target::Vectors { dim: 2, values: VECTOR.to_vec() };
    let request = Request { target, options: Options { k: Some(1000), ..Options::default() } };
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
