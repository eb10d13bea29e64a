//! System calls of the store that fail, one at a time, under a script of operations.
//!
//! Each case lets the n-th call of a kind fail, once or from then on. Whatever fails: no panic; the caller gets an error
//! or success; after an error the volume is as before the call or as after it, or refuses changes and says why, which it
//! does not for want of room; what was acknowledged is there when the store is opened again, as it is and after a power
//! cut.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vexfs::Error;
use vexfs::namespace::Ino;
use vexfs::volume::SyncMode;

use crate::check::adopt;
use crate::cuts::{number, survive, temporary};
use crate::image::Image;
use crate::random::Random;
use crate::recorder::{Call, Failure, Fault, Recording, Tape};
use crate::reference::History;
use crate::survivors::{Names, survivors};
use crate::workload::{ROOT, Run, open};

/// Steps of a script.
const STEPS: usize = 40;

/// What may fail, and how.
const FAILURES: [(Call, Failure); 14] = [
    (Call::Write, Failure::Errno(libc::ENOSPC)),
    (Call::Write, Failure::Errno(libc::EIO)),
    (Call::Write, Failure::Short),
    (Call::Sync, Failure::Errno(libc::EIO)),
    (Call::Sync, Failure::Errno(libc::ENOSPC)),
    (Call::Allocate, Failure::Errno(libc::ENOSPC)),
    (Call::Allocate, Failure::Errno(libc::EIO)),
    (Call::Resize, Failure::Errno(libc::ENOSPC)),
    (Call::Resize, Failure::Errno(libc::EIO)),
    (Call::Open, Failure::Errno(libc::EMFILE)),
    (Call::Open, Failure::Errno(libc::ENOSPC)),
    (Call::Open, Failure::Errno(libc::EIO)),
    (Call::Names, Failure::Errno(libc::ENOSPC)),
    (Call::Names, Failure::Errno(libc::EIO)),
];

/// Where the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// While the script runs.
    Working,
    /// While the store that the script made is opened.
    Opening,
}

/// What became of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// No caller met the fault.
    Unnoticed,
    /// A call failed, or the open, and the next ones worked.
    WentOn,
    /// A call failed, and changes are refused until the store is opened again.
    ReadOnly,
}

/// How often each kind is called when nothing fails.
fn calls(when: When, seed: u64) -> Result<Vec<(Call, usize)>, String> {
    if when == When::Opening {
        let image = worked_on(seed)?.0;
        let store = temporary();
        image.write_to(store.path());
        let recording = Recording::start(store.path(), image);
        drop(open(store.path()).map_err(say("open"))?);
        return Ok(recording.counts().into_iter().collect());
    }
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    let mut run = Run::new(store.path(), &recording, SyncMode::Normal, seed).map_err(say("make"))?;
    recording.set_fault(None);
    run.work(STEPS).map_err(say("work"))?;
    Ok(recording.counts().into_iter().collect())
}

/// Whether the call fails as it does on a full disk.
fn is_full(fault: Fault) -> bool {
    // Nothing that is there is opened with this error.
    !matches!(fault.call, Call::Sync | Call::Open)
        && matches!(fault.failure, Failure::Errno(libc::ENOSPC) | Failure::Short)
}

