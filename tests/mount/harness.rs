//! A real mount of a real store in a temporary directory, unmounted when it is dropped.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vexfs::random::splitmix64;

const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) const VEXFS: &str = env!("CARGO_BIN_EXE_vexfs");

/// A mounted store.
pub(crate) struct Mount {
    dir: TempDir,
    options: Vec<String>,
    env: Vec<(String, PathBuf)>,
    daemon: Option<Child>,
}

impl Mount {
    /// A new store, mounted.
    pub(crate) fn new() -> Self {
        Self::with_options(&[])
    }

    /// A new store, mounted with further arguments.
    pub(crate) fn with_options(options: &[&str]) -> Self {
        let mut mount = Self::unstarted();
        mount.options = options.iter().map(|option| (*option).to_owned()).collect();
        mount.start();
        mount
    }

    /// A place for a new store, and nothing mounted yet.
    pub(crate) fn unstarted() -> Self {
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        let dir = tempfile::Builder::new().prefix("vexfs-test-").tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir, options: Vec::new(), env: Vec::new(), daemon: None }
    }

    /// What the daemon has in its environment beside what this process has, from the next start on.
    pub(crate) fn set_env(&mut self, env: &[(&str, &Path)]) {
        self.env = env.iter().map(|(name, value)| ((*name).to_owned(), value.to_path_buf())).collect();
    }

    /// The mount point.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path in the mount.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join(path)
    }

    /// The store directory.
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A path outside the mount, for sources and copies.
    pub(crate) fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Mounts the store, in front, and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = File::options().append(true).create(true).open(self.outside("log")).unwrap();
        let daemon = Command::new(VEXFS)
            .args(["mount", "-f", "--store"])
            .arg(self.store())
            .args(&self.options)
            .arg(self.root())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let version = self.path(".vexfs/version");
        wait_for("the mount to answer", || {
            let daemon = self.daemon.as_mut().unwrap();
            if let Some(status) = daemon.try_wait().unwrap() {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("vexfs mount ended with {status}: {log}");
            }
            fs::read(&version).is_ok()
        });
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Unmounts in the ordinary way and waits for the daemon's end.
    pub(crate) fn unmount(&mut self) {
        // A process that another test starts has this test's open files for a moment, until it runs its program.
        wait_for("nobody to use the mount", || {
            let output = run(Command::new(VEXFS).arg("umount").arg(self.root()));
            let busy = text(&output.stderr).contains("in use");
            // On a busy machine closing takes longer than the command waits.
            let closing = text(&output.stderr).contains("still closing the store");
            assert!(output.status.success() || busy || closing, "{}", text(&output.stderr));
            !busy
        });
        self.wait();
    }

    /// Waits for the end of the daemon, whose mount was taken off.
    pub(crate) fn wait(&mut self) {
        let status = self.daemon.take().unwrap().wait().unwrap();
        assert!(status.success(), "the daemon ended with {status}");
    }

    /// Unmounts and mounts again.
    pub(crate) fn remount(&mut self) {
        self.unmount();
        self.start();
    }

    /// Kills the daemon as a crash would.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Sends the daemon a signal and returns its exit status.
    pub(crate) fn signal(&mut self, name: &str) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().unwrap();
        run(Command::new("kill").arg(format!("-{name}")).arg(daemon.id().to_string()));
        daemon.wait().unwrap()
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        fs::create_dir(&path).unwrap();
        path
    }

    /// Writes a `.f32` file in one piece.
    pub(crate) fn put(&self, path: &str, vector: &[f32]) {
        fs::write(self.path(path), f32_bytes(vector)).unwrap();
    }

    /// The paths of the neighbours of a vector file, through its attribute.
    pub(crate) fn similar(&self, path: &str) -> Vec<String> {
        let value = self.attribute(path, "user.vexfs.similar");
        value.lines().map(|line| line.split_once('\t').unwrap().1.to_owned()).collect()
    }

    /// An extended attribute as text.
    pub(crate) fn attribute(&self, path: &str, name: &str) -> String {
        self.try_attribute(path, name).unwrap_or_else(|error| panic!("{path}: {name}: {error}"))
    }

    /// An extended attribute as text; a missing one is `ENODATA`.
    pub(crate) fn try_attribute(&self, path: &str, name: &str) -> std::io::Result<String> {
        let missing = || std::io::Error::from_raw_os_error(libc::ENODATA);
        xattr::get(self.path(path), name)?.ok_or_else(missing).map(|value| text(&value))
    }

    /// A vector file's status.
    pub(crate) fn status(&self, path: &str) -> String {
        self.attribute(path, "user.vexfs.status")
    }

    /// A JSON file in the mount.
    pub(crate) fn json(&self, path: &str) -> Value {
        let bytes = fs::read(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Asks a directory's transaction file and returns everything it answers.
    pub(crate) fn ask(&self, dir: &str, request: &[u8]) -> Vec<u8> {
        let mut file = self.query_file(dir);
        file.write_all(request).unwrap();
        let mut answer = Vec::new();
        file.read_to_end(&mut answer).unwrap();
        answer
    }

    /// Asks with one JSON line and returns the answer.
    pub(crate) fn ask_json(&self, dir: &str, request: &Value) -> Value {
        let answer = self.ask(dir, format!("{request}\n").as_bytes());
        serde_json::from_slice(&answer).unwrap()
    }

    /// A directory's transaction file, open.
    pub(crate) fn query_file(&self, dir: &str) -> File {
        File::options().read(true).write(true).open(self.path(dir).join(".vexfs/query")).unwrap()
    }

    /// Waits until everything is indexed and durable.
    pub(crate) fn sync(&self) {
        assert_eq!(fs::read(self.path(".vexfs/sync")).unwrap(), b"ok\n");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            detach(&self.root());
            return;
        };
        detach(&self.root());
        // A test that failed may have left files open: the daemon is not waited for longer than a little.
        let deadline = Instant::now() + Duration::from_secs(10);
        while daemon.try_wait().ok().flatten().is_none() {
            if Instant::now() > deadline {
                let _ = daemon.kill();
                let _ = daemon.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.outside("log")).unwrap_or_default());
        }
    }
}

