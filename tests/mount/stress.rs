//! Vectors that are rewritten in every way there is, while others read and search them: old or new, never neither, never
//! a part.
//!
//! Each file has one writer, which gives it one version after the other. A version's values follow from file and number,
//! so what a reader or a searcher is told says which version it is. It must be one that was not over before he asked,
//! and had begun by the time he was answered.
//!
//! No process is started meanwhile: it would have the writers' descriptors until it runs its program, and closing them
//! there counts as a close.
//!
//! `STRESS_SECONDS` says how long (8).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use serde_json::{Value, json};

use crate::harness::{Mount, Random, VEXFS, f32_bytes, run, text};

const DIM: usize = 16;
/// Files that stay as they are, so that there is a graph.
const STILL: usize = 300;
/// Most of the files that change come back in a search for this many.
const ALL: usize = 1000;

/// How a file gets its next version.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// As `cp` does: truncated by the open, and written.
    Copy,
    /// As `mv` and `rsync` do: written beside it and renamed.
    Rename,
    /// The same with text, as `sed -i` does.
    Text,
    /// Overwritten where it is, in two parts.
    InPlace,
    /// Cut to nothing and written, by one handle.
    Rewrite,
    /// Changed through a mapping.
    Map,
    /// Unlinked, then made anew: for a while there is none.
    Remove,
    /// Cut by its path, which settles at once, then written: for a while it is no vector.
    Cut,
}

const WAYS: [Way; 8] =
    [Way::Copy, Way::Rename, Way::Text, Way::InPlace, Way::Rewrite, Way::Map, Way::Remove, Way::Cut];

impl Way {
    /// Whether a search finds the file at every moment.
    fn is_always_found(self) -> bool {
        !matches!(self, Way::Remove | Way::Cut)
    }

    /// Whether its name leads to a whole version at every moment.
    fn is_always_whole(self) -> bool {
        matches!(self, Way::Rename | Way::Text)
    }
}

/// A file that changes.
struct Changing {
    number: u64,
    way: Way,
    /// The newest version whose writing has begun, and the newest that is written.
    begun: AtomicU64,
    done: AtomicU64,
}

impl Changing {
    fn name(&self) -> String {
        let suffix = if self.way == Way::Text { "vec" } else { "f32" };
        format!("{}{:?}.{suffix}", self.number, self.way)
    }

    fn vector(&self, version: u64) -> Vec<f32> {
        Random(self.number << 40 | version).vector(DIM)
    }

    fn bytes(&self, version: u64) -> Vec<u8> {
        match self.way {
            Way::Text => (as_text(&self.vector(version)) + "\n").into_bytes(),
            _ => f32_bytes(&self.vector(version)),
        }
    }

    /// The versions that may be seen by whoever began to look at `since` and has just ended.
    fn possible(&self, since: u64) -> impl Iterator<Item = u64> + use<> {
        since..=self.begun.load(Ordering::SeqCst)
    }

    fn write(&self, mount: &Mount, version: u64) {
        let path = mount.path("docs").join(self.name());
        let bytes = self.bytes(version);
        self.begun.store(version, Ordering::SeqCst);
        let beside = mount.path("docs").join(format!(".{}.tmp", self.name()));
        match self.way {
            Way::Copy => fs::write(&path, bytes).unwrap(),
            Way::Rename | Way::Text => {
                fs::write(&beside, bytes).unwrap();
                fs::rename(&beside, &path).unwrap();
            }
            Way::InPlace if version > 1 => {
                let file = File::options().write(true).open(&path).unwrap();
                let (first, second) = bytes.split_at(20);
                file.write_all_at(second, 20).unwrap();
                file.write_all_at(first, 0).unwrap();
            }
            Way::Map if version > 1 => {
                let file = File::options().read(true).write(true).open(&path).unwrap();
                let mut map = map_shared(&file);
                map.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
                map.flush().unwrap();
                drop(map);
            }
            Way::Rewrite if version > 1 => {
                let mut file = File::options().write(true).open(&path).unwrap();
                file.set_len(0).unwrap();
                for part in bytes.chunks(24) {
                    file.write_all(part).unwrap();
                }
                assert_eq!(file.stream_position().unwrap(), 64);
            }
            Way::Remove if version > 1 => {
                fs::remove_file(&path).unwrap();
                fs::write(&path, bytes).unwrap();
            }
            Way::Cut if version > 1 => {
                nix::unistd::truncate(&path, 7).unwrap();
                fs::write(&path, bytes).unwrap();
            }
            _ => fs::write(&path, bytes).unwrap(),
        }
        self.done.store(version, Ordering::SeqCst);
    }
}

