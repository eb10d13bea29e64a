//! A disk that fails while VexFS is mounted: reads, writes, flushes, and files that somebody cuts.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::check;
use super::device::{Disk, Faults, SECTOR};
use super::load::{Clock, DIM, Load, ask, npy};
use super::machine::{Below, Daemon, FILESYSTEMS, Machine, MountedBelow};
use super::model::allow_after_cut;
use super::{Random, seed, snapshots};

/// So many elements that a vector fills a sector, and that of another file is in another.
const WIDE: usize = SECTOR / 4;

/// A machine with a mounted store on a disk.
struct Setup {
    // Dropped in this order: what is mounted goes before what it lies on.
    mounts: Option<(Daemon, MountedBelow)>,
    disk: Arc<Disk>,
    below: &'static Below,
    machine: Machine,
}

impl Setup {
    fn new(below: &'static Below) -> Self {
        let machine = Machine::new();
        let disk = machine.format("disk", below);
        let mut setup = Self { mounts: None, disk, below, machine };
        setup.mount();
        setup
    }

    fn mount(&mut self) {
        let below = self.machine.mount_below("disk", self.below).unwrap();
        let daemon = self.machine.start().unwrap_or_else(|what| panic!("{what}"));
        self.mounts = Some((daemon, below));
    }

    /// Everything is unmounted in good order and mounted again, so that nothing is in memory any more.
    fn remount(&mut self) {
        let (daemon, below) = self.mounts.take().unwrap();
        daemon.unmount().unwrap();
        below.unmount();
        self.mount();
    }

    /// As if the machine had been switched off without a power cut: what is in memory is not written.
    fn kill_and_unmount(&mut self) {
        let (mut daemon, below) = self.mounts.take().unwrap();
        daemon.kill();
        below.unmount();
    }

    fn root(&self) -> PathBuf {
        self.machine.root()
    }

    fn is_alive(&mut self) -> bool {
        self.mounts.as_mut().is_some_and(|(daemon, _)| daemon.is_alive())
    }
}

fn wide(random: &mut Random) -> Vec<u8> {
    (0..WIDE).flat_map(|_| random.value().to_le_bytes()).collect()
}

fn status(path: &Path) -> String {
    let value = xattr::get(path, "user.vexfs.status").unwrap().unwrap_or_default();
    String::from_utf8_lossy(&value).into_owned()
}

fn paths(answer: &Value) -> Vec<&str> {
    let hits = answer["hits"].as_array().unwrap_or_else(|| panic!("no hits in {answer}"));
    hits.iter().filter_map(|hit| hit["path"].as_str()).collect()
}

/// The files of a kind in a directory of the store, however deep.
fn files_below(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, suffix));
        } else if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

/// Takes what nobody has mapped of a file out of the kernel's cache.
fn forget(path: &Path) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    posix_fadvise(File::open(path).unwrap(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

#[test]
fn a_sector_that_cannot_be_read_takes_its_vector_and_no_other() {
    let mut setup = Setup::new(&FILESYSTEMS[0]);
    let mut random = Random(11);
    let dir = setup.root().join("c");
    fs::create_dir(&dir).unwrap();
    let vectors: Vec<Vec<u8>> = (0..6).map(|_| wide(&mut random)).collect();
    for (number, bytes) in vectors.iter().enumerate() {
        fs::write(dir.join(format!("{number}.f32")), bytes).unwrap();
    }
    setup.remount();
    let segments = files_below(&setup.machine.store().join("segments"), "");
    let bytes = fs::read(&segments[0]).unwrap();
    let at =
        bytes.windows(SECTOR).position(|window| window == vectors[2]).expect("the vector is in its segment");
    assert_eq!(at % SECTOR, 0);
    let bad = setup.disk.sectors_with(&vectors[2]);
    assert!(!bad.is_empty(), "the vector is on the disk as it is");
    setup.disk.faults.reads.lock().extend(bad);
    forget(&segments[0]);

    let query: Vec<f32> = (0..WIDE).map(|_| random.value()).collect();
    let answer = ask(&dir, &json!({"vector": query, "k": 10})).unwrap();
    assert!(setup.is_alive());
    let mut found = paths(&answer);
    found.sort_unstable();
    assert_eq!(found, ["0.f32", "1.f32", "3.f32", "4.f32", "5.f32"]);
    assert!(
        status(&dir.join("2.f32")).starts_with("invalid: damaged: segments/"),
        "{}",
        status(&dir.join("2.f32"))
    );
    let error = fs::read(dir.join("2.f32")).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EUCLEAN | libc::EIO)), "{error}");
    assert_eq!(fs::read(dir.join("3.f32")).unwrap(), vectors[3]);
    // Life goes on, and on a disk that is well again everything is back.
    fs::write(dir.join("6.f32"), wide(&mut random)).unwrap();
    setup.disk.faults.reads.lock().clear();
    setup.remount();
    let answer = ask(&dir, &json!({"vector": query, "k": 10})).unwrap();
    assert_eq!(paths(&answer).len(), 7);
    assert_eq!(fs::read(dir.join("2.f32")).unwrap(), vectors[2]);
}

