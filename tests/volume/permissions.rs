//! A caller sees only what it may read, below directories that it may traverse: at every door.

use vexfs::Error;
use vexfs::namespace::Ino;
use vexfs::volume::{Attr, Caller, SetAttr};

use crate::support::*;

const OTHER: Caller = Caller { uid: 2000, gid: 2000, pid: 0 };

fn vector(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn chmod(fs: &Fs, path: &str, mode: u16) {
    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
    fs.volume.setattr(&ROOT, fs.ino(path).unwrap(), set, None).unwrap();
}

/// Makes a directory with this mode.
fn closed(fs: &Fs, dir: &str, mode: u16) {
    fs.mkdir(dir).unwrap();
    chmod(fs, dir, mode);
}

/// What a caller finds at a path, which is looked up component by component.
fn look(fs: &Fs, caller: &Caller, path: &str) -> vexfs::Result<Attr> {
    let mut at = fs.volume.getattr(Ino::ROOT)?;
    for name in path.split('/') {
        at = fs.volume.lookup(caller, at.ino, name.as_bytes())?;
    }
    Ok(at)
}

fn read_node(fs: &Fs, caller: &Caller, ino: Ino) -> vexfs::Result<Vec<u8>> {
    let handle = fs.volume.open_file(caller, ino, READ)?.handle;
    let mut bytes = Vec::new();
    let read = fs.volume.read(caller, handle, 0, u32::MAX, &mut bytes);
    fs.volume.release(handle)?;
    read.map(|()| bytes)
}

fn read(fs: &Fs, caller: &Caller, path: &str) -> vexfs::Result<String> {
    let bytes = read_node(fs, caller, look(fs, caller, path)?.ino)?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// Names in a directory of `.vexfs`.
fn names(fs: &Fs, caller: &Caller, ino: Ino) -> vexfs::Result<Vec<String>> {
    let handle = fs.volume.open_dir(caller, ino)?;
    let mut names = Vec::new();
    let listed = fs.volume.read_dir(caller, handle, 0, &mut |entry| {
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        true
    });
    fs.volume.release_dir(handle);
    listed.map(|()| names.split_off(2))
}

fn attribute(fs: &Fs, caller: &Caller, path: &str, name: &str) -> vexfs::Result<String> {
    let value = fs.volume.getxattr(caller, fs.ino(path)?, name.as_bytes())?;
    Ok(String::from_utf8(value.to_vec()).unwrap())
}

/// The ids of the nearest row of each query of a batch, asked as `caller`.
fn nearest_of_batch(fs: &Fs, caller: &Caller, dir: &str, query: &[f32], rows: usize) -> Vec<u32> {
    let node = look(fs, caller, &format!("{dir}/.vexfs/query")).unwrap().ino;
    let handle = fs.volume.open_file(caller, node, WRITE).unwrap().handle;
    let dim = query.len();
    let header = format!("{{\"dtype\":\"f32\",\"rows\":{rows},\"dim\":{dim},\"k\":1,\"exact\":true}}\n");
    let request = [header.as_bytes(), &vector(query).repeat(rows)].concat();
    fs.volume.write(caller, handle, 0, &request).unwrap();
    let mut records = Vec::new();
    fs.volume.read(caller, handle, 0, u32::MAX, &mut records).unwrap();
    fs.volume.release(handle).unwrap();
    records.chunks(8).map(|record| u32::from_le_bytes(record[..4].try_into().unwrap())).collect()
}

#[test]
fn rows_are_those_of_the_file_that_has_the_name_now() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.put("d/r.f32", &vector(&[1.0, 2.0]));
    let old = look(&fs, &USER, "d/.vexfs/rows/r.f32").unwrap().ino;
    fs.volume.lookup(&USER, old, b"000000.f32").unwrap();
    closed(&fs, "d/vault", 0o700);
    fs.rename("d/r.f32", "d/vault/secret.f32").unwrap();
    fs.put("d/vault/secret.f32", &vector(&[9.0, 9.0]));
    fs.put("d/r.f32", &vector(&[5.0, 5.0]));
    let new = look(&fs, &USER, "d/.vexfs/rows/r.f32/000000.f32").unwrap().ino;
    assert_eq!(read_node(&fs, &USER, new).unwrap(), vector(&[5.0, 5.0]));
    // Whoever has kept the directory may not read what has become of its file.
    let kept = fs.volume.lookup(&USER, old, b"000000.f32");
    assert!(matches!(kept, Err(Error::PermissionDenied)), "{kept:?}");
    assert!(matches!(names(&fs, &USER, old), Err(Error::PermissionDenied)));
    assert!(fs.volume.lookup(&ROOT, old, b"000000.f32").is_ok());
}

#[test]
fn rows_of_a_file_end_with_the_permission_to_read_it() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.put("d/c.f32", &vector(&[1.0, 2.0]));
    let rows = look(&fs, &USER, "d/.vexfs/rows/c.f32").unwrap().ino;
    chmod(&fs, "d/c.f32", 0o600);
    fs.put("d/c.f32", &vector(&[7.0, 7.0]));
    let row = fs.volume.lookup(&USER, rows, b"000000.f32");
    assert!(matches!(row, Err(Error::PermissionDenied)), "{row:?}");
}

