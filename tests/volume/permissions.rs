//! A caller sees only what it may read, below directories that it may traverse: at every door.

use vexfs::Error;
use vexfs::namespace::Ino;
use vexfs::volume::{Attr, Caller, SetAttr};

use crate::support::*;

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
        let secret = found.iter().filter(|&&id| id > ROWS).count();
        assert_eq!(secret, 0, "answers have files that the caller may not read");
    });
    assert!(nearest_of_batch(&fs, &ROOT, "d", &query, 1)[0] > ROWS);
}
