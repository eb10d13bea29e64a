//! A store that was damaged while nobody had it mounted.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Mount, Random, VEXFS, errno, f32_bytes, npy, paths, run, text};

/// What can be read of a file page by page, through a mapping: the pages that cannot are left out.
#[expect(unsafe_code, reason = "mapping a file is unsafe")]
fn mapped(path: &Path) -> Vec<Option<Vec<u8>>> {
    let file = File::open(path).unwrap();
    // SAFETY: nobody writes the file, and what reads the pages is the kernel, to which a failure is an error.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let (mut receiver, sender) = std::io::pipe().unwrap();
    map.chunks(4096)
        .map(|page| {
            let mut bytes = vec![0; page.len()];
            let sent = (&sender).write(page).ok()?;
            receiver.read_exact(&mut bytes[..sent]).unwrap();
            (sent == page.len()).then_some(bytes)
        })
        .collect()
}

/// Files below `dir` whose name ends in `suffix`.
fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path, suffix)),
            false if path.to_str().unwrap().ends_with(suffix) => found.push(path),
            false => {}
        }
    }
    found
}

/// Flips one bit of the one place in the store's files of that kind where these bytes lie.
pub(crate) fn damage(store: &Path, suffix: &str, bytes: &[u8]) {
    let mut places = Vec::new();
    for path in files(store, suffix) {
        let content = fs::read(&path).unwrap();
        let first = bytes[0];
        for at in content.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at) {
            if content[at..].starts_with(bytes) {
                places.push((path.clone(), at));
            }
        }
    }
    assert_eq!(places.len(), 1, "the bytes lie once in the store: {places:?}");
    let (path, at) = &places[0];
    let middle = at + bytes.len() / 2;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], middle as u64).unwrap();
}

#[test]
fn a_changed_byte_of_a_large_ordinary_file_is_never_served() {
    // Under the second the kernel reads nothing by itself.
    for options in [&[][..], &["-o", "sync=always"]] {
        for len in [100_000u32, 10_000_000] {
            let mut mount = Mount::with_options(options);
            let content: Vec<u8> = (0..len / 4).flat_map(|at| (at * 7 / 3).to_le_bytes()).collect();
            let len = content.len();
            fs::write(mount.path("large"), &content).unwrap();
            // An orderly end brings it to rest.
            mount.unmount();
            let blobs = files(&mount.store(), ".blob");
            assert_eq!((blobs.len(), files(&mount.store(), ".sums").len()), (1, 1));
            let at = len * 2 / 3;
            let blob = File::options().read(true).write(true).open(&blobs[0]).unwrap();
            blob.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
            drop(blob);
            mount.start();
            let chunk = at & !0xffff..(at | 0xffff) + 1;
            for _ in 0..2 {
                let code = errno(fs::read(mount.path("large")));
                assert!([libc::EUCLEAN, libc::EIO].contains(&code), "{options:?}, {len}: {code}");
                let pages = mapped(&mount.path("large"));
                for (page, wanted) in pages.iter().zip(content.chunks(4096)) {
                    assert!(page.as_ref().is_none_or(|page| page == wanted), "{options:?}, {len}");
                }
                let is_unread = |page: usize| pages[page].is_none();
                assert!(is_unread(at / 4096) && (0..pages.len()).any(|page| !is_unread(page)));
                let file = File::open(mount.path("large")).unwrap();
                let mut before = vec![0; chunk.start];
                file.read_exact_at(&mut before, 0).unwrap();
                assert!(before == content[..chunk.start]);
            }
            let health = mount.json(".vexfs/health");
            assert_eq!(health["damage"][0]["offset"], json!(chunk.start), "{health}");
            let open = File::options().write(true).open(mount.path("large")).unwrap();
            assert!(open.write_all_at(b"x", 0).is_err(), "what is damaged is not changed in part");
            drop(open);
            fs::write(mount.path("large"), &content).unwrap();
            assert!(fs::read(mount.path("large")).unwrap() == content);
            mount.remount();
            assert!(fs::read(mount.path("large")).unwrap() == content);
        }
    }
}

/// A collection of 20 files, and their vectors.
fn collection(mount: &Mount) -> Vec<Vec<f32>> {
    let mut random = Random(77);
    mount.mkdir("docs");
    let vectors: Vec<_> = (0..20).map(|_| random.vector(32)).collect();
    for (i, vector) in vectors.iter().enumerate() {
        mount.put(&format!("docs/{i:02}.f32"), vector);
    }
    vectors
}

