//! The sweep over files and places.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use vexfs::Error;
use vexfs::namespace::Ino;
use vexfs::volume::check::{Repair, fsck};

use crate::store::{Random, Sound, find, is_damage, open, read, similar, walk};

/// How long one case may take: much longer than it does, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// What is done to a file.
#[derive(Clone, Debug)]
enum Damage {
    Truncated(u64),
    Flipped { at: u64, bit: u8 },
    Zeroed { at: u64, len: u64 },
    Swapped { one: u64, other: u64 },
    Removed,
}

impl Damage {
    fn apply(&self, path: &Path) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let sector = |at: u64| {
            let mut bytes = [0; 512];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        match *self {
            Damage::Truncated(len) => file.set_len(len).unwrap(),
            Damage::Flipped { at, bit } => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            }
            Damage::Zeroed { at, len } => file.write_all_at(&vec![0; len as usize], at).unwrap(),
            Damage::Swapped { one, other } => {
                let (first, second) = (sector(one), sector(other));
                file.write_all_at(&second, one).unwrap();
                file.write_all_at(&first, other).unwrap();
            }
            Damage::Removed => fs::remove_file(path).unwrap(),
        }
    }
}

/// Damage of each kind for a file of `len` bytes, `count` of each kind at random places.
fn damages(len: u64, count: u64, random: &mut Random) -> Vec<Damage> {
    let mut damages = vec![Damage::Removed, Damage::Truncated(0)];
    if len == 0 {
        return damages;
    }
    damages.extend([Damage::Truncated(1.min(len - 1)), Damage::Truncated(len - 1)]);
    for _ in 0..count {
        damages.push(Damage::Truncated(random.below(len)));
        damages.push(Damage::Flipped { at: random.below(len), bit: random.below(8) as u8 });
        let at = random.below(len) & !511;
        damages.push(Damage::Zeroed { at, len: 512.min(len - at) });
        if len >= 1024 {
            let sectors = len / 512;
            damages.push(Damage::Swapped {
                one: random.below(sectors) * 512,
                other: random.below(sectors) * 512,
            });
        }
    }
    damages
}

/// What a damaged store came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Everything was there and right.
    Right,
    /// Some of it was an error; the rest was right.
    PartlyRefused,
    /// The store was not opened.
    Refused,
}

/// Opens a damaged store and looks at everything in it.
fn look(sound: &Sound, store: &Path) -> Result<Outcome, String> {
    let volume = match open(store) {
        Ok(volume) => volume,
        Err(Error::Corrupt { .. } | Error::Version { .. } | Error::Store { .. } | Error::Catalog(_)) => {
            return Ok(Outcome::Refused);
        }
        Err(error) => return Err(format!("opening: {error:?}")),
    };
    let mut refused = 0;
    for (path, wanted) in &sound.files {
        match read(&volume, path) {
            Ok(bytes) if bytes == *wanted => {}
            Ok(bytes) => return Err(format!("{path}: {} wrong bytes", bytes.len())),
            Err(error) if is_damage(&error) => refused += 1,
            Err(error) => return Err(format!("{path}: {error:?}")),
        }
    }
    if refused == 0 {
        for (path, wanted) in &sound.neighbours {
            match similar(&volume, path) {
                Ok(lines) if lines == *wanted => {}
                Ok(lines) => {
                    return Err(format!("{path}: neighbours {}", String::from_utf8_lossy(&lines)));
                }
                Err(error) if is_damage(&error) => refused += 1,
                Err(error) => return Err(format!("neighbours of {path}: {error:?}")),
            }
        }
    } else {
        for path in sound.neighbours.keys() {
            match similar(&volume, path) {
                Ok(lines) => compare_lines(sound, path, &lines)?,
                Err(Error::NoAttribute) => {}
                Err(error) if is_damage(&error) => {}
                Err(error) => return Err(format!("neighbours of {path}: {error:?}")),
            }
        }
    }
    // A volume that met damage may refuse to close; that is no harm.
    let _ = volume.close();
    Ok(if refused == 0 { Outcome::Right } else { Outcome::PartlyRefused })
}

/// Whether no neighbour is nearer than the nearest is, nor a distance one that was not measured. Where a damaged
/// vector was left out, others move up.
fn compare_lines(sound: &Sound, path: &str, lines: &[u8]) -> Result<(), String> {
    let first = |lines: &[u8]| -> f64 {
        let text = String::from_utf8_lossy(lines).into_owned();
        text.split('\t').next().and_then(|distance| distance.parse().ok()).unwrap_or(f64::MAX)
    };
    match first(lines) >= first(&sound.neighbours[path]) {
        true => Ok(()),
        false => Err(format!("{path}: neighbours {}", String::from_utf8_lossy(lines))),
    }
}

