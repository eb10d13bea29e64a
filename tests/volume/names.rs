//! Names: the edges of POSIX for link, unlink, rmdir and rename.

use vexfs::Error;
use vexfs::namespace::{Ino, Kind, LINK_MAX};
use vexfs::volume::{Caller, RenameMode};

use crate::support::*;

#[test]
fn a_missing_name_is_not_found_and_a_taken_one_exists() {
    let fs = Fs::new();
    assert!(matches!(error(fs.ino("a")), Error::NotFound));
    fs.mkdir("a").unwrap();
    assert!(matches!(error(fs.mkdir("a")), Error::Exists));
    let exclusive = vexfs::volume::OpenFlags { exclusive: true, ..WRITE };
    let again = fs.volume.create(&ROOT, Ino::ROOT, b"a", 0o644, exclusive);
    assert!(matches!(error(again), Error::Exists));
    assert!(matches!(error(fs.create("a")), Error::IsDirectory));
    let long = "n".repeat(256);
    assert!(matches!(error(fs.mkdir(&long)), Error::NameTooLong { got: 256 }));
    assert!(matches!(error(fs.ino(&long)), Error::NameTooLong { got: 256 }));
    fs.put("f", b"1");
    assert!(matches!(error(fs.mkdir("f/x")), Error::NotDirectory));
}

#[test]
fn link_counts_of_files_and_directories_are_kept() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.mkdir("d/e").unwrap();
    fs.put("d/f", b"1");
    assert_eq!(fs.link("d/f", "g").unwrap().nlink, 2);
    assert_eq!(fs.stat("d").unwrap().nlink, 3);
    assert_eq!(fs.stat("d").unwrap().size, 2);
    assert_eq!(fs.stat("").unwrap().nlink, 3);
    fs.unlink("d/f").unwrap();
    assert_eq!(fs.stat("g").unwrap().nlink, 1);
    assert_eq!(fs.get("g").unwrap(), b"1");
    assert!(matches!(error(fs.link("d", "h")), Error::NotPermitted));
    assert!(matches!(error(fs.link("g", "d")), Error::Exists));
}

#[test]
fn unlink_and_rmdir_want_their_own_kind_and_an_empty_directory() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.put("d/f", b"1");
    assert!(matches!(error(fs.unlink("d")), Error::IsDirectory));
    assert!(matches!(error(fs.rmdir("d/f")), Error::NotDirectory));
    assert!(matches!(error(fs.rmdir("d")), Error::NotEmpty));
    assert!(matches!(error(fs.unlink("d/x")), Error::NotFound));
    fs.unlink("d/f").unwrap();
    fs.rmdir("d").unwrap();
    assert!(fs.list("").is_empty());
    assert_eq!(fs.stat("").unwrap().nlink, 2);
}

#[test]
fn the_control_name_is_taken_everywhere_and_never_listed() {
    let fs = Fs::new();
    fs.put("f", b"1");
    assert!(matches!(error(fs.mkdir(".vexfs")), Error::Exists));
    assert!(matches!(error(fs.create(".vexfs")), Error::Exists));
    assert!(matches!(error(fs.link("f", ".vexfs")), Error::Exists));
    assert!(matches!(error(fs.rename("f", ".vexfs")), Error::Busy));
    assert!(matches!(error(fs.rename(".vexfs", "g")), Error::Busy));
    assert!(matches!(error(fs.unlink(".vexfs")), Error::Busy));
    assert!(matches!(error(fs.rmdir(".vexfs")), Error::Busy));
    assert_eq!(fs.list(""), ["f"]);
}

#[test]
fn rename_replaces_files_and_keeps_the_inode_that_moved() {
    let fs = Fs::new();
    fs.put("a", b"new");
    fs.put("b", b"old");
    let moved = fs.ino("a").unwrap();
    fs.rename("a", "b").unwrap();
    assert_eq!(fs.list(""), ["b"]);
    assert_eq!((fs.ino("b").unwrap(), fs.get("b").unwrap()), (moved, b"new".to_vec()));
    assert!(matches!(error(fs.rename("a", "b")), Error::NotFound));
}

#[test]
fn rename_of_two_names_of_one_file_does_nothing() {
    let fs = Fs::new();
    fs.put("a", b"1");
    fs.link("a", "b").unwrap();
    fs.rename("a", "b").unwrap();
    fs.rename("a", "a").unwrap();
    assert_eq!(fs.list(""), ["a", "b"]);
    assert!(matches!(error(fs.rename_as("a", "b", RenameMode::NoReplace)), Error::Exists));
    fs.rename_as("a", "b", RenameMode::Exchange).unwrap();
    assert_eq!(fs.stat("a").unwrap().nlink, 2);
}

