//! One segment: a file of fixed size with slots of one stride, mapped once for reading, written with `pwrite`.
//!
//! A segment knows its geometry and which of its slots are [taken](Taken). Which slot a write gets, and when a freed
//! slot may be used again, is decided in [`super::slots`].
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::damage::DamageLog;
use super::directory::{create_file, open_file, sync_dir};
use super::handles::Handles;
use super::lock::Lock;
use super::quarantine::Quarantine;
use super::shared::Shared;
use super::taken::Taken;
use super::watch::Watch;
use super::{SlotRef, io as store_error};
use crate::{Error, Result};

/// Size of a segment file in bytes.
pub(super) const SEGMENT_BYTES: usize = 4 << 20;

/// Bytes before the first slot.
pub(super) const HEADER_BYTES: usize = 4096;

/// What every stride is a multiple of, so that every slot is aligned to it.
pub(super) const ALIGNMENT: usize = 64;

const MAGIC: [u8; 8] = *b"VEXSEG\0\0";
const VERSION: u32 = 1;

/// Bytes of the header's fields; the rest of it is zero.
const FIELDS_BYTES: usize = 32;

/// What the segments of a store share. It holds the lock, so that the store stays locked for as long as
/// anybody can see the bytes of a segment.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) dir: PathBuf,
    pub(super) lock: Lock,
    pub(super) quarantine: Quarantine,
    pub(super) shared: Shared,
    pub(super) damage: Arc<DamageLog>,
}

/// A segment, mapped for as long as it lives.
pub(super) struct Segment {
    home: Arc<Home>,
    number: u32,
    stride: u32,
    slots: u32,
    watch: Watch,
    map: MmapRaw,
    taken: Taken,
    handles: Handles,
    pins: AtomicU32,
    /// Open from the first write until the sync after the last one, so that a failed write-back is seen by
    /// that sync, and a large store does not need as many descriptors as it has segments.
    file: Mutex<Option<Arc<File>>>,
}

/// What the file of a segment turned out to be.
pub(super) enum Found {
    /// A segment.
    Sound(Arc<Segment>),
    /// Not readable as a segment.
    Damaged(Damage),
}

/// Why a file is not a segment.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) offset: u64,
    pub(super) what: String,
    /// It looks like a segment whose creation was cut short, which nothing can have named.
    pub(super) half_made: bool,
}

