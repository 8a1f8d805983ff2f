"""Who agrees with whom: the k-reciprocal Jaccard distance (Zhong et al., CVPR 2017), on lists only.

The four steps of method.md 4.7, each a kernel over rows: mutual neighbours; their expansion; weights, averaged over
the nearest rows (query expansion); shared weight by inverted lists. Memory grows with the number of pairs that share
a neighbour, never with N x N.
"""

import typing

import numpy as np
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import Progress, compiled, dot, over_rows, readable
from gracl.relations.lists import LENGTH, Inverted, Lists, averaged, grown, invert, join, mirror, nearby, soften
from gracl.types import Feature, Neighbors

_FULL, _HALF = 1, 2


def jaccard_distance(
    neighbors: Neighbors,
    features: Feature[ndarray, "rows dim"],
    *,
    k1: int = 30,
    k2: int = 6,
    limit: float = 1.0,
    threads: int = 0,
    progress: Progress | None = None,
) -> csr_array:
    """Jaccard distance of the weighted k-reciprocal sets, for the pairs where it is below 1.

    Args:
        neighbors, features, k1, k2: see `reciprocal_weights`.
        limit, progress: see `shared_distance`.
        threads: 0 takes torch's number. The result does not depend on it.

    Returns:
        See `shared_distance`.

    Raises:
        ConfigError: options out of range.
        GraclError: a table that does not belong to the features, or is too short.
    """
    _check_limit(limit)
    weights = reciprocal_weights(neighbors, features, k1=k1, k2=k2, threads=threads)
    return shared_distance(weights, invert(weights), limit=limit, threads=threads, progress=progress)


def reciprocal_weights(
    neighbors: Neighbors,
    features: Feature[ndarray, "rows dim"],
    *,
    k1: int = 30,
    k2: int = 6,
    threads: int = 0,
) -> Lists:
    """The k-reciprocal set of every row with a weight for each member; the weights of a row sum to 1.

    Sets are as in the reference implementations of this family: the full set looks at k1 neighbours, itself counted,
    the half set at round(k1/2) + 1 (peers.md 7a). Lists shorter than that, for want of rows, are taken as they are.

    Args:
        neighbors: from `similarity.nearest`, at least k1 long (or all rows).
        features: the unit rows they were found among, for the few similarities that the table lacks.
        k1: neighbours of the k-reciprocal sets, the row itself counted, >= 1.
        k2: nearest rows whose weights are averaged, the row itself counted, 1..k1; 1 leaves the weights as they are.
        threads: 0 takes torch's number. The result does not depend on it.

    Raises:
        ConfigError: options out of range.
        GraclError: a table that does not belong to the features, or is too short.
    """
    _check(neighbors, features, k1, k2)
    rows, read = len(features), readable(features)
    names = nearby(neighbors.indices[:, :k2])
    places = np.empty(rows, np.int32)
    places[names] = np.arange(rows, dtype=np.int32)
    table, near = places[neighbors.indices[names, :k1]], neighbors.similarities[names, :k1]
    half = min(round(k1 / 2) + 1, k1)
    mutual = np.empty(table.shape, np.uint8)
    over_rows(lambda start, stop: _mutual(table, half, start, stop, mutual), rows, threads=threads)
    parts = over_rows(lambda start, stop: _weigh(table, near, mutual, read, names, start, stop), rows, threads=threads)
    weights = join(parts, names)
    return weights if k2 == 1 else averaged(weights, np.ascontiguousarray(table[:, :k2]), threads=threads)


def shared_distance(
    weights: Lists,
    inverted: Inverted,
    *,
    limit: float = 1.0,
    threads: int = 0,
    progress: Progress | None = None,
) -> csr_array:
    """1 - m / (2 - m) for every pair of rows that share a member; m is the sum of the smaller weights.

    Args:
        weights: sets whose weights sum to 1.
        inverted: who holds what in `weights`.
        limit: distances above it are left out. At the eps of the clustering nothing is lost for it, and memory is
            about that of the neighbour table.
        threads: 0 takes torch's number. The result does not depend on it.
        progress: called with (rows done, rows).

    Returns:
        A float32 csr_array [rows, rows], exactly symmetric, in [0, 1], ids ascending in a row. What is not stored is
        at distance 1 (or above `limit`); zeros are stored: the diagonal, and pairs with the same weights.

    Raises:
        ConfigError: a limit out of range.
    """
    _check_limit(limit)
    rows, bound = len(weights.starts) - 1, np.float32(limit)
    lists = weights.starts, weights.ids, weights.values, *inverted
    parts = over_rows(lambda start, stop: _share(*lists, bound, start, stop), rows, threads=threads, progress=progress)
    starts, ids, values = mirror(join(parts, weights.names))
    return csr_array((values, ids, starts), shape=(rows, rows))


