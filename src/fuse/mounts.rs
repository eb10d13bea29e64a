//! The kernel's table of mounts, `/proc/self/mountinfo`: which VexFS mounts there are.
//!
//! Reading it asks no daemon, so it works for dead mounts and for the daemon's own.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Subtype of every VexFS mount; its type is `fuse.vexfs`.
pub const NAME: &str = "vexfs";

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Filesystem type, with its subtype behind a dot if it has one.
    pub fstype: String,
    /// What is mounted, by its own word: the store's directory.
    pub source: PathBuf,
}

impl Mount {
    /// Whether it is one of ours.
    #[must_use]
    pub fn is_vexfs(&self) -> bool {
        self.fstype.split_once('.') == Some(("fuse", NAME))
    }
}

/// Every mount that this process sees, in the order of mounting.
///
/// # Errors
///
/// When the table cannot be read.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The VexFS mounts.
///
/// # Errors
///
/// As [`all`].
pub fn vexfs() -> io::Result<Vec<Mount>> {
    Ok(all()?.into_iter().filter(Mount::is_vexfs).collect())
}

/// What is mounted on `path` itself, the topmost where several are; `path` is absolute, without symbolic links.
///
/// # Errors
///
/// As [`all`].
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|mount| mount.mountpoint == path))
}

/// Asks the daemon of the mount at `path` for a sign of life.
///
/// `stat` is no such question: the kernel answers it from its cache, also for a daemon that died. The figures of
/// the filesystem are never cached.
///
/// # Errors
///
/// `NotConnected` (`ENOTCONN`) for a dead mount.
pub fn ask(path: &Path) -> io::Result<()> {
    Ok(nix::sys::statvfs::statvfs(path).map(drop)?)
}

/// Resolves symbolic links, without asking what is mounted there: it may be dead, or its daemon stuck.
///
/// # Errors
///
/// When a directory on the way cannot be read.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    // A last `.` or `..` has no file name of its own.
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return path.canonicalize();
    };
    // `lstat` would ask the mount for its attributes; whether something is a link, the kernel knows.
    if std::fs::read_link(path).is_ok() {
        return path.canonicalize();
    }
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok(parent.canonicalize()?.join(name))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `id parent major:minor root mountpoint options optional... - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mountpoint = fields.nth(4)?;
    fields.find(|&field| field == b"-")?;
    let path = |field| PathBuf::from(OsString::from_vec(unescape(field)));
    Some(Mount {
        mountpoint: path(mountpoint),
        fstype: String::from_utf8_lossy(fields.next()?).into_owned(),
        source: path(fields.next()?),
    })
}

/// Undoes the table's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\').then(|| after.get(..3)).flatten().and_then(octal);
        plain.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        40 22 0:35 / /mnt/my\\040v ro,nosuid,nodev shared:7 master:2 - fuse.vexfs /srv/my\\040store rw,user_id=0\n\
        41 22 0:36 / /mnt/a\\134b rw - fuse vexfs rw\n\
        42 22 0:37 / /mnt/other rw - fuse.sshfs vexfs rw\n\
        43 22 0:38 / /mnt/raw\xff rw - fuse /dev/fuse rw\n\
        broken line\n";

    #[test]
    fn a_mountpoint_with_a_space_is_read() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/my v"));
        assert_eq!(
            (mounts[1].fstype.as_str(), mounts[1].source.as_path()),
            ("fuse.vexfs", Path::new("/srv/my store"))
        );
        assert_eq!(mounts[2].mountpoint, Path::new("/mnt/a\\b"));
        assert_eq!(mounts[4].mountpoint.as_os_str().as_bytes(), b"/mnt/raw\xff");
    }

    #[test]
    fn ours_are_told_by_subtype() {
        let ours: Vec<bool> = parse(TABLE).iter().map(Mount::is_vexfs).collect();
        assert_eq!(ours, [false, true, false, false, false]);
    }

    #[test]
    fn escapes_that_are_none_stay_as_they_are() {
        assert_eq!(unescape(b"a\\011b\\"), b"a\tb\\");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }

    #[test]
    fn the_last_component_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("mnt")).unwrap();
        std::os::unix::fs::symlink(real.join("mnt"), real.join("link")).unwrap();
        assert_eq!(resolve(&real.join("mnt/")).unwrap(), real.join("mnt"));
        assert_eq!(resolve(&real.join("mnt/..")).unwrap(), real);
        assert_eq!(resolve(&real.join("link")).unwrap(), real.join("mnt"));
        assert_eq!(resolve(&real.join("absent")).unwrap(), real.join("absent"));
        assert!(resolve(&real.join("absent/below")).is_err());
    }
}
