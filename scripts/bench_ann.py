#!/usr/bin/env python3
"""Measure `vexfs bench ann` and other libraries on the same files in one run, and print the ratios.

    scripts/bench_ann.py --setup DIR        # once: a virtual environment in DIR with the other libraries
    DIR/bin/python scripts/bench_ann.py --data DATA [--sets minilm384:ip,glove100:ip,sift128:l2]
        [--peers hnswlib,faiss,usearch,symqg] [--vexfs target/release/vexfs] [--quant sq8] [--rounds 3] [--markdown]

DATA holds NAME_base.npy and NAME_query.npy for each set, and NAME_gt.npy, the true neighbours as row numbers
(without it, or with --n, they are found by an exact scan). Under cosine the others get vectors of unit length and
the inner product, which ranks alike.

A round runs every contender once, in a process of its own, one after the other: build, then search with one
thread at rising ef. The figures are medians of the rounds; a ratio is vexfs / other of the same round, median
(least-greatest). QPS is of one batch call, by CPU time of the process unless `--clock wall`; at a recall between
two measured points it is interpolated, its logarithm linear in recall, and so are the times; `>=` marks a figure
of the smallest ef, whose recall is above, `-` a recall that no ef reached. p50 and p99 are of single calls on the
wall clock; those of the others include 1 to 5 us of Python. Bytes a vector are those of the saved index and, for
vexfs, of the vectors in the base, which the others' files contain (usearch as i8 only). Memory is what is
anonymous after the build, for the others without what was before.
"""

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

VEXFS = Path(__file__).resolve().parents[1] / "target/release/vexfs"
PACKAGES = ["numpy>=2", "hnswlib==0.8.0", "faiss-cpu==1.15.1", "usearch==2.26.6", "rabitqlib==0.7.1"]
RECALLS = [0.90, 0.95, 0.99]
EF = "10,16,24,32,48,64,96,128,192,256,384,512,800"
ENOUGH_RECALL = 0.997


class Hnswlib:
    package = "hnswlib"

    def __init__(self, o, n, dim, metric):
        import hnswlib

        self.threads = o.build_threads
        self.index = hnswlib.Index(space=metric, dim=dim)
        self.index.init_index(max_elements=n, M=o.m, ef_construction=o.ef_construction)

    def build(self, base):
        self.index.add_items(base, num_threads=self.threads)

    def widen(self, ef):
        self.index.set_ef(ef)

    def search(self, queries, k):
        return self.index.knn_query(queries, k, num_threads=1)[0]

    def save(self, path):
        self.index.save_index(path)


class Faiss:
    package = "faiss-cpu"

    def __init__(self, o, n, dim, metric):
        import faiss

        self.faiss = faiss
        self.threads = o.build_threads
        kind = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}[metric]
        self.index = faiss.IndexHNSWFlat(dim, o.m, kind)
        self.index.hnsw.efConstruction = o.ef_construction

    def build(self, base):
        self.faiss.omp_set_num_threads(self.threads)
        self.index.add(base)
        self.faiss.omp_set_num_threads(1)

    def widen(self, ef):
        self.index.hnsw.efSearch = ef

    def search(self, queries, k):
        return self.index.search(queries, k)[1]

    def save(self, path):
        self.faiss.write_index(self.index, path)


class Usearch:
    """With i8 elements and no refinement: its recall has a ceiling."""

    package = "usearch"

    def __init__(self, o, n, dim, metric):
        from usearch.index import Index

        self.threads = o.build_threads
        kind = {"ip": "ip", "l2": "l2sq"}[metric]
        self.index = Index(ndim=dim, metric=kind, dtype="i8", connectivity=o.m, expansion_add=o.ef_construction)

    def build(self, base):
        import numpy as np

        self.index.add(np.arange(len(base)), base, threads=self.threads)

    def widen(self, ef):
        self.index.expansion_search = ef

    def search(self, queries, k):
        # One query as a matrix of one row would go through the batch's slower way.
        return self.index.search(queries if len(queries) > 1 else queries[0], k, threads=1).keys

    def save(self, path):
        self.index.save(path)


