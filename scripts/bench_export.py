#!/usr/bin/env python3
"""What `vexfs export` and `vexfs import` cost beside cp of the same bytes: time, and memory.

    scripts/bench_export.py [--vexfs target/release/vexfs] [--dir DIR] [--rows 1000000] [--dim 384] [FORMAT ...]

A new store below DIR is mounted and gets one .npy of rows x dim f32 (a block of 1000 random rows, again and again), and
a directory of --files files of one vector. Then, in each of --rounds rounds: cp of the .npy from the mount to DIR and a
sync of the copy, and an export to each format; cp of the copy into the mount and its sync, and an import of each
export. The bytes of the .npy that is exported and of the one that is imported are compared. Prints the median
time with the extremes, the rate of the exported file's bytes, and the most memory that the command had (VmHWM).
"""

import argparse
import contextlib
import fcntl
import filecmp
import os
import random
import shutil
import statistics
import struct
import subprocess
import tempfile
import threading
import time

BLOCK = 1000

# Those that become exported.npy, in every round again.
IMPORTED = ("npy", "npz", "safetensors", "jsonl", "csv")


def npy_header(rows, dim):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    text = text.ljust((10 + len(text) + 1 + 63) // 64 * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def run(arguments):
    """Seconds, and the most memory in bytes: sampled, because what wait4 tells has this program's own in it."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    most = [0]

    def sample():
        while process.returncode is None:
            with contextlib.suppress(OSError, ValueError, StopIteration):
                with open(f"/proc/{process.pid}/status") as status:
                    most[0] = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
            time.sleep(0.01)

    sampler = threading.Thread(target=sample)
    sampler.start()
    process.wait()
    seconds = time.perf_counter() - started
    sampler.join()
    if process.returncode != 0:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return seconds, most[0]


def copy(source, target):
    seconds, memory = run(["/bin/cp", source, target])
    started = time.perf_counter()
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    return seconds + time.perf_counter() - started, memory


def show(what, size, taken):
    seconds = [one for one, _ in taken]
    middle = statistics.median(seconds)
    memory = max(memory for _, memory in taken)
    print(f"| {what} | {size / 1e6:.0f} MB | {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) "
          f"| {size / middle / 1e6:.0f} MB/s | {memory / 1e6:.0f} MB |", flush=True)


def measure(vexfs, base, arguments):
    store, root = f"{base}/store", f"{base}/mnt"
    os.mkdir(root)
    subprocess.run([vexfs, "mount", "--store", store, root], check=True)
    try:
        noise = random.Random(1)
        for name in ("docs", "single", "in"):
            os.mkdir(f"{root}/{name}")
            # No graph is built beside what is measured.
            with open(f"{root}/{name}/.vexfs/config", "w") as config:
                config.write("[index]\nexact_below = 4294967294\n")
        block = struct.pack(f"<{BLOCK * arguments.dim}f", *(noise.gauss(0, 1) for _ in range(BLOCK * arguments.dim)))
        source = f"{root}/docs/rows.npy"
        with open(source, "wb") as file:
            file.write(npy_header(arguments.rows, arguments.dim))
            for _ in range(arguments.rows // BLOCK):
                file.write(block)
        for number in range(arguments.files):
            row = number % BLOCK * arguments.dim * 4
            with open(f"{root}/single/{number}.f32", "wb", buffering=0) as file:
                file.write(block[row:row + arguments.dim * 4])
        with open(f"{root}/.vexfs/sync", "rb") as sync:
            sync.read()
        taken, sizes = {}, {}
        for _ in range(arguments.rounds):
            target = f"{base}/copy.npy"
            taken.setdefault("cp", []).append(copy(source, target))
            sizes["cp"] = os.path.getsize(target)
            for name, ending in [("docs", ending) for ending in arguments.formats] + [("single", "npy")]:
                what = f"{name} to .{ending}"
                written = f"{base}/exported.{ending}"
                taken.setdefault(what, []).append(run([vexfs, "export", f"{root}/{name}", written]))
                sizes[what] = os.path.getsize(written)
                if what == "docs to .npy" and not filecmp.cmp(written, target, shallow=False):
                    raise RuntimeError("the export differs from the file")
                if name == "docs" and ending in IMPORTED:
                    what = f".{ending} to in"
                    taken.setdefault(what, []).append(run([vexfs, "import", written, f"{root}/in"]))
                    sizes[what] = os.path.getsize(written)
                    made = f"{root}/in/exported.npy"
                    if ending == "npy" and not filecmp.cmp(written, made, shallow=False):
                        raise RuntimeError("the import differs from the file")
                    os.remove(made)
                os.remove(written)
            what = "cp to in"
            taken.setdefault(what, []).append(copy(target, f"{root}/in/copy.npy"))
            sizes[what] = os.path.getsize(target)
            os.remove(f"{root}/in/copy.npy")
            os.remove(target)
        for what, times in taken.items():
            show(what, sizes[what], times)
    finally:
        if subprocess.run([vexfs, "umount", root], stderr=subprocess.DEVNULL).returncode not in (0, 5):
            raise RuntimeError("umount failed")
        with open(f"{store}/lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vexfs", default="target/release/vexfs")
    parser.add_argument("--dir", help="where store and exports are made")
    parser.add_argument("--rows", type=int, default=1_000_000, help=f"a multiple of {BLOCK}")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("formats", nargs="*", default=["npy", "npz", "safetensors", "f16bin", "jsonl"])
    arguments = parser.parse_args()
    print("| what | bytes | time | rate | memory |")
    print("|---|---|---|---|---|")
    base = tempfile.mkdtemp(prefix="vexfs-export-", dir=arguments.dir)
    try:
        measure(os.path.abspath(arguments.vexfs), base, arguments)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
