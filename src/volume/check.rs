//! Checking the store of a volume that nobody has open, and repairing it: what `vexfs fsck` does.
//!
//! ```text
//! names ──▶ contents ──▶ members ──▶ counts ──▶ graphs
//!           slots, blobs             of directories and inodes
//! ```
//!
//! Every table is read once, in order, and every segment once, so the time is that of reading the store. A check
//! changes nothing. A repair works on the first of the five that has a fault, commits, and begins again, until a
//! whole check finds nothing: later faults often follow from earlier ones. It works from ground state only: what
//! is counted is counted again, what is derived is dropped, and a file whose bytes are not what the catalog says
//! keeps them, under `lost+found`, so that nobody takes them for sound.
//!
//! What a mount finishes by itself after an unclean end (marks, leftover blobs, graphs of collections that are empty or
//! gone) is no damage. Where commits are lost, blobs that nothing names may be those of files that somebody was told are
//! safe: they come to `lost+found`, and no mount opens the store before they have.
//!
//! Each snapshot is a catalog of its own and is checked in the same way, except for slots and blobs that were checked
//! already because it shares them. Nothing of a snapshot is repaired, and what it names is not removed: a damaged one
//! is named, and whoever does not want it any more drops it.

mod contents;
mod report;

use std::path::Path;
use std::sync::Arc;

pub use report::{Counted, Fate, Finding, Report};

use contents::{Contents, Rescue};

use super::ingest::Vectors;
use super::ingest::check::{Files, MemberFault, Members};
use super::recovery;
use crate::catalog::{Catalog, Table};
use crate::collection::checkpoint_root;
use crate::metrics::Metrics;
use crate::namespace::check::{Census, Fault};
use crate::namespace::{self, Ino, Mark, Namespace};
use crate::store::Store;
use crate::{Error, Result};

/// Whether what is found is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing is changed.
    No,
    /// It is.
    Yes,
}

/// More rounds than faults can follow from each other.
const ROUNDS: usize = 32;

/// Checks the store in `dir`.
///
/// # Errors
///
/// [`Error::StoreLocked`] when somebody has it open; [`Error::Store`] when it is no store, [`Error::Version`] for
/// another format; I/O errors. Damage is no error: it is in the report.
pub fn fsck(dir: &Path, repair: Repair) -> Result<Report> {
    Store::refuse_missing(dir)?;
    let mut report = Report::default();
    let store = match Store::open(dir, &format!("process {}, vexfs fsck", std::process::id())) {
        Err(error @ Error::Corrupt { .. }) => {
            report.add(Finding::of(&error, None, Fate::Damaged));
            return Ok(report);
        }
        other => other?,
    };
    report.ended_uncleanly = store.ended_uncleanly();
    let outcome = open_catalog(&store, repair, &mut report)
        .and_then(|catalog| Check { store: &store, catalog: Arc::new(catalog) }.run(repair, &mut report));
    match outcome {
        Ok(()) => {}
        Err(error @ (Error::Corrupt { .. } | Error::Catalog(_))) => {
            report.add(Finding::of(&error, None, Fate::Damaged));
        }
        Err(error) => return Err(error),
    }
    if !report.ended_uncleanly {
        store.close()?;
    }
    Ok(report)
}

/// Opens the catalog, for a check a copy of it. One that has lost commits is taken as it is, for a repair.
fn open_catalog(store: &Store, repair: Repair, report: &mut Report) -> Result<Catalog> {
    store.check_has_catalog()?;
    let dir = store.catalog_dir();
    match (repair, store.is_read_only()) {
        // The engine changes what it opens. One that was never made has nothing to change.
        (Repair::No, is_read_only) if is_read_only || dir.try_exists()? => {
            let catalog = Catalog::open_copy(&dir, &store.scratch_dir())?;
            if let Err(error) = recovery::refuse_half_repaired(&catalog) {
                report.add(Finding::of(&error, None, Fate::Damaged));
            }
            return Ok(catalog);
        }
        (Repair::Yes, true) => return Err(Error::ReadOnly),
        _ => {}
    }
    let (catalog, error) = match (Catalog::open(&dir), repair) {
        (Err(error @ Error::Corrupt { .. }), Repair::Yes) => match Catalog::open_shortened(&dir) {
            Ok(catalog) => (catalog, error),
            Err(_) => return Err(error),
        },
        (opened, _) => {
            let catalog = opened?;
            match recovery::refuse_half_repaired(&catalog) {
                Ok(()) => return Ok(catalog),
                Err(error) => (catalog, error),
            }
        }
    };
    let mut batch = catalog.batch();
    batch.put(Table::Meta, recovery::SHORTENED, b"");
    batch.commit()?;
    let did = "the commits before are taken as they are; later ones are lost".to_owned();
    report.add(Finding::of(&error, None, Fate::Repaired(did)));
    Ok(catalog)
}

