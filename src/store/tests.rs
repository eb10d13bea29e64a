//! The store's promises: slots, blobs, quarantine, what is left after an end without `close`.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::segment::{HEADER_BYTES, SEGMENT_BYTES, relative_path};
use super::*;
use crate::random::splitmix64;

/// A store below `dir`, which is left for the next open to find.
fn open(dir: &Path) -> Arc<Store> {
    Store::open(&dir.join("store"), "pid 1, mounted at /mnt/v").unwrap()
}

fn read(store: &Store, at: SlotRef) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    store.read_slot(at, 0..at.len as usize, &mut bytes)?;
    Ok(bytes)
}

/// Overwrites bytes of a slot behind the store's back.
fn tear(dir: &Path, at: SlotRef, stride: u64) {
    let path = dir.join("store").join(relative_path(at.segment));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"torn", HEADER_BYTES as u64 + u64::from(at.slot) * stride).unwrap();
}

struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[test]
fn a_first_open_makes_a_private_store_and_the_next_finds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = store.id().to_owned();
    assert_eq!(store.dir(), dir.path().join("store"));
    assert!(!store.catalog_dir().exists());
    for name in ["", "segments", "blobs", "blobs/00", "blobs/ff", "index"] {
        let meta = fs::metadata(store.dir().join(name)).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o700, "{name}");
    }
    for name in ["VEXFS", "lock"] {
        let meta = fs::metadata(store.dir().join(name)).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o600, "{name}");
    }
    drop(store);
    assert_eq!(open(dir.path()).id(), id);
}

#[test]
fn a_second_opener_is_refused_until_the_store_and_its_slots_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let slot = store.write_slot(b"content").unwrap();
    let again = || Store::open(&dir.path().join("store"), "pid 2");
    for _ in 0..2 {
        match again() {
            Err(Error::StoreLocked { path, holder }) => {
                assert_eq!(path, dir.path().join("store"));
                assert_eq!(holder, "pid 1, mounted at /mnt/v");
            }
            other => panic!("want Error::StoreLocked, got {other:?}"),
        }
    }
    drop(store);
    assert!(matches!(again(), Err(Error::StoreLocked { .. })), "a slot can still be read");
    assert_eq!(slot.bytes(), b"content");
    drop(slot);
    again().unwrap();
}

#[test]
fn a_second_open_does_not_take_away_the_name_of_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    Store::open(&dir.path().join("store"), "pid 2").unwrap_err();
    let text = fs::read_to_string(dir.path().join("store/lock")).unwrap();
    assert_eq!(text, "pid 1, mounted at /mnt/v\n");
}

#[test]
fn every_length_of_slot_comes_back_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = SplitMix(1);
    let lens = [1, 63, 64, 65, 1536, 1664, 4096, 4097, 16384, 16385, SLOT_MAX - 1, SLOT_MAX];
    let written: Vec<_> = lens
        .map(|len| {
            let content = random.bytes(len);
            (store.write_slot(&content).unwrap(), store.write_slot(&content[..1]).unwrap(), content)
        })
        .into_iter()
        .collect();
    for (slot, one, content) in &written {
        assert_eq!(slot.bytes(), content);
        assert_eq!(slot.bytes().as_ptr() as usize % 64, 0);
        assert_eq!(slot.at().len as usize, content.len());
        slot.verify().unwrap();
        one.verify().unwrap();
        assert_eq!(&read(&store, slot.at()).unwrap(), content);
    }
}

#[test]
fn a_length_that_no_slot_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(store.write_slot(&[]), Err(Error::Invalid(_))));
    let error = store.write_slot(&vec![0; SLOT_MAX + 1]).unwrap_err();
    assert_eq!(error.to_string(), "slot of bytes 135169, the limit is 135168");
}