/// Repairs a damaged store and looks at what is left. A catalog whose journal is damaged is taken as it was before the
/// commits that are gone: a file may be as it was while it was being written.
fn repair(sound: &Sound, store: &Path, was: Outcome, is_journal: bool) -> Result<(), String> {
    match fsck(store, Repair::No) {
        Ok(report) if was == Outcome::PartlyRefused && report.is_sound() => {
            return Err("files were refused, and a check finds nothing".into());
        }
        Ok(_) | Err(Error::Version { .. } | Error::Store { .. }) => {}
        Err(error) => return Err(format!("check: {error:?}")),
    }
    match fsck(store, Repair::Yes) {
        Ok(report) if report.is_sound() => {}
        // It says so, and has changed nothing that was right.
        Ok(_) | Err(Error::Version { .. } | Error::Store { .. }) => return Ok(()),
        Err(error) => return Err(format!("repair: {error:?}")),
    }
    let again = fsck(store, Repair::Yes).map_err(|error| format!("second repair: {error:?}"))?;
    if !again.is_sound() || again.repaired() > 0 {
        return Err(format!("a second repair finds {again:#?}"));
    }
    let volume = open(store).map_err(|error| format!("opening what was repaired: {error:?}"))?;
    let mut names = Vec::new();
    walk(&volume, Ino::ROOT, "", &mut names).map_err(|error| format!("listing: {error:?}"))?;
    for path in names.iter().filter(|path| !path.starts_with("lost+found/")) {
        let bytes = read(&volume, path).map_err(|error| format!("{path} after the repair: {error:?}"))?;
        let wanted = sound.files.get(path).ok_or(format!("{path} is new"))?;
        if bytes != *wanted && !(is_journal && wanted.starts_with(&bytes)) {
            return Err(format!("{path}: {} wrong bytes after the repair", bytes.len()));
        }
    }
    find(&volume, "docs").or_else(|error| match error {
        Error::NotFound => Ok(Ino::ROOT),
        error => Err(format!("docs: {error:?}")),
    })?;
    volume.close().map_err(|error| format!("closing: {error:?}"))
}

/// One case, in a thread of its own, so that a hang is seen.
fn run(sound: &Sound, name: &Path, damage: &Damage) -> Result<Outcome, String> {
    let copy = sound.copy();
    damage.apply(&copy.path().join(name));
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        scope.spawn(move || {
            let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let outcome = look(sound, copy.path())?;
                repair(sound, copy.path(), outcome, name.extension().is_some_and(|end| end == "jnl"))?;
                Ok(outcome)
            }));
            let _ = sender.send(looked.unwrap_or_else(|_| Err("panic".into())));
        });
        match receiver.recv_timeout(DEADLINE) {
            Ok(outcome) => outcome,
            Err(_) => {
                eprintln!("{}: {damage:?}: a hang", name.display());
                std::process::abort();
            }
        }
    })
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Sweeps over the files that `wanted` picks: as many cases as the settings say, of all that there are.
fn sweep(sound: &Sound, wanted: impl Fn(&Path) -> bool) {
    let (limit, seed) = (setting("VEXFS_DAMAGE_CASES", 24), setting("VEXFS_SEED", 7));
    let names: Vec<PathBuf> = sound.names().into_iter().filter(|name| wanted(name)).collect();
    assert!(!names.is_empty(), "the store has such files: {:?}", sound.names());
    let mut random = Random(seed);
    let mut cases: Vec<(u64, &PathBuf, Damage)> = Vec::new();
    for name in &names {
        let bytes = fs::read(sound.dir.path().join(name)).unwrap();
        let damages = damages(bytes.len() as u64, 1 + limit / 24, &mut random);
        cases.extend(damages.into_iter().map(|damage| (random.next(), name, damage)));
    }
    cases.sort_by_key(|(order, ..)| *order);
    cases.truncate(limit as usize);
    let mut failures = Vec::new();
    let mut outcomes = Vec::new();
    for (_, name, damage) in cases {
        match run(sound, name, &damage) {
            Ok(outcome) => outcomes.push(outcome),
            Err(why) => failures.push(format!("{}: {damage:?}: {why}", name.display())),
        }
    }
    let count = |wanted| outcomes.iter().filter(|&&outcome| outcome == wanted).count();
    println!(
        "{} files, {} cases (seed {seed}): {} right, {} with errors for what is damaged, {} refused as a whole",
        names.len(),
        outcomes.len() + failures.len(),
        count(Outcome::Right),
        count(Outcome::PartlyRefused),
        count(Outcome::Refused)
    );
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn damage_in_the_catalog_is_never_served() {
    sweep(&Sound::new(), |name| name.starts_with("catalog"));
}

/// After a kill nothing says what the catalog's files were, but what they say themselves.
#[test]
fn damage_in_the_catalog_of_a_store_that_was_killed_is_never_served() {
    let sound = Sound::killed();
    sweep(&sound, |name| {
        name.starts_with("catalog/keyspaces") && !name.components().any(|part| part.as_os_str() == "tables")
    });
    sweep(&sound, |name| name.starts_with("catalog"));
}

#[test]
fn damage_in_segments_and_blobs_is_never_served() {
    sweep(&Sound::new(), |name| name.starts_with("segments") || name.starts_with("blobs"));
}

#[test]
fn damage_in_graphs_and_in_the_files_of_the_store_itself_is_never_served() {
    sweep(&Sound::new(), |name| !["catalog", "segments", "blobs"].iter().any(|dir| name.starts_with(dir)));
}
