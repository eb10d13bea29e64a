//! The store directory: whether it can be trusted, whether it is a store, and files and directories made in
//! it with modes that the process's umask does not change.
//!
//! It knows the file `VEXFS`. It does not know what the other files of a store hold.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::io;
use crate::{Error, Result};

/// Version of the store's format that this program writes.
const VERSION: u32 = 4;

/// The oldest that it reads. In version 2 there are no blobs at rest, and programs of that time write blobs without
/// taking checksums away. In version 3 the catalog has no log beside its engine, and programs of that time do not read
/// it.
const OLDEST: u32 = 2;

/// First line of the file `VEXFS`.
const MAGIC: &str = "VexFS store";

const IDENTITY: &str = "VEXFS";
const IDENTITY_NEW: &str = "VEXFS.tmp";

/// Largest file `VEXFS` that is read, in bytes.
const IDENTITY_MAX: u64 = 4096;

/// What a directory may hold and still become a store: the leftovers of a first use that was cut short, and
/// what mkfs puts into the root of a filesystem.
const NOT_YET_A_STORE: [&str; 3] = ["lock", IDENTITY_NEW, "lost+found"];

/// Makes sure that `dir` is a directory which only this user can write to and which is, or can become, a
/// store. Creates it (mode 0700) and its parents. Returns the path that stays valid when the process changes
/// its working directory.
///
/// # Errors
///
/// [`Error::Store`] with the reason, or an I/O error.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf> {
    // Collecting the components drops a trailing slash, which would make the kernel follow a symbolic link.
    let dir: PathBuf = std::path::absolute(dir).map_err(io)?.components().collect();
    let refuse = |why: String| Err(Error::Store { path: dir.clone(), why });

    match fs::symlink_metadata(&dir) {
        Ok(found) if found.file_type().is_symlink() => return refuse("is a symbolic link".into()),
        Ok(found) if !found.is_dir() => return refuse("is not a directory".into()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_parents_and(&dir)?,
        Err(error) => return refuse(error.to_string()),
    }

    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(&dir)
        .and_then(|opened| opened.metadata());
    let meta = match opened {
        Ok(meta) => meta,
        Err(error) => return refuse(error.to_string()),
    };
    let user = nix::unistd::geteuid().as_raw();
    if meta.uid() != user {
        return refuse(format!("belongs to user {}, this process runs as user {user}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return refuse(format!("mode {mode:04o} lets others write, want 0700"));
    }
    refuse_foreign(&dir)?;
    // Without `..`: what those name may go away while the store is open.
    fs::canonicalize(&dir).map_err(io)
}

/// Whether `dir` has been made a store.
pub(super) fn is_store(dir: &Path) -> bool {
    dir.join(IDENTITY).exists()
}

/// Whether the filesystem that `dir` is on cannot be written.
///
/// # Errors
///
/// I/O errors.
pub(super) fn is_on_read_only_filesystem(dir: &Path) -> io::Result<bool> {
    let flags = nix::sys::statvfs::statvfs(dir)?.flags();
    Ok(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// Refuses a directory that has files but no `VEXFS`: it is somebody's home, or a store that lost its head.
fn refuse_foreign(dir: &Path) -> Result<()> {
    let mut foreign: Option<OsString> = None;
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name == IDENTITY {
            return Ok(());
        }
        if !NOT_YET_A_STORE.iter().any(|known| name == *known) {
            foreign = Some(name);
        }
    }
    match foreign {
        // Another process may have made the store while the directory was being listed.
        Some(name) if !dir.join(IDENTITY).exists() => Err(Error::Store {
            path: dir.to_path_buf(),
            why: format!("has no file {IDENTITY} but is not empty ({})", name.display()),
        }),
        _ => Ok(()),
    }
}

/// What the file `VEXFS` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// 32 hexadecimal digits.
    pub(super) id: String,
    version: u32,
}

impl Identity {
    /// Makes the store in `dir` one of the present version, durably, before anything is written that an older one does
    /// not have. A program that reads only the older one refuses it from then on.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub(super) fn upgrade(&self, dir: &Path) -> io::Result<()> {
        if self.version == VERSION {
            return Ok(());
        }
        write_identity(dir, &self.id)
    }
}

/// Reads the store's identity, writing a new one on first use. Called with the lock held.
///
/// # Errors
///
/// [`Error::Version`], [`Error::Corrupt`], I/O errors.
pub(super) fn identity(dir: &Path) -> Result<Identity> {
    let path = dir.join(IDENTITY);
    let file = match open_file(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make_identity(dir).map_err(io),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(IDENTITY_MAX).read_to_end(&mut bytes).map_err(io)?;
    let corrupt = |what: &str| Error::Corrupt { file: IDENTITY.into(), offset: 0, what: what.into() };
    let text = std::str::from_utf8(&bytes).map_err(|_| corrupt("not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return Err(corrupt("first line is not 'VexFS store'"));
    }
    let version = lines.next().and_then(|line| line.strip_prefix("version ")?.parse::<u32>().ok());
    let version = version.ok_or_else(|| corrupt("second line is not 'version N'"))?;
    // What follows belongs to the version, so it is not looked at in one that this program does not know.
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(Error::Version { path: dir.to_path_buf(), expected: VERSION, got: version });
    }
    let id = lines.next().and_then(|line| line.strip_prefix("id "));
    let id = id.ok_or_else(|| corrupt("third line is not 'id HEX'"))?;
    if text != identity_text(id, version) {
        return Err(corrupt("checksum does not match"));
    }
    Ok(Identity { id: id.to_owned(), version })
}

fn identity_text(id: &str, version: u32) -> String {
    let head = format!("{MAGIC}\nversion {version}\nid {id}\n");
    let checksum = xxh3_64(head.as_bytes());
    format!("{head}checksum {checksum:016x}\n")
}

fn make_identity(dir: &Path) -> io::Result<Identity> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    write_identity(dir, &id)?;
    Ok(Identity { id, version: VERSION })
}

fn write_identity(dir: &Path, id: &str) -> io::Result<()> {
    let new = dir.join(IDENTITY_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = create_file(&new)?;
    file.write_all(identity_text(id, VERSION).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(IDENTITY))?;
    sync_dir(dir)
}

/// Creates `dir` (mode 0700) and those of its parents that are missing, each made durable in its own parent.
fn make_parents_and(dir: &Path) -> Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.exists()).collect();
    for path in missing.into_iter().rev() {
        let made = if path == dir { make_dir(path).map(drop) } else { fs::create_dir(path) };
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Store { path: dir.to_path_buf(), why: error.to_string() });
            }
            _ => {}
        }
        if let Some(parent) = path.parent() {
            // A parent that this user may enter but not read cannot be synced; its owner made it durable.
            match sync_dir(parent) {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(io(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes a directory of mode 0700; `false` when it is there already. Not durable before its parent is synced.
pub(super) fn make_dir(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o700)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates a file of mode 0600 that must not be there yet, open for reading and writing.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Opens an existing file of the store.
pub(super) fn open_file(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn why(result: Result<PathBuf>) -> String {
        match result {
            Err(Error::Store { why, .. }) => why,
            other => panic!("want Error::Store, got {other:?}"),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_missing_directory_is_made_private_with_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let made = prepare(&dir.path().join("a/b/c")).unwrap();
        assert_eq!(made, dir.path().join("a/b/c"));
        assert_eq!(mode(&made), 0o700);
    }

    #[test]
    fn a_relative_path_becomes_absolute() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let name = dir.path().file_name().unwrap();
        let prepared = prepare(Path::new(name)).unwrap();
        assert_eq!(prepared, std::env::current_dir().unwrap().join(name));
    }

    #[test]
    fn a_symbolic_link_is_refused_with_and_without_a_trailing_slash() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        symlink("target", dir.path().join("link")).unwrap();
        for name in ["link", "link/", "link/."] {
            assert_eq!(why(prepare(&dir.path().join(name))), "is a symbolic link", "{name}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (bits, expected) in [(0o770, "mode 0770"), (0o702, "mode 0702"), (0o1777, "mode 1777")] {
            fs::set_permissions(dir.path(), Permissions::from_mode(bits)).unwrap();
            assert_eq!(why(prepare(dir.path())), format!("{expected} lets others write, want 0700"));
        }
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        prepare(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let me = nix::unistd::geteuid().as_raw();
        let (foreign, owner) = if me == 0 {
            chown(dir.path(), Some(12345), None).unwrap();
            (dir.path(), 12345)
        } else {
            (Path::new("/"), 0)
        };
        let expected = format!("belongs to user {owner}, this process runs as user {me}");
        assert_eq!(why(prepare(foreign)), expected);
    }

    #[test]
    fn a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(why(prepare(file.path())), "is not a directory");
    }

    #[test]
    fn a_directory_with_files_of_its_own_does_not_become_a_store() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lock"), "").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        prepare(dir.path()).unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        assert_eq!(why(prepare(dir.path())), "has no file VEXFS but is not empty (thesis.tex)");
    }

    #[test]
    fn the_identity_is_written_once_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IDENTITY_NEW), "half").unwrap();
        let made = identity(dir.path()).unwrap();
        let id = &made.id;
        assert_eq!(id.len(), 32);
        assert_eq!(identity(dir.path()).unwrap(), made);
        assert!(!dir.path().join(IDENTITY_NEW).exists());
        assert_eq!(mode(&dir.path().join(IDENTITY)), 0o600);
        let text = fs::read_to_string(dir.path().join(IDENTITY)).unwrap();
        assert!(text.starts_with(&format!("VexFS store\nversion 4\nid {id}\nchecksum ")), "{text}");
    }

    #[test]
    fn the_identity_has_the_documented_text() {
        let text = identity_text("00112233445566778899aabbccddeeff", 4);
        let expected =
            "VexFS store\nversion 4\nid 00112233445566778899aabbccddeeff\nchecksum 659bb6f3775288cb\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn another_format_version_is_named_whatever_follows_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IDENTITY), "VexFS store\nversion 7\nsomething new\n").unwrap();
        match identity(dir.path()) {
            Err(Error::Version { expected: VERSION, got: 7, path }) => assert_eq!(path, dir.path()),
            other => panic!("want Error::Version, got {other:?}"),
        }
    }

    #[test]
    fn an_older_store_keeps_its_identity_when_it_becomes_one_of_this_version() {
        let dir = tempfile::tempdir().unwrap();
        let text = identity_text("00112233445566778899aabbccddeeff", 2);
        fs::write(dir.path().join(IDENTITY), &text).unwrap();
        let old = identity(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(IDENTITY)).unwrap(), text, "reading changes nothing");
        old.upgrade(dir.path()).unwrap();
        assert_eq!(identity(dir.path()).unwrap(), Identity { version: VERSION, ..old });
    }

    #[test]
    fn a_damaged_identity_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let Identity { id, .. } = identity(dir.path()).unwrap();
        let good = fs::read_to_string(dir.path().join(IDENTITY)).unwrap();
        let other = if id.starts_with('0') { "id 1" } else { "id 0" };
        let flipped = good.replace(&format!("id {}", &id[..1]), other);
        for damaged in ["", "\u{0}\u{0}", "VexFS store\n", "VexFS store\nversion x\n", &good[..60], &flipped]
        {
            fs::write(dir.path().join(IDENTITY), damaged).unwrap();
            let got = identity(dir.path());
            assert!(
                matches!(got, Err(Error::Corrupt { ref file, .. }) if file == "VEXFS"),
                "{damaged:?}: {got:?}"
            );
        }
    }
}
