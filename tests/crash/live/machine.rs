//! The machine that a test breaks: mounts that nobody else sees, filesystems on recorded disks, the daemon.
//!
//! A test runs in a mount namespace of its own, and its daemons die with it. So nothing is left behind, however the
//! test ends: with the last process the namespace goes, with it the mounts, and with those the loop devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::device::{Disk, Medium, Shelf};

/// The program under test.
const VEXFS: &str = env!("CARGO_BIN_EXE_vexfs");

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A filesystem below the store, and the options that make it forgive least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Below {
    pub(super) name: &'static str,
    kind: &'static str,
    mkfs: &'static [&'static str],
    options: &'static str,
    pub(super) disk_bytes: u64,
}

const MKFS_EXT4: &[&str] =
    &["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"];

/// ext4 as it comes, ext4 without what hides a missing fsync before a rename, xfs.
pub(super) const FILESYSTEMS: [Below; 3] = [
    Below { name: "ext4", kind: "ext4", mkfs: MKFS_EXT4, options: "loop", disk_bytes: 384 << 20 },
    Below {
        name: "ext4 noauto_da_alloc",
        kind: "ext4",
        mkfs: MKFS_EXT4,
        options: "loop,noauto_da_alloc,commit=1",
        disk_bytes: 384 << 20,
    },
    Below {
        name: "xfs",
        kind: "xfs",
        mkfs: &["mkfs.xfs", "-q", "-f", "-K"],
        options: "loop,nouuid",
        disk_bytes: 512 << 20,
    },
];

/// A disk that is soon full.
pub(super) const SMALL: Below = Below { name: "small ext4", disk_bytes: 128 << 20, ..FILESYSTEMS[0] };

impl Below {
    /// Whether its mkfs is installed. ext4's has to be; xfs is used where it is.
    pub(super) fn is_installed(&self) -> bool {
        let found = Command::new(self.mkfs[0]).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(self.kind != "ext4" || found.is_ok(), "these tests need mkfs.ext4, of the package e2fsprogs");
        found.is_ok()
    }
}

/// A mount namespace, a shelf of disks, and a directory for mount points.
pub(super) struct Machine {
    // Dropped in this order: the shelf is unmounted before its directory is removed.
    shelf: Shelf,
    dir: TempDir,
}

