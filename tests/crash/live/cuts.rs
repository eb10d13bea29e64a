//! The power goes at random moments of a load; what comes up again is compared with what was promised.

use std::fs;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::check;
use super::device::{Disk, Record};
use super::load::{Client, Clock, Load};
use super::machine::{Below, FILESYSTEMS, Machine};
use super::model::{Kept, allow_after_cut};
use super::{Random, asked, seed, snapshots};

/// What is wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mischief {
    None,
    /// The load says that it synced, and did not.
    ClientPretends,
    /// The disk says that it flushed, and did not.
    DiskLies,
}

/// What a series of cuts showed.
#[derive(Debug, Default)]
struct Outcome {
    cuts: usize,
    failed: Vec<String>,
    kept: Kept,
}

/// Records a load of a few seconds, then cuts the power at `cuts` moments of it.
fn cut_the_power(below: &Below, cuts: usize, seed: u64, mischief: Mischief) -> Outcome {
    let machine = Machine::new();
    let (mut load, record) = record_a_load(&machine, below, seed, mischief);
    let mut outcome = Outcome::default();
    let mut random = Random(seed ^ 0xc075);
    for number in 0..cuts {
        let at = 1 + random.below(record.len());
        let medium = record.after_cut(at, &mut random);
        let disk = machine.insert(&format!("cut-{number}"), below, medium);
        outcome.cuts += 1;
        match survives(&machine, below, &format!("cut-{number}"), &disk, at, load.clients(), &mut random) {
            Ok(kept) => {
                outcome.kept.synced_bytes += kept.synced_bytes;
                outcome.kept.damaged += kept.damaged;
                outcome.kept.snapshots += kept.snapshots;
            }
            Err(what) => {
                outcome.failed.push(format!("cut {number} at entry {at} of {}: {what}", record.len()))
            }
        }
        disk.empty();
    }
    outcome
}

fn record_a_load(machine: &Machine, below: &Below, seed: u64, mischief: Mischief) -> (Load, Record) {
    let disk = machine.format("disk", below);
    let mounted = machine.mount_below("disk", below).unwrap_or_else(|error| panic!("{error}"));
    let mut daemon = machine.start().unwrap_or_else(|error| panic!("{error}"));
    let clock: Clock = {
        let disk = Arc::clone(&disk);
        Arc::new(move || disk.position())
    };
    let mut load = Load::new(&machine.root(), 3, seed, &clock).unwrap();
    for client in load.clients() {
        client.pretends_to_sync = mischief == Mischief::ClientPretends;
    }
    disk.watch();
    disk.faults.lies.store(mischief == Mischief::DiskLies, Ordering::SeqCst);
    let whole = Duration::from_secs(asked("CRASH_LOAD_SECONDS", 4) as u64);
    // Who waits for no disk fills it in a few seconds.
    let time = if mischief == Mischief::ClientPretends { whole / 8 } else { whole };
    let ended = load.run(&machine.root(), || std::thread::sleep(time));
    let record = disk.take_record();
    if let Some(error) = ended.into_iter().find_map(io::Result::err) {
        panic!("a call of the load failed: {error}\n{}", machine.said());
    }
    daemon.kill();
    drop(daemon);
    mounted.unmount();
    disk.empty();
    (load, record)
}

/// Brings up what a cut left, sometimes after another cut in the middle of that.
fn survives(
    machine: &Machine,
    below: &Below,
    name: &str,
    disk: &Arc<Disk>,
    cut: usize,
    clients: &[Client],
    random: &mut Random,
) -> Result<Kept, String> {
    if !random.one_in(4) {
        return come_up(machine, below, name, cut, clients, random);
    }
    disk.watch();
    let first = come_up(machine, below, name, cut, clients, random)?;
    let record = disk.take_record();
    if record.len() == 0 {
        return Ok(first);
    }
    let at = 1 + random.below(record.len());
    let again = machine.insert(&format!("{name}-again"), below, record.after_cut(at, random));
    let kept = come_up(machine, below, &format!("{name}-again"), cut, clients, random)
        .map_err(|what| format!("and again at entry {at} of {}: {what}", record.len()));
    again.empty();
    kept
}

