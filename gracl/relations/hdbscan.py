"""Which images are taken for one object: HDBSCAN (Campello et al., PAKDD 2013) on the sparse graph.

Rows merge into larger and larger sets as the level rises to which distances count; the tree of these merges says which
sets last long. The tree is made here, and scikit-learn's HDBSCAN condenses it and selects from it.
"""

import typing
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from gracl.errors import ConfigError, expected
from gracl.kernels import compiled
from gracl.relations.clusters import check_square, numbered, root
from gracl.types import NOISE

# Stands for distance 0, see `_reachability`: no positive float32 is below it, and 1 / it is still a double.
_TINY = np.float32(2.0**-149)


def hdbscan(distance: csr_array, *, min_samples: int = 4, min_cluster_size: int = 8) -> Int64[ndarray, "rows"]:
    """Labels of the sets of rows that last longest over all levels, numbered by first member; -1 is noise.

    The *core distance* of a row is that to its `min_samples`-th nearest, itself counted; two rows merge at the largest
    of their distance and their core distances. Falling from level 1, a set that breaks into several of at least
    `min_cluster_size` rows ends there, else it goes on as the largest and loses the rest. Of a set and the sets within
    it the more stable are chosen: the sum, over its rows, of 1 / level when the row leaves minus 1 / level when the
    set began ("excess of mass", scikit-learn's default). Rows of no chosen set are noise. The set of all rows cannot
    be chosen, so there are never fewer than two clusters but for none.

    The graph has to be whole below 1 (`limit=1` of `jaccard_distance`): levels beyond a cut would all be 1. Stability
    weighs levels near 0 most, and level 0 beyond measure: where a set breaks and a part holds `min_cluster_size` copies
    of one row, the parts are chosen. Labels depend neither on the order of rows nor on that among equal levels (see
    `_ordered`). Memory is about 20 bytes an entry.

    Args:
        distance: symmetric, in [0, 1], read as float32; what is not stored is at distance 1. Left as it is. Stored
            zeros count, the diagonal need not be there.
        min_samples: >= 1; with more than there are rows all is noise.
        min_cluster_size: >= 2.

    Raises:
        ConfigError: options out of range, or the package scikit-learn is missing.
        GraclError: a matrix that is not square.
    """
    if min_samples < 1 or min_cluster_size < 2:
        raise ConfigError(
            expected(
                "min_samples >= 1 and min_cluster_size >= 2",
                f"{min_samples} and {min_cluster_size}",
                "the usual values are 4 and 8",
            )
        )
    check_square(distance)
    selector, rows = _selector(), distance.shape[0]
    if rows < 2:
        return np.full(rows, NOISE, np.int64)
    tree = _ordered(*_spanning(_reachability(distance, min_samples)), rows, min_cluster_size)
    # The tree holds core distances already: at 1 sample its own are no larger than what it holds.
    select = selector(min_cluster_size=min_cluster_size, min_samples=1, metric="precomputed", copy=True)
    return np.asarray(numbered(select.fit_predict(tree).astype(np.int64)))


def _selector() -> Any:
    """The class HDBSCAN of scikit-learn, which not everybody has."""
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError as error:
        raise ConfigError(
            expected(
                "the package scikit-learn", "no such package", "pip install scikit-learn, or use clustering=dbscan"
            )
        ) from error
    return HDBSCAN


def _reachability(distance: csr_array, min_samples: int) -> csr_array:
    """The levels at which pairs of rows would merge, float32 [rows, rows]: each pair once, and only those below 1.

    Level 0 becomes the smallest number there is: scipy loses edges of weight 0, and with the tree broken scikit-learn
    does not come back. That changes no order, and 1 / level is so large that it still outweighs all others.
    """
    rows, ids = distance.shape[0], distance.indices
    values = distance.data.astype(np.float32, copy=False)
    core = _core_distances(distance.indptr, ids, values, min_samples)
    heads = np.repeat(np.arange(rows, dtype=ids.dtype), np.diff(distance.indptr))
    levels = np.maximum(np.maximum(core[heads], core[ids]), np.maximum(values, _TINY))
    kept = np.flatnonzero((heads < ids) & (levels < 1))
    starts = np.searchsorted(kept, distance.indptr).astype(distance.indptr.dtype)
    return csr_array((levels[kept], ids[kept], starts), shape=(rows, rows))


