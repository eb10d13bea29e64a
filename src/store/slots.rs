//! Slots: which segment and place a content gets, handles on live slots, and freed space on its way back.
//!
//! A slot's stride comes from a fixed list of classes: rounding wastes less than 64 bytes up to 4 KiB, and at
//! most a fifth beyond. Which slots are taken is known from the adoptions at open and from what was written
//! since; it is never guessed from bytes.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_64;

use super::quarantine::FreedSlot;
use super::segment::{self, Damage, Found, Home, Segment};
use super::shared::Named;
use super::{SLOT_MAX, SlotRef, io};
use crate::{Error, Result};

/// All segments of a store.
pub(super) struct Slots {
    home: Arc<Home>,
    segments: RwLock<HashMap<u32, Arc<Segment>>>,
    damaged: Mutex<HashMap<u32, Damage>>,
    classes: Box<[Class]>,
    next_number: AtomicU32,
    /// Segments written since the last sync took this map.
    dirty: Mutex<BTreeMap<u32, Arc<Segment>>>,
}

/// The segments of one stride.
#[derive(Default)]
struct Class {
    /// Those that may have a free slot. The lowest number is filled first. Held for a few memory accesses.
    open: Mutex<BTreeMap<u32, Arc<Segment>>>,
    /// Held while a segment is made: whoever waits for it needs the new segment as well.
    growing: Mutex<()>,
}

/// Stride of a class in bytes: every 64 bytes up to 4 KiB, every 512 up to 16 KiB, every 4096 beyond.
const fn stride_of(class: usize) -> usize {
    match class {
        0..64 => (class + 1) * 64,
        64..88 => 4096 + (class - 63) * 512,
        _ => (16 << 10) + (class - 87) * 4096,
    }
}

/// The stride that a content of `len` bytes is written with.
pub(super) fn stride_for(len: u32) -> u32 {
    u32::try_from(stride_of(class_of(len as usize))).unwrap_or(u32::MAX)
}

/// The class with the smallest stride that holds `len` bytes.
const fn class_of(len: usize) -> usize {
    match len {
        0..=4096 => len.div_ceil(64).saturating_sub(1),
        4097..=16384 => 63 + (len - 4096).div_ceil(512),
        _ => 87 + (len - 16384).div_ceil(4096),
    }
}

