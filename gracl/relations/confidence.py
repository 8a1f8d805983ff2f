"""How sure an image is of its group: what it has in common with its own, less what it has with the best of the others.

With s(i, j) = 1 - Jaccard distance, and the n_g images of group g:

    own(i)   = mean of s(i, j) over the other images j of the group of i
    other(i) = the largest mean of s(i, j) over the images j of another group, 0 where there is none
    confidence(i) = max(0, own(i) - other(i)), 0 in no group and in a group of one

Where distances are a = 1 - own and b = 1 - other this is b - a: the silhouette without its division, so that an image
that is far from everybody, and only a little farther from the others, is not sure.
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
    near, reached = np.zeros(sizes.size, np.float64), np.empty(sizes.size, np.int64)
    grouped = labels >= 0
    for row in range(start, stop):
        own = labels[row]
        if own < 0:
            continue
        count, groups = meet(starts, ids, values, heads, holders, weights, grouped, row, shared, met), 0
        for c in range(count):
            m, group = shared[met[c]], labels[met[c]]
            shared[met[c]] = 0.0
            if near[group] == 0.0:
                reached[groups] = group
                groups += 1
            # Weights sum to 1 but for rounding, which must not make two rows more than equal.
            near[group] += counts[met[c]] * min(1.0, m / (2.0 - m))
        inside, other = counts[row] - 1.0, 0.0
        for c in range(groups):
            group = reached[c]
            if group == own:
                inside += near[group]
            else:
                other = max(other, near[group] / sizes[group])
            near[group] = 0.0
        if sizes[own] > 1:
            sure[row] = max(0.0, inside / (sizes[own] - 1) - other)