def _spanning(
    levels: csr_array,
) -> tuple[Int64[ndarray, "merges"], Int64[ndarray, "merges"], Float32[ndarray, "merges"]]:
    """Edges of a minimum spanning tree in rising order; parts that nothing connects are joined at level 1."""
    forest = minimum_spanning_tree(levels, overwrite=True).tocoo()
    parts = connected_components(forest, directed=False)[1]
    firsts = np.unique(parts, return_index=True)[1]
    heads = np.concatenate([forest.row, np.full(len(firsts) - 1, firsts[0])]).astype(np.int64)
    tails = np.concatenate([forest.col, firsts[1:]]).astype(np.int64)
    merges = np.concatenate([forest.data, np.ones(len(firsts) - 1)]).astype(np.float32)
    order = np.argsort(merges, kind="stable")
    return heads[order], tails[order], merges[order]


def _ordered(
    heads: Int64[ndarray, "merges"],
    tails: Int64[ndarray, "merges"],
    levels: Float32[ndarray, "merges"],
    rows: int,
    min_cluster_size: int,
) -> csr_array:
    """The same tree of merges with equal levels in the order of the definition, float64 [rows, rows], symmetric.

    By definition all merges of one level happen at once. scikit-learn makes them one by one in no certain order, and
    then a lone row between two clusters goes to whichever it met first. Equal levels are the rule, not the exception:
    a core distance is the level of several edges, and level 1 that of all parts. So the sets that merge at a level are
    linked to the largest of them, and those below `min_cluster_size` one unit in the last place later: falling, they
    are lost before the rest breaks.
    """
    centres, others, small = _merged(heads, tails, levels, rows, min_cluster_size)
    weights = levels.astype(np.float64)
    weights[small] = np.nextafter(weights[small], 2)
    ends = np.concatenate([centres, others]), np.concatenate([others, centres])
    return csr_array((np.concatenate([weights, weights]), ends), shape=(rows, rows))


@compiled
@typing.no_type_check
def _core_distances(starts, ids, values, min_samples):
    """The distance of every row to its min_samples-th nearest, itself counted; 1 where too few are stored."""
    rows = starts.size - 1
    core = np.zeros(rows, np.float32)
    others = min(min_samples - 1, rows)
    if others == 0:
        return core
    nearest = np.empty(others, np.float32)  # ascending
    for row in range(rows):
        nearest[:] = 1
        for p in range(starts[row], starts[row + 1]):
            if ids[p] == row or values[p] >= nearest[-1]:
                continue
            place = others - 1
            while place > 0 and nearest[place - 1] > values[p]:
                nearest[place] = nearest[place - 1]
                place -= 1
            nearest[place] = values[p]
        core[row] = nearest[-1]
    return core


@compiled
@typing.no_type_check
def _merged(heads, tails, levels, rows, min_cluster_size):
    """For every merge a row of the largest set of its level, a row of the set that joins it, and whether that is small.

    Edges come in rising order. While those of one level are read, sizes stay those from below it.
    """
    parents, sizes = np.arange(rows), np.ones(rows, np.int64)
    centres, others = np.empty(levels.size, np.int64), np.empty(levels.size, np.int64)
    small = np.empty(levels.size, np.bool_)
    start = 0
    while start < levels.size:
        stop = start
        while stop < levels.size and levels[stop] == levels[start]:
            a, b = root(parents, heads[stop]), root(parents, tails[stop])
            if sizes[a] < sizes[b] or (sizes[a] == sizes[b] and a > b):
                a, b = b, a
            parents[b], others[stop] = a, b
            stop += 1
        for merge in range(start, stop):
            centres[merge] = root(parents, others[merge])
            small[merge] = sizes[others[merge]] < min_cluster_size
            sizes[centres[merge]] += sizes[others[merge]]
        start = stop
    return centres, others, small
