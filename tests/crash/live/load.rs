//! What users do: small vectors, matrices, notes, directories, renames, searches, snapshots, from several clients at
//! once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Random;
use super::model::{Change, Step, Tree};

/// Elements of a vector.
pub(super) const DIM: usize = 8;

/// Bytes of one `write`: the kernel hands it on in one piece.
const WRITE_BYTES: usize = 64 << 10;

/// Tells where the disk's record is.
pub(super) type Clock = Arc<dyn Fn() -> usize + Send + Sync>;

/// Snapshots that a client has at once, at most.
const SNAPSHOTS: usize = 2;

/// One user: alone in its directory, which is a collection, and with the snapshots that it takes.
pub(super) struct Client {
    root: PathBuf,
    /// Its directory in the mount, and what its snapshots are called by.
    name: String,
    random: Random,
    clock: Clock,
    /// A seeded bug: says that it synced, and did not.
    pub(super) pretends_to_sync: bool,
    /// The directory before the first step.
    pub(super) start: Tree,
    /// The snapshots that there were before the first step, with what each shows of the directory.
    pub(super) snapshots: BTreeMap<String, Tree>,
    pub(super) steps: Vec<Step>,
    /// The directory as it is.
    tree: Tree,
    /// The names of its snapshots as they are.
    taken: Vec<String>,
    written: u64,
}

impl Client {
    pub(super) fn new(root: &Path, name: &str, seed: u64, clock: Clock) -> Self {
        Self {
            root: root.to_owned(),
            name: name.to_owned(),
            random: Random(seed),
            clock,
            pretends_to_sync: false,
            start: Tree::default(),
            snapshots: BTreeMap::new(),
            steps: Vec::new(),
            tree: Tree::default(),
            taken: Vec::new(),
            written: 0,
        }
    }