#[test]
fn a_range_is_appended_and_cut_at_the_end_of_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = store.write_slot(b"0123456789").unwrap().at();
    let cases = [(0..10, "0123456789"), (3..5, "34"), (8..99, "89"), (10..20, ""), (50..60, "")];
    for (range, expected) in cases {
        let mut into = b"kept".to_vec();
        store.read_slot(at, range.clone(), &mut into).unwrap();
        assert_eq!(into, [b"kept", expected.as_bytes()].concat(), "{range:?}");
    }
}

#[test]
fn a_torn_slot_is_known_and_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.write_slot(&[1; 100]).unwrap();
    let slot = store.write_slot(&[2; 100]).unwrap();
    tear(dir.path(), slot.at(), 128);
    let expected = "segments/00000000.seg: offset 4224: 100 bytes with checksum ";
    let error = slot.verify().unwrap_err().to_string();
    assert!(error.starts_with(expected), "{error}");
    let mut into = b"kept".to_vec();
    let error = store.read_slot(slot.at(), 50..60, &mut into).unwrap_err().to_string();
    assert!(error.starts_with(expected), "{error}");
    assert_eq!(into, b"kept");
}

#[test]
fn slots_that_nothing_adopted_are_written_again_and_adopted_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let contents: Vec<Vec<u8>> = (0..200u8).map(|byte| vec![byte; 60]).collect();
    let refs: Vec<SlotRef> = contents.iter().map(|c| store.write_slot(c).unwrap().at()).collect();
    drop(store);

    let store = open(dir.path());
    for (at, _) in refs.iter().zip(0..).filter(|(_, number)| number % 3 == 0) {
        store.adopt(*at).unwrap();
        store.adopt(*at).unwrap();
    }
    store.sweep().unwrap();
    let fresh: Vec<_> = (0..200).map(|_| store.write_slot(&[0xff; 60]).unwrap()).collect();
    for (number, (at, content)) in refs.iter().zip(&contents).enumerate() {
        if number % 3 == 0 {
            assert_eq!(&read(&store, *at).unwrap(), content);
            assert_eq!(store.slot(*at).unwrap().bytes(), content);
        } else {
            assert!(matches!(read(&store, *at), Err(Error::Corrupt { .. })), "slot {number} was reused");
        }
    }
    let reused = fresh.iter().filter(|slot| refs.iter().any(|at| at.slot == slot.at().slot)).count();
    assert_eq!(reused, 133);
    let segments = fs::read_dir(dir.path().join("store/segments")).unwrap().count();
    assert_eq!(segments, 1);
}

#[test]
fn references_that_do_not_fit_are_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let good = store.write_slot(&[1; 64]).unwrap().at();
    let cases = [
        (SlotRef { segment: 7, ..good }, "segments/00000007.seg: offset 0: the segment named is missing"),
        (
            SlotRef { slot: 65472, ..good },
            "segments/00000000.seg: offset 0: slot 65472 named, the segment has 65472",
        ),
        (
            SlotRef { len: 65, ..good },
            "segments/00000000.seg: offset 4096: slot of 65 bytes named, want 1 to 64",
        ),
        (
            SlotRef { len: 0, ..good },
            "segments/00000000.seg: offset 4096: slot of 0 bytes named, want 1 to 64",
        ),
    ];
    for (at, expected) in cases {
        assert_eq!(store.adopt(at).unwrap_err().to_string(), expected);
        assert_eq!(store.slot(at).unwrap_err().to_string(), expected);
        assert_eq!(read(&store, at).unwrap_err().to_string(), expected);
        store.free_slot(at);
    }
    let free = SlotRef { slot: 1, ..good };
    let expected = "segments/00000000.seg: offset 4160: the slot named is free";
    assert_eq!(store.slot(free).unwrap_err().to_string(), expected);
    assert_eq!(read(&store, free).unwrap_err().to_string(), expected);
}

