//! `vexfs bench mount`: a small run of everything, and that nothing of it is left.

use serde_json::Value;

use super::vexfs;

#[test]
fn every_part_is_measured_on_every_target_and_nothing_stays_behind() {
    let dir = tempfile::tempdir().unwrap();
    let backing = dir.path().to_str().unwrap();
    let mut args = vec!["bench", "mount", "--floor", "--backing", backing, "--json", "--rounds", "2"];
    args.extend(["--ops", "10", "--entries", "200", "--files", "30", "--mib", "1"]);
    let output = vexfs(dir.path(), &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["schema"], 1);
    assert_eq!(answer["targets"], serde_json::json!(["vexfs", "floor", "backing"]));
    let rows = answer["rows"].as_array().unwrap();
    for op in [
        "stat, uncached",
        "getxattr",
        "read 1.5 KB, uncached",
        "vector file: create, write, close",
        "4 clients: vector file, unlink",
        "readdir, entries",
        "rm -r, files",
        "read at random, 4 KiB, O_DIRECT",
    ] {
        let row =
            rows.iter().find(|row| row["op"] == op).unwrap_or_else(|| panic!("{op} is missing: {answer}"));
        let results = row["results"].as_array().unwrap();
        // A disk's filesystem may have no user attributes, or no O_DIRECT.
        assert!(results.len() >= 2, "{row}");
        for result in results {
            assert!(result["rate"].as_f64().unwrap() > 0.0, "{row}");
            assert!(result["ratio"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
    let timed = rows.iter().filter(|row| row["results"][0]["p50_us"].is_number()).count();
    assert!(timed > 10 && timed < rows.len(), "operations are timed one by one, trees and bytes as a whole");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "mountpoint, store and files are removed");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(backing), "{mounts}");
}

#[test]
fn a_directory_that_is_given_is_measured_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output =
        vexfs(dir.path(), &["bench", "mount", path, "--only", "small", "--rounds", "1", "--ops", "3"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("given") && table.contains("stat, uncached"), "{table}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its files are removed");
}