#[test]
fn mirrors_show_the_directory_that_has_the_name_now() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.mkdir("d/s").unwrap();
    fs.put("d/s/one.f32", &vector(&[1.0, 0.0]));
    for mirror in ["similar", "rows"] {
        let path = format!("d/.vexfs/{mirror}/s");
        assert_eq!(names(&fs, &USER, look(&fs, &USER, &path).unwrap().ino).unwrap(), ["one.f32"]);
    }
    let old = look(&fs, &USER, "d/.vexfs/similar/s").unwrap().ino;
    closed(&fs, "d/vault", 0o700);
    fs.rename("d/s", "d/vault/t").unwrap();
    fs.mkdir("d/s").unwrap();
    fs.put("d/s/two.f32", &vector(&[0.0, 1.0]));
    for mirror in ["similar", "rows"] {
        let path = format!("d/.vexfs/{mirror}/s");
        assert_eq!(names(&fs, &USER, look(&fs, &USER, &path).unwrap().ino).unwrap(), ["two.f32"]);
    }
    assert!(matches!(names(&fs, &USER, old), Err(Error::PermissionDenied)));
    assert!(matches!(fs.volume.lookup(&USER, old, b"one.f32"), Err(Error::PermissionDenied)));
}

#[test]
fn neighbours_of_a_file_are_searched_for_who_may_read_it_then() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.put("d/a.f32", &vector(&[1.0, 0.0]));
    fs.put("d/b.f32", &vector(&[0.0, 1.0]));
    let set = look(&fs, &USER, "d/.vexfs/similar/a.f32").unwrap().ino;
    chmod(&fs, "d/a.f32", 0o600);
    fs.put("d/a.f32", &vector(&[1.0, 3.0]));
    assert!(matches!(names(&fs, &USER, set), Err(Error::PermissionDenied)));
}

#[test]
fn errors_are_shown_of_files_that_the_caller_sees() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    closed(&fs, "d/private", 0o700);
    for path in ["d/bad.f32", "d/unreadable.f32", "d/private/secretname.f32"] {
        fs.put(path, b"x");
    }
    chmod(&fs, "d/unreadable.f32", 0o600);
    fs.link("d/bad.f32", "d/private/linked.f32").unwrap();
    let of = |caller: &Caller, path: &str| read(&fs, caller, path).unwrap();
    for dir in ["", "d/"] {
        let said = of(&USER, &format!("{dir}.vexfs/errors.jsonl"));
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("bad.f32") && !said.contains("private"), "{said}");
        assert_eq!(of(&ROOT, &format!("{dir}.vexfs/errors.jsonl")).lines().count(), 3);
    }
}

