//! The daemon is killed in the middle of a load, again and again on one store. What a call had returned for is there.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check;
use super::load::{Clock, DIM, Load, npy};
use super::machine::{Daemon, Machine};
use super::model::{Tree, allow_after_death};
use super::{Random, asked, seed, snapshots};

/// Rounds on one store, before another is begun.
const ROUNDS_PER_STORE: usize = 50;

/// Starts the daemon; one time in four it is killed while it recovers, and started again.
fn start(machine: &Machine, random: &mut Random, killed: &mut usize) -> Result<Daemon, String> {
    while random.one_in(4) {
        let mut daemon = machine.begin(&[], &[]);
        std::thread::sleep(Duration::from_millis(random.below(120) as u64));
        daemon.kill();
        *killed += 1;
    }
    machine.start()
}

#[test]
fn a_killed_daemon_loses_nothing_that_a_call_returned_for() {
    let (rounds, seed) = (asked("CRASH_KILLS", 12), seed());
    println!("kills: CRASH_SEED={seed}");
    let mut random = Random(seed);
    let (mut done, mut killed, mut kept, mut snapshots) = (0, 0, 0, 0);
    while done < rounds {
        let many = ROUNDS_PER_STORE.min(rounds - done);
        let series = Series::run(&mut random, many).unwrap_or_else(|what| {
            panic!("CRASH_SEED={seed}, after {done} kills, {what}");
        });
        done += series.kills;
        killed += series.kills_while_starting;
        kept += series.kept_bytes;
        snapshots += series.kept_snapshots;
    }
    println!(
        "kills: {done} under load, {killed} more while starting, {kept} bytes and {snapshots} snapshots compared, \
         0 lost"
    );
    assert!(kept > 0, "the load wrote nothing");
}

#[derive(Default)]
struct Series {
    kills: usize,
    kills_while_starting: usize,
    kept_bytes: usize,
    kept_snapshots: usize,
}

impl Series {
    /// Kills the daemon `rounds` times on one new store.
    fn run(random: &mut Random, rounds: usize) -> Result<Self, String> {
        let machine = Machine::new();
        let mut series = Self::default();
        fs::create_dir_all(machine.store()).map_err(|error| error.to_string())?;
        // Process death takes nothing that reached the kernel, so no disk is watched.
        let clock: Clock = Arc::new(|| 0);
        let mut daemon = machine.start()?;
        let mut load =
            Load::new(&machine.root(), 3, random.next(), &clock).map_err(|error| error.to_string())?;
        for round in 0..rounds {
            series
                .round(&machine, &mut load, &mut daemon, random)
                .map_err(|what| format!("round {round}: {what}\n{}", machine.said()))?;
        }
        daemon.unmount()?;
        machine.checks_store()?;
        Ok(series)
    }

    fn round(
        &mut self,
        machine: &Machine,
        load: &mut Load,
        daemon: &mut Daemon,
        random: &mut Random,
    ) -> Result<(), String> {
        let delay = Duration::from_millis(20 + random.below(500) as u64);
        let ended = load.run(&machine.root(), || {
            std::thread::sleep(delay);
            daemon.kill();
        });
        // Each client ran into the dead mount, and into nothing else.
        for error in ended.into_iter().filter_map(std::io::Result::err) {
            let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::ENODEV];
            if !error.raw_os_error().is_some_and(|number| dead.contains(&number)) {
                return Err(format!("a call failed by itself: {error}"));
            }
        }
        self.kills += 1;
        *daemon = start(machine, random, &mut self.kills_while_starting)?;
        for client in load.clients() {
            let dir = client.dir();
            let at = dir.display();
            let seen = check::capture(&dir).map_err(|error| format!("{at}: {error}"))?;
            let kept = allow_after_death(&client.start, &client.steps, &seen)
                .map_err(|what| format!("{at}: {what}"))?;
            check::searches_agree(&dir, &seen, random).map_err(|what| format!("{at}: {what}"))?;
            let there =
                snapshots::agree(client, usize::MAX, random).map_err(|what| format!("{at}: {what}"))?;
            self.kept_bytes += kept.synced_bytes;
            self.kept_snapshots += there.len();
            client.resume(Tree::of(&seen), there);
        }
        Ok(())
    }
}

/// The machine's own `kill`, so that the moment is in the middle of one large thing and not between small ones.
#[test]
fn a_daemon_killed_in_a_bulk_load_leaves_all_of_the_matrix_or_nothing_of_it() {
    let seed = seed();
    println!("bulk load: CRASH_SEED={seed}");
    let mut random = Random(seed);
    let machine = Machine::new();
    fs::create_dir_all(machine.store()).unwrap();
    let rows: Vec<Vec<f32>> = (0..60_000).map(|_| (0..DIM).map(|_| random.value()).collect()).collect();
    let source = machine.below().join("source.npy");
    fs::write(&source, npy(&rows)).unwrap();
    let mut daemon = machine.start().unwrap();
    fs::create_dir(machine.root().join("c")).unwrap();
    for round in 0..asked("CRASH_KILLS", 12).div_ceil(6) {
        let target = machine.root().join(format!("c/{round}.npy"));
        let mut copy = Command::new("cp").arg(&source).arg(&target).stderr(Stdio::null()).spawn().unwrap();
        let delay = Duration::from_millis(random.below(120) as u64);
        let end = Instant::now() + delay;
        while Instant::now() < end && copy.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        daemon.kill();
        let copied = copy.wait().unwrap().success();
        daemon = machine.start().unwrap();
        let seen = check::capture(&machine.root().join("c")).unwrap();
        check::searches_agree(&machine.root().join("c"), &seen, &mut random)
            .unwrap_or_else(|what| panic!("CRASH_SEED={seed}, round {round}: {what}"));
        let name = format!("{round}.npy");
        let is_searched = seen.files.get(&name).is_some_and(|file| file.is_searched());
        assert!(is_searched || !copied, "CRASH_SEED={seed}, round {round}: cp had succeeded");
        if target.exists() {
            fs::remove_file(target).unwrap();
        }
    }
    daemon.unmount().unwrap();
}