impl Slots {
    /// Opens and maps every segment.
    ///
    /// # Errors
    ///
    /// I/O errors. A damaged segment is an error only when it is [adopted](Self::adopt).
    pub(super) fn open(home: Arc<Home>) -> Result<Self> {
        let classes: Box<[Class]> = (0..=class_of(SLOT_MAX)).map(|_| Class::default()).collect();
        let (mut segments, mut damaged) = (HashMap::new(), HashMap::new());
        let mut next = 0;
        for entry in fs::read_dir(home.dir.join("segments")).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let Some(number) = segment::number_of(Path::new(&name)) else { continue };
            next = next.max(number.saturating_add(1));
            match Segment::open(Arc::clone(&home), number)? {
                Found::Sound(segment) => {
                    if let Some(class) = class_with_stride(segment.stride()) {
                        classes[class].open.lock().insert(number, Arc::clone(&segment));
                    }
                    segments.insert(number, segment);
                }
                Found::Damaged(damage) => {
                    damaged.insert(number, damage);
                }
            }
        }
        Ok(Self {
            home,
            segments: RwLock::new(segments),
            damaged: Mutex::new(damaged),
            classes,
            next_number: AtomicU32::new(next),
            dirty: Mutex::default(),
        })
    }

    fn segment(&self, number: u32) -> Result<Arc<Segment>> {
        if let Some(segment) = self.segments.read().get(&number) {
            return Ok(Arc::clone(segment));
        }
        let (offset, what) = match self.damaged.lock().get(&number) {
            Some(damage) => (damage.offset, damage.what.clone()),
            None => (0, "the segment named is missing".into()),
        };
        Err(Error::Corrupt { file: segment::relative_path(number), offset, what })
    }

    pub(super) fn adopt(&self, at: SlotRef) -> Result<()> {
        let segment = self.segment(at.segment).inspect_err(|_| self.note_named(at.segment))?;
        segment.check_fits(at)?;
        segment.taken().adopt(at.slot);
        Ok(())
    }

    /// Something names a slot of a segment that is not there whole: what its file has is no leftover, and another segment
    /// must not get its number, or it would be taken for the one that is named.
    fn note_named(&self, number: u32) {
        if let Some(damage) = self.damaged.lock().get_mut(&number) {
            damage.half_made = false;
        }
        self.next_number.fetch_max(number.saturating_add(1), Ordering::Relaxed);
    }

    /// How many files there are that are segments, or were.
    pub(super) fn files(&self) -> usize {
        self.segments.read().len() + self.damaged.lock().len()
    }

    /// Bytes from one slot of a segment to the next.
    pub(super) fn stride(&self, number: u32) -> Result<u32> {
        Ok(self.segment(number)?.stride())
    }

    /// Checks that a reference fits its segment.
    pub(super) fn check_fits(&self, at: SlotRef) -> Result<()> {
        self.segment(at.segment)?.check_fits(at)
    }

    /// How many files look like segments whose creation was cut short.
    pub(super) fn half_made(&self) -> usize {
        self.damaged.lock().values().filter(|damage| damage.half_made).count()
    }

    /// The other files that are no segments: name, offset, what is wrong.
    pub(super) fn damaged(&self) -> Vec<(String, u64, String)> {
        let damaged = self.damaged.lock();
        let damaged = damaged.iter().filter(|(_, damage)| !damage.half_made);
        let describe = |(&number, damage): (&u32, &Damage)| {
            (segment::relative_path(number), damage.offset, damage.what.clone())
        };
        damaged.map(describe).collect()
    }

    /// Removes segments whose creation was cut short.
    pub(super) fn sweep(&self) -> Result<()> {
        let half_made: Vec<u32> = {
            let mut damaged = self.damaged.lock();
            let numbers = damaged.iter().filter(|(_, damage)| damage.half_made).map(|(&number, _)| number);
            let numbers: Vec<u32> = numbers.collect();
            for number in &numbers {
                damaged.remove(number);
            }
            for (&number, damage) in &*damaged {
                let file = segment::relative_path(number);
                tracing::warn!(
                    file,
                    what = damage.what,
                    "damaged segment: nothing names it, it is left alone"
                );
            }
            numbers
        };
        for number in half_made {
            fs::remove_file(self.home.dir.join(segment::relative_path(number))).map_err(io)?;
        }
        Ok(())
    }

    pub(super) fn slot(&self, at: SlotRef) -> Result<Arc<Slot>> {
        let segment = self.segment(at.segment)?;
        segment.check_taken(at)?;
        let slot = Slot::of(&segment, at);
        if slot.at() == at { Ok(slot) } else { Err(segment.named_twice(at)) }
    }

    pub(super) fn read(&self, at: SlotRef, range: Range<usize>, into: &mut Vec<u8>) -> Result<()> {
        let segment = self.segment(at.segment)?;
        let _pin = segment.pin();
        segment.check_taken(at)?;
        let before = into.len();
        // The copy is verified, not the slot: what is served is then what was checked, whatever happens to a
        // slot that the caller named with a stale reference.
        segment.copy(at.slot, at.len, into);
        let got = xxh3_64(&into[before..]);
        if got != at.checksum {
            into.truncate(before);
            return Err(segment.checksum_mismatch(at, got));
        }
        let len = at.len as usize;
        into.truncate(before + range.end.min(len));
        let skipped = range.start.min(into.len() - before);
        into.drain(before..before + skipped);
        Ok(())
    }

    pub(super) fn free(&self, at: SlotRef) {
        match self.segment(at.segment).and_then(|segment| segment.check_fits(at).map(|()| segment)) {
            Ok(segment) => quarantine(&segment, at.slot),
            Err(error) => tracing::error!(%error, "a slot that does not exist was freed"),
        }
    }

    pub(super) fn write(&self, content: &[u8]) -> Result<Arc<Slot>> {
        let len = match u32::try_from(content.len()) {
            Ok(len) if len > 0 && content.len() <= SLOT_MAX => len,
            Ok(0) => return Err(Error::Invalid("an empty content takes no slot")),
            _ => {
                let (got, limit) = (content.len() as u64, SLOT_MAX as u64);
                return Err(Error::TooLarge { what: "slot of bytes", got, limit });
            }
        };
        let class = &self.classes[class_of(content.len())];
        let (segment, slot) = self.take_free(class, stride_of(class_of(content.len())))?;
        match segment.write(slot, content) {
            Ok(_file) => {
                self.dirty.lock().entry(segment.number()).or_insert_with(|| Arc::clone(&segment));
            }
            Err(error) => {
                // Nothing ever named it, so it needs no quarantine.
                give_back(class, &segment, slot);
                return Err(io(error));
            }
        }
        let at = SlotRef { segment: segment.number(), slot, len, checksum: xxh3_64(content) };
        Ok(Slot::of(&segment, at))
    }

    /// Takes a free slot of a class, making a segment when there is none.
    fn take_free(&self, class: &Class, stride: usize) -> Result<(Arc<Segment>, u32)> {
        if let Some(taken) = class.take_free() {
            return Ok(taken);
        }
        let _growing = class.growing.lock();
        loop {
            if let Some(taken) = class.take_free() {
                return Ok(taken);
            }
            let number = self
                .next_number
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1))
                .map_err(|_| Error::Store {
                    path: self.home.dir.clone(),
                    why: format!("all {} segment numbers are used", u32::MAX),
                })?;
            let stride = u32::try_from(stride).expect("strides end at SLOT_MAX");
            let segment = Segment::create(Arc::clone(&self.home), number, stride)?;
            self.segments.write().insert(number, Arc::clone(&segment));
            class.open.lock().insert(number, segment);
        }
    }

    /// Makes every slot written before this call durable. One at a time: the caller holds a lock, so that
    /// nobody returns while the sync that covers his slots is still under way.
    pub(super) fn sync(&self) -> Result<()> {
        // Taken first: a write that comes while the disk is busy makes its segment dirty again.
        let taken = std::mem::take(&mut *self.dirty.lock());
        for (number, segment) in taken {
            segment.sync().map_err(io)?;
            let dirty = self.dirty.lock();
            if !dirty.contains_key(&number) {
                segment.close_idle();
            }
        }
        Ok(())
    }

    /// Which slots are live now: a word of bits after the other for each segment.
    pub(super) fn live(&self) -> Vec<(u32, Vec<u64>)> {
        self.segments.read().iter().map(|(&number, segment)| (number, segment.taken().live())).collect()
    }

    /// Holds the slots that only snapshots name, before the first is written.
    pub(super) fn hold(&self, named: &Named) -> Vec<FreedSlot> {
        let mut held = Vec::new();
        for at in named.slots() {
            match self.segment(at.segment) {
                Ok(segment) => {
                    if segment.taken().hold(at.slot) {
                        held.push(at);
                    }
                }
                Err(error) => {
                    self.note_named(at.segment);
                    tracing::error!(%error, "a snapshot names a slot that is not there");
                }
            }
        }
        held
    }

    /// Bytes of segments that these slots take.
    pub(super) fn bytes_of(&self, slots: &[FreedSlot]) -> u64 {
        let segments = self.segments.read();
        let stride =
            |slot: &FreedSlot| segments.get(&slot.segment).map_or(0, |segment| u64::from(segment.stride()));
        slots.iter().map(stride).sum()
    }

    /// Makes slots freed before `mark` free, unless a snapshot names them. Those that have a handle, or are in a segment
    /// that is being read, stay in the quarantine.
    pub(super) fn reclaim(&self, mark: u64) {
        let mut in_use = Vec::new();
        for (stamp, freed) in self.home.quarantine.take_slots(mark) {
            if self.home.shared.hold_slot(freed) {
                continue;
            }
            let segment = self.segments.read().get(&freed.segment).cloned();
            let segment = segment.expect("a slot was freed in this segment, and segments stay");
            if segment.is_pinned() || segment.handles().has(freed.slot) {
                in_use.push((stamp, freed));
            } else if let Some(class) = class_with_stride(segment.stride()) {
                give_back(&self.classes[class], &segment, freed.slot);
            }
        }
        if !in_use.is_empty() {
            self.home.quarantine.put_back(in_use);
        }
    }
}