#[test]
fn what_is_wrong_with_a_query_is_told_to_who_dropped_it() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    let drop_query = |caller: &Caller, name: &str, text: &[u8]| {
        let queries = look(&fs, caller, "d/.vexfs/queries").unwrap().ino;
        let handle = fs.volume.create(caller, queries, name.as_bytes(), 0o600, WRITE).unwrap().1.handle;
        fs.volume.write(caller, handle, 0, text).unwrap();
        assert!(fs.volume.flush(caller, handle).is_err());
        fs.volume.release(handle).unwrap();
    };
    drop_query(&USER, "mine", b"{\"like\":\"a.f32\",\"unheard\":1}");
    drop_query(&OTHER, "others", b"{\"like\":\"a.f32\",\"unknown\":1}");
    let errors = |caller: &Caller| read(&fs, caller, "d/.vexfs/errors.jsonl").unwrap();
    assert!(errors(&USER).contains("mine") && !errors(&USER).contains("others"));
    assert!(errors(&OTHER).contains("others") && !errors(&OTHER).contains("mine"));
    assert_eq!(errors(&ROOT).lines().count(), 2);
    let error = |caller: &Caller, path: &str| {
        let ino = look(&fs, caller, path).unwrap().ino;
        fs.volume.getxattr(caller, ino, b"user.vexfs.error")
    };
    let of_own = error(&USER, "d/.vexfs/queries/mine").unwrap();
    assert!(String::from_utf8(of_own.to_vec()).unwrap().contains("unheard"));
    assert!(matches!(error(&USER, "d/.vexfs/queries/others"), Err(Error::NoAttribute)));
    assert!(matches!(error(&USER, "d/.vexfs/config"), Err(Error::NoAttribute)));
    assert!(matches!(error(&USER, "d/.vexfs/similar"), Err(Error::NoAttribute)));
}

#[test]
fn collections_are_shown_to_who_may_read_their_directory() {
    let fs = Fs::new();
    fs.mkdir("open").unwrap();
    fs.put("open/a.f32", &vector(&[1.0, 0.0]));
    closed(&fs, "private", 0o700);
    fs.mkdir("private/merger").unwrap();
    fs.volume
        .setxattr(
            &ROOT,
            fs.ino("private/merger").unwrap(),
            b"user.vexfs.dim",
            b"3",
            vexfs::volume::XattrMode::Either,
        )
        .unwrap();
    fs.put("private/merger/x.f32", &vector(&[1.0, 0.0, 0.0]));
    closed(&fs, "unlisted", 0o711);
    fs.put("unlisted/x.f32", &vector(&[1.0, 0.0]));
    for name in ["stats.json", "index.json", "verify.json"] {
        let shown = |caller: &Caller| read(&fs, caller, &format!(".vexfs/{name}")).unwrap();
        let said = shown(&USER);
        assert!(said.contains("/open"), "{name}: {said}");
        assert!(!said.contains("merger") && !said.contains("/unlisted"), "{name}: {said}");
        let said = shown(&ROOT);
        assert!(said.contains("/private/merger") && said.contains("/unlisted"), "{name}: {said}");
    }
    let explained = |caller: &Caller, request: &[u8]| {
        let query = look(&fs, caller, ".vexfs/query").unwrap().ino;
        let handle = fs.volume.open_file(caller, query, WRITE).unwrap().handle;
        fs.volume.write(caller, handle, 0, request).unwrap();
        let mut bytes = Vec::new();
        fs.volume.read(caller, handle, 0, u32::MAX, &mut bytes).unwrap();
        fs.volume.release(handle).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    for request in [&b"{\"explain\":true}\n"[..], b"{\"vector\":[1,0],\"explain\":true}\n"] {
        let said = explained(&USER, request);
        assert!(said.contains("/open"), "{said}");
        assert!(!said.contains("merger") && !said.contains("/unlisted"), "{said}");
        let said = explained(&ROOT, request);
        assert!(said.contains("/private/merger") && said.contains("/unlisted"), "{said}");
    }
    // What is not there for the caller does not decide what it may ask.
    let said = explained(&USER, b"{\"vector\":[1,0,0]}\n");
    assert!(said.contains("EINVAL") && said.contains("collection has 2"), "{said}");
}

#[test]
fn a_second_name_opens_no_closed_directory() {
    let fs = Fs::new();
    closed(&fs, "private", 0o700);
    for dir in ["private/pub", "open"] {
        fs.mkdir(dir).unwrap();
    }
    fs.put("private/pub/x.f32", &vector(&[1.0, 0.0]));
    fs.put("private/pub/secret.f32", &vector(&[0.6, 0.8]));
    fs.put("open/y.f32", &vector(&[0.0, 1.0]));
    fs.link("private/pub/x.f32", "open/x.f32").unwrap();
    let distance = |caller: &Caller, to: &str| {
        attribute(&fs, caller, "open/x.f32", &format!("user.vexfs.distance.{to}"))
    };
    // Whether or not it is there.
    for to in ["../private/pub/secret.f32", "../private/pub/none.f32", "/private/pub/secret.f32"] {
        assert!(matches!(distance(&USER, to), Err(Error::PermissionDenied)), "{to}");
    }
    // A path begins where the caller sees the file.
    for to in ["secret.f32", "none.f32"] {
        assert!(matches!(distance(&USER, to), Err(Error::Missing { .. })), "{to}");
    }
    assert_eq!(distance(&USER, "y.f32").unwrap(), "1");
    assert_eq!(attribute(&fs, &USER, "open/x.f32", "user.vexfs.similar").unwrap(), "1\ty.f32\n");
    chmod(&fs, "open", 0o700);
    assert!(matches!(distance(&USER, "secret.f32"), Err(Error::PermissionDenied)));
    assert!(matches!(distance(&USER, "none.f32"), Err(Error::PermissionDenied)));
}

#[test]
fn a_hit_is_shown_under_a_name_that_the_caller_sees() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    closed(&fs, "d/private", 0o700);
    fs.mkdir("d/public").unwrap();
    fs.put("d/private/secretname.f32", &vector(&[1.0, 0.0]));
    fs.link("d/private/secretname.f32", "d/public/x.f32").unwrap();
    fs.put("d/a.f32", &vector(&[1.0, 0.1]));
    for _ in 0..2 {
        let of_user = attribute(&fs, &USER, "d/a.f32", "user.vexfs.similar").unwrap();
        assert!(of_user.ends_with("\tpublic/x.f32\n"), "{of_user}");
        assert!(read(&fs, &USER, "d/.vexfs/ids.tsv").unwrap().contains("public/x.f32"));
        let of_root = attribute(&fs, &ROOT, "d/a.f32", "user.vexfs.similar").unwrap();
        assert!(of_root.ends_with("\tprivate/secretname.f32\n"), "{of_root}");
    }
}

