"""What the neighbours of an image say of its label: the weights of its reciprocal set, added up by cluster.

The published refinements of labels (method.md 7: NCPLR, PPLR) average the labels or predictions of nearest neighbours;
here the neighbours and their weights are those that the Jaccard distance is made of, so nothing is searched for again.
"""

import typing

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ConfigError, expected
from gracl.kernels import compiled, over_rows
from gracl.relations.lists import Lists
from gracl.types import EMPTY, Consensus


def neighbour_consensus(weights: Lists, labels: Int64[ndarray, "images"], kept: int, *, threads: int = 0) -> Consensus:
    """For each image the `kept` clusters that weigh most among its reciprocal neighbours, itself counted.

    The weights of noise are left out, and so are those of clusters that are not kept; the rest is brought to the sum
    1. Of clusters that weigh the same the lower number comes first.

    Args:
        weights: see `jaccard.reciprocal_weights`.
        labels: 0..C-1 in order of index; -1 is noise.
        kept: clusters kept of each image, >= 1.
        threads: 0 takes torch's number; the result does not depend on it.

    Raises:
        ConfigError: kept < 1.
    """
    if kept < 1:
        raise ConfigError(expected("relations.consensus of at least 1", kept, "8 is usual; 0 leaves it out"))
    clusters = np.full((len(labels), kept), EMPTY, np.int32)
    shares = np.zeros((len(labels), kept), np.float32)
    size = int(labels.max()) + 1
    over_rows(
        lambda start, stop: _add_up(*weights, labels, size, start, stop, clusters, shares), len(labels), threads=threads
    )
    return Consensus(clusters, shares)


@compiled
@typing.no_type_check
def _add_up(starts, ids, values, names, labels, size, start, stop, clusters, shares):
    """The rows start..stop-1 of the lists, written at the images they stand for."""
    sums = np.zeros(size, np.float64)
    kept = clusters.shape[1]
    met = np.empty(size, np.int64)
    for row in range(start, stop):
        count, image = 0, names[row]
        for p in range(starts[row], starts[row + 1]):
            c = labels[names[ids[p]]]
            if c < 0:
                continue
            if sums[c] == 0.0:
                met[count] = c
                count += 1
            sums[c] += values[p]
        total = 0.0
        places = min(kept, count)
        for place in range(places):
            best = place
            for other in range(place + 1, count):
                a, b = met[other], met[best]
                if sums[a] > sums[b] or (sums[a] == sums[b] and a < b):
                    best = other
            met[place], met[best] = met[best], met[place]
            total += sums[met[place]]
        for place in range(places):
            clusters[image, place] = met[place]
            shares[image, place] = sums[met[place]] / total
        for place in range(count):
            sums[met[place]] = 0.0