#[test]
fn a_half_made_segment_is_removed_by_the_sweep_and_stays_corrupt_when_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = store.write_slot(&[1; 64]).unwrap().at();
    drop(store);
    let path = |number| dir.path().join("store").join(relative_path(number));
    fs::write(path(3), "").unwrap();
    fs::write(path(4), vec![0; SEGMENT_BYTES]).unwrap();
    let mut unknown = vec![0; SEGMENT_BYTES];
    unknown[0] = 1;
    fs::write(path(5), unknown).unwrap();
    fs::write(path(6), "").unwrap();
    fs::write(path(7), vec![0; SEGMENT_BYTES]).unwrap();

    let store = open(dir.path());
    store.adopt(at).unwrap();
    let error = store.adopt(SlotRef { segment: 3, ..at }).unwrap_err();
    assert_eq!(error.to_string(), "segments/00000003.seg: offset 0: segment of 0 bytes, want 4194304");
    let error = store.adopt(SlotRef { segment: 4, ..at }).unwrap_err();
    assert_eq!(error.to_string(), "segments/00000004.seg: offset 0: no segment header");
    store.sweep().unwrap();
    let left = [0, 3, 4, 5, 6, 7].map(|number| path(number).exists());
    assert_eq!(left, [true, true, true, true, false, false]);
    assert_eq!(store.write_slot(&[2; 1000]).unwrap().at().segment, 8);
    // One that is named and not there leaves its number to nobody.
    store.adopt(SlotRef { segment: 11, ..at }).unwrap_err();
    assert_eq!(store.write_slot(&[2; 2000]).unwrap().at().segment, 12);
}

#[test]
fn freed_slots_are_reused_only_after_the_reclaim_that_covers_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = store.write_slot(&[1; 64]).unwrap();
    let second = store.write_slot(&[2; 64]).unwrap();
    let (at_first, at_second) = (first.at(), second.at());
    first.doom();
    drop((first, second));
    store.free_slot(at_second);
    let mark = store.freed_mark();
    let late = store.write_slot(&[3; 64]).unwrap().at();
    store.free_slot(late);
    assert_eq!([at_first.slot, at_second.slot, late.slot], [0, 1, 2]);
    assert_eq!(store.write_slot(&[4; 64]).unwrap().at().slot, 3, "nothing is free before the reclaim");
    assert_eq!(read(&store, at_first).unwrap(), [1; 64]);

    store.reclaim(mark);
    let reused = [5, 6, 7].map(|byte| store.write_slot(&[byte; 64]).unwrap().at().slot);
    assert_eq!(reused, [0, 1, 4], "slot 2 was freed after the mark");
    let mark = store.freed_mark();
    store.reclaim(mark);
    assert_eq!(store.write_slot(&[8; 64]).unwrap().at().slot, 2);
}

#[test]
fn a_doomed_slot_is_readable_until_its_last_handle_drops() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let slot = store.write_slot(&[1; 64]).unwrap();
    let held = Arc::clone(&slot);
    slot.doom();
    drop(slot);
    let mark = store.freed_mark();
    store.reclaim(mark);
    assert_eq!(store.write_slot(&[2; 64]).unwrap().at().slot, 1);
    held.verify().unwrap();
    drop(held);
    let mark = store.freed_mark();
    store.reclaim(mark);
    assert_eq!(store.write_slot(&[3; 64]).unwrap().at().slot, 0);
}

#[test]
fn a_slot_handle_that_was_not_doomed_frees_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = store.write_slot(&[1; 64]).unwrap().at();
    drop(store.slot(at).unwrap());
    let mark = store.freed_mark();
    store.reclaim(mark);
    assert_eq!(store.write_slot(&[2; 64]).unwrap().at().slot, 1);
    assert_eq!(read(&store, at).unwrap(), [1; 64]);
}

