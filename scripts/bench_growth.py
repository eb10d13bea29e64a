#!/usr/bin/env python3
"""How does the cost of a query grow with the collection? Runs `vexfs bench ann` on growing parts of one base.

usage: bench_growth.py BASE QUERY --metric ip|l2|cosine [--sizes 10000,20000,40000,85000,170000,340000]
           [--recall 0.95] [--vexfs target/release/vexfs] [--quant sq8] [--build-threads 1] [--markdown]

BASE and QUERY are files that `vexfs bench ann` reads; sizes beyond the base are left out. The true neighbours of
each part are found by an exact scan. Prints, for each size, the CPU time of a query at the recall, in microseconds
(between two measured points its logarithm is linear in recall), that time divided by ln n, and the same relative
to the first size: it stays at 1 where the cost grows as log n. Needs nothing but Python.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from bench_ann import VEXFS, at_recall, machine

# What the program says of a base with fewer rows: wrong input.
INVALID = 4


def measure(o, n):
    """The answer for the first n vectors; None when there are fewer."""
    command = [str(o.vexfs), "bench", "ann", "--base", o.base, "--query", o.query, "--metric", o.metric]
    command += ["--quant", o.quant, "--build-threads", str(o.build_threads), "--n", str(n), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == INVALID and f"n is {n}, " in done.stderr:
        return None
    if done.returncode != 0:
        sys.exit(done.stderr.strip() or f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout)


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
    a.add_argument("--markdown", action="store_true")
    o = a.parse_args()

    print(f"{machine()}\n")
    rows = [["n", f"us a query at recall {o.recall:.2f}", "us / ln n", "relative"]]
    first = None
    for n in sorted(int(size) for size in o.sizes.split(",")):
        print(f"{n} vectors", file=sys.stderr)
        answer = measure(o, n)
        if answer is None:
            break
        qps, is_first = at_recall(answer["points"], o.recall, "qps_cpu")
        if qps is None:
            rows.append([f"{n:,}", "-", "-", "-"])
            continue
        cost = 1e6 / qps
        by_log = cost / math.log(n)
        first = first or by_log
        mark = "<= " if is_first else ""
        rows.append([f"{n:,}", f"{mark}{cost:.1f}", f"{by_log:.3f}", f"{by_log / first:.2f}"])
    if o.markdown:
        rows.insert(1, ["---:"] * len(rows[0]))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows))


if __name__ == "__main__":
    main()
