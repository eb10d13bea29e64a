//! Whether a volume holds what a [`History`] says it must.

use std::collections::BTreeMap;
use std::sync::Arc;

use vexfs::Error;
use vexfs::namespace::{Ino, Kind};
use vexfs::search::{Options, Request, Target};
use vexfs::volume::{OpenFlags, Views, Volume};

use crate::reference::{History, Node, Step};
use crate::snapshots::check_snapshots;
use crate::workload::{DIM, ROOT, is_vector};

/// What was found in a volume.
#[derive(Debug, Default)]
pub struct Found {
    pub nodes: BTreeMap<String, FoundNode>,
}

#[derive(Debug)]
pub enum FoundNode {
    Dir,
    File { ino: Ino, content: Option<Vec<u8>>, attributes: BTreeMap<String, Vec<u8>>, links: u32 },
}

/// Reads all of a volume, and compares its own counts. What it says is damaged has no content.
pub fn read_all(volume: &Arc<Volume>) -> Result<Found, String> {
    read_tree(&Views::new(Arc::clone(volume)), Ino::ROOT)
}

/// The same of the tree below `root`, which may be that of a snapshot.
pub fn read_tree(volume: &Views, root: Ino) -> Result<Found, String> {
    let mut found = Found::default();
    read_dir(volume, root, "", &mut found)?;
    Ok(found)
}

/// The entries of a directory but for `.` and `..`.
pub fn list(volume: &Views, dir: Ino) -> vexfs::Result<Vec<(String, Ino, Kind)>> {
    let handle = volume.open_dir(&ROOT, dir)?;
    let mut entries = Vec::new();
    let listed = volume.read_dir(&ROOT, handle, 0, &mut |entry| {
        entries.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino, entry.kind));
        true
    });
    volume.release_dir(handle);
    listed.map(|()| entries.split_off(2))
}

fn read_dir(volume: &Views, dir: Ino, path: &str, found: &mut Found) -> Result<(), String> {
    let say = |what: &str, error: Error| format!("{what} {path}: {error}");
    let entries = list(volume, dir).map_err(|error| say("readdir", error))?;
    let count = volume.getattr(dir).map_err(|error| say("stat", error))?.size;
    if count != entries.len() as u64 {
        return Err(format!("{path}: {} entries, the directory says {count}", entries.len()));
    }
    for (name, ino, kind) in entries {
        let at = if path.is_empty() { name } else { format!("{path}/{name}") };
        if kind == Kind::Directory {
            found.nodes.insert(at.clone(), FoundNode::Dir);
            read_dir(volume, ino, &at, found)?;
        } else {
            let node = read_file(volume, ino, &at)?;
            found.nodes.insert(at, node);
        }
    }
    Ok(())
}

fn read_file(volume: &Views, ino: Ino, path: &str) -> Result<FoundNode, String> {
    let say = |what: &str, error: Error| format!("{what} {path}: {error}");
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let handle = volume.open_file(&ROOT, ino, flags).map_err(|error| say("open", error))?.handle;
    let mut bytes = Vec::new();
    let read = volume.read(&ROOT, handle, 0, u32::MAX, &mut bytes);
    volume.release(handle).map_err(|error| say("close", error))?;
    let attr = volume.getattr(ino).map_err(|error| say("stat", error))?;
    let content = match read {
        Ok(()) if attr.size == bytes.len() as u64 => Some(bytes),
        Ok(()) => return Err(format!("{path}: {} bytes, size {}", bytes.len(), attr.size)),
        // A power cut damages no file at rest.
        Err(Error::Corrupt { file, what, .. })
            if file.starts_with("blobs/") && what.contains("checksum") && !is_vector(path) =>
        {
            return Err(format!("{path} is called damaged: {file}, {what}"));
        }
        Err(Error::Corrupt { .. }) => None,
        Err(error) => return Err(say("read", error)),
    };
    let names = volume.listxattr(&ROOT, ino).map_err(|error| say("listxattr", error))?;
    let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let attributes = names
        .map(|name| {
            let value = volume.getxattr(&ROOT, ino, name).map_err(|error| say("getxattr", error))?;
            Ok((String::from_utf8_lossy(name).into_owned(), value.to_vec()))
        })
        .collect::<Result<_, String>>()?;
    Ok(FoundNode::File { ino, content, attributes, links: attr.nlink })
}

