//! Searches restricted by attributes: random changes against a model, and changes at the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use vexfs::Error;
use vexfs::search::condition;
use vexfs::search::{Hit, Options, Request, Target};
use vexfs::volume::XattrMode;

use crate::support::*;

/// Hits of a search for `vector` below `dir`, under a condition.
fn search(fs: &Fs, dir: &str, vector: [f32; 2], k: u32, text: &str) -> Vec<Hit> {
    let condition = Some(Arc::new(condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))));
    let options = Options { k: Some(k), condition, ..Options::default() };
    let request = Request { target: Target::Vectors { dim: 2, values: vector.to_vec() }, options };
    let mut answers = fs.volume.search(&ROOT, fs.ino(dir).unwrap(), &request).unwrap();
    assert!(answers[0].complete, "{text}");
    answers.remove(0).hits
}

fn paths(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(|hit| String::from_utf8(hit.path.to_vec()).unwrap()).collect()
}

fn found(fs: &Fs, dir: &str, text: &str) -> Vec<String> {
    paths(&search(fs, dir, [0.0, 1.0], 100, text))
}

fn set(fs: &Fs, path: &str, name: &str, value: &str) {
    let (name, ino) = (format!("user.{name}"), fs.ino(path).unwrap());
    fs.volume.setxattr(&ROOT, ino, name.as_bytes(), value.as_bytes(), XattrMode::Either).unwrap();
}

fn unset(fs: &Fs, path: &str, name: &str) -> bool {
    let name = format!("user.{name}");
    match fs.volume.removexattr(&ROOT, fs.ino(path).unwrap(), name.as_bytes()) {
        Ok(()) => true,
        Err(Error::NoAttribute) => false,
        Err(error) => panic!("{error}"),
    }
}

/// An `.fvecs` file.
fn fvecs(rows: &[[f32; 2]]) -> Vec<u8> {
    let row = |row: &[f32; 2]| [2u32.to_le_bytes(), row[0].to_le_bytes(), row[1].to_le_bytes()].concat();
    rows.iter().flat_map(row).collect()
}

