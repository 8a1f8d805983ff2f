"""Which images are taken for one object: DBSCAN (Ester et al., KDD 1996) on a sparse distance matrix."""

import typing

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import compiled
from gracl.types import NOISE


def dbscan(
    distance: csr_array, *, eps: float = 0.6, min_samples: int = 4, counts: Int64[ndarray, "rows"] | None = None
) -> Int64[ndarray, "rows"]:
    """Labels of density-connected rows, numbered by first member; -1 is noise. Time and memory go with the entries.

    A row is *core* when at least `min_samples` rows, itself counted, lie within `eps`. Core rows within `eps` of each
    other share a cluster. A row that is not core joins, of the clusters that reach it, the one with the lowest core
    row: the cluster that scikit-learn's DBSCAN (metric="precomputed") would have grown first (ray.md 8.3), so the
    labels are the same up to their numbers.

    Args:
        distance: symmetric; what is not stored is out of reach. Stored zeros count, the diagonal need not be there.
        eps: largest distance between neighbours, 0 < eps < 1, in the matrix's own precision.
        min_samples: >= 1.
        counts: how many images each row stands for, >= 1; a row and its neighbours then count so often, as if each
            were there so many times, its copies at distance 0. None: one each.

    Raises:
        ConfigError: options out of range.
        GraclError: a matrix that is not square, or counts of other rows or below 1.
    """
    if not 0 < eps < 1 or min_samples < 1:
        raise ConfigError(
            expected("0 < eps < 1 and min_samples >= 1", f"{eps} and {min_samples}", "the usual values are 0.6 and 4")
        )
    check_square(distance)
    rows = distance.shape[0]
    counts = np.ones(rows, np.int64) if counts is None else counts
    if len(counts) != rows or (rows and counts.min() < 1):
        came = f"{len(counts)}, the lowest {counts.min(initial=1)}"
        raise GraclError(expected(f"{rows} counts of 1 or more", came, "count the images of each row"))
    bound = distance.dtype.type(eps)
    graph = distance.indptr, distance.indices, distance.data
    core = _cores(*graph, bound, min_samples, counts)
    clusters = _join_border(*graph, bound, core, _components(*graph, bound, core))
    return np.asarray(numbered(clusters))


def check_square(distance: csr_array) -> None:
    """Refuses a table that is not one of distances among rows.

    Raises:
        GraclError: it is not square.
    """
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1]:
        raise GraclError(expected("a square distance matrix", distance.shape, "make it with jaccard_distance"))


@compiled
@typing.no_type_check
def _cores(starts, ids, values, eps, min_samples, counts):
    """Which rows are core."""
    rows = starts.size - 1
    core = np.empty(rows, np.bool_)
    for row in range(rows):
        count = counts[row]
        for p in range(starts[row], starts[row + 1]):
            if ids[p] != row and values[p] <= eps:
                count += counts[ids[p]]
        core[row] = count >= min_samples
    return core


@compiled
@typing.no_type_check
def root(parents, row):
    """The row that stands for the set of `row` in a union-find, shortening the way there. Only for compiled kernels."""
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


@compiled
@typing.no_type_check
def _components(starts, ids, values, eps, core):
    """For every core row the lowest core row it is connected to (union-find); for the others themselves."""
    rows = starts.size - 1
    parents = np.arange(rows)
    for row in range(rows):
        if not core[row]:
            continue
        for p in range(starts[row], starts[row + 1]):
            if ids[p] < row and core[ids[p]] and values[p] <= eps:
                a, b = root(parents, row), root(parents, ids[p])
                parents[max(a, b)] = min(a, b)
    for row in range(rows):
        parents[row] = root(parents, row)
    return parents


@compiled
@typing.no_type_check
def _join_border(starts, ids, values, eps, core, roots):
    """For every row the lowest core row of its cluster, or -1."""
    rows = starts.size - 1
    clusters = np.full(rows, NOISE, np.int64)
    for row in range(rows):
        if core[row]:
            clusters[row] = roots[row]
            continue
        for p in range(starts[row], starts[row + 1]):
            other = ids[p]
            if core[other] and values[p] <= eps and (clusters[row] == NOISE or roots[other] < clusters[row]):
                clusters[row] = roots[other]
    return clusters


@compiled
@typing.no_type_check
def numbered(clusters):
    """Cluster numbers, int64 [rows] below rows, replaced by 0, 1, ... in order of first member; -1 stays."""
    numbers = np.full(clusters.size, NOISE, np.int64)
    labels = np.full(clusters.size, NOISE, np.int64)
    count = 0
    for row in range(clusters.size):
        if clusters[row] == NOISE:
            continue
        if numbers[clusters[row]] == NOISE:
            numbers[clusters[row]] = count
            count += 1
        labels[row] = numbers[clusters[row]]
    return labels
