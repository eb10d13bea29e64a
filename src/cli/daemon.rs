//! The process that serves a mount: started in the background, or this one.
//!
//! In the background the program starts itself once more with `-f --announce` and waits for its word. What can go
//! wrong is said before that word, on the terminal, because the new process still has the old stderr; then its
//! stderr becomes the store's log.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd;

use super::exit::{Code, Failure, Outcome};
use super::mount::Plan;
use super::notify;
use super::say;
use crate::fuse::{self, Mounted, mounts};
use crate::volume::{Volume, VolumeOptions};

/// What the new process writes on its stdout when the mount answers.
const READY: &str = "ready";

/// Name of the log within the store, and of the one before it.
const LOG: &str = "vexfs.log";
const OLD_LOG: &str = "vexfs.log.old";

/// A log of this size is put aside when the store is mounted.
const LOG_BYTES: u64 = 8 << 20;

/// Starts a process that serves, and returns once its mount answers a `stat`. `words` are the mount options as
/// they were given.
pub(super) fn start(plan: &Plan, words: &[String]) -> Outcome {
    let mut child = command(plan, words)
        .and_then(|mut command| command.spawn())
        .map_err(|error| Failure::new(Code::FAILED, format!("cannot start the mount's process: {error}")))?;
    let mut word = String::new();
    if let Some(stdout) = child.stdout.take() {
        // Without its word, for whatever reason, the process is as good as dead.
        let _ = BufReader::new(stdout).read_line(&mut word);
    }
    if word.trim_end() != READY {
        return Err(gone(&mut child));
    }
    match std::fs::metadata(&plan.mountpoint).and_then(|_| mounts::ask(&plan.mountpoint)) {
        Ok(()) => Ok(Code::Ok),
        Err(error) => {
            let message = format!("{}: mounted, but it does not answer: {error}", plan.mountpoint.display());
            Err(Failure::new(Code::NotReady, message))
        }
    }
}

fn command(plan: &Plan, words: &[String]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // Also when this is a copy with the name of mount(8)'s helper.
    command.arg0("vexfs");
    command.args(["mount", "--foreground", "--announce", "--store"]).arg(&plan.store);
    for word in words {
        command.arg("-o").arg(word);
    }
    command.arg("--").arg(&plan.mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/");
    Ok(command)
}

/// How a process ended that gave no word. It has said why itself, unless it was killed.
fn gone(child: &mut Child) -> Failure {
    match child.wait() {
        Ok(status) => ended(status),
        Err(error) => Failure::new(Code::FAILED, format!("the mount's process: {error}")),
    }
}

fn ended(status: ExitStatus) -> Failure {
    if let Some(signal) = status.signal() {
        return Failure::new(Code::FAILED, format!("the mount's process was killed by signal {signal}"));
    }
    let codes = [Code::Usage, Code::NotMounted, Code::Invalid, Code::NotReady, Code::Damaged];
    let code = codes.into_iter().find(|&code| status.code() == Some(code as i32)).unwrap_or(Code::FAILED);
    Failure::new(code, "")
}

/// Serves the mount until it ends: by a signal, or by an unmount from outside.
pub(super) fn serve(plan: Plan, announce: bool) -> Outcome {
    if announce {
        // Away from the terminal and its signals. It fails only for the leader of a process group, which a process
        // that was just started by another one is not.
        unistd::setsid().map_err(|errno| system("setsid", errno))?;
    }
    raise_open_files();
    let signals = ending_signals();
    // Before the first thread: each inherits the mask, so only the thread that waits for them gets them.
    signals.thread_block().map_err(|errno| system("signal mask", errno))?;
    let volume = Volume::open(VolumeOptions {
        store: plan.store.clone(),
        mountpoint: Some(plan.mountpoint.clone()),
        read_only: plan.options.read_only,
    })?;
    if !plan.options.read_only
        && let Some(reason) = volume.refusal()
    {
        say(&format!("{}: {reason}, mounted read-only", plan.store.display()));
    }
    volume.set_sync_mode(plan.options.sync);
    if let Some(bytes_per_second) = plan.options.scrub {
        volume.start_scrub(bytes_per_second)?;
    }
    let mounted = Arc::new(fuse::mount(volume, &plan.mountpoint, &plan.options.mount)?);
    unmount_on(signals, &mounted)?;
    if announce && let Err(error) = leave_terminal(&plan.store) {
        // The thread that waits for signals holds the mount as well, so nothing would be dropped.
        mounted.unmount()?;
        return Err(Failure::io(&plan.store.join(LOG), &error));
    }
    tracing::info!(
        store = %plan.store.display(),
        mountpoint = %plan.mountpoint.display(),
        pid = std::process::id(),
        "mounted"
    );
    if !announce {
        notify::ready();
    }
    let ended = mounted.wait();
    if ended.is_ok() {
        tracing::info!(mountpoint = %plan.mountpoint.display(), "unmounted, store closed");
    }
    ended.map(|()| Code::Ok).map_err(|error| {
        let code = match error {
            crate::Error::Corrupt { .. } => Code::Damaged,
            _ => Code::FAILED,
        };
        Failure::new(code, format!("{}: {error}", plan.store.display()))
    })
}

fn system(what: &str, errno: nix::errno::Errno) -> Failure {
    Failure::new(Code::FAILED, format!("{what}: {errno}"))
}

/// As many open files as the process may have: each large file that somebody has open takes one.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!("limit of open files: {errno}");
    }
}

