//! Bugs that are put into the tape: a harness that does not catch them would not catch ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::cuts::failures;
use crate::image::{Event, NodeId};
use crate::recorder::Tape;
use crate::survivors::Names;

/// Cuts within which a bug must be caught.
const CUTS: usize = 400;

/// The paths that nodes were made under.
fn paths(tape: &Tape) -> BTreeMap<NodeId, String> {
    let mut paths: BTreeMap<NodeId, String> = BTreeMap::new();
    for event in &tape.events {
        if let Event::Make { node, at, .. } = event {
            let dir = paths.get(&at.dir).map_or("", String::as_str);
            paths.insert(*node, format!("{dir}/{}", String::from_utf8_lossy(&at.name)));
        }
    }
    paths
}

/// Takes the syncs of nodes out whose path `is_skipped`. What a sync covers is nothing then; its place stays, so that
/// the history's places do.
fn skip(tape: &mut Tape, is_skipped: impl Fn(&str) -> bool) {
    let paths = paths(tape);
    for event in &mut tape.events {
        if let Event::Sync { node } = event
            && is_skipped(paths.get(node).map_or("", String::as_str))
        {
            *node = NodeId::MAX;
        }
    }
}

fn is_caught(what: &str, mutate: impl Fn(&mut Tape)) {
    // A snapshot syncs everything, which would hide what is left out.
    is_caught_with(false, Names::Ordered, what, mutate);
}

fn is_caught_with(snapshots: bool, names: Names, what: &str, mutate: impl Fn(&mut Tape)) {
    let mut tried = 0;
    let caught = (2_001..).take(CUTS / 20).find_map(|seed| {
        tried += 20;
        failures(seed, snapshots, names, 20, &mutate).into_iter().next()
    });
    let caught = caught.unwrap_or_else(|| panic!("{what}: not caught in {tried} cuts"));
    println!("{what}: caught within {tried} cuts: {}", caught.lines().next().unwrap_or_default());
}

#[test]
fn a_skipped_sync_of_slots_is_caught() {
    is_caught("no sync of segments", |tape| skip(tape, |path| path.starts_with("/segments/")));
}

#[test]
fn a_skipped_sync_of_the_journal_is_caught() {
    is_caught("no sync of the journal", |tape| skip(tape, |path| path.ends_with(".jnl")));
}

#[test]
fn a_skipped_sync_of_blobs_is_caught() {
    is_caught("no sync of blobs", |tape| skip(tape, |path| path.ends_with(".blob")));
}

#[test]
fn a_skipped_sync_of_the_directories_of_blobs_is_caught() {
    let is_dir = |path: &str| path.starts_with("/blobs/") && !path.ends_with(".blob");
    is_caught("no sync of the directories of blobs", |tape| skip(tape, is_dir));
}

#[test]
fn checksums_that_go_without_a_sync_are_caught() {
    // Where names that come later are kept before earlier ones, it is seen as well that this one is not.
    is_caught_with(false, Names::Scattered, "no sync after the checksums of a blob are removed", |tape| {
        let mut waking = false;
        for event in &mut tape.events {
            match event {
                Event::Unlink { at } => waking = at.name.ends_with(b".sums"),
                Event::Sync { node } if waking => {
                    *node = NodeId::MAX;
                    waking = false;
                }
                _ => {}
            }
        }
    });
}

#[test]
fn checksums_that_come_before_the_bytes_are_synced_are_caught() {
    is_caught("a blob is synced after its checksums", |tape| {
        let paths = paths(tape);
        let is_blob = |node: &NodeId| paths.get(node).is_some_and(|path| path.ends_with(".blob"));
        let mut resting = false;
        for event in tape.events.iter_mut().rev() {
            match event {
                Event::Rename { to, .. } => resting |= to.name.ends_with(b".sums"),
                Event::Sync { node } if resting && is_blob(node) => {
                    *node = NodeId::MAX;
                    resting = false;
                }
                _ => {}
            }
        }
    });
}

#[test]
fn a_skipped_sync_of_snapshots_is_caught() {
    is_caught_with(true, Names::Ordered, "no sync of what is below snapshots/", |tape| {
        skip(tape, |path| path.starts_with("/snapshots"))
    });
}

#[test]
fn slots_that_are_synced_one_commit_late_are_caught() {
    is_caught("slots are synced with the commit after theirs", |tape| {
        let paths = paths(tape);
        let mut late = BTreeSet::new();
        for event in &mut tape.events {
            // The next sync of a segment makes what was written before this one durable too.
            if let Event::Sync { node } = event
                && paths.get(node).is_some_and(|path| path.ends_with(".seg"))
                && !late.remove(node)
            {
                late.insert(*node);
                *node = NodeId::MAX;
            }
        }
    });
}
