//! How a mount gets on with mount(8), fstab, service managers, and people who want it to end.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use crate::harness::{Mount, VEXFS, is_root, npy, run, shell, text, wait_for};

/// Runs a script in a directory with `mnt`, where `/sbin` has our helper and nothing else, in a mount namespace of
/// its own. Its mount is taken off at the end, whatever happens.
fn with_helper(script: &str) -> (TempDir, Output) {
    let dir = tempfile::Builder::new().prefix("vexfs-test-").tempdir().unwrap();
    for name in ["mnt", "sbin"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::os::unix::fs::symlink(VEXFS, dir.path().join("sbin/mount.fuse.vexfs")).unwrap();
    let script = format!(
        "here=$(pwd -P); mount --bind sbin \"$(realpath /sbin)\"
         trap 'umount -l \"$here/mnt\" 2>/dev/null || true' EXIT
         state() {{ grep \" $here/mnt fuse.vexfs \" /proc/mounts || echo none; }}
         {script}"
    );
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", &script]);
    let output = run(command.current_dir(dir.path()));
    (dir, output)
}

fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn mount_mounts_by_type_remounts_and_unmounts() {
    let (dir, output) = with_helper(&format!(
        "mount -t fuse.vexfs \"$here/store\" \"$here/mnt\" -o noexec,_netdev,x-systemd.automount,user
         state; mkdir mnt/docs; echo 1 > mnt/docs/a.vec; df --output=source mnt | tail -n 1
         mount -o remount,ro \"$here/mnt\"; state
         ! touch mnt/b 2> said; cat said mnt/docs/a.vec; getfattr --only-values -n user.vexfs.status mnt/docs/a.vec; echo
         mount -o remount,rw \"$here/mnt\"; state; touch mnt/b; {VEXFS} umount mnt; state
         {VEXFS} mount --store store mnt; ls mnt; {VEXFS} umount mnt"
    ));
    assert!(output.status.success(), "{}", said(&output));
    let printed = text(&output.stdout);
    let lines: Vec<&str> = printed.lines().collect();
    let store = dir.path().canonicalize().unwrap().join("store");
    let store = store.to_str().unwrap();
    assert_eq!(lines.len(), 10, "{printed}");
    for (line, access) in [(lines[0], "rw"), (lines[2], "ro"), (lines[6], "rw")] {
        assert!(line.starts_with(store), "{line}");
        let options: Vec<&str> = line.split(' ').nth(3).unwrap().split(',').collect();
        for option in [access, "nosuid", "nodev", "noatime"] {
            assert!(options.contains(&option), "{option} is not in {line}");
        }
    }
    assert!(lines[0].contains("noexec"), "{}", lines[0]);
    assert_eq!(lines[1], store);
    assert!(lines[3].contains("Read-only file system"), "{}", lines[3]);
    assert_eq!(lines[4..6], ["1", "indexed"]);
    assert_eq!(lines[7..], ["none", "b", "docs"]);
}

#[test]
fn a_line_of_fstab_is_mounted_once() {
    let (_dir, output) = with_helper(&format!(
        "echo \"$here/store $here/mnt fuse.vexfs defaults,allow_other,nofail,x-systemd.requires-mounts-for=/ 0 0\" > fstab
         mount -T fstab -a; state; mount -T fstab -a; grep -c \" $here/mnt \" /proc/mounts
         {VEXFS} umount mnt; mount -T fstab \"$here/mnt\"; test \"$(cat mnt/.vexfs/version)\"; {VEXFS} umount mnt; state"
    ));
    assert!(output.status.success(), "{}", said(&output));
    let printed = text(&output.stdout);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines.len(), lines[1], lines[2]), (3, "1", "none"), "{printed}");
    assert!(lines[0].contains("allow_other"), "{}", lines[0]);
}

#[test]
fn the_helper_explains_itself_in_the_exit_codes_of_mount() {
    for (script, code, why) in [
        ("mount -t fuse.vexfs \"$here/store\" \"$here/mnt\" -o bogus", 1, "unknown mount option 'bogus'"),
        ("mount -t fuse.vexfs none \"$here/mnt\"", 1, "the source is the store's directory"),
        ("mount -t fuse.vexfs \"$here/mnt/store\" \"$here/mnt\"", 32, "the mountpoint contains the store"),
        ("sbin/mount.fuse.vexfs only-one-argument", 1, "required"),
        ("sbin/mount.fuse.vexfs vexfs \"$here/mnt\" -o remount,ro", 32, "not a VexFS mount"),
        (
            "sbin/mount.fuse.vexfs \"$here/store\" \"$here/mnt\" -f -s -o bogus; state; test ! -e store",
            0,
            "none",
        ),
    ] {
        let (_dir, output) = with_helper(script);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", said(&output));
        assert!(said(&output).contains(why), "{script}: {}", said(&output));
    }
}

#[test]
fn a_service_manager_is_told_when_the_mount_answers_and_when_it_ends() {
    let dir = tempfile::Builder::new().prefix("vexfs-test-").tempdir().unwrap();
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let next = || {
        let mut said = [0; 256];
        let length = socket.recv(&mut said).unwrap();
        text(&said[..length])
    };
    let mut daemon = Daemon(
        Command::new(VEXFS)
            .args(["mount", "--foreground", "--store"])
            .arg(dir.path().join("store"))
            .arg(&mnt)
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    assert_eq!(next(), "READY=1");
    fs::write(mnt.join("a"), b"it answers").unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(next(), "STOPPING=1");
    assert!(daemon.0.wait().unwrap().success());
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
}

/// A process that is gone at the end of a test: it unmounts when it is told to end.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.signal(Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn the_unit_and_the_installation_are_in_order() {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::Builder::new().prefix("vexfs-test-").tempdir().unwrap();
    let target = dir.path().join("target/release");
    fs::create_dir_all(&target).unwrap();
    fs::copy(VEXFS, target.join("vexfs")).unwrap();
    let root = dir.path().join("root");
    let variables =
        format!("DESTDIR={} PREFIX=/usr TARGET_DIR={}", root.display(), dir.path().join("target").display());
    shell(repo, &format!("make --no-print-directory -s install {variables}"));
    let listed = "find . ! -type d | LC_ALL=C sort";
    let installed = shell(&root, listed);
    let files = "./sbin/mount.fuse.vexfs\n./usr/bin/vexfs\n./usr/lib/systemd/system/vexfs@.service\n";
    assert_eq!(installed, files);
    assert_eq!(fs::read_link(root.join("sbin/mount.fuse.vexfs")).unwrap(), Path::new("/usr/bin/vexfs"));
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/vexfs@.service")).unwrap();
    assert!(
        unit.contains("ExecStart=/usr/bin/vexfs mount --foreground") && !unit.contains("@BINDIR@"),
        "{unit}"
    );
    shell(repo, &format!("make --no-print-directory -s uninstall {variables}"));
    assert_eq!(shell(&root, listed), "");
    let missing = format!("! make --no-print-directory -s install TARGET_DIR={} 2>&1", root.display());
    assert!(shell(repo, &missing).contains("run make build first"));
}

#[test]
fn unmounting_does_not_wait_for_a_daemon_that_is_stuck() {
    let mut mount = Mount::new();
    fs::write(mount.path("a"), b"kept").unwrap();
    let daemon = Pid::from_raw(i32::try_from(mount.pid()).unwrap());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let output = run(Command::new("timeout").arg("60").arg(VEXFS).arg("umount").arg(mount.root()));
    let took = begun.elapsed();
    let is_off = !fs::read_to_string("/proc/self/mounts").unwrap().contains(mount.root().to_str().unwrap());
    kill(daemon, Signal::SIGCONT).unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(is_off && took < Duration::from_secs(30), "{took:?}");
    // It goes on where it was stopped, and ends as after any unmount.
    mount.wait();
    mount.start();
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"kept");
}