fn ending_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Unmounts at the first of `signals`; when that fails, at the next.
fn unmount_on(signals: SigSet, mounted: &Arc<Mounted>) -> Result<(), Failure> {
    let mounted = Arc::clone(mounted);
    let waiting = std::thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            match signals.wait() {
                Ok(signal) => {
                    tracing::info!("{signal}: unmounting");
                    notify::stopping();
                }
                Err(errno) => {
                    tracing::error!("waiting for signals: {errno}");
                    return;
                }
            }
            match mounted.unmount() {
                Ok(()) => return,
                Err(error) => tracing::error!("cannot unmount: {error}"),
            }
        }
    });
    waiting.map(drop).map_err(|error| Failure::new(Code::FAILED, format!("thread: {error}")))
}

/// Turns stderr into the store's log, says the word to the parent, and closes stdout.
fn leave_terminal(store: &Path) -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    let log = match open_log(store) {
        // Nothing is written into a store that cannot be written.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => null.try_clone()?,
        other => other?,
    };
    let mut stdout = io::stdout().lock();
    // A parent that is gone was interrupted: whoever wanted the mount does not want it any more.
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&log)?;
    Ok(())
}

fn open_log(store: &Path) -> io::Result<File> {
    let path = store.join(LOG);
    if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() >= LOG_BYTES) {
        std::fs::rename(&path, store.join(OLD_LOG))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::mount::Options;

    #[test]
    fn the_background_process_gets_the_whole_plan() {
        let plan = Plan {
            store: "/data/my store".into(),
            mountpoint: "/mnt/-v".into(),
            options: Options::default(),
        };
        let command = command(&plan, &["ro".into(), "threads=2".into()]).unwrap();
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        let want = [
            "mount",
            "--foreground",
            "--announce",
            "--store",
            "/data/my store",
            "-o",
            "ro",
            "-o",
            "threads=2",
            "--",
            "/mnt/-v",
        ];
        assert_eq!(args, want);
        assert_eq!(command.get_current_dir(), Some(Path::new("/")));
    }

    #[test]
    fn a_process_that_failed_hands_its_code_on() {
        let failure = ended(ExitStatus::from_raw(6 << 8));
        assert_eq!((failure.code, failure.message.as_str()), (Code::Damaged, ""));
        assert_eq!(ended(ExitStatus::from_raw(101 << 8)).code, Code::FAILED);
        // It gave no word, so it cannot have succeeded.
        assert_eq!(ended(ExitStatus::from_raw(0)).code, Code::FAILED);
        let killed = ended(ExitStatus::from_raw(libc::SIGKILL));
        assert!(killed.message.ends_with("signal 9"), "{}", killed.message);
    }

    #[test]
    fn the_log_is_the_owners_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let log = open_log(dir.path()).unwrap();
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        log.set_len(LOG_BYTES).unwrap();
        assert_eq!(open_log(dir.path()).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join(OLD_LOG)).unwrap().len(), LOG_BYTES);
        std::fs::remove_file(dir.path().join(LOG)).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join(LOG)).unwrap();
        assert!(open_log(dir.path()).is_err());
    }
}