/// Keeps the slots of a segment from being given out again.
pub(super) struct Pin<'a>(&'a Segment);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Segment {
    /// Makes the segment `number`. When this returns, it survives a power cut.
    ///
    /// # Errors
    ///
    /// `NoSpace` when the filesystem has no room for the whole segment; I/O errors.
    pub(super) fn create(home: Arc<Home>, number: u32, stride: u32) -> Result<Arc<Self>> {
        let path = home.dir.join(relative_path(number));
        let file = create_file(&path).map_err(store_error)?;
        let made = (|| {
            reserve(&file)?;
            file.write_all_at(&header(number, stride), 0)?;
            file.sync_all()?;
            sync_dir(&home.dir.join("segments"))?;
            map(&file)
        })();
        match made {
            Ok(map) => Ok(Arc::new(Self::new(home, number, stride, map))),
            Err(error) => {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "a half-made segment stays");
                }
                Err(store_error(error))
            }
        }
    }

    /// Opens and maps the segment `number`. Reads its header only.
    ///
    /// # Errors
    ///
    /// I/O errors. Damage is no error: nothing may name the segment.
    pub(super) fn open(home: Arc<Home>, number: u32) -> Result<Found> {
        let file = open_file(&home.dir.join(relative_path(number)), false).map_err(store_error)?;
        let len = file.metadata().map_err(store_error)?.len();
        if len < SEGMENT_BYTES as u64 {
            let what = format!("segment of {len} bytes, want {SEGMENT_BYTES}");
            return Ok(Found::Damaged(Damage { offset: len, what, half_made: true }));
        }
        let mut fields = [0; FIELDS_BYTES];
        file.read_exact_at(&mut fields, 0).map_err(store_error)?;
        match check_header(&fields, number) {
            Ok(stride) => {
                let map = map(&file).map_err(store_error)?;
                Ok(Found::Sound(Arc::new(Self::new(home, number, stride, map))))
            }
            Err(what) => {
                let half_made = fields == [0; FIELDS_BYTES];
                Ok(Found::Damaged(Damage { offset: 0, what, half_made }))
            }
        }
    }

    fn new(home: Arc<Home>, number: u32, stride: u32, map: MmapRaw) -> Self {
        let slots = slots_of(stride);
        Self {
            home,
            number,
            stride,
            slots,
            watch: Watch::over(map.as_ptr(), map.len(), false),
            map,
            taken: Taken::new(slots),
            handles: Handles::default(),
            pins: AtomicU32::new(0),
            file: Mutex::new(None),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn stride(&self) -> u32 {
        self.stride
    }

    /// Which of its slots are taken.
    pub(super) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// Who reads its slots.
    pub(super) fn handles(&self) -> &Handles {
        &self.handles
    }

    pub(super) fn damage(&self) -> &DamageLog {
        &self.home.damage
    }

    pub(super) fn quarantine(&self) -> &Quarantine {
        &self.home.quarantine
    }

    /// Checks that a reference fits this segment, which is its own.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub(super) fn check_fits(&self, at: SlotRef) -> Result<()> {
        if at.slot >= self.slots {
            return Err(self.corrupt(0, format!("slot {} named, the segment has {}", at.slot, self.slots)));
        }
        if at.len == 0 || at.len > self.stride {
            let what = format!("slot of {} bytes named, want 1 to {}", at.len, self.stride);
            return Err(self.corrupt(self.offset(at.slot), what));
        }
        Ok(())
    }

    /// Checks that a reference fits and names a slot that is taken.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub(super) fn check_taken(&self, at: SlotRef) -> Result<()> {
        self.check_fits(at)?;
        if !self.taken.has(at.slot) {
            return Err(self.corrupt(self.offset(at.slot), "the slot named is free".into()));
        }
        Ok(())
    }

    /// Whether a page of it could not be read.
    pub(super) fn is_damaged(&self) -> bool {
        self.watch.damage().is_some()
    }

    pub(super) fn checksum_mismatch(&self, at: SlotRef, got: u64) -> Error {
        let what = format!("{} bytes with checksum {got:016x}, want {:016x}", at.len, at.checksum);
        self.corrupt(self.offset(at.slot), what)
    }

    pub(super) fn named_twice(&self, at: SlotRef) -> Error {
        self.corrupt(self.offset(at.slot), "the slot named has two contents".into())
    }

    fn corrupt(&self, offset: u64, what: String) -> Error {
        Error::Corrupt { file: relative_path(self.number), offset, what }
    }

    /// Where a slot begins in the file, in bytes.
    pub(super) fn offset(&self, slot: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(slot) * u64::from(self.stride)
    }

    /// Where `len` bytes of a slot lie in memory.
    ///
    /// # Panics
    ///
    /// When `slot` and `len` do not fit: every caller has checked them.
    fn pointer(&self, slot: u32, len: usize) -> *const u8 {
        assert!(
            slot < self.slots && len <= self.stride as usize,
            "the reference was checked against the segment"
        );
        let offset = HEADER_BYTES + slot as usize * self.stride as usize;
        // SAFETY: by the assertion `offset + len` is at most `HEADER_BYTES + slots * stride`, and `slots_of`
        // and `check_header` keep that within `SEGMENT_BYTES`, the length of the mapping.
        unsafe { self.map.as_ptr().add(offset) }
    }

    /// The first `len` bytes of a slot.
    ///
    /// # Safety
    ///
    /// Nobody may write the slot while the borrow lives: it was written before, and stays taken.
    pub(super) unsafe fn bytes(&self, slot: u32, len: u32) -> &[u8] {
        let start = self.pointer(slot, len as usize);
        // SAFETY: `pointer` checked that the bytes lie in the mapping, which lives as long as `self` and whose
        // file is never shortened. The caller promises that they do not change.
        unsafe { std::slice::from_raw_parts(start, len as usize) }
    }

    /// Appends the first `len` bytes of a slot to `into`, as they are at this moment.
    pub(super) fn copy(&self, slot: u32, len: u32, into: &mut Vec<u8>) {
        let len = len as usize;
        let start = self.pointer(slot, len);
        into.reserve(len);
        let filled = into.len();
        // SAFETY: `pointer` checked that the source lies in the mapping, `reserve` made room for the target in
        // other memory. Any byte is a valid u8, and no reference to the source is made: where a stale reference
        // lets a writer of a newer slot run beside us, the checksum of the copy tells.
        unsafe {
            std::ptr::copy_nonoverlapping(start, into.as_mut_ptr().add(filled), len);
            into.set_len(filled + len);
        }
    }

    /// Writes a slot that was just taken. The caller keeps the file until it has noted that the segment is
    /// dirty, which keeps [`close_idle`](Self::close_idle) from closing it before.
    pub(super) fn write(&self, slot: u32, content: &[u8]) -> io::Result<Arc<File>> {
        assert!(
            slot < self.slots && content.len() <= self.stride as usize,
            "the allocator chose a slot that fits"
        );
        let file = self.writer()?;
        file.write_all_at(content, self.offset(slot))?;
        Ok(file)
    }

    fn writer(&self) -> io::Result<Arc<File>> {
        let mut file = self.file.lock();
        if let Some(file) = &*file {
            return Ok(Arc::clone(file));
        }
        let opened = Arc::new(open_file(&self.home.dir.join(relative_path(self.number)), true)?);
        *file = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Makes every slot durable that was written before this call.
    pub(super) fn sync(&self) -> io::Result<()> {
        let file = self.file.lock().clone();
        file.map_or(Ok(()), |file| file.sync_data())
    }

    /// Closes the file that slots are written through, unless somebody is writing.
    pub(super) fn close_idle(&self) {
        let mut file = self.file.lock();
        if file.as_ref().is_some_and(|file| Arc::strong_count(file) == 1) {
            *file = None;
        }
    }

    pub(super) fn pin(&self) -> Pin<'_> {
        self.pins.fetch_add(1, Ordering::SeqCst);
        Pin(self)
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::SeqCst) > 0
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("number", &self.number)
            .field("stride", &self.stride)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// Number of slots of `stride` bytes in a segment.
