//! Snapshots among the steps of a workload, and what must be in them after a cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use vexfs::Result;
use vexfs::namespace::Ino;
use vexfs::volume::{Views, Volume, restore_snapshot};

use crate::check::{Found, FoundNode, distance, floats, list, read_tree, rows};
use crate::reference::{History, Node, Shown, ShownNode, SnapshotStep, Step, Tree};
use crate::workload::{ROOT, Run, durable_all, is_vector, open, resolve, split};

/// Snapshots that there are at once, at most.
const AT_ONCE: usize = 3;

const DIR: &str = ".vexfs/snapshots";

impl Run<'_> {
    pub(crate) fn take_snapshot(&mut self) -> Result<()> {
        if !self.snapshots || self.history.present_snapshots().len() >= AT_ONCE {
            return Ok(());
        }
        let name = format!("s{}", self.history.snapshots.len());
        let shown = Some(Arc::new(self.history.shown()));
        let path = format!("{DIR}/{name}");
        self.snapshot_step(format!("take {name}"), name, shown, |volume| {
            let (dir, name) = split(volume, &path)?;
            volume.mkdir(&ROOT, dir, name, 0o755).map(|_| ())
        })
    }

    pub(crate) fn drop_snapshot(&mut self) -> Result<()> {
        let Some((name, _)) = self.some_snapshot() else { return Ok(()) };
        let path = format!("{DIR}/{name}");
        self.snapshot_step(format!("drop {name}"), name, None, |volume| {
            let (dir, name) = split(volume, &path)?;
            volume.rmdir(&ROOT, dir, name)
        })
    }

    fn some_snapshot(&mut self) -> Option<(String, Arc<Shown>)> {
        let mut present = self.history.present_snapshots();
        let place = (!present.is_empty()).then(|| self.random.below(present.len()))?;
        Some(present.swap_remove(place))
    }

    fn snapshot_step(
        &mut self,
        what: String,
        name: String,
        shown: Option<Arc<Shown>>,
        call: impl FnOnce(&Volume) -> Result<()>,
    ) -> Result<()> {
        let start = self.recording.position();
        let result = self.step(what, false, call, |_, _| {});
        let end = if result.is_ok() { self.recording.position() } else { usize::MAX };
        self.history.snapshots.push(SnapshotStep { name, shown, start, end });
        result
    }

    /// Closes the volume, brings the store back to a snapshot, and opens it again.
    pub(crate) fn restore_snapshot(&mut self) -> Result<()> {
        if !self.restores || !self.random.chance(40) {
            return Ok(());
        }
        let Some((name, shown)) = self.some_snapshot() else { return Ok(()) };
        self.end()?;
        let start = self.recording.position();
        drop(self.opened.take());
        restore_snapshot(&self.store, name.as_ref())?;
        let end = self.recording.position();
        let mut tree = Tree::default();
        for (path, node) in &shown.nodes {
            let node = match node {
                ShownNode::Dir => Node::Dir,
                ShownNode::File { file, content, attributes } => {
                    self.history.set_content(*file, content.to_vec());
                    if !attributes.is_empty() {
                        tree.attributes.insert(*file, attributes.clone());
                    }
                    Node::File(*file)
                }
            };
            tree.nodes.insert(path.clone(), node);
        }
        durable_all(&mut self.history, &mut tree);
        self.history.steps.push(Step { what: format!("restore {name}"), start, end, tree, persists: true });
        let volume = open(&self.store)?;
        volume.set_sync_mode(self.mode);
        self.opened = Some(volume);
        Ok(())
    }
}

