//! Putting a FUSE connection on a directory and taking it off again.
//!
//! Root mounts by itself. Everybody else asks the setuid helper `fusermount3`, which opens the device, mounts, and
//! passes the connection back over a socket. Either way the mount has the type `fuse.vexfs`, and its source is the
//! store's directory: so `df` shows it, and `mount -a` sees that a line of fstab is mounted already.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::unistd::{getegid, geteuid};

use super::mount::MountOptions;
use super::mounts::NAME;

const DEVICE: &str = "/dev/fuse";

/// The setuid helpers that mount and unmount for an ordinary user, the better one first.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// Opens the device that a connection to the kernel goes through.
pub(super) fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
        let what = match error.kind() {
            io::ErrorKind::NotFound => "the kernel has no FUSE here (try: modprobe fuse)",
            io::ErrorKind::PermissionDenied => "not accessible for this user",
            _ => return io::Error::new(error.kind(), format!("{DEVICE}: {error}")),
        };
        io::Error::new(error.kind(), format!("{DEVICE}: {what}"))
    })
}

/// What no program may do on any mount of ours; and times of reading are not kept, which `MS_NOATIME` tells.
fn flags(no_exec: bool) -> MsFlags {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_NOEXEC, no_exec);
    flags
}

/// Mounts a new connection on `mountpoint` and returns its end of it; `None` when this process may not mount.
/// `source` is the store's directory.
///
/// # Errors
///
/// When the device cannot be opened or the mount is refused for another reason.
pub(super) fn attach(
    source: &Path,
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<Option<OwnedFd>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let device = open_device()?;
    let flags = flags(options.no_exec);
    let data = mount_data(device.as_raw_fd(), options);
    let fstype = format!("fuse.{NAME}");
    match nix::mount::mount(Some(source), mountpoint, Some(fstype.as_str()), flags, Some(data.as_str())) {
        Ok(()) => Ok(Some(device.into())),
        // Root in a container without the capability.
        Err(Errno::EPERM) => Ok(None),
        Err(errno) => {
            let error = io::Error::from(errno);
            Err(io::Error::new(error.kind(), format!("mount on {}: {error}", mountpoint.display())))
        }
    }
}

/// `default_permissions` is always there: the kernel checks modes and owners, the daemon never has to.
fn mount_data(device: i32, options: &MountOptions) -> String {
    let owner = format!("user_id={},group_id={}", geteuid(), getegid());
    let others = if options.allow_other { ",allow_other" } else { "" };
    format!("fd={device},rootmode={:o},{owner},default_permissions{others}", libc::S_IFDIR)
}

/// Changes what the kernel allows on the mount at `mountpoint`; its daemon is not told.
///
/// # Errors
///
/// `PermissionDenied` for an ordinary user; others of mount(2).
pub fn remount(mountpoint: &Path, read_only: bool, no_exec: bool) -> io::Result<()> {
    let mut flags = MsFlags::MS_REMOUNT | flags(no_exec);
    flags.set(MsFlags::MS_RDONLY, read_only);
    Ok(nix::mount::mount(None::<&str>, mountpoint, None::<&str>, flags, None::<&str>)?)
}

/// Has the helper mount a connection on `mountpoint`, and returns this process's end of it.
///
/// # Errors
///
/// `NotFound` when there is no helper; what the helper says when it refuses.
pub(super) fn attach_with_helper(
    source: &Path,
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    // The helper inherits both ends; ours is closed with its process.
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
    let helper = Command::new(helper()?)
        .arg("-o")
        .arg(helper_options(source, options))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(theirs);
    let said = helper.wait_with_output()?;
    if !said.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&said.stderr).trim().to_owned()));
    }
    receive_descriptor(&ours)
}

/// What the helper is told: the same as [`attach`] tells the kernel.
fn helper_options(source: &Path, options: &MountOptions) -> OsString {
    let mut list = format!("rw,nosuid,nodev,noatime,default_permissions,subtype={NAME}").into_bytes();
    if options.no_exec {
        list.extend(b",noexec");
    }
    if options.allow_other {
        list.extend(b",allow_other");
    }
    list.extend(b",fsname=");
    for &byte in source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            list.push(b'\\');
        }
        list.push(byte);
    }
    OsString::from_vec(list)
}

/// The descriptor that the helper has put into the socket.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "fusermount3 passed no connection"))
}

/// The helper in the search path.
///
/// # Errors
///
/// `NotFound` with what to install.
fn helper() -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = || std::env::split_paths(&path).chain(["/bin".into(), "/usr/bin".into()]);
    HELPERS
        .iter()
        .flat_map(|helper| dirs().map(move |dir: PathBuf| dir.join(helper)))
        .find(|at| at.is_file())
        .ok_or_else(|| {
            let what = "fusermount3 not found: install fuse3, or mount as root";
            io::Error::new(io::ErrorKind::NotFound, what)
        })
}

/// Takes what is mounted on `mountpoint` off; `lazily` also when it is in use, for those who look from now on.
///
/// # Errors
///
/// `ResourceBusy` when it is in use; `InvalidInput` when nothing is mounted there; others of umount(2), and what
/// the helper says.
pub fn unmount(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, lazily);
    match nix::mount::umount2(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => unmount_with_helper(mountpoint, lazily),
        Err(errno) => Err(errno.into()),
    }
}

fn unmount_with_helper(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new(helper()?);
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    // The helper's words are translated otherwise, and one of them is looked for.
    let command = command.arg("--").arg(mountpoint).env("LC_ALL", "C");
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let busy = said.contains("Device or resource busy");
    Err(io::Error::new(if busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other }, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_always_checked_by_the_kernel() {
        let mut options = MountOptions::default();
        let data = mount_data(7, &options);
        assert!(data.starts_with("fd=7,rootmode=40000,user_id="), "{data}");
        assert!(data.ends_with(",default_permissions"), "{data}");
        options.allow_other = true;
        assert!(mount_data(7, &options).ends_with(",default_permissions,allow_other"));
    }

    #[test]
    fn the_helper_is_told_what_the_kernel_would_be() {
        let mut options = MountOptions::default();
        let list = "rw,nosuid,nodev,noatime,default_permissions,subtype=vexfs";
        let store = Path::new("/srv/a,b\\c");
        assert_eq!(helper_options(store, &options), format!("{list},fsname=/srv/a\\,b\\\\c").as_str());
        options = MountOptions { no_exec: true, allow_other: true, ..options };
        let list = format!("{list},noexec,allow_other,fsname=/srv/s");
        assert_eq!(helper_options(Path::new("/srv/s"), &options), list.as_str());
    }

    #[test]
    fn unmounting_an_ordinary_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(unmount(dir.path(), false).is_err());
        assert!(dir.path().exists());
    }
}
