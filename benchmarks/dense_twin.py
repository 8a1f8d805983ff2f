"""The relations as this method family computes them: dense N x N arrays, a Python loop over rows (method.md 4.7).

What `bench_relate.py` is held against. Written from the description; the loops, the arrays and their dtypes are those
that make the family's code cost what it costs.
"""

import numpy as np
from sklearn.cluster import DBSCAN


def jaccard(features: np.ndarray, table: np.ndarray, k1: int = 30, k2: int = 6) -> np.ndarray:
    """The dense float32 Jaccard distance [rows, rows] from a neighbour table [rows, k1], itself first."""
    rows = len(table)
    full = [mutual(table, row, k1) for row in range(rows)]
    half = [mutual(table, row, round(k1 / 2) + 1) for row in range(rows)]
    weights = np.zeros((rows, rows), np.float32)
    for row in range(rows):
        members = full[row]
        for candidate in full[row]:
            inside = np.intersect1d(half[candidate], full[row])
            if len(inside) > 2 / 3 * len(half[candidate]):
                members = np.append(members, half[candidate])
        members = np.unique(members)
        near = np.exp(-(2 - 2 * features[row] @ features[members].T))
        weights[row, members] = near / near.sum()
    if k2 > 1:
        expanded = np.zeros_like(weights)
        for row in range(rows):
            expanded[row] = weights[table[row, :k2]].mean(axis=0)
        weights = expanded
        del expanded
    holders = [np.flatnonzero(weights[:, column]) for column in range(rows)]
    distance = np.zeros((rows, rows), np.float32)
    for row in range(rows):
        shared = np.zeros(rows, np.float32)
        for column in np.flatnonzero(weights[row]):
            which = holders[column]
            shared[which] += np.minimum(weights[row, column], weights[which, column])
        distance[row] = 1 - shared / (2 - shared)
    distance[distance < 0] = 0
    return distance


def mutual(table: np.ndarray, row: int, k: int) -> np.ndarray:
    """Who is among the first k of a row and has it among its first k."""
    forward = table[row, :k]
    return forward[(table[forward, :k] == row).any(axis=1)]


def labels_of(distance: np.ndarray, eps: float = 0.6, min_samples: int = 4) -> np.ndarray:
    """scikit-learn's DBSCAN on the dense matrix."""
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)
