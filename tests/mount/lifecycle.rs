//! Mounting, unmounting, dying: what is kept, and what a person is told.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    Mount, Random, VEXFS, errno, f32_bytes, is_root, npy, paths, run, shell, text, wait_for,
};

const NOBODY: u32 = 65534;

/// A mount that `vexfs mount` made and left behind, taken away at the end whatever happened.
struct Background {
    dir: TempDir,
}

impl Background {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vexfs-test-").tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Runs `vexfs` in the temporary directory, which is the home directory too.
    fn vexfs(&self, args: &[&str]) -> Output {
        run(Command::new(VEXFS)
            .args(args)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env_remove("XDG_DATA_HOME"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let mnt = self.path("mnt");
        for command in [&mut Command::new("umount").arg("-l"), &mut Command::new("fusermount3").arg("-uz")] {
            let _ = command.arg(&mnt).stdin(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, said(output));
    said(output)
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

#[test]
fn everything_is_there_after_a_remount() {
    let mut mount = Mount::new();
    for dir in ["docs", "docs/sub", "own"] {
        mount.mkdir(dir);
    }
    fs::write(mount.path("own/.vexfs/config"), "[collection]\nmetric = \"l2\"\n[index]\nrecall = 0.77\n")
        .unwrap();
    let mut random = Random(1);
    for i in 0..30 {
        mount.put(&format!("docs/{i:02}.f32"), &random.vector(8));
        mount.put(&format!("docs/sub/{i:02}.f32"), &random.vector(8));
        mount.put(&format!("own/{i:02}.f32"), &random.vector(4));
    }
    let rows: Vec<_> = (0..40).map(|_| random.vector(8)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    fs::write(mount.path("docs/vector.vec"), "1 2 3 4 5 6 7 8").unwrap();
    fs::write(mount.path("docs/bad.f32"), b"x").unwrap();
    fs::hard_link(mount.path("docs/00.f32"), mount.path("docs/sub/linked.f32")).unwrap();
    fs::rename(mount.path("docs/01.f32"), mount.path("docs/sub/moved.f32")).unwrap();
    fs::remove_file(mount.path("docs/02.f32")).unwrap();
    let queries: Vec<_> = (0..10).map(|_| random.vector(8)).collect();
    let state = |mount: &Mount| {
        let tables = shell(
            &mount.root(),
            "find . -printf '%p %y %m %s %i %T@ %n\\n' | sort; find . -type f | sort | xargs sha256sum
             cat docs/.vexfs/ids.tsv own/.vexfs/ids.tsv docs/.vexfs/config own/.vexfs/config
             cat docs/.vexfs/errors.jsonl",
        );
        let answers: Vec<Value> = queries
            .iter()
            .map(|query| mount.ask_json("docs", &json!({"vector": query, "k": 100}))["hits"].clone())
            .collect();
        (tables, answers, mount.attribute("own/00.f32", "user.vexfs.similar"))
    };
    let before = state(&mount);
    for round in 0..3 {
        mount.remount();
        assert_eq!(state(&mount), before, "round {round}");
    }
    mount.kill();
    mount.start();
    assert_eq!(state(&mount), before, "after a kill");
}

#[test]
fn a_graph_is_used_at_once_after_a_remount_and_answers_alike() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    let mut random = Random(2);
    let rows: Vec<_> = (0..5200).map(|_| random.vector(16)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    for i in 0..50 {
        mount.put(&format!("docs/{i:02}.f32"), &random.vector(16));
    }
    mount.sync();
    let queries: Vec<_> = (0..20).map(|_| random.vector(16)).collect();
    let answers = |mount: &Mount| -> Vec<Value> {
        let answer = |query| mount.ask_json("docs", &json!({"vector": query}));
        queries
            .iter()
            .map(|query| {
                let answer = answer(query);
                assert_eq!((&answer["exact"], &answer["pending"]), (&json!(false), &json!(0)), "{answer}");
                answer["hits"].clone()
            })
            .collect()
    };
    let before = answers(&mount);
    mount.remount();
    assert_eq!(mount.status("docs/rows.npy"), "indexed");
    let stats = mount.json("docs/.vexfs/stats.json");
    assert_eq!((&stats["graph_nodes"], &stats["pending"]), (&json!(5250), &json!(0)));
    assert_eq!(answers(&mount), before);
    // What is added after the checkpoint is caught up with, also when the end was unclean.
    mount.put("docs/new.f32", &queries[0]);
    fs::remove_file(mount.path("docs/00.f32")).unwrap();
    mount.kill();
    mount.start();
    let answer = mount.ask_json("docs", &json!({"vector": queries[0], "k": 5}));
    assert_eq!(paths(&answer)[0], "new.f32");
    mount.sync();
    assert_eq!(mount.attribute("docs", "user.vexfs.pending"), "0");
    let all = mount.ask_json("docs", &json!({"vector": queries[0], "k": 5250, "exact": true}));
    let all = paths(&all);
    assert_eq!(all.len(), 5250);
    assert!(!all.contains(&"00.f32".to_owned()));
}

#[test]
fn every_file_whose_copy_had_ended_is_there_after_a_kill() {
    let mut mount = Mount::new();
    fs::create_dir(mount.outside("src")).unwrap();
    let mut random = Random(3);
    let vectors: Vec<_> = (0..2000).map(|_| random.vector(24)).collect();
    for (i, vector) in vectors.iter().enumerate() {
        fs::write(mount.outside(format!("src/{i:04}.f32")), f32_bytes(vector)).unwrap();
    }
    mount.mkdir("docs");
    for (round, wait) in [120, 500, 30].into_iter().enumerate() {
        let done = mount.outside(format!("done{round}"));
        File::create(&done).unwrap();
        let script = format!(
            "for f in src/*.f32; do n=${{f##*/}}; cmp -s $f mnt/docs/$n || cp $f mnt/docs/$n || exit 1; echo $n >> {}; done",
            done.display()
        );
        let mut copying = Command::new("bash")
            .args(["-c", &script])
            .current_dir(mount.outside("."))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let count = || fs::read_to_string(&done).unwrap().lines().count();
        let before = if round == 0 { 0 } else { fs::read_dir(mount.path("docs")).unwrap().count() };
        wait_for("some copies to end", || count() >= before + wait);
        mount.kill();
        copying.wait().unwrap();
        mount.start();
        let names = fs::read_to_string(&done).unwrap();
        assert!(names.lines().count() < 2000, "the copy was not cut short");
        let mut found = 0;
        for name in names.lines() {
            let number: usize = name.strip_suffix(".f32").unwrap().parse().unwrap();
            let content =
                fs::read(mount.path("docs").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(content, f32_bytes(&vectors[number]), "{name}");
            assert_eq!(mount.status(&format!("docs/{name}")), "indexed", "{name}");
            if number.is_multiple_of(29) {
                let answer = mount.ask_json("docs", &json!({"vector": vectors[number], "k": 1}));
                assert_eq!(paths(&answer), [name]);
                found += 1;
            }
        }
        assert!(found > 0);
        // Whatever else is there is a file that was being copied, whole or not at all a vector.
        let listed = fs::read_dir(mount.path("docs")).unwrap().count();
        assert!(listed <= names.lines().count() + 1, "{listed} files, {} copied", names.lines().count());
    }
}

#[test]
fn an_unfinished_overwrite_is_what_was_written_after_a_kill() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/q.f32", &[1.0, 0.0, 0.0]);
    mount.put("docs/a.f32", &[0.0, 1.0, 0.0]);
    mount.put("docs/b.f32", &[0.0, 0.0, 1.0]);
    // One is truncated and half written, of the other one value is replaced in place.
    let mut cut = File::create(mount.path("docs/a.f32")).unwrap();
    cut.write_all(&1f32.to_le_bytes()).unwrap();
    let patched = File::options().write(true).open(mount.path("docs/b.f32")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&patched, &1f32.to_le_bytes(), 0).unwrap();
    mount.kill();
    drop((cut, patched));
    mount.start();
    assert_eq!(fs::read(mount.path("docs/a.f32")).unwrap(), 1f32.to_le_bytes());
    assert_eq!(mount.status("docs/a.f32"), "invalid: dimension 1, collection has 3");
    assert_eq!(fs::read(mount.path("docs/b.f32")).unwrap(), f32_bytes(&[1.0, 0.0, 1.0]));
    assert_eq!(mount.similar("docs/q.f32"), ["b.f32"]);
    let distance: f32 = mount.attribute("docs/q.f32", "user.vexfs.distance.b.f32").parse().unwrap();
    assert!((distance - 0.29289).abs() < 1e-4, "{distance}");
}

#[test]
fn what_was_written_to_ordinary_files_is_there_after_a_kill() {
    let mut mount = Mount::new();
    let mut open = File::create(mount.path("open")).unwrap();
    open.write_all(&[1; 30_000]).unwrap();
    fs::write(mount.path("closed"), [2; 100_000]).unwrap();
    let gone = File::create(mount.path("gone")).unwrap();
    (&gone).write_all(&[3; 50_000]).unwrap();
    fs::remove_file(mount.path("gone")).unwrap();
    fs::rename(mount.path("closed"), mount.path("renamed")).unwrap();
    xattr::set(mount.path("renamed"), "user.k", b"v").unwrap();
    fs::set_permissions(mount.path("renamed"), Permissions::from_mode(0o604)).unwrap();
    mount.kill();
    drop((open, gone));
    mount.start();
    assert_eq!(fs::read(mount.path("open")).unwrap(), [1; 30_000]);
    assert_eq!(fs::read(mount.path("renamed")).unwrap(), [2; 100_000]);
    assert_eq!(fs::metadata(mount.path("renamed")).unwrap().mode() & 0o777, 0o604);
    assert_eq!(xattr::get(mount.path("renamed"), "user.k").unwrap().unwrap(), b"v");
    assert_eq!(errno(fs::metadata(mount.path("gone"))), libc::ENOENT);
    // The file without a name gave its space back, once a commit without it was durable.
    mount.sync();
    let blobs = shell(&mount.store(), "find . -type f -size +40k -size -60k ! -path '*catalog*' | wc -l");
    assert_eq!(blobs, "0\n");
}

#[test]
fn a_second_mount_of_a_store_is_refused_and_told_who_holds_it() {
    let mount = Mount::new();
    let other = mount.outside("other");
    fs::create_dir(&other).unwrap();
    let output = run(Command::new(VEXFS).args(["mount", "-f", "--store"]).arg(mount.store()).arg(&other));
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    let message = said(&output);
    for part in [mount.store().to_str().unwrap(), &mount.pid().to_string(), mount.root().to_str().unwrap()] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    // Nor is a store mounted where another one is.
    let output =
        run(Command::new(VEXFS).args(["mount", "-f", "--store"]).arg(mount.outside("new")).arg(mount.root()));
    assert!(!output.status.success() && said(&output).contains("already mounted"), "{}", said(&output));
    mount.put("a.f32", &[1.0]);
}

#[test]
fn sigterm_and_sigint_unmount_cleanly() {
    for name in ["TERM", "INT"] {
        let mut mount = Mount::new();
        mount.put("a.f32", &[1.0]);
        let status = mount.signal(name);
        assert_eq!(status.code(), Some(0), "SIG{name}: {status}");
        assert!(!is_mounted(&mount.root()));
        assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 0);
        mount.start();
        assert_eq!(fs::read(mount.path("a.f32")).unwrap(), f32_bytes(&[1.0]));
    }
}

#[test]
fn a_signal_ends_the_mount_also_while_a_file_is_open() {
    let mut mount = Mount::new();
    let mut file = File::create(mount.path("f")).unwrap();
    file.write_all(b"kept").unwrap();
    let begun = Instant::now();
    let status = mount.signal("TERM");
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    assert!(file.write_all(b"more").is_err());
    drop(file);
    mount.start();
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"kept");
}

#[test]
fn a_dead_mount_says_so_and_is_replaced() {
    let mut mount = Mount::new();
    mount.put("a.f32", &[1.0]);
    mount.kill();
    assert!(is_mounted(&mount.root()));
    assert_eq!(errno(fs::read(mount.path("a.f32"))), libc::ENOTCONN);
    let output = run(Command::new(VEXFS).arg("status").arg(mount.root()));
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    mount.start();
    assert_eq!(fs::read(mount.path("a.f32")).unwrap(), f32_bytes(&[1.0]));
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mount.root();
    let mounts = table.lines().filter(|line| line.split(' ').nth(1) == root.to_str()).count();
    assert_eq!(mounts, 1, "nothing is stacked");
    // A dead mount can also be taken away alone.
    mount.kill();
    let output = run(Command::new(VEXFS).arg("umount").arg(mount.root()));
    assert!(output.status.success(), "{}", said(&output));
    assert!(!is_mounted(&mount.root()));
}

#[test]
fn mount_returns_when_the_mount_answers_and_umount_when_the_store_is_closed() {
    let bench = Background::new();
    let output = bench.vexfs(&["mount", "--store", "store", "mnt"]);
    succeed(&output);
    assert!(bench.path("mnt/.vexfs/version").exists());
    fs::write(bench.path("mnt/a.f32"), f32_bytes(&[1.0, 2.0])).unwrap();
    let options = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = options.lines().find(|line| line.split(' ').nth(1) == bench.path("mnt").to_str()).unwrap();
    for option in ["nosuid", "nodev", "default_permissions", "fuse.vexfs"] {
        assert!(line.contains(option), "{option} is not in {line}");
    }
    assert!(!line.contains("allow_other"), "{line}");
    let status = succeed(&bench.vexfs(&["status", "mnt"]));
    assert!(status.contains(bench.path("store").to_str().unwrap()), "{status}");
    let json: Value = serde_json::from_str(&succeed(&bench.vexfs(&["status", "mnt", "--json"]))).unwrap();
    assert_eq!((&json["schema"], &json["vectors"]), (&json!(1), &json!(1)));
    let list: Value = serde_json::from_str(&succeed(&bench.vexfs(&["status", "--json"]))).unwrap();
    let mnt = bench.path("mnt");
    let mounts = list["mounts"].as_array().unwrap();
    assert!(mounts.iter().any(|mount| mount["mountpoint"] == mnt.to_str().unwrap()), "{list}");
    succeed(&bench.vexfs(&["umount", "mnt"]));
    assert!(!is_mounted(&mnt));
    // At once again: nobody holds the store any more.
    succeed(&bench.vexfs(&["mount", "--store", "store", "mnt"]));
    assert_eq!(fs::read(bench.path("mnt/a.f32")).unwrap(), f32_bytes(&[1.0, 2.0]));
    succeed(&bench.vexfs(&["umount", "mnt"]));
    let output = bench.vexfs(&["umount", "mnt"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let output = bench.vexfs(&["status", "mnt"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
}

#[test]
fn what_needs_the_store_waits_for_a_mount_that_umount_took_away() {
    let bench = Background::new();
    // umount(8) does not wait for the process, which has the store until it has closed it.
    for round in 0..3 {
        succeed(&bench.vexfs(&["mount", "--store", "store", "mnt"]));
        fs::write(bench.path("mnt/f"), vec![round; 1 << 20]).unwrap();
        shell(bench.dir.path(), "umount mnt");
        succeed(&bench.vexfs(&["fsck", "store"]));
        succeed(&bench.vexfs(&["mount", "--store", "store", "mnt"]));
        fs::create_dir(bench.path(&format!("mnt/.vexfs/snapshots/s{round}"))).unwrap();
        shell(bench.dir.path(), "umount mnt");
        succeed(&bench.vexfs(&["snapshot", "restore", "store", &format!("s{round}")]));
    }
    succeed(&bench.vexfs(&["mount", "--store", "store", "mnt"]));
    fs::create_dir(bench.path("other")).unwrap();
    let begun = Instant::now();
    let output = bench.vexfs(&["mount", "--store", "store", "other"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(begun.elapsed() < Duration::from_secs(5), "a store that is mounted is not waited for");
    shell(bench.dir.path(), "umount mnt");
}

#[test]
fn the_default_store_is_made_in_the_data_directory_and_printed() {
    let bench = Background::new();
    let mount = |data: Option<&str>| {
        let mut command = Command::new(VEXFS);
        command.args(["mount", "mnt"]).current_dir(bench.dir.path()).env("HOME", bench.dir.path());
        match data {
            Some(data) => command.env("XDG_DATA_HOME", bench.path(data)),
            None => command.env_remove("XDG_DATA_HOME"),
        };
        let said = succeed(&run(&mut command));
        fs::write(bench.path("mnt/f"), b"x").unwrap();
        succeed(&bench.vexfs(&["umount", "mnt"]));
        said
    };
    for (data, store) in [(Some("data"), "data/vexfs/default"), (None, ".local/share/vexfs/default")] {
        let said = mount(data);
        assert!(said.contains(bench.path(store).to_str().unwrap()), "{said}");
        assert_eq!(fs::metadata(bench.path(store)).unwrap().mode() & 0o777, 0o700);
        assert!(bench.path(store).join("VEXFS").exists());
    }
}

/// What a user does from the first mount to the second unmount. `$1` is the program.
const A_USERS_DAY: &str = r#"
    set -eu; vexfs=$1; cd home; export HOME=$PWD; unset XDG_DATA_HOME
    trap 'fusermount3 -uz ../mnt 2> /dev/null || true' EXIT
    $vexfs mount ../mnt
    cd ../mnt; mkdir docs; echo 1 0 > docs/a.vec; echo 1 1 > docs/b.vec; chmod 700 docs; ln -s a.vec docs/link
    echo "neighbour: $(getfattr --only-values -n user.vexfs.similar docs/a.vec | cut -f2)"
    echo "owner: $(stat -c %u docs/a.vec)"; cat .vexfs/health; cd ../home
    $vexfs search ../mnt/docs --like ../mnt/docs/a.vec --paths
    $vexfs umount ../mnt; test ! -e ../mnt/docs
    $vexfs mount ../mnt; echo "again: $(cat ../mnt/docs/a.vec)"
    echo "options: $(awk -v mnt="$(realpath ../mnt)" '$2 == mnt { print $4 }' /proc/mounts)"
    $vexfs umount ../mnt; echo done
"#;

#[test]
fn an_ordinary_user_mounts_uses_and_unmounts() {
    let bench = Background::new();
    let root = nix::unistd::geteuid().is_root();
    let user = if root { NOBODY } else { nix::unistd::geteuid().as_raw() };
    fs::create_dir(bench.path("home")).unwrap();
    // The program may lie in a home that others may not enter.
    let program = bench.path("vexfs");
    fs::copy(VEXFS, &program).unwrap();
    fs::write(bench.path("day.sh"), A_USERS_DAY).unwrap();
    let day = format!("bash day.sh {}", program.display());
    let script = if root {
        fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o755)).unwrap();
        for path in ["home", "mnt"] {
            chown(bench.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // Where only root may use /dev/fuse, as in some containers, the user gets one of the usual mode. It is
        // seen in a mount namespace of its own.
        format!(
            "if test $(stat -c %a /dev/fuse) != 666; then
                 mkdir dev; mount -t tmpfs -o dev,mode=755 none dev
                 mknod -m 666 dev/fuse c 10 229; mount --bind dev/fuse /dev/fuse; fi
             setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {day}"
        )
    } else {
        day
    };
    let mut command = Command::new(if root { "unshare" } else { "bash" });
    if root {
        command.args(["--mount", "--propagation", "private", "bash"]);
    }
    let output = run(command.args(["-euc", &script]).current_dir(bench.dir.path()));
    let printed = succeed(&output);
    let mut lines = printed.lines().filter(|line| !line.starts_with("vexfs: store: "));
    let mut next = || lines.next().unwrap_or_default();
    assert_eq!(next(), "neighbour: b.vec", "{printed}");
    assert_eq!(next(), format!("owner: {user}"), "{printed}");
    assert!(next().contains("\"ok\""), "{printed}");
    assert_eq!(next(), "../mnt/docs/b.vec", "{printed}");
    assert_eq!(next(), "again: 1 0", "{printed}");
    let options = next();
    for option in ["nosuid", "nodev", "default_permissions", &format!("user_id={user}")] {
        assert!(options.contains(option), "{option} is not in {options}");
    }
    assert!(!options.contains("allow_other"), "{options}");
    assert_eq!(next(), "done", "{printed}");
    if root {
        // A store of somebody else is not opened.
        let output = bench.vexfs(&["mount", "--store", "home/.local/share/vexfs/default", "mnt"]);
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        assert!(said(&output).contains("belongs to user 65534"), "{}", said(&output));
    }
}

#[test]
fn without_access_to_the_device_the_message_names_it() {
    if !is_root() {
        return;
    }
    let bench = Background::new();
    let script = format!(
        "mkdir dev home; mount -t tmpfs -o dev,mode=755 none dev; mknod -m 600 dev/fuse c 10 229
         mount --bind dev/fuse /dev/fuse; chmod 755 .; chown {NOBODY} home mnt; cp {VEXFS} vexfs
         HOME=$PWD/home setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups ./vexfs mount --store home/s mnt"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-euc", &script]);
    let output = run(command.current_dir(bench.dir.path()));
    assert!(!output.status.success());
    assert!(said(&output).contains("/dev/fuse"), "{}", said(&output));
}

#[test]
fn mistakes_on_the_command_line_are_explained() {
    let bench = Background::new();
    fs::write(bench.path("file"), b"x").unwrap();
    fs::create_dir(bench.path("foreign")).unwrap();
    fs::write(bench.path("foreign/thesis.txt"), b"x").unwrap();
    fs::create_dir(bench.path("loose")).unwrap();
    fs::set_permissions(bench.path("loose"), Permissions::from_mode(0o777)).unwrap();
    for (args, code, message) in [
        (vec!["mount", "--store", "store"], 2, "MOUNTPOINT"),
        (vec!["mount", "--store", "store", "mnt", "-o", "nonsense"], 2, "nonsense"),
        (vec!["mount", "--store", "store", "mnt", "-o", "threads=0"], 2, "threads=0"),
        (vec!["mount", "--stroe", "store", "mnt"], 2, "--stroe"),
        (vec!["monut"], 2, "monut"),
        (vec!["mount", "--store", "store", "missing"], 4, "missing"),
        (vec!["mount", "--store", "store", "file"], 4, "not a directory"),
        (vec!["mount", "--store", "file", "mnt"], 4, "file"),
        (vec!["mount", "--store", "mnt/store", "mnt"], 4, "mnt"),
        (vec!["mount", "--store", "foreign", "mnt"], 4, "thesis.txt"),
        (vec!["mount", "--store", "loose", "mnt"], 4, "0777"),
        (vec!["umount", "mnt"], 3, "mnt"),
        (vec!["status", "mnt"], 3, "mnt"),
    ] {
        for front in [false, true] {
            let mut args = args.clone();
            if front && args[0] == "mount" {
                args.insert(1, "-f");
            }
            let output = bench.vexfs(&args);
            assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
            assert!(output.stdout.is_empty(), "{args:?}: {}", text(&output.stdout));
            let said = text(&output.stderr);
            assert!(said.contains(message), "{args:?}: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    assert!(!is_mounted(&bench.path("mnt")));
    assert!(!bench.path("store").exists(), "a refused mount makes no store");
    let version = succeed(&bench.vexfs(&["--version"]));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn a_mount_for_reading_changes_nothing() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0]);
    mount.put("docs/b.f32", &[1.0, 1.0]);
    mount.unmount();
    let other = mount.outside("ro");
    fs::create_dir(&other).unwrap();
    let mut daemon = Command::new(VEXFS)
        .args(["mount", "-f", "-o", "ro", "--store"])
        .arg(mount.store())
        .arg(&other)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the mount to answer", || other.join(".vexfs/version").exists());
    let found = xattr::get(other.join("docs/a.f32"), "user.vexfs.similar").unwrap().unwrap();
    let codes = [
        errno(fs::write(other.join("docs/c.f32"), b"x")),
        errno(fs::remove_file(other.join("docs/a.f32"))),
        errno(fs::create_dir(other.join("new"))),
        errno(xattr::set(other.join("docs"), "user.k", b"v")),
        errno(File::options().write(true).open(other.join("docs/a.f32"))),
    ];
    let mut query = File::options().read(true).write(true).open(other.join("docs/.vexfs/query"));
    let asked =
        query.as_mut().map(|file| file.write_all(b"{\"vector\":[1,0]}\n").map_err(|error| error.to_string()));
    let asked = asked.map_err(|error| error.to_string()).map(|_| ());
    drop(query);
    run(Command::new("kill").arg(daemon.id().to_string()));
    assert!(daemon.wait().unwrap().success());
    assert!(text(&found).ends_with("\tb.f32\n"), "{}", text(&found));
    assert_eq!(codes, [libc::EROFS; 5]);
    // The kernel opens nothing for writing there, not even the transaction file: other doors answer.
    assert!(asked.is_ok() || asked.as_ref().is_err_and(|why| why.contains("os error 30")), "{asked:?}");
    mount.start();
    assert_eq!(mount.similar("docs/a.f32"), ["b.f32"]);
}

#[test]
fn the_process_keeps_its_footing_when_its_terminal_and_directory_go() {
    let bench = Background::new();
    fs::create_dir(bench.path("cwd")).unwrap();
    // The shell ends, and with it the terminal's end of stdin, stdout and stderr.
    let script = format!("cd cwd; {VEXFS} mount --store ../store ../mnt < /dev/null 2>&1 | cat");
    shell(bench.dir.path(), &script);
    fs::remove_dir(bench.path("cwd")).unwrap();
    fs::write(bench.path("mnt/f"), b"x").unwrap();
    assert_eq!(fs::read(bench.path("mnt/f")).unwrap(), b"x");
    let pid = shell(bench.dir.path(), "grep -o '\"pid\":[0-9]*' mnt/.vexfs/stats.json | cut -d: -f2");
    let cwd = fs::read_link(format!("/proc/{}/cwd", pid.trim())).unwrap();
    assert_eq!(cwd, Path::new("/"));
    succeed(&bench.vexfs(&["umount", "mnt"]));
}

#[test]
fn a_removed_collection_leaves_no_graph_behind() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/.vexfs/config"), "[index]\nexact_below = 10\n").unwrap();
    let mut random = Random(3);
    let rows: Vec<_> = (0..200).map(|_| random.vector(4)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    mount.sync();
    let checkpoints = || fs::read_dir(mount.store().join("index")).unwrap().count();
    assert_eq!(checkpoints(), 2, "sync saves the graph, and what it measured of its recall");
    fs::remove_file(mount.path("docs/rows.npy")).unwrap();
    fs::remove_dir(mount.path("docs")).unwrap();
    assert_eq!(checkpoints(), 0);
}
