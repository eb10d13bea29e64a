//! The stack that operations use, the library's own frames and the thread's start included.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, SFlag, mknod};

use vexfs::fuse::ask::ask;

use crate::harness::{Mount, f32_bytes, run, text, wait_for};

/// What an operation may use, in bytes, unless it is one of [`DEEPER`].
const BUDGET: u64 = 4096;

/// What none may use.
const LIMIT: u64 = 8192;

/// What of an operation's work is deep.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deep {
    /// The catalog's engine applies a batch: 2.4 KiB by itself.
    Commit,
    /// It lists: 2 KiB.
    List,
    /// It reads a table on the disk: up to 3.5 KiB. Where the record is in memory it takes 1 KiB.
    Table,
    /// A search, or what waits in `.vexfs`.
    Search,
}

/// Operations that may use more than [`BUDGET`], how much, and for what. `joining` is what comes before an operation.
const DEEPER: [(&str, u64, Deep); 28] = [
    ("copy_file_range", 7680, Deep::Commit),
    ("create", 7936, Deep::Commit),
    ("fallocate", 7424, Deep::Commit),
    ("flush", 6400, Deep::Commit),
    ("fsync", 6400, Deep::Commit),
    ("getattr", 5888, Deep::Table),
    ("getxattr", 7680, Deep::Search),
    ("ioctl", 7680, Deep::Search),
    ("joining", 8192, Deep::Table),
    ("link", 6656, Deep::Commit),
    ("listxattr", 5376, Deep::List),
    ("lookup", 7680, Deep::Search),
    ("lseek", 4608, Deep::Table),
    ("mkdir", 7424, Deep::Commit),
    ("mknod", 7168, Deep::Commit),
    ("open", 6144, Deep::Table),
    ("opendir", 5120, Deep::Search),
    ("read", 8192, Deep::Search),
    ("readdir", 5632, Deep::List),
    ("release", 6400, Deep::Commit),
    ("removexattr", 5888, Deep::Commit),
    ("rename", 7680, Deep::Commit),
    ("rmdir", 6656, Deep::Commit),
    ("setattr", 8192, Deep::Commit),
    ("setxattr", 6144, Deep::Commit),
    ("symlink", 7168, Deep::Commit),
    ("unlink", 6400, Deep::Commit),
    ("write", 7680, Deep::Commit),
];

/// What these may use where the records that they read are in memory, and no search is made.
const IN_MEMORY: [(&str, u64); 5] =
    [("getattr", BUDGET), ("getxattr", BUDGET), ("lookup", 4352), ("lseek", 4352), ("open", 4352)];

/// In bytes of this build: one that is not optimised takes up to an eighth more.
fn allowed(bytes: u64) -> u64 {
    if cfg!(debug_assertions) { bytes / 8 * 9 } else { bytes }
}

fn vector(seed: usize) -> Vec<f32> {
    (0..64).map(|at| ((seed * 7 + at * 13) % 101) as f32 - 50.0).collect()
}

