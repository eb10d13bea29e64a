#!/usr/bin/env python3
"""How does the cost of a query grow with the collection? Runs `vexfs bench ann` on growing parts of one base.

usage: bench_growth.py BASE QUERY --metric ip|l2|cosine [--sizes 10000,20000,40000,85000,170000,340000]
           [--recall 0.95] [--vexfs target/release/vexfs] [--quant sq8] [--build-threads 1] [--peer NAME] [--markdown]

BASE and QUERY are files that `vexfs bench ann` reads; sizes beyond the base are left out. The true neighbours of
each part are found by an exact scan. Prints, for each size, what a query costs at the recall (between two measured
points logarithms are linear in recall): the ef, the codes that it is compared with, the CPU time of one comparison
in nanoseconds and of the query in microseconds, and beside comparisons and time their growth since the first size
through that of ln n, which stays at 1 where they grow as log n. With `--peer`, one of those of bench_ann.py, the same
of its time, from files that are .npy. Needs nothing but Python, and for a peer what bench_ann.py --setup installs.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from bench_ann import PEERS, VEXFS, at_recall, machine

# What the program says of a base with fewer rows: wrong input.
INVALID = 4


def measure(o, n, command):
    """The answer for the first n vectors; None when there are fewer."""
    command = command + ["--base", o.base, "--query", o.query, "--metric", o.metric, "--n", str(n)]
    command += ["--build-threads", str(o.build_threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == INVALID and f"n is {n}, " in done.stderr:
        return None
    if done.returncode != 0:
        sys.exit(done.stderr.strip() or f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout)


def costs(points, recall):
    """By name, what a query costs at the recall; None when no point reaches it."""
    names = [name for name in ("ef", "compared", "qps_cpu") if name in points[0]]
    found = {name: at_recall(points, recall, name)[0] for name in names}
    if found["qps_cpu"] is None:
        return None
    return found | {"us": 1e6 / found["qps_cpu"]}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("base")
    a.add_argument("query")
    a.add_argument("--metric", required=True, choices=["ip", "l2", "cosine"])
    a.add_argument("--sizes", default="10000,20000,40000,85000,170000,340000")
    a.add_argument("--recall", type=float, default=0.95)
    a.add_argument("--vexfs", type=Path, default=VEXFS, metavar="PATH")
    a.add_argument("--quant", default="sq8")
    a.add_argument("--build-threads", type=int, default=1)
    a.add_argument("--peer", choices=PEERS)
    a.add_argument("--markdown", action="store_true")
    o = a.parse_args()

    print(f"{machine()}\n")
    ours = [str(o.vexfs), "bench", "ann", "--json", "--quant", o.quant]
    script = str(Path(__file__).with_name("bench_ann.py"))
    rows = [["n", "ef", "compared", "/ log n", "ns each", f"us at {o.recall:.2f}", "/ log n"]]
    if o.peer:
        rows[0] += [f"us, {o.peer}", "/ log n"]
    first = {}

    def growth(name, cost, n):
        begin, cost_then = first.setdefault(name, (n, cost))
        return f"{cost / cost_then / (math.log(n) / math.log(begin)):.2f}"

    for n in sorted(int(size) for size in o.sizes.split(",")):
        print(f"{n} vectors", file=sys.stderr)
        answer = measure(o, n, ours)
        if answer is None:
            break
        cost = costs(answer["points"], o.recall)
        row = [f"{n:,}", "-", "-", "-", "-", "-", "-"]
        if cost:
            each = 1000 * cost["us"] / cost["compared"]
            row[1:5] = [f"{cost['ef']:.0f}", f"{cost['compared']:.0f}", growth("compared", cost["compared"], n)]
            row[4:] = [f"{each:.1f}", f"{cost['us']:.1f}", growth("us", cost["us"], n)]
        if o.peer:
            cost = costs(measure(o, n, [sys.executable, script, "--peer", o.peer])["points"], o.recall)
            row += [f"{cost['us']:.1f}", growth("peer", cost["us"], n)] if cost else ["-", "-"]
        rows.append(row)
    if o.markdown:
        rows.insert(1, ["---:"] * len(rows[0]))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows))


if __name__ == "__main__":
    main()
