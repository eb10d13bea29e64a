//! Operations on names, attributes and small files, each of them one or a few round trips through the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, XattrFlags, fgetxattr, fsetxattr, statx};

use super::tally::{Tally, Unit};

/// A vector of 384 f32, the size of everything small here.
const SMALL_BYTES: usize = 1536;

/// What `O_DIRECT` demands of a disk's filesystem.
const PAGE: usize = 4096;

const ATTRIBUTE: &str = "user.note";

/// The content of small files: valid vectors, each another.
pub(super) fn small(number: usize) -> Vec<u8> {
    (0..SMALL_BYTES / 4)
        .flat_map(|at| (((number * 31 + at * 17) % 251) as f32 - 125.0).to_le_bytes())
        .collect()
}

/// A target's files for this part.
pub(super) struct Small {
    dir: PathBuf,
    file: File,
    direct: Option<File>,
    has_attribute: bool,
}

impl Small {
    pub(super) fn prepare(dir: &Path) -> io::Result<Self> {
        for name in ["plain", "vectors"] {
            fs::create_dir(dir.join(name))?;
        }
        let path = dir.join("plain/kept");
        fs::write(&path, small(0))?;
        let file = File::open(&path)?;
        let set = fsetxattr(&file, ATTRIBUTE, b"a small attribute", XattrFlags::empty());
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        Ok(Self { dir: dir.to_path_buf(), file, direct: direct.ok(), has_attribute: set.is_ok() })
    }

    /// One round of every operation.
    pub(super) fn round(&self, tally: &mut Tally, target: usize, count: usize) -> io::Result<()> {
        let plain = |number: usize| self.dir.join(format!("plain/f{number}.bin"));
        let other = |number: usize| self.dir.join(format!("plain/g{number}.bin"));
        let vector = |number: usize| self.dir.join(format!("vectors/v{number}.f32"));
        let kept = self.dir.join("plain/kept");

        tally.each("stat, uncached", target, count, |_| {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
            statx(&self.file, "", flags, StatxFlags::BASIC_STATS)?;
            Ok(())
        })?;
        tally.each("stat, cached", target, count, |_| fs::metadata(&kept).map(drop))?;
        let missing = self.dir.join("plain/missing");
        tally.each("stat, no such name", target, count, |_| match fs::metadata(&missing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        })?;
        if self.has_attribute {
            let mut value = [0u8; 64];
            tally.each("getxattr", target, count, |_| {
                fgetxattr(&self.file, ATTRIBUTE, value.as_mut_slice())?;
                Ok(())
            })?;
        }
        tally.each("open, close", target, count, |_| File::open(&kept).map(drop))?;
        if let Some(direct) = &self.direct {
            let mut space = vec![0u8; 2 * PAGE];
            let from = space.as_ptr().align_offset(PAGE).min(PAGE);
            let page = &mut space[from..from + PAGE];
            tally.each("read 1.5 KB, uncached", target, count, |_| match direct.read_at(page, 0)? {
                SMALL_BYTES => Ok(()),
                other => Err(io::Error::other(format!("read {other} bytes, want {SMALL_BYTES}"))),
            })?;
        }
        let mut page = [0u8; PAGE];
        tally.each("open, read 1.5 KB, close", target, count, |_| {
            File::open(&kept)?.read_at(&mut page, 0).map(drop)
        })?;

        let content: Vec<Vec<u8>> = (0..count).map(small).collect();
        let create = |path: PathBuf, number: usize| {
            let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
            file.write_all(&content[number])
        };
        tally.each("create, write, close", target, count, |number| create(plain(number), number))?;
        tally.each("overwrite (O_TRUNC, write, close)", target, count, |number| {
            let mut file = OpenOptions::new().write(true).truncate(true).open(plain(number))?;
            file.write_all(&content[number])
        })?;
        tally.each("rename", target, count, |number| fs::rename(plain(number), other(number)))?;
        tally.each("unlink", target, count, |number| fs::remove_file(other(number)))?;
        tally.each("vector file: create, write, close", target, count, |number| {
            create(vector(number), number)
        })?;
        tally.each("vector file: unlink", target, count, |number| fs::remove_file(vector(number)))?;
        tally.each("mkdir", target, count, |number| fs::create_dir(plain(number)))?;
        tally.each("rmdir", target, count, |number| fs::remove_dir(plain(number)))?;

        let synced =
            OpenOptions::new().write(true).create(true).truncate(true).open(self.dir.join("plain/s"))?;
        tally.each("write 4 KB, fsync", target, count.div_ceil(20), |number| {
            synced.write_all_at(&page, (number * PAGE) as u64)?;
            synced.sync_all()
        })
    }

    /// Several threads at once, each with files of its own.
    pub(super) fn together(
        &self,
        tally: &mut Tally,
        target: usize,
        (clients, count): (usize, usize),
    ) -> io::Result<()> {
        let each = |work: &(dyn Fn(usize) -> io::Result<()> + Sync)| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..clients).map(|client| scope.spawn(move || work(client))).collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
                })
            })
        };
        let [stat, vector] = match clients {
            1 => ["1 client: stat, uncached", "1 client: vector file, unlink"],
            _ => ["4 clients: stat, uncached", "4 clients: vector file, unlink"],
        };
        tally.whole(stat, target, (Unit::Batch, clients * count), || {
            each(&|_| {
                let file = File::open(self.dir.join("plain/kept"))?;
                (0..count).try_for_each(|_| {
                    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
                    statx(&file, "", flags, StatxFlags::BASIC_STATS)?;
                    Ok(())
                })
            })
        })?;
        tally.whole(vector, target, (Unit::Batch, clients * count), || {
            each(&|client| {
                let dir = self.dir.join(format!("vectors/c{client}"));
                fs::create_dir(&dir)?;
                let content = small(client);
                (0..count).try_for_each(|number| {
                    let path = dir.join(format!("{number}.f32"));
                    fs::write(&path, &content)?;
                    fs::remove_file(&path)
                })?;
                fs::remove_dir(&dir)
            })
        })
    }
}
