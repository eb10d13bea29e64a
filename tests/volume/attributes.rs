//! Extended attributes and what is refused about them.

use vexfs::Error;
use vexfs::namespace::{Ino, Kind};
use vexfs::volume::XattrMode::{Create, Either, Replace};
use vexfs::volume::{Caller, SetAttr};

use crate::support::*;

#[test]
fn attributes_are_set_listed_and_removed() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let ino = fs.ino("f").unwrap();
    let set = |name: &[u8], value: &[u8], mode| fs.volume.setxattr(&ROOT, ino, name, value, mode);
    set(b"user.b", b"2", Create).unwrap();
    set(b"user.a", b"1", Either).unwrap();
    assert!(matches!(error(set(b"user.a", b"1", Create)), Error::Exists));
    assert!(matches!(error(set(b"user.c", b"1", Replace)), Error::NoAttribute));
    set(b"user.a", b"", Replace).unwrap();
    assert_eq!(fs.volume.listxattr(&ROOT, ino).unwrap(), b"user.a\0user.b\0");
    assert_eq!(fs.volume.getxattr(&ROOT, ino, b"user.a").unwrap(), b"");
    fs.volume.removexattr(&ROOT, ino, b"user.a").unwrap();
    assert!(matches!(error(fs.volume.removexattr(&ROOT, ino, b"user.a")), Error::NoAttribute));
    let fs = fs.reopen();
    assert_eq!(fs.volume.listxattr(&ROOT, ino).unwrap(), b"user.b\0");
    assert_eq!(fs.volume.getxattr(&ROOT, ino, b"user.b").unwrap(), b"2");
}

#[test]
fn setting_an_attribute_changes_ctime_and_not_what_a_writer_wrote() {
    let fs = Fs::new();
    let handle = fs.create("f").unwrap();
    fs.write(handle, 0, &pattern(50_000, 1));
    fs.write(handle, 50_000, &pattern(10, 1));
    let before = fs.stat("f").unwrap();
    fs.volume.setxattr(&ROOT, fs.ino("f").unwrap(), b"user.a", b"1", Either).unwrap();
    let after = fs.stat("f").unwrap();
    assert_eq!((after.size, after.mtime), (50_010, before.mtime));
    assert!(after.ctime > before.ctime);
    fs.write(handle, 50_010, b"x");
    fs.close(handle);
    assert_eq!(fs.stat("f").unwrap().size, 50_011);
}

#[test]
fn limits_are_told_with_both_numbers() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let ino = fs.ino("f").unwrap();
    let set = |name: &[u8], value: &[u8]| fs.volume.setxattr(&ROOT, ino, name, value, Either);
    set(b"user.full", &vec![7; 64 << 10]).unwrap();
    assert_eq!(fs.volume.getxattr(&ROOT, ino, b"user.full").unwrap().len(), 64 << 10);
    let big = set(b"user.big", &vec![7; (64 << 10) + 1]);
    assert!(matches!(error(big), Error::AttributeTooBig { got: 65537, limit: 65536 }));
    let long = [b"user.".as_slice(), &[b'n'; 251]].concat();
    assert!(matches!(error(set(&long, b"")), Error::NameTooLong { got: 256 }));
    assert!(matches!(error(set(b"user.", b"")), Error::Invalid(_)));
    let mut stored = 0;
    let refused = (0..).find_map(|index| {
        let name = format!("user.{index:0>250}");
        stored += 1;
        set(name.as_bytes(), b"").err()
    });
    assert!(matches!(refused, Some(Error::AttributeTooBig { limit: 65536, .. })));
    assert!(fs.volume.listxattr(&ROOT, ino).unwrap().len() <= 64 << 10);
    assert!(stored > 200);
}

#[test]
fn only_users_attributes_are_stored() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let ino = fs.ino("f").unwrap();
    let get = |name: &[u8]| fs.volume.getxattr(&ROOT, ino, name);
    let set = |name: &[u8]| fs.volume.setxattr(&ROOT, ino, name, b"1", Either);
    assert!(matches!(error(get(b"security.capability")), Error::NoAttribute));
    assert!(matches!(error(set(b"security.capability")), Error::Unsupported(_)));
    for name in [&b"system.posix_acl_access"[..], b"trusted.overlay.opaque", b"other"] {
        assert!(matches!(error(get(name)), Error::Unsupported(_)));
        assert!(matches!(error(set(name)), Error::Unsupported(_)));
    }
    let link = fs.volume.symlink(&ROOT, Ino::ROOT, b"l", b"t").unwrap().ino;
    let fifo = fs.volume.mknod(&ROOT, Ino::ROOT, b"p", Kind::Fifo, 0o600, 0).unwrap().ino;
    for ino in [link, fifo] {
        assert!(matches!(
            error(fs.volume.setxattr(&ROOT, ino, b"user.a", b"1", Either)),
            Error::NotPermitted
        ));
    }
    assert!(matches!(error(fs.volume.removexattr(&ROOT, ino, b"user.vexfs.dim")), Error::NotPermitted));
    // A plain file has nothing to search with; how long the first search of a collection takes, nobody knows.
    assert!(!fs.volume.xattr_may_search(ino, b"user.vexfs.similar") && !fs.volume.may_search(ino));
    fs.put("v.f32", &1f32.to_le_bytes());
    let vector = fs.volume.lookup(&ROOT, Ino::ROOT, b"v.f32").unwrap().ino;
    assert!(fs.volume.xattr_may_search(vector, b"user.vexfs.similar.3"));
    assert!(fs.volume.xattr_may_search(vector, b"user.vexfs.distance.a/b"));
    assert!(!fs.volume.xattr_may_search(vector, b"user.vexfs.status"));
}

#[test]
fn names_are_listed_only_to_those_who_may_read() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let ino = fs.ino("f").unwrap();
    fs.volume.setxattr(&ROOT, ino, b"user.secret", b"1", Either).unwrap();
    let set = |mode, gid| {
        let set = SetAttr { mode: Some(mode), gid: Some(gid), uid: Some(7), ..SetAttr::default() };
        fs.volume.setattr(&ROOT, ino, set, None).unwrap();
    };
    let list = |caller: &Caller| fs.volume.listxattr(caller, ino);
    let owner = Caller { uid: 7, ..USER };
    set(0o600, 0);
    assert!(matches!(error(list(&USER)), Error::PermissionDenied));
    assert!(list(&owner).is_ok() && list(&ROOT).is_ok());
    set(0o604, 1000);
    assert!(matches!(error(list(&USER)), Error::PermissionDenied), "the group's bits count");
    set(0o640, 1000);
    assert!(list(&USER).is_ok());
    set(0o604, 0);
    assert!(list(&USER).is_ok());
}

#[test]
fn attributes_end_with_their_inode() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    let ino = fs.ino("d").unwrap();
    fs.volume.setxattr(&ROOT, ino, b"user.a", b"1", Either).unwrap();
    fs.rmdir("d").unwrap();
    assert!(matches!(error(fs.volume.getxattr(&ROOT, ino, b"user.a")), Error::NotFound));
    assert!(matches!(error(fs.volume.listxattr(&ROOT, ino)), Error::NotFound));
}
