//! What a disk may have kept when the power was cut: everything that was synced, and any part of the rest.
//!
//! - *Bytes*: every sector holds, whole, what it held at some moment since the file's last sync.
//! - *Sizes* of a file change in order, up to some point.
//! - *Names* change in order, as on a file system with a journal, up to some point that is not before the last
//!   change that a sync of its directory covers; or, scattered, each change that no sync covers is kept or lost on
//!   its own. A sync of a file does not cover its name.

use std::collections::BTreeMap;

use crate::image::{Event, Image, NodeId};
use crate::random::Random;

/// How the names of directories that were not synced survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Ordered,
    Scattered,
}

/// How much of what was not synced survives.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Nothing,
    Everything,
    /// So many of a hundred.
    Some(usize),
}

impl Luck {
    fn of(random: &mut Random) -> Self {
        match random.below(5) {
            0 => Luck::Nothing,
            1 => Luck::Everything,
            2 => Luck::Some(15),
            3 => Luck::Some(50),
            _ => Luck::Some(90),
        }
    }

    fn keeps(self, random: &mut Random) -> bool {
        match self {
            Luck::Nothing => false,
            Luck::Everything => true,
            Luck::Some(percent) => random.chance(percent),
        }
    }

    /// How many of `count` changes that survive in order do.
    fn prefix(self, count: usize, random: &mut Random) -> usize {
        match self {
            Luck::Nothing => 0,
            Luck::Everything => count,
            Luck::Some(_) => random.below(count + 1),
        }
    }
}

/// Which changes a sync covers: those of a node before the index, exclusive.
struct Covered {
    nodes: BTreeMap<NodeId, usize>,
    all: usize,
}

impl Covered {
    fn by(log: &[Event]) -> Self {
        let (mut nodes, mut all) = (BTreeMap::new(), 0);
        for (index, event) in log.iter().enumerate() {
            match event {
                Event::Sync { node } => {
                    nodes.insert(*node, index);
                }
                Event::SyncAll => all = index,
                _ => {}
            }
        }
        Self { nodes, all }
    }

    fn has(&self, node: NodeId, index: usize) -> bool {
        index < self.all || self.nodes.get(&node).is_some_and(|&synced| index < synced)
    }
}

/// What is on the disk when the power is cut after `log`, which began with `start` on it.
pub fn survivors(start: &Image, log: &[Event], names: Names, random: &mut Random) -> Image {
    let covered = Covered::by(log);
    let mut image = start.clone();
    keep_names(&mut image, log, &covered, names, random);
    let luck = Luck::of(random);
    let mut unsynced: BTreeMap<NodeId, Vec<&Event>> = BTreeMap::new();
    for (index, event) in log.iter().enumerate() {
        let (Event::Write { node, .. } | Event::Zero { node, .. } | Event::Resize { node, .. }) = event
        else {
            continue;
        };
        if covered.has(*node, index) {
            image.apply(event);
        } else {
            unsynced.entry(*node).or_default().push(event);
        }
    }
    for (node, events) in unsynced {
        keep_bytes(&mut image, node, &events, luck, random);
    }
    image
}

fn keep_names(image: &mut Image, log: &[Event], covered: &Covered, names: Names, random: &mut Random) {
    let is_covered = |index: usize, event: &Event| match event {
        Event::Make { at, .. } | Event::Link { at, .. } | Event::Unlink { at } => covered.has(at.dir, index),
        Event::Rename { from, to } | Event::Exchange { from, to } => {
            covered.has(from.dir, index) && covered.has(to.dir, index)
        }
        _ => false,
    };
    let changes: Vec<(usize, &Event)> = log
        .iter()
        .enumerate()
        .filter(|(_, event)| {
            matches!(
                event,
                Event::Make { .. }
                    | Event::Link { .. }
                    | Event::Unlink { .. }
                    | Event::Rename { .. }
                    | Event::Exchange { .. }
            )
        })
        .collect();
    let luck = Luck::of(random);
    let sure = changes.iter().rposition(|&(index, event)| is_covered(index, event)).map_or(0, |at| at + 1);
    let kept = sure + luck.prefix(changes.len() - sure, random);
    for (place, &(index, event)) in changes.iter().enumerate() {
        let survives = match names {
            Names::Ordered => place < kept,
            Names::Scattered => is_covered(index, event) || luck.keeps(random),
        };
        if survives {
            image.apply(event);
        }
    }
}

