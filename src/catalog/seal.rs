//! What the engine's files were when the catalog was closed: names, lengths, checksums.
//!
//! The engine checks blocks and journal entries itself, but trusts the small files that say which tables there are, and
//! ends the process when one contradicts it. So a catalog that is closed in order leaves this list, and the next open
//! compares before the engine reads. After any other end there is no list. Journals are not in it: what they lose is
//! seen by the [tally](super::tally).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::checkpoint::TABLES;
use super::{log, tally};
use crate::format::record;
use crate::{Error, Result};

/// The list's name in the catalog's directory.
const NAME: &str = "closed";

/// Larger files are sorted tables, whose blocks have checksums: only their length is compared.
const READ_MAX: u64 = 1 << 20;

/// Files of the directory itself that change otherwise.
const NOT_LISTED: [&str; 4] = [NAME, tally::NAME, log::NAME, "lock"];

/// One file: its name below the catalog's directory, its length, the checksum of its bytes if it is small.
#[derive(Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Listed {
    name: String,
    len: u64,
    checksum: Option<u64>,
}

/// Compares the files with the list, if there is one that can be trusted. Returns whether there was.
///
/// # Errors
///
/// [`Error::Corrupt`] naming the first file that differs; I/O errors.
pub(super) fn check(dir: &Path) -> Result<bool> {
    let bytes = match fs::read(dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let Some((body, sum)) = bytes.len().checked_sub(8).map(|at| bytes.split_at(at)) else { return Ok(false) };
    if sum != xxh3_64(body).to_le_bytes() {
        return Ok(false);
    }
    let Ok(listed) = record::decode::<Vec<Listed>>("closed", body) else { return Ok(false) };
    for file in listed {
        let corrupt = |offset, what| Error::Corrupt { file: format!("catalog/{}", file.name), offset, what };
        match look(dir, &file.name) {
            Ok(found) if found.len != file.len => {
                let what = format!("{} bytes, want {}", found.len, file.len);
                return Err(corrupt(found.len.min(file.len), what));
            }
            Ok(found) if found != file => {
                return Err(corrupt(0, "the checksum of the file does not match".into()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt(0, "the file is missing".into()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Removes the list, durably: before the engine changes anything.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(NAME)) {
        Ok(()) => File::open(dir)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the list, when the engine has ended. Of a copy that shares tables with a catalog in use these are left out:
/// there may be one among them that the engine was writing, and that the copy does not need.
pub(super) fn write(dir: &Path, with_tables: bool) -> io::Result<()> {
    let mut listed = Vec::new();
    list(dir, "", &mut listed)?;
    if !with_tables {
        listed.retain(|file| !Path::new(&file.name).parent().is_some_and(|parent| parent.ends_with(TABLES)));
    }
    let mut bytes = record::encode(&listed);
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(dir.join(NAME))?.write_all(&bytes)
}

fn list(dir: &Path, below: &str, into: &mut Vec<Listed>) -> io::Result<()> {
    for entry in fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        // The engine's names are plain; what is none of its files is none of our business.
        let Some(name) = name.to_str() else { continue };
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            list(dir, &path, into)?;
        } else if !name.ends_with(".jnl") && !NOT_LISTED.contains(&&*path) {
            into.push(look(dir, &path)?);
        }
    }
    Ok(())
}

fn look(dir: &Path, name: &str) -> io::Result<Listed> {
    let path = dir.join(name);
    let len = fs::metadata(&path)?.len();
    let checksum = if len <= READ_MAX { Some(xxh3_64(&fs::read(&path)?)) } else { None };
    Ok(Listed { name: name.to_owned(), len, checksum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_differs_is_named_and_a_damaged_list_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("keyspaces/0")).unwrap();
        let current = dir.path().join("keyspaces/0/current");
        fs::write(&current, b"12345").unwrap();
        fs::write(dir.path().join("0.jnl"), b"journal").unwrap();
        assert!(!check(dir.path()).unwrap());
        write(dir.path(), true).unwrap();
        assert!(check(dir.path()).unwrap());
        fs::write(dir.path().join("0.jnl"), b"another").unwrap();
        assert!(check(dir.path()).unwrap());
        for (bytes, words) in
            [(&b"12340"[..], "offset 0: the checksum"), (b"123", "offset 3: 3 bytes, want 5")]
        {
            fs::write(&current, bytes).unwrap();
            let error = check(dir.path()).unwrap_err().to_string();
            assert!(error.contains("keyspaces/0/current") && error.contains(words), "{error}");
        }
        fs::remove_file(&current).unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("missing"));
        let mut bytes = fs::read(dir.path().join(NAME)).unwrap();
        bytes[9] ^= 1;
        fs::write(dir.path().join(NAME), bytes).unwrap();
        assert!(!check(dir.path()).unwrap());
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
    }
}
