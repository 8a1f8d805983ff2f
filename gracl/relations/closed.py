"""The rules of `choices.py` that have a closed form: linear in the images, one reading of the table.

With S_c the sum of the features of cluster c, n_c its size, S and M the same of all K clusters (method.md 4.3),
T_c = S_c / n_c, T their sum, and Z, z the sum and number of noise images where they are foreign (A4), else 0:

    foreign similarity of i   (f_i . (S + Z) - f_i . S_c) / (M + z - n_c)     mean over foreign samples (B1)
                              (f_i . (T + Z) - f_i . T_c) / (K + z - 1)       mean over other clusters' means (B2)
    own similarity of i       (f_i . S_c - f_i . f_i) / (n_c - 1)             mean over the other members (C1)

Where each cluster is one vector (A2, A3), S_c is that vector and n_c is 1.
"""

import typing

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from gracl.kernels import compiled, dot, over_rows, readable, real
from gracl.types import Feature


def cluster_sums(
    features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], clusters: int, step: int, threads: int
) -> Float64[ndarray, "clusters dim"]:
    """The sum of each cluster's rows, added in order of index; the table is read once, from its start to its end."""
    bits, dim = readable(features), features.shape[1]
    sums = np.zeros((clusters, dim))

    def add(begin: int) -> None:
        rows = slice(begin, begin + step)
        over_rows(lambda start, stop: _add(bits[rows], labels[rows], start, stop, sums), dim, threads=threads)

    for begin in range(0, len(labels), step):
        add(begin)
    return sums


def closed_forms(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    sizes: Int64[ndarray, "clusters"],
    sums: Float64[ndarray, "clusters dim"],
    *,
    balanced: bool = False,
    noise_sum: Float64[ndarray, "dim"] | None = None,
    noise: int = 0,
    threads: int,
) -> tuple[Float64[ndarray, "images"], Float64[ndarray, "images"]]:
    """Foreign similarity by B1, or B2 where it is `balanced` over clusters, and own similarity by C1; 0 where none.

    `noise` images, of this sum, are foreign too.
    """
    bits = readable(features)
    shares = 1 / sizes if balanced else np.ones(len(sizes))
    rest = foreign_counts(sizes, balanced, noise)
    total = np.einsum("c,cd->d", shares, sums)
    total = total if noise_sum is None else total + noise_sum
    foreign, own = np.zeros(len(labels)), np.zeros(len(labels))
    over_rows(
        lambda start, stop: _score(bits, labels, sizes, sums, shares, rest, total, start, stop, foreign, own),
        len(labels),
        threads=threads,
    )
    return foreign, own


def foreign_counts(sizes: Int64[ndarray, "clusters"], balanced: bool, noise: int) -> Int64[ndarray, "clusters"]:
    """What the mean of B1 (B2 where it is `balanced`) is over, for the members of each cluster."""
    others = np.full(len(sizes), len(sizes) - 1) if balanced else sizes.sum() - sizes
    return np.asarray(others + noise)


@compiled
@typing.no_type_check
def _add(features, labels, start, stop, sums):
    """Adds the columns start..stop-1 of every clustered row to its cluster's sum, in order of index."""
    for row in range(labels.size):
        if labels[row] >= 0:
            for column in range(start, stop):
                sums[labels[row], column] += real(features[row, column])


@compiled
@typing.no_type_check
def _score(features, labels, sizes, sums, shares, rest, total, start, stop, foreign, own):
    """Foreign and own similarity of rows start..stop-1."""
    for row in range(start, stop):
        c = labels[row]
        if c < 0:
            continue
        inside = dot(features[row], sums[c])
        if rest[c] > 0:
            foreign[row] = (dot(features[row], total) - shares[c] * inside) / rest[c]
        if sizes[c] > 1:
            own[row] = (inside - dot(features[row], features[row])) / (sizes[c] - 1)