#[test]
fn looking_at_a_removed_directory_leaves_nothing_behind() {
    let fs = Fs::new();
    fs.mkdir("gone").unwrap();
    let gone = fs.ino("gone").unwrap();
    let handle = fs.volume.open_dir(&ROOT, gone).unwrap();
    let rooms: Vec<_> = ["config", "query", "queries"]
        .map(|name| look(&fs, &ROOT, &format!("gone/.vexfs/{name}")).unwrap().ino)
        .to_vec();
    fs.rmdir("gone").unwrap();
    let metric = fs.volume.getxattr(&ROOT, gone, b"user.vexfs.metric").unwrap();
    assert_eq!(metric.to_vec(), b"cosine");
    let query = fs.volume.open_file(&ROOT, rooms[1], WRITE).unwrap().handle;
    fs.volume.write(&ROOT, query, 0, b"{\"vector\":[1]}\n").unwrap();
    fs.volume.release(query).unwrap();
    let dropped = fs.volume.create(&ROOT, rooms[2], b"q", 0o600, WRITE);
    assert!(matches!(dropped, Err(Error::NotFound)), "{dropped:?}");
    fs.volume.release_dir(handle);
    assert_eq!(read(&fs, &ROOT, ".vexfs/errors.jsonl").unwrap(), "");
}