#[test]
fn a_damaged_slot_is_an_error_and_never_wrong_bytes() {
    let mut mount = Mount::new();
    let vectors = collection(&mount);
    mount.unmount();
    damage(&mount.store(), ".seg", &f32_bytes(&vectors[7]));
    mount.start();
    let code = errno(fs::read(mount.path("docs/07.f32")));
    assert!([libc::EUCLEAN, libc::EIO].contains(&code), "{code}");
    // As searches see it.
    assert_eq!(paths(&mount.ask_json("docs", &json!({"vector": vectors[7], "k": 100}))).len(), 19);
    let status = mount.status("docs/07.f32");
    assert!(status.starts_with("invalid: damaged: "), "{status}");
    for (i, vector) in vectors.iter().enumerate().filter(|(i, _)| *i != 7) {
        assert_eq!(fs::read(mount.path(format!("docs/{i:02}.f32"))).unwrap(), f32_bytes(vector));
    }
    // A rewrite heals it.
    mount.put("docs/07.f32", &vectors[7]);
    assert_eq!(fs::read(mount.path("docs/07.f32")).unwrap(), f32_bytes(&vectors[7]));
    assert_eq!(mount.status("docs/07.f32"), "indexed");
}

#[test]
fn a_slot_found_damaged_after_an_unclean_end_is_not_searched() {
    let mut mount = Mount::new();
    let vectors = collection(&mount);
    mount.kill();
    damage(&mount.store(), ".seg", &f32_bytes(&vectors[7]));
    mount.start();
    let answer = mount.ask_json("docs", &json!({"vector": vectors[7], "k": 100}));
    let found = paths(&answer);
    assert_eq!(found.len(), 19);
    assert!(!found.contains(&"07.f32".to_owned()), "{found:?}");
    let status = mount.status("docs/07.f32");
    assert!(status.starts_with("invalid: "), "{status}");
    assert!(fs::read(mount.path("docs/07.f32")).is_err());
    assert!(fs::read_to_string(mount.path("docs/.vexfs/errors.jsonl")).unwrap().contains("07.f32"));
    fs::remove_file(mount.path("docs/07.f32")).unwrap();
    mount.put("docs/07.f32", &vectors[7]);
    mount.remount();
    assert_eq!(paths(&mount.ask_json("docs", &json!({"vector": vectors[7], "k": 100}))).len(), 20);
}