    /// Where its directory is.
    pub(super) fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// Where the snapshots of the mount are.
    pub(super) fn snapshots_dir(&self) -> PathBuf {
        self.root.join(".vexfs/snapshots")
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Goes on from the state that was found.
    pub(super) fn resume(&mut self, found: Tree, snapshots: BTreeMap<String, Tree>) {
        self.steps.clear();
        self.taken = snapshots.keys().cloned().collect();
        self.snapshots = snapshots;
        self.start = found.clone();
        self.tree = found;
    }

    /// Does one thing after the other until `stop`, or until a call fails.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.turn()?;
        }
        Ok(())
    }

    fn call<T>(&mut self, change: Change, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let began = (self.clock)();
        self.steps.push(Step { change, began, ended: None });
        let returned = call()?;
        let step = self.steps.last_mut().expect("it was just pushed");
        step.ended = Some((self.clock)());
        self.tree.apply(&step.change);
        Ok(returned)
    }

    fn sync(&mut self, path: &str, file: &File) -> io::Result<()> {
        let pretends = self.pretends_to_sync;
        self.call(Change::Sync(path.into()), || if pretends { Ok(()) } else { file.sync_all() })
    }

    fn turn(&mut self) -> io::Result<()> {
        // A snapshot makes everything durable: it would hide most of what was not synced.
        if self.random.one_in(150) && !self.pretends_to_sync {
            return self.snapshot();
        }
        match self.random.below(100) {
            0..26 => {
                let (path, bytes) = (self.place("f32", 24), self.vector());
                let sync = self.random.one_in(2);
                self.write(&path, &bytes, sync)
            }
            26..42 => self.replace(),
            42..52 => self.unlink(),
            52..60 => self.note(),
            60..65 => self.directory(),
            65..68 => self.remove_directory(),
            68..74 => {
                let rows = 200 + self.random.below(6000);
                let (path, bytes) = (self.place("npy", 3), self.matrix(rows));
                let sync = self.random.one_in(2);
                self.write(&path, &bytes, sync)
            }
            74..84 => self.append(),
            _ => self.search(),
        }
    }

    /// A path for a file, new or known.
    fn place(&mut self, suffix: &str, names: usize) -> String {
        let name = format!("{}.{suffix}", self.random.below(names));
        let dirs: Vec<String> = self.tree.dirs().into_iter().map(str::to_owned).collect();
        match self.random.below(3) {
            0 if !dirs.is_empty() => format!("{}/{name}", dirs[self.random.below(dirs.len())]),
            _ => name,
        }
    }

    fn vector(&mut self) -> Vec<u8> {
        (0..DIM).flat_map(|_| self.random.value().to_le_bytes()).collect()
    }

    fn matrix(&mut self, rows: usize) -> Vec<u8> {
        let mut bytes = npy_header(rows, DIM);
        for _ in 0..rows {
            bytes.extend(self.vector());
        }
        bytes
    }

    fn write(&mut self, path: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
        let at = self.dir().join(path);
        let file = self.call(Change::Begin(path.into()), || File::create(at))?;
        self.finish(path, file, bytes, sync)
    }

    fn finish(&mut self, path: &str, mut file: File, bytes: &[u8], sync: bool) -> io::Result<()> {
        for piece in bytes.chunks(WRITE_BYTES) {
            self.call(Change::Write { path: path.into(), bytes: piece.into() }, || {
                // One call. Only a disk that fails on the way takes a part of it, and refuses the rest with the reason.
                match file.write(piece)? {
                    written if written == piece.len() => Ok(()),
                    written => file.write(&piece[written..]).and(Err(io::ErrorKind::WriteZero.into())),
                }
            })?;
        }
        if sync {
            self.sync(path, &file)?;
        }
        self.call(Change::Close(path.into()), || nix::unistd::close(file).map_err(io::Error::from))
    }

    fn replace(&mut self) -> io::Result<()> {
        let (to, bytes) = match self.random.one_in(5) {
            true => {
                let rows = 100 + self.random.below(2000);
                (self.place("npy", 3), self.matrix(rows))
            }
            false => (self.place("f32", 24), self.vector()),
        };
        let from = match to.rsplit_once('/') {
            Some((dir, name)) => format!("{dir}/.{name}.new"),
            None => format!(".{to}.new"),
        };
        let sync = self.random.one_in(2);
        self.write(&from, &bytes, sync)?;
        let (old, new) = (self.dir().join(&from), self.dir().join(&to));
        self.call(Change::Rename { from, to: to.clone() }, || fs::rename(old, new))?;
        if self.random.one_in(3) { self.sync_parent(&to) } else { Ok(()) }
    }

    fn sync_parent(&mut self, path: &str) -> io::Result<()> {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
        let file = File::open(self.dir().join(&dir))?;
        self.sync(&dir, &file)
    }

    fn some_file(&mut self) -> Option<String> {
        let files: Vec<String> = self.tree.files().into_iter().map(str::to_owned).collect();
        (!files.is_empty()).then(|| files[self.random.below(files.len())].clone())
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some(path) = self.some_file() else { return Ok(()) };
        let at = self.dir().join(&path);
        self.call(Change::Unlink(path.clone()), || fs::remove_file(at))?;
        if self.random.one_in(4) { self.sync_parent(&path) } else { Ok(()) }
    }

    fn note(&mut self) -> io::Result<()> {
        let Some(path) = self.some_file() else { return Ok(()) };
        let value = format!("note {}", self.random.next()).into_bytes();
        let at = self.dir().join(&path);
        self.call(Change::Note { path: path.clone(), value: value.clone() }, || {
            xattr::set(&at, "user.note", &value)
        })?;
        if !self.random.one_in(2) {
            return Ok(());
        }
        let file = File::open(self.dir().join(&path))?;
        self.sync(&path, &file)
    }

    fn directory(&mut self) -> io::Result<()> {
        let path = format!("d{}", self.random.below(4));
        if !self.tree.dirs().contains(&path.as_str()) {
            let at = self.dir().join(&path);
            self.call(Change::Mkdir(path.clone()), || fs::create_dir(at))?;
        }
        let (file, bytes) = (format!("{path}/{}.f32", self.random.below(6)), self.vector());
        self.write(&file, &bytes, false)?;
        self.sync_parent(&file)
    }

    fn remove_directory(&mut self) -> io::Result<()> {
        let dirs: Vec<String> = self.tree.dirs().into_iter().map(str::to_owned).collect();
        if dirs.is_empty() {
            return Ok(());
        }
        let dir = dirs[self.random.below(dirs.len())].clone();
        let inside: Vec<String> = self.tree.files().into_iter().map(str::to_owned).collect();
        for path in inside.into_iter().filter(|path| path.starts_with(&format!("{dir}/"))) {
            let at = self.dir().join(&path);
            self.call(Change::Unlink(path), || fs::remove_file(at))?;
        }
        let at = self.dir().join(&dir);
        self.call(Change::Rmdir(dir), || fs::remove_dir(at))
    }

    /// An ordinary file that grows, sometimes past what the catalog holds.
    fn append(&mut self) -> io::Result<()> {
        let path = format!("log{}", self.random.below(2));
        self.written += 1;
        let line = format!("line {} {}\n", self.written, "x".repeat(self.random.below(3000)));
        let at = self.dir().join(&path);
        let open = || File::options().append(true).create(true).open(at);
        let file = self.call(Change::Continue(path.clone()), open)?;
        let sync = self.random.one_in(2);
        self.finish(&path, file, line.as_bytes(), sync)
    }

    /// Takes one, or drops one when there are enough.
    fn snapshot(&mut self) -> io::Result<()> {
        if self.taken.len() == SNAPSHOTS {
            let name = self.taken.swap_remove(self.random.below(SNAPSHOTS));
            let at = self.snapshots_dir().join(&name);
            return self.call(Change::Drop(name), || fs::remove_dir(at));
        }
        let name = format!("{}-{}", self.name, self.random.next());
        let at = self.snapshots_dir().join(&name);
        match self.call(Change::Take(name.clone()), || fs::create_dir(at)) {
            // Somebody wrote a large file all the time.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => drop(self.steps.pop()),
            taken => {
                taken?;
                self.taken.push(name);
            }
        }
        Ok(())
    }

    fn search(&mut self) -> io::Result<()> {
        let vector: Vec<f32> = (0..DIM).map(|_| self.random.value()).collect();
        match ask(&self.dir(), &serde_json::json!({"vector": vector, "k": 10})) {
            // Nothing to search yet, or more searches than the machine can take.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINVAL)) => Ok(()),
            asked => asked.map(drop),
        }
    }
}