#[cfg(test)]
impl Slots {
    /// Runs `work` as if the segment were being read.
    pub(super) fn with_pin(&self, segment: u32, work: impl FnOnce()) {
        let segment = self.segment(segment).unwrap();
        let _pin = segment.pin();
        work();
    }
}

impl Class {
    fn take_free(&self) -> Option<(Arc<Segment>, u32)> {
        let mut open = self.open.lock();
        loop {
            let lowest = open.first_entry()?;
            match lowest.get().taken().take_free() {
                Some(slot) => return Some((Arc::clone(lowest.get()), slot)),
                None => drop(lowest.remove()),
            }
        }
    }
}

fn give_back(class: &Class, segment: &Arc<Segment>, slot: u32) {
    let mut open = class.open.lock();
    segment.taken().give_back(slot);
    open.entry(segment.number()).or_insert_with(|| Arc::clone(segment));
}

fn quarantine(segment: &Segment, slot: u32) {
    if segment.taken().set_freed(slot) {
        segment.quarantine().free_slot(FreedSlot { segment: segment.number(), slot });
    } else {
        tracing::error!(segment = segment.number(), slot, "a slot was freed twice; once is enough");
    }
}

/// The class of a segment's stride; `None` for a stride that this program writes no slots of.
fn class_with_stride(stride: u32) -> Option<usize> {
    let stride = stride as usize;
    (stride <= stride_of(class_of(SLOT_MAX)) && stride_of(class_of(stride)) == stride)
        .then(|| class_of(stride))
}