fn detach(root: &Path) {
    let quiet = |command: &mut Command| command.stderr(Stdio::null()).status();
    if !quiet(Command::new("umount").arg("-l").arg(root)).is_ok_and(|status| status.success()) {
        let _ = quiet(Command::new("fusermount3").arg("-uz").arg(root));
    }
}

/// Waits for a condition, with a deadline.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether root runs the tests. Else it is said that the test of this thread was not made.
pub(crate) fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("{}: not checked, it needs root", std::thread::current().name().unwrap_or("a test"));
    }
    is_root
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a shell script in `dir`; it must succeed. Returns what it printed.
pub(crate) fn shell(dir: &Path, script: &str) -> String {
    let output = run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir));
    assert!(
        output.status.success(),
        "{script}\n{}\nstdout: {}\nstderr: {}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The error number of a failed call.
#[track_caller]
pub(crate) fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("the call should fail").raw_os_error().unwrap()
}

/// Little-endian bytes of a vector.
pub(crate) fn f32_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A `.npy` file of f32 rows.
pub(crate) fn npy(rows: &[Vec<f32>]) -> Vec<u8> {
    let dim = rows.first().map_or(0, Vec::len);
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {dim}), }}", rows.len());
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(rows.iter().flat_map(|row| f32_bytes(row)));
    bytes
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The paths of an answer's hits.
pub(crate) fn paths(answer: &Value) -> Vec<String> {
    let hits = answer["hits"].as_array().unwrap_or_else(|| panic!("no hits in {answer}"));
    hits.iter().map(|hit| hit["path"].as_str().unwrap().to_owned()).collect()
}

/// A small generator, so that a failure can be run again from its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn vector(&mut self, dim: usize) -> Vec<f32> {
        (0..dim).map(|_| (self.below(2001) as f32 - 1000.0) / 1000.0 + 0.0001).collect()
    }
}