/// The header of a `.npy` file with `rows` vectors.
fn npy_header(rows: usize, dim: usize) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("it is short").to_le_bytes());
    bytes.extend(header.bytes());
    bytes
}

/// A `.npy` file with these rows.
pub(super) fn npy(rows: &[Vec<f32>]) -> Vec<u8> {
    let mut bytes = npy_header(rows.len(), rows.first().map_or(DIM, Vec::len));
    bytes.extend(rows.iter().flatten().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// The rows of a vector file, `None` when the bytes are not all of one.
pub(super) fn rows_of(path: &str, bytes: &[u8]) -> Option<Vec<Vec<f32>>> {
    let values = match path.ends_with(".npy") {
        true => {
            let len = u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?);
            let header = std::str::from_utf8(bytes.get(10..10 + usize::from(len))?).ok()?;
            let rows: usize = header.split_once("'shape': (")?.1.split_once(',')?.0.parse().ok()?;
            let values = &bytes[10 + usize::from(len)..];
            (rows > 0 && values.len() == rows * DIM * 4).then_some(values)?
        }
        false => (bytes.len() == DIM * 4).then_some(bytes)?,
    };
    let value = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("chunks of four bytes"));
    Some(values.chunks(DIM * 4).map(|row| row.chunks(4).map(value).collect()).collect())
}

/// Asks a directory's transaction file with one JSON line, and returns the answer.
pub(super) fn ask(dir: &Path, request: &serde_json::Value) -> io::Result<serde_json::Value> {
    let mut file = File::options().read(true).write(true).open(dir.join(".vexfs/query"))?;
    file.write_all(format!("{request}\n").as_bytes())?;
    let answer = io::read_to_string(file)?;
    serde_json::from_str(&answer).map_err(io::Error::other)
}

/// Clients at work on threads of their own, and one that has checkpoints written.
pub(super) struct Load {
    clients: Vec<Client>,
}

impl Load {
    /// Clients with a directory each in the mount at `root`, made here.
    pub(super) fn new(root: &Path, clients: usize, seed: u64, clock: &Clock) -> io::Result<Self> {
        let mut load = Self { clients: Vec::new() };
        for number in 0..clients {
            let seed = seed.wrapping_mul(31).wrapping_add(number as u64);
            let client = Client::new(root, &format!("c{number}"), seed, Arc::clone(clock));
            fs::create_dir(client.dir())?;
            // A graph at once, so that there are checkpoints.
            fs::write(client.dir().join(".vexfs/config"), "[index]\nexact_below = 100\n")?;
            File::open(client.dir())?.sync_all()?;
            load.clients.push(client);
        }
        Ok(load)
    }

    pub(super) fn clients(&mut self) -> &mut [Client] {
        &mut self.clients
    }

    /// Runs every client until `until` says so. Returns what each ended with.
    pub(super) fn run(&mut self, root: &Path, until: impl FnOnce()) -> Vec<io::Result<()>> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            let clients: Vec<_> =
                self.clients.iter_mut().map(|client| scope.spawn(move || client.run(stop))).collect();
            scope.spawn(move || {
                // Each reading of it writes the graphs.
                while !stop.load(Ordering::Relaxed) && fs::read(root.join(".vexfs/sync")).is_ok() {
                    pause(stop, Duration::from_millis(300));
                }
            });
            until();
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
        })
    }
}

/// Waits for a time, or until `stop`.
fn pause(stop: &AtomicBool, time: Duration) {
    let end = Instant::now() + time;
    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}
