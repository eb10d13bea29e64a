//! `vexfs mount`: checks what was asked for, then serves here (`-f`) or starts a process that does.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{Code, Failure, Outcome};
use super::{daemon, release, say};
use crate::fuse::{self, MountOptions, mounts};
use crate::store;
use crate::volume::SyncMode;

/// Dead mounts on one directory that are taken away before giving up.
const DEAD_MOUNTS: usize = 16;

#[derive(Args, Debug)]
pub(super) struct Mount {
    /// Directory of the store, made on first use [default: $XDG_DATA_HOME/vexfs/default]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// An existing directory
    mountpoint: PathBuf,
    /// ro, rw, exec, noexec, allow_other, threads=N, sync=always|normal|off, scrub=BYTES_PER_SECOND, stack_probe; what fstab says to others is accepted
    #[arg(short = 'o', value_name = "OPT", value_delimiter = ',', action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Tell a waiting parent on stdout when the mount answers
    #[arg(long, hide = true, requires = "foreground")]
    announce: bool,
}

/// A mount that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) store: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) options: Options,
}

/// What `-o` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The volume refuses every change; it can still be searched.
    pub(super) read_only: bool,
    /// Bytes per second at which all checksums are read in the background.
    pub(super) scrub: Option<u64>,
    /// When changes are made durable.
    pub(super) sync: SyncMode,
    pub(super) mount: MountOptions,
}

impl Mount {
    /// A mount in the background.
    pub(super) fn of(store: PathBuf, mountpoint: PathBuf, options: Vec<String>) -> Self {
        Self { store: Some(store), mountpoint, options, foreground: false, announce: false }
    }

    pub(super) fn run(&self) -> Outcome {
        let options = parse_options(&self.options)?;
        let store = match &self.store {
            Some(store) => absolute(store)?,
            None => default_store()?,
        };
        let mountpoint = prepare(&self.mountpoint)?;
        check_apart(&store, &mountpoint)?;
        let plan = Plan { store, mountpoint, options };
        if self.store.is_none() && !self.announce {
            say(&format!("store: {}", plan.store.display()));
        }
        // Once: the process that is announced was started after this.
        if !self.announce {
            release::wait_for_unmounted(&plan.store);
        }
        if self.foreground { daemon::serve(plan, self.announce) } else { daemon::start(&plan, &self.options) }
    }
}

/// # Errors
///
/// `Usage`, naming the option.
pub(super) fn parse_options(words: &[String]) -> Result<Options, Failure> {
    let usage = |message: String| Failure::new(Code::Usage, message);
    let mut options = Options::default();
    for word in words.iter().map(|word| word.trim()).filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            None => match word {
                "ro" => options.read_only = true,
                "rw" => options.read_only = false,
                "sync" => options.sync = SyncMode::Always,
                "async" => options.sync = SyncMode::Normal,
                "noexec" => options.mount.no_exec = true,
                "exec" => options.mount.no_exec = false,
                "stack_probe" => options.mount.stack_probe = true,
                "allow_other" => options.mount.allow_other = true,
                _ if is_for_others(word) => {}
                _ => return Err(usage(format!("unknown mount option '{word}'"))),
            },
            Some(("threads", number)) => {
                let range = MountOptions::THREADS;
                let threads = number.parse().ok().filter(|threads| range.contains(threads));
                options.mount.threads = threads.ok_or_else(|| {
                    usage(format!(
                        "threads={number}: want a number from {} to {}",
                        range.start(),
                        range.end()
                    ))
                })?;
            }
            Some(("sync", mode)) => {
                options.sync = match mode {
                    "always" => SyncMode::Always,
                    "normal" => SyncMode::Normal,
                    "off" => SyncMode::Off,
                    _ => return Err(usage(format!("sync={mode}: want always, normal or off"))),
                }
            }
            Some(("scrub", "off")) => options.scrub = None,
            Some(("scrub", rate)) => {
                let parsed = rate.parse().ok().filter(|&rate| rate > 0);
                options.scrub = Some(parsed.ok_or_else(|| {
                    usage(format!("scrub={rate}: want a number of bytes per second, or off"))
                })?);
            }
            Some(_) if is_for_others(word) => {}
            Some((name, _)) => return Err(usage(format!("unknown mount option '{name}'"))),
        }
    }
    Ok(options)
}

/// Whether an option is for mount(8), for who reads fstab, or says what holds for every mount of ours.
fn is_for_others(word: &str) -> bool {
    const WORDS: [&str; 15] = [
        "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "noowner",
        "group", "nogroup", "nosuid", "nodev", "noatime",
    ];
    const BEGINNINGS: [&str; 4] = ["x-", "X-", "user=", "comment="];
    WORDS.contains(&word) || BEGINNINGS.iter().any(|beginning| word.starts_with(beginning))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io(path, &error))
}

/// The store that is used when none is named. The directories above it are made here; the store makes itself.
fn default_store() -> Result<PathBuf, Failure> {
    let Some(store) = store::default_dir() else {
        return Err(Failure::new(
            Code::Usage,
            "no home directory to keep a store in: name one with --store DIR",
        ));
    };
    if let Some(parent) = store.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(|error| Failure::io(parent, &error))?;
    }
    absolute(&store)
}