/// Every kind of request, the control files and errors included.
fn exercise(mount: &Mount) {
    let path = |name: &str| mount.path(name);
    mount.mkdir("d");
    mount.mkdir("d/sub");
    for number in 0..40 {
        mount.put(&format!("d/{number}.f32"), &vector(number));
    }
    mount.put("d/wrong.f32", &[1.0, 2.0]);
    mount.put("d/bad.f32", &[f32::NAN; 64]);
    fs::write(path("d/text.vec"), vector(3).iter().map(f32::to_string).collect::<Vec<_>>().join(" "))
        .unwrap();
    fs::write(path("d/.vexfs/config"), "[index]\nrecall = 0.9\n").unwrap();
    // Refused at the close, which this does not see.
    fs::write(path("d/.vexfs/config"), "[index]\nunknown = 1\n").unwrap();
    fs::write(path("d/.vexfs/config"), "not toml [").unwrap();

    // Files: small, in a slot, in a blob, large.
    for (name, len) in [("small", 100), ("middle", 20_000), ("large", 1 << 20)] {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path(name)).unwrap();
        file.write_all(&vec![7; len]).unwrap();
        file.write_all_at(b"in the middle", 50).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut Vec::new()).unwrap();
        file.set_len(len as u64 / 2).unwrap();
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, len as i64).unwrap();
        let _ = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekHole);
        file.sync_all().unwrap();
        drop(file);
        let again = OpenOptions::new().read(true).write(true).open(path(name)).unwrap();
        again.write_all_at(b"again", 10).unwrap();
        again.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(7)).unwrap();
    }
    fs::copy(path("large"), path("copy")).unwrap();
    symlink("small", path("link")).unwrap();
    assert_eq!(fs::read_link(path("link")).unwrap().to_str(), Some("small"));
    fs::hard_link(path("small"), path("hard")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::set_permissions(path("small"), fs::Permissions::from_mode(0o640)).unwrap();
    nix::sys::statvfs::statvfs(&path("d")).unwrap();
    // The request that carries most: that it joins the epochs when there is something to free is left to chance otherwise.
    for round in 0..2000 {
        fs::set_permissions(path("small"), fs::Permissions::from_mode(0o600 | (round % 2))).unwrap();
    }

    // Names.
    fs::rename(path("d/1.f32"), path("d/sub/one.f32")).unwrap();
    fs::rename(path("d/sub"), path("moved")).unwrap();
    fs::rename(path("d/2.f32"), path("d/3.f32")).unwrap();
    fs::remove_file(path("d/4.f32")).unwrap();
    fs::remove_dir(path("moved")).unwrap_err();
    fs::remove_file(path("moved/one.f32")).unwrap();
    fs::remove_dir(path("moved")).unwrap();
    fs::metadata(path("d/missing")).unwrap_err();
    for _ in 0..2 {
        for entry in fs::read_dir(path("d")).unwrap() {
            entry.unwrap().metadata().unwrap();
        }
    }
    File::open(path("d")).unwrap().sync_all().unwrap();

    // Attributes.
    let file = path("d/5.f32");
    xattr::set(&file, "user.note", b"value").unwrap();
    xattr::get(&file, "user.note").unwrap();
    assert!(xattr::list(&file).unwrap().count() > 0);
    xattr::remove(&file, "user.note").unwrap();
    for name in ["status", "dim", "vector", "similar", "similar.20", "distance.6.f32"] {
        assert!(xattr::get(&file, format!("user.vexfs.{name}")).unwrap().is_some(), "{name}");
    }
    xattr::set(&file, "user.vexfs.status", b"no").unwrap_err();
    xattr::set(path("d"), "user.vexfs.recall", b"0.8").unwrap();
    assert!(xattr::get(path("d"), "user.vexfs.count").unwrap().is_some());

    // Searches through every door.
    for round in 0..4 {
        mount.ask("d", format!("{{\"like\":\"{}.f32\",\"k\":5}}\n", 5 + round).as_bytes());
        let mut request = b"{\"dtype\":\"f32\",\"rows\":1,\"dim\":64,\"k\":5}\n".to_vec();
        request.extend(f32_bytes(&vector(round)));
        mount.ask("d", &request);
    }
    mount.ask("d", b"{\"vector\":[1,2]}\n{\"unknown\":1}\nnot json\n");
    for request in [&b"{\"like\":\"6.f32\",\"k\":5}\n"[..], b"{\"unknown\":1}\n", b"{\"dtype\":1}\n"] {
        let mut buffer = request.to_vec();
        buffer.resize(2000, 0);
        let _ = ask(&mount.query_file("d"), &mut buffer);
    }
    let similar = path("d/.vexfs/similar/5.f32");
    for entry in fs::read_dir(&similar).unwrap() {
        fs::symlink_metadata(entry.unwrap().path()).unwrap();
    }
    fs::read(similar.join("results.json")).unwrap();
    fs::write(path("d/.vexfs/queries/q.f32"), f32_bytes(&vector(9))).unwrap();
    fs::read(path("d/.vexfs/results/q.f32/results.tsv")).unwrap();
    fs::remove_file(path("d/.vexfs/queries/q.f32")).unwrap();
    // Under conditions: when the attributes are read for the first time, when they are known, when they change.
    let condition = "not (note in (a,'b') or other~x*y) and (note>=v or number<1.5)";
    for round in 0..3u8 {
        mount.ask("d", format!("{{\"like\":\"6.f32\",\"where\":\"{condition}\"}}\n").as_bytes());
        fs::read(path("d/.vexfs").join(format!("@k=3,where={condition}/similar/5.f32/results.json")))
            .unwrap();
        xattr::set(&file, "user.note", &[b'v', round]).unwrap();
        let again = OpenOptions::new().write(true).open(&file).unwrap();
        again.write_all_at(&f32_bytes(&vector(usize::from(round))), 0).unwrap();
    }
    xattr::remove(&file, "user.note").unwrap();
    for name in ["stats.json", "errors.jsonl", "ids.tsv", "index.json", "verify.json", "config"] {
        fs::read(path("d/.vexfs").join(name)).unwrap();
    }
    for name in ["README", "version", "metrics", "health", "sync"] {
        fs::read(path(".vexfs").join(name)).unwrap();
    }
}

