//! A time of day that jumps, and requests that panic.
//!
//! The daemon runs with a library before it that answers for the clock: the time of day is as many seconds off as a
//! file says, and where the file says `fail` there is none, at which the standard library panics: the one way to have a
//! request of the real program panic. Clocks that do not jump are left alone.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Mount, errno, paths, run, text};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("JUMP");
    if (failed || clock != CLOCK_REALTIME || !path) return failed ? -1 : 0;
    char said[32] = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t len = read(file, said, sizeof said - 1);
    close(file);
    if (len > 0 && !strncmp(said, "fail", 4)) {
        errno = EINVAL;
        return -1;
    }
    now->tv_sec += atoll(said);
    return 0;
}
"#;

/// A mount whose daemon takes the time of day from where [`jump`] says.
fn mounted() -> Mount {
    let mut mount = Mount::unstarted();
    let (source, library) = (mount.outside("shim.c"), mount.outside("shim.so"));
    fs::write(&source, SHIM).unwrap();
    // The linker that builds this program is a C compiler.
    let built = run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source));
    assert!(built.status.success(), "{}", text(&built.stderr));
    jump(&mount, "0");
    let jump = mount.outside("jump");
    // Its log has the time of day in each line, and would have each panic end in a second one.
    mount.set_env(&[("LD_PRELOAD", &library), ("JUMP", &jump), ("VEXFS_LOG", Path::new("off"))]);
    mount.start();
    mount
}

fn jump(mount: &Mount, how: &str) {
    fs::write(mount.outside("jump.new"), how).unwrap();
    fs::rename(mount.outside("jump.new"), mount.outside("jump")).unwrap();
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[test]
fn a_clock_that_jumps_changes_what_files_are_stamped_with_and_nothing_else() {
    let mut mount = mounted();
    mount.mkdir("docs");
    let sixty_years = 60 * 365 * 86_400;
    let mut stamps = Vec::new();
    // Before 1970, after 2500, back again; from one file to the next.
    for (number, offset) in (0u8..).zip([0, -sixty_years, 9 * sixty_years, -3600, 0]) {
        jump(&mount, &offset.to_string());
        let begun = Instant::now();
        let name = format!("docs/{number}.f32");
        mount.put(&name, &[1.0, f32::from(number)]);
        let stamp = fs::metadata(mount.path(&name)).unwrap().mtime();
        assert!((stamp - now() - offset).abs() < 60, "{name} is stamped {stamp}, off by {offset}");
        stamps.push((name, stamp));
        let answer = mount.ask_json("docs", &json!({"vector": [1.0, 0.0], "k": 10}));
        assert_eq!(paths(&answer).len(), stamps.len());
        // What waits for the disk, for the indexer, or for a time to pass waits as long as ever.
        fs::File::open(mount.path("docs")).unwrap().sync_all().unwrap();
        mount.sync();
        fs::create_dir(mount.path(format!(".vexfs/snapshots/{number}"))).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    assert_eq!(mount.json(".vexfs/health")["status"], "ok");
    assert_eq!(mount.json(".vexfs/snapshots.json")["snapshots"].as_array().unwrap().len(), stamps.len());
    mount.unmount();
    mount.set_env(&[]);
    mount.start();
    for (name, stamp) in stamps {
        assert_eq!(fs::metadata(mount.path(&name)).unwrap().mtime(), stamp, "{name}");
    }
}

#[test]
fn a_request_that_panics_is_answered_eio_and_the_mount_goes_on() {
    let mut mount = mounted();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0]);
    assert_eq!(mount.json(".vexfs/health")["panics"], 0);
    jump(&mount, "fail");
    // More than there are workers.
    for number in 0..20 {
        assert_eq!(errno(fs::create_dir(mount.path(format!("docs/{number}")))), libc::EIO);
        assert_eq!(errno(fs::write(mount.path(format!("docs/{number}.f32")), [0; 8])), libc::EIO);
        assert_eq!(errno(fs::rename(mount.path("docs/a.f32"), mount.path("docs/b.f32"))), libc::EIO);
    }
    assert_eq!(mount.similar("docs/a.f32"), [""; 0], "what does not panic is answered");
    jump(&mount, "0");
    let health = mount.json(".vexfs/health");
    assert_eq!((&health["status"], &health["panics"]), (&json!("ok"), &json!(60)));
    // Nothing is half done, and no lock is held.
    assert_eq!(fs::read_dir(mount.path("docs")).unwrap().count(), 1);
    for number in 0..20 {
        fs::create_dir(mount.path(format!("docs/{number}"))).unwrap();
    }
    mount.put("docs/a.f32", &[0.5, 0.5]);
    mount.put("docs/c.f32", &[0.0, 1.0]);
    fs::rename(mount.path("docs/a.f32"), mount.path("docs/b.f32")).unwrap();
    mount.sync();
    assert_eq!(mount.similar("docs/b.f32"), ["c.f32"]);
    mount.unmount();
    let checked = run(Command::new(crate::harness::VEXFS).arg("fsck").arg(mount.store()));
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
}