/// Whether each snapshot is there as it was taken, or not at all where it may be gone.
pub fn check_snapshots(
    volume: &Arc<Volume>,
    history: &History,
    cut: usize,
) -> std::result::Result<(), String> {
    let views = Views::new(Arc::clone(volume));
    let say = |error: vexfs::Error| format!("snapshots: {error}");
    let dir = resolve(volume, DIR).map_err(say)?;
    let there: BTreeMap<String, Ino> =
        list(&views, dir).map_err(say)?.into_iter().map(|(name, ino, _)| (name, ino)).collect();
    let may = history.snapshots_after(cut);
    if let Some(stranger) = there.keys().find(|name| !may.contains_key(name.as_str())) {
        return Err(format!("{stranger}: a snapshot that nobody has taken"));
    }
    for (name, states) in may {
        match there.contains_key(name) {
            false if states.contains(&None) => {}
            false => return Err(format!("{name}: the snapshot is gone")),
            true => {
                let root = views.lookup(&ROOT, dir, name.as_bytes()).map_err(say)?.ino;
                let found = read_tree(&views, root).map_err(|why| format!("in {name}: {why}"))?;
                let mut wanted = states.iter().flatten();
                let differences: Vec<String> =
                    wanted.by_ref().filter_map(|shown| differs(&found, shown)).collect();
                if differences.len() == states.iter().flatten().count() {
                    return Err(format!("in {name}: {differences:?}"));
                }
                check_vectors(&views, &found).map_err(|why| format!("in {name}: {why}"))?;
            }
        }
    }
    Ok(())
}

/// How what was found differs from what a snapshot shows.
fn differs(found: &Found, shown: &Shown) -> Option<String> {
    let names = |nodes: Vec<&String>| nodes.into_iter().cloned().collect::<Vec<String>>();
    let (got, want) = (names(found.nodes.keys().collect()), names(shown.nodes.keys().collect()));
    if got != want {
        return Some(format!("names {got:?}, want {want:?}"));
    }
    shown.nodes.iter().find_map(|(path, node)| match (node, &found.nodes[path]) {
        (ShownNode::Dir, FoundNode::Dir) => None,
        (
            ShownNode::File { content, attributes, .. },
            FoundNode::File { content: got, attributes: named, .. },
        ) => match got {
            None => Some(format!("{path} is damaged")),
            Some(got) if got[..] != content[..] => {
                Some(format!("{path}: {} bytes, want others, {}", got.len(), content.len()))
            }
            Some(_) if named != attributes => Some(format!("{path}: other attributes")),
            Some(_) => None,
        },
        _ => Some(format!("{path}: another kind")),
    })
}

/// Whether each file of one vector and one name finds the nearest of the others in and below its directory. One with
/// several names is asked in the directory of any of them.
fn check_vectors(views: &Views, found: &Found) -> std::result::Result<(), String> {
    let mut vectors = BTreeMap::new();
    for (path, node) in &found.nodes {
        let FoundNode::File { ino, content: Some(content), links, .. } = node else { continue };
        if let Some(rows) = rows(path, content).filter(|_| is_vector(path)) {
            vectors.insert(path, (*ino, rows, *links));
        }
    }
    for (path, (ino, rows, links)) in &vectors {
        let Some((dir, _)) = path.rsplit_once('/').filter(|_| rows.len() == 1 && *links == 1) else {
            continue;
        };
        let own: Vec<f32> = floats(rows[0]).collect();
        let below = format!("{dir}/");
        let others = vectors.iter().filter(|(path, (other, ..))| path.starts_with(&below) && other != ino);
        let distances = others.flat_map(|(_, (_, rows, _))| rows).map(|row| distance(&own, row));
        let nearest = distances.min_by(f32::total_cmp);
        let similar = views.getxattr(&ROOT, *ino, b"user.vexfs.similar.1");
        let similar = similar.map_err(|error| format!("neighbours of {path}: {error}"))?;
        let similar = String::from_utf8_lossy(&similar).into_owned();
        let got = similar.split('\t').next().and_then(|distance| distance.parse::<f32>().ok());
        let is_right = match (got, nearest) {
            (Some(got), Some(nearest)) => (got - nearest).abs() < 1e-3,
            (got, nearest) => got.is_none() && nearest.is_none(),
        };
        if !is_right {
            return Err(format!("neighbours of {path}: {similar:?}, the nearest is at {nearest:?}"));
        }
    }
    Ok(())
}

/// Drops every snapshot there is.
pub fn drop_snapshots(volume: &Arc<Volume>) -> Result<()> {
    let views = Views::new(Arc::clone(volume));
    let dir = resolve(volume, DIR)?;
    for (name, _, _) in list(&views, dir)? {
        volume.rmdir(&ROOT, dir, name.as_bytes())?;
    }
    Ok(())
}