/// Fills the catalog until it has written tables of names and inodes, from which it reads from then on.
fn fill(mount: &mut Mount) {
    mount.mkdir("full");
    for number in 0..40_000 {
        let path = mount.path(format!("full/{number:0>200}"));
        mknod(&path, SFlag::S_IFREG, Mode::S_IRUSR, 0).unwrap();
    }
    // What is looked up from here on has been forgotten by the kernel.
    mount.remount();
    let written =
        Command::new("find").arg(mount.store().join("catalog")).args(["-path", "*/tables/*"]).output();
    assert!(text(&written.unwrap().stdout).lines().count() >= 4, "names and inodes are in tables");
}

/// A collection that is searched by its graph.
fn search_by_graph(mount: &Mount) {
    mount.mkdir("g");
    fs::write(mount.path("g/.vexfs/config"), "[index]\nexact_below = 1\n").unwrap();
    for number in 0..300 {
        mount.put(&format!("g/{number}.f32"), &vector(number));
    }
    wait_for("the graph", || xattr::get(mount.path("g"), "user.vexfs.pending").unwrap().unwrap() == b"0");
    for request in [
        &b"{\"like\":\"7.f32\",\"k\":5,\"ef\":20}\n"[..],
        b"{\"like\":\"7.f32\",\"explain\":true}\n",
        b"{\"explain\":true}\n",
    ] {
        mount.ask("g", request);
        let mut buffer = request.to_vec();
        buffer.resize(2000, 0);
        assert!(ask(&mount.query_file("g"), &mut buffer).unwrap() > 0);
    }
    // A batch that is long enough to be shared with other threads, where there is another core.
    let header = format!("{{\"dtype\":\"f32\",\"rows\":2000,\"dim\":{},\"k\":3}}\n", vector(0).len());
    let vectors = (0..2000).flat_map(|number| f32_bytes(&vector(number)));
    let batch: Vec<u8> = header.bytes().chain(vectors).collect();
    assert_eq!(mount.ask("g", &batch).len(), 2000 * 3 * 8);
    assert!(xattr::get(mount.path("g/9.f32"), "user.vexfs.similar").unwrap().is_some());
}

/// Takes a snapshot, looks into it, searches in it, drops it.
fn look_back(mount: &Mount) {
    let taken = mount.path(".vexfs/snapshots/one");
    fs::create_dir(&taken).unwrap();
    fs::metadata(taken.join("g/1.f32")).unwrap();
    mount.ask(".vexfs/snapshots/one/g", b"{\"like\":\"8.f32\",\"k\":5}\n");
    fs::read(taken.join("d/5.f32")).unwrap();
    fs::remove_file(taken.join("d/5.f32")).unwrap_err();
    wait_for("nothing in the snapshot to be open", || fs::remove_dir(&taken).is_ok());
}