fn say(what: &str) -> impl Fn(Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Works until the fault shows, looks at the volume, works on if it may, and opens what is left.
fn work_with(seed: u64, fault: Fault) -> Result<Outcome, String> {
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    let mut run = Run::new(store.path(), &recording, SyncMode::Normal, seed).map_err(say("make"))?;
    recording.set_fault(Some(fault));
    let failed = run.work(STEPS).err();
    let mut outcome = Outcome::Unnoticed;
    recording.set_fault(None);
    if let Some(error) = &failed {
        // With or without the step that failed, and with all before it.
        let was_sync = run.history.steps.last().is_some_and(|step| step.persists);
        let volume = Arc::clone(run.volume());
        adopt(&volume, &mut run.history, recording.position())
            .map_err(|why| format!("after {error}: {why}"))?;
        drop(volume);
        match run.volume().refusal() {
            None if fault.call == Call::Sync && was_sync => {
                return Err(format!("{error}, and changes go on"));
            }
            None => {
                // A file that the step has left open is searched as it was at its last close: by snapshots for ever.
                run.snapshots = false;
                run.work(STEPS / 2).map_err(|next| format!("going on after {error}: {next}"))?;
                outcome = Outcome::WentOn;
            }
            // A full disk is not the end: only a sync that failed is, whatever for.
            Some(reason) if is_full(fault) => return Err(format!("after a full disk: {reason}")),
            Some(reason) => {
                outcome = Outcome::ReadOnly;
                let sync = run.volume().sync();
                if !matches!(sync, Err(Error::Poisoned { .. })) {
                    return Err(format!("{reason}, and a sync is {sync:?}"));
                }
            }
        }
    }
    let history = run.history.clone();
    drop(run);
    let tape = recording.tape();
    let cut = tape.events.len();
    survive(&all_of(&tape), &history, cut).map_err(|why| format!("opened again: {why}"))?;
    let image = survivors(&tape.start, &tape.events, Names::Ordered, &mut Random(fault.nth as u64));
    survive(&image, &history, cut).map_err(|why| format!("after a power cut: {why}"))?;
    Ok(outcome)
}

/// Opens with a fault, then without.
fn open_with(seed: u64, fault: Fault) -> Result<Outcome, String> {
    let (image, history, cut) = worked_on(seed)?;
    let store = temporary();
    image.write_to(store.path());
    let recording = Recording::start(store.path(), image);
    recording.set_fault(Some(fault));
    // Open or not: with an error it must leave the store as it was.
    let outcome = if open(store.path()).is_ok() { Outcome::Unnoticed } else { Outcome::WentOn };
    recording.set_fault(None);
    survive(&all_of(&recording.tape()), &history, cut).map_err(|why| format!("opened again: {why}"))?;
    Ok(outcome)
}

/// A store that the script was run on, left as by a kill.
fn worked_on(seed: u64) -> Result<(Image, History, usize), String> {
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    let mut run = Run::new(store.path(), &recording, SyncMode::Normal, seed).map_err(say("make"))?;
    run.work(STEPS).map_err(say("work"))?;
    let tape = recording.tape();
    Ok((all_of(&tape), run.history.clone(), tape.events.len()))
}

/// What process death leaves: everything.
pub fn all_of(tape: &Tape) -> Image {
    let mut image = tape.start.clone();
    tape.events.iter().for_each(|event| image.apply(event));
    image
}

/// Tries some or all of the faults, and returns what became of the volumes.
fn sweep(when: When) -> BTreeMap<Outcome, usize> {
    let seed = number("CRASH_SEED", 5_001);
    let calls = calls(when, seed).unwrap();
    let mut cases = Vec::new();
    for (call, failure) in FAILURES {
        let count = calls.iter().find(|(other, _)| *other == call).map_or(0, |(_, count)| *count);
        for nth in 1..=count {
            cases.extend([false, true].map(|sticky| Fault { call, nth, sticky, failure }));
        }
    }
    let (all, wanted) = (cases.len(), number("CRASH_FAULTS", 120));
    let mut random = Random(seed);
    while cases.len() > wanted {
        cases.swap_remove(random.below(cases.len()));
    }
    let (mut outcomes, mut failures) = (BTreeMap::new(), Vec::new());
    for &fault in &cases {
        let done = catch_unwind(AssertUnwindSafe(|| match when {
            When::Working => work_with(seed, fault),
            When::Opening => open_with(seed, fault),
        }));
        match done.unwrap_or_else(|_| Err("a panic".into())) {
            Ok(outcome) => *outcomes.entry(outcome).or_default() += 1,
            Err(why) => failures.push(format!("{fault:?}: {why}")),
        }
    }
    println!(
        "{when:?}: {} of {all} faults, seed {seed}: {outcomes:?}, {} lost something",
        cases.len(),
        failures.len()
    );
    assert!(failures.is_empty(), "{}", failures[..failures.len().min(8)].join("\n"));
    outcomes
}

#[test]
fn a_call_that_fails_while_working_loses_nothing_that_was_acknowledged() {
    let outcomes = sweep(When::Working);
    // Both ways to fail are among those that are tried.
    assert!(
        outcomes.contains_key(&Outcome::WentOn) && outcomes.contains_key(&Outcome::ReadOnly),
        "{outcomes:?}"
    );
}

#[test]
fn a_call_that_fails_while_opening_loses_nothing() {
    let outcomes = sweep(When::Opening);
    assert!(outcomes.contains_key(&Outcome::WentOn), "{outcomes:?}");
}

/// Numbers of inodes are reserved in blocks of 1024, by commits of their own.
#[test]
fn files_are_made_again_after_a_disk_was_full_when_numbers_for_them_had_to_be_reserved() {
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    let run = Run::new(store.path(), &recording, SyncMode::Normal, 1).unwrap();
    let volume = run.volume();
    let make = |number: usize| {
        volume.mkdir(&ROOT, Ino::ROOT, format!("{number}").as_bytes(), 0o755).map(|attr| attr.ino.0)
    };
    let first = make(0).unwrap();
    let next = (1..).find(|&number| make(number).unwrap() >= first + 1000).unwrap() + 1;
    recording.set_fault(Some(Fault {
        call: Call::Write,
        nth: 1,
        sticky: true,
        failure: Failure::Errno(libc::ENOSPC),
    }));
    for number in next..next + 40 {
        let refused = make(number).unwrap_err();
        assert!(matches!(refused, Error::NoSpace), "{refused}");
    }
    recording.set_fault(None);
    assert_eq!(volume.refusal(), None);
    assert!(make(next).unwrap() > first + 1024);
}