impl Found {
    /// Whether a file says that it is damaged.
    pub fn has_damage(&self) -> bool {
        self.nodes.values().any(|node| matches!(node, FoundNode::File { content: None, .. }))
    }
}

/// Whether a volume is as it may be after a cut. Returns what was found.
pub fn check(volume: &Arc<Volume>, history: &History, cut: usize) -> Result<Found, String> {
    let found = read_all(volume)?;
    check_search(volume, &found)?;
    check_snapshots(volume, history, cut)?;
    let candidates = history.candidates(cut);
    let mut failures = Vec::new();
    for step in candidates.clone().rev() {
        match compare(&found, history, step, cut) {
            Ok(()) => return Ok(found),
            Err(why) => failures.push(format!("  as after step {step}, {}: {why}", history.steps[step].what)),
        }
    }
    failures.truncate(12);
    let range = format!("steps {} to {}", candidates.start(), candidates.end());
    Err(format!("like none of {range}:\n{}", failures.join("\n")))
}

/// Goes on from a volume as it is after a step that failed: it must be as before that step, or as after it. What its
/// files hold now is what they are expected to hold from here on.
pub fn adopt(volume: &Arc<Volume>, history: &mut History, position: usize) -> Result<(), String> {
    let found = read_all(volume)?;
    let last = history.steps.len() - 1;
    let compared = |step: usize| compare(&found, history, step, position);
    let as_it_is = match (compared(last), compared(last - 1)) {
        (Ok(()), _) => last,
        (_, Ok(())) => last - 1,
        (Err(after), Err(before)) => return Err(format!("neither {after}\n  nor {before}")),
    };
    let tree = history.steps[as_it_is].tree.clone();
    for (path, node) in &tree.nodes {
        if let (Node::File(file), FoundNode::File { content: Some(content), .. }) = (node, &found.nodes[path])
            && history.content(*file)[..] != content[..]
        {
            history.set_content(*file, content.clone());
        }
    }
    let what = format!("as after step {as_it_is}");
    history.steps.push(Step { what, start: position, end: usize::MAX, tree, persists: false });
    Ok(())
}

fn compare(found: &Found, history: &History, step: usize, cut: usize) -> Result<(), String> {
    let tree = &history.steps[step].tree;
    let names: Vec<&String> = found.nodes.keys().collect();
    let expected: Vec<&String> = tree.nodes.keys().collect();
    if names != expected {
        return Err(format!("names {names:?}, want {expected:?}"));
    }
    let mut numbers = BTreeMap::new();
    for (path, node) in &tree.nodes {
        match (node, &found.nodes[path]) {
            (Node::Dir, FoundNode::Dir) => {}
            (Node::File(file), FoundNode::File { ino, content, attributes, links }) => {
                if *numbers.entry(*file).or_insert(*ino) != *ino {
                    return Err(format!("{path}: another inode than its other names"));
                }
                let names = tree.nodes.values().filter(|other| *other == node).count();
                if *links as usize != names {
                    return Err(format!("{path}: {links} links, want {names}"));
                }
                if *attributes != tree.attributes.get(file).cloned().unwrap_or_default() {
                    return Err(format!("{path}: other attributes"));
                }
                let expected = history.expected(*file, step, cut);
                if !expected.allows(content.as_deref()) {
                    let len = content.as_ref().map(Vec::len);
                    let kind = match expected {
                        crate::reference::Expected::Exactly(content) => {
                            format!("exactly {} bytes", content.len())
                        }
                        crate::reference::Expected::MixOf(all) => format!("a mix of {} versions", all.len()),
                    };
                    return Err(format!("{path}: content of {len:?} bytes, want {kind}"));
                }
            }
            _ => return Err(format!("{path}: another kind")),
        }
    }
    Ok(())
}