fn come_up(
    machine: &Machine,
    below: &Below,
    name: &str,
    cut: usize,
    clients: &[Client],
    random: &mut Random,
) -> Result<Kept, String> {
    let mounted = machine.mount_below(name, below)?;
    let daemon = machine.start()?;
    let mut kept = Kept::default();
    for client in clients {
        let dir = client.dir();
        let at = dir.display();
        let seen = check::capture(&dir).map_err(|error| format!("{at}: {error}"))?;
        let of_client = allow_after_cut(&client.start, &client.steps, cut, &seen)
            .map_err(|what| format!("{at}: {what}"))?;
        check::searches_agree(&dir, &seen, random).map_err(|what| format!("{at}: {what}"))?;
        kept.snapshots +=
            snapshots::agree(client, cut, random).map_err(|what| format!("{at}: {what}"))?.len();
        kept.synced_bytes += of_client.synced_bytes;
        kept.damaged += of_client.damaged;
    }
    daemon.unmount()?;
    if kept.damaged == 0 {
        machine.checks_store()?;
    }
    mounted.unmount();
    Ok(kept)
}

fn nothing_is_lost(below: &Below) {
    if !below.is_installed() {
        // Only xfs can be missing, and two kinds of ext4 are tried in any case.
        println!("power cuts on {}: its mkfs is not installed", below.name);
        return;
    }
    let (cuts, seed) = (asked("CRASH_CUTS", 24).div_ceil(FILESYSTEMS.len()), seed());
    println!("power cuts on {}: CRASH_SEED={seed}", below.name);
    let outcome = cut_the_power(below, cuts, seed, Mischief::None);
    println!(
        "power cuts on {}: {} cuts, {} bytes that had been synced and {} snapshots are there, {} unsynced files say \
         that they are damaged, {} failed",
        below.name,
        outcome.cuts,
        outcome.kept.synced_bytes,
        outcome.kept.snapshots,
        outcome.kept.damaged,
        outcome.failed.len()
    );
    assert!(outcome.failed.is_empty(), "CRASH_SEED={seed}:\n{}", outcome.failed.join("\n"));
    assert!(outcome.kept.synced_bytes > 0, "the load synced nothing");
}

#[test]
fn a_power_cut_on_ext4_loses_nothing_that_was_synced() {
    nothing_is_lost(&FILESYSTEMS[0]);
}

#[test]
fn a_power_cut_on_ext4_that_forgives_nothing_loses_nothing_that_was_synced() {
    nothing_is_lost(&FILESYSTEMS[1]);
}

#[test]
fn a_power_cut_on_xfs_loses_nothing_that_was_synced() {
    nothing_is_lost(&FILESYSTEMS[2]);
}

/// A file that outgrows the catalog gets a blob. What was synced before is in it, also when the change itself was not
/// synced and came to the disk with somebody else's sync.
#[test]
fn content_that_was_synced_survives_its_move_to_a_blob() {
    let machine = Machine::new();
    let below = &FILESYSTEMS[1];
    let disk = machine.format("disk", below);
    let mounted = machine.mount_below("disk", below).unwrap();
    let mut daemon = machine.start().unwrap();
    disk.watch();
    let log = machine.root().join("log");
    fs::write(&log, [b'a'; 10_000]).unwrap();
    fs::File::open(&log).unwrap().sync_all().unwrap();
    let promised = disk.position();
    fs::File::options().append(true).open(&log).unwrap().write_all(&[b'b'; 10_000]).unwrap();
    fs::write(machine.root().join("other"), "x").unwrap();
    fs::File::open(machine.root().join("other")).unwrap().sync_all().unwrap();
    let record = disk.take_record();
    daemon.kill();
    mounted.unmount();
    let mut random = Random(7);
    for round in 0..4 {
        let cut =
            if round == 0 { record.len() } else { promised + random.below(record.len() - promised + 1) };
        let name = format!("cut-{round}");
        machine.insert(&name, below, record.after_cut(cut, &mut random));
        let mounted = machine.mount_below(&name, below).unwrap();
        let daemon = machine.start().unwrap();
        let bytes = fs::read(&log).unwrap();
        assert!(
            bytes.starts_with(&[b'a'; 10_000]),
            "cut at {cut} of {}: {} bytes",
            record.len(),
            bytes.len()
        );
        daemon.unmount().unwrap();
        mounted.unmount();
    }
}

/// Without these two, no failure above would mean much.
fn is_caught(mischief: Mischief) {
    let seed = seed();
    let outcome = cut_the_power(&FILESYSTEMS[1], 8, seed, mischief);
    let caught = outcome.failed.len();
    println!("{mischief:?}: {caught} of {} cuts caught, CRASH_SEED={seed}", outcome.cuts);
    assert!(caught * 2 >= outcome.cuts, "CRASH_SEED={seed}: {caught} of {} cuts caught", outcome.cuts);
}

#[test]
fn a_load_that_pretends_to_sync_is_caught() {
    is_caught(Mischief::ClientPretends);
}

#[test]
fn a_disk_that_lies_about_flushes_is_caught() {
    is_caught(Mischief::DiskLies);
}
