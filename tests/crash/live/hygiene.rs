//! A daemon in poor circumstances: few open files, little memory, callers that go away.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Random;
use super::load::{DIM, ask, npy};
use super::machine::{Machine, expect, run, text};

/// Larger than what the catalog or a slot holds of an ordinary file, so that it needs a file of its own.
static LARGE: [u8; 20_000] = [b'x'; 20_000];

fn mounted(wrapper: &[&str]) -> (Machine, super::machine::Daemon) {
    let machine = Machine::new();
    let daemon = machine.start_with(wrapper, &[]).unwrap_or_else(|what| panic!("{what}"));
    (machine, daemon)
}

/// This process opens more than it usually may.
fn open_many_files() {
    expect(Command::new("prlimit").args(["--pid", &std::process::id().to_string(), "--nofile=20000:20000"]));
}

fn health(machine: &Machine) -> Value {
    serde_json::from_slice(&fs::read(machine.root().join(".vexfs/health")).unwrap()).unwrap()
}

#[test]
fn with_few_files_the_caller_is_told_and_the_volume_lives_on() {
    open_many_files();
    let (machine, mut daemon) = mounted(&["prlimit", "--nofile=256:256"]);
    let path = |number: usize| machine.root().join(format!("{number}.bin"));
    for number in 0..300 {
        fs::write(path(number), LARGE).unwrap();
    }
    let mut byte = [0];
    let reading: Vec<File> = (0..10_000).map(|number| File::open(path(number % 300)).unwrap()).collect();
    for file in &reading {
        file.read_exact_at(&mut byte, 19_999).unwrap();
    }
    drop(reading);
    let writing: Vec<File> =
        (0..300).map(|number| File::options().write(true).open(path(number)).unwrap()).collect();
    let written: Vec<_> = writing.iter().map(|file| file.write_all_at(b"y", 0)).collect();
    let refused: Vec<i32> = written.iter().filter_map(|r| r.as_ref().err()?.raw_os_error()).collect();
    assert!(!refused.is_empty() && refused.len() < 300, "{} of 300 were refused", refused.len());
    assert!(refused.iter().all(|&number| number == libc::EMFILE), "{refused:?}");
    let good = written.iter().position(Result::is_ok).unwrap();
    writing[good].sync_all().unwrap();
    drop(writing);
    assert_eq!(fs::read(machine.root().join(".vexfs/sync")).unwrap(), b"ok\n");
    assert_eq!(health(&machine)["status"], "ok");
    assert!(daemon.is_alive());
    for number in 0..300 {
        fs::write(path(number), LARGE).unwrap();
    }
    daemon.unmount().unwrap();
}

#[test]
fn the_daemon_takes_as_many_open_files_as_it_may() {
    open_many_files();
    let (machine, daemon) = mounted(&["prlimit", "--nofile=128:4096"]);
    let files: Vec<File> = (0..500)
        .map(|number| {
            let mut file = File::create(machine.root().join(format!("{number}.bin"))).unwrap();
            file.write_all(&LARGE).unwrap();
            file
        })
        .collect();
    drop(files);
    daemon.unmount().unwrap();
}

/// A directory with a search that takes longer than anybody's patience: the directory, and the request.
fn long_search(machine: &Machine) -> (PathBuf, Vec<u8>) {
    let mut random = Random(5);
    let dir = machine.root().join("c");
    fs::create_dir(&dir).unwrap();
    let mut row = || (0..DIM).map(|_| random.value()).collect::<Vec<f32>>();
    let rows: Vec<Vec<f32>> = (0..50_000).map(|_| row()).collect();
    fs::write(dir.join("big.npy"), npy(&rows)).unwrap();
    let queries = 200_000;
    let header = json!({"dtype": "f32", "rows": queries, "dim": DIM, "k": 10, "exact": true});
    let mut request = format!("{header}\n").into_bytes();
    request.extend((0..queries).flat_map(|_| row()).flat_map(f32::to_le_bytes));
    (dir, request)
}