#[test]
fn rename_over_a_directory_wants_an_empty_one_and_a_directory() {
    let fs = Fs::new();
    for dir in ["a", "b", "c", "c/full"] {
        fs.mkdir(dir).unwrap();
    }
    fs.put("f", b"1");
    assert!(matches!(error(fs.rename("f", "a")), Error::IsDirectory));
    assert!(matches!(error(fs.rename("a", "f")), Error::NotDirectory));
    assert!(matches!(error(fs.rename("a", "c")), Error::NotEmpty));
    fs.rename("c", "b").unwrap();
    assert_eq!(fs.list(""), ["a", "b", "f"]);
    assert_eq!(fs.list("b"), ["full"]);
    assert_eq!(fs.stat("").unwrap().nlink, 4);
    assert_eq!(fs.stat("b").unwrap().nlink, 3);
}

#[test]
fn a_directory_does_not_move_into_itself() {
    let fs = Fs::new();
    fs.mkdir("a").unwrap();
    fs.mkdir("a/b").unwrap();
    assert!(matches!(error(fs.rename("a", "a/c")), Error::Invalid(_)));
    assert!(matches!(error(fs.rename("a", "a/b/c")), Error::Invalid(_)));
    assert!(matches!(error(fs.rename_as("a/b", "a", RenameMode::Exchange)), Error::Invalid(_)));
    assert!(matches!(error(fs.rename("a/b", "a")), Error::NotEmpty));
}

#[test]
fn a_directory_that_moves_gets_a_new_parent() {
    let fs = Fs::new();
    for dir in ["a", "a/d", "b"] {
        fs.mkdir(dir).unwrap();
    }
    fs.rename("a/d", "b/e").unwrap();
    assert_eq!((fs.stat("a").unwrap().nlink, fs.stat("b").unwrap().nlink), (2, 3));
    let handle = fs.volume.open_dir(&ROOT, fs.ino("b/e").unwrap()).unwrap();
    let mut parents = Vec::new();
    fs.volume
        .read_dir(&ROOT, handle, 1, &mut |entry| {
            parents.push(entry.ino);
            true
        })
        .unwrap();
    assert_eq!(parents, [fs.ino("b").unwrap()], "an offset is good in a new listing too");
    parents.clear();
    fs.volume
        .read_dir(&ROOT, handle, 0, &mut |entry| {
            parents.push(entry.ino);
            true
        })
        .unwrap();
    assert_eq!(parents, [fs.ino("b/e").unwrap(), fs.ino("b").unwrap()]);
    fs.volume.release_dir(handle);
}

#[test]
fn an_exchange_swaps_a_file_and_a_directory_with_what_is_in_it() {
    let fs = Fs::new();
    fs.mkdir("a").unwrap();
    fs.mkdir("b").unwrap();
    fs.mkdir("b/d").unwrap();
    fs.put("a/f", b"file");
    fs.put("b/d/g", b"deep");
    fs.rename_as("a/f", "b/d", RenameMode::Exchange).unwrap();
    assert_eq!(fs.get("b/d").unwrap(), b"file");
    assert_eq!(fs.get("a/f/g").unwrap(), b"deep");
    assert_eq!((fs.stat("a").unwrap().nlink, fs.stat("b").unwrap().nlink), (3, 2));
    assert!(matches!(error(fs.rename_as("a/f", "x", RenameMode::Exchange)), Error::NotFound));
}

#[test]
fn an_unlinked_file_lives_until_its_last_handle() {
    let fs = Fs::new();
    for size in [0, 100, 40_000] {
        let content = pattern(size, 3);
        fs.put("f", &content);
        let (first, second) = (fs.open("f", WRITE).unwrap(), fs.open("f", READ).unwrap());
        let ino = fs.ino("f").unwrap();
        fs.unlink("f").unwrap();
        assert!(matches!(error(fs.ino("f")), Error::NotFound));
        assert_eq!(fs.volume.getattr(ino).unwrap().nlink, 0);
        fs.write(first, size as u64, b"more");
        assert_eq!(fs.read(second), [content.as_slice(), b"more"].concat());
        fs.close(first);
        assert_eq!(fs.read(second).len(), size + 4);
        fs.volume.release(second).unwrap();
        assert!(matches!(error(fs.volume.open_file(&ROOT, ino, READ)), Error::NotFound));
        fs.volume.forget(ino, 1);
        assert!(matches!(error(fs.volume.getattr(ino)), Error::NotFound));
    }
}

