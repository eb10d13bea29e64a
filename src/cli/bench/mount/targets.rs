//! What is measured: a mount of VexFS, the yardstick, a directory of the disk. And on which CPU.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::super::super::exit::{Code, Failure};
use crate::fuse::{self, mounts};

/// How long a filesystem may take to answer after its process was started, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A filesystem that is measured, in a directory of it that is its own.
pub(super) struct Target {
    pub(super) name: &'static str,
    /// Removed with the target, before the filesystem ends.
    scratch: TempDir,
    daemon: Option<Daemon>,
}

impl Target {
    /// A directory that is there already.
    pub(super) fn directory(name: &'static str, dir: &Path) -> Result<Self, Failure> {
        Ok(Self { name, scratch: scratch_in(dir)?, daemon: None })
    }

    /// A fresh VexFS whose store lies below `temp`.
    pub(super) fn fresh(temp: &Path, threads: usize) -> Result<Self, Failure> {
        let root = scratch_in(temp)?;
        let store = root.path().join("store");
        let arguments = |mountpoint: &Path| {
            let mut words: Vec<std::ffi::OsString> = ["mount", "-f", "--store"].map(Into::into).into();
            words.extend([store.clone().into(), mountpoint.into(), "-o".into()]);
            words.push(format!("threads={threads}").into());
            words
        };
        Self::served("vexfs", root, arguments)
    }

    /// The bare in-memory filesystem.
    pub(super) fn floor(threads: usize) -> Result<Self, Failure> {
        let root = scratch_in(&std::env::temp_dir())?;
        Self::served("floor", root, |mountpoint| {
            vec![
                "bench".into(),
                "floor".into(),
                mountpoint.into(),
                "--threads".into(),
                threads.to_string().into(),
            ]
        })
    }

    fn served(
        name: &'static str,
        root: TempDir,
        arguments: impl FnOnce(&Path) -> Vec<std::ffi::OsString>,
    ) -> Result<Self, Failure> {
        let mountpoint = root.path().join("mnt");
        fs::create_dir(&mountpoint).map_err(|error| Failure::io(&mountpoint, &error))?;
        let program = std::env::current_exe().map_err(|error| Failure::io(Path::new("vexfs"), &error))?;
        let child = Command::new(program)
            .args(arguments(&mountpoint))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Failure::new(Code::FAILED, format!("{name}: {error}")))?;
        let mut daemon = Daemon { child, mountpoint, _root: root };
        daemon.wait_until_it_answers(name)?;
        let scratch = scratch_in(&daemon.mountpoint)?;
        Ok(Self { name, scratch, daemon: Some(daemon) })
    }

    pub(super) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Lets the threads that serve this target run on `cpus` only.
    pub(super) fn restrict(&self, cpus: &CpuSet) -> io::Result<()> {
        let Some(daemon) = &self.daemon else { return Ok(()) };
        for task in fs::read_dir(format!("/proc/{}/task", daemon.child.id()))? {
            let thread = task?.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
            match sched_setaffinity(Pid::from_raw(thread), cpus) {
                // It ended meanwhile.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn scratch_in(dir: &Path) -> Result<TempDir, Failure> {
    tempfile::Builder::new().prefix("vexfs-bench-").tempdir_in(dir).map_err(|error| Failure::io(dir, &error))
}

/// A process that serves a mount.
struct Daemon {
    child: Child,
    mountpoint: PathBuf,
    /// Mountpoint and store.
    _root: TempDir,
}

impl Daemon {
    fn wait_until_it_answers(&mut self, name: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Failure::new(Code::FAILED, format!("{name}: ended at once, {status}")));
            }
            if matches!(mounts::at(&self.mountpoint), Ok(Some(_))) && fs::metadata(&self.mountpoint).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(Code::FAILED, format!("{name}: does not answer")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if fuse::unmount(&self.mountpoint, false).is_err() {
            // In use: the process ends once the last user has gone.
            let _ = fuse::unmount(&self.mountpoint, true);
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The CPUs of this process, and the one of them that everything is put on.
pub(super) struct Placement {
    all: CpuSet,
    one: CpuSet,
    /// Its number.
    pub(super) cpu: usize,
}

impl Placement {
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub(super) fn new() -> io::Result<Self> {
        let all = sched_getaffinity(Pid::from_raw(0))?;
        // The last one: interrupts go to the first more often.
        let cpu = (0..CpuSet::count()).rev().find(|&cpu| all.is_set(cpu).unwrap_or(false)).unwrap_or(0);
        let mut one = CpuSet::new();
        one.set(cpu)?;
        Ok(Self { all, one, cpu })
    }

    /// Puts this thread, what it starts, and the targets on the one CPU, or on all of them.
    pub(super) fn place(&self, on_one: bool, targets: &[Target]) -> io::Result<()> {
        let cpus = if on_one { &self.one } else { &self.all };
        sched_setaffinity(Pid::from_raw(0), cpus)?;
        targets.iter().try_for_each(|target| target.restrict(cpus))
    }
}