#[test]
fn a_slot_has_one_handle_however_often_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let written = store.write_slot(&[1; 64]).unwrap();
    let asked = store.slot(written.at()).unwrap();
    written.doom();
    asked.doom();
    drop(written);
    let reclaim = || store.reclaim(store.freed_mark());
    reclaim();
    let other = store.write_slot(&[2; 64]).unwrap();
    assert_eq!(asked.bytes(), [1; 64], "somebody reads it");
    drop(asked);
    reclaim();
    let third = store.write_slot(&[3; 64]).unwrap();
    assert_eq!([other.at().slot, third.at().slot], [1, 0]);
    other.verify().unwrap();
}

#[test]
fn a_slot_that_is_freed_while_somebody_reads_it_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = store.write_slot(&[1; 64]).unwrap().at();
    let held = store.slot(at).unwrap();
    store.free_slot(at);
    store.reclaim(store.freed_mark());
    assert_eq!(store.write_slot(&[2; 64]).unwrap().at().slot, 1);
    assert_eq!(held.bytes(), [1; 64]);
    drop(held);
    store.reclaim(store.freed_mark());
    assert_eq!(store.write_slot(&[3; 64]).unwrap().at().slot, 0);
}

#[test]
fn a_slot_that_a_handle_has_is_named_by_no_other_reference() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let slot = store.write_slot(&[1; 64]).unwrap();
    let other = SlotRef { len: 32, ..slot.at() };
    let expected = "segments/00000000.seg: offset 4096: the slot named has two contents";
    assert_eq!(store.slot(other).unwrap_err().to_string(), expected);
    drop(slot);
    assert!(store.slot(other).is_ok());
}

#[test]
fn a_slot_that_is_freed_twice_is_given_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = store.write_slot(&[1; 64]).unwrap().at();
    store.free_slot(at);
    let mark = store.freed_mark();
    store.free_slot(at);
    store.reclaim(mark);
    let reused = store.write_slot(&[2; 64]).unwrap();
    assert_eq!(reused.at().slot, 0);
    let mark = store.freed_mark();
    store.reclaim(mark);
    assert_eq!(store.write_slot(&[3; 64]).unwrap().at().slot, 1);
    reused.verify().unwrap();
}

#[test]
fn a_slot_freed_while_its_segment_is_read_waits_for_a_later_reclaim() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let at = store.write_slot(&[1; 64]).unwrap().at();
    store.free_slot(at);
    let mark = store.freed_mark();
    store.slots.with_pin(at.segment, || store.reclaim(mark));
    assert_eq!(store.write_slot(&[2; 64]).unwrap().at().slot, 1);
    store.reclaim(mark);
    assert_eq!(store.write_slot(&[3; 64]).unwrap().at().slot, 0);
}

#[test]
fn a_dropped_blob_is_removed_by_the_reclaim_that_covers_it_and_its_map_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (early, file) = store.create_blob().unwrap();
    file.write_all_at(b"content", 0).unwrap();
    let (late, _) = store.create_blob().unwrap();
    let map = store.map_blob(early).unwrap();
    store.drop_blob(early);
    let mark = store.freed_mark();
    store.drop_blob(late);
    assert!(store.open_blob(early).is_ok());
    store.reclaim(mark);
    assert!(matches!(store.open_blob(early), Err(Error::Corrupt { .. })));
    assert!(store.open_blob(late).is_ok());
    assert_eq!(map.bytes(), b"content");
}

#[test]
fn blobs_survive_reopening_when_adopted_and_go_when_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (kept, file) = store.create_blob().unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    store.sync_blob(kept, &file).unwrap();
    let (lost, _) = store.create_blob().unwrap();
    drop(store);
    let store = open(dir.path());
    store.adopt_blob(kept);
    store.sweep().unwrap();
    assert_eq!(store.map_blob(kept).unwrap().bytes(), b"kept");
    assert!(store.open_blob(lost).is_err());
    assert!(store.create_blob().unwrap().0 > lost);
}

