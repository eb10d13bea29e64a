//! Snapshots that clients took of a live mount: which there are after a cut or a death, and what each shows of its
//! client's directory, which is what it was between two calls, to the byte.

use std::collections::BTreeMap;
use std::fs;

use super::Random;
use super::check;
use super::load::Client;
use super::model::{Change, Tree};

/// A snapshot of one client, as its system calls made it.
struct Snapshot {
    shows: Tree,
    /// Its `mkdir` had returned.
    is_taken: bool,
    /// Its `rmdir` had begun.
    may_be_gone: bool,
    /// Its `rmdir` had returned.
    is_gone: bool,
}

/// Compares the snapshots of a client with what is found when the record had `cut` entries, `usize::MAX` after a
/// death. Returns those that are there, with what they show.
///
/// # Errors
///
/// What differs.
pub(super) fn agree(
    client: &Client,
    cut: usize,
    random: &mut Random,
) -> Result<BTreeMap<String, Tree>, String> {
    let mut wanted = of_calls(client, cut);
    let mut found = BTreeMap::new();
    let entries = fs::read_dir(client.snapshots_dir()).map_err(|error| format!("snapshots: {error}"))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("snapshots: {error}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(&format!("{}-", client.name())) {
            continue;
        }
        let snapshot = wanted.remove(&name).ok_or_else(|| format!("snapshot {name} was never taken"))?;
        if snapshot.is_gone {
            return Err(format!("snapshot {name} was dropped, and is there"));
        }
        let dir = entry.path().join(client.name());
        let of = |what: String| format!("snapshot {name}: {what}");
        let seen = check::capture(&dir).map_err(|error| of(error.to_string()))?;
        snapshot.shows.matches(&seen).map_err(of)?;
        check::searches_agree(&dir, &seen, random).map_err(of)?;
        found.insert(name, snapshot.shows);
    }
    match wanted.iter().find(|(_, snapshot)| snapshot.is_taken && !snapshot.may_be_gone) {
        Some((name, _)) => Err(format!("snapshot {name} is missing")),
        None => Ok(found),
    }
}

fn of_calls(client: &Client, cut: usize) -> BTreeMap<String, Snapshot> {
    let firm = |tree: &Tree| {
        let mut shows = tree.clone();
        shows.all_firm();
        shows
    };
    let before = client.snapshots.iter().map(|(name, tree)| {
        let shows = firm(tree);
        (name.clone(), Snapshot { shows, is_taken: true, may_be_gone: false, is_gone: false })
    });
    let mut snapshots: BTreeMap<_, _> = before.collect();
    let mut tree = client.start.clone();
    for step in client.steps.iter().take_while(|step| step.began < cut || step.has_ended(cut)) {
        match &step.change {
            Change::Take(name) => {
                let (shows, is_taken) = (firm(&tree), step.has_ended(cut));
                let snapshot = Snapshot { shows, is_taken, may_be_gone: false, is_gone: false };
                snapshots.insert(name.clone(), snapshot);
            }
            Change::Drop(name) => {
                let snapshot = snapshots.get_mut(name).expect("what is dropped was taken");
                (snapshot.may_be_gone, snapshot.is_gone) = (true, step.has_ended(cut));
            }
            change => tree.apply(change),
        }
    }
    snapshots
}