def _check(neighbors: Neighbors, features: Feature[ndarray, "rows dim"], k1: int, k2: int) -> None:
    """Refuses what would be silently something else: short lists, k2 beyond k1, indices out of range."""
    if not 1 <= k2 <= k1:
        raise ConfigError(expected("1 <= k2 <= k1", f"k1={k1}, k2={k2}", "lower k2 or raise k1"))
    indices, rows = neighbors.indices, len(features)
    if len(indices) != rows or (rows and indices.shape[1] < min(k1, rows)):
        raise GraclError(
            expected(
                f"{min(k1, rows)} neighbours for each of {rows} rows",
                f"a table of {indices.shape[0]} x {indices.shape[1]}",
                "make the table with nearest(features, k1) from the same features",
            )
        )
    if rows and not (np.abs(neighbors.similarities[:, 0] - 1) <= LENGTH).all():
        raise GraclError(expected("unit rows", "rows that are not", "divide each row by its length"))
    if rows and (indices.min() < 0 or indices.max() >= rows or (indices[:, 0] != np.arange(rows)).any()):
        raise GraclError(
            expected(f"rows 0..{rows - 1}, each first in its own list", "something else", "use similarity.nearest")
        )


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise ConfigError(expected("0 < limit <= 1", limit, "use the eps of the clustering, or 1 for all distances"))


@compiled
@typing.no_type_check
def _mutual(table, half, start, stop, mutual):
    """Marks who is in the list of whom, both ways: bit 1 in the full lists, bit 2 in the half lists."""
    k = table.shape[1]
    for row in range(start, stop):
        for place in range(k):
            other = table[row, place]
            mark = 0
            for back in range(k):
                if table[other, back] == row:
                    mark = _FULL | (_HALF if back < half and place < half else 0)
                    break
            mutual[row, place] = mark


@compiled
@typing.no_type_check
def _weigh(table, near, mutual, features, names, start, stop):
    """Expanded k-reciprocal sets with softmax weights of minus the squared distance, as lists.

    A member's half set joins when more than two thirds of it are in the full set. Squared distance is 2 - 2s for
    similarity s; members of the row's own list have theirs in the table.
    """
    k = table.shape[1]
    lengths = np.empty(stop - start, np.int64)
    ids, values = np.empty((stop - start) * k, np.int32), np.empty((stop - start) * k, np.float32)
    seen = np.full(table.shape[0], -1, np.int32)  # row: member of its full set
    added = np.full(table.shape[0], -1, np.int32)  # row: member of its expanded set
    end = 0
    for row in range(start, stop):
        ids, values = grown(ids, values, end + k * (k + 1))
        begin = end
        for place in range(k):
            if mutual[row, place]:
                j = table[row, place]
                seen[j], added[j] = row, row
                ids[end], values[end] = j, near[row, place]
                end += 1
        full = end
        for m in range(begin, full):
            member = ids[m]
            size, inside = 0, 0
            for place in range(k):
                if mutual[member, place] & _HALF:
                    size += 1
                    inside += seen[table[member, place]] == row
            if 3 * inside <= 2 * size:
                continue
            for place in range(k):
                j = table[member, place]
                if mutual[member, place] & _HALF and added[j] != row:
                    added[j] = row
                    ids[end], values[end] = j, _similarity(table, near, features, names, row, j)
                    end += 1
        soften(values, begin, end)
        lengths[row - start] = end - begin
    return lengths, ids[:end].copy(), values[:end].copy()


@compiled
@typing.no_type_check
def _similarity(table, near, features, names, row, other):
    """The similarity of two rows: from either's list where the other is in it (a tenth of the cost), else computed."""
    for place in range(table.shape[1]):
        if table[other, place] == row:
            return near[other, place]
        if table[row, place] == other:
            return near[row, place]
    return np.float32(dot(features[names[row]], features[names[other]]))


@compiled
@typing.no_type_check
def _share(starts, ids, values, heads, holders, weights, places, limit, start, stop):
    """Distances of each row to itself and to later rows, as lists in no order: 1 - m / (2 - m), m the shared weight."""
    lengths = np.empty(stop - start, np.int64)
    out_ids, out_values = np.empty(64 * (stop - start), np.int32), np.empty(64 * (stop - start), np.float32)
    shared = np.zeros(starts.size - 1, np.float32)
    met = np.empty(starts.size - 1, np.int32)
    end = 0
    for row in range(start, stop):
        count = 0
        for p in range(starts[row], starts[row + 1]):
            # An inverted list ascends, so from the row's own place on come the later rows only.
            for q in range(heads[ids[p]] + places[p], heads[ids[p] + 1]):
                other = holders[q]
                if shared[other] == 0.0:
                    met[count] = other
                    count += 1
                shared[other] += min(values[p], weights[q])
        out_ids, out_values = grown(out_ids, out_values, end + count)
        begin = end
        for c in range(count):
            m = np.float64(shared[met[c]])
            shared[met[c]] = 0.0
            distance = np.float32(0.0) if met[c] == row else np.float32(max(0.0, 1.0 - m / (2.0 - m)))
            if distance < 1.0 and distance <= limit:
                out_ids[end], out_values[end] = met[c], distance
                end += 1
        lengths[row - start] = end - begin
    return lengths, out_ids[:end].copy(), out_values[:end].copy()