#[test]
fn a_file_replaced_by_rename_keeps_its_content_for_its_handle() {
    let fs = Fs::new();
    fs.put("old.f32", &pattern(4000, 1));
    fs.put("new", &pattern(400, 2));
    let handle = fs.open("old.f32", READ).unwrap();
    fs.rename("new", "old.f32").unwrap();
    assert_eq!(fs.read(handle), pattern(4000, 1));
    assert_eq!(fs.get("old.f32").unwrap(), pattern(400, 2));
    fs.close(handle);
    let fs = fs.reopen();
    assert_eq!(fs.get("old.f32").unwrap(), pattern(400, 2));
}

#[test]
fn a_removed_directory_that_is_open_answers_and_takes_nothing() {
    let fs = Fs::new();
    let dir = fs.mkdir("d").unwrap().ino;
    let handle = fs.volume.open_dir(&ROOT, dir).unwrap();
    fs.rmdir("d").unwrap();
    assert_eq!(fs.volume.getattr(dir).unwrap().nlink, 0);
    assert!(matches!(error(fs.volume.mkdir(&ROOT, dir, b"x", 0o755)), Error::NotFound));
    fs.volume.release_dir(handle);
    fs.volume.forget(dir, 1);
    assert!(matches!(error(fs.volume.getattr(dir)), Error::NotFound));
}

#[test]
fn a_listing_keeps_its_offsets_while_names_come_and_go() {
    let fs = Fs::new();
    for index in 0..3000 {
        fs.volume.mknod(&ROOT, Ino::ROOT, format!("{index:04}").as_bytes(), Kind::File, 0o644, 0).unwrap();
    }
    let handle = fs.volume.open_dir(&ROOT, Ino::ROOT).unwrap();
    let page = |offset: u64, limit: usize| {
        let mut names = Vec::new();
        let mut last = offset;
        fs.volume
            .read_dir(&ROOT, handle, offset, &mut |entry| {
                if names.len() == limit {
                    return false;
                }
                last = entry.offset;
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                true
            })
            .unwrap();
        (names, last)
    };
    let (first, at) = page(0, 1500);
    assert_eq!((first[2].as_str(), first[1499].as_str()), ("0000", "1497"));
    for name in ["0000", "1498", "2900"] {
        fs.unlink(name).unwrap();
    }
    fs.put("2500a", b"");
    let (rest, _) = page(at, usize::MAX);
    assert_eq!((rest[0].as_str(), rest.len()), ("1498", 3000 - 1498), "read ahead, one less, one more");
    assert!(rest.contains(&"2500a".into()) && !rest.contains(&"2900".into()));
    assert_eq!(page(at, usize::MAX).0, rest);
    assert_eq!(page(0, usize::MAX).0.len(), 2998 + 2);
    fs.volume.release_dir(handle);
}

#[test]
fn new_entries_of_a_setgid_directory_inherit_its_group() {
    let fs = Fs::new();
    let dir = fs.volume.mkdir(&Caller { gid: 77, ..ROOT }, Ino::ROOT, b"d", 0o2775).unwrap();
    let sub = fs.volume.mkdir(&USER, dir.ino, b"sub", 0o755).unwrap();
    assert_eq!((sub.uid, sub.gid, sub.mode), (1000, 77, 0o2755));
    let file = fs.volume.mknod(&USER, dir.ino, b"f", Kind::File, 0o644, 0).unwrap();
    assert_eq!((file.gid, file.mode), (77, 0o644));
    let plain = fs.volume.mkdir(&USER, Ino::ROOT, b"plain", 0o755).unwrap();
    assert_eq!((plain.gid, plain.mode), (1000, 0o755));
}

#[test]
fn symbolic_links_and_device_nodes_come_back() {
    let fs = Fs::new();
    let link = fs.volume.symlink(&ROOT, Ino::ROOT, b"l", b"../target").unwrap();
    assert_eq!((link.kind, link.size), (Kind::Symlink, 9));
    let node = fs.volume.mknod(&ROOT, Ino::ROOT, b"n", Kind::CharDevice, 0o600, 0x0501).unwrap();
    assert_eq!((node.kind, node.rdev), (Kind::CharDevice, 0x0501));
    assert!(matches!(error(fs.volume.readlink(node.ino)), Error::Invalid(_)));
    assert!(matches!(error(fs.volume.symlink(&ROOT, Ino::ROOT, b"m", b"")), Error::NotFound));
    let fs = fs.reopen();
    assert_eq!(fs.volume.readlink(link.ino).unwrap(), b"../target");
    fs.unlink("l").unwrap();
    assert!(matches!(error(fs.volume.readlink(link.ino)), Error::NotFound));
}

