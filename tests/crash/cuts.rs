//! The power is cut at every sync, and at random moments between; the store is opened as it is.

use std::path::Path;

use vexfs::Error;
use vexfs::volume::SyncMode;
use vexfs::volume::check::{Repair, fsck};

use crate::check::check;
use crate::image::{Event, Image};
use crate::random::Random;
use crate::recorder::{Recording, Tape};
use crate::reference::History;
use crate::snapshots::drop_snapshots;
use crate::survivors::{Names, survivors};
use crate::workload::{Run, open};

/// Steps of one workload.
const STEPS: usize = 120;

/// Cuts of one workload.
const CUTS_OF_RUN: usize = 40;

/// A directory in memory, where the system has one: cuts are many.
pub fn temporary() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("vexfs-crash-").tempdir_in(place).unwrap()
}

/// Works on a new store.
fn record(mode: SyncMode, seed: u64, steps: usize, snapshots: bool) -> (Tape, History) {
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    let mut run = Run::new(store.path(), &recording, mode, seed).unwrap();
    run.snapshots = snapshots;
    run.restores = snapshots;
    run.passthrough = true;
    run.work(steps).unwrap();
    if seed.is_multiple_of(2) {
        run.end().unwrap();
    }
    let history = run.history.clone();
    drop(run);
    (recording.tape(), history)
}

/// Where to cut: mostly beside a sync.
fn place(tape: &Tape, random: &mut Random) -> usize {
    let syncs: Vec<usize> = tape
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| matches!(event, Event::Sync { .. } | Event::SyncAll))
        .map(|(index, _)| index)
        .collect();
    match random.below(4) {
        0 => random.below(tape.events.len() + 1),
        by => syncs[random.below(syncs.len())] + usize::from(by == 1),
    }
}

/// Whether `vexfs fsck` finds the catalog as sound as opening does. Bytes of a file that no sync covers may be damaged.
fn agrees(image: &Image) -> Result<(), String> {
    let store = temporary();
    image.write_to(store.path());
    match fsck(store.path(), Repair::No) {
        Ok(report) => match report.findings.iter().find(|finding| finding.file.starts_with("catalog")) {
            None => Ok(()),
            Some(finding) => Err(format!("fsck: {finding:?}")),
        },
        // The power went while the store was made.
        Err(Error::Store { .. }) => Ok(()),
        Err(error) => Err(format!("fsck: {error}")),
    }
}

/// Opens what is left, compares, closes, and opens again; at last without its snapshots. Each time `fsck` finds nothing,
/// unless a file says that it is damaged, and no space is taken that nobody names.
pub fn survive(image: &Image, history: &History, cut: usize) -> Result<(), String> {
    agrees(image)?;
    let store = temporary();
    image.write_to(store.path());
    for which in ["opened", "opened again", "opened without snapshots"] {
        let volume = open(store.path()).map_err(|error| format!("{which}: {error}"))?;
        let history = match which {
            "opened without snapshots" => {
                drop_snapshots(&volume).map_err(|error| format!("{which}: {error}"))?;
                &history.without_snapshots()
            }
            _ => history,
        };
        let found = check(&volume, history, cut).map_err(|why| format!("{which}: {why}"))?;
        volume.close().map_err(|error| format!("{which}, close: {error}"))?;
        drop(volume);
        let report = fsck(store.path(), Repair::No).map_err(|error| format!("{which}, fsck: {error}"))?;
        if !found.has_damage() && !report.findings.is_empty() {
            return Err(format!("{which}, fsck: {:?}", report.findings));
        }
    }
    Ok(())
}

/// A number from the environment, or `default`.
pub fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Cuts of each test.
fn cuts() -> usize {
    number("CRASH_CUTS", 200)
}

/// Records the work of a seed, with or without snapshots, changes the tape, cuts it `count` times, and returns what was
/// lost.
pub fn failures(
    seed: u64,
    snapshots: bool,
    names: Names,
    count: usize,
    mutate: &impl Fn(&mut Tape),
) -> Vec<String> {
    let recorded = record(SyncMode::Normal, seed, STEPS, snapshots);
    failures_of(recorded, seed, names, count, mutate)
}

/// The same of what was recorded.
fn failures_of(
    (mut tape, history): (Tape, History),
    seed: u64,
    names: Names,
    count: usize,
    mutate: &impl Fn(&mut Tape),
) -> Vec<String> {
    mutate(&mut tape);
    let cut_once = |number: usize| {
        let mut random = Random(seed << 32 | number as u64);
        let cut = place(&tape, &mut random);
        let image = survivors(&tape.start, &tape.events[..cut], names, &mut random);
        let why = survive(&image, &history, cut).err()?;
        Some(format!("seed {seed}, cut {number} after {cut} events, {names:?}: {why}"))
    };
    (0..count).filter_map(cut_once).collect()
}

fn cut_often(mode: SyncMode, first_seed: u64, names: Names, count: usize) {
    let runs = (first_seed..).zip((0..count).step_by(CUTS_OF_RUN));
    let lost: Vec<String> = runs
        .flat_map(|(seed, done)| {
            let recorded = record(mode, seed, STEPS, true);
            failures_of(recorded, seed, names, CUTS_OF_RUN.min(count - done), &|_| {})
        })
        .collect();
    println!(
        "{count} cuts, {mode:?}, seeds from {first_seed}, names {names:?}: {} lost something",
        lost.len()
    );
    assert!(lost.is_empty(), "{}", lost[..lost.len().min(8)].join("\n"));
}

#[test]
fn what_was_synced_survives_cuts_and_nothing_is_half_there() {
    cut_often(SyncMode::Normal, number("CRASH_SEED", 1), Names::Ordered, cuts());
}

#[test]
fn what_was_synced_survives_cuts_that_scatter_names() {
    cut_often(SyncMode::Normal, number("CRASH_SEED", 1_001), Names::Scattered, cuts());
}

#[test]
fn what_returned_survives_cuts_where_every_change_is_synced() {
    cut_often(SyncMode::Always, number("CRASH_SEED", 3_001), Names::Ordered, cuts());
}

#[test]
fn nothing_is_half_there_where_a_sync_is_not_waited_for() {
    cut_often(SyncMode::Off, number("CRASH_SEED", 4_001), Names::Ordered, cuts());
}

/// What these seeds do was lost once: a vector that was acknowledged while its file was open, when closing moved it to a
/// slot; and that a vector file had lost all of its unsynced bytes was known to `fsck` and to no reader.
#[test]
fn what_was_lost_once_is_there() {
    for (mode, seed) in [(SyncMode::Always, 2615), (SyncMode::Off, 2603)] {
        cut_often(mode, seed, Names::Ordered, CUTS_OF_RUN);
    }
}
