//! One large ordinary file: in order and at random places, through the kernel's cache, which is warm, and past it.
//!
//! Mapped access is for `fio` (`ioengine=mmap`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::tally::{Tally, Unit};

/// Bytes of a request in order.
const PIECE: usize = 1 << 20;

/// Bytes of a request at a random place.
const PAGE: usize = 4096;

/// Requests at random places in a round.
const RANDOM: usize = 8192;

/// A target's large file.
pub(super) struct Big {
    path: PathBuf,
    bytes: usize,
}

/// A buffer at an address that `O_DIRECT` takes.
struct Aligned {
    space: Vec<u8>,
    from: usize,
}

impl Aligned {
    fn new() -> Self {
        let space = vec![7u8; PIECE + PAGE];
        let from = space.as_ptr().align_offset(PAGE).min(PAGE);
        Self { space, from }
    }

    fn take(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.space[self.from..self.from + bytes]
    }
}

impl Big {
    /// A file of `bytes` bytes, a multiple of [`PIECE`], which the first round writes.
    pub(super) fn new(dir: &Path, bytes: usize) -> Self {
        Self { path: dir.join("big.bin"), bytes: bytes.max(PIECE) / PIECE * PIECE }
    }

    pub(super) fn round(&self, tally: &mut Tally, target: usize) -> io::Result<()> {
        let mut buffer = Aligned::new();
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let whole = (Unit::Bytes, self.bytes);
        tally.whole("write a new file, 1 MiB", target, whole, || {
            let file = File::create_new(&self.path)?;
            self.in_order(|at| file.write_all_at(buffer.take(PIECE), at))
        })?;
        for (is_direct, names) in [
            (false, ["read, 1 MiB", "write, 1 MiB", "read at random, 4 KiB", "write at random, 4 KiB"]),
            (
                true,
                [
                    "read, 1 MiB, O_DIRECT",
                    "write, 1 MiB, O_DIRECT",
                    "read at random, 4 KiB, O_DIRECT",
                    "write at random, 4 KiB, O_DIRECT",
                ],
            ),
        ] {
            let file = self.open(is_direct)?;
            let random = (Unit::Batch, RANDOM);
            tally.whole(names[0], target, whole, || {
                self.in_order(|at| file.read_exact_at(buffer.take(PIECE), at))
            })?;
            tally.whole(names[1], target, whole, || {
                self.in_order(|at| file.write_all_at(buffer.take(PIECE), at))
            })?;
            drop(file);
            let file = self.open(is_direct)?;
            tally.whole(names[2], target, random, || {
                self.at_random(|at| file.read_exact_at(buffer.take(PAGE), at))
            })?;
            tally.whole(names[3], target, random, || {
                self.at_random(|at| file.write_all_at(buffer.take(PAGE), at))
            })?;
        }
        Ok(())
    }

    /// Opens the file, all of it on disk. The kernel keeps its pages: of a mount, a client could drop only some.
    fn open(&self, is_direct: bool) -> io::Result<File> {
        let flags = if is_direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path)?;
        file.sync_all()?;
        Ok(file)
    }

    fn in_order(&self, mut work: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        (0..self.bytes as u64).step_by(PIECE).try_for_each(&mut work)
    }

    /// Places that are the same in every round.
    fn at_random(&self, mut work: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let pages = (self.bytes / PAGE) as u64;
        let mut state = 1u64;
        (0..RANDOM).try_for_each(|_| {
            // Knuth's multiplier; the high bits are the random ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            work((state >> 33) % pages * PAGE as u64)
        })
    }
}