#[test]
fn queries_go_with_their_directory() {
    let fs = Fs::new();
    fs.mkdir("kept").unwrap();
    let fill = |dir: &str| {
        let queries = look(&fs, &USER, &format!("{dir}/.vexfs/queries")).unwrap().ino;
        (0..1024).try_for_each(|number: u32| {
            let name = number.to_string();
            let handle = fs.volume.create(&USER, queries, name.as_bytes(), 0o600, WRITE)?.1.handle;
            fs.volume.release(handle)
        })
    };
    for _ in 0..2 {
        fs.mkdir("gone").unwrap();
        fill("gone").unwrap();
        assert!(matches!(fill("kept"), Err(Error::NoSpace)));
        fs.rmdir("gone").unwrap();
    }
    fill("kept").unwrap();
    // One user's do not take the room of another's.
    let queries = look(&fs, &OTHER, "kept/.vexfs/queries").unwrap().ino;
    let handle = fs.volume.create(&OTHER, queries, b"other", 0o600, WRITE).unwrap().1.handle;
    fs.volume.release(handle).unwrap();
}

#[test]
fn what_conversations_hold_is_bounded_for_each_user() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    fs.put("d/a.f32", &vector(&[1.0; 64]));
    let query = look(&fs, &USER, "d/.vexfs/query").unwrap().ino;
    let body = vec![0; 1 << 20];
    // 60 MiB of a request that is not whole.
    let hold = |caller: &Caller| {
        let handle = fs.volume.open_file(caller, query, WRITE).unwrap().handle;
        let header = b"{\"dtype\":\"f32\",\"rows\":250000,\"dim\":64,\"k\":1}\n";
        let wrote = fs
            .volume
            .write(caller, handle, 0, header)
            .and_then(|_| (0..60).try_for_each(|_| fs.volume.write(caller, handle, 0, &body).map(|_| ())));
        (handle, wrote)
    };
    let mut held = Vec::new();
    let refused = loop {
        let (handle, wrote) = hold(&USER);
        held.push(handle);
        match wrote {
            Ok(()) => assert!(held.len() < 10, "600 MiB are held"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::OverBudget { .. }), "{refused:?}");
    // It is another user's own, and what is let go can be held again.
    let (of_other, wrote) = hold(&OTHER);
    wrote.unwrap();
    fs.volume.release(of_other).unwrap();
    fs.volume.release(held.remove(0)).unwrap();
    let (again, wrote) = hold(&USER);
    wrote.unwrap();
    held.push(again);
    held.into_iter().for_each(|handle| fs.volume.release(handle).unwrap());
}

#[test]
fn a_batch_that_runs_finds_nothing_that_is_closed_to_its_caller() {
    const DIM: usize = 16;
    const ROWS: u32 = 20_000;
    let fs = Fs::new();
    for dir in ["d", "d/part"] {
        fs.mkdir(dir).unwrap();
    }
    let rows = (0..ROWS).flat_map(|row| (0..DIM as u32).map(move |at| ((row * 31 + at * 17) % 101) as f32));
    let rows: Vec<f32> = rows.collect();
    fs.put("d/base.fbin", &[&ROWS.to_le_bytes()[..], &(DIM as u32).to_le_bytes(), &vector(&rows)].concat());
    let query = [1.0; DIM].map(|value: f32| -value);
    fs.put("d/part/known.f32", &vector(&[-1.0, 1.0].repeat(DIM / 2)));
    let searches = || -> u64 {
        let metrics = read(&fs, &ROOT, ".vexfs/metrics").unwrap();
        let line = metrics.lines().find(|line| line.starts_with("vexfs_searches_total{kind=\"exact\"}"));
        line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
    };
    std::thread::scope(|scope| {
        let batch = scope.spawn(|| nearest_of_batch(&fs, &USER, "d", &query, 5000));
        while searches() == 0 && !batch.is_finished() {
            std::thread::yield_now();
        }
        // One is of a group that is new, the other of one that was open.
        fs.mkdir("d/new").unwrap();
        chmod(&fs, "d/new", 0o700);
        fs.put("d/new/secret.f32", &vector(&query));
        chmod(&fs, "d/part", 0o700);
        fs.put("d/part/secret.f32", &vector(&query));
        let found = batch.join().unwrap();
        assert_eq!(found.len(), 5000);
        let secret = found.iter().filter(|&&id| id > ROWS && id != u32::MAX).count();
        assert_eq!(secret, 0, "answers have files that the caller may not read");
    });
    assert!(nearest_of_batch(&fs, &ROOT, "d", &query, 1)[0] > ROWS);
}