/// The rows of a vector file; `None` when it is none.
pub fn rows<'a>(path: &str, content: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    const ROW: usize = DIM * 4;
    let bytes = if path.ends_with(".f32") {
        (content.len() == ROW).then_some(content)?
    } else {
        let (header, bytes) = content.split_at_checked(8)?;
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize;
        (number(0) > 0 && number(4) == DIM && bytes.len() == number(0) * ROW).then_some(bytes)?
    };
    // VexFS refuses norms beyond 2^62.
    let is_valid =
        |row: &[u8]| floats(row).map(|value| f64::from(value).powi(2)).sum::<f64>() <= 2f64.powi(124);
    let rows: Vec<&[u8]> = bytes.chunks(ROW).collect();
    rows.iter().all(|row| is_valid(row)).then_some(rows)
}

pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap()))
}

pub fn distance(a: &[f32], b: &[u8]) -> f32 {
    a.iter().zip(floats(b)).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// Whether searches return the exact neighbours among the vectors that can be read.
fn check_search(volume: &Volume, found: &Found) -> Result<(), String> {
    let Some(FoundNode::Dir) = found.nodes.get("v") else { return Ok(()) };
    let base = volume.lookup(&ROOT, Ino::ROOT, b"v").map_err(|error| error.to_string())?.ino;
    let query: Vec<f32> = (0..DIM).map(|index| index as f32 / 10.0 - 0.3).collect();
    let mut vectors = BTreeMap::new();
    for (path, node) in &found.nodes {
        let FoundNode::File { ino, content: Some(content), .. } = node else { continue };
        if let Some(rows) = rows(path, content).filter(|_| is_vector(path)) {
            vectors.insert(*ino, (path, rows));
        }
    }
    let of_row = |row: &&[u8]| distance(&query, row);
    let mut expected: Vec<f32> = vectors.values().flat_map(|(_, rows)| rows.iter().map(of_row)).collect();
    expected.sort_by(f32::total_cmp);
    expected.truncate(10);
    for exact in [true, false] {
        let options = Options { k: Some(10), exact, ef: (!exact).then_some(100), ..Options::default() };
        let target = Target::Vectors { dim: DIM as u32, values: query.clone() };
        let answer = match volume.search(&ROOT, base, &Request { target, options }) {
            Ok(mut answers) => answers.remove(0),
            // Only when there is no vector at all.
            Err(Error::Dimension { .. }) if expected.is_empty() => continue,
            Err(error) => return Err(format!("search: {error}")),
        };
        let got: Vec<f32> = answer.hits.iter().map(|hit| hit.distance).collect();
        let is_near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        let is_as_near = !exact || got.iter().zip(&expected).all(is_near);
        if got.len() != expected.len() || !is_as_near {
            let status = |(ino, (path, rows)): (&Ino, &(&String, Vec<&[u8]>))| {
                let status = volume.getxattr(&ROOT, *ino, b"user.vexfs.status");
                let status = status.map(|status| String::from_utf8_lossy(&status).into_owned());
                format!("{path}, {} rows: {status:?}", rows.len())
            };
            let mut files: Vec<String> = vectors.iter().map(status).collect();
            for hit in &answer.hits {
                let path = format!("v/{}", String::from_utf8_lossy(&hit.path));
                let Some(FoundNode::File { content, .. }) = found.nodes.get(&path) else { continue };
                let len = content.as_ref().map(Vec::len);
                let head = content.as_ref().map(|content| content[..content.len().min(48)].to_vec());
                files.push(format!("hit row {} of {path}, {len:?} bytes, beginning {head:?}", hit.row));
            }
            return Err(format!("search found {got:?}, want {expected:?} of {}", files.join("; ")));
        }
        for hit in &answer.hits {
            let path = format!("v/{}", String::from_utf8_lossy(&hit.path));
            let Some(FoundNode::File { content: Some(content), .. }) = found.nodes.get(&path) else {
                return Err(format!("search found {path}, which is not there"));
            };
            let row = rows(&path, content).and_then(|rows| rows.get(hit.row as usize).copied());
            let is_right = row.is_some_and(|row| (distance(&query, row) - hit.distance).abs() < 1e-4);
            if !is_right {
                return Err(format!("search found row {} of {path} at {}", hit.row, hit.distance));
            }
        }
    }
    Ok(())
}