#[test]
fn a_matrix_that_is_cut_under_the_daemon_leaves_the_answers() {
    let mut setup = Setup::new(&FILESYSTEMS[0]);
    let mut random = Random(12);
    let dir = setup.root().join("c");
    fs::create_dir(&dir).unwrap();
    let rows: Vec<Vec<f32>> = (0..8000).map(|_| (0..DIM).map(|_| random.value()).collect()).collect();
    fs::write(dir.join("big.npy"), npy(&rows)).unwrap();
    for (number, row) in rows.iter().take(3).enumerate() {
        fs::write(
            dir.join(format!("{number}.f32")),
            row.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(),
        )
        .unwrap();
    }
    setup.remount();
    let blobs = files_below(&setup.machine.store().join("blobs"), ".blob");
    assert_eq!(blobs.len(), 1, "{blobs:?}");
    File::options().write(true).open(&blobs[0]).unwrap().set_len(SECTOR as u64).unwrap();

    let answer = ask(&dir, &json!({"vector": rows[0], "k": 10, "exact": true})).unwrap();
    assert!(setup.is_alive());
    let mut found = paths(&answer);
    found.sort_unstable();
    assert_eq!(found, ["0.f32", "1.f32", "2.f32"]);
    assert!(status(&dir.join("big.npy")).starts_with("invalid: damaged: blobs/"));
    let row = fs::metadata(dir.join(".vexfs/rows/big.npy/007000.f32"));
    assert!(row.is_err(), "no row of it is made up");
}

#[test]
fn a_graph_that_cannot_be_read_is_given_up_and_built_anew() {
    let mut setup = Setup::new(&FILESYSTEMS[0]);
    let mut random = Random(13);
    let dir = setup.root().join("c");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(".vexfs/config"), "[index]\nexact_below = 100\n").unwrap();
    let rows: Vec<Vec<f32>> = (0..6000).map(|_| (0..DIM).map(|_| random.value()).collect()).collect();
    fs::write(dir.join("big.npy"), npy(&rows)).unwrap();
    fs::read(setup.root().join(".vexfs/sync")).unwrap();
    setup.remount();
    let graph = files_below(&setup.machine.store().join("index"), "")
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    // All of it but its head, which was read when the store was opened.
    let bytes = fs::read(&graph).unwrap();
    let sectors = bytes.chunks_exact(SECTOR).skip(1).filter(|sector| sector.iter().any(|&byte| byte != 0));
    let bad: Vec<_> = sectors.flat_map(|sector| setup.disk.sectors_with(sector)).collect();
    assert!(bad.len() > 10, "{} sectors of the graph found on the disk", bad.len());
    setup.remount();
    setup.disk.faults.reads.lock().extend(bad);
    forget(&graph);

    for row in rows.iter().step_by(600) {
        let hits = ask(&dir, &json!({"vector": row, "k": 1})).unwrap();
        let exact = ask(&dir, &json!({"vector": row, "k": 1, "exact": true})).unwrap();
        assert_eq!(hits["hits"][0]["row"], exact["hits"][0]["row"]);
    }
    assert!(setup.is_alive());
    setup.disk.faults.reads.lock().clear();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let index = fs::read(setup.root().join(".vexfs/index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let graph = &index["collections"][0];
        if graph["state"] == "ready" && graph["damage"].is_null() {
            break;
        }
        assert!(Instant::now() < deadline, "{index}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A load runs until its disk fails. Then nothing more is acknowledged, the volume says why, and what had been synced
/// is there when the store is opened on a disk that is well.
fn fails_under_load(below: &'static Below, fail: impl Fn(&Faults, bool)) {
    let seed = seed();
    println!("failing disk on {}: CRASH_SEED={seed}", below.name);
    let mut random = Random(seed);
    let mut setup = Setup::new(below);
    let clock: Clock = Arc::new(|| 0);
    let mut load = Load::new(&setup.root(), 3, seed, &clock).unwrap();
    let root = setup.root();
    let mut reason = String::new();
    let ended = load.run(&root, || {
        std::thread::sleep(Duration::from_millis(300 + random.below(500) as u64));
        fail(&setup.disk.faults, true);
        let deadline = Instant::now() + Duration::from_secs(30);
        while reason.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            let health = fs::read(root.join(".vexfs/health")).unwrap();
            let health: Value = serde_json::from_slice(&health).unwrap();
            if health["status"] == "read-only" {
                reason = health["reason"].as_str().unwrap_or_default().to_owned();
            }
        }
    });
    assert!(!reason.is_empty(), "CRASH_SEED={seed}: the volume still says that it is well");
    for error in ended.into_iter().filter_map(io::Result::err) {
        assert!(
            matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS | libc::ENOSPC)),
            "CRASH_SEED={seed}: a client got {error}"
        );
    }
    // A disk that is well again changes nothing: what it lost is not known. Reading goes on.
    fail(&setup.disk.faults, false);
    let refused = fs::write(root.join("c0/new.f32"), [0; 32]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    fs::read_dir(root.join("c0")).unwrap();
    fail(&setup.disk.faults, true);
    setup.kill_and_unmount();
    fail(&setup.disk.faults, false);
    setup.mount();
    for client in load.clients() {
        let dir = client.dir();
        let at = dir.display();
        let seen = check::capture(&dir).unwrap();
        allow_after_cut(&client.start, &client.steps, usize::MAX, &seen)
            .unwrap_or_else(|what| panic!("CRASH_SEED={seed}: {at}: {what}\n{reason}"));
        check::searches_agree(&dir, &seen, &mut random)
            .unwrap_or_else(|what| panic!("CRASH_SEED={seed}: {at}: {what}"));
        snapshots::agree(client, usize::MAX, &mut random)
            .unwrap_or_else(|what| panic!("CRASH_SEED={seed}: {at}: {what}"));
    }
    fs::write(root.join("c0/new.f32"), wide(&mut random)).unwrap();
}

#[test]
fn a_failed_flush_ends_all_changes_until_the_store_is_opened_again() {
    fails_under_load(&FILESYSTEMS[0], |faults, fails| faults.flushes.store(fails, Ordering::SeqCst));
}

#[test]
fn a_failed_write_ends_all_changes_until_the_store_is_opened_again() {
    fails_under_load(&FILESYSTEMS[1], |faults, fails| faults.writes.store(fails, Ordering::SeqCst));
}