/// Resolves the mountpoint, and takes away dead VexFS mounts on it: a daemon that was killed leaves one behind.
fn prepare(mountpoint: &Path) -> Result<PathBuf, Failure> {
    let refused = |code, why: &str| Err(Failure::new(code, format!("{}: {why}", mountpoint.display())));
    let resolved = match mounts::resolve(mountpoint) {
        Ok(resolved) => resolved,
        Err(error) => return refused(Code::Invalid, &error.to_string()),
    };
    for _ in 0..DEAD_MOUNTS {
        let there = mounts::at(&resolved).map_err(|error| Failure::io(&resolved, &error))?;
        if there.is_some_and(|mount| mount.is_vexfs()) {
            match mounts::ask(&resolved) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => take_away(&resolved)?,
                _ => return refused(Code::FAILED, "already mounted"),
            }
            continue;
        }
        return match std::fs::metadata(&resolved) {
            Ok(meta) if meta.is_dir() => Ok(resolved),
            Ok(_) => refused(Code::Invalid, "not a directory"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refused(Code::Invalid, "no such directory")
            }
            Err(error) => refused(Code::Invalid, &error.to_string()),
        };
    }
    refused(Code::FAILED, "too many dead mounts")
}

fn take_away(mountpoint: &Path) -> Result<(), Failure> {
    fuse::unmount(mountpoint, true).map_err(|error| {
        Failure::new(Code::FAILED, format!("{}: dead mount: {error}", mountpoint.display()))
    })?;
    say(&format!("{}: took away a dead mount, its process had ended", mountpoint.display()));
    Ok(())
}

/// A store below its own mount would wait for itself; a mount below its store would be in the store's way.
fn check_apart(store: &Path, mountpoint: &Path) -> Result<(), Failure> {
    let store = real(store);
    let refused = |what| {
        let message = format!("{}: {what} {}", mountpoint.display(), store.display());
        Err(Failure::new(Code::Invalid, message))
    };
    if mountpoint.starts_with(&store) {
        refused("the mountpoint is inside the store")
    } else if store.starts_with(mountpoint) {
        refused("the mountpoint contains the store")
    } else {
        Ok(())
    }
}

/// The path without symbolic links, of which the last components may not exist yet.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return real.join(rest);
        }
    }
    path.to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options, Failure> {
        parse_options(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_of_two_opposite_options_holds() {
        assert_eq!(options("").unwrap(), Options::default());
        assert_eq!(options("rw,ro").unwrap(), Options { read_only: true, ..Options::default() });
        let all = options("noexec,allow_other,threads=64,ro,rw").unwrap();
        let mount = MountOptions { no_exec: true, allow_other: true, threads: 64, stack_probe: false };
        assert_eq!(all, Options { mount, ..Options::default() });
        for (text, mode) in [
            ("sync", SyncMode::Always),
            ("sync=always", SyncMode::Always),
            ("sync=off,sync=normal", SyncMode::Normal),
            ("sync,async", SyncMode::Normal),
            ("sync=off", SyncMode::Off),
        ] {
            assert_eq!(options(text).unwrap().sync, mode, "{text}");
        }
        assert_eq!(options("scrub=1000000").unwrap().scrub, Some(1_000_000));
        assert_eq!(options("scrub=1000000,scrub=off").unwrap().scrub, None);
    }

    #[test]
    fn what_fstab_says_to_others_is_accepted() {
        let text = "defaults,noauto,nofail,_netdev,user=ann,users,owner,async,nosuid,nodev,noatime,\
                    x-systemd.automount,x-systemd.requires-mounts-for=/srv,X-mount.mkdir,comment=a=b";
        assert_eq!(options(text).unwrap(), Options::default());
    }

    #[test]
    fn an_unknown_option_is_named() {
        for (text, named) in [
            ("ro,dirsync", "'dirsync'"),
            ("sync=never", "always, normal or off"),
            ("suid", "'suid'"),
            ("max_read=1", "'max_read'"),
            ("threads", "'threads'"),
            ("threads=0", "threads=0"),
            ("threads=65", "1 to 64"),
            ("threads=x", "threads=x"),
            ("scrub=0", "bytes per second"),
        ] {
            let failure = options(text).unwrap_err();
            assert_eq!(failure.code, Code::Usage);
            assert!(failure.message.contains(named), "{text}: {}", failure.message);
        }
    }

    #[test]
    fn a_mountpoint_is_an_existing_directory() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(prepare(dir.path()).unwrap(), real);
        std::fs::write(real.join("file"), b"x").unwrap();
        for (name, why) in [("file", "not a directory"), ("absent", "no such directory")] {
            let failure = prepare(&real.join(name)).unwrap_err();
            assert_eq!(failure.code, Code::Invalid);
            assert_eq!(failure.message, format!("{}: {why}", real.join(name).display()));
        }
        // Other files in it do not matter: they are hidden while the mount lasts.
        assert!(prepare(&real).is_ok());
    }

    #[test]
    fn store_and_mountpoint_lie_apart() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (mnt, link) = (real.join("mnt"), real.join("link"));
        std::fs::create_dir(&mnt).unwrap();
        std::os::unix::fs::symlink(&mnt, &link).unwrap();
        assert!(check_apart(&real.join("store"), &mnt).is_ok());
        assert!(check_apart(&real.join("mnt-store"), &mnt).is_ok());
        for store in [mnt.join("store/default"), mnt.clone(), real.clone(), link.join("new/store")] {
            let failure = check_apart(&store, &mnt).unwrap_err();
            assert_eq!(failure.code, Code::Invalid, "{}", failure.message);
        }
    }
}
