//! Many files: listing a large directory, and the programs that people copy, unpack and remove trees with.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::small::small;
use super::tally::{Tally, Unit};

/// Files of a directory of the tree.
const FILES_PER_DIR: usize = 1000;

/// The tree that is copied and unpacked, in the temporary directory.
pub(super) struct Source {
    root: TempDir,
    files: usize,
}

impl Source {
    /// `files` plain small files, and an archive of them.
    pub(super) fn make(files: usize) -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("vexfs-bench-").tempdir()?;
        let content = small(1);
        for number in 0..files {
            let dir = root.path().join(format!("tree/{}", number / FILES_PER_DIR));
            if number % FILES_PER_DIR == 0 {
                fs::create_dir_all(&dir)?;
            }
            fs::write(dir.join(format!("{number}.bin")), &content)?;
        }
        let source = Self { root, files };
        run("tar", &["-cf".as_ref(), &source.archive(), "-C".as_ref(), source.root.path(), "tree".as_ref()])?;
        Ok(source)
    }

    fn archive(&self) -> PathBuf {
        self.root.path().join("tree.tar")
    }

    /// Copies, removes, unpacks and removes the tree.
    pub(super) fn round(&self, dir: &Path, tally: &mut Tally, target: usize) -> io::Result<()> {
        let (from, to) = (self.root.path().join("tree"), dir.join("tree"));
        let worth = (Unit::Batch, self.files);
        tally.whole("cp -r, files", target, worth, || run("cp", &["-r".as_ref(), &from, &to]))?;
        tally.whole("rm -r, files", target, worth, || run("rm", &["-r".as_ref(), &to]))?;
        let unpack = ["-xf".as_ref(), &*self.archive(), "-C".as_ref(), dir];
        tally.whole("tar x, files", target, worth, || run("tar", &unpack))?;
        run("rm", &["-r".as_ref(), &to])
    }
}

fn run(program: &str, arguments: &[&Path]) -> io::Result<()> {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program}: {status}"))) }
}

/// A directory with many entries.
pub(super) struct Large {
    dir: PathBuf,
    entries: usize,
}

impl Large {
    pub(super) fn prepare(dir: &Path, entries: usize) -> io::Result<Self> {
        let dir = dir.join("large");
        fs::create_dir(&dir)?;
        for number in 0..entries {
            File::create(dir.join(format!("entry-{number:06}")))?;
        }
        Ok(Self { dir, entries })
    }

    pub(super) fn round(&self, tally: &mut Tally, target: usize) -> io::Result<()> {
        tally.whole("readdir, entries", target, (Unit::Batch, self.entries), || {
            let mut listed = 0;
            for entry in fs::read_dir(&self.dir)? {
                entry?;
                listed += 1;
            }
            match listed {
                listed if listed == self.entries => Ok(()),
                listed => Err(io::Error::other(format!("{listed} entries listed, want {}", self.entries))),
            }
        })
    }
}