pub(super) const fn slots_of(stride: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "a segment is 4 MiB")]
    let room = (SEGMENT_BYTES - HEADER_BYTES) as u32;
    room / stride
}

/// Path of a segment below the store directory.
pub(super) fn relative_path(number: u32) -> String {
    format!("segments/{number:08}.seg")
}

/// Number of the segment that a file in `segments/` holds, by its name.
pub(super) fn number_of(name: &Path) -> Option<u32> {
    let name = name.to_str()?;
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    (format!("{number:08}.seg") == name).then_some(number)
}

fn header(number: u32, stride: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    for field in [VERSION, number, stride, slots_of(stride)] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    bytes
}

/// The stride of a segment, from its header. The error says what is wrong with it.
fn check_header(fields: &[u8; FIELDS_BYTES], number: u32) -> Result<u32, String> {
    let (checked, rest) = fields.split_at(24);
    let u32_at = |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
    if checked[..8] != MAGIC {
        return Err("no segment header".into());
    }
    if rest != xxh3_64(checked).to_le_bytes() {
        return Err("the header's checksum does not match".into());
    }
    let (version, named, stride, slots) = (u32_at(8), u32_at(12), u32_at(16), u32_at(20));
    if version != VERSION {
        return Err(format!("segment version {version}, this program reads {VERSION}"));
    }
    if named != number {
        return Err(format!("the header says segment {named}, the name says {number}"));
    }
    if stride == 0 || !(stride as usize).is_multiple_of(ALIGNMENT) || slots == 0 || slots != slots_of(stride)
    {
        return Err(format!("{slots} slots of {stride} bytes do not make a segment"));
    }
    Ok(stride)
}

fn map(file: &File) -> io::Result<MmapRaw> {
    MmapOptions::new().len(SEGMENT_BYTES).map_raw_read_only(file)
}