class SymphonyQG:
    package = "rabitqlib"

    def __init__(self, o, n, dim, metric):
        import rabitqlib

        self.o = o
        self.ef = o.k
        # Its degree is that of the lowest level, where the others have 2 m.
        self.index = rabitqlib.SymqgIndex(dim, 2 * o.m, metric, 0)

    def build(self, base):
        self.index.build(base, self.o.ef_construction, self.o.build_threads, "pipnn")

    def widen(self, ef):
        self.ef = ef

    def search(self, queries, k):
        first, second = self.index.search_batch(queries, k, self.ef, 1)[:2]
        return first if first.dtype.kind in "iu" else second

    def save(self, path):
        self.index.save(path)


PEERS = {"hnswlib": Hnswlib, "faiss": Faiss, "usearch": Usearch, "symqg": SymphonyQG}


def anonymous_bytes():
    # What was freed and kept for later use counts for nobody.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    sys.exit("/proc/self/status: no RssAnon")


def exact_neighbours(np, base, queries, k, metric):
    """Row numbers of the k nearest of each query, by a scan."""
    squares = (base * base).sum(axis=1) if metric == "l2" else 0
    found = []
    for start in range(0, len(queries), 64):
        scores = 2 * (queries[start : start + 64] @ base.T) - squares
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        found.append(best)
    return np.concatenate(found)


def measure_peer(o):
    """Run in a process of its own: prints an object like that of `vexfs bench ann`."""
    import numpy as np

    def vectors(path):
        rows = np.load(path).astype("f4")
        if o.metric == "cosine":
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.ascontiguousarray(rows)

    whole = vectors(o.base)
    base, queries = whole[: o.n or None], vectors(o.query)
    metric = "ip" if o.metric == "cosine" else o.metric
    if o.gt and len(base) == len(whole):
        truth = np.load(o.gt)[:, : o.k]
    else:
        truth = exact_neighbours(np, base, queries, o.k, metric)

    def recall(found):
        found = np.asarray(found).reshape(len(queries), -1)[:, : o.k]
        hits = sum(len(set(map(int, a)) & set(map(int, b))) for a, b in zip(found, truth))
        return hits / (len(queries) * o.k)

    def clocked(work):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    before = anonymous_bytes()
    peer = PEERS[o.peer](o, len(base), base.shape[1], metric)
    wall, cpu = clocked(lambda: peer.build(base))
    memory = anonymous_bytes() - before
    with tempfile.TemporaryDirectory() as directory:
        peer.save(str(Path(directory) / "index"))
        size = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())

    points = []
    for ef in (int(ef) for ef in o.ef.split(",")):
        if ef < o.k:
            continue
        peer.widen(ef)
        found = recall(peer.search(queries, o.k))
        passes = [clocked(lambda: peer.search(queries, o.k)) for _ in range(o.runs)]
        single = []
        for _ in range(2):
            for number in range(len(queries)):
                query = queries[number : number + 1]
                single.append(clocked_wall(lambda: peer.search(query, o.k)))
        points.append({
            "ef": ef,
            "recall": round(found, 6),
            "qps": len(queries) / statistics.median(wall for wall, _ in passes),
            "qps_cpu": len(queries) / statistics.median(cpu for _, cpu in passes),
            "p50_us": float(np.percentile(single, 50)) * 1e6,
            "p99_us": float(np.percentile(single, 99)) * 1e6,
        })
        if found > ENOUGH_RECALL:
            break
    n = len(base)
    print(json.dumps({
        "schema": 1,
        "engine": f"{o.peer} {importlib.metadata.version(PEERS[o.peer].package)}",
        "n": n, "dim": base.shape[1], "metric": o.metric, "k": o.k,
        "m": o.m, "ef_construction": o.ef_construction,
        "build": {
            "seconds": wall, "cpu_seconds": cpu, "threads": o.build_threads,
            "vectors_per_s": n / wall, "vectors_per_core_s": n / cpu,
        },
        "bytes": {"file_per_vector": size / n, "anon_rss": memory},
        "points": points,
    }))


