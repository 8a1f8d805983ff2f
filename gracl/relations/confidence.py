"""How sure an image is of its group: how much of its neighbours it shares with the others of the group, on average.

    confidence(i) = mean of 1 - d(i, j) over the other images j of the group of i

d is the Jaccard distance that the groups were made by. 0 in no group, and in a group of one, for whom nobody speaks.
An image that came in over a chain of neighbours has little in common with most of its group, and so have all images of
a group that holds two objects. What else was tried is in docs/use.md: less the same mean to the next best group, the
silhouette, the share of the nearest images that are of the group.
"""

import typing

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.kernels import compiled, over_rows
from gracl.relations.lists import Inverted, Lists, meet
from gracl.types import NOISE


def confidences(
    weights: Lists,
    inverted: Inverted,
    labels: Int64[ndarray, "rows"],
    *,
    counts: Int64[ndarray, "rows"] | None = None,
    threads: int = 0,
) -> Float32[ndarray, "rows"]:
    """The confidence of every row in its group, 0..1.

    No distance is stored: time is that of the Jaccard distances, memory O(rows) for each thread.

    Args:
        weights: the sets whose shared minima m make the distance 1 - m / (2 - m); a row sums to 1.
        inverted: what `lists.invert` makes of them.
        labels: 0..G-1, in order of image; -1 is no group.
        counts: how many images each row stands for, its copies at distance 0. None: one each.
        threads: 0 takes torch's number. The result does not depend on it.

    Raises:
        GraclError: labels or counts of other rows.
    """
    rows = len(weights.starts) - 1
    counts = np.ones(rows, np.int64) if counts is None else counts
    if (len(labels), len(counts)) != (rows, rows):
        came = f"{len(labels)} and {len(counts)}"
        raise GraclError(expected(f"{rows} labels and counts", came, "take those of the same features"))
    known = labels != NOISE
    sizes = np.bincount(labels[known], counts[known]).astype(np.int64)
    # In the order in which the lists stand.
    here, often, sure = labels[weights.names], counts[weights.names], np.zeros(rows, np.float32)
    lists = weights.starts, weights.ids, weights.values, inverted.heads, inverted.holders, inverted.weights
    over_rows(lambda start, stop: _sure(*lists, here, often, sizes, start, stop, sure), rows, threads=threads)
    found = np.empty(rows, np.float32)
    found[weights.names] = sure
    return found


@compiled
@typing.no_type_check
def _sure(starts, ids, values, heads, holders, weights, labels, counts, sizes, start, stop, sure):
    """Confidences of rows start..stop-1."""
    shared, met = np.zeros(labels.size, np.float64), np.empty(labels.size, np.int64)
    grouped = labels >= 0
    for row in range(start, stop):
        own = labels[row]
        if own < 0:
            continue
        inside = counts[row] - 1.0
        for c in range(meet(starts, ids, values, heads, holders, weights, grouped, row, shared, met)):
            m = shared[met[c]]
            shared[met[c]] = 0.0
            if labels[met[c]] == own:
                # Weights sum to 1 but for rounding, which must not make two rows more than equal.
                inside += counts[met[c]] * min(1.0, m / (2.0 - m))
        if sizes[own] > 1:
            sure[row] = inside / (sizes[own] - 1)