fn keep_bytes(image: &mut Image, node: NodeId, events: &[&Event], luck: Luck, random: &mut Random) {
    let sector = if random.chance(50) { 512 } else { 4096 };
    let sized = luck.prefix(events.len(), random);
    // What a sector holds is what it held at one moment: so many of the changes.
    let mut moments: BTreeMap<u64, usize> = BTreeMap::new();
    let mut keeps = |at: u64, place: usize, random: &mut Random| {
        let moment = moments.entry(at / sector).or_insert_with(|| match luck.keeps(random) {
            true => events.len(),
            false => luck.prefix(events.len(), random),
        });
        place < *moment
    };
    let file = image.file(node);
    for (place, event) in events.iter().enumerate() {
        match event {
            Event::Write { offset, data, .. } => {
                for (at, piece) in sectors(*offset, data.len() as u64, sector) {
                    if keeps(at, place, random) {
                        let from = (at - offset) as usize;
                        file.put(at, &data[from..from + piece as usize]);
                    }
                }
                if place < sized {
                    file.len = file.len.max(offset + data.len() as u64);
                }
            }
            Event::Zero { offset, len, .. } => {
                for (at, piece) in sectors(*offset, *len, sector) {
                    if keeps(at, place, random) {
                        file.zero(at, piece);
                    }
                }
            }
            Event::Resize { len, .. } if place < sized => file.resize(*len),
            _ => {}
        }
    }
    let len = file.len;
    file.clip(len);
}

/// The range in pieces that do not cross a sector's border.
fn sectors(offset: u64, len: u64, sector: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = ((at / sector + 1) * sector).min(end);
        let piece = (at, next - at);
        at = next;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Entry, Node, ROOT};

    fn write(node: NodeId, offset: u64, data: &[u8]) -> Event {
        Event::Write { node, offset, data: data.into() }
    }

    fn make(node: NodeId, name: &str) -> Event {
        Event::Make { node, is_dir: false, at: Entry { dir: ROOT, name: name.into() } }
    }

    fn len(image: &Image, node: NodeId) -> u64 {
        match &image.nodes[&node] {
            Node::File(bytes) => bytes.len,
            Node::Dir(_) => panic!("a directory"),
        }
    }

    #[test]
    fn what_was_synced_survives_and_nothing_else_has_to() {
        let log = [
            make(1, "a"),
            write(1, 0, b"kept"),
            Event::Sync { node: 1 },
            Event::Sync { node: ROOT },
            make(2, "b"),
            write(1, 4, b"lost"),
        ];
        let (mut lens, mut names) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for seed in 0..64 {
            let image = survivors(&Image::empty(), &log, Names::Ordered, &mut Random(seed));
            assert_eq!(image.child(&Entry { dir: ROOT, name: b"a".to_vec() }), Some(1));
            lens.insert(len(&image, 1));
            names.insert(image.child(&Entry { dir: ROOT, name: b"b".to_vec() }).is_some());
        }
        assert_eq!(lens, [4, 8].into());
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn names_survive_in_order_unless_they_are_scattered() {
        let log = [make(1, "a"), make(2, "b")];
        let mut seen = std::collections::BTreeSet::new();
        for (names, seed) in (0..64).flat_map(|seed| [(Names::Ordered, seed), (Names::Scattered, seed)]) {
            let image = survivors(&Image::empty(), &log, names, &mut Random(seed));
            let has = |name: &str| image.child(&Entry { dir: ROOT, name: name.into() }).is_some();
            assert!(names == Names::Scattered || has("a") || !has("b"));
            seen.insert((names == Names::Scattered, has("a"), has("b")));
        }
        assert_eq!(seen.len(), 3 + 4);
    }
}