def clocked_wall(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def at_recall(points, wanted, field):
    """The value of a field where recall is as wanted, its logarithm linear in recall; and whether it is that of the
    first point, which is above already. None when no point reaches it."""
    last = None
    for point in points:
        if point["recall"] >= wanted:
            if last is None or last["recall"] == point["recall"]:
                return point[field], point["recall"] > wanted
            part = (wanted - last["recall"]) / (point["recall"] - last["recall"])
            return math.exp((1 - part) * math.log(last[field]) + part * math.log(point[field])), False
        last = point
    return None, False


def figures(answer, clock, element_bytes):
    """One contender in one round: name of a figure to (value, whether it is of the smallest ef)."""
    qps = {"cpu": "qps_cpu", "wall": "qps"}[clock]
    build = {"cpu": "vectors_per_core_s", "wall": "vectors_per_s"}[clock]
    points, sizes = answer["points"], answer["bytes"]
    # The vectors themselves stay in the file that they came in.
    own = answer["dim"] * element_bytes if answer["engine"].startswith("vexfs") else 0
    return {
        f"build, vectors per {'core-second' if clock == 'cpu' else 'second'}": (answer["build"][build], False),
        **{f"QPS at recall {wanted:.2f}": at_recall(points, wanted, qps) for wanted in RECALLS},
        "p50 us at recall 0.95": at_recall(points, 0.95, "p50_us"),
        "p99 us at recall 0.95": at_recall(points, 0.95, "p99_us"),
        "bytes a vector": (sizes["file_per_vector"] + own, False),
        "anonymous MiB": (sizes["anon_rss"] / 2**20, False),
    }


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def shown(rounds):
    """The median of a figure's rounds."""
    if any(value is None for value, _ in rounds):
        return "-"
    mark = ">= " if any(is_first for _, is_first in rounds) else ""
    return mark + number(statistics.median(value for value, _ in rounds))


def ratio(ours, theirs):
    """Median, least and greatest of the rounds' ratios."""
    if any(value is None for value, _ in ours + theirs) or any(value == 0 for value, _ in theirs):
        return "-"
    ratios = [a / b for (a, _), (b, _) in zip(ours, theirs)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def table(contenders, results, markdown):
    """`results` is, for each contender, the figures of each round."""
    first, others = contenders[0], contenders[1:]
    rows = [["", *contenders, *(f"{first} / {other}" for other in others)]]
    for figure in results[first][0]:
        rounds = {name: [of_round[figure] for of_round in results[name]] for name in contenders}
        rows.append([
            figure,
            *(shown(rounds[name]) for name in contenders),
            *(ratio(rounds[first], rounds[other]) for other in others),
        ])
    if markdown:
        rows.insert(1, ["---"] + ["---:"] * (len(rows[0]) - 1))
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = ([cell.rjust(width) for cell, width in zip(row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join([row[0].ljust(widths[0]), *cells]) for row, cells in zip(rows, numbers))


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout)


def compare(o):
    sets = [part.partition(":")[::2] for part in o.sets.split(",")]
    for name, metric in sets:
        if metric not in ("ip", "l2", "cosine"):
            sys.exit(f"--sets: {name}:{metric}: want NAME:ip, NAME:l2 or NAME:cosine")
    peers = [peer for peer in o.peers.split(",") if peer]
    for peer in peers:
        if peer not in PEERS:
            sys.exit(f"--peers: {peer}: want some of {','.join(PEERS)}")
    try:
        import numpy as np

        for peer in peers:
            importlib.metadata.version(PEERS[peer].package)
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        sys.exit(f"{error}\nmake an environment with --setup DIR and run this with DIR/bin/python")

    quants = o.quant.split(",")
    contenders = [f"vexfs {quant}" for quant in quants] + peers
    print(f"{machine()}; Python {platform.python_version()}")
    raw = []
    for name, metric in sets:
        base, query, gt = (o.data / f"{name}_{part}.npy" for part in ("base", "query", "gt"))
        element_bytes = np.load(base, mmap_mode="r").dtype.itemsize
        files = ["--base", str(base), "--query", str(query), "--metric", metric, "-k", str(o.k)]
        files += ["--gt", str(gt)] if gt.exists() else []
        files += ["--n", str(o.n)] if o.n else []
        files += ["--m", str(o.m), "--ef-construction", str(o.ef_construction), "--ef", o.ef]
        files += ["--runs", str(o.runs), "--build-threads", str(o.build_threads)]
        ours = [str(o.vexfs), "bench", "ann", "--json", *files, "--quant"]
        commands = {f"vexfs {quant}": [*ours, quant] for quant in quants}
        commands |= {peer: [sys.executable, __file__, "--peer", peer, *files] for peer in peers}
        results = {contender: [] for contender in contenders}
        for at in range(o.rounds):
            for contender in contenders:
                print(f"{name}, round {at + 1} of {o.rounds}: {contender}", file=sys.stderr)
                answer = run(commands[contender])
                raw.append({"set": name, "round": at, "contender": contender, **answer})
                results[contender].append(figures(answer, o.clock, element_bytes))
        engines = dict.fromkeys(answer["engine"] for answer in raw if answer["set"] == name)
        print(
            f"\n{name}: {answer['n']:,} x {answer['dim']}, {metric}, k {o.k}, m {o.m}, "
            f"ef_construction {o.ef_construction}, 1 search thread, {o.build_threads} to build, "
            f"{o.rounds} round{'s' * (o.rounds > 1)}, by {o.clock} time; {', '.join(engines)}\n"
        )
        print(table(contenders, results, o.markdown), flush=True)
    if o.save:
        o.save.write_text("".join(json.dumps(answer) + "\n" for answer in raw))


def machine():
    """The line that a figure stands beside."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    model = next(models, platform.machine())
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}, load {load:.1f}"


def setup(directory):
    venv.create(directory, with_pip=True)
    subprocess.run([str(Path(directory) / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--setup", metavar="DIR", help="make the virtual environment and end")
    a.add_argument("--data", type=Path, metavar="DIR")
    a.add_argument("--sets", default="minilm384:ip,glove100:ip,sift128:l2", metavar="NAME:METRIC,...")
    a.add_argument("--peers", default="hnswlib,symqg", metavar="NAME,...", help=f"some of {','.join(PEERS)}, or ''")
    a.add_argument("--vexfs", type=Path, default=VEXFS, metavar="PATH")
    a.add_argument("--quant", default="sq8", metavar="NAME,...", help="vexfs with each; ratios are of the first")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--clock", choices=["cpu", "wall"], default="cpu", help="for QPS and build")
    a.add_argument("--markdown", action="store_true")
    a.add_argument("--save", type=Path, metavar="FILE", help="every answer as a line of JSON")
    a.add_argument("-k", type=int, default=10)
    a.add_argument("--m", type=int, default=16)
    a.add_argument("--ef-construction", type=int, default=200)
    a.add_argument("--ef", default=EF, metavar="LIST")
    a.add_argument("--n", type=int, help="only the first N vectors")
    a.add_argument("--runs", type=int, default=5, help="passes over the queries in a round")
    a.add_argument("--build-threads", type=int, default=1)
    # How this script calls itself for one peer.
    for hidden in ("--peer", "--base", "--query", "--gt", "--metric"):
        a.add_argument(hidden, help=argparse.SUPPRESS)
    o = a.parse_args()
    if o.setup:
        setup(o.setup)
    elif o.peer:
        measure_peer(o)
    elif o.data:
        compare(o)
    else:
        a.error("want --data or --setup")


if __name__ == "__main__":
    main()