/// Reserves the whole of a segment's space, so that a full disk is an error here and never a SIGBUS in a map.
fn reserve(file: &File) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, SEGMENT_BYTES as libc::off_t) {
            Err(Errno::EINTR) => {}
            // The filesystem has no fallocate: zeroes take the space too.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return file.write_all_at(&vec![0; SEGMENT_BYTES], 0),
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(dir: &Path) -> Arc<Home> {
        fs::create_dir(dir.join("segments")).unwrap();
        let lock = Lock::acquire(dir, "test").unwrap();
        Arc::new(Home {
            dir: dir.to_path_buf(),
            lock,
            quarantine: Quarantine::default(),
            shared: Shared::default(),
            damage: Arc::default(),
        })
    }

    fn sound(found: Found) -> Arc<Segment> {
        match found {
            Found::Sound(segment) => segment,
            Found::Damaged(damage) => panic!("want a segment, got {damage:?}"),
        }
    }

    fn damaged(found: Found) -> Damage {
        match found {
            Found::Damaged(damage) => damage,
            Found::Sound(segment) => panic!("want damage, got {segment:?}"),
        }
    }

    #[test]
    fn a_segment_takes_its_whole_space_at_once_and_is_found_again() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let segment = Segment::create(Arc::clone(&home), 17, 1536).unwrap();
        assert_eq!(segment.slots, 2728);
        let meta = fs::metadata(dir.path().join("segments/00000017.seg")).unwrap();
        assert_eq!(meta.len(), 4 << 20);
        assert!(meta.blocks() * 512 >= 4 << 20, "{} blocks", meta.blocks());
        assert_eq!(meta.mode() & 0o7777, 0o600);
        let again = sound(Segment::open(home, 17).unwrap());
        assert_eq!((again.number(), again.stride(), again.slots), (17, 1536, 2728));
    }

    #[test]
    fn the_header_has_the_documented_bytes() {
        let bytes = header(0x0102_0304, 192);
        assert_eq!(bytes.len(), 4096);
        assert_eq!(&bytes[..8], b"VEXSEG\0\0");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(bytes[16..24], [192, 0, 0, 0, 0x40, 0x55, 0, 0]);
        assert_eq!(bytes[24..32], [15, 209, 249, 55, 174, 254, 194, 205]);
        assert!(bytes[32..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn every_damaged_header_is_told_apart_from_a_half_made_segment() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        drop(Segment::create(Arc::clone(&home), 1, 64).unwrap());
        let path = dir.path().join(relative_path(1));
        let file = open_file(&path, true).unwrap();
        let good = header(1, 64);
        for at in 0..FIELDS_BYTES {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            file.write_all_at(&bytes, 0).unwrap();
            let damage = damaged(Segment::open(Arc::clone(&home), 1).unwrap());
            assert!(!damage.half_made && damage.offset == 0, "byte {at}: {damage:?}");
        }
        // The checksum is right in these; the fields contradict the name or each other.
        file.write_all_at(&header(2, 64), 0).unwrap();
        let damage = damaged(Segment::open(Arc::clone(&home), 1).unwrap());
        assert_eq!(damage.what, "the header says segment 2, the name says 1");
        for stride in [96, 8 << 20] {
            file.write_all_at(&header(1, stride), 0).unwrap();
            let damage = damaged(Segment::open(Arc::clone(&home), 1).unwrap());
            assert!(damage.what.ends_with("do not make a segment"), "{damage:?}");
        }
        file.write_all_at(&[0; HEADER_BYTES], 0).unwrap();
        assert!(damaged(Segment::open(Arc::clone(&home), 1).unwrap()).half_made);
        file.write_all_at(&good, 0).unwrap();
        file.set_len(4096).unwrap();
        let damage = damaged(Segment::open(home, 1).unwrap());
        assert!(damage.half_made);
        assert_eq!((damage.offset, damage.what.as_str()), (4096, "segment of 4096 bytes, want 4194304"));
    }

    #[test]
    fn a_write_is_seen_in_the_map_and_its_file_is_closed_only_when_idle() {
        let dir = tempfile::tempdir().unwrap();
        let segment = Segment::create(home(dir.path()), 0, 128).unwrap();
        let writer = segment.write(3, &[7; 100]).unwrap();
        let mut copy = vec![1];
        segment.copy(3, 100, &mut copy);
        assert_eq!(copy[0], 1);
        assert_eq!(copy[1..], [7; 100]);
        segment.sync().unwrap();
        segment.close_idle();
        assert!(segment.file.lock().is_some(), "a writer still has it");
        drop(writer);
        segment.close_idle();
        assert!(segment.file.lock().is_none());
    }

    #[test]
    fn names_of_segment_files_are_exact() {
        assert_eq!(number_of(Path::new("00000017.seg")), Some(17));
        assert_eq!(number_of(Path::new("4294967295.seg")), Some(u32::MAX));
        for other in ["17.seg", "00000017.SEG", "4294967296.seg", "+0000017.seg", "00000017"] {
            assert_eq!(number_of(Path::new(other)), None, "{other}");
        }
    }
}
