#!/usr/bin/env python3
"""What snapshots cost, at several numbers of small files: does the time to take one depend on how many there are?

    scripts/bench_snapshots.py [--vexfs target/release/vexfs] [--dir DIR] 1000 100000 1000000

For each number a new store below DIR is mounted and filled with files of 100 bytes, 1000 in a directory. Then, all
through the mount: five snapshots are taken, with 100 files rewritten before each; one is looked at for the first
time and again; the daemon is given the time to read the five; the store is mounted with them and without; all are
dropped. What a snapshot shows is compared with what was written. Times are in milliseconds, the median of five where five were taken, with the extremes.
"""

import argparse
import fcntl
import os
import shutil
import statistics
import subprocess
import tempfile
import time

PER_DIRECTORY = 1000
TAKEN = 5


def path(root, number):
    return f"{root}/d{number // PER_DIRECTORY}/f{number}"


def content(number, version):
    return f"{number} {version} ".encode().ljust(100, b".")


def write(root, number, version):
    with open(path(root, number), "wb", buffering=0) as file:
        file.write(content(number, version))


def timed(work):
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def wait_for(what, seconds=600):
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not after {seconds} s")
        time.sleep(0.01)


def own_bytes(root):
    """Space of the files below root that nothing else links."""
    total = 0
    for where, _, files in os.walk(root):
        for name in files:
            stat = os.lstat(os.path.join(where, name))
            total += stat.st_blocks * 512 if stat.st_nlink == 1 else 0
    return total


def measure(vexfs, base, count):
    store, root = f"{base}/store", f"{base}/mnt"
    os.mkdir(root)
    snapshots = f"{root}/.vexfs/snapshots"

    def mount():
        subprocess.run([vexfs, "mount", "--store", store, root], check=True)

    def umount():
        # 5: the store is still being closed.
        if subprocess.run([vexfs, "umount", root], stderr=subprocess.DEVNULL).returncode not in (0, 5):
            raise RuntimeError("umount failed")
        with open(f"{store}/lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)

    mount()
    try:
        for first in range(0, count, PER_DIRECTORY):
            os.mkdir(f"{root}/d{first // PER_DIRECTORY}")
        filled = timed(lambda: [write(root, number, 0) for number in range(count)])
        os.sync()
        take = []
        for version in range(1, TAKEN + 1):
            for number in range(100):
                write(root, number, version)
            take.append(timed(lambda: os.mkdir(f"{snapshots}/s{version}")))
        os.sync()
        own = own_bytes(f"{store}/snapshots/s{TAKEN}")
        look = f"{snapshots}/s1"
        first_look = timed(lambda: os.stat(path(look, 0)))
        second_look = timed(lambda: os.stat(path(look, 1)))
        for number in (0, 99, count // 2, count - 1):
            with open(path(look, number), "rb") as file:
                assert file.read() == content(number, 1 if number < 100 else 0), number
        kept = [f"{store}/snapshots/s{version}/named" for version in range(1, TAKEN + 1)]
        read = timed(lambda: wait_for(lambda: all(map(os.path.exists, kept))))
        umount()
        with_five = timed(mount)
        drop = [timed(lambda: os.rmdir(f"{snapshots}/s{version}")) for version in range(1, TAKEN + 1)]
        umount()
        with_none = timed(mount)
        with open(path(root, 0), "rb") as file:
            assert file.read() == content(0, TAKEN)
    finally:
        if os.path.ismount(root):
            umount()
    print(
        f"| {count} | {filled / 1e3:.1f} s | {statistics.median(take):.0f} ({min(take):.0f} to {max(take):.0f}) "
        f"| {own / 1e6:.1f} MB | {first_look:.0f} / {second_look:.1f} | {read / 1e3:.1f} s | {with_five:.0f} / {with_none:.0f} "
        f"| {' '.join(f'{one:.0f}' for one in drop)} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vexfs", default="target/release/vexfs")
    parser.add_argument("--dir", help="where the stores are made")
    parser.add_argument("counts", nargs="*", type=int, default=[1000, 100_000])
    arguments = parser.parse_args()
    print("| files | filled in | taken in ms | own space of one | first look / again ms | read within | mount with 5 / 0 ms | dropped ms |")
    print("|---|---|---|---|---|---|---|---|")
    for count in arguments.counts:
        base = tempfile.mkdtemp(prefix="vexfs-snapshots-", dir=arguments.dir)
        try:
            measure(os.path.abspath(arguments.vexfs), base, count)
        finally:
            shutil.rmtree(base)


if __name__ == "__main__":
    main()
