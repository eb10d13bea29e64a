#!/usr/bin/env python3
"""Make the small data sets of tests/data from larger ones.

usage: make_test_data.py SOURCE [TARGET]

SOURCE holds NAME_base.npy and NAME_query.npy for each set below. Every n-th row is taken, so that the slice
is spread over its source. The ground truth is computed here, exactly, within the slice. TARGET is tests/data
of this repository unless given. Needs numpy.
"""

import sys
from pathlib import Path

import numpy as np

# name: metric, base rows, dtype of the elements
SETS = {
    "minilm384": ("ip", 1000, "<f4"),
    "glove100": ("ip", 2000, "<f4"),
    "sift128": ("l2", 2000, "|u1"),
}
QUERIES = 50
K = 10


def spread(path, rows, dtype):
    """`rows` rows of a .npy, evenly apart, exactly as they are."""
    source = np.load(path, mmap_mode="r")
    step = len(source) // rows
    if step == 0:
        sys.exit(f"{path}: {len(source)} rows, want at least {rows}")
    if source.dtype != np.dtype(dtype):
        sys.exit(f"{path}: dtype {source.dtype.str}, want {dtype}")
    return np.ascontiguousarray(source[: rows * step : step])


def nearest(base, queries, metric):
    """Row numbers of the K nearest of each query, nearest first, ties by row number."""
    base, queries = base.astype(np.float64), queries.astype(np.float64)
    if metric == "ip":
        distance = -(queries @ base.T)
    else:
        distance = ((queries[:, None, :] - base[None, :, :]) ** 2).sum(axis=2)
    return np.argsort(distance, axis=1, kind="stable")[:, :K].astype("<i4")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.strip())
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parents[1] / "tests" / "data"
    target.mkdir(parents=True, exist_ok=True)
    for name, (metric, rows, dtype) in SETS.items():
        base = spread(source / f"{name}_base.npy", rows, dtype)
        query = spread(source / f"{name}_query.npy", QUERIES, dtype)
        truth = nearest(base, query, metric)
        for part, array in (("base", base), ("query", query), ("gt", truth)):
            path = target / f"{name}_{part}.npy"
            np.save(path, array)
            print(f"{path.name}: {array.shape[0]} x {array.shape[1]} {array.dtype.str}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
