//! Names that the kernel is asked to forget.
//!
//! The kernel says when it has forgotten a node, and forgets one only when the machine is short of memory, which may be
//! long after this process is short of what it may use. Whoever walks through the neighbours of a million files, or the
//! rows of one, would leave them all here. So now and then somebody counts, and when there are too many, the kernel is
//! told that the names it used least recently are no longer valid: it then forgets what nobody has open.

use std::sync::atomic::Ordering;

use super::{Control, Node, What};
use crate::namespace::Ino;
use crate::volume::Volume;

/// Nodes above which names are given up, until half of these are left.
const NODES: usize = 1 << 14;

/// The same for bytes: what nodes hold.
const BYTES: usize = 64 << 20;

/// Nodes that are made before somebody counts again.
const BETWEEN_COUNTS: u64 = 1 << 10;

/// What a node takes besides its content, and a hit of a set that was looked into; about.
const NODE_BYTES: usize = 512;
const HIT_BYTES: usize = 128;

impl Node {
    fn held_bytes(&self) -> usize {
        let content = match &self.what {
            What::Set(set) => set.hits() * HIT_BYTES,
            // It stays, whether or not the kernel knows it.
            What::Saved(_) => 0,
            what => usize::try_from(what.size()).unwrap_or(usize::MAX),
        };
        content.saturating_add(NODE_BYTES)
    }
}

impl Control {
    /// Whether it is time to count.
    fn is_crowded(&self) -> bool {
        self.newest() >= self.crowded_from.load(Ordering::Relaxed)
    }

    /// The names of the nodes that are too many: those looked up least recently, with their parents.
    fn surplus(&self) -> Vec<(Ino, Vec<u8>)> {
        self.crowded_from.store(self.newest() + BETWEEN_COUNTS, Ordering::Relaxed);
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut bytes = 0_usize;
        for node in &self.nodes {
            let held = node.held_bytes();
            bytes = bytes.saturating_add(held);
            nodes.push((node.used.load(Ordering::Relaxed), node.ino, held));
        }
        if nodes.len() <= NODES && bytes <= BYTES {
            return Vec::new();
        }
        nodes.sort_unstable();
        let (mut left, mut names) = (nodes.len(), Vec::new());
        for (_, ino, held) in nodes {
            if left <= NODES / 2 && bytes <= BYTES / 2 {
                break;
            }
            (left, bytes) = (left - 1, bytes.saturating_sub(held));
            if let Some((parent, name, ..)) = self.node(ino).ok().and_then(|node| node.identity.clone()) {
                names.push((parent, name));
            }
        }
        names
    }
}

impl Volume {
    /// Whether whoever can tell the kernel should ask for the [`surplus`](Self::surplus).
    pub fn is_crowded(&self) -> bool {
        self.control.is_crowded()
    }

    /// Names that the kernel should forget, each with its directory: those that were looked up least recently, when
    /// there are many. Whether it does is its own matter, and nothing depends on it.
    pub fn surplus(&self) -> Vec<(Ino, Vec<u8>)> {
        self.control.surplus()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Access;
    use super::*;
    use crate::namespace::Time;

    fn add(control: &Control, number: usize, bytes: usize) {
        let identity = (Ino::ROOT, number.to_string().into_bytes(), 0, 0);
        let root = Node::above(Ino::ROOT, Time::now());
        control.add(&root, What::Link(vec![b'x'; bytes]), Access::private(0, 0, 0), identity);
    }

    #[test]
    fn the_nodes_that_are_too_many_are_those_looked_up_least_recently() {
        let control = Control::default();
        (0..NODES).for_each(|number| add(&control, number, 1));
        assert!(control.is_crowded());
        assert!(control.surplus().is_empty());
        assert!(!control.is_crowded(), "it was just counted");
        (NODES..=NODES + 1024).for_each(|number| add(&control, number, 1));
        assert!(control.is_crowded());
        control.again(&(Ino::ROOT, b"5".to_vec(), 0, 0), |_| true).unwrap();
        let surplus = control.surplus();
        assert_eq!(surplus.len(), NODES / 2 + 1025);
        let is_old =
            |name: &[u8]| std::str::from_utf8(name).unwrap().parse::<usize>().unwrap() <= surplus.len();
        assert!(surplus.iter().all(|(parent, name)| *parent == Ino::ROOT && is_old(name)));
        assert!(!surplus.iter().any(|(_, name)| name == b"5"));
    }

    #[test]
    fn few_nodes_with_much_in_them_are_too_many() {
        let control = Control::default();
        (0..100).for_each(|number| add(&control, number, 1 << 20));
        assert_eq!(control.surplus().len(), 100 - 31);
    }
}