#[test]
fn who_is_interrupted_in_a_long_search_is_gone_at_once() {
    let (machine, daemon) = mounted(&[]);
    let (dir, request) = long_search(&machine);
    let source = machine.below().join("request");
    fs::write(&source, request).unwrap();
    for signal in ["INT", "KILL"] {
        let mut client = Command::new("sh")
            .args(["-c", "exec 3<>\"$0\"; cat \"$1\" >&3; echo asked; exec cat <&3 >/dev/null"])
            .arg(dir.join(".vexfs/query"))
            .arg(&source)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        client.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        // Until the search is under way: nothing says so from outside.
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            assert!(client.try_wait().unwrap().is_none(), "the search is too short for this test");
            std::thread::sleep(Duration::from_millis(10));
        }
        let asked = Instant::now();
        expect(Command::new("kill").args([&format!("-{signal}"), &client.id().to_string()]));
        while client.try_wait().unwrap().is_none() {
            assert!(asked.elapsed() < Duration::from_secs(5), "SIG{signal}: the client still waits");
            std::thread::sleep(Duration::from_millis(2));
        }
        println!("SIG{signal}: gone after {:?}", asked.elapsed());
    }
    // Whoever comes next finds the pool free.
    let asked = Instant::now();
    ask(&dir, &json!({"vector": vec![1.0; DIM], "k": 1})).unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5));
    daemon.unmount().unwrap();
}

#[test]
fn a_mount_in_use_is_not_unmounted_and_works_on() {
    let (machine, mut daemon) = mounted(&[]);
    let mut file = File::create(machine.root().join("open")).unwrap();
    let output = run(Command::new("umount").arg(machine.root()));
    assert!(!output.status.success() && text(&output.stderr).contains("busy"), "{}", text(&output.stderr));
    file.write_all(b"still here").unwrap();
    assert!(daemon.is_alive());
    drop(file);
    assert_eq!(fs::read(machine.root().join("open")).unwrap(), b"still here");
    daemon.unmount().unwrap();
}

/// A group of processes with a limit of memory, removed when it is dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(limit_bytes: u64) -> Self {
        let groups = Path::new("/sys/fs/cgroup/memory");
        assert!(
            groups.join("memory.limit_in_bytes").exists(),
            "this test needs the memory controller of cgroup v1"
        );
        let group = Self(groups.join(format!("vexfs-crash-{}", std::process::id())));
        fs::create_dir(&group.0).unwrap();
        fs::write(group.0.join("memory.limit_in_bytes"), limit_bytes.to_string()).unwrap();
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Only where `make crash` runs it: it needs a release build to be quick, and cgroup v1.
#[test]
fn a_hundred_thousand_vectors_are_loaded_and_searched_in_256_mb() {
    if std::env::var_os("CRASH_MEMORY").is_none() {
        println!("256 MB: `make crash` runs this");
        return;
    }
    const WIDTH: usize = 384;
    let group = MemoryGroup::new(256 << 20);
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display());
    let (machine, mut daemon) = mounted(&["sh", "-c", &enter, "sh"]);
    let dir = machine.root().join("c");
    fs::create_dir(&dir).unwrap();
    let mut random = Random(9);
    for part in 0..10 {
        let rows: Vec<Vec<f32>> = (0..10_000).map(|_| (0..WIDTH).map(|_| random.value()).collect()).collect();
        let bytes = npy(&rows);
        fs::write(dir.join(format!("{part}.npy")), bytes).unwrap();
    }
    match fs::read(machine.root().join(".vexfs/sync")) {
        Ok(said) => assert_eq!(said, b"ok\n"),
        // Time is not what is tried here: a graph that takes longer than ten minutes is built while it is searched.
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}"),
    }
    let query: Vec<f32> = (0..WIDTH).map(|_| random.value()).collect();
    for exact in [true, false] {
        let answer = ask(&dir, &json!({"vector": query, "k": 10, "exact": exact})).unwrap();
        assert_eq!(answer["hits"].as_array().unwrap().len(), 10, "{answer}");
    }
    assert!(daemon.is_alive());
    let most = fs::read_to_string(group.0.join("memory.max_usage_in_bytes")).unwrap();
    println!("256 MB: the most that was used is {} MiB", most.trim().parse::<u64>().unwrap() >> 20);
    daemon.unmount().unwrap();
}