/// Reads whose records are in memory.
fn read_from_memory(mount: &mut Mount) {
    fs::write(mount.path("file"), vec![7; 1500]).unwrap();
    fs::write(mount.path("blob"), vec![7; 100_000]).unwrap();
    mount.mkdir("d");
    mount.put("d/1.f32", &vector(1));
    symlink("file", mount.path("link")).unwrap();
    xattr::set(mount.path("file"), "user.note", b"value").unwrap();
    mount.remount();
    for name in ["file", "blob", "d/1.f32"] {
        fs::metadata(mount.path(name)).unwrap();
        fs::read(mount.path(name)).unwrap();
    }
    fs::metadata(mount.path("missing")).unwrap_err();
    // The kernel would answer from what it has.
    let stat = run(Command::new("stat").arg("--cached=never").arg(mount.path("file")));
    assert!(stat.status.success(), "{}", text(&stat.stderr));
    let file = File::open(mount.path("file")).unwrap();
    nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekHole).unwrap();
    fs::read_link(mount.path("link")).unwrap();
    xattr::get(mount.path("file"), "user.note").unwrap();
    nix::sys::statvfs::statvfs(&mount.root()).unwrap();
}

/// What the operations of a mount have used so far: bytes, operation and thread, most first.
fn high_water(mount: &Mount) -> Vec<(u64, String, String)> {
    let of_line = |line: &str| {
        let line = line.strip_prefix("vexfs_stack_high_water_bytes{op=\"")?;
        let (op, line) = line.split_once("\",thread=\"")?;
        let (thread, bytes) = line.split_once("\"} ")?;
        Some((bytes.parse().unwrap(), op.to_owned(), thread.to_owned()))
    };
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    let mut stacks: Vec<_> = metrics.lines().filter_map(of_line).collect();
    stacks.sort_unstable();
    stacks.reverse();
    println!("{stacks:?}");
    stacks
}

/// What `op` may use.
fn budget(op: &str) -> u64 {
    let deeper = DEEPER.iter().find(|(name, ..)| *name == op);
    allowed(deeper.map_or(BUDGET, |&(_, bytes, _)| bytes))
}

#[test]
fn what_may_go_deeper_is_named_and_does() {
    assert!(DEEPER.iter().all(|&(name, bytes, _)| bytes > BUDGET && bytes <= LIMIT && budget(name) > BUDGET));
    assert!(DEEPER.is_sorted_by_key(|(name, ..)| *name));
    let is_read = |deep| matches!(deep, Deep::Table | Deep::Search);
    let may_be_deeper =
        |op, bytes| DEEPER.iter().any(|&(name, most, deep)| name == op && bytes < most && is_read(deep));
    assert!(IN_MEMORY.iter().all(|&(op, bytes)| may_be_deeper(op, bytes)));
}

#[test]
fn reading_what_is_in_memory_takes_little_stack() {
    let mut mount = Mount::with_options(&["-o", "stack_probe"]);
    read_from_memory(&mut mount);
    let stacks = high_water(&mount);
    for &(name, bytes) in &IN_MEMORY {
        let of_name = |(_, op, thread): &&(u64, String, String)| op == name && thread == "request";
        let (used, ..) = stacks.iter().find(of_name).unwrap();
        let budget = allowed(bytes);
        assert!(*used < budget, "{name}: {used}, want less than {budget}: {stacks:?}");
    }
}

#[test]
fn operations_stay_within_their_stack_budget() {
    let mut mount = Mount::with_options(&["-o", "stack_probe"]);
    fill(&mut mount);
    exercise(&mount);
    search_by_graph(&mount);
    look_back(&mount);
    let stacks = high_water(&mount);
    assert!(stacks.len() >= 40, "{stacks:?}");
    for (bytes, op, thread) in &stacks {
        assert!(*bytes > 1000, "{op} on a {thread} thread: {stacks:?}");
        let budget = budget(op);
        assert!(*bytes < budget, "{op} on a {thread} thread: {bytes}, want less than {budget}: {stacks:?}");
        println!("{bytes:5} of {budget:5} bytes: {op} on a {thread} thread");
    }
}
