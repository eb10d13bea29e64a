//! The engine's small files that say which tables there are.
//!
//! In each keyspace `current` names a list of tables, `vNUMBER`, and has its checksum. The engine does not compare
//! it, and asserts what the list says; a keyspace without `current`, or one that is gone, it takes for one that was
//! never finished, and begins it anew, empty. So this is looked at before the engine is: a catalog that was made has all
//! of its keyspaces, whenever process or power end, because it is made under another name and synced as a whole.

use std::fs;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::Table;
use super::checkpoint::{CURRENT, KEYSPACES};
use crate::{Error, Result};

/// Bytes of `current`: the number of the list u64, its checksum u128, the kind of checksum u8.
const CURRENT_BYTES: usize = 25;

/// Checks the lists of tables of the catalog in `dir`, if it has been made.
///
/// # Errors
///
/// [`Error::Corrupt`] naming the file; I/O errors.
pub(super) fn check(dir: &Path) -> Result<()> {
    if !dir.join("version").try_exists()? {
        return Ok(());
    }
    // Its own, for the names of the others, and one for each table; they are numbered as they were made.
    for number in 0..=Table::ALL.len() {
        check_keyspace(dir, &format!("{KEYSPACES}/{number}"))?;
    }
    Ok(())
}

fn check_keyspace(dir: &Path, keyspace: &str) -> Result<()> {
    let name = format!("{keyspace}/{CURRENT}");
    let current = read(dir, &name)?;
    let corrupt = |name: &str, offset: usize, what: String| Error::Corrupt {
        file: format!("catalog/{name}"),
        offset: offset as u64,
        what,
    };
    let number = current.first_chunk().copied().map(u64::from_le_bytes);
    let checksum = current.get(8..).and_then(|rest| rest.first_chunk()).copied().map(u128::from_le_bytes);
    let (Some(number), Some(checksum), CURRENT_BYTES) = (number, checksum, current.len()) else {
        let what = format!("{} bytes, want {CURRENT_BYTES}", current.len());
        return Err(corrupt(&name, current.len().min(CURRENT_BYTES), what));
    };
    if current[CURRENT_BYTES - 1] != 0 {
        return Err(corrupt(&name, CURRENT_BYTES - 1, "an unknown kind of checksum".into()));
    }
    let list = format!("{keyspace}/v{number}");
    if xxh3_128(&read(dir, &list)?) != checksum {
        return Err(corrupt(&list, 0, format!("the checksum in '{name}' does not match")));
    }
    Ok(())
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    fs::read(dir.join(name)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::Corrupt { file: format!("catalog/{name}"), offset: 0, what: "the file is missing".into() }
        }
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn whatever_differs_in_a_list_of_tables_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("catalog");
        check(&dir).unwrap();
        drop(Catalog::open(&dir).unwrap());
        check(&dir).unwrap();
        let refused = |file: &str| match check(&dir) {
            Err(Error::Corrupt { file: named, .. }) => assert_eq!(named, format!("catalog/{file}")),
            other => panic!("{file}: {other:?}"),
        };
        for keyspace in [0, 1, Table::ALL.len()] {
            let name = format!("{KEYSPACES}/{keyspace}/{CURRENT}");
            let sound = fs::read(dir.join(&name)).unwrap();
            let list =
                format!("{KEYSPACES}/{keyspace}/v{}", u64::from_le_bytes(*sound.first_chunk().unwrap()));
            for at in 8..sound.len() {
                let mut damaged = sound.clone();
                damaged[at] ^= 1;
                fs::write(dir.join(&name), &damaged).unwrap();
                refused(if at == sound.len() - 1 { &name } else { &list });
                fs::write(dir.join(&name), &sound[..at]).unwrap();
                refused(&name);
            }
            fs::remove_file(dir.join(&name)).unwrap();
            refused(&name);
            fs::write(dir.join(&name), &sound).unwrap();
            let bytes = fs::read(dir.join(&list)).unwrap();
            for at in (0..bytes.len()).step_by(7) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                fs::write(dir.join(&list), &damaged).unwrap();
                refused(&list);
            }
            File::options().write(true).open(dir.join(&list)).unwrap().set_len(1).unwrap();
            refused(&list);
            fs::write(dir.join(&list), &bytes).unwrap();
            check(&dir).unwrap();
        }
        fs::remove_dir_all(dir.join(KEYSPACES).join("3")).unwrap();
        refused("keyspaces/3/current");
    }
}