#[test]
fn a_busy_mount_is_refused_or_taken_off_lazily_and_ends_with_its_last_user() {
    let mut mount = Mount::new();
    fs::write(mount.path("a"), b"0123456789").unwrap();
    let mut user = Command::new("bash")
        .args(["-c", "exec 3<>a; echo open; read; printf x >&3; cat <&3"])
        .current_dir(mount.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(user.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "open");
    let output = run(Command::new(VEXFS).arg("umount").arg(mount.root()));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("in use"), "{}", said(&output));
    let output = run(Command::new(VEXFS).args(["umount", "--lazy"]).arg(mount.root()));
    assert!(output.status.success(), "{}", said(&output));
    assert!(!mount.path("a").exists());
    // Who had it open goes on reading and writing.
    std::io::Write::write_all(&mut user.stdin.take().unwrap(), b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "123456789");
    assert!(user.wait().unwrap().success());
    mount.wait();
    mount.start();
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"x123456789");
}

#[test]
fn a_mount_syncs_as_often_as_it_was_asked_to() {
    let syncs_of = |option: &str| {
        let mount = Mount::with_options(&["-o", option]);
        let asked = || {
            let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
            let line = metrics.lines().find(|line| line.starts_with("vexfs_syncs_asked ")).map(str::to_owned);
            line.unwrap_or_else(|| panic!("{metrics}")).split(' ').nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = asked();
        for number in 0..50 {
            fs::create_dir(mount.path(format!("d{number}"))).unwrap();
        }
        let made = asked();
        for _ in 0..50 {
            fs::write(mount.path("f"), b"bytes").unwrap();
            fs::File::open(mount.path("f")).unwrap().sync_all().unwrap();
        }
        (made - before, asked() - made)
    };
    // The volume syncs by itself now and then.
    let some = 0..25;
    let (made, synced) = syncs_of("sync=always");
    assert!(made >= 50 && synced >= 100, "always: {made}, {synced}");
    let (made, synced) = syncs_of("sync=normal");
    assert!(some.contains(&made) && synced >= 50, "normal: {made}, {synced}");
    let (made, synced) = syncs_of("sync=off");
    assert!(some.contains(&made) && some.contains(&synced), "off: {made}, {synced}");
}

/// How many nodes of control directories the kernel knows.
fn control_nodes(mount: &Mount) -> u64 {
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    let line = metrics.lines().find(|line| line.starts_with("vexfs_control_nodes ")).map(str::to_owned);
    line.unwrap_or_else(|| panic!("{metrics}")).split(' ').nth(1).unwrap().parse().unwrap()
}

/// The kernel has memory left, and would keep all of them.
#[test]
fn a_walk_through_rows_and_results_leaves_few_nodes_behind() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let rows = 20_000;
    let values: Vec<Vec<f32>> = (0..rows).map(|i| vec![i as f32, 1.0]).collect();
    fs::write(mount.path("docs/all.npy"), npy(&values)).unwrap();
    for i in 0..200 {
        mount.put(&format!("docs/{i}.f32"), &[i as f32, 2.0]);
    }
    let row = |i: i32| mount.path(format!("docs/.vexfs/rows/all.npy/{i:06}.f32"));
    let value = |i: i32| [i as f32, 1.0].into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let mut open = fs::File::open(row(7)).unwrap();
    let listed = fs::read_dir(mount.path("docs/.vexfs/similar/3.f32")).unwrap();
    for i in 0..rows {
        assert_eq!(fs::read(row(i)).unwrap(), value(i));
    }
    for i in 0..200 {
        assert_eq!(fs::read_dir(mount.path(format!("docs/.vexfs/similar/{i}.f32"))).unwrap().count(), 10 + 4);
    }
    wait_for("the nodes to be forgotten", || control_nodes(&mount) < 18_000);
    // What is open stays, and what was forgotten is made again.
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut bytes).unwrap();
    assert_eq!(bytes, value(7));
    assert_eq!(listed.count(), 10 + 4);
    assert_eq!(fs::read(row(3)).unwrap(), value(3));
}

