#!/usr/bin/env python3
"""What it costs that large ordinary files come to rest: the first write after that, the first read after a mount, and
the reading of a file by the daemon's thread. Root, so that the kernel may read files by itself.

Usage: scripts/bench_rest.py [VEXFS] [--dir DIR] [--wait]     (--wait: also 85 s for a file of 1 GiB to come to rest)
"""
import argparse
import os
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("vexfs", nargs="?", default="target/release/vexfs")
parser.add_argument("--dir", default=None)
parser.add_argument("--wait", action="store_true")
options = parser.parse_args()
MIB = 1 << 20
FILES = 300


def pattern(size):
    return os.urandom(MIB) * (size // MIB) + os.urandom(size % MIB)


def timed(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def drop_pages(path):
    """Has the kernel read from the disk again."""
    for directory, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Mount:
    def __init__(self, work):
        self.store, self.mnt = os.path.join(work, "store"), os.path.join(work, "mnt")
        os.makedirs(self.mnt, exist_ok=True)
        self.start()

    def start(self):
        self.daemon = subprocess.Popen([options.vexfs, "mount", "-f", "--store", self.store, self.mnt],
                                       stderr=subprocess.DEVNULL)
        while not os.path.exists(self.path(".vexfs/version")):
            time.sleep(0.01)

    def stop(self):
        subprocess.run([options.vexfs, "umount", self.mnt], check=True, stdout=subprocess.DEVNULL)
        self.daemon.wait()

    def again(self):
        self.stop()
        self.start()

    def path(self, name):
        return os.path.join(self.mnt, name)

    def put(self, name, size):
        with open(self.path(name), "wb") as file:
            file.write(pattern(size))

    def read(self, name):
        with open(self.path(name), "rb", buffering=0) as file:
            while file.read(MIB):
                pass

    def metric(self, name):
        with open(self.path(".vexfs/metrics")) as file:
            return next((float(line.split()[1]) for line in file if line.startswith(name + " ")), 0)

    def cpu_of(self, thread):
        """Seconds that a thread of the daemon has used."""
        base = f"/proc/{self.daemon.pid}/task"
        for task in os.listdir(base):
            with open(f"{base}/{task}/stat") as file:
                name, fields = file.read().split("(", 1)[1].rsplit(") ", 1)
            if name == thread:
                fields = fields.split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_each(mount, size):
    """Microseconds from the open to the close of a file of which eight bytes are written."""
    times = []
    for number in range(FILES):
        def one():
            file = os.open(mount.path(f"f{number}"), os.O_RDWR)
            os.pwrite(file, b"changed!", 5)
            os.close(file)
        times.append(timed(one) * 1e6)
    return statistics.median(times)


with tempfile.TemporaryDirectory(dir=options.dir, prefix="vexfs-rest-") as work:
    mount = Mount(work)
    try:
        for size in (64 << 10, MIB):
            for number in range(FILES):
                mount.put(f"f{number}", size)
            awake = write_each(mount, size)
            mount.again()
            time.sleep(12)
            mount.again()
            resting = sum(name.endswith(".sums") for _, _, names in os.walk(mount.store) for name in names)
            first, second = write_each(mount, size), write_each(mount, size)
            print(f"open, write, close of a file of {size >> 10} KiB, median of {FILES}: written before {awake:.0f} us, "
                  f"first after a mount and its rest {first:.0f} us ({resting} at rest), second {second:.0f} us")
        for size in (MIB, 16 * MIB, 256 * MIB):
            mount.put("large", size)
            with open(mount.path("large"), "rb") as file:
                os.fsync(file.fileno())
            fresh = min(timed(lambda: mount.read("large")) for _ in range(5))
            mount.again()
            while mount.metric("vexfs_up") != 1:
                time.sleep(0.01)
            warm = timed(lambda: mount.read("large"))
            second = timed(lambda: mount.read("large"))
            time.sleep(2)
            later = min(timed(lambda: mount.read("large")) for _ in range(5))
            rested = os.path.exists(mount.store) and sum(
                name.endswith(".sums") for _, _, names in os.walk(mount.store) for name in names)
            print(f"reading {size // MIB} MiB: as written {size / fresh / MIB:.0f} MiB/s; after a mount first "
                  f"{size / warm / MIB:.0f}, second {size / second / MIB:.0f}, later {size / later / MIB:.0f} "
                  f"({rested} files at rest)")
        if options.wait:
            mount.put("huge", 1024 * MIB)
            files, before, begun = mount.metric("vexfs_rested_files"), mount.cpu_of("vexfs-rest"), time.time()
            closed = time.time()
            while mount.metric("vexfs_rested_bytes") < 1 << 30 and time.time() - closed < 240:
                time.sleep(0.5)
            print(f"a file of 1 GiB was at rest {time.time() - closed:.0f} s after its close, for "
                  f"{mount.cpu_of('vexfs-rest') - before:.2f} s of CPU")
    finally:
        mount.stop()