#[expect(unsafe_code, reason = "a map is one of the ways")]
fn map_shared(file: &File) -> MmapMut {
    // SAFETY: the file is on a mount of this test, and nobody truncates it while the map lives.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

fn as_text(vector: &[f32]) -> String {
    vector.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>().sqrt()
}

/// What all threads know.
struct Stage<'a> {
    mount: &'a Mount,
    still: Vec<Vec<f32>>,
    changing: Vec<Changing>,
    over: AtomicBool,
    searches: AtomicU64,
    reads: AtomicU64,
}

impl Stage<'_> {
    /// Runs `search` for the neighbours of `query`, and checks each of its hits. With `whole`, everything that must be
    /// there is asked for.
    fn search(&self, query: &[f32], whole: bool, search: impl FnOnce() -> Vec<(String, f64)>) {
        let since: Vec<u64> = self.changing.iter().map(|file| file.done.load(Ordering::SeqCst)).collect();
        let hits = search();
        let found: HashMap<&str, f64> =
            hits.iter().map(|(path, distance)| (path.as_str(), *distance)).collect();
        assert_eq!(found.len(), hits.len(), "a path came twice: {hits:?}");
        assert!(hits.windows(2).all(|pair| pair[0].1 <= pair[1].1), "not in order: {hits:?}");
        let near = |vector: &[f32], at: f64| (distance(query, vector) - at).abs() < 1e-4;
        let mut known = 0;
        for (file, &since) in self.changing.iter().zip(&since) {
            let name = file.name();
            let Some(&at) = found.get(name.as_str()) else {
                assert!(!(whole && file.way.is_always_found()), "{name} was not found after version {since}");
                continue;
            };
            known += 1;
            let versions: Vec<u64> = file.possible(since).collect();
            let fits = versions.iter().any(|&version| near(&file.vector(version), at));
            assert!(fits, "{name} at {at} is none of versions {versions:?}");
        }
        for (number, vector) in self.still.iter().enumerate() {
            match found.get(format!("s{number}.f32").as_str()) {
                Some(&at) => assert!(near(vector, at), "s{number}.f32 at {at}"),
                // `like` does not return the file itself.
                None => assert!(!whole || vector == query, "s{number}.f32 was not found"),
            }
            known += usize::from(found.contains_key(format!("s{number}.f32").as_str()));
        }
        assert_eq!(known, hits.len(), "something else came back: {hits:?}");
        self.searches.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks the transaction file, exactly and by the graph.
    fn ask(&self, random: &mut Random) {
        let query = random.vector(DIM);
        let answer = |request: Value| hits(&self.mount.ask_json("docs", &request));
        self.search(&query, true, || answer(json!({"vector": query, "k": ALL, "exact": true})));
        self.search(&query, false, || {
            let hits = answer(json!({"vector": query, "k": 20, "ef": 64}));
            assert_eq!(hits.len(), 20, "so many exist at every moment");
            hits
        });
    }

    /// Asks an attribute.
    fn attribute(&self, random: &mut Random) {
        let number = random.below(STILL as u64);
        let query = &self.still[usize::try_from(number).unwrap()];
        self.search(query, false, || {
            let lines = self.mount.attribute(&format!("docs/s{number}.f32"), "user.vexfs.similar.50");
            let parse = |line: &str| {
                let (distance, path) = line.split_once('\t').unwrap();
                (path.to_owned(), distance.parse().unwrap())
            };
            lines.lines().map(parse).collect()
        });
    }

    /// Enters a directory of results.
    fn directory(&self, random: &mut Random) {
        let number = random.below(STILL as u64);
        let query = &self.still[usize::try_from(number).unwrap()];
        let path = format!("docs/.vexfs/@exact,k={ALL}/similar/s{number}.f32/results.json");
        self.search(query, true, || hits(&self.mount.json(&path)));
    }

    /// Opens every file by its name.
    fn read(&self) {
        for file in &self.changing {
            let since = file.done.load(Ordering::SeqCst);
            let mut content = Vec::new();
            let opened = again_if_stale(|| File::open(self.mount.path("docs").join(file.name())));
            if file.way == Way::Remove && opened.is_err() {
                continue;
            }
            opened.unwrap().read_to_end(&mut content).unwrap();
            if file.way.is_always_whole() {
                let fits = file.possible(since).any(|version| file.bytes(version) == content);
                assert!(fits, "{} is none of its versions since {since}: {content:?}", file.name());
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Does something until the time is over, also when another thread has panicked.
    fn until_over(&self, mut work: impl FnMut()) {
        let end = EndAll(&self.over);
        while !self.over.load(Ordering::Relaxed) {
            work();
        }
        std::mem::forget(end);
    }
}

/// Ends all threads when one of them panics.
struct EndAll<'a>(&'a AtomicBool);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks up to three times where the name was replaced between two steps of the kernel, twice in one call.
fn again_if_stale<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..2 {
        match ask() {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => {}
            other => return other,
        }
    }
    ask()
}

fn hits(answer: &Value) -> Vec<(String, f64)> {
    let hits = answer["hits"].as_array().unwrap_or_else(|| panic!("no hits in {answer}"));
    let pair = |hit: &Value| (hit["path"].as_str().unwrap().to_owned(), hit["distance"].as_f64().unwrap());
    hits.iter().map(pair).collect()
}

#[test]
fn a_name_that_is_replaced_leads_to_a_whole_file_at_every_moment() {
    let mount = Mount::new();
    let (path, beside) = (mount.path("file"), mount.path("beside"));
    fs::write(&path, [0; 100]).unwrap();
    xattr::set(&path, "user.note", b"0").unwrap();
    let over = AtomicBool::new(false);
    let (mut replaced, mut seen) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _end = EndAll(&over);
            for number in 1..=2000u32 {
                fs::write(&beside, [number.to_le_bytes()[0]; 100]).unwrap();
                xattr::set(&beside, "user.note", &[b'0' + number.to_le_bytes()[0] % 10]).unwrap();
                fs::rename(&beside, &path).unwrap();
                replaced = number;
            }
        });
        while !over.load(Ordering::Relaxed) {
            let content = again_if_stale(|| fs::read(&path)).unwrap();
            assert!(content.len() == 100 && content.iter().all(|&byte| byte == content[0]));
            assert_eq!(again_if_stale(|| fs::metadata(&path)).unwrap().len(), 100);
            assert!(again_if_stale(|| xattr::get(&path, "user.note")).unwrap().is_some());
            seen += 1;
        }
        writer.join().unwrap();
    });
    println!("{seen} looks at {replaced} files");
}