#[test]
fn a_closed_store_refuses_new_content_and_notes_its_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let slot = store.write_slot(b"content").unwrap();
    let (blob, _) = store.create_blob().unwrap();
    assert!(!fs::read(dir.path().join("store/lock")).unwrap().is_empty());
    store.close().unwrap();
    assert!(fs::read(dir.path().join("store/lock")).unwrap().is_empty());
    assert!(matches!(store.write_slot(b"more"), Err(Error::ReadOnly)));
    assert!(matches!(store.create_blob(), Err(Error::ReadOnly)));
    assert!(matches!(store.clone_blob(blob), Err(Error::ReadOnly)));
    assert_eq!(slot.bytes(), b"content");
    store.close().unwrap();
}

#[test]
fn after_a_failed_sync_the_store_makes_no_more_promises() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (id, file) = store.create_blob().unwrap();
    // A pipe cannot be synced: stands in for a disk that fails.
    let (pipe, _end) = std::io::pipe().unwrap();
    let broken = File::from(std::os::fd::OwnedFd::from(pipe));
    assert!(matches!(store.sync_blob(id, &broken), Err(Error::Io(_))));
    store.write_slot(b"content").unwrap();
    for refused in [store.sync_blob(id, &file), store.sync(), store.close()] {
        assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
    }
    assert!(!fs::read(dir.path().join("store/lock")).unwrap().is_empty(), "the end is unclean");
}

#[test]
fn writers_readers_and_reclaims_at_the_same_time_keep_every_content() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let mut random = SplitMix(thread);
                let mut live: Vec<(Arc<Slot>, Vec<u8>)> = Vec::new();
                for step in 0..600 {
                    let len = 1 + usize::try_from(random.next() % 300).unwrap();
                    let content = random.bytes(len);
                    live.push((store.write_slot(&content).unwrap(), content));
                    if live.len() > 40 {
                        let victim = usize::try_from(random.next() % 40).unwrap();
                        let (slot, content) = live.swap_remove(victim);
                        assert_eq!(slot.bytes(), content);
                        assert_eq!(read(store, slot.at()).unwrap(), content);
                        slot.doom();
                    }
                    if step % 50 == 0 {
                        let mark = store.freed_mark();
                        store.sync().unwrap();
                        store.reclaim(mark);
                    }
                }
                for (slot, content) in live {
                    assert_eq!(slot.bytes(), content, "thread {thread}");
                    slot.verify().unwrap();
                }
            });
        }
    });
}

#[test]
fn the_space_is_that_of_the_filesystem_below() {
    let dir = tempfile::tempdir().unwrap();
    let space = open(dir.path()).space().unwrap();
    assert!(space.block_bytes >= 512 && space.block_bytes.is_power_of_two(), "{space:?}");
    assert!(space.blocks >= space.free && space.free >= space.available, "{space:?}");
    assert!(space.files >= space.files_free, "{space:?}");
}

#[test]
fn a_full_disk_and_a_full_quota_are_no_space() {
    for errno in [Errno::ENOSPC, Errno::EDQUOT] {
        assert!(matches!(io(errno.into()), Error::NoSpace));
    }
    assert!(matches!(io(Errno::EIO.into()), Error::Io(_)));
}

#[test]
fn the_default_store_follows_the_xdg_rules() {
    let cases = [
        (Some("/data"), Some("/home/u"), Some("/data/vexfs/default")),
        (Some("/data"), None, Some("/data/vexfs/default")),
        (Some(""), Some("/home/u"), Some("/home/u/.local/share/vexfs/default")),
        (Some("relative"), Some("/home/u"), Some("/home/u/.local/share/vexfs/default")),
        (None, Some("/home/u"), Some("/home/u/.local/share/vexfs/default")),
        (None, Some(""), None),
        (None, None, None),
    ];
    for (data, home, expected) in cases {
        let got = default_dir_in(data.map(OsString::from), home.map(PathBuf::from));
        assert_eq!(got, expected.map(PathBuf::from), "{data:?} {home:?}");
    }
}
