//! The stack that operations use, the library's own frames and the thread's start included.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use crate::harness::{Mount, f32_bytes};

/// What an operation may use, in bytes.
const BUDGET: u64 = 8 << 10;

/// Operations that exceed the budget, in some of what they do: generated control files, the catalog's commits and
/// ranges below a change of names, content that is settled, a change of content that gets a blob of its own. They may
/// not use more than this.
const OVER: [&str; 15] = [
    "copy_file_range",
    "create",
    "fallocate",
    "flush",
    "getattr",
    "getxattr",
    "lookup",
    "mkdir",
    "open",
    "read",
    "readdir",
    "rename",
    "setattr",
    "symlink",
    "write",
];
const OVER_BUDGET: u64 = 12 << 10;

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
    let similar = path("d/.vexfs/similar/5.f32");
    for entry in fs::read_dir(&similar).unwrap() {
        fs::symlink_metadata(entry.unwrap().path()).unwrap();
    }
    fs::read(similar.join("results.json")).unwrap();
    fs::write(path("d/.vexfs/queries/q.f32"), f32_bytes(&vector(9))).unwrap();
    fs::read(path("d/.vexfs/results/q.f32/results.tsv")).unwrap();
    fs::remove_file(path("d/.vexfs/queries/q.f32")).unwrap();
    for name in ["stats.json", "errors.jsonl", "ids.tsv", "index.json", "verify.json", "config"] {
        fs::read(path("d/.vexfs").join(name)).unwrap();
    }
    for name in ["README", "version", "metrics", "health", "sync"] {
        fs::read(path(".vexfs").join(name)).unwrap();
    }
}

#[test]
fn operations_stay_within_their_stack_budget() {
    let mount = Mount::with_options(&["-o", "stack_probe"]);
    exercise(&mount);
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    let name = "vexfs_stack_high_water_bytes{op=\"";
    let mut stacks: Vec<(u64, &str)> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.split_once("\"} "))
        .map(|(op, bytes)| (bytes.parse().unwrap(), op))
        .collect();
    stacks.sort_unstable();
    stacks.reverse();
    println!("{stacks:?}");
    assert!(stacks.len() >= 26, "{stacks:?}");
    assert!(stacks.iter().all(|&(bytes, _)| bytes > 1000), "{stacks:?}");
    for &(bytes, op) in &stacks {
        let budget = if OVER.contains(&op) { OVER_BUDGET } else { BUDGET };
        assert!(bytes < budget, "{op}: {bytes}, want less than {budget}: {stacks:?}");
    }
}