#[test]
fn searches_beside_every_kind_of_writer_see_old_or_new_never_neither_never_a_part() {
    let seconds = std::env::var("STRESS_SECONDS").map_or(8, |seconds| seconds.parse().unwrap());
    let mut mount = Mount::new();
    mount.mkdir("docs");
    fs::write(
        mount.path("docs/.vexfs/config"),
        "[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n",
    )
    .unwrap();
    let mut random = Random(4);
    let still: Vec<_> = (0..STILL).map(|_| random.vector(DIM)).collect();
    for (number, vector) in still.iter().enumerate() {
        mount.put(&format!("docs/s{number}.f32"), vector);
    }
    let new = |(number, way): (u64, Way)| Changing { number, way, begun: 0.into(), done: 0.into() };
    let changing: Vec<_> = (1u64..).zip(WAYS.into_iter().chain(WAYS)).map(new).collect();
    changing.iter().for_each(|file| file.write(&mount, 1));
    mount.sync();
    let (over, searches, reads) = Default::default();
    let stage = Stage { mount: &mount, still, changing, over, searches, reads };
    std::thread::scope(|scope| {
        let stage = &stage;
        for half in stage.changing.chunks(4) {
            scope.spawn(move || {
                let mut version = 1;
                stage.until_over(|| {
                    version += 1;
                    half.iter().for_each(|file| file.write(stage.mount, version));
                });
            });
        }
        let searchers: [fn(&Stage<'_>, &mut Random); 3] = [
            |stage, random| stage.ask(random),
            |stage, random| stage.attribute(random),
            |stage, random| stage.directory(random),
        ];
        for (seed, search) in (100..).zip(searchers) {
            scope.spawn(move || {
                let mut random = Random(seed);
                stage.until_over(|| search(stage, &mut random));
            });
        }
        scope.spawn(|| stage.until_over(|| stage.read()));
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !stage.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stage.over.store(true, Ordering::Relaxed);
    });
    let versions: u64 = stage.changing.iter().map(|file| file.done.load(Ordering::SeqCst)).sum();
    let (searches, reads) = (stage.searches.load(Ordering::Relaxed), stage.reads.load(Ordering::Relaxed));
    println!("{versions} versions, {searches} searches, {reads} reads in {seconds} s");
    assert!(versions > 50 && searches > 50 && reads > 50);
    // Nobody writes any more: exactly the newest versions are there.
    let query = random.vector(DIM);
    stage.search(&query, true, || {
        let answer = mount.ask_json("docs", &json!({"vector": query, "k": ALL, "exact": true}));
        assert_eq!(answer["hits"].as_array().unwrap().len(), STILL + stage.changing.len());
        hits(&answer)
    });
    mount.sync();
    assert_eq!(mount.json("docs/.vexfs/verify.json")["sound"], true);
    assert_eq!(mount.json(".vexfs/health")["status"], "ok");
    drop(stage);
    mount.unmount();
    let checked = run(Command::new(VEXFS).arg("fsck").arg(mount.store()));
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
}