/// A readable slot. Its bytes stay as they are for as long as it lives.
pub struct Slot {
    segment: Arc<Segment>,
    checksum: u64,
    slot: u32,
    len: u32,
    doomed: AtomicBool,
    /// The bytes have been compared with the checksum.
    sound: AtomicBool,
}

impl Slot {
    /// The handle of a slot that is taken and written.
    fn of(segment: &Arc<Segment>, at: SlotRef) -> Arc<Self> {
        segment.handles().of(at.slot, || {
            let (doomed, sound) = (AtomicBool::new(false), AtomicBool::new(false));
            let segment = Arc::clone(segment);
            Self { segment, checksum: at.checksum, slot: at.slot, len: at.len, doomed, sound }
        })
    }

    /// The reference for the catalog.
    #[must_use]
    pub fn at(&self) -> SlotRef {
        SlotRef { segment: self.segment.number(), slot: self.slot, len: self.len, checksum: self.checksum }
    }

    /// The content, 64-byte aligned. Not verified: see [`check`](Self::check).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the slot was written before this handle was made, and stays taken while the handle lives: only a
        // slot that left the quarantine is written again, and `reclaim` leaves it there while `Handles` has a handle
        // of it, which is this one.
        unsafe { self.segment.bytes(self.slot, self.len) }
    }

    /// Compares the content with the reference's checksum.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] naming segment and offset.
    pub fn verify(&self) -> Result<()> {
        let got = xxh3_64(self.bytes());
        if got == self.checksum {
            self.sound.store(true, Ordering::Release);
            return Ok(());
        }
        Err(self.segment.damage().note(self.segment.checksum_mismatch(self.at(), got)))
    }

    /// [`verify`](Self::verify), once: bytes that were sound when they were first used are taken to be so again.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify).
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.sound.load(Ordering::Acquire) { Ok(()) } else { self.verify() }
    }

    /// Whether what was read of it up to now is what was written: asked after reading.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the disk failed to read a page of it.
    pub fn check_read(&self) -> Result<()> {
        if self.segment.is_damaged() { self.verify() } else { Ok(()) }
    }

    /// The newest commit no longer names this slot, or no commit ever will: when the last `Arc` drops, its
    /// space goes to the quarantine. Called after that commit has returned.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if *self.doomed.get_mut() {
            quarantine(&self.segment, self.slot);
        }
        self.segment.handles().forget(self.slot);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("at", &self.at()).field("doomed", &self.doomed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::{ALIGNMENT, slots_of};
    use super::*;

    #[test]
    fn every_length_has_the_smallest_class_that_holds_it() {
        for len in 1..=SLOT_MAX {
            let class = class_of(len);
            assert!(stride_of(class) >= len, "{len} bytes in {}", stride_of(class));
            assert!(class == 0 || stride_of(class - 1) < len, "{len} bytes in {}", stride_of(class));
        }
    }

    #[test]
    fn strides_are_aligned_increasing_and_found_again() {
        let last = class_of(SLOT_MAX);
        assert_eq!((stride_of(0), stride_of(63), stride_of(64), stride_of(last)), (64, 4096, 4608, SLOT_MAX));
        for class in 0..=last {
            let stride = u32::try_from(stride_of(class)).unwrap();
            assert_eq!(stride as usize % ALIGNMENT, 0);
            assert_eq!(class_with_stride(stride), Some(class));
            assert!(slots_of(stride) >= 31);
        }
        for foreign in [0, 96, 4160, 20 << 10 | 512, 136 << 10, 4 << 20] {
            assert_eq!(class_with_stride(foreign), None, "{foreign}");
        }
    }
}