#[test]
fn damage_in_one_file_leaves_the_rest_of_the_mount_alone() {
    let mut mount = Mount::new();
    let vectors = collection(&mount);
    fs::write(mount.path("note.txt"), b"text").unwrap();
    mount.unmount();
    for vector in &vectors[..10] {
        damage(&mount.store(), ".seg", &f32_bytes(vector));
    }
    mount.start();
    for i in 0..20 {
        let path = mount.path(format!("docs/{i:02}.f32"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 128);
        assert_eq!(fs::read(&path).is_ok(), i >= 10, "{i}");
    }
    assert_eq!(fs::read(mount.path("note.txt")).unwrap(), b"text");
    fs::rename(mount.path("docs/03.f32"), mount.path("docs/moved.f32")).unwrap();
    fs::remove_dir_all(mount.path("docs")).unwrap();
    let health = mount.json(".vexfs/health");
    assert_eq!((&health["status"], &health["reason"]), (&json!("damaged"), &json!(null)));
    let places = health["damage"].as_array().unwrap();
    assert_eq!(places.len(), 10);
    assert!(places.iter().all(|place| place["file"].as_str().unwrap().starts_with("segments/")), "{health}");
}

#[test]
fn a_damaged_graph_is_built_anew_and_searched_rightly_meanwhile() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/.vexfs/config"), "[index]\nexact_below = 100\n").unwrap();
    let mut random = Random(8);
    let rows: Vec<_> = (0..500).map(|_| random.vector(8)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    mount.sync();
    let ask = |mount: &Mount| {
        let answer = mount.ask_json("docs", &json!({"vector": rows[3], "k": 20, "exact": true}));
        answer["hits"].clone()
    };
    let want = ask(&mount);
    mount.unmount();
    let checkpoints = files(&mount.store(), ".hnsw");
    assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
    let good = fs::read(&checkpoints[0]).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    let bad = [
        good[..good.len() / 2].to_vec(),
        flipped,
        vec![],
        b"garbage".repeat(1000),
        [&good[..], b"more"].concat(),
    ];
    for (i, bytes) in bad.iter().enumerate() {
        fs::write(&checkpoints[0], bytes).unwrap();
        mount.start();
        assert_eq!(ask(&mount), want, "case {i}");
        let near = mount.ask_json("docs", &json!({"vector": rows[3], "k": 1}));
        assert_eq!(near["hits"][0]["row"], 3, "case {i}");
        mount.sync();
        assert_eq!(mount.json("docs/.vexfs/stats.json")["graph_nodes"], 500, "case {i}");
        assert_eq!(mount.status("docs/rows.npy"), "indexed", "case {i}");
        mount.unmount();
    }
    fs::remove_file(&checkpoints[0]).unwrap();
    mount.start();
    assert_eq!(ask(&mount), want);
}

/// Tries to mount the store and returns what was said; it must not succeed.
fn refusal(mount: &Mount) -> String {
    let output =
        run(Command::new(VEXFS).args(["mount", "-f", "--store"]).arg(mount.store()).arg(mount.root()));
    assert!(!output.status.success());
    assert!([4, 5, 6].contains(&output.status.code().unwrap()), "{:?}", output.status);
    text(&output.stderr)
}

#[test]
fn a_store_of_another_version_is_refused_and_stays_as_it_is() {
    let mut mount = Mount::new();
    mount.put("a.f32", &[1.0]);
    mount.unmount();
    let identity = mount.store().join("VEXFS");
    let good = fs::read_to_string(&identity).unwrap();
    let future = good.replace("version 4\n", "version 99\n");
    assert_ne!(good, future);
    fs::write(&identity, &future).unwrap();
    let said = refusal(&mount);
    assert!(said.contains("format version 99, this program reads 4"), "{said}");
    assert_eq!(fs::read_to_string(&identity).unwrap(), future);
    for (bytes, want) in [("", "VEXFS"), ("nonsense\n", "VEXFS"), (&good.replace("id ", "id 0"), "VEXFS")] {
        fs::write(&identity, bytes).unwrap();
        let said = refusal(&mount);
        assert!(said.contains(want), "{bytes:?}: {said}");
    }
    fs::write(&identity, good).unwrap();
    mount.start();
    assert_eq!(fs::read(mount.path("a.f32")).unwrap(), f32_bytes(&[1.0]));
}

#[test]
fn a_store_that_lost_a_part_is_refused_or_says_so() {
    let mut mount = Mount::new();
    let vectors = collection(&mount);
    fs::write(mount.path("large"), vec![1; 100_000]).unwrap();
    fs::write(mount.path("note.txt"), b"text").unwrap();
    mount.unmount();
    let segments = files(&mount.store(), ".seg");
    let hidden: Vec<_> = segments.iter().map(|path| path.with_extension("hidden")).collect();
    for (from, to) in segments.iter().zip(&hidden) {
        fs::rename(from, to).unwrap();
    }
    let output = run(Command::new("timeout")
        .arg("5")
        .arg(VEXFS)
        .args(["mount", "-f", "--store"])
        .arg(mount.store())
        .arg(mount.root()));
    let said = text(&output.stderr);
    match output.status.code() {
        // It was mounted until the time was over: then the files that lost their bytes say so.
        Some(0 | 124) => assert!(said.contains("seg") || said.contains("damage"), "{said}"),
        _ => assert!(said.contains("seg"), "{said}"),
    }
    let _ = run(Command::new("umount").arg("-l").arg(mount.root()));
    for path in files(&mount.store(), ".seg") {
        fs::remove_file(path).unwrap();
    }
    for (from, to) in hidden.iter().zip(&segments) {
        fs::rename(from, to).unwrap();
    }
    mount.start();
    assert_eq!(fs::read(mount.path("docs/00.f32")).unwrap(), f32_bytes(&vectors[0]));
    assert_eq!(fs::read(mount.path("note.txt")).unwrap(), b"text");
}

#[test]
fn a_new_version_that_is_lost_is_damaged_and_the_old_one_is_not_searched() {
    let mut mount = Mount::new();
    mount.mkdir("c");
    mount.put("c/other.f32", &[1.0, 2.0, 3.0, 4.0]);
    fs::write(mount.path("c/a.npy"), npy(&[vec![4.0, 3.0, 2.0, 1.0]])).unwrap();
    // Half of a large new version, then the power goes, and with it the blob.
    let file = File::create(mount.path("c/a.npy")).unwrap();
    file.write_all_at(&npy(&vec![vec![0.5; 4]; 2000])[..20_000], 0).unwrap();
    mount.kill();
    drop(file);
    for blob in files(&mount.store().join("blobs"), ".blob") {
        fs::remove_file(blob).unwrap();
    }
    mount.start();
    assert!(mount.status("c/a.npy").starts_with("invalid: damaged: blobs/"), "{}", mount.status("c/a.npy"));
    assert_eq!(errno(fs::read(mount.path("c/a.npy"))), libc::EUCLEAN);
    let answer = mount.ask_json("c", &json!({"vector": [4.0, 3.0, 2.0, 1.0]}));
    assert_eq!(paths(&answer), ["other.f32"]);
}