#[test]
fn what_the_kernel_forgets_the_daemon_forgets() {
    let mount = Mount::new();
    mount.mkdir("docs");
    for i in 0..300 {
        mount.put(&format!("docs/{i}.f32"), &[i as f32, 1.0]);
    }
    let nodes = || control_nodes(&mount);
    for i in 0..300 {
        assert_eq!(fs::read_dir(mount.path(format!("docs/.vexfs/similar/{i}.f32"))).unwrap().count(), 10 + 4);
    }
    assert!(nodes() > 300, "{}", nodes());
    // A directory that goes takes its nodes out of the kernel's memory.
    fs::remove_dir_all(mount.path("docs")).unwrap();
    wait_for("the nodes to be forgotten", || nodes() < 50);
}

#[test]
fn who_changes_its_user_goes_on_with_what_it_has_open_and_strangers_stay_out() {
    if !is_root() {
        return;
    }
    let mount = Mount::new();
    fs::set_permissions(mount.outside("."), fs::Permissions::from_mode(0o755)).unwrap();
    mount.mkdir("docs");
    let file =
        File::options().read(true).write(true).create_new(true).open(mount.path("docs/a.vec")).unwrap();
    std::thread::scope(|scope| {
        // A thread has a user of its own for filesystems.
        scope.spawn(|| {
            nix::unistd::setfsuid(Uid::from_raw(12345));
            (&file).write_all(b"1 2 3\n").unwrap();
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 6).unwrap();
            assert_eq!(nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekHole), Ok(6));
            nix::unistd::close(file.try_clone().unwrap()).unwrap();
        });
    });
    assert_eq!(mount.attribute("docs/a.vec", "user.vexfs.status"), "indexed");
    drop(file);
    let user = ["--reuid", "12345", "--regid", "12345", "--clear-groups"];
    for what in ["cat mnt/docs/a.vec", "ls mnt", "echo >mnt/new", "stat mnt/docs"] {
        let output =
            run(Command::new("setpriv").args(user).args(["sh", "-c", what]).current_dir(mount.outside(".")));
        assert!(!output.status.success() && said(&output).contains("Permission denied"), "{}", said(&output));
    }
}
