#!/usr/bin/env python3
"""Make vectors with the shape of real embeddings, for measurements at sizes that no data set at hand has.

usage: make_bench_data.py TARGET --name NAME [--n 340000] [--dim 128] [--queries 1000] [--clusters 1000]
           [--spread 1.0] [--intrinsic 32] [--noise 0.3] [--seed 1] [--unit] [--apart S]

Writes TARGET/NAME_base.npy and TARGET/NAME_query.npy (f32). Each vector belongs to one of `--clusters` clusters,
whose sizes fall off as 1 / rank, as topics do. The centres lie on a curved surface of `--intrinsic` dimensions
within `--dim`, and so do the members around their centre; noise of every dimension is added, its length `--noise`
of a vector's. The defaults make sets about as hard to search as SIFT descriptors. With `--unit` vectors are scaled
to length 1. With `--apart S` clusters are of one size, normal in every dimension with variance 1, and so are their
centres with a deviation of S, so that clusters lie S times as far apart as they are wide. Queries are further vectors of the same kind, not in the base. The same arguments give the same files;
the first N rows do not depend on how many follow. Needs numpy.
"""

import argparse
from pathlib import Path

import numpy as np

BLOCK = 10_000


class Embeddings:
    """A distribution over vectors."""

    def __init__(self, o):
        rng = np.random.default_rng([o.seed, 0])
        self.dim, self.noise, self.unit = o.dim, o.noise, o.unit
        hidden = 2 * o.intrinsic
        # A random layer with a bend in it turns flat coordinates into a curved surface.
        self.inner = rng.standard_normal((o.intrinsic, hidden)).astype("f4")
        self.outer = (rng.standard_normal((hidden, o.dim)) / np.sqrt(hidden)).astype("f4")
        scale = 1 / np.sqrt(o.intrinsic)
        self.centres = (rng.standard_normal((o.clusters, o.intrinsic)) * scale).astype("f4")
        self.spread = o.spread * scale
        weights = 1 / np.arange(1, o.clusters + 1)
        self.weights = weights / weights.sum()

    def block(self, rng, rows):
        cluster = rng.choice(len(self.centres), size=rows, p=self.weights)
        near = rng.standard_normal((rows, self.centres.shape[1]), dtype="f4") * np.float32(self.spread)
        vectors = np.tanh((self.centres[cluster] + near) @ self.inner) @ self.outer
        noise = rng.standard_normal(vectors.shape, dtype="f4") / np.float32(np.sqrt(self.dim))
        vectors += np.float32(self.noise) * np.linalg.norm(vectors, axis=1, keepdims=True) * noise
        if self.unit:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class Clusters:
    """Clusters of one size, far from each other."""

    def __init__(self, o):
        rng = np.random.default_rng([o.seed, 0])
        self.dim, self.unit = o.dim, o.unit
        self.centres = np.float32(o.apart) * rng.standard_normal((o.clusters, o.dim)).astype("f4")

    def block(self, rng, rows):
        cluster = rng.integers(len(self.centres), size=rows)
        vectors = self.centres[cluster] + rng.standard_normal((rows, self.centres.shape[1]), dtype="f4")
        if self.unit:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def write(path, embeddings, rows, seed):
    """Block by block, each with its own generator: no more than a block is in memory."""
    file = np.lib.format.open_memmap(path, mode="w+", dtype="<f4", shape=(rows, embeddings.dim))
    for number, start in enumerate(range(0, rows, BLOCK)):
        rng = np.random.default_rng([*seed, number])
        # Whole blocks are drawn, so that the first rows are the same whatever `rows` is.
        file[start : start + BLOCK] = embeddings.block(rng, BLOCK)[: rows - start]
    file.flush()
    print(f"{path.name}: {rows} x {embeddings.dim} <f4, {path.stat().st_size} bytes")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("target", type=Path)
    a.add_argument("--name", required=True)
    a.add_argument("--n", type=int, default=340_000)
    a.add_argument("--dim", type=int, default=128)
    a.add_argument("--queries", type=int, default=1000)
    a.add_argument("--clusters", type=int, default=1000)
    a.add_argument("--intrinsic", type=int, default=32, help="dimensions of the surface")
    a.add_argument("--spread", type=float, default=1.0, help="of a cluster, where centres are 1 apart")
    a.add_argument("--noise", type=float, default=0.3)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--unit", action="store_true")
    a.add_argument("--apart", type=float, help="clusters so many times as far apart as they are wide")
    o = a.parse_args()
    o.target.mkdir(parents=True, exist_ok=True)
    embeddings = Embeddings(o) if o.apart is None else Clusters(o)
    write(o.target / f"{o.name}_base.npy", embeddings, o.n, [o.seed, 1])
    write(o.target / f"{o.name}_query.npy", embeddings, o.queries, [o.seed, 2])


if __name__ == "__main__":
    main()