/// A store being checked.
struct Check<'a> {
    store: &'a Arc<Store>,
    catalog: Arc<Catalog>,
}

/// What one round found, in the order in which it is repaired.
#[derive(Default)]
struct Found {
    census: Census,
    contents: Contents,
    members: Members,
    /// Graph checkpoints: name of the file, what is wrong.
    graphs: Vec<(String, String)>,
    /// Files of such that the next mount removes.
    leftover_graphs: usize,
}

impl Check<'_> {
    fn run(&self, repair: Repair, report: &mut Report) -> Result<()> {
        let mut lost = None;
        let mut found = self.mend_all(repair, &mut lost, report)?;
        let mut of_snapshots = self.check_snapshots(&found.contents)?;
        let has_lost_commits = recovery::is_half_repaired(&self.catalog)?;
        // What snapshots name is known by now.
        if repair == Repair::Yes && has_lost_commits && self.name_lost_blobs(&mut lost, report)? {
            found = self.mend_all(repair, &mut lost, report)?;
            of_snapshots = self.check_snapshots(&found.contents)?;
        }
        report.counted.leftover_graphs = found.leftover_graphs;
        report.findings.extend(self.findings(&found));
        report.findings.append(&mut of_snapshots);
        (report.counted.leftover_blobs, _) = self.store.leftovers();
        self.add_unnamed_segments(report);
        if report.repaired() > 0 {
            // What is repaired is settled by the next open, which looks at everything.
            let mut batch = self.catalog.batch();
            batch.remove(Table::Meta, recovery::CLEAN);
            batch.remove(Table::Meta, recovery::SHORTENED);
            batch.commit()?;
            self.store.sync()?;
            self.catalog.persist()?;
        }
        if !report.ended_uncleanly {
            self.catalog.close();
        }
        if repair == Repair::Yes && report.is_sound() {
            // A segment that was named would not be sound, and now no durable commit names one of these either.
            for (file, ..) in self.store.damaged_segments() {
                std::fs::remove_file(self.store.dir().join(file))?;
            }
        }
        Ok(())
    }

    /// Looks and mends until nothing more can be mended. Returns what was found last.
    fn mend_all(&self, repair: Repair, lost: &mut Option<Ino>, report: &mut Report) -> Result<Found> {
        let mut found = self.look(repair, None)?;
        report.counted = found.counted();
        if repair == Repair::Yes {
            for _ in 1..ROUNDS {
                if !self.mend(&found, lost, report)? {
                    break;
                }
                found = self.look(repair, None)?;
            }
        }
        Ok(found)
    }

    /// Gives blobs that nothing names, snapshots included, names in `lost+found`. Returns whether there were any.
    fn name_lost_blobs(&self, lost: &mut Option<Ino>, report: &mut Report) -> Result<bool> {
        let names = Namespace::open(Arc::clone(&self.catalog))?;
        let mut rescue = Rescue { store: self.store, catalog: &self.catalog, names: &names, lost };
        let before = report.repaired();
        for id in self.store.unnamed_blobs() {
            let Some((damage, did)) = rescue.adopt_blob(id)? else { continue };
            let error = damage.unwrap_or_else(|| Error::Corrupt {
                file: self.store.blob_path(id),
                offset: 0,
                what: "nothing names the blob any more".into(),
            });
            report.add(Finding::of(&error, None, Fate::Repaired(did)));
        }
        Ok(report.repaired() > before)
    }

    /// One round. For a repair it ends behind the first part that has a fault. Of a snapshot, `checked` is what was
    /// found sound before.
    fn look(&self, repair: Repair, checked: Option<&Contents>) -> Result<Found> {
        let mut found = Found::default();
        let mut files = Files::default();
        let mut contents = Contents::new(report::was_closed(&self.catalog)?);
        found.census = namespace::check::check(&self.catalog, |inode, links| {
            files.note(inode, links);
            contents.note(inode);
        })?;
        let ends_here = |has_fault: bool| repair == Repair::Yes && has_fault;
        if ends_here(found.census.faults.iter().any(Fault::is_structural)) {
            return Ok(found);
        }
        found.members = super::ingest::check::check(&self.catalog, &found.census, &files)?;
        contents.note_members(&found.members.contents);
        drop(files);
        if let Some(checked) = checked {
            contents.leave_out(checked);
        }
        contents.check(self.store, &found.census)?;
        found.contents = contents;
        let is_sound = found.contents.faults.is_empty()
            && found.members.faults.is_empty()
            && found.census.faults.is_empty();
        if is_sound && checked.is_none() {
            self.check_graphs(&mut found)?;
        }
        Ok(found)
    }

    /// Loads every graph and reads all of it. What no mount would use of a collection with vectors is damage: it would be
    /// built anew. What is left of one that is empty or gone is not.
    fn check_graphs(&self, found: &mut Found) -> Result<()> {
        let files = self.store.index_files()?;
        let roots: Vec<Ino> = files.iter().filter_map(|name| checkpoint_root(name)).map(Ino).collect();
        if roots.is_empty() {
            return Ok(());
        }
        let vectors = Vectors::new(Arc::clone(self.store), Arc::new(Metrics::new()));
        let names = Namespace::open(Arc::clone(&self.catalog))?;
        let checkpoint = |root: u64| format!("index/{root:016x}.hnsw");
        let without = vectors.restore(&self.catalog, &names, &self.store.index_dir(), false)?.without_graph;
        let is_left = |root: &&Ino| vectors.existing(**root).is_none_or(|collection| collection.is_empty());
        found.leftover_graphs = roots.iter().filter(is_left).count();
        for (root, error) in &without {
            found.graphs.push((checkpoint(root.0), error.to_string()));
        }
        for collection in vectors.all() {
            let check = collection.verify();
            let is_known = without.iter().any(|(root, _)| root.0 == collection.root());
            if !check.is_sound() && !is_known {
                found.graphs.push((checkpoint(collection.root()), check.to_string()));
            }
        }
        Ok(())
    }

    /// Repairs the first part that has a fault. Returns whether anything was done.
    fn mend(&self, found: &Found, lost: &mut Option<Ino>, report: &mut Report) -> Result<bool> {
        let faults = &found.census.faults;
        let is_blind = |fault: &Fault| matches!(fault, Fault::Unreadable { table: Table::Inodes, .. });
        if faults.iter().any(is_blind) {
            // Names of an inode whose record cannot be read would be taken for names of nothing.
            return Ok(false);
        }
        let names = Namespace::open(Arc::clone(&self.catalog))?;
        let mut rescue = Rescue { store: self.store, catalog: &self.catalog, names: &names, lost };
        let before = report.repaired();
        for fault in faults.iter().filter(|fault| fault.is_structural()) {
            let path = fault.ino().and_then(|ino| report::path_of(&names, ino));
            let did = match fault {
                Fault::Nameless(ino) => rescue.adopt_nameless(*ino)?,
                Fault::InlineMissing(ino) => rescue.set_aside(*ino, &[])?,
                _ => {
                    let Some(remedy) = fault.remedy() else { continue };
                    let mut batch = self.catalog.batch();
                    fault.stage(&names, &mut batch)?;
                    batch.commit()?;
                    remedy.to_owned()
                }
            };
            report.add(Finding::of_names(fault, path, Fate::Repaired(did)));
        }
        if report.repaired() > before {
            return Ok(true);
        }
        let members_of = found.contents.members_of(&self.catalog)?;
        for fault in &found.contents.faults {
            let path = report::path_of(&names, fault.ino);
            let did = rescue.content(fault, members_of.get(&fault.ino).map_or(&[], Vec::as_slice))?;
            report.add(Finding::of(&fault.error, path, Fate::Repaired(did)));
        }
        if report.repaired() > before {
            return Ok(true);
        }
        for fault in &found.members.faults {
            let path = fault.ino().and_then(|ino| report::path_of(&names, ino));
            let did = self.mend_member(&names, fault)?;
            report.add(Finding::of_member(fault, path, Fate::Repaired(did.into())));
        }
        if report.repaired() > before {
            return Ok(true);
        }
        for fault in faults {
            let Some(remedy) = fault.remedy() else { continue };
            let path = fault.ino().and_then(|ino| report::path_of(&names, ino));
            let mut batch = self.catalog.batch();
            fault.stage(&names, &mut batch)?;
            batch.commit()?;
            report.add(Finding::of_names(fault, path, Fate::Repaired(remedy.into())));
        }
        if report.repaired() > before {
            return Ok(true);
        }
        for (file, why) in &found.graphs {
            std::fs::remove_file(self.store.dir().join(file))?;
            let did = "removed; the graph is built anew".to_owned();
            report.add(Finding::of_graph(file, why, Fate::Repaired(did)));
        }
        Ok(report.repaired() > before)
    }

    /// Removes a record that is wrong; the next open settles the file from its bytes.
    fn mend_member(&self, names: &Namespace, fault: &MemberFault) -> Result<&'static str> {
        let mut batch = self.catalog.batch();
        match fault {
            MemberFault::Collection { key, .. } => batch.remove(Table::Collections, key),
            MemberFault::Unreadable { key, .. } => batch.remove(Table::Vectors, key),
            MemberFault::Member { root, ino, .. } => {
                batch.remove(Table::Vectors, contents::member_key(*root, *ino));
            }
            MemberFault::Missing { .. } => {}
        }
        let ino = fault.ino();
        if let Some(ino) = ino.filter(|ino| names.inode(*ino).is_ok_and(|inode| inode.nlink > 0)) {
            names.put_mark(&mut batch, Mark::Dirty, ino);
        }
        batch.commit()?;
        Ok(match (fault, ino) {
            (MemberFault::Collection { .. }, _) => "record removed",
            (_, Some(_)) => "its vectors are read from the file by the next mount",
            (_, None) => "record removed",
        })
    }

    /// Checks every snapshot beside what was `checked` of the newest commit. Returns what is found.
    fn check_snapshots(&self, checked: &Contents) -> Result<Vec<Finding>> {
        let mut all = Vec::new();
        for name in self.store.snapshot_names()? {
            let dir = self.store.snapshot_dir(&name).join("catalog");
            let looked = self.store.snapshot_note(&name).and_then(|_| {
                let catalog = Catalog::open_copy(&dir, &self.store.scratch_dir())?;
                let snapshot = Check { store: self.store, catalog: Arc::new(catalog) };
                Ok(snapshot.findings(&snapshot.look(Repair::No, Some(checked))?))
            });
            let findings = match looked {
                Ok(findings) => findings,
                Err(error @ (Error::Corrupt { .. } | Error::Catalog(_))) => {
                    vec![Finding::of(&error, None, Fate::Damaged)]
                }
                Err(error) => return Err(error),
            };
            all.extend(findings.into_iter().map(|finding| finding.in_snapshot(&name)));
        }
        Ok(all)
    }

    /// What is found and not repaired.
    fn findings(&self, found: &Found) -> Vec<Finding> {
        // Only looked up, and only when there is a root to look from.
        let has_root =
            self.catalog.get(Table::Inodes, &Ino::ROOT.0.to_be_bytes()).is_ok_and(|root| root.is_some());
        let names = has_root.then(|| Namespace::open(Arc::clone(&self.catalog)).ok()).flatten();
        let path = |ino: Option<Ino>| report::path_of(names.as_ref()?, ino?);
        let mut findings = Vec::new();
        for fault in &found.census.faults {
            findings.push(Finding::of_names(fault, path(fault.ino()), Fate::Damaged));
        }
        for fault in &found.contents.faults {
            findings.push(Finding::of(&fault.error, path(Some(fault.ino)), Fate::Damaged));
        }
        for fault in &found.members.faults {
            findings.push(Finding::of_member(fault, path(fault.ino()), Fate::Damaged));
        }
        for (file, why) in &found.graphs {
            findings.push(Finding::of_graph(file, why, Fate::Damaged));
        }
        findings
    }

    fn add_unnamed_segments(&self, report: &mut Report) {
        for (file, offset, what) in self.store.damaged_segments() {
            let known = |finding: &Finding| finding.file == file && finding.fate == Fate::Damaged;
            if !report.findings.iter().any(known) {
                let error = Error::Corrupt { file, offset, what: format!("{what}; nothing names it") };
                report.add(Finding::of(&error, None, Fate::Harmless));
            }
        }
    }
}

impl Found {
    fn counted(&self) -> Counted {
        Counted {
            inodes: self.census.inodes,
            directories: self.census.parents.len() as u64,
            collections: self.members.collections.len() as u64,
            vectors: self.members.vectors,
            slots: self.contents.slots.len() as u64,
            blobs: self.contents.blobs.len() as u64,
            bytes_read: self.contents.bytes_read,
            unfinished: self.census.marks.values().map(|marked| marked.len() as u64).sum(),
            leftover_blobs: 0,
            leftover_graphs: 0,
        }
    }
}