fn one(fs: &Fs, path: &str) {
    fs.put(path, &fvecs(&[[1.0, 1.0]]));
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

const DIRS: [&str; 3] = ["c", "c/sub", "d"];
const NAMES: [&str; 6] = ["a.fvecs", "b.fvecs", "c.fvecs", "d.fvecs", "plain", "other.txt"];
const ATTRIBUTES: [&str; 3] = ["lang", "year", "x y"];
const VALUES: [&str; 8] = ["en", "de", "7", "7.0", "10", "", "2024-01-15", "En"];

type Attributes = BTreeMap<String, String>;

fn is_vector(name: &str) -> bool {
    name.ends_with(".fvecs")
}

/// A condition, as text and as what it means.
enum Condition {
    Test(&'static str, &'static str, &'static str),
    Not(Box<Condition>),
    Both(Box<Condition>, Box<Condition>),
    Either(Box<Condition>, Box<Condition>),
}

impl Condition {
    fn random(random: &mut Random, depth: usize) -> Self {
        let inner = |random: &mut Random| Box::new(Self::random(random, depth - 1));
        match random.below(if depth == 0 { 1 } else { 5 }) {
            2 => Condition::Not(inner(random)),
            3 => Condition::Both(inner(random), inner(random)),
            4 => Condition::Either(inner(random), inner(random)),
            _ => {
                let sign = random.of(&["", "=", "!=", "<", "<=", ">", ">=", "in", "~"]);
                Condition::Test(random.of(&ATTRIBUTES), sign, random.of(&VALUES))
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Condition::Test(name, sign, value) => {
                let name = if name.contains(' ') { format!("\"{name}\"") } else { (*name).to_owned() };
                let value = if value.is_empty() { "''" } else { value };
                match *sign {
                    "" => name,
                    "in" => format!("{name} in ({value}, fr)"),
                    "~" => format!("{name}~*{}*", value.trim_matches('\'')),
                    sign => format!("{name} {sign} {value}"),
                }
            }
            Condition::Not(inner) => format!("not ({})", inner.text()),
            Condition::Both(a, b) => format!("({}) and ({})", a.text(), b.text()),
            Condition::Either(a, b) => format!("({} | {})", a.text(), b.text()),
        }
    }

    fn holds(&self, attributes: &Attributes) -> bool {
        match self {
            Condition::Test(name, sign, value) => {
                let Some(has) = attributes.get(*name) else { return *sign == "!=" };
                let order = match (has.parse::<f64>(), value.parse::<f64>()) {
                    (Ok(has), Ok(value)) => has.partial_cmp(&value).unwrap(),
                    _ => has.as_str().cmp(value),
                };
                match *sign {
                    "" => true,
                    "=" => order.is_eq(),
                    "!=" => order.is_ne(),
                    "<" => order.is_lt(),
                    "<=" => order.is_le(),
                    ">" => order.is_gt(),
                    ">=" => order.is_ge(),
                    "in" => order.is_eq() || has == "fr",
                    _ => has.contains(value),
                }
            }
            Condition::Not(inner) => !inner.holds(attributes),
            Condition::Both(a, b) => a.holds(attributes) && b.holds(attributes),
            Condition::Either(a, b) => a.holds(attributes) || b.holds(attributes),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct File {
    rows: Vec<[f32; 2]>,
    attributes: Attributes,
}

/// Names to numbers of files.
#[derive(Debug, Default)]
struct Model {
    names: BTreeMap<(usize, &'static str), usize>,
    files: Vec<File>,
}

impl Model {
    /// What a search below `base` finds: paths and rows, the nearest first.
    fn search(&self, base: usize, vector: [f32; 2], condition: &Condition) -> Vec<(String, u32)> {
        let mut hits = Vec::new();
        let mut seen = BTreeSet::new();
        for (&(dir, name), &file) in &self.names {
            let below = match (base, dir) {
                (0, 0) | (1, 1) | (2, 2) => "",
                (0, 1) => "sub/",
                _ => continue,
            };
            // The first name of a file is the one that is shown.
            if !is_vector(name) || !seen.insert(file) || !condition.holds(&self.files[file].attributes) {
                continue;
            }
            for (row, values) in (0u32..).zip(&self.files[file].rows) {
                let square = |at: usize| (values[at] - vector[at]).powi(2);
                hits.push((square(0) + square(1), format!("{below}{name}"), row));
            }
        }
        hits.sort_by(|a, b| a.partial_cmp(b).unwrap());
        hits.into_iter().map(|(_, path, row)| (path, row)).collect()
    }

    /// One random change. A file with several names has only those of vectors.
    fn step(&mut self, fs: &Fs, random: &mut Random) {
        let at = (random.below(DIRS.len()), random.of(&NAMES));
        let path = |(dir, name): (usize, &str)| format!("{}/{name}", DIRS[dir]);
        let known = self.names.get(&at).copied();
        match (random.below(10), known) {
            (0..=2, known) => {
                let count = 1 + random.below(4);
                let mut number = || random.below(9) as f32;
                let rows: Vec<[f32; 2]> = (0..count).map(|_| [number(), number()]).collect();
                fs.put(&path(at), &fvecs(&rows));
                let file = known.unwrap_or_else(|| {
                    self.files.push(File::default());
                    self.files.len() - 1
                });
                self.names.insert(at, file);
                self.files[file].rows = rows;
            }
            (3..=5, Some(file)) => {
                let (name, value) = (random.of(&ATTRIBUTES), random.of(&VALUES));
                set(fs, &path(at), name, value);
                self.files[file].attributes.insert(name.into(), value.into());
            }
            (6, Some(file)) => {
                let name = random.of(&ATTRIBUTES);
                let had = self.files[file].attributes.remove(name).is_some();
                assert_eq!(unset(fs, &path(at), name), had);
            }
            (7, Some(_)) => {
                fs.unlink(&path(at)).unwrap();
                self.names.remove(&at);
            }
            (8, Some(file)) => {
                let to = (random.below(DIRS.len()), random.of(&NAMES));
                // With several names each is a vector's: see `step`.
                if self.names.values().filter(|&&other| other == file).count() > 1 && !is_vector(to.1) {
                    return;
                }
                fs.rename(&path(at), &path(to)).unwrap();
                if self.names.get(&to) != Some(&file) {
                    self.names.remove(&at);
                    self.names.insert(to, file);
                }
            }
            (9, Some(file)) if is_vector(at.1) => {
                let to = (random.below(DIRS.len()), random.of(&NAMES[..4]));
                let is_free = !self.names.contains_key(&to);
                assert_eq!(fs.link(&path(at), &path(to)).is_ok(), is_free);
                self.names.entry(to).or_insert(file);
            }
            _ => {}
        }
    }

    fn check(&self, fs: &Fs, random: &mut Random) {
        let (base, condition) = (random.below(DIRS.len()), Condition::random(random, 3));
        let vector = [random.below(9) as f32, random.below(9) as f32];
        let text = condition.text();
        let hits = search(fs, DIRS[base], vector, 1000, &text);
        let hits: Vec<_> = paths(&hits).into_iter().zip(hits.iter().map(|hit| hit.row)).collect();
        let want = self.search(base, vector, &condition);
        assert_eq!(hits, want, "{text} in {}: {self:#?}", DIRS[base]);
        // Exactly as many as asked for, where there are as many.
        let few = search(fs, DIRS[base], vector, 2, &text);
        assert_eq!(few.len(), want.len().min(2), "{text}");
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let (mut fs, mut model) = (Fs::new(), Model::default());
    let configure = |dir: &str| {
        let ino = fs.ino(dir).unwrap();
        fs.volume.setxattr(&ROOT, ino, b"user.vexfs.metric", b"l2", XattrMode::Either).unwrap();
    };
    for dir in DIRS {
        fs.mkdir(dir).unwrap();
    }
    configure("c");
    configure("d");
    for step in 1..=1200 {
        model.step(&fs, &mut random);
        if random.below(3) == 0 {
            model.check(&fs, &mut random);
        }
        match step % 400 {
            // Nothing is known after a kill, and nothing of what was set is lost.
            150 => fs = fs.killed_copy(),
            300 => fs = fs.reopen(),
            _ => {}
        }
    }
}

#[test]
fn random_changes_and_conditions_agree_with_the_model_seed_1() {
    run(1);
}

#[test]
fn random_changes_and_conditions_agree_with_the_model_seed_2() {
    run(2);
}

#[test]
fn random_changes_and_conditions_agree_with_the_model_seed_3() {
    run(3);
}

#[test]
fn an_answer_follows_attributes_names_and_content_at_once() {
    let fs = Fs::new();
    fs.mkdir("c").unwrap();
    one(&fs, "c/a.fvecs");
    set(&fs, "c/a.fvecs", "lang", "en");
    assert_eq!(found(&fs, "c", "lang=en"), ["a.fvecs"]);
    set(&fs, "c/a.fvecs", "lang", "de");
    assert!(found(&fs, "c", "lang=en").is_empty());
    assert_eq!(found(&fs, "c", "lang=de"), ["a.fvecs"]);
    // New content keeps the attributes of its file, a new file has its own.
    fs.put("c/a.fvecs", &fvecs(&[[2.0, 2.0], [3.0, 3.0]]));
    assert_eq!(found(&fs, "c", "lang=de"), ["a.fvecs", "a.fvecs"]);
    let handle = fs.create("c/b.fvecs").unwrap();
    set(&fs, "c/b.fvecs", "lang", "de");
    fs.write(handle, 0, &fvecs(&[[1.0, 1.0]]));
    fs.close(handle);
    assert_eq!(found(&fs, "c", "lang=de"), ["a.fvecs", "a.fvecs", "b.fvecs"]);
    fs.rename("c/b.fvecs", "c/a.fvecs").unwrap();
    assert_eq!(found(&fs, "c", "lang=de"), ["a.fvecs"]);
    // A directory's attributes are not those of its files, nor an ordinary file's those of a vector.
    set(&fs, "c", "lang", "fr");
    fs.put("c/plain", b"x");
    set(&fs, "c/plain", "lang", "fr");
    assert!(found(&fs, "c", "lang=fr").is_empty());
    fs.rename("c/a.fvecs", "c/a.txt").unwrap();
    assert!(found(&fs, "c", "lang").is_empty());
    set(&fs, "c/a.txt", "lang", "it");
    fs.rename("c/a.txt", "c/z.fvecs").unwrap();
    assert_eq!(found(&fs, "c", "lang=it"), ["z.fvecs"]);
    assert!(unset(&fs, "c/z.fvecs", "lang"));
    assert_eq!(found(&fs, "c", "!lang"), ["z.fvecs"]);
}

#[test]
fn attributes_are_changed_while_they_are_read_for_the_first_time() {
    for round in 0..10 {
        let fs = Fs::new();
        fs.mkdir("c").unwrap();
        for number in 0..30 {
            one(&fs, &format!("c/{number}.fvecs"));
            set(&fs, &format!("c/{number}.fvecs"), "state", "old");
        }
        let begin = Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                for number in (0..30).rev() {
                    let path = format!("c/{number}.fvecs");
                    match number % 3 {
                        0 => set(&fs, &path, "state", "new"),
                        1 => assert!(unset(&fs, &path, "state")),
                        _ => one(&fs, &path),
                    }
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    begin.wait();
                    assert_eq!(found(&fs, "c", "state=old or state=new or !state").len(), 30);
                });
            }
        });
        let count = |text: &str| found(&fs, "c", text).len();
        assert_eq!((count("state=new"), count("!state"), count("state=old")), (10, 10, 10), "round {round}");
    }
}

/// Searches until `work` is done, which a thread does meanwhile.
fn beside(work: impl FnOnce() + Send, mut look: impl FnMut()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            work();
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) && !worker.is_finished() {
            look();
        }
    });
}

#[test]
fn a_file_that_changes_is_found_as_it_was_or_as_it_is() {
    let fs = Fs::new();
    fs.mkdir("c").unwrap();
    for number in 0..20 {
        one(&fs, &format!("c/{number}.fvecs"));
    }
    let change = || {
        for round in 0..300 {
            set(&fs, "c/7.fvecs", "lang", if round % 2 == 0 { "en" } else { "de" });
            // When the call has returned nobody finds it as it was.
            let (is, was) = if round % 2 == 0 { ("lang=en", "lang=de") } else { ("lang=de", "lang=en") };
            assert_eq!((found(&fs, "c", is).len(), found(&fs, "c", was).len()), (1, 0), "round {round}");
        }
    };
    set(&fs, "c/7.fvecs", "lang", "de");
    beside(change, || {
        assert_eq!(found(&fs, "c", "lang in (en,de)"), ["7.fvecs"]);
        assert!(found(&fs, "c", "lang=en").len() <= 1);
    });
}

#[test]
fn a_file_that_is_replaced_is_found_at_every_moment() {
    let fs = Fs::new();
    fs.mkdir("c").unwrap();
    one(&fs, "c/a.fvecs");
    set(&fs, "c/a.fvecs", "kind", "x");
    let replace = || {
        for round in 0..200 {
            match round % 3 {
                0 => one(&fs, "c/a.fvecs"),
                _ => {
                    fs.put("c/new.tmp", &fvecs(&[[1.0, 2.0]]));
                    set(&fs, "c/new.tmp", "kind", "x");
                    fs.rename("c/new.tmp", "c/a.fvecs").unwrap();
                }
            }
        }
    };
    beside(replace, || assert_eq!(found(&fs, "c", "kind=x"), ["a.fvecs"]));
}