impl Machine {
    /// A machine for the test that runs on this thread.
    pub(super) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests mount filesystems on loop devices: run them as root"
        );
        assert!(Path::new("/dev/loop-control").exists(), "these tests need loop devices (/dev/loop-control)");
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .unwrap_or_else(|errno| panic!("these tests need a mount namespace of their own: {errno}"));
        expect(Command::new("mount").args(["--make-rprivate", "/"]));
        let dir = tempfile::Builder::new().prefix("vexfs-crash-").tempdir().unwrap();
        for name in ["shelf", "below", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { shelf: Shelf::mount(&dir.path().join("shelf")), dir }
    }

    /// Where VexFS is mounted.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Where what is below the store is mounted.
    pub(super) fn below(&self) -> PathBuf {
        self.dir.path().join("below")
    }

    /// The store directory.
    pub(super) fn store(&self) -> PathBuf {
        self.below().join("store")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What the daemons of this machine said.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A new disk with an empty filesystem, not mounted.
    pub(super) fn format(&self, name: &str, below: &Below) -> Arc<Disk> {
        let disk = Disk::new(below.disk_bytes, Medium::default());
        let path = self.shelf.add(name, &disk);
        expect(Command::new(below.mkfs[0]).args(&below.mkfs[1..]).arg(path));
        disk
    }

    /// A new disk with this content.
    pub(super) fn insert(&self, name: &str, below: &Below, medium: Medium) -> Arc<Disk> {
        let disk = Disk::new(below.disk_bytes, medium);
        self.shelf.add(name, &disk);
        disk
    }

    /// Mounts the filesystem of a disk below the store. Says why when the filesystem cannot be mounted.
    pub(super) fn mount_below(&self, disk: &str, below: &Below) -> Result<MountedBelow, String> {
        let output = run(Command::new("mount")
            .args(["-t", below.kind, "-o", below.options])
            .arg(self.dir.path().join("shelf").join(disk))
            .arg(self.below()));
        match output.status.success() {
            true => Ok(MountedBelow { at: self.below() }),
            false => Err(format!("mount: {}", text(&output.stderr).trim())),
        }
    }

    /// What `vexfs fsck` says of the store, which is not mounted.
    pub(super) fn checks_store(&self) -> Result<(), String> {
        let output = run(Command::new(VEXFS).arg("fsck").arg(self.store()));
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        match output.status.code() {
            Some(0) => Ok(()),
            _ => Err(format!("vexfs fsck: {said}")),
        }
    }

    /// Mounts VexFS and waits until it answers. Says why when it does not.
    pub(super) fn start(&self) -> Result<Daemon, String> {
        self.start_with(&[], &[])
    }

    /// [`start`](Self::start) with a program in front (`prlimit --nofile=64`), and arguments.
    pub(super) fn start_with(&self, wrapper: &[&str], args: &[&str]) -> Result<Daemon, String> {
        let mut daemon = self.begin(wrapper, args);
        let version = self.root().join(".vexfs/version");
        let deadline = Instant::now() + PATIENCE;
        while fs::read(&version).is_err() {
            let process = daemon.process.as_mut().expect("it was just started");
            if let Some(status) = process.try_wait().unwrap() {
                daemon.process = None;
                return Err(format!("vexfs mount ended with {status}: {}", last_lines(&self.said())));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "vexfs mount did not answer for {PATIENCE:?}: {}",
                    last_lines(&self.said())
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Begins to mount VexFS, and does not wait.
    pub(super) fn begin(&self, wrapper: &[&str], args: &[&str]) -> Daemon {
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        // Each of these programs becomes the next, so the process is the daemon, and it dies with the test.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(wrapper)
            .args([VEXFS, "mount", "-f", "--store"])
            .arg(self.store())
            .args(args)
            .arg(self.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv, of the package util-linux: {error}"));
        Daemon { process: Some(process), root: self.root() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Only what a failed test or a killed daemon left.
        for at in [self.root(), self.below()] {
            let _ = run(Command::new("umount").args(["-q", "-l"]).arg(at));
        }
    }
}

/// A mounted filesystem below the store, unmounted when it is dropped.
pub(super) struct MountedBelow {
    at: PathBuf,
}

impl MountedBelow {
    /// Unmounts it: everything that is in memory is written.
    pub(super) fn unmount(self) {
        drop(self);
    }
}

impl Drop for MountedBelow {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// A daemon that serves the mount.
pub(super) struct Daemon {
    process: Option<Child>,
    root: PathBuf,
}

impl Daemon {
    /// Kills it as a crash would. The mount point stays dead.
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    /// Unmounts, and waits for the end. Says how it ended when that was no success.
    pub(super) fn unmount(mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = run(Command::new("umount").arg(&self.root));
            if output.status.success() {
                break;
            }
            // Another test's process that is just being started has our files open for a moment.
            if Instant::now() > deadline {
                return Err(format!("umount: {}", text(&output.stderr)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.process.take().expect("the daemon runs").wait().unwrap();
        if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}")) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A dead mount is left as it is: the next mount has to cope with it, and in the end the namespace goes.
        if self.process.is_some() {
            self.kill();
            let _ = run(Command::new("umount").arg("-l").arg(&self.root));
        }
    }
}

fn unmount(at: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !run(Command::new("umount").arg(at)).status.success() {
        if Instant::now() > deadline {
            let _ = run(Command::new("umount").arg("-l").arg(at));
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end.
pub(super) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed.
pub(super) fn expect(command: &mut Command) {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a daemon that ended said last: its panic, if there was one.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.iter().rposition(|line| line.contains("panicked at"));
    let first = first.unwrap_or(lines.len().saturating_sub(5));
    lines[first..].iter().take(40).copied().collect::<Vec<_>>().join("\n")
}
