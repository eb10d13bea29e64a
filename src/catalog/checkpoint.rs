//! Copies of a catalog's files: a second catalog with the same content, made without reading the content.
//!
//! The engine never changes a sorted table: it writes new ones and removes old ones, so a copy shares them. What
//! it changes in place is copied: the journals, which have the commits that no table has yet, and for each
//! keyspace the file `current`, which names the list of its tables. That costs the same however much the
//! catalog holds, up to the number of tables and the size of the journals. The note of how many commits are durable
//! comes along; the list of files at the last close does not, as the copy's files are others.
//!
//! The catalog may be open meanwhile, as long as nobody commits. Its thread may still turn journals into tables
//! and many tables into few. Therefore the journals come first: what vanishes of them afterwards is in the tables
//! that are taken then. And the tables of a keyspace are taken again when `current` changed meanwhile.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{log, tally};
use crate::{Error, Result};

pub(super) const KEYSPACES: &str = "keyspaces";
/// The directory of a keyspace's tables.
pub(super) const TABLES: &str = "tables";
pub(super) const CURRENT: &str = "current";

/// Tries to take a keyspace between two changes of its tables. A change takes the engine's thread milliseconds.
const TRIES: usize = 1000;

/// How a copy shares the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// By hard links, which keep them when the original goes; by copies where the filesystem has no links.
    Linked,
    /// By symbolic links: for a copy that does not outlive the original.
    Pointed,
}

/// Makes the directory `to` a copy of the catalog in `from`. Nothing of it is durable yet: see [`sync`].
///
/// # Errors
///
/// I/O errors; [`Error::Catalog`] when the tables never stand still. What was made of `to` stays.
pub(super) fn copy(from: &Path, to: &Path, tables: Tables) -> Result<()> {
    fs::create_dir(to)?;
    copy_journals(from, to)?;
    fs::copy(from.join("version"), to.join("version"))?;
    File::create(to.join("lock"))?;
    copy_if_any(from, to, tally::NAME)?;
    // Where somebody has the catalog open, the engine was given what was in it.
    if tables == Tables::Pointed {
        copy_if_any(from, to, log::NAME)?;
    }
    fs::create_dir(to.join(KEYSPACES))?;
    for entry in fs::read_dir(from.join(KEYSPACES))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_keyspace(&entry.path(), &to.join(KEYSPACES).join(entry.file_name()), tables)?;
        }
    }
    Ok(())
}

/// Makes a copy with linked tables survive a power cut, its own entry excepted. The tables themselves are durable
/// since the engine made them.
///
/// # Errors
///
/// I/O errors.
pub(super) fn sync(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true if entry.file_name() == TABLES => File::open(entry.path())?.sync_all()?,
            true => sync(&entry.path())?,
            false => File::open(entry.path())?.sync_all()?,
        }
    }
    Ok(File::open(dir)?.sync_all()?)
}

fn copy_if_any(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    match fs::copy(from.join(name), to.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy_journals(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "jnl") {
            match copy_journal(&entry.path(), &to.join(entry.file_name())) {
                // All of it is in the tables by now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// A journal is longer than what is in it: its end is a hole for commits to come.
fn copy_journal(from: &Path, to: &Path) -> io::Result<()> {
    let (source, target) = (File::open(from)?, File::create_new(to)?);
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let (data, hole) = match seek(&source, at, Whence::SeekData) {
            Ok(data) => (data, seek(&source, data, Whence::SeekHole)?),
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => break,
            // A filesystem that does not know where its holes are.
            Err(Errno::EINVAL) => (at, len),
            Err(errno) => return Err(errno.into()),
        };
        for file in [&source, &target] {
            seek(file, data, Whence::SeekSet)?;
        }
        io::copy(&mut (&source).take(hole.saturating_sub(data)), &mut &target)?;
        at = hole.max(at + 1);
    }
    Ok(())
}

fn seek(file: &File, at: u64, whence: Whence) -> Result<u64, Errno> {
    let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    u64::try_from(lseek(file, at, whence)?).map_err(|_| Errno::EOVERFLOW)
}

fn copy_keyspace(from: &Path, to: &Path, how: Tables) -> Result<()> {
    fs::create_dir(to)?;
    for _ in 0..TRIES {
        fs::create_dir(to.join(TABLES))?;
        if copy_tables(from, to, how)? {
            return Ok(());
        }
        fs::remove_dir_all(to.join(TABLES))?;
    }
    Err(Error::Catalog(format!("{}: its tables do not stand still", from.display())))
}

/// Copies what a keyspace has at one moment, or finds that it changed meanwhile.
fn copy_tables(from: &Path, to: &Path, how: Tables) -> Result<bool> {
    let copied = (|| {
        let current = fs::read(from.join(CURRENT))?;
        let Some(version) = current.first_chunk().copied().map(u64::from_le_bytes) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file 'current' is too short"));
        };
        for entry in fs::read_dir(from.join(TABLES))? {
            let entry = entry?;
            share(&entry.path(), &to.join(TABLES).join(entry.file_name()), how)?;
        }
        let list = format!("v{version}");
        fs::copy(from.join(&list), to.join(&list))?;
        fs::write(to.join(CURRENT), &current)?;
        Ok(fs::read(from.join(CURRENT))? == current)
    })();
    match copied {
        // A table or a list of tables went away while it was being taken.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => Ok(other?),
    }
}

fn share(from: &Path, to: &Path, how: Tables) -> io::Result<()> {
    match how {
        Tables::Pointed => symlink(from, to),
        Tables::Linked => match fs::hard_link(from, to) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EMLINK | libc::EOPNOTSUPP)) =>
            {
                fs::copy(from, to)?;
                File::open(to)?.sync_all()
            }
            other => other,
        },
    }
}