#[test]
fn renames_in_both_directions_at_once_finish() {
    let fs = Fs::new();
    for dir in ["a", "b", "a/x", "b/y"] {
        fs.mkdir(dir).unwrap();
    }
    std::thread::scope(|scope| {
        for (from, to) in [("a/x", "b/x"), ("b/y", "a/y"), ("b/x", "a/x"), ("a/y", "b/y")] {
            let fs = &fs;
            scope.spawn(move || {
                for _ in 0..200 {
                    match fs.rename(from, to) {
                        Ok(()) | Err(Error::NotFound) => {}
                        Err(error) => panic!("{from} to {to}: {error}"),
                    }
                }
            });
        }
    });
    let total = fs.list("a").len() + fs.list("b").len();
    assert_eq!(total, 2);
    let counted = fs.stat("a").unwrap().nlink + fs.stat("b").unwrap().nlink;
    assert_eq!(counted, 4 + 2);
}

#[test]
fn a_file_has_65_000_names_and_not_one_more() {
    let fs = Fs::new();
    fs.put("0", b"content");
    let ino = fs.ino("0").unwrap();
    let link = |number: u32| fs.volume.link(&ROOT, ino, Ino::ROOT, number.to_string().as_bytes());
    for number in 1..LINK_MAX {
        link(number).unwrap();
    }
    assert_eq!(fs.stat("64999").unwrap().nlink, LINK_MAX);
    assert!(matches!(error(link(LINK_MAX)), Error::TooManyLinks));
    fs.unlink("0").unwrap();
    fs.rename("1", "0").unwrap();
    assert_eq!(fs.stat("0").unwrap().nlink, LINK_MAX - 1);
    link(1).unwrap();
    assert_eq!(fs.get("64999").unwrap(), b"content");
    for number in 0..LINK_MAX - 1 {
        fs.unlink(&number.to_string()).unwrap();
    }
    let fs = fs.reopen();
    assert_eq!(fs.list(""), ["64999"]);
    assert_eq!(fs.stat("64999").unwrap().nlink, 1);
    fs.shut();
}

#[test]
fn a_vector_file_with_a_plain_name_too_stays_where_its_names_are() {
    let fs = Fs::new();
    fs.mkdir("v").unwrap();
    fs.put("v/a.f32", &pattern(16, 1));
    let status = |path: &str| {
        let value = fs.volume.getxattr(&ROOT, fs.ino(path).unwrap(), b"user.vexfs.status").unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    fs.link("v/a.f32", "plain").unwrap();
    fs.unlink("v/a.f32").unwrap();
    assert_eq!(status("plain"), "plain");
    fs.link("plain", "other").unwrap();
    fs.link("other", "v/b.f32").unwrap();
    fs.unlink("plain").unwrap();
    assert!(matches!(&*status("v/b.f32"), "pending" | "indexed"));
    fs.rename("other", "another").unwrap();
    fs.rename("v/b.f32", "b").unwrap();
    assert_eq!(status("another"), "plain");
    fs.shut();
}

#[test]
fn of_several_names_in_a_collection_the_first_says_what_the_file_is() {
    let fs = Fs::new();
    let status = |fs: &Fs| {
        let value = fs.volume.getxattr(&ROOT, fs.ino("d/m.f32").unwrap(), b"user.vexfs.status").unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    fs.mkdir("d").unwrap();
    fs.put("d/m.f32", &pattern(64, 1));
    fs.link("d/m.f32", "d/z.npy").unwrap();
    assert_eq!(status(&fs), "indexed");
    fs.rename("d/z.npy", "d/a.npy").unwrap();
    let refused = status(&fs);
    assert!(refused.starts_with("invalid: "), "{refused}");
    // Settled anew with the names as the open file has them.
    let handle = fs.open("d/m.f32", WRITE).unwrap();
    fs.link("d/m.f32", "d/n.u8").unwrap();
    fs.rename("d/a.npy", "d/y.npy").unwrap();
    fs.link("d/m.f32", "d/b.npy").unwrap();
    fs.write(handle, 0, &pattern(64, 2));
    fs.close(handle);
    let refused = status(&fs);
    assert!(refused.starts_with("invalid: "), "{refused}");
    let fs = fs.reopen();
    assert_eq!(status(&fs), refused);
    fs.unlink("d/b.npy").unwrap();
    assert_eq!(status(&fs), "indexed");
    fs.shut();
}
